"""The stream of a talk: text comes in, and after each turn stands what could be behind it and what to ask next."""

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from . import wording
from .extraction import Extractor, Mention
from .inference import Evidence, Gain, Posterior, gains, infer
from .network import Network, RedFlag
from .words import in_words

ASKED = 5  # questions kept of a turn
_YES = re.compile(
    r"(?:有(?:的|过|一?点儿?|时候?(?:会|有)?)?|偶尔(?:会|有)?|经常(?:会|有)?|是的?|对的?|嗯+|会的?"
    r"|yes|yeah|yep|sometimes|a little)[啊呀哦吧呢]?",
    re.IGNORECASE,
)
_NO = re.compile(r"(?:没有?|没有过|从没|无|不是的?|不|不会|否|no|nope|none)[啊呀哦吧呢]?", re.IGNORECASE)


@functools.lru_cache(maxsize=4)
def _extractor_of(network: Network) -> Extractor:
    """One for all talks: to compile its thousands of patterns takes 2 s."""
    return Extractor(network)


@dataclass(frozen=True)
class State:
    """What is known and concluded after a turn."""

    text: str  # what was said in this turn, as far as it was read
    heard: tuple[Mention, ...]  # in this turn, with spans in `text`
    subject: str  # patient: who speaks is who is ill; relative: they ask for somebody else
    evidence: Evidence  # of all turns so far, on the subject
    others: frozenset[str]  # present findings of anybody else
    unsure: frozenset[str]  # asked for, but the patient does not know
    details: dict[str, Mention]  # the last mention of every finding and risk of the subject
    posterior: Posterior
    questions: tuple[Gain, ...]  # for the patient, the most telling first
    examination: Gain | None  # the most telling test
    urgent: tuple[RedFlag, ...]
    unread: tuple[str, ...]  # parts of this turn in which nothing of the network was found

    @property
    def question(self) -> Gain | None:
        return self.questions[0] if self.questions else None


class CausalStream:
    """Listens to one patient, or to somebody who asks for one.

    A statement overrides what was said of the same finding before. What relatives have is read, and not taken for the
    patient's own; but where the first complaints are a relative's alone (孩子烧到40度，抽了两分钟), the talk is about
    the relative from then on, and 还吐了 of a later turn is theirs. Urgent is what anybody in the talk has: whose a
    finding is can be misread, and a false alarm costs less than a missed one.

    `language`, zh or en, is that of the words that come back; by default that of the first turn.
    """

    def __init__(self, network: Network, language: str | None = None) -> None:
        if language not in (None, "zh", "en"):
            raise ValueError(f"language: expected zh or en, got {language!r}")
        self.network, self._language = network, language
        self.states: list[State] = []  # one a turn
        self._extractor = _extractor_of(network)
        self._growing = ""  # the turn that is not finished yet
        self._open = False

    @classmethod
    def load(cls, folder: str | Path, language: str | None = None) -> "CausalStream":
        return cls(Network.load(folder), language)

    @property
    def language(self) -> str:
        said = self.states[0].text if self.states else ""
        english = re.search(r"[a-z]", said, re.IGNORECASE) and not re.search(r"[\u4e00-\u9fff]", said)
        return self._language or ("en" if english else "zh")

    @property
    def state(self) -> State | None:
        return self.states[-1] if self.states else None

    def hear(self, text: str, done: bool = True, answer_to: str | None = None) -> State | None:
        """The state after `text`.

        Text may come in pieces of any size with `done=False`; whole sentences are read as they end, and None comes
        back while there is none yet. `answer_to`: the id that the patient was asked about; a bare yes, no or "I do not
        know" at the beginning is taken for its answer.
        """
        if answer_to is not None and answer_to not in self.network.nodes:
            raise ValueError(f"answer_to: expected an id of the network, got {answer_to!r}")
        self._growing += text
        end = len(self._growing) if done else self._extractor.settled(self._growing)
        if not end:
            return None
        heard = self._growing[:end]
        if self._open and heard == self.states[-1].text and not done:
            return self.states[-1]
        earlier = self.states[: -1 if self._open else None]
        state = self._judged(heard, earlier[-1] if earlier else None, answer_to)
        self.states = [*earlier, state]
        self._open = not done
        self._growing = "" if done else self._growing
        return state

    def evidence(self) -> str:
        """The last state in words, for the prompt of a model: ranked causes, why, what is still unknown."""
        return "\n".join(in_words(self.network, self.states[-1], self.language)) if self.states else ""

    def _judged(self, text: str, before: State | None, answer_to: str | None) -> State:
        decided = before is not None and bool(before.evidence.present)
        mentions = self._extractor.read(text, before.subject if decided else "patient")
        subject = before.subject if decided else subject_of(mentions, self.network)
        own = [one for one in mentions if one.who == subject]
        if answer_to and answer_to not in {one.id for one in own}:
            own = [*_answered(text, answer_to), *own]
        details = dict(before.details) if before else {}
        details.update({one.id: one for one in own})
        others = frozenset(one.id for one in mentions if one.who != subject and one.state == "present")
        others |= before.others if before else frozenset()
        told = {state: frozenset(i for i, one in details.items() if one.state == state) for state in
                ("present", "absent", "unknown")}  # fmt: skip
        evidence = Evidence(told["present"], told["absent"])
        warning = evidence.present | others | {one.id for one in own if one.state == "present"}  # 烧到39度，现在37度
        asked = [
            node.id
            for node in (*self.network.findings, *self.network.risks)
            if evidence.known(node.id) is None and node.id not in told["unknown"]
        ]
        worth = gains(self.network, evidence, asked)
        is_test = {gain.id: self.network.nodes[gain.id].kind == "test" for gain in worth}
        return State(
            text=text,
            heard=(*(one for one in own if one not in mentions), *mentions),
            subject=subject,
            others=others,
            evidence=evidence,
            unsure=told["unknown"],
            details=details,
            posterior=infer(self.network, evidence),
            questions=tuple(gain for gain in worth if not is_test[gain.id])[:ASKED],
            examination=next((gain for gain in worth if is_test[gain.id]), None),
            urgent=tuple(flag for flag in self.network.red_flags if flag.findings <= warning),
            unread=tuple(_unread(text, mentions)),
        )


def subject_of(mentions: Sequence[Mention], network: Network) -> str:
    """Whose complaints these are, patient or relative. Risks are none: a father's diabetes does not make him ill."""
    findings = {node.id for node in network.findings}
    complain = {one.who for one in mentions if one.state == "present" and one.id in findings}
    return "relative" if complain == {"relative"} else "patient"


def _answered(text: str, asked: str) -> list[Mention]:
    """A bare yes or no at the beginning, as a mention of what was asked."""
    first = wording.CLAUSE.split(wording.SENTENCE.split(text.strip(), maxsplit=1)[0], maxsplit=1)[0].strip()
    state = "absent" if _NO.fullmatch(first) else "present" if _YES.fullmatch(first) else None
    state = state or ("unknown" if wording.UNKNOWN.search(first) else None)
    start = text.find(first)
    return [Mention(asked, state, start, start + len(first))] if state else []


def _unread(text: str, mentions: Sequence[Mention]) -> list[str]:
    """Clauses that hold no mention, no duration, no severity, and more than a yes or no."""
    parts, start = [], 0
    ends = sorted({hit.span() for pattern in (wording.SENTENCE, wording.CLAUSE) for hit in pattern.finditer(text)})
    for left, right in [*ends, (len(text), len(text))]:
        clause = text[start:left].strip()
        known = any(start < one.end and one.start < left for one in mentions)
        said = known or wording.duration(clause) or wording.severity(clause)
        answer = _YES.fullmatch(clause) or _NO.fullmatch(clause) or wording.UNKNOWN.search(clause)
        if len(clause) > 1 and not (said or answer):
            parts.append(clause)
        start = max(start, right)
    return parts
