"""Answers of a real model: alone, in batches, streamed; text that is cut exactly at stop strings; a journal."""

import json
import logging
import random

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.generation.logits_process import (
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)

from medical_qwen.answers import strip_thinking
from medical_qwen.generation import (
    Answer,
    Generator,
    Journal,
    Request,
    Sampling,
    describe_files,
    describe_model,
    plan_batches,
    read_questions,
    split_thinking,
)
from medical_qwen.generation.decoding import choose
from medical_qwen.generation.text import TextStream

TEXTS = (
    "高血压患者应低盐饮食，每日盐 < 5 g；二甲双胍 500 mg。",
    "👩‍⚕️👨🏽‍⚕️ 医生建议🩺：体温 38.5℃ → 💊×2！🇨🇳",
    "  leading spaces, a “quote”, naïve café — ½ tsp\n\n\tTab and 𠮷野家 𝔘𝔫𝔦𝔠𝔬𝔡𝔢 ﷽ ẛ̣",
    "ไทย हिन्दी العربية עברית ខ្មែរ 한국어 にほんご Ελληνικά",
)


@pytest.fixture(scope="module")
def generator(shared):
    return Generator.load(str(shared / "models/minimind2-small"), only_cpu=True)


@pytest.fixture(scope="module")
def qwen3(shared):
    return AutoTokenizer.from_pretrained(shared / "tokenizers/qwen3")


@pytest.fixture(scope="module")
def requests(shared):
    """Real questions of very different lengths, each with its own seed."""
    lines = (shared / "data/medicalgpt/sft/medical_sft_1K_format.jsonl").read_text(encoding="utf-8").split("\n")[:6]
    return [ask(json.loads(line)["conversations"][0]["value"], seed=n) for n, line in enumerate(lines)]


@pytest.fixture(scope="module")
def greedy(generator, requests):
    """Every request answered on its own."""
    return [generator.answer([request], Sampling(max_new_tokens=14))[0] for request in requests]


def ask(*turns: str, seed: int = 0) -> Request:
    roles = ("user", "assistant")
    return Request([{"role": roles[n % 2], "content": turn} for n, turn in enumerate(turns)], seed=seed)


# ---- tokens to text


@pytest.mark.parametrize("name", ["qwen3", "yi", "baichuan2", "internlm2"])
def test_a_streamed_text_is_the_decoded_text_and_never_holds_half_a_character(shared, name):
    tokenizer = AutoTokenizer.from_pretrained(shared / "tokenizers" / name)
    for text in TEXTS:
        ids = tokenizer(text, add_special_tokens=False).input_ids
        whole = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False).lstrip()
        for end in range(len(ids) + 1):
            pieces = written(TextStream(tokenizer), ids[:end])
            assert "\ufffd" not in "".join(pieces)
            assert whole.startswith("".join(pieces))
        assert "".join(pieces) == whole
        assert len(pieces) > 10


def written(stream: TextStream, ids: list[int]) -> list[str]:
    """The pieces of text that come out until a stop string or the end."""
    pieces = []
    for token in ids:
        pieces.append(stream.push(token))
        if stream.stopped:
            break
    return [*pieces, stream.finish()]


def test_special_tokens_within_an_answer_are_no_text(qwen3):
    ids = qwen3("多喝<|im_start|>水<think>嗯</think>。", add_special_tokens=False).input_ids
    assert "".join(written(TextStream(qwen3), ids)) == "多喝水<think>嗯</think>。"


def test_every_stop_string_is_found_at_every_place_and_no_part_of_it_gets_out(qwen3):
    text = "aaab 患者：你好👩‍⚕️吗？\n\n### 用户:aab"
    ids = qwen3(text, add_special_tokens=False).input_ids
    crossing = 0
    for start in range(len(text)):
        for length in (1, 2, 3, 5, 9):
            stop = text[start : start + length]
            stream = TextStream(qwen3, (stop, "never there"))
            assert "".join(written(stream, ids)) == text[: text.index(stop)]
            assert stream.stopped
            crossing += all(stop not in qwen3.decode([token]) for token in ids)
    assert crossing > 40  # most of them lie across tokens


def test_of_several_stop_strings_the_one_that_is_complete_first_counts(qwen3):
    def stopped(text: str, *stops: str) -> str:
        return "".join(written(TextStream(qwen3, stops), qwen3(text, add_special_tokens=False).input_ids))

    assert stopped("one two three", "two three", "wo") == "one t"
    assert stopped("one two three", "wo", "two") == "one "
    assert stopped("一二三", "二四", "三五") == "一二三"  # beginnings alone stop nothing


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<think>\n先想\n</think>\n\n答案", ("先想", "答案")),
        ("先想</think>答案", ("先想", "答案")),
        ("<think>还在想", ("还在想", "")),
        ("<think>\n\n</think>\n\n答案", ("", "答案")),
        ("没有思考", ("", "没有思考")),
        ("<think>一</think>答<think>二</think>案<think>三", ("一\n\n二\n\n三", "答案")),
        ("", ("", "")),
    ],
)
def test_split_thinking(text, expected):
    assert split_thinking(text) == expected


# ---- the choice of a token


def test_drawing_follows_the_distribution_that_the_library_defines():
    torch.manual_seed(0)
    logits = torch.randn(1, 50)
    sampling = Sampling(temperature=0.7, top_p=0.8, repetition_penalty=1.3)
    seen = torch.zeros(1, 50, dtype=torch.bool)
    seen[0, logits.topk(3).indices] = True
    scores = RepetitionPenaltyLogitsProcessor(1.3)(seen.nonzero()[:, 1][None], logits)
    expected = TopPLogitsWarper(0.8)(None, TemperatureLogitsWarper(0.7)(None, scores)).softmax(-1)[0]
    draws = (torch.arange(20000) + 0.5) / 20000
    chosen = choose(logits.expand(20000, -1), seen.expand(20000, -1), draws, sampling)
    torch.testing.assert_close(chosen.bincount(minlength=50) / 20000, expected, atol=2e-4, rtol=0)
    assert 1 < (expected > 0).sum() < 50


def test_the_last_possible_draw_is_still_a_likely_token():
    logits = torch.tensor([[5.0, 4.0, -20.0, -30.0]])
    assert choose(logits, None, torch.tensor([1.0]), Sampling(temperature=1.0, top_p=0.9)).item() == 1
    assert choose(logits, None, torch.tensor([0.0]), Sampling(temperature=1.0, top_p=0.1)).item() == 0
    assert choose(logits, None, torch.tensor([0.99]), Sampling(temperature=1e-9)).item() == 0


@pytest.mark.parametrize(
    ("wrong", "flag"),
    [
        ({"max_new_tokens": 0}, "--max_new_tokens"),
        ({"temperature": -0.1}, "--temperature"),
        ({"temperature": float("nan")}, "--temperature"),
        ({"top_p": 0.0}, "--top_p"),
        ({"top_p": 1.1}, "--top_p"),
        ({"repetition_penalty": 0.0}, "--repetition_penalty"),
        ({"stop": ("",)}, "--stop_str"),
    ],
)
def test_impossible_settings_name_their_flag(wrong, flag):
    with pytest.raises(ValueError, match=flag):
        Sampling(**wrong)


# ---- answers


def test_greedy_answers_are_those_of_the_library(generator, requests, greedy):
    model, tokenizer = generator.model, generator.tokenizer
    for request, answer in zip(requests, greedy, strict=True):
        ids = generator.renderer.prompt(request.messages)
        with torch.inference_mode():
            output = model.generate(torch.tensor([ids]), max_new_tokens=14, do_sample=False, pad_token_id=0)
        new = output[0, len(ids) :].tolist()
        assert answer.text == tokenizer.decode(new, skip_special_tokens=True).lstrip()
        assert (answer.prompt_tokens, answer.completion_tokens) == (len(ids), len(new))


@pytest.mark.parametrize("batch_size", [3, 6])
def test_a_batch_gives_the_answers_of_single_requests_in_their_order(generator, requests, greedy, batch_size):
    assert len({answer.prompt_tokens for answer in greedy}) > 4
    assert generator.answer(requests, Sampling(max_new_tokens=14), batch_size) == greedy


def test_the_repetition_penalty_of_a_row_does_not_see_the_padding(generator, requests):
    """The token that stands in the padding is made the likeliest one: it may be said once without a penalty."""

    def prefer(module, arguments, output):
        output.logits[..., 0] = output.logits.amax(-1) + 0.5

    hook = generator.model.register_forward_hook(prefer)
    sampling = Sampling(max_new_tokens=10, repetition_penalty=1.3)
    alone = [generator.answer([request], sampling)[0] for request in requests[:4]]
    together = generator.answer(requests[:4], sampling, 4)
    hook.remove()
    assert together == alone


def test_a_request_draws_from_its_own_seed_whatever_it_shares_a_batch_with(generator, requests):
    sampling = Sampling(max_new_tokens=8, temperature=1.0, top_p=0.95)
    together = generator.answer(requests, sampling, batch_size=6)
    assert generator.answer(requests[::-1], sampling, batch_size=3) == together[::-1]
    other = [Request(request.messages, seed=request.seed + 100) for request in requests]
    assert generator.answer(other, sampling, batch_size=6) != together


def test_an_answer_ends_at_the_end_token_and_at_the_length(generator):
    short, long = generator.answer(
        [ask("只回答一个字：好"), ask("你好")], Sampling(max_new_tokens=64, stop=("！", "。"))
    )
    assert short.finish_reason == long.finish_reason == "stop"
    cut = generator.answer([ask("你好")], Sampling(max_new_tokens=2))[0]
    assert (cut.finish_reason, cut.completion_tokens) == ("length", 2)


def test_a_thought_that_the_prompt_begins_is_a_thought(shared):
    """Cut off inside it, the words would be taken for the answer."""
    thinking = Generator.load(str(shared / "models/minimind2-small"), template_name="qwen3_5", only_cpu=True)
    request, sampling = ask("头痛怎么办？"), Sampling(max_new_tokens=6)
    answer = thinking.answer([request], sampling)[0]
    assert answer.text.startswith("<think>\n") and len(answer.text) > 9 and strip_thinking(answer.text) == ""
    assert "".join(thinking.stream(request, sampling)) == answer.text and answer.completion_tokens == 6


def test_the_end_token_ends_an_answer_and_is_no_text(generator, requests):
    """The model is made to say its end token: its own logits, and an end token that is sure after six tokens."""
    steps = []

    def end_after_six(module, arguments, output):
        steps.append(1)
        if len(steps) == 7:
            output.logits[..., generator.tokenizer.eos_token_id] = 1e4

    hook = generator.model.register_forward_hook(end_after_six)
    answer = generator.answer(requests[:1], Sampling(max_new_tokens=14))[0]
    hook.remove()
    six = generator.answer(requests[:1], Sampling(max_new_tokens=6))[0]
    assert answer == Answer(six.text, "stop", six.prompt_tokens, 7, False)


def test_a_stop_string_across_tokens_cuts_batches_and_streams_alike(generator, requests, greedy):
    tokens = [generator.tokenizer.decode([i]) for i in range(len(generator.tokenizer))]
    checked = 0
    for request, answer in zip(requests[:2], greedy, strict=False):
        for start in range(4, 12, 3):
            stop = answer.text[start : start + 4]
            if any(stop in token for token in tokens):
                continue
            sampling = Sampling(max_new_tokens=14, stop=(stop, "nowhere"))
            stopped = generator.answer([request], sampling)[0]
            assert stopped.text == answer.text[: answer.text.index(stop)]
            assert stopped.finish_reason == "stop"
            assert "".join(generator.stream(request, sampling)) == stopped.text
            checked += 1
    assert checked >= 4


def test_a_special_token_as_stop_string_ends_the_answer(generator, requests):
    stop = generator.tokenizer.pad_token

    def prefer(module, arguments, output):
        output.logits[..., generator.tokenizer.pad_token_id] = 1e4

    hook = generator.model.register_forward_hook(prefer)
    answer = generator.answer(requests[:1], Sampling(max_new_tokens=14, stop=(stop,)))[0]
    hook.remove()
    assert (answer.text, answer.finish_reason, answer.completion_tokens) == ("", "stop", 1)


def test_a_stream_is_the_batch_answer_in_pieces(generator, requests, greedy):
    for request, answer in zip(requests[:3], greedy, strict=False):
        stream = generator.stream(request, Sampling(max_new_tokens=14))
        pieces = list(stream)
        assert len(pieces) > 8
        assert "".join(pieces) == answer.text
        assert stream.answer == answer


def test_a_closed_stream_computes_no_further_token(generator, requests, greedy):
    passes = []
    hook = generator.model.register_forward_hook(lambda *_: passes.append(1))
    stream = generator.stream(requests[0], Sampling(max_new_tokens=500))
    shown = ""
    for piece in stream:
        shown += piece
        if len(shown) > 5:
            break
    before = len(passes)
    stream.close()
    assert list(stream) == []
    hook.remove()
    assert len(passes) == before < 12
    assert stream.answer.finish_reason == "cancelled"
    assert stream.answer.text == shown
    assert greedy[0].text.startswith(shown)


def test_a_conversation_beyond_the_context_loses_its_oldest_turns(generator, monkeypatch):
    turns = [text for n in range(30) for text in (f"第{n}个问题：头痛怎么办？", "多休息，多喝水。")]
    monkeypatch.setattr(generator, "context_length", 200)
    sampling = Sampling(max_new_tokens=8)
    answer, short = generator.answer([ask(*turns, "发烧呢？"), ask("发烧呢？")], sampling)
    assert answer.truncated and not short.truncated
    assert 100 < answer.prompt_tokens <= 192
    shorter = (ask(*turns[n:], "发烧呢？") for n in range(0, 60, 2))
    longest = next(request for request in shorter if len(generator.renderer.prompt(request.messages)) <= 192)
    assert answer.text == generator.answer([longest], sampling)[0].text
    with pytest.raises(ValueError, match="--max_new_tokens 200"):
        generator.answer([ask("你好")], Sampling(max_new_tokens=200))


def test_a_batch_that_does_not_fit_goes_on_in_halves(generator, requests, greedy, caplog):
    """The device's refusal is thrown by hand where four rows have reached their fifth token."""
    seen = []

    def refuse(module, arguments, keywords):
        rows = len(keywords["input_ids"])
        seen.append(rows)
        if rows > 2 and seen[-5:] == [rows] * 5:
            raise torch.OutOfMemoryError("out of memory")

    hook = generator.model.register_forward_pre_hook(refuse, with_kwargs=True)
    counted = []
    with caplog.at_level(logging.WARNING):
        answers = generator.answer(requests, Sampling(max_new_tokens=14), 5, progress=counted.append)
    hook.remove()
    generator.rows_at_once = None
    assert answers == greedy
    assert sum(counted) == len(requests)
    assert "out of memory with 5 rows: going on with 2" in caplog.text
    assert seen.count(5) == 5 and max(seen[5:]) == 2


def test_a_single_row_that_does_not_fit_is_an_error(generator, requests):
    def refuse(module, arguments, keywords):
        raise torch.OutOfMemoryError("out of memory")

    hook = generator.model.register_forward_pre_hook(refuse, with_kwargs=True)
    with pytest.raises(torch.OutOfMemoryError):
        generator.answer(requests[:2], Sampling(max_new_tokens=4))
    hook.remove()
    generator.rows_at_once = None


TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "vocab_size": 6400,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 64, "head_dim": 8}
LINEAR = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention"] * 2,
}


@pytest.mark.parametrize(
    ("architecture", "settings"),
    [
        ("bloom", TINY | {"n_head": 4}),  # no position ids
        ("mistral", TINY | HEADS | {"sliding_window": 16}),  # a cache that forgets
        ("qwen3_5_text", TINY | HEADS | LINEAR),  # a cache without positions
        ("gpt2", {"n_embd": 32, "n_layer": 2, "n_head": 4} | TINY),  # learned positions
    ],
)
def test_other_architectures_pad_drop_rows_and_agree_with_the_library(shared, requests, architecture, settings):
    torch.manual_seed(1)
    tokenizer = AutoTokenizer.from_pretrained(shared / "models/minimind2-small")
    config = AutoConfig.for_model(architecture, **settings, pad_token_id=0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for weight in (parameter for parameter in model.parameters() if parameter.dim() > 1):
            weight.mul_(4)  # sharper logits than a fresh model's
    generator = Generator(model, tokenizer)
    few = [ask(f"问题{n}" + "头痛" * 7 * n) for n in range(4)]
    alone = [generator.answer([request], Sampling(max_new_tokens=12))[0] for request in few]
    stops = (alone[0].text[6:8], alone[3].text[-2:])  # rows end at different steps
    sampling = Sampling(max_new_tokens=12, stop=stops)
    alone_stopped = [generator.answer([request], sampling)[0] for request in few]
    assert len({answer.completion_tokens for answer in alone_stopped}) > 1
    assert generator.answer(few, sampling, 4) == alone_stopped
    ids = torch.tensor([generator.renderer.prompt(few[3].messages)])
    output = model.generate(ids, max_new_tokens=12, do_sample=False)[0, ids.shape[1] :]
    assert alone[3].text == tokenizer.decode(output, skip_special_tokens=True).lstrip()


def test_batches_are_sorted_by_length_and_hold_every_row_once():
    lengths = [random.Random(0).randrange(500) for _ in range(50)]
    plan = plan_batches(lengths, 8)
    assert sorted(number for batch in plan for number in batch) == list(range(50))
    assert [lengths[n] for batch in plan for n in batch] == sorted(lengths, reverse=True)
    assert [len(batch) for batch in plan] == [8] * 6 + [2]


# ---- loading


def test_an_adapter_directory_finds_its_base(shared, tmp_path, requests, greedy):
    base = str(shared / "models/minimind2-small")
    torch.manual_seed(0)
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32),
        LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear", init_lora_weights=False),
    )
    model.save_pretrained(tmp_path / "adapter")
    adapter = str(tmp_path / "adapter")
    sampling = Sampling(max_new_tokens=14)
    found = Generator.load(adapter, only_cpu=True).answer(requests[:2], sampling)
    assert found == Generator.load(base, adapter, only_cpu=True).answer(requests[:2], sampling)
    assert found == Generator(model, AutoTokenizer.from_pretrained(base)).answer(requests[:2], sampling)
    assert [answer.text for answer in found] != [answer.text for answer in greedy[:2]]


def test_a_tokenizer_larger_than_the_model_needs_resize_emb(shared, tmp_path, requests, greedy):
    base = str(shared / "models/minimind2-small")
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.add_tokens(["二甲双胍", "阿司匹林"])
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="6402 tokens, the model 6400: add --resize_emb"):
        Generator.load(base, tokenizer_path=str(tmp_path), only_cpu=True)
    grown = Generator.load(base, tokenizer_path=str(tmp_path), only_cpu=True, resize_emb=True)
    assert grown.model.get_input_embeddings().weight.shape[0] == 6402


def test_directories_that_are_no_models_say_what_is_missing(shared, tmp_path):
    with pytest.raises(FileNotFoundError, match="no such model directory"):
        Generator.load(str(tmp_path / "nowhere"), only_cpu=True)
    (tmp_path / "config.json").write_text((shared / "models/minimind2-small/config.json").read_text())
    with pytest.raises(FileNotFoundError, match=r"no tokenizer\.json"):
        Generator.load(str(tmp_path), only_cpu=True)


# ---- questions and the journal


def test_questions_of_a_text_file_are_its_lines(tmp_path):
    file = tmp_path / "questions.txt"
    file.write_bytes("\ufeff感冒怎么办？\r\n\r\n  line\u2028separator \n最后".encode())
    rows, requests = read_questions(file, system_prompt="你是医生", seed=5)
    assert rows == [{"question": text} for text in ("感冒怎么办？", "line\u2028separator", "最后")]
    assert [request.seed for request in requests] == [5, 6, 7]
    assert requests[2].messages == [{"role": "system", "content": "你是医生"}, {"role": "user", "content": "最后"}]


def test_questions_of_a_text_file_in_gb18030_are_read(tmp_path):
    texts = ["感冒了应该怎么办？", "高血压患者能喝酒吗？", "血糖 6.5 mmol/L 正常吗？"]
    (tmp_path / "questions.txt").write_bytes("\r\n".join(texts).encode("gb18030"))
    rows, _ = read_questions(tmp_path / "questions.txt")
    assert [row["question"] for row in rows] == texts


def test_questions_of_records_end_before_the_reply_and_keep_their_own_system_turn(tmp_path):
    file = tmp_path / "rows.json"
    turns = [("system", "S"), ("user", "一"), ("assistant", "二"), ("user", "三"), ("assistant", "四")]
    rows = [
        {"id": 1, "messages": [{"role": role, "content": content} for role, content in turns]},
        {"id": 2, "messages": [{"role": "user", "content": "五"}], "extra": {"a": [None, 1.5]}},
    ]
    file.write_text(json.dumps(rows), encoding="utf-8")
    read, requests = read_questions(file, system_prompt="P")
    assert read == rows
    assert [[message["content"] for message in request.messages] for request in requests] == [
        ["S", "一", "二", "三"],
        ["P", "五"],
    ]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"\n \n", "holds no question"),
        ("a.txt", b"\xfd\xfd\xfd question", "expected text in UTF-8 or GB18030"),
        ("a.txt", "感冒了应该怎么办？头痛发热三天了。".encode() + b"\xff\n", "not UTF-8 at offset 51"),
        ("a.txt", b"\x00\x01\x02", "a binary file"),
        ("a.jsonl", b'{"question": "a", "answer": "b"}\n{"question": \n', r"a\.jsonl:2"),
        ("a.jsonl", b'{"question": "a", "answer": "b", "prediction": "c"}\n', "prediction"),
        ("a.jsonl", b'{"text": "a"}\n', "text"),
        ("a.jsonl", b"", "empty"),
    ],
)
def test_files_that_ask_nothing_are_refused(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_questions(tmp_path / name)


def answer(text: str) -> Answer:
    return Answer(text, "stop", 3, 2, False)


def test_a_journal_cut_at_any_byte_holds_the_whole_batches_before(tmp_path):
    output, job = tmp_path / "out.jsonl", {"seed": 1, "stops": ("\n", "。")}
    journal = Journal(output, job)
    ends = [journal.path.stat().st_size]
    for rows in ([4, 0], [2, 1], [3]):
        journal.add(rows, [answer(f"答\n{row}") for row in rows])
        ends.append(journal.path.stat().st_size)
    journal.close()
    whole = journal.path.read_bytes()
    for size in sorted({*range(0, len(whole), 7), *ends, *(end - 1 for end in ends)}):
        journal.path.write_bytes(whole[:size])
        opened = Journal(output, job)
        complete = max(sum(end <= size for end in ends) - 1, 0)
        assert set(opened.answers) == set([4, 0, 2, 1, 3][: 2 * complete])
        assert all(found == answer(f"答\n{row}") for row, found in opened.answers.items())
        opened.add([9], [answer("next")])
        opened.close()
        again = Journal(output, job)
        assert set(again.answers) == {*opened.answers}
        again.close()


def test_a_journal_belongs_to_one_job_and_one_process(tmp_path):
    journal = Journal(tmp_path / "out.jsonl", {"seed": 1, "temperature": 0.0})
    with pytest.raises(ValueError, match="another process"):
        Journal(tmp_path / "out.jsonl", {"seed": 1, "temperature": 0.0})
    journal.add([0], [answer("a")])
    journal.close()
    with pytest.raises(ValueError, match=r"temperature: 0\.0 there, 0\.5 now"):
        Journal(tmp_path / "out.jsonl", {"seed": 1, "temperature": 0.5})
    Journal(tmp_path / "out.jsonl", {"seed": 1, "temperature": 0.0}).remove()
    assert list(tmp_path.iterdir()) == []


def test_a_change_in_a_folder_of_a_folder_is_another_job(tmp_path):
    (tmp_path / "part").mkdir()
    (tmp_path / "part" / "a.txt").write_text("一")
    before = describe_files(str(tmp_path))
    assert describe_files(str(tmp_path)) == before
    (tmp_path / "part" / "a.txt").write_text("一二")
    assert describe_files(str(tmp_path)) != before


def test_what_is_no_document_does_not_tell_jobs_apart(tmp_path):
    (tmp_path / "a.txt").write_text("一")
    (tmp_path / "lock").symlink_to(tmp_path / "nowhere")  # as some editors leave them
    before = describe_files(str(tmp_path), without=str(tmp_path / "index"))
    (tmp_path / "index").mkdir()
    (tmp_path / "index" / "log").write_text("二")
    assert describe_files(str(tmp_path), without=str(tmp_path / "index")) == before
    assert describe_files(str(tmp_path)) != before


def test_an_output_in_the_models_folder_is_no_other_model(tmp_path):
    (tmp_path / "adapter_model.safetensors").write_bytes(b"weights")
    before = describe_model(str(tmp_path))
    (tmp_path / "answers.jsonl.journal").write_text("{}")
    assert describe_model(str(tmp_path)) == before
    (tmp_path / "adapter_model.safetensors").write_bytes(b"other weights")
    assert describe_model(str(tmp_path)) != before


def test_a_file_that_is_no_journal_is_left_alone(tmp_path):
    for content in (b"my notes", b"my notes\nmore\n", b"[1]\n"):
        (tmp_path / "out.jsonl.journal").write_bytes(content)
        with pytest.raises(ValueError, match="no journal of ours"):
            Journal(tmp_path / "out.jsonl", {"seed": 1})
        assert (tmp_path / "out.jsonl.journal").read_bytes() == content


@pytest.mark.parametrize("output", ["file/out.jsonl", "folder"])
def test_an_output_that_cannot_be_written_is_refused(tmp_path, output):
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    with pytest.raises(ValueError, match="--output_file"):
        Journal(tmp_path / output, {})
