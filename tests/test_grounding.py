"""Retrieval scores: held against numbers worked out by hand, and nDCG against scikit-learn's."""

import json
import math
import random

import numpy as np
import pytest
from sklearn.metrics import ndcg_score

import evaluate_metrics
from medical_qwen.grounding import (
    evaluate_grounding,
    faithfulness,
    first_ranks,
    holds,
    judge,
    ndcg,
    recall,
    reciprocal_rank,
    supported,
)


def passage(text: str, file: str = "a.pdf", page: int | None = 1) -> dict:
    return {"text": text, "file": file, "page": page}


def test_what_holds_a_gold_item():
    found = passage("成人血压≥\n140/90 mmHg。")
    assert holds(found, {"file": "a.pdf", "page": 1, "quote": "≥140/90mmHg"})
    assert holds(found, {"file": "a.pdf"})
    assert not holds(found, {"file": "a.pdf", "page": 2})
    assert not holds(found, {"file": "b.pdf", "quote": "140"})
    assert not holds(found, {"file": "a.pdf", "quote": "130"})


def test_scores_worked_out_by_hand():
    passages = [passage(text) for text in ("甲", "乙", "丙", "丁", "甲丁")]
    gold = [{"quote": "乙"}, {"quote": "丁"}, {"quote": "戊"}]
    ranks = first_ranks(gold, passages)
    assert ranks == [2, 4, None]
    assert [recall(ranks, k) for k in (1, 2, 3, 4, 10)] == pytest.approx([0, 1 / 3, 1 / 3, 2 / 3, 2 / 3])
    assert reciprocal_rank(ranks) == 0.5
    # (1 / log2(3) + 1 / log2(5)) / (1 / log2(2) + 1 / log2(3) + 1 / log2(4))
    assert ndcg(ranks, 10) == pytest.approx((0.6309298 + 0.4306766) / (1 + 0.6309298 + 0.5), abs=1e-6)
    assert ndcg(ranks, 3) == pytest.approx(0.6309298 / 2.1309298, abs=1e-6)
    assert (recall([None], 10), reciprocal_rank([None]), ndcg([None], 10)) == (0, 0, 0)
    assert ndcg([1, 1], 5) == 1  # one passage holds both


def test_ndcg_is_that_of_scikit_learn():
    draw = random.Random(0)
    for _ in range(200):
        length, k = draw.randint(2, 12), draw.randint(1, 12)
        ranks = draw.sample(range(1, length + 1), draw.randint(1, min(4, length)))
        relevant = [float(rank in ranks) for rank in range(1, length + 1)]
        expected = ndcg_score([relevant], [[-rank for rank in range(length)]], k=k)
        assert ndcg(ranks, k) == pytest.approx(expected, abs=1e-12)


def test_a_sentence_is_supported_by_what_it_repeats():
    guide = ["每日食盐控制在 5 克以下，多吃蔬菜水果，控制体重，戒烟限酒。"]
    assert supported("每日食盐应控制在5克以下。", guide)
    assert not supported("每日食盐应控制在6克以下。", guide)  # a number that is not there
    assert not supported("多做有氧运动，保证充足的睡眠。", guide)
    assert not supported("每日食盐控制在5克以下。", [])


def test_faithfulness_by_hand():
    passages = ["血小板的参考范围是125～350。", "发热时多喝水，注意休息。"]
    answer = "血小板的参考范围是125～350[1]。发热时多喝水[2]。发热时应输液治疗[2]。发热时多喝水[1]！"
    assert faithfulness(answer, passages) == 0.5  # the third is not there, the fourth in another passage
    assert faithfulness("血小板的参考范围是125～350。[1]", passages) == 1  # behind the full stop
    assert faithfulness("发热时多喝水。血小板的参考范围是125～350[1][2]。", passages) == 1  # those of the answer
    assert faithfulness("发热时多喝水，注意休息。", passages) == 0  # says no source
    assert faithfulness("[1]。", passages) is None


ROW = {
    "gold": [{"file": "a.pdf", "quote": "5克"}],
    "passages": [passage("多喝水。"), passage("每日食盐5克以下。")],
    "prediction": "每日食盐5克以下[2]。",
}


def test_scores_of_a_row():
    assert judge(ROW) == {
        "recall@1": 0,
        "recall@3": 1,
        "recall@5": 1,
        "recall@10": 1,
        "MRR": 0.5,
        "nDCG@10": pytest.approx(1 / math.log2(3)),
        "refused, with gold": 0,
        "cited": 1,
        "faithful": 1,
    }
    assert judge(ROW | {"gold": [], "prediction": "资料中没有。"}) == {"refused, without gold": 1}
    thought = "<think>\n资料中没有直接说，再看[9]。\n</think>\n\n"
    assert judge(ROW | {"prediction": thought + ROW["prediction"]}) == judge(ROW)
    assert "refused, with gold" not in judge({name: ROW[name] for name in ("gold", "passages")})


def test_reports_compare_systems():
    other = ROW | {"passages": ROW["passages"][::-1], "prediction": "资料中没有"}
    rows = [ROW, ROW | {"gold": []}]
    (first, second), per_row = evaluate_grounding([rows, [other, other | {"gold": []}]], samples=50)
    assert (first["MRR"]["value"], second["MRR"]["value"], second["MRR"]["difference"]["value"]) == (50, 100, 50)
    assert first["refused, without gold"]["value"] == 0 and second["refused, without gold"]["value"] == 100
    assert "faithful" not in first  # the second system has no such row
    assert per_row[0][0]["MRR"] == 0.5
    with pytest.raises(ValueError, match="gold: expected the same rows"):
        evaluate_grounding([rows, rows[::-1]])


def test_intervals_of_means_cover_their_mean():
    rows = [ROW | {"passages": [passage("-")] * n + ROW["passages"]} for n in range(10)]
    ((report,), _) = evaluate_grounding([rows], samples=500)
    mean = 100 * np.mean([1 / (n + 2) for n in range(10)])
    assert report["MRR"]["value"] == pytest.approx(mean)
    assert report["MRR"]["low"] < mean < report["MRR"]["high"]


def test_the_script(tmp_path, capsys):
    path = tmp_path / "answers.jsonl"
    path.write_text(json.dumps(ROW, ensure_ascii=False) + "\n", encoding="utf-8")
    scores, rows = tmp_path / "scores.json", tmp_path / "rows.jsonl"
    evaluate_metrics.main(
        ["--retrieval", "--data_file", str(path), "--output_file", str(scores), "--per_row_file", str(rows)]
    )
    assert "recall@3" in capsys.readouterr().out
    written = json.loads(scores.read_text(encoding="utf-8"))
    assert written["task"] == "retrieval" and written["systems"]["answers"]["MRR"]["value"] == 50
    assert json.loads(rows.read_text(encoding="utf-8"))["MRR"] == 0.5
    path.write_text('{"gold": [], "passages": [{"file": "a"}]}\n[]\n{"gold": 1}\n', encoding="utf-8")
    with pytest.raises(ValueError) as error:
        evaluate_metrics.main(["--retrieval", "--data_file", str(path)])
    assert [line.partition(": ")[2] for line in str(error.value).split("\n")] == [
        "passages: expected `text` in each",
        "expected a JSON object, got '[]'",
        "gold: expected a list of objects, got '1'",
    ]
    with pytest.raises(SystemExit):
        evaluate_metrics.main(["--retrieval", "--task", "exam", "--data_file", str(path)])
