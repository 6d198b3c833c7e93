"""What follows from what is known: posteriors, counterfactuals, interventions, and what to ask next. All exact.

Notation: D_k disease k, F_f finding f, λ_kf the strength of the arrow k → f, e the evidence with its present findings
P, e∖f the evidence without f. A finding is on when its leak or one of its present causes acts; every arrow acts or not
by a coin of its own (the exogenous variables of the structural model).

*Counterfactuals* (Richens, Lee, Johri, Nature Communications 11, 3923, 2020). In the twin network the coins are those
of this patient, as far as the evidence tells, and a cause is switched off by force:

* expected disablement: how many of the present findings would vanish if disease k were prevented. f vanishes when k is
  present and its arrow acts, and nothing else acts on f. "Nothing else acts" and "the arrow does not act" together are
  F_f = 0, and an arrow's coin is independent of the rest, so

      P(f vanishes | e) = λ_kf / (1 − λ_kf) · N_kf,    N_kf = P(D_k = 1, F_f = 0, e∖f) / P(e)

* expected sufficiency: how many of them would stay if all other causes (leaks included) were switched off. f stays
  when k is present and its arrow acts; that makes F_f = 1, so f itself brings no further condition, and

      P(f stays | e) = λ_kf · P(D_k = 1, e∖f) / P(e) = λ_kf · (P(D_k = 1 | e) + N_kf)

Both are summed over f ∈ P. One sweep there and back gives P(D_k | e) and N_kf for all k and f.

*Interventions*: do(x) cuts the arrows into x. A disease or finding that was set says nothing about its causes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from .network import Network, base
from .sweep import Plan, Sums, make_plan, sweep

WORK = 2**26  # table entries that one sweep may touch: seconds. Beyond it findings are left out, and named
QUESTION_WORK = 2**24  # the same for all answers to all questions together: beyond it a shortlist is judged
KEPT = 2**23  # table entries held at once (64 MiB)


@dataclass(frozen=True)
class Evidence:
    """Ids of risks, diseases and findings that are present, absent, or set by an intervention. The rest is unknown."""

    present: frozenset[str] = frozenset()
    absent: frozenset[str] = frozenset()
    do: Mapping[str, bool] = field(default_factory=dict)

    def known(self, node: str) -> bool | None:
        if node in self.do:
            return self.do[node]
        return True if node in self.present else False if node in self.absent else None

    def check(self, network: Network) -> None:
        """Raises ValueError for ids that the network does not have, and for contradictions."""
        unknown = sorted((set(self.present) | set(self.absent) | set(self.do)) - set(network.nodes))
        if unknown:
            raise ValueError(f"evidence: expected ids of the network, got {', '.join(unknown)}")
        both = sorted((self.present & self.absent) | (set(self.do) & (self.present | self.absent)))
        if both:
            raise ValueError(f"evidence: expected one state each, got two for {', '.join(both)}")


@dataclass(frozen=True)
class Posterior:
    """What follows from the evidence. Arrays are in the order of the network's diseases, risks and `present`."""

    diseases: np.ndarray  # (D,) P(disease | evidence)
    risks: np.ndarray  # (R,) P(risk | evidence)
    present: tuple[str, ...]  # the present findings that were used
    vanish: np.ndarray  # (D, present) P(finding would be gone without the disease)
    stay: np.ndarray  # (D, present) P(finding would stay with this disease as its only cause)
    log_evidence: float  # log P(evidence)
    left_out: tuple[str, ...] = ()  # present findings beyond what can be summed exactly

    @property
    def disablement(self) -> np.ndarray:
        """(D,) expected number of present findings that would vanish if the disease were prevented."""
        return self.vanish.sum(axis=1)

    @property
    def sufficiency(self) -> np.ndarray:
        """(D,) expected number of present findings that the disease would keep up alone."""
        return self.stay.sum(axis=1)


@dataclass(frozen=True)
class Gain:
    """What the answer about a finding or risk is worth."""

    id: str
    bits: float  # expected fall of the entropies of the diseases' own posteriors, summed (mutual informations)
    present: float  # P(the answer is yes | evidence)


class _Problem:
    """The part of the network that sums run over: unknown risks, diseases, present findings; nodes in that order."""

    def __init__(self, network: Network, evidence: Evidence, left_out: Sequence[str] = ()) -> None:
        evidence.check(network)
        self.network, self.evidence = network, evidence
        self.risks = [row for row, node in enumerate(network.risks) if evidence.known(node.id) is None]
        self.present = [
            row for row, node in enumerate(network.findings) if node.id in evidence.present and node.id not in left_out
        ]
        absent = [row for row, node in enumerate(network.findings) if node.id in evidence.absent]
        on = [row for row, node in enumerate(network.risks) if evidence.known(node.id)]
        self.first_disease = len(self.risks)
        self.first_finding = self.first_disease + len(network.diseases)
        diseases, findings = slice(self.first_disease, self.first_finding), slice(self.first_finding, None)
        self.leak = base(network.findings)
        disease_off = (1 - base(network.diseases)) * np.prod(1 - network.risk_strength[on], axis=0)
        self.base = np.concatenate([base(network.risks)[self.risks], 1 - disease_off, self.leak[self.present]])
        self.strength = np.zeros((len(self.base),) * 2)
        self.strength[: self.first_disease, diseases] = network.risk_strength[self.risks]
        self.strength[diseases, findings] = network.strength[:, self.present]
        self.weight = np.ones((len(self.base), 2))
        self.weight[diseases, 1] = np.prod(1 - network.strength[:, absent], axis=1)
        self.weight[findings, 0] = 0
        for node, disease in enumerate(network.diseases, self.first_disease):
            known = evidence.known(disease.id)
            if disease.id in evidence.do:  # the arrows into it are cut
                self.base[node], self.strength[: self.first_disease, node] = float(known), 0
            elif known is not None:
                self.weight[node, int(not known)] = 0
        # factors that no sum depends on: observed risks, leaks of absent findings
        priors = [(node.base, node.id) for node in network.risks]
        self.log_constant = float(
            sum(np.log(prior) for prior, node in priors if node in evidence.present)
            + sum(np.log1p(-prior) for prior, node in priors if node in evidence.absent)
            + np.log1p(-self.leak[absent]).sum()
        )

    def plan(self) -> Plan:
        columns = (np.nonzero(self.strength[:, node])[0] for node in range(len(self.base)))
        return make_plan(tuple(sum(1 << int(cause) for cause in column) for column in columns))

    def sums(self, plan: Plan, weight: np.ndarray, pairs: bool = False) -> Sums:
        """`sweep` in the worlds of `weight` (nodes, 2, worlds), as many at once as memory allows."""
        step = max(1, KEPT // plan.kept)
        effects = range(self.first_finding, len(self.base) if pairs else self.first_finding)
        parts = [
            sweep(plan, self.base, self.strength, weight[..., start : start + step], effects)
            for start in range(0, weight.shape[2], step)
        ]
        scale = parts[0].log_scale
        total = np.concatenate([part.total * np.exp(part.log_scale - scale) for part in parts])
        present = np.concatenate([part.present for part in parts], axis=1)
        return Sums(total, scale, present, np.concatenate([part.without for part in parts], axis=2))

    def all_risks(self, present: np.ndarray) -> np.ndarray:
        """Probabilities of every risk of the network, the known ones included, from those of the nodes summed over."""
        full = np.array([float(bool(self.evidence.known(node.id))) for node in self.network.risks])
        full[self.risks] = present[: self.first_disease]
        return full

    def all_diseases(self, present: np.ndarray) -> np.ndarray:
        """The diseases among the nodes: (nodes, worlds) -> (D, worlds)."""
        return present[self.first_disease : self.first_finding]


def infer(network: Network, evidence: Evidence) -> Posterior:
    """Posteriors and counterfactuals, exact.

    Where the sums would take more than `WORK` steps, present findings with the most possible causes (they tell least)
    are left out, one by one, and named in `left_out`.
    """
    problem, plan, left_out = _solvable(network, evidence)
    sums = problem.sums(plan, problem.weight[:, :, None], pairs=True)
    diseases = problem.all_diseases(sums.present)
    strength = network.strength[:, problem.present]
    missing = sums.without[problem.first_disease : problem.first_finding, problem.first_finding :, 0]  # N_kf
    return Posterior(
        diseases=diseases[:, 0],
        risks=problem.all_risks(sums.present[:, 0]),
        present=tuple(network.findings[row].id for row in problem.present),
        vanish=strength / (1 - strength) * missing,
        stay=strength * (diseases + missing),
        log_evidence=float(np.log(sums.total[0]) + sums.log_scale + problem.log_constant),
        left_out=left_out,
    )


def _solvable(network: Network, evidence: Evidence) -> tuple[_Problem, Plan, tuple[str, ...]]:
    left_out: tuple[str, ...] = ()
    while True:
        problem = _Problem(network, evidence, left_out)
        plan = problem.plan()
        if plan.work <= WORK:
            return problem, plan, left_out
        if not problem.present:
            raise ValueError(f"{len(problem.risks)} unknown risks couple the diseases too closely: state some of them")
        vaguest = max(problem.present, key=lambda row: np.count_nonzero(network.strength[:, row]))
        left_out = (*left_out, network.findings[vaguest].id)


def gains(network: Network, evidence: Evidence, candidates: Sequence[str]) -> list[Gain]:
    """What each answer would tell about the causes of the present findings, the most telling first.

    For a candidate A: Σ_k I(D_k; A | e), the mutual informations in bits of the answer and each disease's presence,
    over the diseases with an arrow to a present finding (over all, while none is present): what is asked has to do
    with the complaint. (The joint information would need the joint posterior of all causes of A.) Candidates that are
    known are an error.
    When their number times the size of the sums is beyond `QUESTION_WORK`, those are judged that tell most if the
    diseases' posteriors were independent; the rest does not come back.
    """
    known = [node for node in candidates if evidence.known(node) is not None]
    if known:
        raise ValueError(f"candidates: expected unknown findings or risks, got {', '.join(known)}")
    problem, plan, _ = _solvable(network, evidence)
    about = network.strength[:, problem.present].any(axis=1)
    about = about if about.any() else np.ones(len(network.diseases), dtype=bool)
    limit = max(8, QUESTION_WORK // plan.work)
    if len(candidates) > limit:
        now = problem.all_diseases(problem.sums(plan, problem.weight[:, :, None]).present)[:, 0]
        candidates = sorted(candidates, key=lambda node: -_independent_gain(problem, now, node, about))[:limit]
    diseases, no = _if_absent(problem, plan, candidates)
    diseases = diseases[about]
    found = [
        Gain(node, _information(diseases[:, 0], diseases[:, world], no[world]), float(1 - no[world]))
        for world, node in enumerate(candidates, 1)
    ]
    return sorted(found, key=lambda gain: -gain.bits)


def predict(network: Network, evidence: Evidence, findings: Sequence[str]) -> np.ndarray:
    """P(finding present | evidence) of unknown findings, shape (findings,)."""
    problem, plan, _ = _solvable(network, evidence)
    return 1 - _if_absent(problem, plan, findings)[1][1:]


def _if_absent(problem: _Problem, plan: Plan, nodes: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """P(D_k | evidence, node absent) (D, 1 + nodes) and P(node absent | evidence) (1 + nodes,); first without any."""
    network = problem.network
    weight = np.repeat(problem.weight[:, :, None], 1 + len(nodes), axis=2)
    leaks = np.ones(1 + len(nodes))  # the sweep knows the arrows into an absent finding, not its leak
    for world, node in enumerate(nodes, 1):
        row = network.index[node]
        if network.nodes[node].kind == "risk":
            weight[problem.risks.index(row), 1, world] = 0
        else:
            weight[problem.first_disease : problem.first_finding, 1, world] *= 1 - network.strength[:, row]
            leaks[world] = 1 - problem.leak[row]
    sums = problem.sums(plan, weight)
    return problem.all_diseases(sums.present), leaks * sums.total / sums.total[0]


def entropy(probability: np.ndarray) -> np.ndarray:
    """Of a yes-or-no variable, in bits."""
    inside = np.clip(probability, 1e-300, 1)
    outside = np.clip(1 - probability, 1e-300, 1)
    return -(inside * np.log2(inside) + outside * np.log2(outside))


def _information(now: np.ndarray, after_no: np.ndarray, no: float) -> float:
    """Σ_k I(D_k; answer) from P(D_k), P(D_k | no) and P(no)."""
    after_yes = np.clip((now - no * after_no) / max(1 - no, 1e-300), 0, 1)
    return float((entropy(now) - no * entropy(after_no) - (1 - no) * entropy(after_yes)).sum())


def _independent_gain(problem: _Problem, now: np.ndarray, node: str, about: np.ndarray) -> float:
    """The gain if the diseases were independent with probabilities `now`; for the shortlist."""
    network = problem.network
    row = network.index[node]
    if network.nodes[node].kind == "risk":
        no = 1 - network.risks[row].base
        after_no = now * (1 - network.risk_strength[row] * (1 - no))
    else:
        strength = network.strength[:, row]
        no = float((1 - problem.leak[row]) * np.prod(1 - now * strength))
        after_no = now * (1 - strength) / (1 - now * strength)
    return _information(now[about], after_no[about], no)
