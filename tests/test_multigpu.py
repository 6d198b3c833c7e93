"""inference_multigpu_demo.py as torchrun runs it: the file of inference.py to the byte, on any number of ranks."""

import json
import os
import random
import subprocess
import sys
import time
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import pytest
from rank_work import work
from torch.distributed import HashStore, TCPStore

import inference
import inference_multigpu_demo
from medical_qwen.generation import Answer, Journal, Ranks, plan_batches, select_gpus
from medical_qwen.generation.job import _portions

DATA = "data/sft/medical_zh_single.jsonl"


@pytest.fixture(scope="module")
def questions(root, tmp_path_factory):
    """25 questions: no multiple of any number of ranks, nor of the batch size."""
    lines = (root / DATA).read_text(encoding="utf-8").split("\n")[:25]
    file = tmp_path_factory.mktemp("questions") / "questions.jsonl"
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


def flags(model, questions, output) -> list[str]:
    words = ["--base_model", model, "--data_file", questions, "--output_file", output, "--only_cpu"]
    return [str(word) for word in [*words, "--max_new_tokens", 12]]


@pytest.fixture(scope="module")
def undisturbed(tiny_model, questions, tmp_path_factory):
    """What inference.py writes."""
    output = tmp_path_factory.mktemp("undisturbed") / "out.jsonl"
    inference.main(inference.parse_args([*flags(tiny_model, questions, output), "--eval_batch_size", "3"]))
    return output.read_bytes()


def launched(root, ranks: int, words: list[str]) -> subprocess.CompletedProcess:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)]
    return subprocess.run(
        [sys.executable, *launcher, root / "inference_multigpu_demo.py", *words, "--batch_size", "3"],
        capture_output=True,
        text=True,
        timeout=500,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def test_two_ranks_write_the_file_of_one_and_show_one_progress_bar(root, tiny_model, questions, undisturbed, tmp_path):
    output = tmp_path / "out.jsonl"
    done = launched(root, 2, flags(tiny_model, questions, output))
    assert done.returncode == 0, done.stderr
    assert output.read_bytes() == undisturbed
    assert "25 answers, " in done.stdout and done.stdout.rstrip().endswith("2 ranks")
    assert "25/25" in done.stderr
    assert done.stderr.count("Loading weights: 100%") == 1
    assert list(tmp_path.iterdir()) == [output]


@pytest.mark.slow
def test_killed_ten_times_the_answers_are_those_of_an_undisturbed_run(root, tiny_model, tmp_path, monkeypatch):
    """SIGKILL to all ranks at random moments, each time another number of them."""
    file, output, chance = tmp_path / "questions.jsonl", tmp_path / "out.jsonl", random.Random(0)
    lines = (root / DATA).read_text(encoding="utf-8").split("\n")[:61]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    server = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(root), str(root / "tests")]))
    context = get_context("forkserver")
    context.set_forkserver_preload(["rank_work"])  # torch is loaded once

    def started(name: str, size: int, output: Path) -> list:
        place = (str(tiny_model), str(file), str(output), server.port, name)
        ranks = [context.Process(target=work, args=(*place, rank, size)) for rank in range(size)]
        for rank in ranks:
            rank.start()
        return ranks

    seen = [0]
    for kill in range(10):
        ranks, end = started(f"{kill}", 1 + kill % 3, output), time.monotonic() + 120
        while answered(tmp_path) == seen[-1] and time.monotonic() < end:
            time.sleep(0.01)  # until it has got further ...
        time.sleep(chance.random() * 0.02)  # ... and to any moment of the next batches
        for rank in ranks:
            rank.kill()
        for rank in ranks:
            rank.join()
        seen.append(answered(tmp_path))
        assert not output.exists()
    assert seen == sorted(seen) and len(set(seen)) == 11  # every run went on, nothing answered was lost
    for rank in [*started("last", 2, output), *started("undisturbed", 1, tmp_path / "undisturbed.jsonl")]:
        rank.join()
        assert rank.exitcode == 0
    assert output.read_bytes() == (tmp_path / "undisturbed.jsonl").read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"out.jsonl", "questions.jsonl", "undisturbed.jsonl"}


def answered(folder) -> int:
    """Rows in all journals."""
    lines = [line for file in folder.glob("out.jsonl.journal*") for line in file.read_bytes().split(b"\n")[1:-1]]
    return sum(len(json.loads(line)["rows"]) for line in lines)


@pytest.mark.parametrize("ranks", [1, 2, 3, 7])
@pytest.mark.parametrize("rows", [1, 2, 7, 8])
def test_every_batch_is_taken_once_whatever_the_numbers(rows, ranks):
    """Ranks in any order of speed, also more ranks than rows."""
    store, chance = HashStore(), random.Random(rows * ranks)
    plan = plan_batches(list(range(rows)), 2)
    takers = [_portions(plan, Busy(batches_itself=False), Ranks(rank, ranks, store)) for rank in range(ranks)]
    taken = []
    while takers:
        taker = chance.choice(takers)
        if (numbers := next(taker, None)) is None:
            takers.remove(taker)
        else:
            taken += numbers
    assert sorted(taken) == list(range(rows))
    shares = [_portions(plan, Busy(batches_itself=True), Ranks(rank, ranks, store)) for rank in range(ranks)]
    assert sorted(number for share in shares for portion in share for number in portion) == list(range(rows))


class Busy(NamedTuple):
    batches_itself: bool


def test_journals_of_other_ranks_are_read_and_removed_and_a_stranger_is_refused(tmp_path):
    output, job = tmp_path / "out.jsonl", {"seed": 1}
    answer = Answer("答", "stop", 3, 2, False)
    for rank in (0, 2):
        journal = Journal(output, job, rank)
        journal.add([rank], [answer])
        journal.close()
    (tmp_path / "out.jsonl.journal.old").write_text("not ours")
    (tmp_path / "out.jsonl.journal.3").write_bytes((tmp_path / "out.jsonl.journal.2").read_bytes()[:-5])  # cut
    journal = Journal(output, job, 1)
    assert journal.answers == {0: answer, 2: answer}
    journal.remove()
    journal.close()
    assert [path.name for path in tmp_path.iterdir()] == ["out.jsonl.journal.old"]
    listed = Journal(output, job)
    listed._all = lambda: [tmp_path / "out.jsonl.journal.9"]  # there a moment ago: its rank had nothing to do
    listed.read_others()
    listed.close()
    other = Journal(output, {"seed": 2}, 4)
    other.add([0], [answer])
    other.close()
    with pytest.raises(ValueError, match=r"journal\.4 is the journal of another job \(seed: 2 there, 1 now"):
        Journal(output, job)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--base_model", "m"], "--data_file"),
        (["--api_base", "http://127.0.0.1:1/v1", "--data_file", "f"], "use inference.py"),
        (["--base_model", "m", "--data_file", "f", "--batch_size", "0"], "--batch_size"),
        (["--base_model", "m", "--data_file", "f", "--tensor_parallel_size", "2"], "with --engine vllm"),
        (["--base_model", "m", "--data_file", "f", "--engine", "vllm", "--load_in_4bit"], "--load_in_4bit"),
        (["--base_model", "m", "--data_file", "f", "--engine", "sglang"], "--engine"),
    ],
)
def test_wrong_flags_fail_before_anything_is_loaded(capsys, words, message):
    with pytest.raises(SystemExit) as stopped:
        inference_multigpu_demo.parse_args(words)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("visible", "rank", "words", "expected"),
    [
        (None, 0, [], "0"),
        (None, 3, [], "3"),
        ("4,5", 1, [], "5"),
        ("4,5,6,7", 1, ["--gpus", "3,2"], "6"),
        ("4,5,6,7", 1, ["--engine", "vllm", "--tensor_parallel_size", "2"], "6,7"),
        ("4,5", 1, ["--only_cpu"], ""),
    ],
)
def test_each_rank_sees_its_own_gpus(monkeypatch, visible, rank, words, expected):
    monkeypatch.setenv("LOCAL_RANK", str(rank))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    select_gpus(inference_multigpu_demo.parse_args(["--base_model", "m", "--data_file", "f", *words]))
    assert os.environ["CUDA_VISIBLE_DEVICES"] == expected


def test_more_ranks_than_gpus_are_refused(monkeypatch, capsys):
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(SystemExit):
        inference_multigpu_demo.parse_args(["--base_model", "m", "--data_file", "f", "--gpus", "0,1"])
    assert "--gpus 0,1 has none left for rank 2" in capsys.readouterr().err
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")
    with pytest.raises(SystemExit, match="leaves numbers 0 to 1"):
        select_gpus(inference_multigpu_demo.parse_args(["--base_model", "m", "--data_file", "f"]))
