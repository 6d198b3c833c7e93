"""What does the patient say they have? Findings and risks in text: present, absent or not known; whose; since when.

`naming` finds the words; what is said about each of them is read here, from the words before and behind it in its
clause, with the patterns of `wording`. Everything is a rule that can be read, and `data/causal/labelled.jsonl`
measures the rules.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from medical_qwen.causal import wording
from medical_qwen.causal.naming import Names, fold
from medical_qwen.causal.network import Network


@dataclass(frozen=True)
class Mention:
    """A finding or risk in a text."""

    id: str
    state: str  # present, absent, unknown (asked for, but the patient does not know)
    start: int  # characters of the words that name it
    end: int
    who: str = "patient"  # or relative
    duration: float | None = None  # days
    severity: str | None = None  # mild, moderate, severe


ALWAYS_HEARD = {"self_harm_thoughts"}  # a wish in the conditional is the wish: 要是没有我大家会更好
# What has happened stays a warning when it is over: 刚才说不清话，现在好了
EVENTS = {"face_droop", "one_sided_weakness", "one_sided_numbness", "speech_difficulty", "vision_loss", "syncope",
          "seizure", "vomiting_blood", "coughing_blood", "crushing_chest_pain", "thunderclap_headache"}  # fmt: skip


class Extractor:
    """Reads findings and risks of one network out of text."""

    def __init__(self, network: Network) -> None:
        self.network, self._names = network, Names(network)

    def read(self, text: str, who: str = "patient") -> list[Mention]:
        """The mentions in the order of the text; what a sentence says twice is one of them.

        `who`: of whom the text speaks until it names somebody.
        """
        folded = fold(text)
        named = [Mention(one.id, one.state, one.start, one.end) for one in self._names.find(folded)]
        return list(_described(folded, named, who))

    def settled(self, text: str) -> int:
        """How far a text that still grows is final: up to its last finished sentence, in characters.

        Words behind a finding may still deny it, so a clause alone is not enough.
        """
        return max((hit.end() for hit in wording.SENTENCE.finditer(text)), default=0)


# --- what is said about them -----------------------------------------------------------------------------------------


def _described(text: str, mentions: list[Mention], who: str) -> Iterator[Mention]:
    """The mentions with state, person, duration and severity; those in questions and fears are left out."""
    position = 0
    for start, end in _pieces(text, wording.SENTENCE):
        inside = [one for one in mentions if start <= one.start < end]
        clauses = [(a + start, b + start) for a, b in _pieces(text[start:end], wording.CLAUSE)]
        read: list[Mention] = []
        carry = None
        for place, (a, b) in enumerate(clauses):
            mine = [one for one in inside if a <= one.start < b]
            following = text[slice(*clauses[place + 1])] if place + 1 < len(clauses) else ""
            carry = _carried(text[a:b], mine, a, carry)
            states = [_state(text, one, mine, (a, b), carry, following) for one in mine]
            for one, state in zip(mine, states, strict=True):
                who, position = _person(text, position, one.start, who)
                person = "patient" if one.id.startswith("family_history") else who
                if state:
                    read.append(replace(one, state=state, who=person, severity=_severity(text, one, mine, (a, b))))
            read = _timed(text, read, (a, b), mine)
            if not mine:
                read = _late_severity(read, text[a:b])
        who, position = _person(text, position, end, who)
        said = {(one.id, one.state, one.who): one for one in reversed(read)}
        yield from (one for one in read if said[one.id, one.state, one.who] is one)


def _pieces(text: str, separator: re.Pattern[str]) -> Iterator[tuple[int, int]]:
    start = 0
    for hit in separator.finditer(text):
        yield start, hit.start()
        start = hit.end()
    yield start, len(text)


def _person(text: str, position: int, end: int, who: str) -> tuple[str, int]:
    """Of whom the text speaks at `end`: the last person that it named since `position`."""
    named = [(hit.end(), "relative") for hit in wording.RELATIVE.finditer(text, position, end)]
    taken = [(hit.start(), hit.end()) for hit in wording.RELATIVE.finditer(text, position, end)]
    for hit in wording.SELF.finditer(text, position, end):
        if not any(a <= hit.start() < b for a, b in taken):
            named.append((hit.end(), "patient"))
    return (max(named)[1] if named else who), max(position, end)


def _cue(before: str) -> tuple[str, str] | None:
    """(kind, its words) of the last cue in the words before a finding that nothing ends."""
    cues = list(wording.BEFORE.finditer(before))
    if not cues:
        return None
    last = cues[-1]
    has = re.search(r"(?<!没)(?<!还)有(?!没|无)", before[last.end() :]) and not wording.CARRIES.match(last[0])
    if has or wording.TURN.search(before, last.end()):
        return None
    return last.lastgroup or "", last[0]


def _carried(clause: str, mine: list[Mention], offset: int, carry: str | None) -> str | None:
    """The denial of a chart (否认发热，咳嗽，胸痛) holds on through clauses that hold names and nothing else."""
    if not mine:
        return None
    rest = clause
    for start, end in sorted({(one.start - offset, one.end - offset) for one in mine}, reverse=True):
        rest = rest[:start] + rest[end:]
    if carry and not wording.LIST.sub("", rest).strip():
        return carry
    cue = _cue(clause[: mine[0].start - offset])
    return "absent" if cue and wording.CARRIES.match(cue[1]) else None


def _state(
    text: str, one: Mention, mine: list[Mention], clause: tuple[int, int], carry: str | None, following: str
) -> str | None:
    """present, absent, unknown; None for a finding that is only asked about."""
    before, after = text[clause[0] : one.start], text[one.end : clause[1]]
    # other names are no words of their own: 没有恶心呕吐 denies both, 没胃口、头晕 denies nothing
    for start, end in sorted({(other.start, other.end) for other in mine}, reverse=True):
        if end <= one.start:
            before = before[: start - clause[0]] + "、" + before[end - clause[0] :]
        elif start >= one.end:
            after = after[: start - one.end] + "、" + after[end - one.end :]
    cue, tail = _cue(before), re.sub(r"^(?:[、和或及与跟\s]|以及)+", "", after)
    words, always = text[one.start : one.end], one.id in ALWAYS_HEARD
    if wording.UNASKED.search(before + "有" * words.startswith("有")):
        if always and wording.MEANS.search(before + tail):
            return "present"
        known = not (wording.UNKNOWN.search(before + tail) or wording.AFTER_UNKNOWN.match(tail))
        return None if known else "unknown"
    if not always and _only_asked(text, before, tail, clause[1]) and not (cue and cue[0] == "unknown"):
        return None
    if one.state == "unknown" or (not always and wording.AFTER_UNKNOWN.match(tail)):
        return "unknown"
    gone = wording.GONE.match(following.strip())
    if gone and gone["verb"]:
        gone = any(char in words for char in wording.VERBS.get(gone["verb"], gone["verb"]))
    denied = wording.AFTER_ABSENT.match(tail)
    if one.id in EVENTS and not wording.LONG_AGO.search(text[clause[0] : clause[1]] + following):
        gone, denied = None, denied and not denied["over"]
    if one.state == "absent" or denied or gone:
        return "absent"
    if cue is None:
        return "absent" if carry == "absent" and not wording.LIST.sub("", before) else "present"
    kind, cue_words = cue
    near = before[before.rfind(cue_words) + len(cue_words) :]
    if kind == "present" or (kind == "unknown" and (always or (len(near) > 4 and "了" in near))):
        return "present"  # 不知道是不是太累了突然晕倒
    if kind == "unknown":
        return "unknown"
    if cue_words.endswith("没") and before.endswith("没") and re.match("走?[几两]步", words):
        return "present"  # 没走几步就喘
    if always and not wording.WISHED.fullmatch(wording.LIST.sub("", near)):
        return "present"  # 没人理解我，我想死
    if _begun_anew(words, near, tail):
        return "present"
    if cue_words.endswith("不") and len(wording.LIST.sub("", near)) > 2:
        return "present"  # 不 denies what stands right behind it
    return "absent" if len(wording.LIST.sub("", near)) <= 12 else "present"


def _begun_anew(words: str, near: str, tail: str) -> bool:
    """A blank in place of a comma: 没发烧 胸口疼得厉害. Names alone go on with a denial: 没有恶心 呕吐."""
    if "、" not in near or not "\u4e00" <= words[0] <= "\u9fff":
        return False
    *_, last = parts = re.split(r"(?<=、)\s+|\s+(?=、)|(?<=[\u4e00-\u9fff])\s+", near)
    behind = re.split(r"[\s、]", tail)[0]
    own = [*parts[1:-1], last + re.sub(r"^的?(?:情况|症状|现象|感觉)?", "", behind)] if len(parts) > 1 else []
    return any(wording.LIST.sub("", part) for part in own)


def _only_asked(text: str, before: str, tail: str, end: int) -> bool:
    """Whether a clause that ends at `end` asks, fears or supposes a finding instead of stating it."""
    asks = text[end : end + 1] in ("？", "?") or wording.QUESTION.search(tail)
    return bool(
        wording.ASKED.search(before) or (asks and wording.OPEN.search(before)) or re.match(r"会不会|能不能", tail)
    )


def _severity(text: str, one: Mention, mine: list[Mention], clause: tuple[int, int]) -> str | None:
    """From the words of the finding and those around it, as far as the next finding."""
    left = max([clause[0], *(other.end for other in mine if other.end <= one.start)])
    right = min([clause[1], *(other.start for other in mine if other.start >= one.end)])
    return wording.severity(text[max(left, one.start - 10) : min(right, one.end + 12)])


def _late_severity(read: list[Mention], clause: str) -> list[Mention]:
    """`肚子疼，疼得受不了`: a clause without a finding of its own speaks of the last one."""
    level = wording.severity(clause) if re.search(r"疼|痛|得|\d+\s*分", clause) else None
    if not (level and read and read[-1].severity is None):
        return read
    return [*read[:-1], replace(read[-1], severity=level)]


def _timed(text: str, read: list[Mention], clause: tuple[int, int], mine: list[Mention]) -> list[Mention]:
    """A duration belongs to the findings of its clause, or to those before it where the clause has none."""
    found = wording.duration(text[slice(*clause)])
    if found is None:
        return read
    days, at = found[0], clause[0] + found[1]
    here = [one for one in read if clause[0] <= one.start < clause[1]]
    ahead = [one for one in here if one.end <= at]
    targets = (ahead[-1:] if ahead and len(here) > len(ahead) else here) if mine else read
    return [
        replace(one, duration=days) if one in targets and one.duration is None and one.state == "present" else one
        for one in read
    ]
