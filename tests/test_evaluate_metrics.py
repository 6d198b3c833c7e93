"""The scoring script: files in, table and files out, and what it says about files that cannot be scored."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import evaluate_metrics
from medical_qwen import metrics


def jsonl(path: Path, rows: list) -> str:
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


REFERENCES = ["多喝水，注意休息。", "立即就医。", "每日两次，饭后服用。"]


@pytest.fixture
def answers(tmp_path) -> str:
    rows = [{"question": "?", "reference": text, "prediction": text} for text in REFERENCES]
    return jsonl(tmp_path / "answers.jsonl", rows)


def test_identical_answers_have_100_everywhere(answers, capsys):
    report = evaluate_metrics.main(["--data_file", answers])["answers"]
    assert (report["rows"], report["empty_predictions"]) == (3, 0)
    for level in ("character", "word"):
        for kind in ("corpus", "mean"):
            for score in metrics.SCORES:
                entry = report[level][kind][score]
                assert (entry["value"], entry["low"], entry["high"]) == pytest.approx((100, 100, 100))
    shown = capsys.readouterr().out
    assert "character corpus BLEU-4   100.00 [100.00, 100.00]" in shown and "word mean ROUGE-L" in shown


def test_files_hold_the_scores_of_the_metrics_module(answers, tmp_path):
    other = [{"answer": text, "prediction": "多休息"} for text in REFERENCES[:2]] + [
        {"label": REFERENCES[2], "prediction": None}
    ]
    other = jsonl(tmp_path / "other.jsonl", other)
    out, rows = tmp_path / "new" / "scores.json", tmp_path / "rows.jsonl"
    arguments = ["--data_file", answers, other, "--names", "gold", "short", "--seed", "3", "--bootstrap_samples", "50"]
    returned = evaluate_metrics.main([*arguments, "--output_file", str(out), "--per_row_file", str(rows)])
    report = json.loads(out.read_text(encoding="utf-8"))
    assert report == {"task": "qa", "systems": returned}

    scored = metrics.score_texts(["多休息", "多休息", ""], [[text] for text in REFERENCES], "word")
    short = report["systems"]["short"]
    assert short["empty_predictions"] == 1
    assert short["word"]["mean"]["ROUGE-L"]["value"] == pytest.approx(scored.mean[6])
    assert short["word"]["corpus"]["BLEU-1"]["value"] == pytest.approx(scored.corpus[0])
    assert short["word"]["mean"]["ROUGE-L"]["difference"]["value"] == pytest.approx(scored.mean[6] - 100)
    lines = [json.loads(line) for line in rows.read_text(encoding="utf-8").splitlines()]
    assert [line["system"] for line in lines] == ["gold"] * 3 + ["short"] * 3
    assert lines[3]["word"]["ROUGE-L"] == pytest.approx(scored.rows[0][6]) and lines[5]["prediction"] == ""
    assert lines[4]["where"] == f"{other}:2" and lines[4]["references"] == [REFERENCES[1]]
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} == {
        "answers.jsonl",
        "other.jsonl",
        "scores.json",
        "rows.jsonl",
    }


def test_fields_can_be_named_and_references_can_be_many(tmp_path):
    row = {"out": "多休息", "gold": ["静养", "多休息"], "reference": "别的", "prediction": "别的"}
    path = jsonl(tmp_path / "a.jsonl", [row])
    report = evaluate_metrics.main(["--data_file", path, "--prediction_field", "out", "--reference_field", "gold"])
    assert report["a"]["character"]["mean"]["BLEU-4"]["value"] == pytest.approx(100)


EXAM = [
    {"options": {"A": "肝", "B": "胃", "C": "肾"}, "answer": "A", "prediction": "<think>B？</think>答案：A"},
    {"options": {"A": "肝", "B": "胃", "C": "肾"}, "answer": "AC", "prediction": "选C、A"},
    {"options": {"A": "肝", "B": "胃", "C": "肾"}, "answer": "AC", "prediction": "选A"},
    {"options": {"A": "肝", "B": "胃", "C": "肾"}, "answer": "B", "prediction": "不清楚"},
]


def test_exam_accuracy(tmp_path, capsys):
    path, rows = jsonl(tmp_path / "exam.jsonl", EXAM), tmp_path / "rows.jsonl"
    report = evaluate_metrics.main(["--task", "exam", "--data_file", path, "--per_row_file", str(rows)])["exam"]
    low, high = metrics.wilson_interval(2, 4)
    assert report == {
        "rows": 4,
        "empty_predictions": 0,
        "unreadable": 1,
        "accuracy": {"value": 50.0, "low": pytest.approx(100 * low), "high": pytest.approx(100 * high)},
    }
    read = [json.loads(line) for line in rows.read_text(encoding="utf-8").splitlines()]
    assert [(row["read"], row["right"]) for row in read] == [("A", True), ("AC", True), ("A", False), (None, False)]
    assert "50.00 [15.00, 85.00]" in capsys.readouterr().out


def test_several_letters_may_be_a_list_and_several_numbers_are_refused(tmp_path):
    options = dict.fromkeys("ABC", "肝") | {"B": "肺", "C": "肾"}
    rows = [{"answer": ["A", "C"], "prediction": f"答案：{said}", "options": options} for said in ("AC", "A")]
    report = evaluate_metrics.main(["--task", "exam", "--data_file", jsonl(tmp_path / "exam.jsonl", rows)])
    assert report["exam"]["accuracy"]["value"] == 50
    two = jsonl(tmp_path / "two.jsonl", [{"answer": ["3", "4"], "prediction": "3"}])
    with pytest.raises(ValueError, match=r"two\.jsonl:1: answer: expected one, got 2"):
        evaluate_metrics.main(["--task", "calculation", "--data_file", two])


def test_calculation_accuracy_of_two_systems(tmp_path):
    gold = [
        {"answer": 250, "unit": "mg", "tolerance": 0.01},
        {"answer": "62.5", "unit": "mL/h"},
        {"answer": "2024-10-08"},
        {"answer": 22.9, "tolerance": 0.01},
    ]
    right = ["答案：0.25 g", "每小时 62.5 毫升", "预产期是2024年10月8日。", "BMI = 70/1.75² ≈ 22.86"]
    wrong = ["答案：25 mg", "", "2024年10月9日", "BMI 为 24"]
    good, bad = (
        jsonl(tmp_path / name, [row | {"prediction": text} for row, text in zip(gold, said, strict=True)])
        for name, said in (("good.jsonl", right), ("bad.jsonl", wrong))
    )
    report = evaluate_metrics.main(["--task", "calculation", "--data_file", bad, good])
    assert report["bad"]["accuracy"]["value"] == 0 and report["bad"]["empty_predictions"] == 1
    assert report["good"]["accuracy"]["value"] == 100
    assert report["good"]["accuracy"]["difference"] == {"value": 100, "low": 100, "high": 100}


GOOD = {"reference": "a", "prediction": "a"}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([GOOD] * 16 + ['{"reference": "a", '], r"bad.jsonl:17: expected a JSON object, got '\{\"reference\""),
        ([GOOD, ["a"]], r"bad.jsonl:2: expected a JSON object, got \"\['a'\]\""),
        ([{"prediction": "a"}], "bad.jsonl:1: reference or output or answer or label: .* got fields prediction"),
        ([GOOD, {"reference": "a", "said": "b"}], "bad.jsonl:2: prediction: .* got fields reference, said"),
        ([{"reference": "a", "prediction": 3}], "bad.jsonl:1: prediction: expected the predicted text, got 3"),
        ([{"reference": {"x": 1}, "prediction": "a"}], "bad.jsonl:1: reference: expected text or a list of texts"),
        ([{"reference": "<think>x</think>", "prediction": "a"}], "bad.jsonl:1: reference: expected text, got nothing"),
        ([{"reference": ["a", " "], "prediction": "a"}], "bad.jsonl:1: reference: expected text, got nothing"),
        ([""], "bad.jsonl: .* got an empty file"),
        ([{"prediction": "a"}] * 30, r"(?s)bad.jsonl:1: .*bad.jsonl:20: .*\.\.\. and 10 more$"),
    ],
)
def test_bad_files_are_told_by_line_and_write_nothing(rows, message, tmp_path):
    path, out = jsonl(tmp_path / "bad.jsonl", rows), tmp_path / "scores.json"
    with pytest.raises(ValueError, match=message):
        evaluate_metrics.main(["--data_file", path, "--output_file", str(out)])
    assert not out.exists()


@pytest.mark.parametrize(
    ("task", "row", "message"),
    [
        ("exam", {"answer": "肝", "prediction": "A", "options": {"A": "肝"}}, "x.jsonl:1: answer: expected letters"),
        ("exam", {"answer": "D", "prediction": "A", "options": {"A": "肝"}}, "x.jsonl:1: answer: expected letters"),
        ("exam", {"answer": "A", "prediction": "A", "options": 7}, "x.jsonl:1: options: expected"),
        ("calculation", {"answer": "适量", "prediction": "3"}, "x.jsonl:1: answer: expected a number or a date"),
        ("calculation", {"answer": 3, "prediction": "3", "tolerance": "1%"}, "x.jsonl:1: tolerance: expected"),
    ],
)
def test_gold_answers_that_cannot_be_judged_are_refused(task, row, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        evaluate_metrics.main(["--task", task, "--data_file", jsonl(tmp_path / "x.jsonl", [row])])


def test_systems_must_have_answered_the_same_rows(answers, tmp_path):
    shorter = jsonl(tmp_path / "shorter.jsonl", [{"reference": REFERENCES[0], "prediction": "x"}])
    with pytest.raises(ValueError, match=r"shorter.jsonl:1 is row 1, the last: expected 3"):
        evaluate_metrics.main(["--data_file", answers, shorter])
    swapped = jsonl(tmp_path / "swapped.jsonl", [{"reference": text, "prediction": "x"} for text in REFERENCES[::-1]])
    with pytest.raises(ValueError, match=r"swapped.jsonl:1: the reference is not that of .*answers.jsonl:1"):
        evaluate_metrics.main(["--data_file", answers, swapped])


def run(*flags: str, root: Path) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "evaluate_metrics.py", *flags], cwd=root, capture_output=True, text=True)


def test_the_command_line_fails_with_a_message(root, answers, tmp_path):
    binary = tmp_path / "binary.jsonl"
    binary.write_bytes(bytes(range(128, 256)))
    for flags, message in [
        (["--data_file", str(tmp_path / "missing.jsonl")], "error: "),
        (["--data_file", str(binary)], "expected JSON lines in UTF-8"),
        (["--data_file", answers, "--smooth"], "unrecognized arguments: --smooth"),
        (["--data_file", answers, "--names", "a", "b"], "--names: expected 1 different names, got a b"),
        (["--data_file", answers, answers], "--names: expected 2 different names"),
        (["--data_file", answers, "--bootstrap_samples", "0"], "--bootstrap_samples: expected at least 1"),
        ([], "--data_file"),
    ]:
        done = run(*flags, root=root)
        assert done.returncode != 0 and message in done.stderr and "Traceback" not in done.stderr


def test_scoring_needs_no_model_library(root, answers):
    code = f"import sys, evaluate_metrics; evaluate_metrics.main(['--data_file', {answers!r}]); " + (
        "sys.exit(' '.join({'torch', 'transformers'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def model(shared) -> str:
    folder = shared / "models" / "minimind2-small"
    if not folder.is_dir():
        pytest.skip("../shared/models/minimind2-small is not on this machine")
    return str(folder)


def test_questions_without_an_answer_are_found_before_a_model_answers_them(tmp_path):
    questions = jsonl(tmp_path / "asked.jsonl", [{"question": "感冒了怎么办？"}])
    with pytest.raises(ValueError, match="expected a reference"):
        evaluate_metrics.main(["--base_model", "./no_such_model", "--data_file", questions])


@pytest.mark.parametrize("task", ["exam", "calculation"])
def test_gold_of_another_task_is_found_before_a_model_answers(tmp_path, task):
    questions = jsonl(tmp_path / "asked.jsonl", [{"question": "感冒了怎么办？", "answer": "多休息"}])
    with pytest.raises(ValueError, match="answer: expected"):
        evaluate_metrics.main(["--base_model", "./no_such_model", "--task", task, "--data_file", questions])


BOTH = {"A": "胃", "B": "肝"}


@pytest.mark.parametrize("options", [{"options": BOTH}, {"option": BOTH}, {"choices": ["胃", "肝"]}, BOTH])
def test_options_in_any_layout_are_known(tmp_path, options):
    row = {"question": "最大的消化腺是？", "answer": "B", "prediction": "答案是肝"} | options
    report = evaluate_metrics.main(["--task", "exam", "--data_file", jsonl(tmp_path / "said.jsonl", [row])])
    assert report["said"]["accuracy"]["value"] == 100


def test_a_model_answers_first(model, tmp_path):
    exam = {"question": "最大的消化腺是？", "options": {"A": "胃", "B": "肝"}, "answer": "B"}
    conversation = {
        "messages": [
            {"role": "user", "content": "感冒了怎么办？"},
            {"role": "assistant", "content": "多喝水，多休息。"},
        ]
    }
    predictions = tmp_path / "said.jsonl"
    flags = ["--base_model", model, "--only_cpu", "--max_new_tokens", "8", "--prediction_file", str(predictions)]

    questions = jsonl(tmp_path / "exam.jsonl", [exam, exam | {"answer": "A"}])
    report = evaluate_metrics.main([*flags, "--task", "exam", "--data_file", questions])["exam"]
    said = [json.loads(line) for line in predictions.read_text(encoding="utf-8").splitlines()]
    assert [line["answer"] for line in said] == ["B", "A"] and said[0]["prediction"] == said[1]["prediction"] != ""
    scored = evaluate_metrics.main(["--task", "exam", "--data_file", str(predictions), "--names", "exam"])["exam"]
    assert report == scored and report["rows"] == 2

    questions = jsonl(tmp_path / "talk.jsonl", [conversation])
    report = evaluate_metrics.main([*flags, "--data_file", questions])["talk"]
    said = json.loads(predictions.read_text(encoding="utf-8"))["prediction"]
    expected = metrics.score_texts([said], [["多喝水，多休息。"]], "character").mean
    assert report["character"]["mean"]["BLEU-1"]["value"] == pytest.approx(expected[0])


def test_flags_of_a_model_need_a_model(answers, capsys):
    for flags, message in [
        (["--max_new_tokens", "3", "--only_cpu"], "--only_cpu, --max_new_tokens: of use with --base_model only"),
        (["--base_model", "m", "--prediction_field", "said"], "--prediction_field: of use without --base_model only"),
        (["--base_model", "m", "--data_file", answers, answers], "--base_model answers one --data_file, got 2"),
    ]:
        with pytest.raises(SystemExit) as stopped:
            evaluate_metrics.main(["--data_file", answers, *flags])
        assert stopped.value.code == 2 and message in capsys.readouterr().err
