"""Exact sums over a layered noisy-OR network: one table swept across it.

The table runs over the states of the nodes that are *open*. A node opens with its base probability, every arrow into
it switches its state on where the arrow's cause is present, every arrow out of it is used, and then it closes: the sum
over its two states, each with a weight that says what was observed. One node is finished after the other, so the table
is as wide as the widest moment of the sweep, not as the network. With the findings open all along and the diseases
passing through, this is a table over the subsets of the positive findings that still have to be explained
(2^positives, as quickscore: Heckerman 1989); with the diseases open and the findings passing through it is the
enumeration of causes (2^diseases). The plan takes whichever order is small, mixtures of the two included.

Quickscore's alternating sum cancels: with 15 rare findings nothing is left of it in double precision. Here every term
is positive, so the relative error is a few roundings per step.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

OPEN, ARROW, CLOSE = range(3)
ATTEMPTS, WORTH_AN_ATTEMPT = 24, 200_000  # orders that are tried at most, and the work that one more is worth


@dataclass(frozen=True)
class Plan:
    """The order of the sweep. `work` and `kept` count table entries: touched in all, and held for the way back."""

    steps: tuple[tuple[int, int, int], ...]  # (OPEN, node, -), (ARROW, cause, effect), (CLOSE, node, -)
    width: int  # most nodes open at once
    work: int
    kept: int


@dataclass(frozen=True)
class Sums:
    """What a sweep found in each of its worlds."""

    total: np.ndarray  # (worlds,) probability of the evidence, up to a factor common to all worlds
    log_scale: float  # logarithm of that factor
    present: np.ndarray  # (nodes, worlds) probability that the node is present, given the evidence


def bits(mask: int) -> Iterator[int]:
    """Positions of the ones of `mask`."""
    while mask:
        low = mask & -mask
        yield low.bit_length() - 1
        mask ^= low


class _Planner:
    """Finishes one node after the other; `causes` and `effects` hold the arrows that are still to be used."""

    def __init__(self, causes: Sequence[int]) -> None:
        self.causes, self.effects = list(causes), [0] * len(causes)
        for node, mask in enumerate(causes):
            for cause in bits(mask):
                self.effects[cause] |= 1 << node
        self.steps: list[tuple[int, int, int]] = []
        self.open = self.width = self.work = self.kept = 0
        self.waiting = (1 << len(causes)) - 1
        self.touched = self.waiting  # nodes whose entry below is out of date
        self.needs = [(0, 0)] * len(causes)  # what is open while the node is finished, and what of it closes

    def run(self, noise: random.Random, narrow_first: bool, limit: int | None) -> Plan | None:
        """The greedy order, or None as soon as it is known to take `limit` steps of work or more."""
        while self.waiting:
            for node in bits(self.touched & self.waiting):
                self.needs[node] = self.need(node)
            self.touched = 0
            best, choice = None, -1
            for node in bits(self.waiting):
                need, gone = self.needs[node]
                mask = self.open | need
                behind, wide = (mask & ~gone).bit_count(), mask.bit_count()
                key = (wide, behind, noise.random()) if narrow_first else (behind, wide, noise.random())
                if best is None or key < best:
                    best, choice = key, node
            self.finish(choice)
            if limit is not None and self.work >= limit:
                return None
        return Plan(tuple(self.steps), self.width, self.work, self.kept)

    def need(self, node: int) -> tuple[int, int]:
        opened = gone = 1 << node
        opened |= self.effects[node] | self.causes[node]
        for cause in bits(self.causes[node]):
            opened |= self.causes[cause]
            gone |= 1 << cause if self.effects[cause] == 1 << node else 0
        for effect in bits(self.effects[node]):
            gone |= 1 << effect if self.causes[effect] == 1 << node and not self.effects[effect] else 0
        return opened, gone

    def finish(self, node: int) -> None:
        self.start(node)
        arrows = [(cause, node) for cause in bits(self.causes[node])]
        for cause, effect in arrows + [(node, effect) for effect in bits(self.effects[node])]:
            self.use(cause, effect)
        if self.waiting >> node & 1:
            self.close_if_done(node)

    def use(self, cause: int, effect: int) -> None:
        """The arrow cause → effect; the cause's own state has to be settled first."""
        for earlier in bits(self.causes[cause]):
            self.use(earlier, cause)
        self.start(cause)
        self.start(effect)
        self.touched |= self.effects[cause] | self.causes[effect] | self.effects[effect] | 1 << cause | 1 << effect
        self.causes[effect] &= ~(1 << cause)
        self.effects[cause] &= ~(1 << effect)
        self.note(ARROW, cause, effect)
        self.close_if_done(cause)
        self.close_if_done(effect)

    def start(self, node: int) -> None:
        if not self.open >> node & 1:
            self.open |= 1 << node
            self.note(OPEN, node)

    def close_if_done(self, node: int) -> None:
        if not (self.causes[node] or self.effects[node]):
            self.note(CLOSE, node)
            self.open &= ~(1 << node)
            self.waiting &= ~(1 << node)

    def note(self, kind: int, node: int, effect: int = -1) -> None:
        size = self.open.bit_count()
        self.steps.append((kind, node, effect))
        self.width, self.work = max(self.width, size), self.work + (1 << size)
        self.kept += 1 << size if kind == CLOSE else 0


@lru_cache(maxsize=256)
def make_plan(causes: tuple[int, ...]) -> Plan:
    """An order for nodes whose causes are the bits of `causes[node]`: greedy, the cheapest of a few attempts.

    A costly sweep gets more attempts.
    """
    best, attempt = _Planner(causes).run(random.Random(0), False, None), 1
    assert best is not None
    while attempt < ATTEMPTS and best.work > attempt * WORTH_AN_ATTEMPT:
        found = _Planner(causes).run(random.Random(attempt), attempt % 2 == 1, best.work)
        best, attempt = found or best, attempt + 1
    return best


def split(table: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """Views of `table` where the node of `axis` is absent and where it is present."""
    lead = (slice(None),) * axis
    return table[(*lead, 0)], table[(*lead, 1)]


def sweep(plan: Plan, base: np.ndarray, strength: np.ndarray, weight: np.ndarray) -> Sums:
    """Sum over all states of all nodes, in several worlds at once.

    `base` (nodes,); `strength` (nodes, nodes) from cause to effect; `weight` (nodes, 2, worlds): what a node's being
    absent or present is multiplied with, e.g. (0, 1) for a finding that was observed.
    """
    worlds = weight.shape[2]
    table, log_scale = np.ones(worlds), 0.0
    nodes: list[int] = []  # open ones, in the order of the table's axes
    closing: list[tuple[int, np.ndarray]] = []  # (axis, table before), for the way back
    for kind, node, effect in plan.steps:
        if kind == OPEN:
            nodes.insert(0, node)
            table = np.stack([(1 - base[node]) * table, base[node] * table])
        elif kind == ARROW:
            head = nodes.index(effect)
            acting = split(table, nodes.index(node))[1]
            off, on = split(acting, head - (head > nodes.index(node)))
            on += strength[node, effect] * off
            off *= 1 - strength[node, effect]
        else:
            axis = nodes.index(node)
            del nodes[axis]
            closing.append((axis, table))
            absent, present = split(table, axis)
            table = weight[node, 0] * absent + weight[node, 1] * present
            peak = table.max()
            table /= peak
            log_scale += np.log(peak)
    return Sums(table, log_scale, _back(plan, base, strength, weight, closing))


def _back(
    plan: Plan, base: np.ndarray, strength: np.ndarray, weight: np.ndarray, closing: list[tuple[int, np.ndarray]]
) -> np.ndarray:
    """The sweep in reverse: `later` holds, for every state of the open nodes, the probability of what comes later.

    With the table of the way there, just before a node closes, it gives the node's probability: (nodes, worlds).
    """
    present = np.empty((len(base), weight.shape[2]))
    later = np.ones(weight.shape[2])
    nodes: list[int] = []
    for kind, node, effect in reversed(plan.steps):
        if kind == CLOSE:
            axis, table = closing.pop()
            nodes.insert(axis, node)
            states = tuple(range(len(nodes) - 1))
            without, along = (
                (half * weight[node, state] * later).sum(axis=states) for state, half in enumerate(split(table, axis))
            )
            present[node] = along / (without + along)
            later = np.stack([weight[node, 0] * later, weight[node, 1] * later], axis=axis)
            later /= later.max()
        elif kind == ARROW:
            head = nodes.index(effect)
            off, on = split(split(later, nodes.index(node))[1], head - (head > nodes.index(node)))
            off *= 1 - strength[node, effect]
            off += strength[node, effect] * on
        else:
            del nodes[0]
            later = (1 - base[node]) * later[0] + base[node] * later[1]
    return present
