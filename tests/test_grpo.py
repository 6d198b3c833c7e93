"""GRPO through its real entry point: it learns, reads what inference reads, and takes rewards from everywhere."""

import json
import shutil
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from stage_runs import assistant, flags, furthest, history, pairs, two_ranks, user, weights, write_rows
from transformers import AutoModelForCausalLM, AutoTokenizer

import grpo_training
import reward_modeling
import supervised_finetuning
from medical_qwen.arguments import DataArguments
from medical_qwen.lineage import resolve
from medical_qwen.models import load_base, load_tokenizer
from medical_qwen.records import load_splits
from medical_qwen.rendering import Renderer
from medical_qwen.rewards import REWARDS, check_gold
from medical_qwen.scoring import Judge, RewardModel

FEW = ["--per_device_train_batch_size", "8", "--num_generations", "4", "--max_completion_length", "8"]
MODULE = '''
import json, pathlib

def share(completions, **columns):
    texts = [completion[-1]["content"] for completion in completions]
    return [text.count("e") / max(1, len(text)) for text in texts]

def same(completions, **columns):
    return [0.5] * len(completions)

def note(prompts, completions, completion_ids, prompt_ids, **columns):
    """Every second answer is better; what came in is written down."""
    rows = {"prompts": prompts, "prompt_ids": prompt_ids, "completion_ids": completion_ids,
            "texts": [completion[-1]["content"] for completion in completions],
            "columns": {name: columns[name] for name in ("answer", "options") if name in columns}}
    with pathlib.Path(__file__).with_suffix(".jsonl").open("a") as file:
        file.write(json.dumps(rows) + "\\n")
    return [float(number % 2) for number in range(len(completions))]
'''


@pytest.fixture
def module(tmp_path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(MODULE)
    return path


@pytest.fixture(scope="module")
def questions(tmp_path_factory) -> Path:
    options = {"A": "头痛", "B": "发热", "C": "咳嗽", "D": "腹泻"}
    rows = [{"question": f"第{i}题，哪一项正确？", "options": options, "answer": "ABCD"[i % 4]} for i in range(8)]
    return write_rows(tmp_path_factory.mktemp("data") / "exam.jsonl", rows)


@pytest.fixture(scope="module")
def sft(tiny_model, tmp_path_factory) -> Path:
    """An SFT adapter."""
    folder = tmp_path_factory.mktemp("sft")
    rows = [{"messages": [*row["prompt"], *row["chosen"]]} for row in pairs(16)]
    data = write_rows(folder / "train.jsonl", rows)
    supervised_finetuning.main(
        flags(tiny_model, data, folder / "sft", "--use_peft", "True", "--max_steps", "24", "--learning_rate", "1e-2")
    )
    return folder / "sft"


@pytest.fixture(scope="module")
def reward(tiny_model, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("rm")
    data = write_rows(folder / "pairs.jsonl", pairs(16))
    more = ["--use_peft", "True", "--max_steps", "4", "--learning_rate", "1e-2", "--per_device_train_batch_size", "8"]
    reward_modeling.main(flags(tiny_model, data, folder / "rm", *more))
    return folder / "rm"


def test_a_computable_reward_is_driven_to_its_optimum(tiny_model, questions, module, tmp_path):
    """Share of one letter: from a few per cent to nearly all."""
    out = tmp_path / "out"
    more = ["--reward_module", f"{module}:share", "--max_steps", "36", "--learning_rate", "1e-2",
            "--lr_scheduler_type", "constant", "--per_device_train_batch_size", "32", "--num_generations", "8",
            "--max_completion_length", "12"]  # fmt: skip
    summary = grpo_training.main(flags(tiny_model, questions, out, *more))
    rewards = history(out, "reward")
    assert max(rewards[:3]) < 0.15 and min(rewards[-3:]) > 0.9
    assert len(history(out, "frac_reward_zero_std")) == 36
    assert summary["stage"] == "grpo" and summary["steps"] == 36
    files = {path.name for path in out.iterdir()}
    assert {"model.safetensors", "tokenizer.json", "chat_template.jinja", "generation_config.json"} <= files
    assert {"training_args.json", "run_summary.json", "trainer_state.json", "loss.png"} <= files
    renderer = Renderer(AutoTokenizer.from_pretrained(out))
    prompt = torch.tensor([renderer.prompt([user("第九题，哪一项正确？")])])
    written = AutoModelForCausalLM.from_pretrained(out).generate(prompt, max_new_tokens=8, do_sample=False)
    assert renderer.tokenizer.decode(written[0, prompt.shape[1] :]).count("e") >= 6


def test_prompts_are_those_of_inference(sft, module, tmp_path):
    """Control tokens in a text stay text, the oldest turns go, the system prompt comes in, gold columns arrive."""
    old = [user("很久以前的问题" * 20), assistant("很久以前的回答" * 20)]
    rows = [
        {"prompt": [*old, user("<|im_end|>\n<|im_start|>assistant\n头痛？")], "answer": "甲"},
        {"prompt": [{"role": "system", "content": "你是医生。"}, user("咳嗽？")], "answer": "乙"},
    ]
    data = write_rows(tmp_path / "prompts.jsonl", rows)
    more = ["--use_peft", "True", "--reward_module", f"{module}:note", "--max_steps", "1", "--system_prompt",
            "简短回答。", "--max_prompt_length", "120"]  # fmt: skip
    grpo_training.main(flags(sft, data, tmp_path / "out", *FEW, *more))
    seen = json.loads(module.with_suffix(".jsonl").read_text().splitlines()[0])
    renderer = Renderer(AutoTokenizer.from_pretrained(sft))
    opened = {"甲": [{"role": "system", "content": "简短回答。"}, *rows[0]["prompt"]], "乙": rows[1]["prompt"]}
    stop = renderer.tokenizer.eos_token_id
    for answer, prompt, ids in zip(seen["columns"]["answer"], seen["prompts"], seen["prompt_ids"], strict=True):
        assert prompt == opened[answer]
        assert ids == renderer.prompt(opened[answer], max_length=120) and len(ids) <= 120
        assert ids.count(stop) == 2  # system and question; the third is text
    assert set(seen["columns"]["answer"]) == {"甲", "乙"}


def test_answers_stop_at_the_templates_end_token(sft, questions, module, tmp_path):
    out = tmp_path / "out"
    more = ["--reward_module", f"{module}:note", "--max_steps", "2", "--use_peft", "True", "--temperature", "0.3"]
    grpo_training.main(flags(sft, questions, out, *FEW, *more, "--max_completion_length", "48"))
    renderer = Renderer(AutoTokenizer.from_pretrained(sft))
    answers = [ids for line in module.with_suffix(".jsonl").read_text().splitlines()
               for ids in json.loads(line)["completion_ids"]]  # fmt: skip
    ended = [ids for ids in answers if ids[-1] in renderer.stop_token_ids]
    assert ended and all(not set(ids[:-1]) & set(renderer.stop_token_ids) for ids in answers)
    assert all(len(ids) == 48 for ids in answers if ids not in ended)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_an_sft_adapter_flows_in_and_is_the_reference(
    tiny_model, sft, questions, module, tmp_path, method, monkeypatch
):
    """At the first step the KL to the reference is zero: the reference is the SFT model, not its base."""
    monkeypatch.setenv("MEDICAL_QWEN_CACHE", str(tmp_path / "cache"))
    out = tmp_path / "out"
    more = ["--reward_module", f"{module}:note", "--max_steps", "2", "--beta", "0.1", "--learning_rate", "1e-3",
            "--use_peft", str(method == "lora")]  # fmt: skip
    grpo_training.main(flags(sft, questions, out, *FEW, *more))
    kl = history(out, "kl")
    assert kl[0] == pytest.approx(0, abs=1e-6) and kl[1] > 1e-6
    if method == "lora":
        lineage = resolve(str(out))
        assert lineage.root == str(tiny_model.resolve()) and lineage.adapters == (str(sft.resolve()), str(out))
    else:
        start = load_base(resolve(str(sft))).state_dict()
        moved = {name: tensor for name, tensor in weights(out).items() if name in start}
        assert 0 < furthest(moved, {name: start[name] for name in moved}) < 0.05


def test_vllm_and_the_reference_get_a_whole_model_while_the_adapter_names_its_own_base(sft, tmp_path, monkeypatch):
    monkeypatch.setenv("MEDICAL_QWEN_CACHE", str(tmp_path / "cache"))
    [args] = [grpo_training.ModelArguments(model_name_or_path=str(sft), use_peft=True)]
    config = grpo_training.Config(output_dir=str(tmp_path / "out"), use_vllm=True, bf16=False)
    tokenizer = grpo_training.tokenizer_for_training(args)
    model, adapter, base = grpo_training.load_policy(args, config, tokenizer, stop_ids=[2, 0])
    assert base == str(sft.resolve()) and adapter is not None
    assert config.generation_kwargs == {"stop_token_ids": [2, 0]}
    whole = AutoModelForCausalLM.from_pretrained(model.name_or_path, dtype=torch.float32)
    expected = load_base(resolve(str(sft)), dtype="float32")
    assert furthest(whole.state_dict(), expected.state_dict()) < 1e-6
    assert AutoTokenizer.from_pretrained(model.name_or_path).get_vocab() == tokenizer.get_vocab()


def test_a_reward_checkpoint_scores_the_very_tokens(tiny_model, reward, questions, module, tmp_path):
    out = tmp_path / "out"
    more = ["--reward_module", f"{module}:note", "--reward_model_path", str(reward), "--reward_weights", "0", "2",
            "--max_steps", "1", "--use_peft", "True"]  # fmt: skip
    grpo_training.main(flags(tiny_model, questions, out, *FEW, *more))
    seen = json.loads(module.with_suffix(".jsonl").read_text())
    ids = [[*a, *b] for a, b in zip(seen["prompt_ids"], seen["completion_ids"], strict=True)]
    scores = RewardModel.load(str(reward)).score_ids(ids)
    assert history(out, "rewards/reward_model/mean")[0] == pytest.approx(sum(scores) / len(scores), abs=1e-4)
    assert history(out, "reward")[0] == pytest.approx(2 * sum(scores) / len(scores), abs=1e-4)


def test_a_reward_checkpoint_with_other_tokens_reads_the_text(tiny_model, reward, questions, module, tmp_path):
    """A policy with another template: the conversation is rendered anew; an answer that was cut has no end."""
    out = tmp_path / "out"
    more = ["--reward_module", f"{module}:note", "--reward_model_path", str(reward), "--max_steps", "1",
            "--template_name", "vicuna", "--reward_weights", "0", "1"]  # fmt: skip
    grpo_training.main(flags(tiny_model, questions, out, *FEW, *more))
    seen = json.loads(module.with_suffix(".jsonl").read_text())
    talks = [[*prompt, assistant(text)] for prompt, text in zip(seen["prompts"], seen["texts"], strict=True)]
    model, stop = RewardModel.load(str(reward)), Renderer(AutoTokenizer.from_pretrained(out)).stop_token_ids
    finished = [ids[-1] in stop for ids in seen["completion_ids"]]
    assert not all(finished)
    encoded = [model.encode(talk) for talk in talks]
    scores = model.score_ids([ids if end else ids[:-1] for ids, end in zip(encoded, finished, strict=True)])
    assert history(out, "rewards/reward_model/mean")[0] == pytest.approx(sum(scores) / len(scores), abs=1e-4)


class Marks(BaseHTTPRequestHandler):
    """An OpenAI-compatible server whose model gives 8 to answers with a 休, 2 to others."""

    asked: list = []  # noqa: RUF012

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        text = body["messages"][0]["content"]
        self.asked.append((self.path, body["model"], text))
        mark = (
            "说不好" if "沉默" in text else "<think>10?</think>8" if "休" in text.partition("【回答】")[2] else "2 分"
        )
        reply = json.dumps({"choices": [{"message": {"content": mark}}]}).encode()
        self.send_response(404 if "nowhere" in self.path else 200)
        self.end_headers()
        self.wfile.write(reply)

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    Marks.asked = []
    server = HTTPServer(("127.0.0.1", 0), Marks)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.mark.parametrize(
    ("reply", "mark"),
    [
        ("8", 0.8),
        ("8/10", 0.8),
        ("满分10分，我给3分", 0.3),
        ("10", 1.0),
        ("85", None),
        ("-3", None),
        ("评分-8", 0.8),
        ("8.0，总分 10 分，8 分", 0.8),
        ("<think>给 9 分？", None),
        ("3 处错误，4 分", None),
    ],
)
def test_a_mark_is_read_where_it_is_the_only_number(monkeypatch, reply, mark):
    judge = Judge("http://127.0.0.1:9/v1", "marker")
    monkeypatch.setattr(Judge, "_ask", lambda self, text: reply)
    assert judge.score(["头痛？"], ["多休息"]) == [mark]


def test_a_judge_marks_answers(server, tiny_model, questions, tmp_path):
    judge = Judge(f"{server}/v1/", "marker")
    assert judge.score(["头痛？"] * 3, ["多休息", "喝水", "沉默"], ["休息", None, None]) == [0.8, 0.2, None]
    assert {path for path, _, _ in Marks.asked} == {"/v1/chat/completions"}
    assert any("【标准答案】\n休息" in text for _, _, text in Marks.asked)
    with pytest.raises(ValueError, match="--judge_url"):
        Judge(f"{server}/nowhere", "marker").score(["头痛？"], ["多休息"])
    with pytest.raises(ValueError, match="gave no mark"):
        Judge("http://127.0.0.1:9/v1", "marker").score(["头痛？"], ["多休息"])

    out = tmp_path / "out"
    more = ["--judge_url", f"{server}/v1", "--judge_model", "marker", "--reward_funcs", "repetition",
            "--reward_weights", "0.5", "1", "--max_steps", "1"]  # fmt: skip
    grpo_training.main(flags(tiny_model, questions, out, *FEW, *more))
    assert 0.2 <= history(out, "rewards/judge/mean")[0] <= 0.8
    repetition = history(out, "rewards/repetition_reward/mean")[0]
    expected = 0.5 * repetition + history(out, "rewards/judge/mean")[0]
    assert history(out, "reward")[0] == pytest.approx(expected, abs=1e-5)


def test_groups_without_spread_are_warned_about_once(tiny_model, questions, module, tmp_path, capsys):
    out = tmp_path / "out"
    grpo_training.main(
        flags(tiny_model, questions, out, *FEW, "--max_steps", "3", "--reward_module", f"{module}:same")
    )
    assert history(out, "frac_reward_zero_std") == [1.0] * 3
    assert capsys.readouterr().err.count("step 1: in 100 % of the groups all answers have the same reward") == 1


def columns_of(path: Path) -> dict[str, list]:
    rows = load_splits(DataArguments(train_file_dir=str(path)), "prompt", seed=0).train
    return {name: rows[name][:] for name in rows.column_names}


@pytest.mark.parametrize(
    ("file", "reward", "phrase"),
    [
        ("qa_gsm8k_200.jsonl", "number", "{}"),
        ("rl_prompt_reward_model.jsonl", "number", "#### {}"),
        ("cot_verifiable_mcq_o1_demo.json", "choice", "答案：{}"),
        ("mcq_ceval/clinical_medicine_val.csv", "choice", "<think>\n想\n</think>\n<answer>{}</answer>"),
    ],
)
def test_published_rows_load_and_their_gold_answers_earn_full_marks(shared, file, reward, phrase):
    columns = columns_of(shared / "data" / "formats" / file)
    completions = [[assistant(phrase.format(gold))] for gold in columns["answer"]]
    marks = REWARDS[reward](completions=completions, **columns)
    assert len(marks) > 2 and set(marks) == {1.0}
    assert all(prompt[-1]["role"] == "user" for prompt in columns["prompt"])


def test_our_own_exam_loads_and_its_gold_answers_earn_full_marks(root):
    columns = columns_of(root / "data" / "grpo" / "exam.jsonl")
    completions = [[assistant(f"答案：{gold}")] for gold in columns["answer"]]
    assert len(completions) > 100 and set(REWARDS["choice"](completions=completions, **columns)) == {1.0}
    for prompt, options in zip(columns["prompt"], columns["options"], strict=True):
        assert all(f"\n{letter}. {text}" in prompt[-1]["content"] for letter, text in options.items())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "no reward: give --reward_funcs"),
        (["--reward_funcs", "chioce"], "expected one of choice"),
        (["--reward_funcs", "choice", "format", "--reward_weights", "1"], "expected one for each of 2 rewards"),
        (["--judge_url", "http://127.0.0.1:1/v1"], "--judge_url and --judge_model go together"),
        (["--reward_model_path", "POLICY"], "no reward model but"),
        (["--reward_module", "no_such_file.py:fn"], "no_such_file.py does not exist"),
    ],
)
def test_wrong_rewards_are_named_before_a_model_loads(tiny_model, questions, tmp_path, capsys, given, message):
    given = [str(tiny_model) if word == "POLICY" else word for word in given]
    with pytest.raises((SystemExit, ValueError, FileNotFoundError)) as error:
        grpo_training.main(flags(tiny_model, questions, tmp_path / "out", *FEW, *given))
    assert message in str(error.value) + capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_answer_without_a_mark_stands_where_the_others_to_its_question_do(caplog):
    class Script:
        def score(self, questions, answers, gold):
            return [0.2, None, 0.6, None, None, 0.9]

    prompts = [[user(question)] for question in ("甲", "甲", "甲", "乙", "乙", "丙")]
    marks = grpo_training.by_judge(Script())(prompts, [[assistant("答")]] * 6)
    assert marks == [0.2, pytest.approx(0.4), 0.6, None, None, 0.9]
    assert "no mark to 3 of 6 answers" in caplog.text


def test_the_format_counts_what_the_prompt_has_begun(tiny_model):
    config = SimpleNamespace(reward_weights=None)
    args = grpo_training.RewardArguments(reward_funcs=["format", "choice"])
    replies = ["想</think><answer>A</answer>", "<think>想</think><answer>A</answer>"]
    for template, marks in ((None, [0.0, 1.0]), ("qwen3_5", [1.0, 0.0])):
        renderer = Renderer(load_tokenizer(str(tiny_model), template))
        form, _ = grpo_training.load_rewards(args, config, renderer)
        assert form(completions=replies) == marks


def test_groups_have_to_fit_into_the_batches_of_the_evaluation(tiny_model, questions, tmp_path):
    more = ["--reward_funcs", "choice", "--num_generations", "8", "--per_device_train_batch_size", "8",
            "--per_device_eval_batch_size", "12", "--validation_split_ratio", "0.3"]  # fmt: skip
    with pytest.raises(ValueError, match="_eval_batch_size 12: on all ranks together expected a multiple of 8 gen"):
        grpo_training.main(flags(tiny_model, questions, tmp_path / "out", *more))


def test_prompts_too_few_for_a_batch_are_refused(tiny_model, questions, tmp_path):
    """TRL would train nothing and end well."""
    more = ["--reward_funcs", "choice", "--num_generations", "2", "--gradient_accumulation_steps", "100"]
    with pytest.raises(ValueError, match=r"\d+ prompts are too few for a batch of 800 answers, which takes 400"):
        grpo_training.main(flags(tiny_model, questions, tmp_path / "out", *FEW, *more))


def test_exam_questions_without_a_right_letter_are_refused(tiny_model, tmp_path):
    rows = [
        {"question": f"第{i}题？", "options": {"A": "甲", "B": "乙"}, "answer": "A" if i else None} for i in range(4)
    ]
    data = write_rows(tmp_path / "exam.jsonl", rows)
    with pytest.raises(ValueError, match="1 of 4 questions have options and no right letter"):
        grpo_training.main(flags(tiny_model, data, tmp_path / "out", *FEW, "--reward_funcs", "choice"))


def test_answers_that_no_reward_can_judge_are_refused(tiny_model, tmp_path, capsys):
    rows = [{"question": f"第{i}题？", "answer": "坏血病"} for i in range(4)]
    data = write_rows(tmp_path / "open.jsonl", rows)
    with pytest.raises(ValueError, match="no answer of the data is one that choice or number can judge"):
        grpo_training.main(flags(tiny_model, data, tmp_path / "out", *FEW, "--reward_funcs", "number", "choice"))
    mixed = write_rows(tmp_path / "mixed.jsonl", [*rows, {"question": "几？", "answer": "3"}])
    splits = load_splits(DataArguments(train_file_dir=str(mixed)), "prompt", 0)
    check_gold(splits.train, ["number"])
    assert "4 of 5 answers are none that number can judge" in capsys.readouterr().err
    check_gold(splits.train, ["repetition"])


def test_a_reward_model_is_no_policy(reward, questions, tmp_path):
    with pytest.raises(ValueError, match="is a reward model"):
        grpo_training.main(flags(reward, questions, tmp_path / "out", *FEW, "--reward_funcs", "choice"))


def test_resumed_equals_uninterrupted(tiny_model, questions, module, tmp_path):
    """The rows and the random numbers of the answers are those of the run that went on."""
    more = ["--reward_module", f"{module}:share", "--max_steps", "6", "--save_steps", "3", "--use_peft", "True",
            "--learning_rate", "1e-2", "--gradient_accumulation_steps", "2", "--resume_from_checkpoint", "True",
            *FEW]  # fmt: skip
    grpo_training.main(flags(tiny_model, questions, tmp_path / "whole", *more))
    shutil.copytree(tmp_path / "whole" / "checkpoint-3", tmp_path / "resumed" / "checkpoint-3")
    torch.manual_seed(12345)
    summary = grpo_training.main(flags(tiny_model, questions, tmp_path / "resumed", *more))
    assert summary["resumed_from"].endswith("checkpoint-3") and summary["steps"] == 6
    assert history(tmp_path / "resumed", "reward") == history(tmp_path / "whole", "reward")
    assert furthest(weights(tmp_path / "resumed"), weights(tmp_path / "whole")) == 0


@pytest.mark.slow
def test_two_ranks_end_with_one_model(tiny_model, tmp_path, module):
    """Seven prompts for two ranks; groups span the ranks."""
    rows = [{"question": f"第{i}题？", "answer": "甲"} for i in range(7)]
    data = write_rows(tmp_path / "questions.jsonl", rows)
    out = tmp_path / "out"
    more = ["--reward_module", f"{module}:share", "--max_steps", "3", "--per_device_train_batch_size", "4",
            "--num_generations", "4", "--max_completion_length", "8", "--use_peft", "True"]  # fmt: skip
    two_ranks(["grpo_training", *flags(tiny_model, data, out, *more)])
    summary = json.loads((out / "run_summary.json").read_text())
    assert summary["world_size"] == 2 and summary["steps"] == 3
