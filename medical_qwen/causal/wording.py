"""How people say that something is there, is not there, is not known; whose it is, since when, how bad.

Patterns for the text of one clause, Chinese first, English basics. `extraction` puts them together.
"""

import re

# --- where things end ------------------------------------------------------------------------------------------------

SENTENCE = re.compile(r"[。！？!?；;\n]|(?<![\d.])\.(?=\s|$)")
CLAUSE = re.compile(r"[，,：:]")
TURN = re.compile(
    r"但是?|可是|不过|只是|只有|就(?![诊医])|倒是|却|反而|而是|仍|依然|还是|还有|\bbut\b|\bexcept\b|\bhowever\b"
    r"|\band (?:i )?(?:have|had|am|get|got)\b",
    re.I,
)
LIST = re.compile(r"[\s、和或及与跟、/]|以及|还有|或者|也|和|\b(?:or|and|nor)\b", re.I)

# --- is it there -----------------------------------------------------------------------------------------------------

_WHY = r"(?:是|到底)?(?:为(?:什么|啥|何)|怎么|咋|啥原因|什么原因)"  # 不知道为什么胸口疼: it does hurt
_UNKNOWN = (
    rf"(?:不太?|说不|也不)(?:清楚|知道|确定|好说)(?!{_WHY})|不记得|记不清|说不(?:好|清|上来)|没(?:有)?(?:注意|留意|量|测"
    rf"|查|数|在意)|不好说|不晓得(?!{_WHY})"
    r"|\b(?:not sure|(?:do(?:n't| not)|did(?:n't| not)) know|unsure|can't tell)\b"
)
UNKNOWN = re.compile(_UNKNOWN, re.I)
# Before a finding. The first alternative that matches decides, so the longer ways of saying something come first.
BEFORE = re.compile(
    r"(?P<present>(?:也|倒|又)?不是没有?|并非没有?|不能说没有?|不是不|没有不|差不多|不知不觉|止不住|动不动"
    r"|毫?无(?:明显|任何|特殊|确切)?的?(?:诱因|原因|征兆|预兆)|无缘无故|无故|不(?:动|活动|用力|干活)(?=也|都|就)"
    r"|说不出来?的?|不管用|不见效|没效|没用(?!过|药)|(?<=[受忍撑熬扛挺走站睡躺坐])不(?:了|住|动|着|稳|下去?)"
    r"|没(?:吃(?:[早午晚中]?饭|东西|早点)|睡好|睡着|站[稳住]|休息好)"
    rf"|(?:不太?|没)(?:清楚|知道|晓得|想到|料到)(?={_WHY})"
    r"|没(?:过)?(?:多久|一会儿?|几(?:天|分钟|步)|走[几两]步)"
    r"|不(?:光|仅|但|只|停|断|时|得不|是很|久|由|自觉|小心|一会)"
    r"|忍不住|控制不住)"
    rf"|(?P<unknown>{_UNKNOWN})"
    r"|(?P<chart>否认|未(?:见|诉|发现|出现|觉|闻及|触及|及)?|无(?!力|精|法|比)|不伴有?|排除|\b(?:denie[sd]"
    r"|deny|no|without|negative for)\b)"
    r"|(?P<absent>(?:从来?|也|都|并|还|就|暂时|目前|最近)?(?<!有)没(?:有|得)?(?:再|怎么|太|出现|发生|感到|感觉到?"
    r"|觉得|什么|过|明显的?|啥)*"
    r"|(?:从来?|也|都|并|倒|已经|早就)?(?!(?<=是)不是|(?<=会)不会|(?<=能)不能|(?<=要)不要)不(?:怎么|太|再|会|是|算|觉得|感到|感觉|伴)*|从未|未曾|毫无|并无|并非|绝非"
    r"|\b(?:not|never|(?:do|does|did|has|have|had|is|are|was)(?:n't| not)(?: have| had| any)?|neither)\b)",
    re.I,
)
CARRIES = re.compile(
    r"否认|未诉|denie[sd]|deny", re.I
)  # 否认发热，咳嗽 denies both; after 无咯血，右胸痛 there is pain
# After it, up to the end of the clause.
AFTER_ABSENT = re.compile(
    r"(?:的)?(?:情况|症状|现象|感觉|病史|史|这些|那些|什么的|等等?)*(?:我|她|他)?(?:倒是?|也|都|是|均|还|目前"
    r"|现在|一直|从来|已经?|早就|基本上?|完全|彻底|暂时|全)*"
    r"(?:(?P<over>没有?了|消失|好了|缓解了?|消退|退了|停了)|没有?(?:过|出现)?|不沾|不碰|无|否认|不明显|未见|未出现|阴性"
    r"|不是|\(-\)|（-）|\b(?:is|are|was)? ?"
    r"(?:absent|negative|gone|none)(?: now)?\b)(?:过|了|的|啊|呢|吧|呀|哈)*\s*$",
    re.I,
)
AFTER_UNKNOWN = re.compile(
    r"(?:的)?(?:情况|这个|这些)?(?:我|倒是?|就|也|还|都|真的?|有没有|不太?|是否)*(?:(?:不太?(?:清楚|知道|确定"
    r"|好说)|不晓得)(?=(?:有没有|是不是|算不算)?[了啊呢哦呀的]*\s*$)|说不(?:好|清|上来)|没(?:有)?(?:量|测|查)过?"
    r"|记不清|不记得|\b(?:not sure|unknown|don't know)\b)",
    re.I,
)
GONE = re.compile(
    r"^(?:症状)?(?:已经?|现在|也|都|就|早就|[昨今前](?:天|晚|早)起?)*(?:好了|消失了?|没了|退了|停了|缓解了|止住了"
    r"|不(?P<verb>疼|痛|烧|咳|晕|吐|拉)了|正常了|没事了)"
)
# What 不…了 may end, by a character of its words: 不吐了 ends no headache.
VERBS = {"疼": "疼痛", "痛": "疼痛", "烧": "烧热度℃", "晕": "晕眩", "吐": "吐呕", "拉": "拉泻"}
# A question, a fear or a condition states nothing: "could it be …?", "what if …".
ASKED = re.compile(
    r"会不会|是不是(?!.{0,8}(?<![得有怀])了)|算不算|会是|这是不?是?(?!怎么|咋)|难道|怕是|怕(?:得|有|会)"
    r"|担心(?!.{0,6}(?:一直|老是|总是|突然|昨|今[天早晚]|刚))|怀疑|会(?:引起|导致|造成|变成|得)"
    r"|(?:如果|要是|假如|万一)(?!.*[就都总])|预防|防止|"
    r"(?:能不能|可不可以)(?!麻烦|帮|给|请|看|问)|什么是"
    r"|\b(?:could (?:it|this) be|is (?:it|this)|if|worried about|afraid of)\b",
    re.I,
)
OPEN = re.compile(r"会(?:有|出现)")  # a question only where one ends: 爬楼会出现胸痛 states it
QUESTION = re.compile(r"[吗么]\s*$")
UNASKED = re.compile(r"有没有(?!人|医生|大夫|专家|谁)|是否|有无|(?!有没有)([\u4e00-\u9fff])没\1|\bwhether\b", re.I)

# A wish to die that is denied: nothing but this stands between the denial and the wish.
WISHED = re.compile(r"(?:想过?|考虑过?|会|要|有过?|任何|什么|真的?|动过|产生|出现|这种|打算|去)*")
MEANS = re.compile(r"方法|办法|方式|怎么|如何|无痛|不(?:痛|疼)")  # who asks how to do it says that they wish it
LONG_AGO = re.compile(r"早就|早已|以前|小时候|年轻时|曾经|年前|[去前]年|\b(?:ago|as a child|used to)\b", re.I)

# --- whose -----------------------------------------------------------------------------------------------------------

_BLOOD = (
    "(?<!大姨)妈妈?|母亲|爸爸?|父亲|父母|爸妈|爷爷|奶奶|外公|外婆|姥姥|姥爷|哥哥?|弟弟?|姐姐?|妹妹?|叔叔?|伯父|舅舅?"
    "|姑姑?|(?<!大)姨妈?|"
    "祖父|祖母|兄弟|姐妹|儿子|女儿|孩子|宝宝|娃"
)
_OTHERS = (
    "老婆|老公|先生|太太|他爸|他妈|爱人|丈夫|妻子|媳妇|对象|男朋友|女朋友|岳父|岳母|公公|婆婆|同事|朋友|室友|同学|邻居|家里人|家人"
    "|亲戚|别人"
)
RELATIVE = re.compile(
    rf"(?<![和跟与同陪给为怕])(?<![和跟与同陪给为怕]我)(?<![和跟与同陪给为怕]我的)(?<!对不起)(?<!拖累)(?<!连累)(?<!拖累了)(?<!连累了)(?:我家?|俺)?(?:的)?"
    rf"(?:{_BLOOD}|{_OTHERS})|家族|家里(?:面有人|有人|人)|(?<!其)(?<![和跟与同陪给为怕])[他她](?!汀)"
    r"|\bmy (?:mother|mom|mum|father|dad|brother|sister|grand(?:mother|father|ma|pa)|son|daughter|wife|husband"
    r"|child|parents?|"
    r"colleagues?|friends?|uncle|aunt)\b",
    re.I,
)
BLOOD = re.compile(
    rf"{_BLOOD}|家族|家里|\b(?:mother|mom|mum|father|dad|brother|sister|grand\w+|parents?|uncle|aunt)\b", re.I
)
SELF = re.compile(r"我(?!家|们家)|本人|患者|病人|\b(?:i|myself|patient)\b", re.I)

# --- how bad ---------------------------------------------------------------------------------------------------------

SEVERITY = (
    ("severe", r"剧烈|厉害|非常|特别|极其?|严重|很重|受不了|难以忍受|忍不了|撕裂|刀割|要命|要死|死了|不得了"
        r"|不行|巨|好(?=疼|痛)|最.{0,6}一次|"
               r"大量|\b(?:severe|terrible|worst|unbearable|very bad|excruciating)\b"),
    ("mild", r"轻微|轻度|有点|有些|略|稍微?|一点点?|微微|隐隐|不是很|不太重|偶尔|\b(?:mild|slight(?:ly)?"
        r"|a little|a bit)\b"),
    ("moderate", r"中度|中等|比较|挺|明显|蛮|\bmoderate(?:ly)?\b"),
)  # fmt: skip
SEVERITY = tuple((name, re.compile(pattern, re.I)) for name, pattern in SEVERITY)
SCORE = re.compile(r"(?:疼|痛|评分|打|大概|有)[^\d，。]{0,6}(10|[0-9])\s*分(?!钟)|\b(10|[0-9])\s*(?:/|out of)\s*10\b")


def severity(text: str) -> str | None:
    """mild, moderate or severe: by a score out of 10, else by the first word of the table that occurs."""
    if found := SCORE.search(text):
        score = int(found[1] or found[2])
        return "severe" if score >= 7 else "moderate" if score >= 4 else "mild"
    return next((name for name, pattern in SEVERITY if pattern.search(text)), None)


# --- since when ------------------------------------------------------------------------------------------------------

_DIGITS = {"零": 0, "一": 1, "二": 2, "两": 2, "俩": 2, "三": 3, "四": 4, "五": 5, "六": 6, "七": 7, "八": 8, "九": 9}
_ENGLISH = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_WORDS = {name: n for n, name in enumerate(_ENGLISH)}
_WORDS |= {"a": 1, "an": 1, "few": 3, "several": 5, "couple of": 2, "half a": 0.5, "几": 3, "好几": 5, "数": 3}
_DAYS = {
    "年": 365, "个月": 30, "月": 30, "周": 7, "星期": 7, "礼拜": 7, "天": 1, "日": 1, "晚": 1, "宿": 1, "小时": 1 / 24,
    "钟头": 1 / 24, "分钟": 1 / 1440, "year": 365, "month": 30, "week": 7, "day": 1, "night": 1, "hour": 1 / 24,
    "minute": 1 / 1440,
}  # fmt: skip
_NUMBER = r"\d+(?:\.\d+)?|[零一二两俩三四五六七八九十]+|好几|几|数|半"
SPAN = re.compile(
    rf"(?P<number>{_NUMBER})(?P<more>来|多|几)?\s*个?(?P<half>半)?\s*(?P<unit>年|个?月|周|星期|礼拜|天|日|晚"
    rf"|宿|小时|钟头|分钟)(?P<and>半)?"
    r"|(?P<en>\d+(?:\.\d+)?|half a|a few|a couple of|several|an?|one|two|three|four|five|six|seven|eight|nine|ten)\s+"
    r"(?P<en_unit>year|month|week|day|night|hour|minute)s?\b",
    re.I,
)
POINTS = (
    (r"大前天", 3), (r"前天|前晚", 2), (r"昨天|昨晚|昨夜|昨日|昨儿|\byesterday\b|\blast night\b", 1),
    (r"今早|今天|今晨|今晚|早上起来|\bthis morning\b|\btoday\b", 0.5), (r"上个?(?:周|星期|礼拜)|\blast week\b", 7),
    (r"上个?月|\blast month\b", 30), (r"去年|\blast year\b", 365), (r"前年", 730), (r"这(?:几|两)天", 3),
)  # fmt: skip
POINTS = tuple((re.compile(pattern, re.I), days) for pattern, days in POINTS)
# Not a duration: how often, an age, how long a drug was taken.
_OTHER_SPAN = re.compile(r"(?:每|隔|一)\s*$|(?:吃|服|服用|喝|打|用|输)了?(?:药|液)?\s*$|今年\s*$")


def duration(text: str) -> tuple[float, int, int] | None:
    """(days, start, end) of the first duration in a clause, or None.

    `三天`: 3; `两三天`: 2.5; `从昨晚`: 1; `半年`: 182.5.
    """
    for found in SPAN.finditer(text):
        unit = (found["unit"] or found["en_unit"]).lower()
        before, after = text[: found.start()], text[found.end() :]
        repeated = re.match(r"\s*[\d一二两三四五六七八九十几]+\s*[次回顿]|岁", after)
        if _OTHER_SPAN.search(before) or repeated or re.match(r"岁|纪|龄|级", after):
            continue
        days = _DAYS[unit if unit in _DAYS else unit.removeprefix("个")]
        number = _number(found["number"] or found["en"].lower())
        extra = 0.5 if found["half"] or found["and"] else 0.0
        return round((number + extra) * days, 4), found.start(), found.end()
    return next(
        ((float(days), hit.start(), hit.end()) for pattern, days in POINTS if (hit := pattern.search(text))), None
    )


def _number(text: str) -> float:
    text = text.removeprefix("a ") if text.removeprefix("a ") in _WORDS else text
    if text == "半":
        return 0.5
    if text in _WORDS:
        return _WORDS[text]
    if text[0].isdigit():
        return float(text)
    tens, ten, ones = text.partition("十")
    if ten:
        return (_DIGITS.get(tens, 1) if tens else 1) * 10 + (_DIGITS.get(ones, 0) if ones else 0)
    figures = [_DIGITS[char] for char in text]
    return sum(figures) / len(figures)  # two neighbours are a range: 两三 is 2.5
