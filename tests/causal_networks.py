"""Small causal networks for the tests, and sums over all of their states as an independent reference."""

import csv
from pathlib import Path

import numpy as np

from medical_qwen.causal import Evidence, Network, Node
from medical_qwen.causal.network import COLUMNS


def random_network(seed: int, risks: int, diseases: int, findings: int, density: float = 0.4) -> Network:
    random = np.random.default_rng(seed)

    def layer(kind: str, letter: str, count: int, low: float, high: float) -> tuple[Node, ...]:
        bases = np.exp(random.uniform(np.log(low), np.log(high), count))
        return tuple(
            Node(f"{letter}{row}", kind, f"{letter}{row}", f"{letter}{row}", bases[row]) for row in range(count)
        )

    def arrows(tails: int, heads: int) -> np.ndarray:
        return np.where(random.random((tails, heads)) < density, random.uniform(0.01, 0.95, (tails, heads)), 0)

    return Network(
        layer("risk", "r", risks, 0.02, 0.5),
        layer("disease", "d", diseases, 1e-4, 0.2),
        layer("symptom", "f", findings, 1e-4, 0.1),
        arrows(risks, diseases),
        arrows(diseases, findings),
    )


def random_evidence(network: Network, seed: int, interventions: int = 0) -> Evidence:
    """About a third of the findings and risks present, a third absent; `interventions` nodes of any kind set."""
    random = np.random.default_rng(seed)
    ids = [node.id for node in (*network.findings, *network.risks)]
    states = dict(zip(ids, random.integers(0, 3, len(ids)), strict=True))
    do = {str(node): bool(random.integers(2)) for node in random.choice(sorted(network.nodes), interventions, False)}
    present, absent = ({node for node in ids if states[node] == state and node not in do} for state in (1, 2))
    return Evidence(frozenset(present), frozenset(absent), do)


class States:
    """All states of risks and diseases with their probability together with the evidence."""

    def __init__(self, network: Network, evidence: Evidence) -> None:
        risks, diseases = len(network.risks), len(network.diseases)
        states = (np.arange(2 ** (risks + diseases))[:, None] >> np.arange(risks + diseases)) & 1
        self.network, self.evidence = network, evidence
        self.risks, self.diseases = states[:, :risks], states[:, risks:]
        weight = np.ones(len(states))
        for row, node in enumerate(network.risks):
            weight *= self.node(node.id, self.risks[:, row], np.full(len(states), node.base))
        for row, node in enumerate(network.diseases):
            off = (1 - node.base) * np.prod(np.where(self.risks == 1, 1 - network.risk_strength[:, row], 1), axis=1)
            weight *= self.node(node.id, self.diseases[:, row], 1 - off)
        self.before_findings = weight
        self.observed = [
            (row, node.id in evidence.present)
            for row, node in enumerate(network.findings)
            if node.id in evidence.present | evidence.absent
        ]
        self.weight = weight * self.findings(dict(self.observed))

    def node(self, name: str, state: np.ndarray, probability: np.ndarray) -> np.ndarray:
        if name in self.evidence.do:
            return (state == self.evidence.do[name]).astype(float)
        possible = np.where(state == 1, name not in self.evidence.absent, name not in self.evidence.present)
        return possible * np.where(state == 1, probability, 1 - probability)

    def off(self, row: int, without: int | None = None) -> np.ndarray:
        """P(finding absent | diseases), also with the arrow from one disease taken away."""
        strength = self.network.strength[:, row].copy()
        if without is not None:
            strength[without] = 0
        return (1 - self.network.findings[row].base) * np.exp(self.diseases @ np.log1p(-strength))

    def findings(self, states: dict[int, bool]) -> np.ndarray:
        factors = [1 - self.off(row) if state else self.off(row) for row, state in states.items()]
        return np.prod(factors, axis=0) if factors else np.ones(len(self.diseases))

    def mean(self, values: np.ndarray) -> np.ndarray:
        """Mean over the states of values (states, ...), given the evidence."""
        return self.weight @ values / self.weight.sum()

    def counterfactuals(self) -> tuple[np.ndarray, np.ndarray]:
        """Expected disablement and sufficiency (D,), arrow by arrow: what else acts on a finding is written out."""
        vanish, stay = np.zeros((2, len(self.network.diseases)))
        for row in (row for row, present in self.observed if present):
            rest = self.before_findings * self.findings({f: state for f, state in self.observed if f != row})
            for disease, strength in enumerate(self.network.strength[:, row]):
                acts = rest * self.diseases[:, disease] * strength
                vanish[disease] += acts @ self.off(row, without=disease)
                stay[disease] += acts.sum()
        return vanish / self.weight.sum(), stay / self.weight.sum()


def write_network(folder: Path, tables: dict[str, list[dict[str, str]]]) -> Path:
    """The CSV files of a network folder; columns that a row does not give are filled in."""
    filled = {"basis": "estimated", "source": "made up for a test", "kind": "symptom", "prior": "0.01", "leak": "0.01"}
    folder.mkdir(parents=True, exist_ok=True)
    for name, columns in COLUMNS.items():
        with open(folder / name, "w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            for row in tables.get(name, ()):
                default = {column: filled.get(column, row.get("id", "")) for column in columns}
                writer.writerow(default | row)
    return folder
