"""A file of requests as a job that may be killed at any moment and goes on where it was.

Finished batches go to a journal beside the output, one line each; the output itself is written once, at the end.
Which rows share a batch is planned over the whole file, so that a continued job, or that of several ranks, computes
the same floats as an undisturbed one. Each rank has a journal of its own; all of them are read at the start.
"""

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from tqdm import tqdm

from medical_qwen.generation.interface import Answer, Engine, Request, Sampling, plan_batches, summarize
from medical_qwen.generation.ranks import Ranks
from medical_qwen.records import BadRecord, Report, stream
from medical_qwen.records.files import inspect

logger = logging.getLogger(__name__)

MODEL_FILES = ("*.safetensors", "*.bin", "*config.json", "tokenizer*", "vocab*", "merges.txt", "*.model", "*.jinja")


class Journal:
    """The finished batches of one job. It belongs to that job: opening it for another one raises ValueError.

    Args:
        output_file: the journal lies beside it, `<output_file>.journal`; its folder is made.
        job: everything that the answers depend on, as JSON values.
        rank: each one writes to a file of its own, ranks > 0 to `<output_file>.journal.<rank>`.
    """

    def __init__(self, output_file: str | Path, job: dict, rank: int = 0) -> None:
        self._first = Path(f"{output_file}.journal")
        self.path = Path(f"{self._first}.{rank}") if rank else self._first
        self._job = json.loads(_line(job))
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
        try:
            self._file.seek(0)
            content = self._file.read()
            whole = self._read(self.path, content)
            self._file.truncate(whole)  # a kill may have cut the last line
            if not whole:
                self._append({"job": self._job})
            self.read_others()
        except ValueError:
            self._file.close()
            raise

    def read_others(self) -> None:
        """Take in what the other ranks have written by now, those of an earlier run too."""
        for path in self._all():
            with contextlib.suppress(FileNotFoundError):  # a rank that had nothing to do takes its own away
                if path != self.path:
                    self._read(path, path.read_bytes())

    def _all(self) -> list[Path]:
        named = re.compile(re.escape(self._first.name) + r"(\.\d+)?")
        return sorted(path for path in self._first.parent.iterdir() if named.fullmatch(path.name))

    def _read(self, path: Path, content: bytes) -> int:
        """Take in the whole lines of a journal; returns how many bytes those are."""
        *whole, cut = content.split(b"\n")
        if not whole and _line({"job": self._job}).startswith(cut):
            return 0
        try:
            written = json.loads(whole[0])["job"]
            batches = [json.loads(line) for line in whole[1:]]
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise ValueError(f"{path} is no journal of ours: choose another --output_file, or delete it") from error
        if different := [key for key in self._job | written if self._job.get(key) != written.get(key)]:
            raise ValueError(
                f"{path} is the journal of another job ("
                + "; ".join(f"{key}: {written.get(key)!r} there, {self._job.get(key)!r} now" for key in different)
                + "): repeat that job, choose another --output_file, or delete the journal"
            )
        for batch in batches:
            self.answers |= zip(batch["rows"], (Answer(**answer) for answer in batch["answers"]), strict=True)
        return len(content) - len(cut)

    def add(self, rows: list[int], answers: list[Answer]) -> None:
        """Record a finished batch: after this returns no kill can lose it."""
        self._append({"rows": rows, "answers": [asdict(answer) for answer in answers]})
        self.answers |= zip(rows, answers, strict=True)

    def _append(self, entry: dict) -> None:
        self._file.write(_line(entry))
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Release the journal; one without any answer is removed."""
        if not self.answers:
            self.path.unlink(missing_ok=True)
        self._file.close()

    def remove(self) -> None:
        """Delete the journals of all ranks: the output is written."""
        for path in self._all():
            path.unlink(missing_ok=True)


def answer_file(
    data_file: str | Path,
    output_file: str | Path,
    load: Callable[[], Engine],
    sampling: Sampling,
    *,
    batch_size: int,
    seed: int,
    system_prompt: str | None = None,
    job: dict,
    details: Callable[[Engine, Request, Answer], dict] = lambda engine, request, answer: {},
    ranks: Ranks | None = None,
) -> str:
    """Answer every row of a file; the output has the rows in their order, unchanged, with `prediction`.

    Args:
        load: makes the engine, after the files were found to be in order.
        job: what the answers depend on beyond these arguments (`describe_engine`); see `Journal`.
        details: what else a row of the output tells about its answer.
        ranks: who shares the work, on folders that all of them see; each of them makes this call.

    Returns: a summary in one line, on rank 0; the others have nothing to tell.
    """
    ranks = ranks or Ranks()
    rows, requests = read_questions(data_file, system_prompt, seed)
    if Path(output_file).resolve() == Path(data_file).resolve():
        raise ValueError(f"--output_file {output_file} is the --data_file: it would be overwritten")
    settings = {"batch_size": batch_size, "seed": seed, "system_prompt": system_prompt}
    job = asdict(sampling) | settings | {"data": describe_files(data_file)} | job
    journal = Journal(output_file, job, ranks.rank)
    try:
        ranks.meet("opened")
        journal.read_others()
        ranks.meet("read")  # before anyone writes more: all plan from the same state
        engine = load()
        tokens, seconds = _answer(engine, requests, sampling, batch_size, journal, ranks)
        if ranks.rank:
            return ""
        journal.read_others()
        answers = [journal.answers[i] for i in range(len(rows))]
        told = [
            {"prediction": answer.text, **details(engine, request, answer)}
            for request, answer in zip(requests, answers, strict=True)
        ]
        _write(output_file, [{**row, **more} for row, more in zip(rows, told, strict=True)])
        journal.remove()
    except KeyboardInterrupt:
        if ranks.rank:
            raise SystemExit(1) from None
        journal.read_others()
        done = len(journal.answers)
        raise SystemExit(f"stopped: {done} of {len(rows)} rows are answered, the same command goes on") from None
    finally:
        journal.close()
    return summarize(answers, tokens, seconds)


def _answer(
    engine: Engine, requests: list[Request], sampling: Sampling, batch_size: int, journal: Journal, ranks: Ranks
) -> tuple[int, float]:
    """Answer what no journal has yet. Returns the new tokens of all ranks, and the seconds that they took."""
    lengths = _measure(engine, requests, sampling)
    rest = [number for number in range(len(requests)) if number not in journal.answers]
    before = len(requests) - len(rest)
    if before and not ranks.rank:
        logger.info("%s: going on after %d of %d rows", journal.path, before, len(requests))
    plan = [[rest[i] for i in batch] for batch in plan_batches([lengths[i] for i in rest], batch_size)]
    started = time.perf_counter()
    with tqdm(total=len(requests), initial=before, unit="row", desc="answers", disable=ranks.rank > 0) as bar:

        def progress(rows: int = 0) -> None:
            bar.update(before + ranks.add("rows", rows) - bar.n)

        for numbers in _portions(plan, engine, ranks):
            answers = engine.answer(
                [requests[number] for number in numbers],
                sampling,
                batch_size,
                progress,
                lambda places, answers, numbers=numbers: journal.add([numbers[place] for place in places], answers),
            )
            ranks.add("tokens", sum(answer.completion_tokens for answer in answers))
        ranks.meet("done", progress)
        progress()
    return ranks.total("tokens"), time.perf_counter() - started


def _portions(plan: list[list[int]], engine: Engine, ranks: Ranks) -> Iterator[list[int]]:
    """The batches that this rank takes: the next one whenever it is free, so that all ranks end together.

    An engine that keeps its own batches full gets its share of all lengths at once.
    """
    if engine.batches_itself:
        if share := plan[ranks.rank :: ranks.size]:
            yield [number for batch in share for number in batch]
        return
    while (place := ranks.add("taken") - 1) < len(plan):
        yield plan[place]


def _measure(engine: Engine, requests: list[Request], sampling: Sampling) -> list[int]:
    """Length of each prompt. Raises for the first request that cannot be answered, before others take an hour."""
    lengths = []
    for number, request in enumerate(requests, 1):
        try:
            lengths += engine.measure([request], sampling)
        except ValueError as error:
            raise ValueError(f"--data_file: question {number}: {error}") from error
    return lengths


def read_questions(
    data_file: str | Path, system_prompt: str | None = None, seed: int = 0
) -> tuple[list[dict], list[Request]]:
    """The rows of a file as they stand there, and what each of them asks; request n has seed + n.

    A .txt has a question a line. Any other file holds records that make a prompt; a reply at their end is left out.
    """
    path = Path(data_file)
    if not path.exists():
        raise FileNotFoundError(f"--data_file: {path} does not exist")
    rows, conversations = _read_lines(path) if _is_plain(path) else _read_records(path)
    system = [{"role": "system", "content": system_prompt}] if system_prompt else []
    requests = []
    for number, (messages, tools) in enumerate(conversations):
        opened = messages if messages[0]["role"] == "system" else [*system, *messages]
        requests.append(Request(opened, tools, seed + number))
    if not rows:
        raise ValueError(f"--data_file: {path} holds no question")
    return rows, requests


def _is_plain(path: Path) -> bool:
    """Some files of JSON lines are named .txt."""
    return (
        path.is_file()
        and path.suffix == ".txt"
        and not path.read_bytes().lstrip(b"\xef\xbb\xbf \r\n").startswith(b"{")
    )


def _read_lines(path: Path) -> tuple[list[dict], list[tuple[list[dict], None]]]:
    try:
        with inspect(path).text() as text:
            lines = [line.strip() for line in text.read().split("\n")]
    except (UnicodeError, BadRecord) as error:
        raise ValueError(f"{path}: expected text in UTF-8 or GB18030 ({error})") from error
    questions = [line for line in lines if line]
    return [{"question": text} for text in questions], [
        ([{"role": "user", "content": text}], None) for text in questions
    ]


def _read_records(path: Path) -> tuple[list[dict], list[tuple[list[dict], list[dict] | None]]]:
    report = Report("prompt")
    rows, conversations = [], []
    for record, where, row in stream(path, "prompt", report=report):
        if "prediction" in row:
            raise ValueError(f"{where}: the row has a `prediction` already, which would be lost")
        rows.append(row)
        conversations.append((record["prompt"], record.get("tools")))
    if report.left_out:
        raise ValueError(f"{path}: some rows ask nothing: {dict(report.left_out)}")
    return rows, conversations


def _write(output_file: str | Path, rows: list[dict]) -> None:
    """JSONL in input order; the file appears whole or not at all."""
    target = Path(output_file)
    unfinished = target.with_name(f".{target.name}.unfinished")  # ours alone: the journal's lock is held
    with open(unfinished, "wb") as file:
        for row in rows:
            file.write(_line(row))
        file.flush()
        os.fsync(file.fileno())
    os.replace(unfinished, target)


def _line(row: dict) -> bytes:
    """A row as JSON. Values that only parquet has (dates, numbers of other kinds) are written as text."""
    try:
        return json.dumps(row, ensure_ascii=False, default=str).encode() + b"\n"
    except UnicodeEncodeError:  # half of a surrogate pair, as some exports contain: it can only be written escaped
        return json.dumps(row, default=str).encode() + b"\n"


def describe_model(*paths: str | None) -> dict[str, str]:
    """`describe_files` of model, adapter and tokenizer folders: the job's own output may lie in one of them."""
    return describe_files(*paths, patterns=MODEL_FILES)


def describe_files(
    *paths: str | None, patterns: Sequence[str] = ("**/*",), without: str | None = None
) -> dict[str, str]:
    """What tells files from other ones: the hash of a file's bytes, or of a folder's names, sizes and times.

    `without`: a folder below them that does not count.
    """
    apart = Path(without).resolve() if without else None
    found = {}
    for path in filter(None, paths):
        digest = hashlib.sha256()
        if Path(path).is_file():
            digest.update(Path(path).read_bytes())
        for file in sorted({file for pattern in patterns for file in Path(path).glob(pattern)}):
            if file.is_file() and (apart is None or apart not in file.resolve().parents):
                stat = file.stat()
                digest.update(f"{file.relative_to(path)} {stat.st_size} {stat.st_mtime_ns}\n".encode())
        found[path] = digest.hexdigest()[:16]
    return found
