"""tools/calibrate_support.py on the documents and questions that come with the project."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))
import calibrate_support


def test_figures_of_a_separable_and_of_a_hopeless_support():
    yes, no = np.array([0.9, 0.8, 0.7, 0.2]), np.array([0.1, 0.3, 0.4])
    assert calibrate_support.roc_auc(yes, no) == pytest.approx(10 / 12)
    threshold, accuracy = calibrate_support.best_threshold(yes, no)
    assert threshold == pytest.approx(0.55) and accuracy == pytest.approx((3 / 4 + 1) / 2)
    assert calibrate_support.roc_auc(no, no) == 0.5


def test_our_questions_by_words(root, capsys):
    """The thresholds in use do on our questions what is said of them."""
    found = calibrate_support.main(["--corpus", str(root / "data/rag/documents"), "--questions",
                                    str(root / "data/rag/questions.jsonl")])["by words alone"]  # fmt: skip
    told = capsys.readouterr().out
    assert "by words alone" in told and "follow-up questions, with the one before" in told
    assert found["roc_auc"] > 0.8
    assert found["in use"]["answered"] == pytest.approx(0.81, abs=0.03)
    assert found["in use"]["refused"] == pytest.approx(0.93, abs=0.04)


def test_our_questions_by_meaning(root, shared, tmp_path):
    model, out = shared / "models/bge-small-zh-v1.5", tmp_path / "figures.json"
    calibrate_support.main(["--corpus", str(root / "data/rag/documents"), "--questions",
                            str(root / "data/rag/questions.jsonl"), "--embedding_model", str(model),
                            "--output_file", str(out)])  # fmt: skip
    found = json.loads(out.read_text())[model.name]
    assert found["in use"]["answered"] == pytest.approx(0.94, abs=0.03)
    assert found["in use"]["refused"] == pytest.approx(0.96, abs=0.04)


@pytest.mark.parametrize("gold", [None, [], [{"file": "a.md", "quote": "一"}]], ids=["absent", "none", "all"])
def test_questions_that_cannot_be_told_apart_are_refused(root, tmp_path, gold):
    more = {} if gold is None else {"gold": gold}
    rows = [{"instruction": f"第{i}问？", "output": "答。"} | more for i in range(4)]
    file = tmp_path / "questions.jsonl"
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    command = ["tools/calibrate_support.py", "--corpus", "data/rag/documents", "--questions", str(file)]
    done = subprocess.run([sys.executable, *command], cwd=root, capture_output=True, text=True)
    assert done.returncode == 2 and "expected `gold` in every row, and at least two each" in done.stderr
