"""Streams that are read at the same time share the passes of the model, and each is what it would be alone."""

import threading

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from medical_qwen.generation import Generator, Request, Sampling, decoding

QUESTIONS = ("感冒怎么办？", "高血压吃什么药？", "头痛" * 40, "你好", "什么是糖尿病？" * 5, "写一首诗")
SAMPLINGS = (Sampling(16), Sampling(16, 0.8, 0.9, 1.1), Sampling(8, stop=("，",)))
ASKED = [
    (Request([{"role": "user", "content": question}], seed=n), SAMPLINGS[n % 3])
    for n, question in enumerate(QUESTIONS)
]


@pytest.fixture(scope="module")
def generator(shared):
    return Generator.load(str(shared / "models/minimind2-small"), only_cpu=True)


@pytest.fixture(scope="module")
def alone(generator):
    return [generator.answer([request], sampling)[0] for request, sampling in ASKED]


@pytest.fixture
def passes(generator):
    """Rows of each forward pass."""
    seen: list[int] = []
    hook = generator.model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    yield seen
    hook.remove()


def test_readers_in_threads_get_their_own_answers_in_shared_passes(generator, alone, passes):
    found = {}

    def read(number: int) -> None:
        stream = generator.stream(*ASKED[number])
        text = "".join(stream)
        found[number] = stream.answer
        assert text == stream.answer.text

    readers = [threading.Thread(target=read, args=(number,)) for number in range(6)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    assert [found[number] for number in range(6)] == alone
    assert len(passes) < 0.7 * sum(answer.completion_tokens for answer in alone) and max(passes) > 1


def test_a_row_joins_and_leaves_at_any_step(generator, alone, passes):
    """The streams are read in turns, the next one begun when the others have come some way."""
    texts, streams = [""] * 6, []
    while len(streams) < 6 or any(streams):
        if len(streams) < 6 and len(passes) >= 4 * len(streams):
            streams.append(iter(generator.stream(*ASKED[len(streams)])))
        for number, stream in enumerate(streams):
            if stream and (piece := next(stream, None)) is not None:
                texts[number] += piece
            else:
                streams[number] = None
    assert texts == [answer.text for answer in alone]
    assert 3 <= max(passes) <= 6


def test_one_that_is_given_up_leaves_the_others_alone(generator, alone, passes):
    first, second = (generator.stream(*ASKED[number]) for number in (0, 4))
    shown = next(iter(first)) + next(iter(first))
    text = next(iter(second))
    closing = threading.Thread(target=first.close)
    closing.start()
    closing.join()
    del passes[:]
    text += "".join(second)
    assert text == alone[4].text
    assert set(passes) == {1}
    assert list(first) == [] and alone[0].text.startswith(shown)
    assert first.answer.finish_reason == "cancelled"


def test_an_error_goes_to_whom_it_belongs(generator, alone):
    """The device's refusal is thrown by hand for long prompts; a reader who is already at work goes on."""

    def refuse(module, arguments, keywords):
        if keywords["input_ids"].shape[1] > 60:
            raise torch.OutOfMemoryError("out of memory")

    hook = generator.model.register_forward_pre_hook(refuse, with_kwargs=True)
    first, long = generator.stream(*ASKED[0]), generator.stream(*ASKED[2])
    text = next(iter(first))
    with pytest.raises(torch.OutOfMemoryError):
        next(iter(long))
    text += "".join(first)
    hook.remove()
    assert text == alone[0].text
    assert "".join(generator.stream(*ASKED[2])) == alone[2].text


def test_a_join_that_fails_changes_nothing_for_the_others(generator, alone, monkeypatch):
    """No memory for the last layer: rows of layers that are joined and of those that are not would not fit."""
    first, second = generator.stream(*ASKED[0]), generator.stream(*ASKED[4])
    text, joined = next(iter(first)), []
    stack = decoding.torch.cat

    def cat(tensors, *args, **kwargs):
        if len(tensors) == 2 and tensors[0].dim() == 4 and not args and not kwargs:
            joined.append(0)
            if len(joined) == 3:
                raise torch.OutOfMemoryError("out of memory")
        return stack(tensors, *args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(torch.OutOfMemoryError):
        patch.setattr(decoding.torch, "cat", cat)
        next(iter(second))
    assert len(joined) == 3 and text + "".join(first) == alone[0].text


def test_a_row_much_longer_than_the_others_keeps_a_batch_of_its_own(generator, alone, passes, monkeypatch):
    monkeypatch.setattr(decoding, "MOST_PADDING", 40)
    streams = [iter(generator.stream(*ASKED[number])) for number in (0, 2)]  # 头痛 forty times
    texts = ["", ""]
    for _ in range(40):
        for number, stream in enumerate(streams):
            texts[number] += next(stream, "")
    assert texts == [alone[0].text, alone[2].text] and set(passes) == {1}


@pytest.mark.parametrize("architecture", ["mistral", "bloom"])
def test_caches_that_cannot_be_joined_take_turns(shared, architecture):
    torch.manual_seed(1)
    tokenizer = AutoTokenizer.from_pretrained(shared / "models/minimind2-small")
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 6400, "bos_token_id": 1, "eos_token_id": 2}
    heads = {
        "mistral": {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 64, "sliding_window": 16},
        "bloom": {"n_head": 4},
    }[architecture]
    config = AutoConfig.for_model(architecture, **shape, **heads, pad_token_id=0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for weight in (parameter for parameter in model.parameters() if parameter.dim() > 1):
            weight.mul_(4)  # sharper logits than a fresh model's
    generator = Generator(model, tokenizer)
    alone = [generator.answer([request], sampling)[0].text for request, sampling in ASKED[:3]]
    streams = [iter(generator.stream(*asked)) for asked in ASKED[:3]]
    texts = ["", "", ""]
    for _ in range(40):
        for number, stream in enumerate(streams):
            texts[number] += next(stream, "")
    assert texts == alone
