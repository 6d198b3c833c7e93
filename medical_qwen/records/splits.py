"""Training and validation records as memory-mapped data sets, built once and cached under the content of the files."""

import hashlib
import json
import logging
import os
import random
import shutil
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ..arguments import DataArguments
from .forms import FORMS, OPTIONAL, Record, questions
from .problems import RecordError
from .reading import Source, check, check_names, dataset_source, file_sources, read_source
from .report import Report

if TYPE_CHECKING:
    from datasets import Dataset, Features

logger = logging.getLogger(__name__)
BATCH_CHARACTERS = 8 << 20
DROPPED, TRAIN, VALIDATION = 0, 1, 2


@dataclass
class Splits:
    """What a stage trains on. `validation` is None when none was asked for."""

    train: "Dataset"
    validation: "Dataset | None"
    report: Report


def load_splits(args: DataArguments, form: str, seed: int) -> Splits:
    """The records that the arguments name, in one standard form (columns: see `forms`).

    No training record is a duplicate of another, and none asks a question that a validation record asks. Raises
    RecordError (a ValueError) that lists `file:line: field: expected … got …`, or FileNotFoundError, ValueError.
    """
    check_names(form, args.record_format)
    train, validation, ignored = _sources(args)
    folder = _cache_root() / _key(args, form, seed, train, validation)
    if not (folder / "report.json").exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        building = folder.with_name(f"{folder.name}.{uuid.uuid4().hex}")
        building.mkdir()
        try:
            report = Report(form, ignored=ignored)
            _build(building, args, form, seed, train, validation, report)
            (building / "report.json").write_text(json.dumps(report.as_dict(), ensure_ascii=False), encoding="utf-8")
            _publish(building, folder)
        finally:
            shutil.rmtree(building, ignore_errors=True)
    return _load(folder)


def _sources(args: DataArguments) -> tuple[list[Source], list[Source], list[str]]:
    validation, ignored = [], []
    if args.train_file_dir:
        train, ignored = file_sources([args.train_file_dir], args.text_documents)
    else:
        train = [dataset_source(args.dataset_name, args.dataset_config, args.dataset_split)]
    if args.validation_file_dir:
        validation, other = file_sources([args.validation_file_dir], args.text_documents)
        ignored += other
    return train, validation, ignored


def _cache_root() -> Path:
    import datasets

    return Path(datasets.config.HF_DATASETS_CACHE) / "medical_qwen_records"


def _key(args: DataArguments, form: str, seed: int, train: list[Source], validation: list[Source]) -> str:
    """Of everything that the result depends on: content, options, this package's code and the prompt of passages."""
    options = {name: value for name, value in asdict(args).items() if name != "show_samples"}
    here = Path(__file__).parent
    modules = [*sorted(here.glob("*.py")), here.parent / "evidence.py"]
    code = [hashlib.sha256(file.read_bytes()).hexdigest() for file in modules]
    files = [[(source.name, source.sha256) for source in part] for part in (train, validation)]
    return hashlib.sha256(json.dumps([options, form, seed, files, code], default=str).encode()).hexdigest()[:32]


def _publish(building: Path, folder: Path) -> None:
    """Make the finished folder visible at once. Another process may have been first; both hold the same."""
    try:
        os.rename(building, folder)
    except OSError:
        if not (folder / "report.json").exists():
            raise


def _build(
    folder: Path,
    args: DataArguments,
    form: str,
    seed: int,
    train: list[Source],
    validation: list[Source],
    report: Report,
) -> None:
    """Write train.arrow, validation.arrow if one is asked for, and the counts."""
    held_out: set[int] = set()
    with _Writer(folder / "validation_rows.arrow", form) as held_out_rows:
        for row in _rows(validation, form, args, report, "validation"):
            held_out_rows.write(row)
            held_out.update(row.asked)
    asked: list[tuple[int, ...]] = []
    seen: set[int] = set()
    with _Writer(folder / "train_rows.arrow", form) as rows:
        for row in _rows(train, form, args, report, "train"):
            if row.content in seen:
                report.duplicates += 1
            elif not held_out.isdisjoint(row.asked):
                report.overlap += 1
            else:
                rows.write(row)
                if args.validation_split_ratio and form != "text":  # texts ask nothing: none is tied to another
                    asked.append(row.asked)
            seen.add(row.content)
    check(report, args.on_bad_record, "--on_bad_record skip goes on without these records.")
    _check_left(rows.count, args.train_file_dir or args.dataset_name, report)
    sides = bytearray([TRAIN]) * rows.count
    if args.validation_file_dir:
        _check_left(held_out_rows.count, args.validation_file_dir, report)
        marks = _sample(bytearray([VALIDATION]) * held_out_rows.count, VALIDATION, args.max_eval_samples, seed)
        report.validation = marks.count(VALIDATION)
        _copy(folder / "validation_rows.arrow", {VALIDATION: folder / "validation.arrow"}, marks)
    elif args.validation_split_ratio:
        for row in _hold_out(rows.count, asked, args, seed):
            sides[row] = VALIDATION
        report.validation = sides.count(VALIDATION)
    sides = _sample(sides, TRAIN, args.max_train_samples, seed)
    report.train = sides.count(TRAIN)
    targets = {TRAIN: folder / "train.arrow"}
    if args.validation_split_ratio:
        targets[VALIDATION] = folder / "validation.arrow"
    _copy(folder / "train_rows.arrow", targets, sides)


class _Row(NamedTuple):
    record: Record
    size: int  # characters
    content: int  # hash of the whole record
    asked: tuple[int, ...]  # hashes of what it asks; of its content where nothing is asked


def _rows(sources: list[Source], form: str, args: DataArguments, report: Report, part: str) -> Iterator[_Row]:
    from tqdm.auto import tqdm

    for source in sources:
        reads = read_source(source, form, args.record_format, report, part)
        for read in tqdm(reads, desc=source.name, unit=" records", disable=None, leave=False):
            body = json.dumps(read.record, ensure_ascii=False, sort_keys=True)
            content = _hash(body)
            asked = (content,) if form == "text" else tuple({_hash(text) for text in questions(read.record, form)})
            yield _Row(read.record, len(body), content, asked)


def _check_left(count: int, path: str, report: Report) -> None:
    if not count:
        raise RecordError(report.problems, report.bad, f"{path}: no record is left to use.\n{report}")


def _hash(text: str) -> int:
    """64 bits: among 20 million records one false match in 100,000 runs."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")


def _hold_out(count: int, asked: list[tuple[int, ...]], args: DataArguments, seed: int) -> list[int]:
    """Rows for validation: the asked share, drawn by the seed, whole groups of rows that share a question."""
    flag = f"--validation_split_ratio {args.validation_split_ratio}"
    if count < 2:
        raise ValueError(f"{flag}: expected at least two records to divide, got {count}")
    quota = min(max(1, round(count * args.validation_split_ratio)), args.max_eval_samples or count, count - 1)
    draw = random.Random(seed)
    if not asked:
        return draw.sample(range(count), quota)
    groups = _groups(asked)
    draw.shuffle(groups)
    held_out: list[int] = []
    for group in groups:
        if len(held_out) + len(group) <= quota:
            held_out += group
    smallest = min(groups, key=len)
    if not held_out and len(groups) > 1:
        held_out = smallest
    if not held_out:
        raise ValueError(
            f"{flag}: all {count} records share questions, so none can be held out; give a validation file"
        )
    return held_out


def _groups(asked: list[tuple[int, ...]]) -> list[list[int]]:
    """Rows that are tied to each other by common questions (union-find)."""
    parent = list(range(len(asked)))

    def root(row: int) -> int:
        while parent[row] != row:
            parent[row] = row = parent[parent[row]]
        return row

    first: dict[int, int] = {}
    for row, keys in enumerate(asked):
        for key in keys:
            parent[root(row)] = root(first.setdefault(key, row))
    groups: dict[int, list[int]] = {}
    for row in range(len(asked)):
        groups.setdefault(root(row), []).append(row)
    return list(groups.values())


def _sample(sides: bytearray, side: int, limit: int | None, seed: int) -> bytearray:
    """Keep `limit` rows of a side, drawn by the seed over all files; the others are dropped."""
    if limit is not None:
        rows = [row for row, mark in enumerate(sides) if mark == side]
        for row in random.Random(seed).sample(rows, max(0, len(rows) - limit)):
            sides[row] = DROPPED
    return sides


def _features(form: str) -> "Features":
    from datasets import Features, Json, List, Value

    stored = {"text": Value("string"), "number": Value("float64"), "json": Json(), "messages": List(Json())}
    return Features({column: stored[kind] for column, kind in FORMS[form].items()})


class _Writer:
    """Rows into an Arrow file, in batches of bounded size whatever the length of a row."""

    def __init__(self, path: Path, form: str) -> None:
        from datasets.arrow_writer import ArrowWriter

        self.writer, self.count, self.pending = ArrowWriter(path=str(path), features=_features(form)), 0, 0

    def __enter__(self) -> "_Writer":
        return self

    def __exit__(self, *error: object) -> None:
        self.writer.finalize()

    def write(self, row: _Row) -> None:
        self.writer.write(row.record)
        self.count += 1
        self.pending += row.size
        if self.pending > BATCH_CHARACTERS:
            self.writer.write_examples_on_file()
            self.pending = 0


def _copy(source: Path, targets: dict[int, Path], sides: bytearray) -> None:
    """Distribute the rows of an Arrow file to other files by their mark; the source is removed."""
    import pyarrow

    with pyarrow.memory_map(str(source)) as mapped:
        reader = pyarrow.ipc.open_stream(mapped)
        writers = {side: pyarrow.ipc.new_stream(str(path), reader.schema) for side, path in targets.items()}
        start = 0
        for batch in reader:
            marks = pyarrow.array(sides[start : start + len(batch)], pyarrow.uint8())
            start += len(batch)
            for side, writer in writers.items():
                writer.write_batch(batch.filter(pyarrow.compute.equal(marks, side)))
        for writer in writers.values():
            writer.close()
    source.unlink()


def _load(folder: Path) -> Splits:
    from datasets import Dataset

    report = Report.from_dict(json.loads((folder / "report.json").read_text(encoding="utf-8")))
    parts = [Dataset.from_file(str(folder / "train.arrow"))]
    if (folder / "validation.arrow").exists():
        parts.append(Dataset.from_file(str(folder / "validation.arrow")))
    unused = [
        column for column in OPTIONAL[report.form] if all(data.data[column].null_count == len(data) for data in parts)
    ]
    parts = [data.remove_columns(unused) for data in parts]
    logger.info("%s", report)
    return Splits(parts[0], parts[1] if len(parts) > 1 else None, report)
