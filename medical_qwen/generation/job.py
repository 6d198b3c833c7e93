"""A file of requests as a job that may be killed at any moment and goes on where it was.

Finished batches go to a journal beside the output, one line each; the output itself is written once, at the end. Which
rows share a batch is planned over the whole file, so that a continued job computes the same floats as an undisturbed one.
"""

import fcntl
import hashlib
import json
import logging
import os
import time
from dataclasses import asdict
from pathlib import Path

from tqdm import tqdm

from medical_qwen.generation.decoding import Answer, Sampling
from medical_qwen.generation.engine import Generator, Request, plan_batches, summarize

logger = logging.getLogger(__name__)


class Journal:
    """The finished batches of one job. It belongs to that job: opening it for another one raises ValueError.

    Args:
        output_file: the journal lies beside it, `<output_file>.journal`; its folder is made.
        job: everything that the answers depend on, as JSON values.
    """

    def __init__(self, output_file: str | Path, job: dict) -> None:
        self.path = Path(f"{output_file}.journal")
        self.answers: dict[int, Answer] = {}
        try:
            if Path(output_file).is_dir():
                raise IsADirectoryError(f"{output_file} is a directory")
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(self.path, "a+b")  # noqa: SIM115 (closed by `close`)
        except OSError as error:
            raise ValueError(f"--output_file {output_file}: cannot be written ({error})") from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._file.close()
            raise ValueError(f"--output_file {output_file}: another process is writing it ({self.path})") from error
        self._read(json.loads(json.dumps(job)))

    def _read(self, job: dict) -> None:
        self._file.seek(0)
        *whole, _cut = self._file.read().split(b"\n")  # a kill may have cut the last line
        self._file.truncate(sum(len(line) + 1 for line in whole))
        if not whole:
            self._append({"job": job})
            return
        written = json.loads(whole[0])["job"]
        if different := [key for key in job | written if job.get(key) != written.get(key)]:
            self._file.close()
            raise ValueError(
                f"{self.path} is the journal of another job ("
                + "; ".join(f"{key}: {written.get(key)!r} there, {job.get(key)!r} now" for key in different)
                + "): repeat that job, choose another --output_file, or delete the journal"
            )
        for line in whole[1:]:
            batch = json.loads(line)
            self.answers |= zip(batch["rows"], (Answer(**answer) for answer in batch["answers"]), strict=True)

    def add(self, rows: list[int], answers: list[Answer]) -> None:
        """Record a finished batch: after this returns no kill can lose it."""
        self._append({"rows": rows, "answers": [asdict(answer) for answer in answers]})
        self.answers |= zip(rows, answers, strict=True)

    def _append(self, entry: dict) -> None:
        self._file.write(json.dumps(entry).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self, keep: bool = True) -> None:
        """Release the journal. `keep` False, or nothing in it: remove it."""
        if not (keep and self.answers):
            self.path.unlink(missing_ok=True)
        self._file.close()


def answer_file(
    generator: Generator,
    rows: list[dict],
    requests: list[Request],
    sampling: Sampling,
    batch_size: int,
    output_file: str | Path,
    journal: Journal,
) -> str:
    """Answer every row that the journal does not have; then write all rows with their `prediction`. Returns a summary.

    Args:
        rows: the input rows, written back unchanged. requests: what is asked, one a row.
    """
    plan = plan_batches(generator.measure(requests, sampling), batch_size)
    before = len(journal.answers)
    if before:
        logger.info("%s: going on after %d of %d rows", journal.path, before, len(rows))
    started, tokens = time.perf_counter(), 0
    with tqdm(total=len(rows), initial=before, unit="row", desc="answers") as bar:
        for numbers in plan:
            if all(number in journal.answers for number in numbers):
                continue
            answers = generator.answer([requests[i] for i in numbers], sampling, len(numbers), progress=bar.update)
            journal.add(numbers, answers)
            tokens += sum(answer.completion_tokens for answer in answers)
    seconds = time.perf_counter() - started
    answers = [journal.answers[i] for i in range(len(rows))]
    _write(output_file, rows, [answer.text for answer in answers])
    journal.close(keep=False)
    return summarize(answers, tokens, seconds)


def _write(output_file: str | Path, rows: list[dict], predictions: list[str]) -> None:
    """JSONL in input order; the file appears whole or not at all."""
    target = Path(output_file)
    unfinished = target.with_name(f".{target.name}.unfinished")  # ours alone: the journal's lock is held
    with open(unfinished, "wb") as file:
        for row, prediction in zip(rows, predictions, strict=True):
            file.write(_json_line({**row, "prediction": prediction}))
        file.flush()
        os.fsync(file.fileno())
    os.replace(unfinished, target)


def _json_line(row: dict) -> bytes:
    try:
        return json.dumps(row, ensure_ascii=False).encode() + b"\n"
    except UnicodeEncodeError:  # half of a surrogate pair, as some exports contain: it can only be written escaped
        return json.dumps(row).encode() + b"\n"


def describe_files(*paths: str | None) -> dict[str, str]:
    """What tells one state of files from another: a hash of a file's bytes; of a directory's names, sizes and times."""
    found = {}
    for path in filter(None, paths):
        digest = hashlib.sha256()
        if Path(path).is_file():
            digest.update(Path(path).read_bytes())
        for file in sorted(Path(path).glob("*")):
            stat = file.stat()
            digest.update(f"{file.name} {stat.st_size} {stat.st_mtime_ns}\n".encode())
        found[path] = digest.hexdigest()[:16]
    return found
