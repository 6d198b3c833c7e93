"""What the tests of the alignment stages share: small data, and runs that are killed or on two ranks."""

import functools
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import load_file

from medical_qwen.checkpoints import last_complete_checkpoint

ROOT = Path(__file__).resolve().parents[1]
QUIET = ["--report_to", "none", "--logging_steps", "1", "--gradient_checkpointing", "False", "--dtype", "float32"]


def write_rows(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def user(text: str) -> dict:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict:
    return {"role": "assistant", "content": text}


def pairs(number: int) -> list[dict]:
    """Short answers are better than long ones."""
    return [
        {
            "prompt": [user(f"第{i}位患者问：{'头痛' * (1 + i % 3)}怎么办？")],
            "chosen": [assistant("多休息。" * (1 + i % 2))],
            "rejected": [assistant("多休息，多喝水，按时吃药。" * (2 + i % 3))],
        }
        for i in range(number)
    ]


def flags(model: Path, data: Path, output: Path, *more: str) -> list[str]:
    return ["--model_name_or_path", str(model), "--train_file_dir", str(data), "--output_dir", str(output),
            *QUIET, *more]  # fmt: skip


def history(output: Path, key: str) -> list[float]:
    rows = json.loads((output / "trainer_state.json").read_text())["log_history"]
    return [row[key] for row in rows if key in row]


def weights(output: Path) -> dict[str, torch.Tensor]:
    return load_file(next(output.glob("*model.safetensors")))


def furthest(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> float:
    """The largest difference; NaN where a number is NaN."""
    assert first.keys() == second.keys()
    return torch.stack([(first[name].float() - second[name].float()).abs().max() for name in first]).max().item()


def kill_after_a_checkpoint(script: str, output: Path, arguments: list[str]) -> None:
    """Run a stage script and SIGKILL it when its first checkpoint is complete."""
    process = subprocess.Popen([sys.executable, script, *arguments], cwd=ROOT, stderr=subprocess.DEVNULL)
    deadline = time.time() + 180
    while last_complete_checkpoint(output, 1) is None and process.poll() is None and time.time() < deadline:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "the run ended before it could be killed"
    assert not (output / "run_summary.json").exists()


def on_ranks(runs: tuple[list[str], ...]) -> list[list[str]]:
    return [[*words, "--use_cpu", "True"] for words in runs]


RANKS = {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "PYTHONFAULTHANDLER": "1"}


def under_torchrun(*runs: list[str], **environment: str) -> None:
    """Runs [stage, *flags], one after another, on two gloo ranks, which have to end each with the same weights."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*command, "tests/ranks.py", json.dumps(on_ranks(runs))],
        cwd=ROOT,
        env=os.environ | RANKS | environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, reason(done.stderr)


def two_ranks(*runs: list[str]) -> None:
    """The same on ranks that a server forks, which has imported everything: ten seconds less than by torchrun."""
    if rank_server().poll() is not None:
        rank_server.cache_clear()
    server = rank_server()
    with tempfile.TemporaryDirectory() as folder:
        logs = [Path(folder) / f"rank{rank}.log" for rank in (0, 1)]
        server.stdin.write(json.dumps({"runs": on_ranks(runs), "logs": list(map(str, logs))}) + "\n")
        server.stdin.flush()
        if not select.select([server.stdout], [], [], 600)[0]:
            os.killpg(server.pid, signal.SIGKILL)  # the ranks, too
        answer = server.stdout.readline()
        codes = json.loads(answer)["codes"] if answer else {"server": server.wait()}
        told = "\n\n".join(reason(log.read_text(errors="replace")) for log in logs if log.exists())
    assert set(codes.values()) == {0}, f"{codes}\n{told}"


@functools.cache
def rank_server() -> subprocess.Popen:
    """Ends with its input: with the test process."""
    command = [sys.executable, "tests/ranks.py"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=ROOT, env=os.environ | RANKS, start_new_session=True, **pipes)


def reason(log: str) -> str:
    """The end of a log; of a crash also where Python was."""
    crash = log.find("Fatal Python error")
    return (log[max(0, crash - 500) : crash + 3000] + "\n[…]\n" if crash >= 0 else "") + log[-3000:]
