"""A server as an engine: its answers are those of the model behind it, whole, streamed and for a file."""

import json
import subprocess
import sys
import time

import httpx
import openai
import pytest
from openai.types.chat import ChatCompletionChunk
from openai_server import serving

import inference
from medical_qwen.generation import Generator, Request, Sampling, Server, split_thinking
from medical_qwen.generation.server import _Reply

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


def test_a_file_is_answered_by_a_server_and_the_key_is_kept_nowhere(engine, tmp_path, capsys):
    questions, output = tmp_path / "questions.txt", tmp_path / "out.jsonl"
    questions.write_text("\n".join(QUESTIONS), encoding="utf-8")
    words = ["--data_file", questions, "--output_file", output, "--max_new_tokens", "8", "--seed", "0"]
    with serving(engine, {"base": None, "adapter": "base"}, key="secret") as server:
        remote = ["--api_base", server.address.removesuffix("/v1"), "--api_model", "adapter", "--api_key", "secret"]
        args = inference.parse_args([str(word) for word in [*words, *remote]])
        server.refuse_after = 3
        with pytest.raises(ValueError, match="fails"):
            inference.main(args)
        assert b"secret" not in (tmp_path / "out.jsonl.journal").read_bytes()
        asked, server.refuse_after = len(server.asked), None
        inference.main(args)
        chats = [body for body in server.asked[asked:] if "max_tokens" in body]
        assert len(chats) < 5 and {body["model"] for body in chats} == {"adapter"}  # what was answered is kept
    predictions = [json.loads(line)["prediction"] for line in output.read_text(encoding="utf-8").splitlines()]
    assert predictions == [engine.answer([request], Sampling(8))[0].text for request in REQUESTS]
    assert "5 answers, " in capsys.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} == {"questions.txt", "out.jsonl"}


@pytest.mark.parametrize("tokenizes", [True, False], ids=["vllm", "others"])
def test_a_long_conversation_loses_its_oldest_turns_and_a_long_question_its_beginning(engine, tokenizes):
    turns = [text for n in range(200) for text in (f"第{n}个问题：头痛怎么办？", "多休息，多喝水。")]
    with serving(engine, tokenizes=tokenizes) as server:
        remote = Server(server.address)
        answer = remote.answer([ask(*turns, "发烧呢？")], Sampling(8))[0]
        assert answer.truncated and 700 < answer.prompt_tokens <= 2040
        asked = server.asked[-1]["messages"]
        assert asked[0]["role"] == "user" and asked[-1]["content"] == "发烧呢？"
        stream = remote.stream(ask("头" * 30_000 + "怎么办？"), Sampling(8))
        assert "".join(stream) == stream.answer.text
        assert stream.answer.truncated and stream.answer.prompt_tokens <= 2040
        assert server.asked[-1]["messages"][0]["content"].endswith("头怎么办？")
        assert not remote.answer([ask("发烧呢？")], Sampling(8))[0].truncated
    if tokenizes:
        with pytest.raises(ValueError, match="--max_new_tokens 3000 leaves no room"):
            remote.stream(ask("你好"), Sampling(3000))


def test_a_server_whose_tokenize_is_another_one_is_not_asked_to_count(engine, monkeypatch):
    with serving(engine) as server:
        remote = Server(server.address)
        with monkeypatch.context() as patch:
            patch.setattr(remote._client, "post", lambda *args, **kwargs: {"tokens": []})  # as llama.cpp answers
            assert remote.measure([ask("头痛怎么办？")], Sampling(8)) == [6]
        assert remote.answer([ask("头痛怎么办？")], Sampling(8)) == engine.answer([ask("头痛怎么办？")], Sampling(8))


def test_a_server_whose_tokenize_wants_other_fields_is_not_asked_to_count(engine, monkeypatch):
    with serving(engine) as server:
        remote = Server(server.address)

        def refuse(*args, **kwargs):
            response = httpx.Response(422, request=httpx.Request("POST", server.address))
            raise openai.UnprocessableEntityError("prompt: field required", response=response, body=None)

        with monkeypatch.context() as patch:
            patch.setattr(remote._client, "post", refuse)
            assert remote.measure([ask("头痛怎么办？")], Sampling(8)) == [6]


def test_what_is_wrong_with_a_server_is_said(engine, server):
    with pytest.raises(ValueError, match=r"--api_base: expected an address such as http://127\.0\.0\.1:8000/v1"):
        Server("127.0.0.1:8000")
    with pytest.raises(ValueError, match=r"--api_model: http://127.* serves tiny, not gpt"):
        Server(server.address, "gpt")
    with serving(engine, key="secret") as closed, pytest.raises(ValueError, match="refuses the key, see --api_key"):
        Server(closed.address, api_key="wrong")
    with pytest.raises(ValueError, match=r"--api_base http://127.*no server answers there"):
        Server(closed.address)


def test_a_chat_goes_on_when_its_server_fails(engine, root):
    """The terminal chat is another process; the server goes away between two questions and comes back."""
    with serving(engine) as server:
        process = subprocess.Popen(
            [
                sys.executable,
                root / "inference.py",
                "--interactive",
                "--api_base",
                server.address,
                "--max_new_tokens",
                "4",
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        server.refuse_after = 0
        process.stdin.write("你好\n")
        process.stdin.flush()
        end = time.monotonic() + 300
        while server.refused < 3 and time.monotonic() < end:  # the client tries three times
            time.sleep(0.05)
        time.sleep(0.5)
        server.refuse_after = None
        out, _ = process.communicate("🩺\n<|im_end|>\nexit\n", timeout=300)
    assert process.returncode == 0
    assert out.count("error: --api_base http://127") == 1 and out.count("Assistant: ") == 2
    assert "not medical advice" in out


def test_thoughts_that_come_apart_get_their_tags_back():
    reply = _Reply(truncated=False)
    said = [{"reasoning_content": "先"}, {"reasoning_content": "想"}, {"content": "答"}, {"content": "案"}]
    pieces = [reply.take(chunk(delta)) for delta in said]
    assert "".join([*pieces, reply.end()]) == reply.answer().text == "<think>\n先想\n</think>\n\n答案"
    assert split_thinking(reply.answer().text) == ("先想", "答案")
    cut = _Reply(truncated=False)
    cut.take(chunk({"reasoning": "还在想"}))
    assert cut.end() == "\n</think>\n\n"


def chunk(delta: dict) -> ChatCompletionChunk:
    choice = {"index": 0, "delta": delta, "finish_reason": None}
    return ChatCompletionChunk.model_validate(
        {"id": "1", "object": "chat.completion.chunk", "created": 0, "model": "m", "choices": [choice]}
    )
