"""Readers: layouts, encodings, compression, and what is said about files that cannot be read."""

import gzip
import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from medical_qwen.records import RecordError, Report, read_records, stream
from medical_qwen.records.files import CHUNK

ROWS = [{"question": f"第{n}个问题？", "answer": f"第 {n} 个回答，\n分两行。"} for n in range(1, 6)]
PAIRS = [(row["question"], row["answer"]) for row in ROWS]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
CSV = "question,answer\n" + "".join(f'{q},"{a}"\n' for q, a in PAIRS)


def pairs(path: Path, **options) -> list[tuple[str, str]]:
    return [(record["question"], record["answer"]) for record, _ in read_records(path, "qa", **options)]


def places(path: Path, form: str = "qa", **options) -> list[str]:
    return [where.removeprefix(str(path)) for _, where in read_records(path, form, **options)]


def problems(path: Path, form: str = "qa", **options) -> list[str]:
    """The lines of the error, without the folder."""
    with pytest.raises(RecordError) as caught:
        list(read_records(path, form, **options))
    return [line.replace(str(path), path.name) for line in caught.value.problems]


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize(
    ("name", "content", "where"),
    [
        ("a.jsonl", LINES, [":1", ":2", ":3", ":4", ":5"]),
        ("named_wrongly.json", LINES, [":1", ":2", ":3", ":4", ":5"]),
        ("corpus.txt", LINES, [":1", ":2", ":3", ":4", ":5"]),
        ("no_extension", LINES, [":1", ":2", ":3", ":4", ":5"]),
        ("blank_lines.jsonl", "\n\n" + LINES.replace("\n", "\n\n"), [":3", ":5", ":7", ":9", ":11"]),
        ("windows.jsonl", LINES.replace("\n", "\r\n"), [":1", ":2", ":3", ":4", ":5"]),
        ("mark.jsonl", b"\xef\xbb\xbf" + LINES.encode(), [":1", ":2", ":3", ":4", ":5"]),
        ("one_line.json", json.dumps(ROWS), [f": record {n} (line 1)" for n in range(1, 6)]),
        ("indented.json", json.dumps(ROWS, indent=2), [f": record {n} (line {4 * n - 2})" for n in range(1, 6)]),
        (
            "array.jsonl",
            b"\xef\xbb\xbf \n" + json.dumps(ROWS).encode(),
            [f": record {n} (line 2)" for n in range(1, 6)],
        ),
        ("pretty.json", "\n".join(json.dumps(row, indent=1) for row in ROWS), [":1", ":5", ":9", ":13", ":17"]),
        (
            "by_id.json",
            json.dumps({f"id{n}": row for n, row in enumerate(ROWS)}),
            [f": record 'id{n}'" for n in range(5)],
        ),
        (
            "by_id_pretty.json",
            json.dumps({f"id{n}": row for n, row in enumerate(ROWS)}, indent=2),
            [f": record 'id{n}'" for n in range(5)],
        ),
        ("cells.csv", CSV, [":2", ":4", ":6", ":8", ":10"]),
        ("cells.tsv", CSV.replace(',"', '\t"').replace("question,", "question\t"), [":2", ":4", ":6", ":8", ":10"]),
        ("chinese.csv", CSV.encode("gb18030"), [":2", ":4", ":6", ":8", ":10"]),
        ("excel.csv", CSV.encode("utf-8-sig"), [":2", ":4", ":6", ":8", ":10"]),
        ("unicode.csv", CSV.encode("utf-16"), [":2", ":4", ":6", ":8", ":10"]),
        ("a.jsonl.gz", gzip.compress(LINES.encode()), [":1", ":2", ":3", ":4", ":5"]),
        ("a.csv.zst", zstandard.compress(CSV.encode("gb18030")), [":2", ":4", ":6", ":8", ":10"]),
        (
            "named_wrongly.jsonl",
            zstandard.compress(json.dumps(ROWS).encode()),
            [f": record {n} (line 1)" for n in range(1, 6)],
        ),
    ],
)
def test_a_layout_is_recognised_by_its_content_and_every_record_has_its_place(tmp_path, name, content, where):
    path = write(tmp_path / name, content)
    assert pairs(path) == PAIRS
    assert places(path) == where


def test_parquet_plain_and_compressed_again(tmp_path):
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    assert pairs(path) == PAIRS
    assert places(path) == [f": record {n}" for n in range(1, 6)]
    again = write(tmp_path / "b.parquet.gz", gzip.compress(path.read_bytes()))
    assert pairs(again) == PAIRS
    renamed = write(tmp_path / "c.json", path.read_bytes())
    assert pairs(renamed) == PAIRS


def test_one_object_is_one_record(tmp_path):
    assert pairs(write(tmp_path / "one_line.json", json.dumps(ROWS[0]))) == PAIRS[:1]
    assert pairs(write(tmp_path / "pretty.json", json.dumps(ROWS[0], indent=4))) == PAIRS[:1]


def test_records_longer_than_the_read_buffer(tmp_path):
    rows = [{"question": f"q{n}", "answer": "长" * length} for n, length in enumerate((5, 3 * CHUNK, 7, CHUNK + 1, 2))]
    path = write(tmp_path / "long.json", json.dumps(rows, ensure_ascii=False))
    assert pairs(path) == [(row["question"], row["answer"]) for row in rows]


def test_an_array_on_one_line_is_read_piece_by_piece(tmp_path):
    import tracemalloc

    row = json.dumps({"question": "q", "answer": "x" * 1000})
    path = write(tmp_path / "big.json", "[" + ",".join([row] * 10_000) + "]")
    list(read_records(write(tmp_path / "small.json", f"[{row}]"), "qa"))  # imports
    tracemalloc.start()
    count = sum(1 for _ in read_records(path, "qa"))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == 10_000
    assert path.stat().st_size > 10e6
    assert peak < 6e6


def test_txt_documents(tmp_path):
    path = write(tmp_path / "a.txt", "\n第一段\n还是第一段\n\n \n第二段\n")
    assert [record["text"] for record, _ in read_records(path, "text")] == ["第一段\n还是第一段\n\n \n第二段"]
    found = [(record["text"], where) for record, where in read_records(path, "text", text_documents="paragraph")]
    assert found == [("第一段\n还是第一段", f"{path}:2"), ("第二段", f"{path}:6")]


def test_a_text_that_begins_with_a_bracket_is_a_text(tmp_path):
    path = write(tmp_path / "a.txt", "[1] 参考文献\n{这不是 JSON}\n")
    assert [record["text"] for record, _ in read_records(path, "text")] == ["[1] 参考文献\n{这不是 JSON}"]


def test_a_folder_is_read_recursively_in_order_without_hidden_files(tmp_path):
    for name in ("b.jsonl", "a/z.jsonl", ".hidden.jsonl", ".git/x.jsonl", "README.md", "a/notes.docx"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write(tmp_path / name, LINES)
    report = Report("qa")
    where = [read.where.rpartition(":")[0] for read in stream(tmp_path, "qa", report=report)]
    assert list(dict.fromkeys(where)) == [str(tmp_path / "a/z.jsonl"), str(tmp_path / "b.jsonl")]
    assert sorted(report.ignored) == [str(tmp_path / "README.md"), str(tmp_path / "a/notes.docx")]
    assert "README.md" in str(report)


def test_missing_and_empty_places(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere does not exist"):
        list(read_records(tmp_path / "nowhere", "qa"))
    with pytest.raises(FileNotFoundError, match=r"no data files \(\.txt .*it is empty"):
        list(read_records(tmp_path, "qa"))
    write(tmp_path / "slides.pdf", "x")
    with pytest.raises(FileNotFoundError, match=r"it holds slides\.pdf"):
        list(read_records(tmp_path, "qa"))
    for empty in ("", "\n \n", "[]"):
        assert problems(write(tmp_path / "e.json", empty)) == ["e.json: file: expected records, got an empty file"]


def test_a_broken_line_17(tmp_path):
    lines = [json.dumps({"question": f"q{n}", "answer": "a"}) for n in range(1, 31)]
    lines[16] = lines[16][:-1]
    path = write(tmp_path / "a.jsonl", "\n".join(lines))
    (problem,) = problems(path)
    assert problem.startswith("a.jsonl:17: line: expected one JSON object, got ")
    assert len(places(path, on_bad_record="skip")) == 29


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("a.jsonl", LINES + "[1]\n" + LINES, "a.jsonl:6: record: expected a JSON object, got list [1]"),
        (
            "a.csv",
            CSV + "one cell\n" + CSV.partition("\n")[2],
            "a.csv:12: row: expected 2 cells (question, answer), got 1",
        ),
        ("a.csv", CSV + 'q,"open\n', "a.csv:12: row: expected 2 cells, got unexpected end of data"),
    ],
)
def test_a_broken_row_is_named_and_the_others_are_read(tmp_path, name, content, problem):
    path = write(tmp_path / name, content)
    (found,) = problems(path)
    assert found.startswith(problem)
    assert len(places(path, on_bad_record="skip")) in (5, 10)


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("a.jsonl", bytes(range(256)) * 9, "a.jsonl: file: expected text or parquet, got a binary file"),
        (
            "a.txt",
            b"\x80\x81\xff\xfe garbage \xff\xff",
            "a.txt: file: expected text in UTF-8 or GB18030, or parquet, got",
        ),
        (
            "windows.txt",
            "The patient doesn’t smoke, and didn’t sleep. ".encode("cp1252") * 9,  # also valid GB18030, as nonsense
            "windows.txt: file: expected text in UTF-8 or GB18030",
        ),
        (
            "latin.txt",
            "Le patient a été opéré à l'hôpital. ".encode("latin-1") * 9,
            "latin.txt: file: expected text in UTF-8",
        ),
        (
            "a.jsonl",
            LINES.encode() + b"\xff\xfe\n",
            f"a.jsonl: file: expected UTF-8 text, got a byte that is not UTF-8 at offset {len(LINES.encode())}",
        ),
        ("a.json", json.dumps(ROWS)[:-30], "a.json: record 5 (line 1): record: expected a JSON object, got "),
        (
            "a.json",
            json.dumps(ROWS)[:-1],
            "a.json: record 5 (line 1): file: expected a comma or ] after a record, got its end",
        ),
        (
            "a.json",
            json.dumps(ROWS)[:-1] + ",\n",
            "a.json: record 6 (line 2): file: expected a record or ] behind a comma, got its end",
        ),
        (
            "a.json",
            json.dumps(ROWS) * 2,
            "a.json: record 6 (line 1): file: expected one array and nothing behind it, got '['",
        ),
        ("a.json", json.dumps(ROWS[0], indent=1)[:-2], "a.json:1: record: expected a JSON object, got "),
        (
            "a.json",
            json.dumps(ROWS, indent=1).replace("},", "}"),
            "a.json: record 1 (line 2): file: expected a comma or ]",
        ),
        ("a.json", "hello", "a.json:1: file: expected JSON (a line or the file starts with { or [), got 'hello'"),
        (
            "a.dat",
            "hello",
            "a.dat:1: file: expected JSON (a line or the file starts with { or [), or one of the extensions",
        ),
        (
            "a.jsonl.gz",
            gzip.compress(LINES.encode())[:-20],
            "a.jsonl.gz: file: expected readable, whole content, got broken gzip",
        ),
        ("a.parquet", b"PAR1 and no more", "a.parquet: record 1: file: expected parquet, got "),
    ],
)
def test_a_file_that_cannot_be_read_stops_even_when_records_may_be_skipped(tmp_path, name, content, problem):
    path = write(tmp_path / name, content)
    for on_bad_record in ("stop", "skip"):
        found = problems(path, "text" if path.suffix == ".txt" else "qa", on_bad_record=on_bad_record)
        assert len(found) == 1
        assert found[0].startswith(problem)


def test_the_first_twenty_problems_and_the_count(tmp_path):
    path = write(tmp_path / "a.jsonl", '{"question": "q"}\n' * 33)
    with pytest.raises(RecordError) as caught:
        list(read_records(path, "qa"))
    lines = str(caught.value).splitlines()
    assert lines[0] == "33 problems in the data:"
    assert lines[20] == f"  {path}:20: answer: expected text, got no such field"
    assert lines[21] == "  … and 13 more"


def test_a_cell_that_is_never_closed_ends_the_file(tmp_path):
    lines = ["question\tanswer", *(f"q{n}\ta{n}" for n in range(10)), 'q\t"a', *(f"p{n}\tb{n}" for n in range(50))]
    file = tmp_path / "table.tsv"
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    with pytest.raises(RecordError, match=r"table.tsv:12: .*a cell runs on to line 62"):
        list(stream(file, "qa", on_bad_record="skip"))
