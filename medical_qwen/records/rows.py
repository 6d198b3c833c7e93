"""From a file to rows: one reader per layout. A row that cannot be read comes out as its BadRecord, in its place."""

import csv
import json
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any, TextIO

from .files import CHUNK, COMPRESSIONS, File, opened
from .problems import BadRecord, names, shown

Row = tuple[str, "dict[str, Any] | BadRecord"]  # where it stands (`file:line`, `file: record n`), what it is
MAX_DOCUMENT = 1 << 30


def read_rows(file: File, text_documents: str = "file") -> Iterator[Row]:
    """Every row of a file, in order. Broken rows are given as BadRecord; a fatal one is the last."""
    empty = True
    for row in _reader(file)(file, text_documents):
        empty = False
        yield row
    if empty:
        yield str(file.path), BadRecord("file", "records", "an empty file")


def _reader(file: File) -> Callable[[File, str], Iterator[Row]]:
    if not file.encoding:
        return _parquet
    first, second = _first_lines(file)
    if file.extension in (".txt", ".csv", ".tsv") and not isinstance(_parsed(first), dict):
        return _documents if file.extension == ".txt" else _table
    if first.startswith("["):
        return _array
    if first.startswith("{"):
        # Pretty-printed objects are the ones whose first line is not whole and whose second is no new object.
        whole = isinstance(_parsed(first), dict) or not second or second.startswith("{")
        return _lines if whole else _objects
    return _no_json if first else _nothing


def _first_lines(file: File) -> tuple[str, str]:
    """The first two lines that are not blank, without their edges. Of a very long line only the beginning."""
    lines: list[str] = []
    with file.text() as stream:
        while len(lines) < 2 and (line := stream.readline(64)):
            array = line.lstrip().startswith("[")  # known by its first character: do not read 1 GB for it
            if not (array or line.endswith("\n")):
                line += stream.readline(16 * CHUNK)
            if line.strip():
                lines.append(line.strip())
            if array:
                break
    return (*lines, "", "")[:2]


def _parsed(line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return None


def _nothing(file: File, _: str) -> Iterator[Row]:
    return iter(())


def _no_json(file: File, _: str) -> Iterator[Row]:
    first = _first_lines(file)[0]
    allowed = "JSON (a line or the file starts with { or [)"
    if not file.extension:
        allowed += ", or one of the extensions .txt .csv .tsv .parquet"
    yield f"{file.path}:1", BadRecord("file", allowed, shown(first), fatal=True)


def _object(value: Any) -> dict[str, Any] | BadRecord:
    return value if isinstance(value, dict) else BadRecord("record", "a JSON object", shown(value))


def _lines(file: File, _: str) -> Iterator[Row]:
    """JSONL. A file of a single object that only holds objects is a table of records by id."""
    with file.text() as stream:
        rows = ((number, line) for number, line in enumerate(stream, 1) if line.strip())
        first = next(rows)
        second = next(rows, None)
        if second is None:
            yield from _single(file, _parsed_line(first[1]))
            return
        for number, line in (first, second):
            yield f"{file.path}:{number}", _parsed_line(line)
        for number, line in rows:
            yield f"{file.path}:{number}", _parsed_line(line)


def _parsed_line(line: str) -> dict[str, Any] | BadRecord:
    try:
        return _object(json.loads(line.strip()))
    except ValueError as error:
        return BadRecord("line", "one JSON object", f"{shown(line.strip())} ({error})")


def _single(file: File, value: dict[str, Any] | BadRecord) -> Iterator[Row]:
    if isinstance(value, dict) and len(value) > 1 and all(isinstance(row, dict) for row in value.values()):
        for key, row in value.items():
            yield f"{file.path}: record {key!r}", row
    else:
        yield f"{file.path}:1", value


def _objects(file: File, _: str) -> Iterator[Row]:
    """Pretty-printed objects, one after the other."""
    with file.text() as stream:
        values = _JsonStream(stream)
        first, line = values.next_value(), values.line
        if not _fatal(first) and not values.peek():
            yield from _single(file, first)
            return
        yield f"{file.path}:{line}", first
        last = first
        while not _fatal(last) and (last := values.next_value()) is not None:
            yield f"{file.path}:{values.line}", last


def _fatal(row: dict[str, Any] | BadRecord) -> bool:
    return isinstance(row, BadRecord) and row.fatal


def _array(file: File, _: str) -> Iterator[Row]:
    """A JSON array, on one line or on many; memory is that of one record."""
    with file.text() as stream:
        values = _JsonStream(stream)
        values.skip("[")
        number = 0
        while (mark := values.peek()) not in ("]", ""):
            number += 1
            row = values.next_value()
            where = f"{file.path}: record {number} (line {values.line})"
            if not _fatal(row):
                mark = values.peek()
                if mark == ",":
                    values.skip(",")
                elif mark != "]":
                    yield where, row
                    row = BadRecord("file", "a comma or ] after a record", shown(mark) if mark else "its end", True)
            yield where, row
            if _fatal(row):
                return
        expected = "a record or ] behind a comma"
        if mark == "]":
            values.skip("]")
            mark, expected = values.peek(), "one array and nothing behind it"
            if not mark:
                return
        where = f"{file.path}: record {number + 1} (line {values.at})"
        yield where, BadRecord("file", expected, shown(mark) if mark else "its end", True)


class _JsonStream:
    """JSON values from a text stream, with no more of it in memory than the value at hand."""

    def __init__(self, stream: TextIO) -> None:
        self.stream, self.buffer, self.start, self.ended = stream, "", 0, False
        self.decoder = json.JSONDecoder()
        self.at = 1  # line of the reading position
        self.line = 1  # line where the last value began

    def _more(self) -> bool:
        chunk = self.stream.read(max(CHUNK, len(self.buffer) - self.start))  # doubling: a long value costs linear time
        self.ended = not chunk
        self.buffer, self.start = self.buffer[self.start :] + chunk, 0
        return not self.ended

    def _advance(self, end: int) -> None:
        self.at += self.buffer.count("\n", self.start, end)
        self.start = end

    def peek(self) -> str:
        """The next character that is not a space, or an empty string at the end."""
        while True:
            space = re.compile(r"\s*").match(self.buffer, self.start)
            self._advance(space.end())
            if self.start < len(self.buffer):
                return self.buffer[self.start]
            if not self._more():
                return ""

    def skip(self, mark: str) -> None:
        assert self.peek() == mark
        self._advance(self.start + 1)

    def next_value(self) -> dict[str, Any] | BadRecord | None:
        """The next value; a fatal BadRecord where the text is no JSON; None at the end."""
        if not self.peek():
            return None
        self.line = self.at
        while True:
            try:
                value, end = self.decoder.raw_decode(self.buffer, self.start)
                self._advance(end)
                return _object(value)
            except ValueError as error:
                cut = error.msg.startswith("Unterminated") or error.pos > len(self.buffer) - 16
                if not (cut and self._more()):
                    line = self.at + self.buffer.count("\n", self.start, error.pos)
                    got = f"{shown(self.buffer[self.start :][:200])} ({error.msg} in line {line})"
                    return BadRecord("record", "a JSON object", f"{got}; the rest cannot be read", fatal=True)


def _table(file: File, _: str) -> Iterator[Row]:
    """CSV or TSV with a header; cells may hold line breaks."""
    csv.field_size_limit(sys.maxsize)
    with file.text(newline="") as stream:
        reader = csv.reader(stream, delimiter="\t" if "\t" in _first_lines(file)[0] else ",", strict=True)
        try:
            header = [name.strip() for name in next(reader, [])]
        except csv.Error as error:
            yield f"{file.path}:1", BadRecord("header", "column names", str(error), fatal=True)
            return
        while True:
            line = reader.line_num + 1
            where = f"{file.path}:{line}"
            try:
                cells = next(reader, None)
            except csv.Error as error:
                swallowed = reader.line_num > line  # rows that nobody could count
                got = f"{error} (a cell runs on to line {reader.line_num})" if swallowed else str(error)
                yield where, BadRecord("row", f"{len(header)} cells", got, fatal=swallowed)
                continue
            if cells is None:
                return
            if not any(cell.strip() for cell in cells):
                continue
            if len(cells) != len(header):
                got = f"{len(cells)}: {shown(cells)}"
                yield where, BadRecord("row", f"{len(header)} cells ({names(header)})", got)
                continue
            yield where, {name: cell for name, cell in zip(header, cells, strict=True) if name}


def _documents(file: File, text_documents: str) -> Iterator[Row]:
    """The whole text as one row, or a row for each block between blank lines."""
    with file.text() as stream:
        if text_documents == "file":
            text = stream.read(MAX_DOCUMENT + 1)
            if len(text) > MAX_DOCUMENT:
                got = "a longer one: --text_documents paragraph makes a document of each paragraph"
                yield str(file.path), BadRecord("text", f"a document of at most {MAX_DOCUMENT} characters", got)
            elif text.strip():
                yield f"{file.path}:1", {"text": text}
            return
        block: list[str] = []
        start = 1
        for number, line in enumerate(stream, 1):
            if line.strip():
                start = start if block else number
                block.append(line)
            elif block:
                yield f"{file.path}:{start}", {"text": "".join(block)}
                block = []
        if block:
            yield f"{file.path}:{start}", {"text": "".join(block)}


def _parquet(file: File, _: str) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with opened(file.path) as stream:
            packed = file.path.suffix.lower() in COMPRESSIONS  # parquet is read from its end: unpack it first
            table = pyarrow.parquet.ParquetFile(pyarrow.BufferReader(stream.read()) if packed else stream)
            for batch in table.iter_batches(batch_size=256):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{file.path}: record {number}", row
    except (pyarrow.ArrowInvalid, OSError) as error:
        yield f"{file.path}: record {number + 1}", BadRecord("file", "parquet", str(error), fatal=True)
