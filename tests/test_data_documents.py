"""The documents of the retrieval demo, the questions on them, and the training rows with documents."""

import difflib
import hashlib
import json
import pickle
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from medical_qwen.evidence import REFUSAL
from medical_qwen.grounding import CITED, faithfulness, holds
from medical_qwen.records import read_records
from medical_qwen.records.forms import plain_text
from medical_qwen.retrieval import read_document
from medical_qwen.retrieval.chunks import count_tokens, passages


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def documents(root) -> dict[str, list[dict]]:
    """The passages of each document, as a search would find them."""
    folder = root / "data" / "rag" / "documents"
    return {
        path.name: [vars(one) for one in passages(read_document(path), path.name, 256, 32, count_tokens)]
        for path in sorted(folder.iterdir())
    }


def content(path: Path) -> object:
    """What a file says, whatever compresses it."""
    if path.suffix in (".docx", ".xlsx"):
        with zipfile.ZipFile(path) as archive:
            return {name: archive.read(name) for name in archive.namelist()}
    return read_document(path).text


def test_the_script_makes_the_same_documents(root, tmp_path):
    pytest.importorskip("reportlab", reason="makes the PDF: pip install -r requirements-dev.txt")
    script = root / "data" / "rag" / "make_documents.py"
    subprocess.run([sys.executable, script, "--output_dir", tmp_path], check=True, timeout=120)
    shipped = root / "data" / "rag" / "documents"
    assert sorted(path.name for path in shipped.iterdir() if path.suffix not in (".csv", ".jsonl")) == sorted(
        path.name for path in tmp_path.iterdir()
    )
    for path in tmp_path.iterdir():
        assert content(path) == content(shipped / path.name), path.name
    assert sum(path.stat().st_size for path in shipped.iterdir()) < 300_000


def test_every_answer_stands_in_one_place(root, documents):
    questions = rows(root / "data" / "rag" / "questions.jsonl")
    assert len(questions) >= 60 and len({row["instruction"] for row in questions}) == len(questions)
    for row in questions:
        assert (row["output"] == REFUSAL) == (not row["gold"])
        for item in row["gold"]:
            found = [one for one in documents[item["file"]] if holds(one, item)]
            assert 1 <= len(found) <= 2, item  # neighbours may share a sentence
    kinds = {Path(item["file"]).suffix for row in questions for item in row["gold"]}
    assert kinds == {".pdf", ".docx", ".md", ".xlsx", ".html", ".csv", ".jsonl", ".txt"}
    assert sum(bool(row.get("history")) for row in questions) >= 12


def test_questions_are_conversations(root):
    records = list(read_records(root / "data" / "rag" / "questions.jsonl", "prompt"))
    assert {len(record["prompt"]) for record, _ in records} == {1, 3}


def test_training_rows_answer_from_their_documents(root):
    found = rows(root / "data" / "sft" / "medical_zh_documents.jsonl")
    answers = [row["conversations"][-1]["value"] for row in found]
    assert len(found) >= 24 and 5 <= answers.count(REFUSAL) <= len(found) / 3
    for row, answer in zip(found, answers, strict=True):
        if answer == REFUSAL:
            continue
        texts = [one["text"] for one in row["documents"]]
        cited = {int(number) for number in CITED.findall(answer)}
        assert cited and cited <= set(range(1, len(texts) + 1)), answer
        assert faithfulness(answer, texts) == 1 or "-2.7" in answer, answer  # one compares the user's own number
    first = [CITED.search(answer)[1] for answer in answers if answer != REFUSAL]
    assert first.count("2") / len(first) > 0.2  # the right passage is not always the first


def test_training_rows_ask_nothing_that_is_held_out(root):
    held_out = [plain_text(row["question"]) for path in (root / "data" / "eval").glob("*.jsonl")
                for row in rows(path) if "question" in row]  # fmt: skip
    demo = [plain_text(row["instruction"]) for row in rows(root / "data" / "rag" / "questions.jsonl")]
    for path in (root / "data" / "sft").glob("*.jsonl"):
        questions = [turn["value"] for row in rows(path) for turn in row["conversations"] if turn["from"] == "human"]
        for asked in map(plain_text, questions):
            for other in [*held_out, *demo]:
                likeness = difflib.SequenceMatcher(None, asked, other, autojunk=False)
                assert likeness.real_quick_ratio() < 0.7 or likeness.quick_ratio() < 0.7 or likeness.ratio() < 0.7, (
                    asked
                )


def test_the_counts_in_the_readme(root):
    text = (root / "data" / "README.md").read_text(encoding="utf-8")
    for path in ("sft/medical_zh_documents.jsonl", "rag/questions.jsonl"):
        [line] = [line for line in text.splitlines() if line.startswith(f"| `{path}`")]
        assert int(line.split("|")[2]) == len(rows(root / "data" / path))


# ---- tools/build_cmekg.py


@pytest.fixture
def build_cmekg(root, monkeypatch):
    monkeypatch.syspath_prepend(str(root / "tools"))
    import build_cmekg

    return build_cmekg


def test_a_disease_in_sentences(build_cmekg):
    relations = {
        "就诊科室": ["呼吸科"],
        "常见症状": ["咳嗽", "咳嗽", " 发热。"],
        "临床症状及体征": ["湿啰音"],
        "病因": ["病毒"],
        "检查": [f"检查{n}" for n in range(30)],
        "别称": ["肺部感染"],
        "相关药物": ["某药"],
    }
    text = build_cmekg.passage(relations)
    assert text.startswith("又称肺部感染。就诊科室：呼吸科。病因：病毒。症状和体征：咳嗽、发热、湿啰音。检查：检查0、")
    assert "检查23等。" in text and "某药" not in text
    assert build_cmekg.passage({"就诊科室": ["呼吸科"], "常见症状": ["咳嗽"]}) is None


def test_another_archive_is_refused(build_cmekg, tmp_path):
    path = tmp_path / "other.tar.gz"
    with pytest.raises(FileNotFoundError, match="--source"):
        build_cmekg.load(path)
    path.write_bytes(b"x")
    with pytest.raises(ValueError, match=hashlib.sha256(b"x").hexdigest()):
        build_cmekg.load(path)


def test_a_pickle_that_would_run_code_is_refused(build_cmekg, tmp_path):
    class Bad:
        def __reduce__(self):
            return print, ("code ran",)

    path = tmp_path / "bad.pkl"
    path.write_bytes(pickle.dumps({"a": Bad()}))
    with path.open("rb") as file, pytest.raises(pickle.UnpicklingError, match="plain data"):
        build_cmekg.PlainData(file).load()
    assert re.fullmatch(r"[0-9a-f]{64}", build_cmekg.SHA256)
