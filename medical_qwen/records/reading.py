"""From paths to records of one standard form: the format of each file is found, every row is checked and converted."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

from .files import find_files, inspect
from .formats import FORMATS, Format
from .forms import FORMS, Record, can_make, make
from .problems import BadRecord, LeftOut, RecordError, names
from .report import FileReport, Report
from .rows import Row, read_rows

SAMPLE = 20  # rows that decide on the format of a file
TOO_BAD = 0.5  # share of bad rows at which a file is the wrong file


@dataclass(frozen=True)
class Source:
    """Something that gives rows: a file, or a loaded data set."""

    name: str
    sha256: str
    encoding: str
    rows: Callable[[], Iterable[Row]]


class Read(NamedTuple):
    record: Record
    where: str  # file:line, or file: record n
    row: dict[str, Any]  # as it stood in the file


def file_sources(paths: Iterable[str | Path], text_documents: str = "file") -> tuple[list[Source], list[str]]:
    """The files under the paths, hashed and with their encoding found, and the files passed over."""
    sources, ignored = [], []
    for path in paths:
        found, other = find_files(path)
        ignored += map(str, other)
        for name in found:
            try:
                file = inspect(name)
            except BadRecord as problem:
                sources.append(Source(str(name), "", "", partial(iter, [(str(name), problem)])))
            else:
                rows = partial(read_rows, file, text_documents)
                sources.append(Source(str(name), file.sha256, file.encoding, rows))
    return sources, ignored


def dataset_source(name: str, config: str | None = None, split: str = "train") -> Source:
    """A data set of the hub, or one written by save_to_disk."""
    import datasets

    saved = any((Path(name) / mark).exists() for mark in ("dataset_dict.json", "state.json"))
    try:
        data = datasets.load_from_disk(name) if saved else datasets.load_dataset(name, config, split=split)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        advice = "if it cannot be loaded as it is, download its files and give them as --train_file_dir"
        raise ValueError(f"--dataset_name {name}: {error} ({advice})") from error
    if isinstance(data, dict):
        if split not in data:
            raise ValueError(f"--dataset_split: {name} has {names(data)}, got {split!r}")
        data = data[split]

    def rows() -> Iterator[Row]:
        for number, row in enumerate(data, 1):
            yield f"{name}: record {number}", row

    return Source(name, data._fingerprint, "", rows)


def choose_format(rows: list[dict[str, Any]], form: str, record_format: str | None = None) -> Format:
    """The format that most of the rows have, among those that `form` can be made of. Raises BadRecord (fatal)."""
    suitable = [known for known in FORMATS.values() if can_make(known.form, form)]
    if record_format is not None:
        return FORMATS[record_format]
    votes: Counter[str] = Counter()
    other: Counter[str] = Counter()
    for row in rows:
        matching = [known for known in FORMATS.values() if known.detect(row)]
        if found := next((known for known in matching if known in suitable), None):
            votes[found.name] += 1
        elif matching:
            other[matching[0].name] += 1
    if votes:
        return FORMATS[votes.most_common(1)[0][0]]
    if other:
        expected = f"{' or '.join(known.name for known in suitable)} records to make `{form}` of"
        raise BadRecord("format", expected, f"{other.most_common(1)[0][0]} records", fatal=True)
    expected = "; ".join(f"{known.columns} [{known.name}]" for known in suitable)
    raise BadRecord("columns", f"one of: {expected}", names(rows[0]), fatal=True)


def check_names(form: str, record_format: str | None) -> None:
    """ValueError for an unknown form or format, or a pair that does not go together."""
    if form not in FORMS:
        raise ValueError(f"form: expected one of {names(FORMS)}, got {form!r}")
    if record_format is None:
        return
    if record_format not in FORMATS:
        raise ValueError(f"--record_format: expected one of {', '.join(FORMATS)}, got {record_format!r}")
    if not can_make(FORMATS[record_format].form, form):
        raise ValueError(f"--record_format {record_format}: {FORMATS[record_format].form} records make no {form}")


def read_source(
    source: Source, form: str, record_format: str | None, report: Report, part: str = "train"
) -> Iterator[Read]:
    """The good records of a source. Everything else is counted in the report."""
    file = FileReport(source.name, part, source.sha256, source.encoding)
    report.files.append(file)
    rows = iter(source.rows())
    head = list(islice(rows, SAMPLE))
    sample = [row for _, row in head if not isinstance(row, BadRecord)]
    known = None
    if sample:
        try:
            known = choose_format(sample, form, record_format)
        except BadRecord as problem:
            file.rows = len(head)
            report.add_problem(file, source.name, problem, problem.reason)
            report.fatal = True
            return
        file.format = known.name
    for where, row in chain(head, rows):
        file.rows += 1
        repairs: Counter[str] = Counter()
        try:
            if isinstance(row, BadRecord):
                raise row
            known = known or choose_format([row], form, record_format)
            records = convert(row, known, form, repairs, named=record_format is not None)
        except BadRecord as problem:
            report.add_problem(file, where, problem, problem.reason)
            report.fatal |= problem.fatal
            continue
        except LeftOut as reason:
            report.left_out[str(reason)] += 1
            continue
        report.repairs.update(repairs)
        file.records += len(records)
        for record in records:
            yield Read(record, where, row)


def convert(row: dict[str, Any], known: Format, form: str, repairs: Counter[str], named: bool = False) -> list[Record]:
    """One row as a record of `form`, a ranking as several pairs. Raises BadRecord, LeftOut.

    A format that the caller named needs no further sign that it is the one.
    """
    drafts = known.convert(row)  # first, for its errors name the field
    if not (named or known.detect(row)):
        raise BadRecord("columns", known.columns, names(row))
    drafts = drafts if isinstance(drafts, list) else [drafts]
    return [make(draft, known.form, form, repairs) for draft in (drafts if form == "preference" else drafts[:1])]


def check(report: Report, on_bad_record: str, advice: str = "") -> None:
    """RecordError when the problems of a finished reading do not allow to go on. `advice` is for records to skip."""
    if not report.bad:
        return
    worst = [file for file in report.files if file.bad > TOO_BAD * file.rows]
    skip = on_bad_record == "skip"
    if report.fatal:
        hint = "Records can be skipped, files that cannot be read cannot." if skip else ""
    elif worst:
        hint = "\n".join(f"{file.path}: {file.bad} of {file.rows} records are bad" for file in worst)
        hint += ": too many to skip." if skip else "."
    elif skip:
        return
    else:
        hint = advice
    raise RecordError(report.problems, report.bad, hint)


def stream(
    paths: str | Path | Iterable[str | Path],
    form: str,
    *,
    record_format: str | None = None,
    text_documents: str = "file",
    on_bad_record: str = "stop",
    report: Report | None = None,
) -> Iterator[Read]:
    """Every good record under the paths with its place and its row; RecordError at the end if others were bad."""
    check_names(form, record_format)
    report = Report(form) if report is None else report
    sources, report.ignored = file_sources([paths] if isinstance(paths, str | Path) else paths, text_documents)
    for source in sources:
        yield from read_source(source, form, record_format, report)
    check(report, on_bad_record)


def read_records(paths: str | Path | Iterable[str | Path], form: str, **options: Any) -> Iterator[tuple[Record, str]]:
    """Records of `form` under the paths, each with its `file:line`. Options are those of `stream`."""
    for read in stream(paths, form, **options):
        yield read.record, read.where
