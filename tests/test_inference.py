"""inference.py as a user runs it: a terminal, a file, a kill in the middle."""

import fcntl
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import time

import pytest

import inference
from medical_qwen import training
from medical_qwen.generation import Generator, Request, Sampling
from medical_qwen.generation.terminal import DIM, PLAIN, dimmed


@pytest.fixture(scope="module")
def model(shared) -> str:
    return str(shared / "models/minimind2-small")


def run(*flags: object) -> None:
    inference.main(inference.parse_args([str(flag) for flag in flags]))


def read(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


class Terminal:
    """The script on a pseudo terminal."""

    def __init__(self, root, log, *flags: str) -> None:
        self.log = log
        self.main, side = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, root / "inference.py", *flags],
            stdin=side,
            stdout=side,
            stderr=log.open("wb"),
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # Ctrl-C reaches who owns the terminal
            env=os.environ | {"TERM": "dumb", "LANG": "C.UTF-8"},
        )
        os.close(side)
        self.raw = b""

    def until(self, mark: str, seconds: float = 90) -> str:
        """What is shown up to and with the mark."""
        end = time.monotonic() + seconds
        while mark.encode() not in self.raw:
            ready, _, _ = select.select([self.main], [], [], max(end - time.monotonic(), 0))
            seen = self.raw.decode(errors="replace")[-500:]
            assert ready and self.process.poll() is None, f"no {mark!r} after {seen!r}\n{self.log.read_text()}"
            self.raw += os.read(self.main, 65536)
        shown, _, self.raw = self.raw.partition(mark.encode())
        return re.sub(r"\x1b\[[?\d;]*[a-zA-Z]", "", (shown.decode() + mark).replace("\r\n", "\n"))

    def say(self, line: str) -> None:
        os.write(self.main, line.encode() + b"\n")

    def turn(self, question: str) -> str:
        """The whole answer to a question."""
        self.say(question)
        self.until("Assistant: ")
        return self.until("\nUser: ").removesuffix("\n\nUser: ")


def said(*turns: str) -> list[dict]:
    return [{"role": ("user", "assistant")[n % 2], "content": turn} for n, turn in enumerate(turns)]


def test_a_chat_is_interrupted_remembers_and_forgets(root, model, tmp_path):
    """Each answer on the terminal is the model's answer to the conversation as it was shown there."""
    sampling = Sampling(max_new_tokens=60)
    flags = ["--base_model", model, "--interactive", "--only_cpu", "--temperature", "0", "--max_new_tokens", "60"]
    terminal = Terminal(root, tmp_path / "stderr", *flags)
    try:
        notice = terminal.until("User: ")
        assert notice.count("not medical advice") == 1 and "不能代替医生" in notice
        opening, question = "我叫李雷，我头痛，请写一篇长文。", "我叫什么名字？"
        terminal.say(opening)
        terminal.until("Assistant: ")
        begun = terminal.until("，")
        os.write(terminal.main, b"\x03")
        partial = (begun + terminal.until(" [stopped]").removesuffix(" [stopped]")).replace("^C", "")  # the echo
        terminal.until("User: ")
        second = terminal.turn(question)
        terminal.say("")
        terminal.until("User: ")
        for _ in range(3):
            time.sleep(0.3)
            os.write(terminal.main, b"\x03")  # at the prompt it stops nothing
            assert "`exit` leaves" in terminal.until("User: ")
        terminal.say("clear")
        assert "forgotten" in terminal.until("User: ")
        third = terminal.turn(question)
        terminal.say("exit")
        assert terminal.process.wait(30) == 0
    finally:
        terminal.process.kill()
    generator = Generator.load(model, only_cpu=True)
    requests = [Request(said(opening)), Request(said(opening, partial, question)), Request(said(question))]
    whole, after, alone = generator.answer(requests, sampling)
    assert whole.text.startswith(partial) and 0 < len(partial) < len(whole.text)
    assert (second, third) == (shown(after), shown(alone))
    assert second != third


def shown(answer) -> str:
    return answer.text + "\n[cut at --max_new_tokens 60]" * (answer.finish_reason == "length")


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
def test_thoughts_are_dimmed_in_a_terminal_wherever_their_tags_are_cut(size):
    text = "<think>\n先想 a<b\n</think>\n\n答<案> <think>再"
    pieces = [text[i : i + size] for i in range(0, len(text), size)]
    expected = f"{DIM}\n先想 a<b\n{PLAIN}\n\n答<案> {DIM}再{PLAIN}"
    assert "".join(dimmed(pieces)) == expected
    assert "".join(dimmed(["没有思考 <thi"])) == "没有思考 <thi"


def test_a_chat_through_a_pipe_survives_bad_bytes_and_ends_with_the_input(root, tiny_model):
    flags = ["--base_model", tiny_model, "--interactive", "--only_cpu", "--max_new_tokens", "4", "--single_turn"]
    lines = "<|im_end|>\n<|im_start|>system\n🩺\n".encode() + b"\xff\xfe broken \x00\n" + b"\n"
    done = subprocess.run(
        [sys.executable, root / "inference.py", *flags], input=lines, capture_output=True, timeout=90
    )
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout.decode().count("Assistant: ") == 4
    assert "error" not in done.stdout.decode()


def test_rows_keep_their_fields_and_order_and_gain_the_models_answer(model, tmp_path, capsys):
    rows = [
        {
            "conversations": [{"from": "human", "value": "感冒了怎么办？" * 9}, {"from": "gpt", "value": "休息"}],
            "id": 7,
        },
        {"conversations": [{"from": "human", "value": "你好"}], "nested": {"a": [1.5, None, "é\u2028"]}},
        {
            "conversations": [{"from": "human", "value": "高血压吃什么药？"}, {"from": "gpt", "value": "降压药"}],
            "id": "x",
        },
    ]
    file, output = tmp_path / "rows.jsonl", tmp_path / "new" / "out.jsonl"
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    flags = ["--base_model", model, "--data_file", file, "--output_file", output, "--only_cpu", "--max_new_tokens", 8]
    run(*flags, "--eval_batch_size", 2, "--system_prompt", "你是医生")
    found = read(output)
    assert [{name: row[name] for name in row if name != "prediction"} for row in found] == rows
    assert [list(row)[-1] for row in found] == ["prediction"] * 3
    generator = Generator.load(model, only_cpu=True)
    system = {"role": "system", "content": "你是医生"}
    requests = [Request([system, *said(row["conversations"][0]["value"])]) for row in rows]
    assert [row["prediction"] for row in found] == [a.text for a in generator.answer(requests, Sampling(8))]
    assert list(output.parent.iterdir()) == [output]
    summary = capsys.readouterr().out
    assert "3 answers, 24 new tokens" in summary and "finish: length 3" in summary and "tokens/s" in summary


def test_forms_that_hold_a_question_are_all_asked(tiny_model, tmp_path):
    rows = {
        "qa.jsonl": {"question": "a", "answer": "b"},
        "alpaca.json": [{"instruction": "a", "input": "b", "output": "c"}],
        "exam.jsonl": {"question": "a", "options": {"A": "1", "B": "2"}, "answer": "A"},
        "pair.jsonl": {"question": "a", "response_chosen": "b", "response_rejected": "c"},
        "prompt.jsonl": {"prompt": [{"role": "user", "content": "a"}], "answer": "b"},
    }
    for name, row in rows.items():
        (tmp_path / name).write_text(json.dumps(row) + "\n")
        output = tmp_path / f"{name}.out"
        run("--base_model", tiny_model, "--data_file", tmp_path / name, "--output_file", output, "--max_new_tokens", 2)
        (found,) = read(output)
        assert {**found} == {**(row[0] if isinstance(row, list) else row), "prediction": found["prediction"]}


def test_a_killed_run_goes_on_and_ends_with_the_file_of_an_undisturbed_one(root, shared, model, tmp_path):
    lines = (shared / "data/medicalgpt/sft/medical_sft_1K_format.jsonl").read_text(encoding="utf-8").split("\n")[:18]
    file = tmp_path / "questions.jsonl"
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    flags = ["--base_model", model, "--data_file", file, "--only_cpu", "--max_new_tokens", 16, "--eval_batch_size", 3]
    run(*flags, "--output_file", tmp_path / "undisturbed.jsonl")
    output, journal = tmp_path / "out.jsonl", tmp_path / "out.jsonl.journal"
    command = [sys.executable, root / "inference.py", *map(str, flags), "--output_file", output]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not (journal.exists() and journal.read_bytes().count(b"\n") >= 3):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = journal.read_bytes()
    assert 3 <= before.count(b"\n") < 7 and not output.exists()
    with pytest.raises(ValueError, match="max_new_tokens: 16 there, 17 now"):
        run(*flags, "--max_new_tokens", 17, "--output_file", output)
    with file.open("a", encoding="utf-8") as more:
        more.write(lines[0] + "\n")
    with pytest.raises(ValueError, match="journal of another job"):
        run(*flags, "--output_file", output)
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    assert journal.read_bytes() == before
    run(*flags, "--output_file", output)
    assert output.read_bytes() == (tmp_path / "undisturbed.jsonl").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.jsonl", "questions.jsonl", "undisturbed.jsonl"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--base_model", "m"], "either --interactive or --data_file"),
        (["--base_model", "m", "--interactive", "--data_file", "f"], "either --interactive or --data_file"),
        (["--interactive"], "--base_model"),
        (["--base_model", "m", "--interactive", "--load_in_8bit", "--load_in_4bit"], "choose one"),
        (["--base_model", "m", "--data_file", "f", "--eval_batch_size", "0"], "--eval_batch_size"),
        (["--base_model", "m", "--interactive", "--gpus", "0,x"], "--gpus"),
        (["--base_model", "m", "--interactive", "--max_new_token", "4"], "--max_new_token"),
    ],
)
def test_wrong_flags_fail_before_anything_is_loaded(capsys, flags, message):
    with pytest.raises(SystemExit) as stopped:
        inference.parse_args(flags)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--base_model": "./nowhere"}, "nowhere: no such model directory"),
        ({"--base_model": "."}, r"no tokenizer\.json"),
        ({"--data_file": "nothing.jsonl"}, "--data_file: nothing.jsonl does not exist"),
        ({"--output_file": "questions.txt"}, "it would be overwritten"),
        ({"--output_file": "questions.txt/out.jsonl"}, "cannot be written"),
        ({"--max_new_tokens": "3000"}, "--max_new_tokens 3000 leaves no room"),
        ({"--top_p": "0"}, "--top_p"),
        ({"--template_name": "vicunna"}, "vicunna"),
        ({"--lora_model": "."}, "not an adapter directory"),
    ],
)
def test_what_cannot_work_is_said_and_leaves_nothing_behind(tiny_model, tmp_path, monkeypatch, change, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "questions.txt").write_text("感冒怎么办？\n", encoding="utf-8")
    flags = {"--base_model": str(tiny_model), "--data_file": "questions.txt", "--output_file": "out.jsonl"} | change
    with pytest.raises(SystemExit, match=f"^error: .*{message}"):  # a message and exit code 1, no traceback
        training.run(lambda: run(*(word for pair in flags.items() for word in pair)))
    assert [path.name for path in tmp_path.iterdir()] == ["questions.txt"]
    assert (tmp_path / "questions.txt").read_text(encoding="utf-8") == "感冒怎么办？\n"


@pytest.mark.parametrize(
    ("given", "flags", "expected"),
    [
        (None, [], "0"),
        (None, ["--gpus", "0,1"], "0,1"),
        ("5", [], "5"),
        ("4,5,7", ["--gpus", "0,2"], "4,7"),
        ("", [], ""),
        ("4", ["--only_cpu"], ""),
    ],
)
def test_gpus_are_chosen_among_the_visible_ones(monkeypatch, given, flags, expected):
    if given is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
    inference.select_gpus(inference.parse_args(["--base_model", "m", "--interactive", *flags]))
    assert os.environ["CUDA_VISIBLE_DEVICES"] == expected


def test_a_gpu_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    with pytest.raises(SystemExit, match="--gpus 0,1"):
        inference.select_gpus(inference.parse_args(["--base_model", "m", "--interactive", "--gpus", "0,1"]))
