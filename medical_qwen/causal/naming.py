"""Which words name a finding or a risk? Names and synonyms with room for other words, values, quantities, families."""

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

from medical_qwen.causal import values, wording
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

    Of each group of `keys`, one occurs in every text that the pattern matches: thousands of terms are passed over by
    them.
    """

    id: str
    name: str
    keys: tuple[tuple[str, ...], ...]
    source: str

    @property
    def length(self) -> int:
        return len(self.name.replace("…", ""))

    @property
    def gapped(self) -> bool:
        return "…" in self.name

    def may_be_in(self, text: str) -> bool:
        return all(any(key in text for key in group) for group in self.keys)

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        return re.compile(self.source)


# Words that people use for each other, by region, age and trade: a name with one of them is found with the others too.
ALIKE = (
    "脑袋 脑壳 脑瓜子 脑瓜 脑阔 脑袋瓜 头部",
    "嗓子 喉咙 嗓子眼 嗓子眼儿 嗓眼 喉头 咽喉 喉管 喉咙管",
    "肚子 肚皮 腹部 肚肚 肚子里",
    "小肚子 小腹 下腹 下腹部 小肚皮",
    "小腿肚子 腿肚子 小腿肚 腿肚 小腿肚肚",
    "胸口 心口 胸脯 胸前 前胸 胸部 胸膛 胸腔",
    "脖子 颈子 颈部 脖颈子 脖颈 颈脖子 颈项",
    "膝盖 膝关节 波棱盖 磕膝盖 克膝头 膝盖骨",
    "胳膊 手臂 膀子 臂膀 上肢",
    "大便 便便 粑粑 屎 大号",
    "小便 尿尿 撒尿 排尿 解手 小解 屙尿 解小便",
    "月经 例假 大姨妈 姨妈 生理期",
    "鼻子 鼻孔 鼻腔",
    "眼睛 双眼 两眼 眼珠子 眼珠 眼球",
    "脸颊 面颊 腮帮子 脸蛋 脸庞",
    "嘴唇 口唇 嘴皮子 嘴皮",
    "夜里 晚上 半夜 夜间 夜晚 后半夜 深夜 大半夜 晚间",
    "早上 早起 早晨 清早 清晨 晨起 大清早 一早",
    "躺下 躺平 平躺 躺着 躺下来 平卧 躺倒",
    "上楼 爬楼 爬楼梯 上楼梯 登楼 爬个楼 上个楼",
    "翻身 翻个身",
    "深呼吸 深吸气 深吸一口气 用力吸气 使劲吸气 大口吸气 大口喘气",
    "饭后 餐后 吃完饭 吃过饭 进食后 食后 吃饱后",
    "左边 左侧 左半边 左半拉 左面 左半侧",
    "右边 右侧 右半边 右半拉 右面 右半侧",
    "半边 半拉 半侧 一侧 单侧 单边",
    "无力 没力气 没力 没有力气 使不上劲 使不上力 没得力气 没啥力气",
    "动不了 不能动 抬不起来 抬不起 抬不动 举不起来 举不起 动弹不得 不会动",
    "石头 大石 石块 磨盘 秤砣 铁块 砖头",
    "水泡 水疱 燎泡 小泡",
    "厕所 茅房 卫生间 洗手间 茅厕",
    "同事 同学 室友 舍友 同桌 工友 邻座 班里 班上 单位里 办公室",
)
_PAINS = ("疼痛", "疼", "痛")
_GROUPS = [tuple(group.split()) for group in ALIKE]
_SAME = {word: rf"(?:{'|'.join(group)})" for group in _GROUPS for word in group}
_ANY_OF = {word: group for group in _GROUPS for word in group} | dict.fromkeys(_PAINS, _PAINS[1:])
_SAME |= dict.fromkeys(_PAINS, rf"[刺隐胀酸绞剧钝坠闷抽]?(?:{'|'.join(_PAINS)})")
_ALIKE = re.compile("|".join(sorted(_SAME, key=len, reverse=True)))
# Words for several things at once. The names on the left are ids of the network or stand for the words below.
SEVERAL = {
    "long_cough": ("long_cough", "cough"),
    "*habits": ("smoking", "heavy_drinking"),
    "*chronic": ("known_hypertension", "known_diabetes", "high_cholesterol"),
    "*stomach": ("vomiting", "diarrhoea"),
    "*bladder": ("frequent_urination", "urgent_urination", "painful_urination"),
}
WORDS_FOR_SEVERAL = {
    "*habits": "烟酒",
    "*chronic": "三高",
    "*stomach": "上吐下泻 又吐又拉 又拉又吐 连吐带拉 边吐边拉 吐泻",
    "*bladder": "尿频急痛 尿频、急、痛 尿频尿急尿痛 尿路刺激 膀胱刺激",
}
# Ends of terms that people pull apart from what they belong to: 头疼 -> 头一直很疼.
_PREDICATES = re.findall(
    r"\S+",
    "疼痛 疼 痛 晕 麻木 麻 水肿 肿胀 肿大 肿 痒 胀 闷 慌 酸 抖 红 黄 紧 干 冷 "
    "僵硬 硬 出血 流血 发麻 发抖 发紫 发黄 发红 发黑 发冷 发胀 发闷 发紧 发痒 发干 发白 发热 发烫 无力 没劲 "
    "没力气 模糊 抽筋 不适 不舒服 难受 下降 减轻 增加 歪 斜 苍白 僵 不清 重影 变差 减退 变细 变黑 黑",
)
# Verbs with an object that people pull apart: 发烧 -> 发了三天烧, 出汗 -> 出了一身冷汗.
_VERBS = "发出咳流拉吐掉尿便抽失打起呕冒"
# What `…` in a synonym stands for: a few words, but neither a denial nor the beginning once more.
_ROOM = r"(?:(?!{})[^，、。；！？,;.!?\n没无不否未和及或伴]){{0,7}}?"
_FILL = (
    r"(?:有点儿?|有些|一点儿?|很|挺|好|特别|非常|老是?|总是?|一直|经常|时不时|偶尔|也|都|又|就|还|在|开始|突然"
    r"|忽然|越来越|更|最近|"
    r"这几天|一阵一?阵(?:地|的)?|隐隐(?:作|地|的)?|阵发性(?:的)?|持续(?:性)?(?:的)?|莫名|稍微|轻微(?:的)?"
    r"|剧烈(?:的)?|比较|感觉|觉得|那里|这里|"
    r"里面?|上面?|处|的时候|得?厉害|特|巨|超|老|周围|附近|位置|部位?|[左右]侧?|两侧|两边|双)*"
)
_NOT = r"(?P<not>(?:也|都|倒|并)?(?:不怎么|不太|没怎么|不再|不是|没有?|不|无明显|无|未见))?"
_OBJECT = (
    r"(?:了|过|着|点儿?|些|很多|好多|一身|满身|大量|几|[一二三四五六七八九十两\d]+|天|次|回|口|身|斤|公斤|个?月|周"
    r"|大|高|低|冷|热|不少|的|鲜|浓){0,5}"
)


class Names:
    """All that names the nodes of one network."""

    def __init__(self, network: Network) -> None:
        self._terms = list(_terms(network))
        self._by_head: dict[str, set[int]] = {}  # by the first two characters of the longest keys
        for place, term in enumerate(self._terms):
            for key in max(term.keys, key=lambda group: min(map(len, group))):
                self._by_head.setdefault(key[:2], set()).add(place)
        self._ids = frozenset(network.nodes)
        self._quantities = list(_quantities(network))
        self._family = list(_families(network))

    def find(self, text: str) -> list[Naming]:
        """What a folded text names, in its order. One word names one thing: the longest name wins.

        Of two as long, the one without a gap: 嗓子疼鼻塞 is a sore throat and a blocked nose, no 嗓子…塞.
        """
        heads = {*text, *map(str.__add__, text, text[1:])}
        places = set().union(*(self._by_head.get(head, ()) for head in heads))
        candidates = [
            (
                term.length - term.gapped / 2,
                Naming(term.id, "absent" if hit.groupdict().get("not") else "present", *hit.span()),
            )
            for term in map(self._terms.__getitem__, sorted(places))
            if term.may_be_in(text)
            for hit in term.pattern.finditer(text)
            if len(hit[0]) > 2
            or hit[0].isascii()
            or term.id in WORDS_FOR_SEVERAL
            or self._is_a_word(text, hit.start(), hit.end())
        ]
        candidates += [(100, one) for one in self._measured(text)] + [(50, one) for one in self._inherited(text)]
        candidates += [(2, one) for one in self._unvalued(text)]
        taken: list[Naming] = []
        for _, one in sorted(candidates, key=lambda pair: (-pair[0], pair[1].start - pair[1].end, pair[1].start)):
            if all(one.end <= other.start or one.start >= other.end for other in taken):
                taken.append(one)
        return sorted(self._spelt_out(taken), key=lambda one: one.start)

    def _spelt_out(self, taken: list[Naming]) -> Iterator[Naming]:
        """The exceptions to "one word, one thing": 烟酒 are two risks, a long cough is a cough."""
        for one in taken:
            ids = SEVERAL.get(one.id, (one.id,))
            yield from (replace(one, id=name) for name in ids if name in self._ids)

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
        borders = {
            border + left for _, a, b in self._cutter.tokenize(text[left : end + 10], HMM=False) for border in (a, b)
        }
        return start in borders and end in borders

    def _measured(self, text: str) -> Iterator[Naming]:
        for pattern, ranges in values.MEASURES:
            known = [(name, low, high) for name, low, high in ranges if name in self._ids or not name]
            for hit in pattern.finditer(text) if known else ():
                number = float(f"{hit['a']}.{hit.groupdict().get('b') or 0}")
                inside = [name for name, low, high in known if low <= number < high]
                if inside:
                    yield from (Naming(name, "present", *hit.span()) for name in inside if name)
                elif known[0][0] and known[0][0] not in values.NEVER_DENIED:
                    yield Naming(known[0][0], "absent", *hit.span())

    def _unvalued(self, text: str) -> Iterator[Naming]:
        for name, words in self._quantities:
            for hit in re.finditer(words, text):
                before, after = text[: hit.start()], text[hit.end() :]
                if values.UNKNOWN_BEFORE.search(before) or values.UNKNOWN_AFTER.match(after):
                    yield Naming(name, "unknown", *hit.span())
                elif values.FINE.match(after):
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
    for name, words in WORDS_FOR_SEVERAL.items():
        if any(id_ in network.nodes for id_ in SEVERAL[name]):
            yield from (Term(name, word, ((word,),), re.escape(word)) for word in words.split())
    for node in (*network.risks, *network.findings):
        names = {node.zh, node.en, *network.synonyms.get(node.id, ())}
        seen = set()
        for name in sorted(filter(None, map(fold, map(str.strip, names)))):
            keys, source = _pattern(name)
            if source not in seen:  # 嗓子疼 and 喉咙痛 are one pattern
                yield Term(node.id, name, keys, source)
            seen.add(source)


def _pattern(name: str) -> tuple[tuple[tuple[str, ...], ...], str]:
    """(keys, regular expression) of a name; the expression has room for the words that people put into it."""
    if "…" in name:
        first, *middle, last = map(_alike, name.split("…"))
        room = _ROOM.format(first)
        denied = "" if name.split("…")[-1].startswith(("没", "无", "不", "未")) else _NOT
        return _keys(name), room.join((first, *middle, denied + last))
    if name.isascii():
        return _keys(name), rf"(?<![a-z]){_alike(name)}(?:s|es)?(?![a-z])"
    for predicate in sorted(_PREDICATES, key=len, reverse=True):
        subject = name.removesuffix(predicate)
        if subject and subject != name and subject[-1] not in "发不没有无":
            return _keys(f"{subject}…{predicate}"), rf"{_alike(subject)}{_FILL}{_NOT}{_FILL}{_alike(predicate)}"
    if len(name) == 2 and name[0] in _VERBS:
        end = re.escape(name[1])
        return ((name[1],),), rf"{name[0]}{_OBJECT}{end}|(?P<not>不|没|退){end}(?=了|过)"
    return _keys(name), _alike(name)


def _alike(words: str) -> str:
    """A regular expression for words and those that people use in their place."""
    literal = re.escape(words).replace(r"\(", "[(（]").replace(r"\)", "[)）]")
    return _ALIKE.sub(lambda hit: _SAME[hit[0]], literal)


def _keys(name: str) -> tuple[tuple[str, ...], ...]:
    """What a text must hold if it holds a name: its fixed parts, and one each of the words used for each other."""
    fixed = [(part,) for piece in re.split("[…()]", name) for part in _ALIKE.split(piece) if part]
    return (*fixed, *(_ANY_OF[word] for word in _ALIKE.findall(name)))


def _quantities(network: Network) -> Iterator[tuple[str, str]]:
    for name, words in values.QUANTITIES.items():
        if name in network.nodes:
            yield name, words
    for node in network.findings:
        bare = values.CHANGED.sub("", fold(node.zh))
        if bare != fold(node.zh) and len(bare) > 1 and bare not in "|".join(values.QUANTITIES.values()):
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
