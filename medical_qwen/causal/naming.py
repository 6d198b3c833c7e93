"""Which words name a finding or a risk? Names and synonyms with room for other words, values, quantities, families."""

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from medical_qwen.causal import wording
from medical_qwen.causal.network import Network


@dataclass(frozen=True)
class Naming:
    """Words of a text that name a node. `state`: what those words say by themselves; a plain name says present."""

    id: str
    state: str
    start: int
    end: int


@dataclass(frozen=True)
class Term:
    """A way to say a finding. A group `not` in its pattern is a denial inside the words: 头不疼.

    `key` occurs in every text that the pattern matches: thousands of terms are passed over by it.
    """

    id: str
    name: str
    key: str
    source: str

    @property
    def length(self) -> int:
        return len(self.name.replace("…", ""))

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        return re.compile(self.source)


# quantity, the words that announce it, unit words that may follow, [(id, at least, below)]; ids that a network lacks
# are skipped. A value outside says that the finding is absent.
MEASURES = (
    (r"体温|烧到|发烧|高烧|低烧|发热|温度|量了?一?下?是?|temperature|fever",
     r"(?P<a>3[4-9]|4[0-3])(?:[.度](?P<b>\d))?\s*(?:度|℃|°c|c\b)?",
     (("fever", 37.3, 46),)),
    (r"(?<![高低])血压|(?<!血)高压|收缩压|bp|blood pressure", r"(?P<a>\d{2,3})(?:\s*/\s*\d{2,3})?",
     (("high_blood_pressure", 140, 400), ("low_blood_pressure", 0, 90))),
    (r"心率|脉搏|心跳|heart rate|pulse", r"(?P<a>\d{2,3})", (("tachycardia", 100, 400),)),
    (r"血糖|blood sugar|glucose", r"(?P<a>\d{1,2})(?:\.(?P<b>\d+))?",
     (("high_blood_glucose", 11.1, 90), ("low_blood_glucose", 0, 3.9))),
    (r"血氧|氧饱和度?|spo2|oxygen", r"(?P<a>\d{2,3})\s*%?", (("low_oxygen_saturation", 0, 94),)),
)  # fmt: skip
_BETWEEN = r"[^，。；！？,;!?\d病史药]{0,6}?"
# Quantities that are spoken of without a value: 血压没量 (unknown), 胃口不错 (nothing wrong). Those that a finding's
# name tells (尿酸高 -> 尿酸) come on top.
QUANTITIES = {
    "fever": "体温", "poor_appetite": "胃口|食欲", "insomnia": "睡眠|睡觉|睡得", "missed_period": "月经|例假|大姨妈",
    "high_blood_pressure": "血压", "tachycardia": "心率|心跳", "low_oxygen_saturation": "血氧", "diarrhoea": "大便",
}  # fmt: skip
_CHANGED = r"(?:升高|偏高|增高|高|降低|偏低|低|阳性)(?:（.*）|\(.*\))?$"
_FINE = r"[^，。；！？,;!?没不]{0,6}?(?:正常|不高|不低|不错|挺好|很好|还好|还行|还可以|规律|没问题|没事|阴性)"
_UNKNOWN_BEFORE = r"(?:没(?:有)?(?:量|测|查|做|验)过?|不(?:清楚|知道)(?:自己)?的?)(?:过)?"
_UNKNOWN_AFTER = r"[^，。；！？,;!?]{0,4}?(?:没(?:有)?(?:量|测|查|做|验|注意)|不(?:清楚|知道))"

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
_ROOM = r"[^，。；！？,;.!?\n没无不否]{0,7}?"  # what `…` in a synonym stands for
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


class Names:
    """All that names the nodes of one network."""

    def __init__(self, network: Network) -> None:
        self._terms = list(_terms(network))
        self._ids = frozenset(network.nodes)
        self._quantities = list(_quantities(network))
        self._family = list(_families(network))

    def find(self, text: str) -> list[Naming]:
        """What a folded text names, in its order. One word names one thing: the longest name wins."""
        candidates = [
            (term.length, Naming(term.id, "absent" if hit.groupdict().get("not") else "present", *hit.span()))
            for term in self._terms
            if term.key in text
            for hit in term.pattern.finditer(text)
            if len(hit[0]) > 2 or hit[0].isascii() or self._is_a_word(text, hit.start(), hit.end())
        ]
        candidates += [(100, one) for one in self._measured(text)] + [(50, one) for one in self._inherited(text)]
        candidates += [(2, one) for one in self._unvalued(text)]
        taken: list[Naming] = []
        for _, one in sorted(candidates, key=lambda pair: (-pair[0], pair[1].start - pair[1].end, pair[1].start)):
            if all(one.end <= other.start or one.start >= other.end for other in taken):
                taken.append(one)
        return sorted(taken, key=lambda one: one.start)

    @cached_property
    def _cutter(self):
        """jieba with the network's names as its user dictionary."""
        try:
            import jieba
        except ImportError as error:
            raise ImportError("reading findings needs jieba: pip install jieba==0.42.1") from error
        jieba.setLogLevel("WARNING")
        cutter = jieba.Tokenizer()
        for term in self._terms:
            if len(term.name) > 1 and "…" not in term.name:
                cutter.add_word(term.name)
        return cutter

    def _is_a_word(self, text: str, start: int, end: int) -> bool:
        """Whether a short match begins and ends where words do: 烧 is none in 红烧肉. Judged in its surroundings."""
        left = max(0, start - 10)
        borders = {border + left for _, a, b in self._cutter.tokenize(text[left : end + 10]) for border in (a, b)}
        return start in borders and end in borders

    def _measured(self, text: str) -> Iterator[Naming]:
        for words, value, ranges in MEASURES:
            for hit in re.finditer(rf"(?:{words}){_BETWEEN}{value}", text):
                number = float(f"{hit['a']}.{hit.groupdict().get('b') or 0}")
                known = [(name, low <= number < high) for name, low, high in ranges if name in self._ids]
                inside = [name for name, holds in known if holds]
                for name in inside or [name for name, _ in known[:1]]:
                    yield Naming(name, "present" if inside else "absent", *hit.span())

    def _unvalued(self, text: str) -> Iterator[Naming]:
        for name, words in self._quantities:
            for hit in re.finditer(words, text):
                before, after = text[: hit.start()], text[hit.end() :]
                if re.search(_UNKNOWN_BEFORE + "$", before) or re.match(_UNKNOWN_AFTER, after):
                    yield Naming(name, "unknown", *hit.span())
                elif re.match(_FINE, after):
                    yield Naming(name, "absent", *hit.span())

    def _inherited(self, text: str) -> Iterator[Naming]:
        """`父亲有冠心病` is a risk of the patient's own: a family history."""
        for name, words in self._family:
            for relative in wording.BLOOD.finditer(text):
                rest = wording.SENTENCE.split(text[relative.end() :], maxsplit=1)[0]
                rest = wording.SELF.split(rest, maxsplit=1)[0]
                if hit := words.search(rest):
                    yield Naming(name, "present", relative.end() + hit.start(), relative.end() + hit.end())


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
            yield Term(node.id, name, *_pattern(name))


def _pattern(name: str) -> tuple[str, str]:
    """(key, regular expression) of a name; the expression has room for the words that people put into it."""
    if "…" in name:
        pieces = name.split("…")
        return pieces[0], _ROOM.join(map(re.escape, pieces))
    if name.isascii():
        return name, rf"(?<![a-z]){re.escape(name)}(?:s|es)?(?![a-z])"
    for predicate in sorted(_PREDICATES, key=len, reverse=True):
        subject = name.removesuffix(predicate)
        if subject and subject != name and subject[-1] not in "发不没有无":
            end = _PAIN.get(predicate, re.escape(predicate))
            return subject, rf"{re.escape(subject)}{_FILL}{_NOT}{_FILL}{end}"
    if len(name) == 2 and name[0] in _VERBS:
        end = re.escape(name[1])
        return name[1], rf"{name[0]}{_OBJECT}{end}|(?P<not>不|没|退){end}(?=了|过)"
    return name, re.escape(name)


def _quantities(network: Network) -> Iterator[tuple[str, str]]:
    for name, words in QUANTITIES.items():
        if name in network.nodes:
            yield name, words
    for node in network.findings:
        bare = re.sub(_CHANGED, "", fold(node.zh))
        if bare != fold(node.zh) and len(bare) > 1 and bare not in "|".join(QUANTITIES.values()):
            yield node.id, re.escape(bare)


def _families(network: Network) -> Iterator[tuple[str, re.Pattern[str]]]:
    """What each family history is of: its names without the words for the family."""
    for node in network.risks:
        if not node.id.startswith("family_history"):
            continue
        names = {fold(name) for name in (node.zh, *network.synonyms.get(node.id, ()))}
        family = r"家族|遗传|家里人?|中?有人|患|史|有|的|父母|父亲|母亲|我爸|我妈|亲属|一级|早发"
        bare = {re.escape(word) for name in names if len(word := re.sub(family, "", name)) > 1 and not word.isascii()}
        if bare:
            yield node.id, re.compile("|".join(sorted(bare, key=len, reverse=True)))
