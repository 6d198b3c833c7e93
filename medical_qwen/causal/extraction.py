"""What does the patient say they have? Findings and risks in text: present, absent or not known; whose; since when.

Names and synonyms of the network are looked for, the longest first, also where other words stand inside them
(头有点疼, 发了三天烧, 胸口不疼); measured values are compared with thresholds. What is said about each of them is
read from the words before and behind it in its clause. Everything is a rule that can be read, and
`data/causal/labelled.jsonl` measures the rules.
"""

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, replace

from medical_qwen.causal import wording
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


@dataclass(frozen=True)
class Term:
    """A way to say a finding. `gap`: the part inside it that may hold other words, as named groups."""

    id: str
    pattern: re.Pattern[str]
    length: int


# quantity, the words that announce it, unit words that may follow, [(id, at least, below)]; ids that a network lacks
# are skipped. A value outside says that the finding is absent.
MEASURES = (
    (r"体温|烧到|发烧|高烧|低烧|发热|温度|量了?一?下?是?|temperature|fever",
     r"(?P<a>3[4-9]|4[0-3])(?:[.度](?P<b>\d))?\s*(?:度|℃|°c|c\b)?",
     (("fever", 37.3, 46),)),
    (r"血压|高压|收缩压|bp|blood pressure", r"(?P<a>\d{2,3})(?:\s*/\s*\d{2,3})?",
     (("high_blood_pressure", 140, 400), ("low_blood_pressure", 0, 90))),
    (r"心率|脉搏|心跳|heart rate|pulse", r"(?P<a>\d{2,3})", (("tachycardia", 100, 400),)),
    (r"血糖|blood sugar|glucose", r"(?P<a>\d{1,2})(?:\.(?P<b>\d+))?",
     (("high_blood_glucose", 11.1, 90), ("low_blood_glucose", 0, 3.9))),
    (r"血氧|氧饱和度?|spo2|oxygen", r"(?P<a>\d{2,3})\s*%?", (("low_oxygen_saturation", 0, 94),)),
)  # fmt: skip
_BETWEEN = r"[^，。；！？,;!?\d]{0,6}?"

_PAIN = {"疼痛": "(?:疼痛|疼|痛)", "疼": "(?:疼痛|疼|痛)", "痛": "(?:疼痛|疼|痛)"}
# Ends of terms that people pull apart from what they belong to: 头疼 -> 头一直很疼.
_PREDICATES = re.findall(
    r"\S+",
    "疼痛 疼 痛 晕 麻木 麻 水肿 肿胀 肿大 肿 痒 胀 闷 慌 酸 抖 红 黄 紧 干 冷 "
    "僵硬 硬 出血 流血 发麻 发抖 发紫 发黄 发红 发黑 发冷 发胀 发闷 发紧 发痒 发干 发白 发热 发烫 无力 没劲 "
    "没力气 模糊 抽筋 不适 不舒服 难受 下降 减轻 增加 歪 斜 苍白 僵 不清 重影 变差 减退 变细 变黑 黑",
)
# Verbs with an object that people pull apart: 发烧 -> 发了三天烧, 出汗 -> 出了一身冷汗.
_VERBS = "发出咳流拉吐掉尿便抽失打起呕冒"
_FILL = (
    r"(?:有点儿?|有些|一点儿?|很|挺|好|特别|非常|老是?|总是?|一直|经常|时不时|偶尔|也|都|又|就|还|在|开始|突然"
    r"|忽然|越来越|更|最近|"
    r"这几天|一阵一?阵(?:地|的)?|隐隐(?:作|地|的)?|阵发性(?:的)?|持续(?:性)?(?:的)?|莫名|稍微|轻微(?:的)?"
    r"|剧烈(?:的)?|比较|感觉|觉得|那里|这里|"
    r"里面?|上面?|处|的时候|得?厉害|特|巨|超|老|周围|附近|位置|部位?|[左右]侧?|两侧|两边|双)*"
)
_NOT = r"(?P<not>(?:也|都|倒|并)?(?:不怎么|不太|没怎么|不再|不是|没有?|不))?"
_OBJECT = (
    r"(?:了|过|着|点儿?|些|很多|好多|一身|满身|大量|几|[一二三四五六七八九十两\d]+|天|次|回|口|身|斤|公斤|个?月|周"
    r"|大|高|低|冷|热|不少|的|鲜|浓){0,5}"
)


class Extractor:
    """Reads findings and risks of one network out of text."""

    def __init__(self, network: Network) -> None:
        self._terms = list(_terms(network))
        self._ids = frozenset(network.nodes)
        self._family = [
            (node.id, _family_words([node.zh, *network.synonyms.get(node.id, ())]))
            for node in network.risks
            if node.id.startswith("family_history")
        ]

    def read(self, text: str) -> list[Mention]:
        """The mentions in the order of the text. One word names one thing: the longest match wins."""
        folded = fold(text)
        found = sorted(self._matches(folded), key=lambda one: (one.start, one.end))
        return list(_described(folded, found))

    def settled(self, text: str) -> int:
        """How far a text that still grows is final: up to its last finished sentence, in characters.

        Words behind a finding may still deny it, so a clause alone is not enough.
        """
        return max((hit.end() for hit in wording.SENTENCE.finditer(text)), default=0)

    def _matches(self, text: str) -> list[Mention]:
        """Findings wherever they are named, all `present` so far, or `absent` where the denial is inside the words."""
        candidates = [
            (term.length, hit.start(), hit.end(), term.id, "absent" if hit.groupdict().get("not") else "present")
            for term in self._terms
            for hit in term.pattern.finditer(text)
        ]
        candidates += [(100, *one) for one in self._measured(text)] + [(50, *one) for one in self._inherited(text)]
        taken: list[Mention] = []
        for _, start, end, name, state in sorted(candidates, key=lambda one: (-one[0], one[1])):
            if all(end <= other.start or start >= other.end for other in taken):
                taken.append(Mention(name, state, start, end))
        return taken

    def _measured(self, text: str) -> Iterator[tuple[int, int, str, str]]:
        for words, value, ranges in MEASURES:
            for hit in re.finditer(rf"(?:{words}){_BETWEEN}{value}", text):
                number = float(f"{hit['a']}.{hit.groupdict().get('b') or 0}")
                known = [(name, low <= number < high) for name, low, high in ranges if name in self._ids]
                inside = [name for name, holds in known if holds]
                for name, state in [(n, "present") for n in inside] or [(n, "absent") for n, _ in known[:1]]:
                    yield hit.start(), hit.end(), name, state

    def _inherited(self, text: str) -> Iterator[tuple[int, int, str, str]]:
        """`父亲有冠心病` is a risk of the patient's own: a family history."""
        for name, words in self._family:
            if words is None:
                continue
            for relative in wording.BLOOD.finditer(text):
                rest = wording.SENTENCE.split(text[relative.end() :], maxsplit=1)[0]
                rest = wording.SELF.split(rest, maxsplit=1)[0]
                if hit := words.search(rest):
                    yield relative.end() + hit.start(), relative.end() + hit.end(), name, "present"


def fold(text: str) -> str:
    """Lower case and half width, character by character, so that positions stay those of the text."""

    def one(char: str) -> str:
        plain = unicodedata.normalize("NFKC", char).lower()
        return plain if len(plain) == 1 and char not in "，：；！？（）" else char

    return "".join(map(one, text))


def _terms(network: Network) -> Iterator[Term]:
    for node in (*network.risks, *network.findings):
        names = {node.zh, node.en, *network.synonyms.get(node.id, ())}
        for name in filter(None, map(fold, map(str.strip, names))):
            yield Term(node.id, re.compile(_pattern(name)), len(name))


def _pattern(name: str) -> str:
    """A regular expression for a name, with room for the words that people put into it."""
    if name.isascii():
        return rf"(?<![a-z]){re.escape(name)}(?:s|es)?(?![a-z])"
    for predicate in sorted(_PREDICATES, key=len, reverse=True):
        subject = name.removesuffix(predicate)
        if subject and subject != name and subject[-1] not in "发不没有无":
            return rf"{re.escape(subject)}{_FILL}{_NOT}{_FILL}{_PAIN.get(predicate, re.escape(predicate))}"
    if len(name) == 2 and name[0] in _VERBS:
        return rf"{name[0]}{_OBJECT}{re.escape(name[1])}|(?P<not>不|没|退){re.escape(name[1])}(?=了|过)"
    return re.escape(name)


def _family_words(names: list[str]) -> re.Pattern[str] | None:
    """What a family history is of: the names without the words for the family."""
    bare = {re.sub(r"家族|遗传|家里人?|史|有|的|父母|父亲|母亲|亲属|一级|早发", "", fold(name)) for name in names}
    bare = {re.escape(word) for word in bare if len(word) > 1 and not word.isascii()}
    return re.compile("|".join(sorted(bare, key=len, reverse=True))) if bare else None


# --- what is said about them -----------------------------------------------------------------------------------------


def _described(text: str, mentions: list[Mention]) -> Iterator[Mention]:
    """The mentions with state, person, duration and severity; those in questions and fears are left out."""
    who, position = "patient", 0
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
        yield from read


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
    if wording.TURN.search(before, last.end()) or re.search(r"(?<!没)(?<!还)有(?!没|无)", before[last.end() :]):
        return None
    return last.lastgroup or "", last[0]


def _carried(clause: str, mine: list[Mention], offset: int, carry: str | None) -> str | None:
    """The denial of a chart (否认发热，咳嗽，胸痛) holds on through clauses that hold names and nothing else."""
    if not mine:
        return None
    rest = clause
    for one in reversed(mine):
        rest = rest[: one.start - offset] + rest[one.end - offset :]
    if carry and not wording.LIST.sub("", rest).strip():
        return carry
    cue = _cue(clause[: mine[0].start - offset])
    return "absent" if cue and cue[0] == "chart" else None


def _state(
    text: str, one: Mention, mine: list[Mention], clause: tuple[int, int], carry: str | None, following: str
) -> str | None:
    """present, absent, unknown; None for a finding that is only asked about."""
    before, after = text[clause[0] : one.start], text[one.end : clause[1]]
    # other names are no words of their own: 没有恶心呕吐 denies both, 没胃口、头晕 denies nothing
    for other in reversed([other for other in mine if other.end <= one.start]):
        before = before[: other.start - clause[0]] + "、" + before[other.end - clause[0] :]
    for other in reversed([other for other in mine if other.start >= one.end]):
        after = after[: other.start - one.end] + "、" + after[other.end - one.end :]
    cue, tail = _cue(before), re.sub(r"^(?:[、和或及与跟]|以及)+", "", after)
    if wording.UNASKED.search(before):
        known = not (wording.UNKNOWN.search(before) or wording.AFTER_UNKNOWN.match(tail))
        return None if known else "unknown"
    if wording.ASKED.search(before) and not (cue and cue[0] == "unknown"):
        return None
    if wording.AFTER_UNKNOWN.match(tail):
        return "unknown"
    if one.state == "absent" or wording.AFTER_ABSENT.match(tail) or wording.GONE.match(following.strip()):
        return "absent"
    if cue is None:
        return "absent" if carry == "absent" and before.strip("、 ") == "" else "present"
    kind, words = cue
    if kind in ("present", "unknown"):
        return kind
    near = before[before.rfind(words) + len(words) :]
    if words.endswith("不") and len(wording.LIST.sub("", near)) > 2:
        return "present"  # 不 denies what stands right behind it
    return "absent" if len(wording.LIST.sub("", near)) <= 12 else "present"


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
