"""Precision, recall and F1 of the extraction of findings on the labelled texts of `data/causal`.

    python benchmarks/causal_extraction.py [--show]

`dev` and `test` are by the author of the words, `strangers_dev` and `strangers_test` by another one. There whoever the
text asks for is the patient, a child too, as `CausalStream` takes it; in the others a child is a relative.

A mention is right if it has the id, the state and the person of a labelled one and overlaps its words. The rules were
written with the `dev` rows in view; the `test` rows were kept apart. Durations and severities are compared on the
mentions that are right and labelled with one. Writes benchmarks/results/causal_extraction.json.
"""

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from medical_qwen.causal.extraction import Extractor, Mention
from medical_qwen.causal.network import Network
from medical_qwen.causal.stream import subject_of

ROOT = Path(__file__).resolve().parents[1]


def matches(found: Mention, label: dict) -> bool:
    same = (found.id, found.state, found.who) == (label["id"], label["state"], label["who"])
    return same and found.start < label["end"] and label["start"] < found.end


class Asker(Extractor):
    """Reads whoever the text asks for as the patient."""

    def read(self, text: str, who: str = "patient") -> list[Mention]:
        mentions = super().read(text, who)
        subject = subject_of(mentions, self.network)
        return [replace(one, who="patient" if one.who == subject else "relative") for one in mentions]


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
    network, results = Network.load(data), {}
    for prefix, file, extractor in (
        ("", "labelled.jsonl", Extractor(network)),
        ("strangers_", "labelled_strangers.jsonl", Asker(network)),
    ):
        rows = [json.loads(line) for line in (data / file).read_text(encoding="utf-8").splitlines()]
        for split in ("dev", "test"):
            some = [row for row in rows if row["split"] == split]
            results[prefix + split] = score(extractor, some, options.show and split == "dev")
        results[f"{prefix}all"] = score(extractor, rows)
    print(json.dumps(results, indent=2))
    target = ROOT / "benchmarks" / "results" / "causal_extraction.json"
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
