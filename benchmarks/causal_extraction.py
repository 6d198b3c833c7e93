"""Precision, recall and F1 of the extraction of findings on `data/causal/labelled.jsonl`.

    python benchmarks/causal_extraction.py [--show]

A mention is right if it has the id, the state and the person of a labelled one and overlaps its words. The rules were
written with the `dev` rows in view; the `test` rows were kept apart. Durations and severities are compared on the
mentions that are right and labelled with one. Writes benchmarks/results/causal_extraction.json.
"""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from medical_qwen.causal.extraction import Extractor, Mention
from medical_qwen.causal.network import Network

ROOT = Path(__file__).resolve().parents[1]


def matches(found: Mention, label: dict) -> bool:
    same = (found.id, found.state, found.who) == (label["id"], label["state"], label["who"])
    return same and found.start < label["end"] and label["start"] < found.end


def score(extractor: Extractor, rows: list[dict], show: bool = False) -> dict[str, float]:
    right = found_in_all = labelled = 0
    extra: dict[str, list[bool]] = {"duration": [], "severity": []}
    for row in rows:
        found, labels = extractor.read(row["text"]), list(row["mentions"])
        found_in_all, labelled = found_in_all + len(found), labelled + len(labels)
        wrong = []
        for one in found:
            label = next((label for label in labels if matches(one, label)), None)
            if label is None:
                wrong.append(one)
                continue
            labels.remove(label)
            right += 1
            if label.get("duration_days") is not None:
                close = one.duration is not None and abs(one.duration - label["duration_days"]) <= 0.5
                extra["duration"].append(close)
            if label.get("severity"):
                extra["severity"].append(one.severity == label["severity"])
        if show and (wrong or labels):
            print(row["text"], *(f"\n   wrong   {one}" for one in wrong), *(f"\n   missing {one}" for one in labels))
    precision, recall = right / max(found_in_all, 1), right / max(labelled, 1)
    shares = {f"{name}_accuracy": round(sum(hits) / len(hits), 4) for name, hits in extra.items() if hits}
    return {
        "rows": len(rows), "labels": labelled, "precision": round(precision, 4), "recall": round(recall, 4),
        "f1": round(2 * precision * recall / max(precision + recall, 1e-9), 4), **shares,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--show", action="store_true", help="print what is wrong in the dev rows")
    options = parser.parse_args()
    data = ROOT / "data" / "causal"
    rows = [json.loads(line) for line in (data / "labelled.jsonl").read_text(encoding="utf-8").splitlines()]
    extractor = Extractor(Network.load(data))
    results = {
        split: score(extractor, [row for row in rows if row["split"] == split], options.show and split == "dev")
        for split in ("dev", "test")
    } | {"all": score(extractor, rows)}
    print(json.dumps(results, indent=2))
    target = ROOT / "benchmarks" / "results" / "causal_extraction.json"
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
