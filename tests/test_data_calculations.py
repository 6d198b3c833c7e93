"""The calculation problems in data/: made by the script that stands beside them, and right."""

import importlib.util
import json
from datetime import date

import pytest

from medical_qwen.answers import judge_number


@pytest.fixture(scope="module")
def calculations(root):
    spec = importlib.util.spec_from_file_location("make_calculations", root / "data/grpo/make_calculations.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def rows(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_the_committed_files_are_what_the_script_writes(calculations, root, tmp_path):
    for folder in ("grpo", "eval"):
        (tmp_path / folder).mkdir()
    calculations.main(tmp_path)
    for file in ("grpo/calculations.jsonl", "eval/calculations.jsonl"):
        assert (tmp_path / file).read_bytes() == (root / "data" / file).read_bytes()


def test_no_question_is_in_both_files_or_twice(root):
    train, held_out = rows(root / "data/grpo/calculations.jsonl"), rows(root / "data/eval/calculations.jsonl")
    assert (len(train), len(held_out)) == (150, 60)
    assert len({row["question"] for row in train + held_out}) == 210
    assert {row["formula"] for row in train} == {row["formula"] for row in held_out}


@pytest.mark.parametrize(
    ("name", "given", "expected"),
    [  # by hand; creatinine 88.4 μmol/L is 1 mg/dL, and at 0.9 mg/dL both ratios of CKD-EPI are 1
        ("body_surface_area", {"height": 180, "weight": 80}, 2.0),
        ("creatinine_clearance", {"age": 68, "weight": 60, "creatinine": 88.4, "sex": "男性"}, 60.0),
        ("creatinine_clearance", {"age": 68, "weight": 60, "creatinine": 88.4, "sex": "女性"}, 51.0),
        ("egfr_ckd_epi_2021", {"age": 50, "creatinine": 0.9, "sex": "男性"}, 104.04),
        ("egfr_ckd_epi_2021", {"age": 60, "creatinine": 1.4, "sex": "女性"}, 43.07),
        ("pump_rate", {"dose": 5, "weight": 60, "mg": 150, "volume": 50}, 6.0),
        ("corrected_calcium", {"calcium": 2.0, "albumin": 25}, 2.3),
        ("mean_arterial_pressure", {"systolic": 120, "diastolic": 60}, 80.0),
        ("ldl_friedewald", {"total": 6.0, "hdl": 1.0, "tg": 2.2}, 4.0),
        ("parkland_first_hours", {"weight": 70, "area": 40}, 700.0),
        ("drip_rate", {"volume": 600, "hours": 5, "factor": 20}, 40.0),
        ("gestational_week", {"lmp": date(2025, 1, 1), "today": date(2025, 4, 1)}, 12),
    ],
)
def test_formulas_against_values_worked_out_by_hand(calculations, name, given, expected):
    assert calculations.KINDS[name].formula(**given) == pytest.approx(expected, rel=2e-4)


def test_due_date_passes_the_end_of_the_year(calculations):
    assert calculations.KINDS["due_date"].formula(lmp=date(2025, 3, 10)) == date(2025, 12, 15)


def test_the_judge_accepts_each_answer_and_refuses_another(root):
    for row in rows(root / "data/grpo/calculations.jsonl") + rows(root / "data/eval/calculations.jsonl"):
        gold = (row["answer"], row["unit"], row["tolerance"])
        assert judge_number(f"答案：{row['answer']} {row['unit']}", *gold).right, row
        wrong = "2020-01-01" if row["formula"] == "due_date" else f"{float(row['answer']) * 1.1:.3f}"
        assert not judge_number(f"答案：{wrong} {row['unit']}", *gold).right, row
