"""A server as an engine: its answers are those of the model behind it, whole, streamed and for a file."""

import time

import pytest
from openai_server import serving

from medical_qwen.generation import Generator, Request, Sampling, Server

QUESTIONS = ("感冒怎么办？", "高血压患者能喝酒吗？", "头痛" * 30, "What is diabetes?", "🩺")


@pytest.fixture(scope="module")
def engine(tiny_model):
    return Generator.load(str(tiny_model), only_cpu=True)


@pytest.fixture(scope="module")
def server(engine):
    with serving(engine) as server:
        yield server


def ask(*turns: str, seed: int = 0) -> Request:
    return Request(
        [{"role": ("user", "assistant")[n % 2], "content": turn} for n, turn in enumerate(turns)], seed=seed
    )


REQUESTS = [ask(question, seed=n) for n, question in enumerate(QUESTIONS)]


@pytest.mark.parametrize(
    "sampling",
    [Sampling(12), Sampling(12, stop=("a", "的")), Sampling(12, 0.9, top_p=0.8, repetition_penalty=1.2)],
    ids=["greedy", "stop", "drawn"],
)
def test_answers_are_those_of_the_model_behind_the_server(engine, server, sampling):
    remote = Server(server.address)
    assert (remote.model, remote.context_length) == ("tiny", engine.context_length)
    expected = [engine.answer([request], sampling)[0] for request in REQUESTS]
    progress, final = [], {}
    finished = lambda numbers, answers: final.update(zip(numbers, answers, strict=True))  # noqa: E731
    assert remote.answer(REQUESTS, sampling, 2, progress.append, finished) == expected
    assert final == dict(enumerate(expected)) and sum(progress) == len(REQUESTS)
    for request, answer in zip(REQUESTS, expected, strict=True):
        stream = remote.stream(request, sampling)
        assert "".join(stream) == answer.text
        assert stream.answer == answer
    assert remote.measure(REQUESTS, Sampling(12)) == engine.measure(REQUESTS, Sampling(12))


def test_a_closed_stream_stops_the_model(server):
    stream = Server(server.address).stream(REQUESTS[0], Sampling(1500, temperature=1.0))
    shown = next(iter(stream))
    stream.close()
    assert list(stream) == []
    assert (stream.answer.text, stream.answer.finish_reason) == (shown, "cancelled")
    end = time.monotonic() + 30
    while not server.hung_up and time.monotonic() < end:
        time.sleep(0.01)
    assert server.streams[-1].answer.finish_reason == "cancelled"
