"""Exact sums over a layered noisy-OR network: one table swept across it.

The table runs over the states of the nodes that are *open*. A node opens with its base probability, every arrow into
it switches its state on where the arrow's cause is present, every arrow out of it is used, and then it closes: the sum
over its two states, each with a weight that says what was observed. One node is finished after the other, so the table
is as wide as the widest moment of the sweep, not as the network. With the findings open all along and the diseases
passing through, this is a table over the subsets of the positive findings that still have to be explained
(2^positives, as quickscore: Heckerman 1989); with the diseases open and the findings passing through it is the
enumeration of causes (2^diseases). The plan takes whichever order is small, mixtures of the two included.

Quickscore's alternating sum cancels: with 15 rare findings nothing is left of it in double precision. Here every term
of a probability is positive, so the relative error is a few roundings per step.

The way back gives the probabilities of all nodes at once, and with them, for every arrow from a node k into a present
finding f, P(k present, f absent, rest of the evidence), which the counterfactuals are made of. The state of an open
finding bears on nothing but itself. So where L is the probability of all that comes later (f being present in the end
included), L(f on) − L(f off) is the probability that it all comes out that way with f staying off. That is the one
subtraction; its rounding error is relative to the probability of the evidence.
"""

import random
from bisect import insort
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

OPEN, ARROW, CLOSE = range(3)
ATTEMPTS, WORTH_AN_ATTEMPT = 16, 3_000_000  # orders that are tried at most, and the work that one more is worth


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
    without: np.ndarray  # (nodes, nodes, worlds) P(k present, f absent, the rest) / P(evidence), k → f


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
        self.needs = [(0, 0)] * len(causes)
        self.caused = self.last_effect = self.last_cause = 0
        for node in range(len(causes)):
            self.note_arrows(node)

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
                key = (wide, behind) if narrow_first else (behind, wide)
                if best is None or key < best or (key == best and noise.random() < 0.3):
                    best, choice = key, node
            self.finish(choice)
            if limit is not None and self.work >= limit:
                return None
        return Plan(tuple(self.steps), self.width, self.work, self.kept)

    def need(self, node: int) -> tuple[int, int]:
        """Nodes that are open at some moment while `node` is finished, and those of them that close."""
        causes, effects = self.causes[node], self.effects[node]
        opened = 1 << node | causes | effects
        for cause in bits(causes & self.caused):
            opened |= self.causes[cause]
        return opened, 1 << node | causes & self.last_effect | effects & self.last_cause

    def note_arrows(self, node: int) -> None:
        """Keep the masks of nodes by their unused arrows: some cause; one effect; one cause and no effect."""
        causes, effects = self.causes[node], self.effects[node]
        for name, holds in (
            ("caused", causes),
            ("last_effect", effects and not effects & (effects - 1)),
            ("last_cause", causes and not effects and not causes & (causes - 1)),
        ):
            mask = getattr(self, name)
            setattr(self, name, mask | 1 << node if holds else mask & ~(1 << node))

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
        self.note_arrows(cause)
        self.note_arrows(effect)
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


class _Axes:
    """Which open node lies on which axis of the table: those with many arrows first.

    Steps on the last axes are slow (short runs in memory), so they are for the nodes that few steps touch.
    """

    def __init__(self, plan: Plan) -> None:
        touched = Counter(node for _, *ends in plan.steps for node in ends)
        self.key = {node: (-count, node) for node, count in touched.items()}
        self.nodes: list[int] = []

    def add(self, node: int) -> int:
        insort(self.nodes, node, key=self.key.__getitem__)
        return self.nodes.index(node)

    def remove(self, node: int) -> int:
        axis = self.nodes.index(node)
        del self.nodes[axis]
        return axis

    def states(self, table: np.ndarray, node: int) -> tuple[np.ndarray, np.ndarray]:
        """Views of the table where the node is absent and where it is present."""
        return split(table, self.nodes.index(node))

    def joint(self, table: np.ndarray, node: int, other: int) -> tuple[np.ndarray, np.ndarray]:
        """Views of the table where `node` is present and `other` is absent, and where both are present."""
        first, second = self.nodes.index(node), self.nodes.index(other)
        return split(split(table, first)[1], second - (second > first))


def split(table: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    lead = (slice(None),) * axis
    return table[(*lead, 0)], table[(*lead, 1)]


def joined(absent: np.ndarray, present: np.ndarray, table: np.ndarray, axis: int) -> np.ndarray:
    """`table` with a new axis: times `absent` where the node is absent, times `present` where it is present."""
    wider = np.empty((*table.shape[:axis], 2, *table.shape[axis:]))
    off, on = split(wider, axis)
    np.multiply(table, absent, out=off)
    np.multiply(table, present, out=on)
    return wider


def sweep(plan: Plan, base: np.ndarray, strength: np.ndarray, weight: np.ndarray, effects: range) -> Sums:
    """Sum over all states of all nodes, in several worlds at once.

    `base` (nodes,); `strength` (nodes, nodes) from cause to effect; `weight` (nodes, 2, worlds): what a node's being
    absent or present is multiplied with, e.g. (0, 1) for a present finding; `effects`: the present findings for whose
    arrows `Sums.without` is wanted.
    """
    table, log_scale, axes = np.ones(weight.shape[2]), 0.0, _Axes(plan)
    closing: list[np.ndarray] = []  # the table before each closing, for the way back
    for kind, node, effect in plan.steps:
        if kind == OPEN:
            table = joined(1 - base[node], base[node], table, axes.add(node))
        elif kind == ARROW:
            off, on = axes.joint(table, node, effect)
            on += strength[node, effect] * off
            off *= 1 - strength[node, effect]
        else:
            closing.append(table)
            absent, present = axes.states(table, node)
            axes.remove(node)
            table = weight[node, 0] * absent + weight[node, 1] * present
            peak = table.max()
            table /= peak
            log_scale += np.log(peak)
    present, without = _back(plan, base, strength, weight, effects, closing)
    return Sums(table, log_scale, present, without)


def _back(
    plan: Plan,
    base: np.ndarray,
    strength: np.ndarray,
    weight: np.ndarray,
    effects: range,
    closing: list[np.ndarray],
) -> tuple[np.ndarray, np.ndarray]:
    """The sweep in reverse: `later` holds, for every state of the open nodes, the probability of what comes later.

    With the tables of the way there, just before a node closes, it gives `Sums.present` and `Sums.without`. Of an
    arrow's two ends the one that closes first sees the other one open.
    """
    worlds = weight.shape[2]
    present, without = np.empty((len(base), worlds)), np.zeros((len(base), len(base), worlds))
    later, axes = np.ones(worlds), _Axes(plan)
    for kind, node, effect in reversed(plan.steps):
        if kind == CLOSE:
            absent_before, present_before = split(closing[-1], axes.add(node))
            along = _dot(present_before, later) * weight[node, 1]
            total = along + _dot(absent_before, later) * weight[node, 0]
            present[node] = along / total
            axes.remove(node)
            for other in axes.nodes:
                if node in effects and strength[other, node]:
                    mine, theirs = axes.states(absent_before, other)[1], axes.states(later, other)[1]
                    without[other, node] = _dot(mine, theirs) / total
                elif other in effects and strength[node, other]:
                    off, on = axes.states(later, other)
                    mine = axes.states(present_before, other)[0]
                    without[node, other] = _dot(mine, on - off) * weight[node, 1] / total
            closing.pop()
            later = joined(weight[node, 0], weight[node, 1], later, axes.add(node))
            later /= later.max()
        elif kind == ARROW:
            off, on = axes.joint(later, node, effect)
            off *= 1 - strength[node, effect]
            off += strength[node, effect] * on
        else:
            absent, along = axes.states(later, node)
            axes.remove(node)
            later = (1 - base[node]) * absent + base[node] * along
    return present, without


def _dot(table: np.ndarray, later: np.ndarray) -> np.ndarray:
    """Sum of the products over all states: (..., worlds) -> (worlds,)."""
    return (table * later).reshape(-1, table.shape[-1]).sum(axis=0)
