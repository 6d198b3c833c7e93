"""How long the causal network thinks: 40 diseases x 40 findings, all 40 observed, and the shipped network in a talk.

    python benchmarks/causal_speed.py

Every answer is posteriors, expected disablement and expected sufficiency of all diseases, planning included (plans
are forgotten before each). 40 x 40: random networks in which a finding has 4, 8 or all 40 diseases for causes, with no
risks, 20 known and 20 unknown ones (2 to a disease); patients are sampled who have a disease and a finding. Talk: the
shipped network, sampled patients of whom sex, age and 1 to 8 present findings and half as many absent ones are known;
here the next question is timed, too, and held against the best of all candidates, judged without a shortlist (patients
for whom it is the same, bits lost at most). CPU seconds of one process with one thread; median and largest of
--patients.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from medical_qwen.causal import Evidence, Network, Node, gains, infer, inference
from medical_qwen.causal.sweep import make_plan

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patients", type=int, default=25)
    parser.add_argument("--exhaustive", type=int, default=10, help="patients whose every question is judged")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "causal_speed.json")
    options = parser.parse_args()
    results = {}
    for causes in (4, 8, 40):
        for risks, known in ((0, True), (20, True), (20, False)):
            network = random_network(causes, risks)
            label = f"40 x 40, {causes} causes to a finding, {risks} {'known' if known else 'unknown'} risks"
            chosen = [observed(network, *patient, known) for patient in patients(network, options.patients)]
            results[label] = report(label, chosen, [clocked(infer, network, one) for one in chosen])
    shipped = Network.load(ROOT / "data" / "causal")
    for count in (1, 2, 4, 6, 8):
        chosen = [told(shipped, *patient, count) for patient in patients(shipped, options.patients, count)]
        label = f"shipped network, {count} present findings"
        results[label] = report(label, chosen, [clocked(infer, shipped, one) for one in chosen])
        asked = [clocked(gains, shipped, one, unknown(shipped, one)) for one in chosen]
        results[f"{label}, next question"] = report(f"{label}, next question", chosen, asked)
        if count <= 4:
            results[f"{label}, shortlist"] = shortlist(f"{label}, shortlist", shipped, chosen[: options.exhaustive])
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


def random_network(causes: int, risks: int) -> Network:
    random = np.random.default_rng(causes)

    def layer(kind: str, letter: str, bases: np.ndarray) -> tuple[Node, ...]:
        return tuple(Node(f"{letter}{row}", kind, "", "", value) for row, value in enumerate(bases))

    def arrows(tails: int, heads: int, each: int, high: float) -> np.ndarray:
        strength = np.zeros((tails, heads))
        for column in range(heads if tails else 0):
            strength[random.choice(tails, each, replace=False), column] = random.uniform(0.02, high, each)
        return strength

    return Network(
        layer("risk", "r", random.uniform(0.05, 0.4, risks)),
        layer("disease", "d", np.exp(random.uniform(np.log(0.001), np.log(0.05), 40))),
        layer("symptom", "f", random.uniform(0.01, 0.1, 40)),
        arrows(risks, 40, 2, 0.2),
        arrows(40, 40, causes, 0.9 if causes < 40 else 0.3),
    )


def patients(network: Network, count: int, findings: int = 1):
    """Risks and findings of sampled patients with a disease and at least so many findings."""
    drawn = network.sample(20 * count, seed=1)
    rows = np.nonzero(drawn.diseases.any(axis=1) & (drawn.findings.sum(axis=1) >= findings))[0][:count]
    return [(drawn.risks[row], drawn.findings[row]) for row in rows]


def observed(network: Network, risks: np.ndarray, findings: np.ndarray, known: bool) -> Evidence:
    states = [*zip(network.findings, findings, strict=True)]
    states += [*zip(network.risks, risks, strict=True)] if known else []
    return Evidence(
        frozenset(node.id for node, state in states if state),
        frozenset(node.id for node, state in states if not state),
    )


def told(network: Network, risks: np.ndarray, findings: np.ndarray, count: int) -> Evidence:
    random = np.random.default_rng(count)
    present = random.choice(np.nonzero(findings)[0], count, replace=False)
    absent = random.choice(np.nonzero(~findings)[0], count // 2, replace=False)
    known = {node: bool(risks[network.index[node]]) for node in ("female_sex", "age_over_65")}
    known |= {network.findings[row].id: True for row in present} | {network.findings[row].id: False for row in absent}
    return Evidence(
        frozenset(node for node, state in known.items() if state),
        frozenset(n for n, state in known.items() if not state),
    )


def unknown(network: Network, evidence: Evidence) -> list[str]:
    return [node.id for node in (*network.findings, *network.risks) if evidence.known(node.id) is None]


def clocked(function, *arguments) -> float:
    make_plan.cache_clear()
    start = time.process_time()
    function(*arguments)
    return time.process_time() - start


def shortlist(label: str, network: Network, evidence: list[Evidence]) -> dict:
    """The question chosen from the shortlist against the best of all."""
    lost, usual = [], inference.QUESTION_WORK
    for one in evidence:
        short = gains(network, one, unknown(network, one))
        inference.QUESTION_WORK = 2**62
        lost.append(gains(network, one, unknown(network, one))[0].bits - short[0].bits)
        inference.QUESTION_WORK = usual
    result = {"same": sum(bits < 1e-9 for bits in lost), "patients": len(lost), "bits lost at most": max(lost)}
    print(f"{label:60} {result}", flush=True)
    return result


def report(label: str, evidence: list[Evidence], seconds: list[float]) -> dict:
    present = [len(one.present) for one in evidence]
    print(
        f"{label:60} present {np.median(present):.0f} (up to {max(present)}): "
        f"{1000 * np.median(seconds):.0f} ms, at most {1000 * max(seconds):.0f} ms",
        flush=True,
    )
    return {"patients": len(seconds), "median": float(np.median(seconds)), "largest": max(seconds)}


if __name__ == "__main__":
    main()
