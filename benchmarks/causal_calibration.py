"""Does the causal network believe as much as it should, and does it find the disease? On patients sampled from it.

    python benchmarks/causal_calibration.py
    python benchmarks/causal_calibration.py --network my_network --patients 500

How patients are made (fixed before any figure was seen):

* Risks, diseases and findings are drawn from the network, with the arrows that acted. A patient counts who has at
  least one disease and tells at least one finding that a disease of theirs brought about.
* `told`: as a patient tells it. Sex and age are known. Of the other risks and of the symptoms, signs and history, what
  is there is told with probability 0.7, what is not there is denied with probability 0.1. Tests have not been made.
* `asked`: the same, but what is known is drawn regardless of the answer (probability 0.4): the network assumes just
  that, that silence means nothing. Here no patient is turned away, so the posteriors must be calibrated.

`told` breaks that assumption (silence speaks against a finding) and turns patients away, so its posteriors are off; by
how much is the first figure. The disease that a patient comes for is the one that brought about most of the told
findings (the first of several). For "any disease that is there", drawn at random, ranking by posterior is optimal by
construction; that figure is printed beside it.

Writes a reliability diagram and a JSON file; prints the top-3 rates by posterior and by expected disablement with
bootstrap intervals of their difference over patients.
"""

import argparse
import itertools
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from medical_qwen.causal import Evidence, Network, infer
from medical_qwen.causal.network import Patients

ROOT = Path(__file__).resolve().parents[1]
KNOWN = ("female_sex", "age_over_65")
SPEAKS = {"told": (0.7, 0.1), "asked": (0.4, 0.4)}  # probability that something is known if it is there, if it is not
BINS = np.array([0, 0.01, 0.03, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", type=Path, default=ROOT / "data" / "causal")
    parser.add_argument("--patients", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "causal_calibration")
    options = parser.parse_args()
    network = Network.load(options.network)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    streams = {design: judged(network, design, options.seed) for design in SPEAKS}
    cases: dict[str, list[dict]] = {design: [] for design in SPEAKS}
    while len(cases["told"]) < options.patients:  # figures are written after each part
        for design, stream in streams.items():
            cases[design] += itertools.islice(stream, min(250, options.patients - len(cases[design])))
        results = {design: summary(found, options.seed) for design, found in cases.items()}
        options.output.with_suffix(".json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
        plot(results, options.output.with_suffix(".png"))
        print(json.dumps({design: {**one, "bins": "..."} for design, one in results.items()}, indent=2), flush=True)


def judged(network: Network, design: str, seed: int) -> Iterator[dict]:
    """What the network concludes about one patient after the other, with the truth."""
    random = np.random.default_rng(seed)
    for batch in itertools.count():
        drawn = network.sample(500, seed + 1000 * batch)
        for row in range(500):
            evidence = tell(network, drawn, row, SPEAKS[design], random)
            told = [network.index[node] for node in evidence.present if network.nodes[node].kind != "risk"]
            counts = drawn.caused[row][:, told].sum(axis=1)
            if design == "told" and not counts.any():
                continue
            start = time.process_time()
            found = infer(network, evidence)
            yield {
                "truth": drawn.diseases[row], "posterior": found.diseases, "disablement": found.disablement,
                "cause": int(counts.argmax()) if counts.any() else None, "told": len(told),
                "left_out": len(found.left_out), "seconds": time.process_time() - start,
                "any": int(random.choice(np.nonzero(drawn.diseases[row])[0])) if drawn.diseases[row].any() else None,
            }  # fmt: skip


def tell(network: Network, drawn: Patients, row: int, speaks: tuple[float, float], random) -> Evidence:
    """What is known of a patient."""
    present, absent = set(), set()
    for nodes, states in ((network.risks, drawn.risks[row]), (network.findings, drawn.findings[row])):
        for node, state, draw in zip(nodes, states, random.random(len(nodes)), strict=True):
            if node.kind != "test" and (node.id in KNOWN or draw < speaks[int(not state)]):
                (present if state else absent).add(node.id)
    return Evidence(frozenset(present), frozenset(absent))


def summary(cases: list[dict], seed: int) -> dict:
    """Calibration over all diseases and patients, and the top-3 rates."""
    probability = np.concatenate([case["posterior"] for case in cases])
    truth = np.concatenate([case["truth"] for case in cases])
    place = np.clip(np.searchsorted(BINS, probability, side="right") - 1, 0, len(BINS) - 2)
    bins = [
        {
            "said": float(probability[place == number].mean()),
            "true": float(truth[place == number].mean()),
            "count": int((place == number).sum()),
        }
        for number in range(len(BINS) - 1)
        if (place == number).any()
    ]

    def error(least: float) -> float:
        """Expected calibration error of the posteriors from `least` up: most are near 0, where little can be wrong."""
        shown = [one for one in bins if one["said"] >= least]
        return sum(one["count"] * abs(one["said"] - one["true"]) for one in shown) / sum(o["count"] for o in shown)

    seconds = np.array([case["seconds"] for case in cases])
    result = {
        "patients": len(cases),
        "findings present, known": float(np.mean([case["told"] for case in cases])),
        "expected calibration error": error(0),
        "expected calibration error, posteriors of 10 % and more": error(0.1),
        "patients with findings left out": sum(case["left_out"] > 0 for case in cases),
        "CPU seconds: median, 95 %, largest": [float(np.quantile(seconds, q)) for q in (0.5, 0.95, 1)],
        "bins": bins,
    }
    for goal, name in (("cause", "the disease the patient comes for"), ("any", "any disease that is there")):
        result[f"top 3, {name}"] = top3([case for case in cases if case[goal] is not None], goal, seed)
    return result


def top3(cases: list[dict], goal: str, seed: int) -> dict:
    hits = {
        by: np.array([case[goal] in np.argsort(-case[by], kind="stable")[:3] for case in cases])
        for by in ("posterior", "disablement")
    }
    difference = hits["disablement"].astype(float) - hits["posterior"]
    rows = np.random.default_rng(seed).integers(0, len(cases), (2000, len(cases)))
    low, high = np.quantile(difference[rows].mean(axis=1), (0.025, 0.975))
    rates = {by: float(hit.mean()) for by, hit in hits.items()}
    return {**rates, "difference": float(difference.mean()), "interval": [float(low), float(high)]}


def plot(results: dict, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(5.2, 5), layout="constrained")
    axes.plot([0, 1], [0, 1], color="#9ca3af", linewidth=1)
    for (design, result), colour in zip(results.items(), ("#b45309", "#2563eb"), strict=True):
        said, true = ([one[key] for one in result["bins"]] for key in ("said", "true"))
        spread = [1.96 * (one["true"] * (1 - one["true"]) / one["count"]) ** 0.5 for one in result["bins"]]
        label = f"{design} (calibration error {result['expected calibration error']:.4f})"
        axes.errorbar(said, true, spread, marker="o", markersize=4, capsize=2, color=colour, label=label)
    axes.set(xlabel="posterior of a disease", ylabel="share of patients who have it", xlim=(0, 1), ylim=(0, 1))
    axes.set_title(f"{results['told']['patients']} sampled patients", fontsize=11)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
