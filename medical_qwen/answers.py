"""What does a reply answer? The text after the thinking, and the letters or the quantity that it settles on.

Training (`rewards`) and evaluation (`evaluation`) read and judge answers here, so that they cannot drift
apart. A reply may state several conclusions; the last explicit one counts.
"""

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass

from medical_qwen import quantities
from medical_qwen.quantities import Quantity

_LETTERS = "ABCDEFGH"
_RESTATED = "\x01"  # stands behind a letter whose option text followed it
_WORDS = "反应蛋白|二聚体|肽|族|型"  # behind a letter: it is part of a word

_ANSWER_TAG = re.compile(r"<answer>(.*?)(?:</answer>|$)", re.DOTALL)
_BOXED = re.compile(r"\\boxed\s*\{((?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*)\}")
# **A**、**C** or \boxed{A}, \boxed{C}: letters apart that are one answer -> how they are written together
_APART = {
    re.compile(rf"{one}(?:\s*(?:[,、;]\s*(?:and|和)?|and|和)?\s*{one})+"): together
    for one, together in ((r"\*\*[A-Z]\*\*", "**{}**"), (r"\$?\\boxed\s*\{[A-Z]\}\$?", r"\boxed{{{}}}"))
}
_MARKUP = re.compile(r"\\(?:text|mathrm|mathbf|textbf|rm)\b\s*|[*`${}_]")

_CHOICE_CUE = (
    r"(?:(?<!错误)(?<!错)答案[\]】\"']?\s*(?:应该|应当|应|就|只能)?\s*(?:是|为|选择|选)?|(?:正确|最佳|合适)的?选项\s*(?:是|为|有)?|(?<!不)正确的[是为有]"
    r"|(?:^|(?<=[\s。]))答\s*(?=:)|而是|应为|应该是|(?<!反)应是|(?:因此|所以|故|综上),?\s*(?:错误|不正确|不恰当|不属于)[^,。;\n]{0,6}[是为]"
    r"|(?<!不)(?<!不应)(?<!不应该)(?<!不能)(?<!不该)(?<!不要)(?<!不可)(?<!不会)(?<!没有)(?<![勿误错别漏])选(?!项)择?(?:的是|是|为)?"
    r"|(?i:\b(?:answers?[\"']?|(?:correct|right|best)\s+(?:option|choice)s?)\s*(?:is|are|would\s+be|should\s+be|must\s+be|[:=-])"
    r"|(?<!not\s)(?<!n't\s)\b(?:choose|select|pick|go\s+with)\b))"
    r"\s*[:=]?\s*(?:选项|(?i:(?:option|choice|letter)s?\b))?\s*:?\s*[\[【“‘「『\"']?\s*"
)
_CUE = re.compile(_CHOICE_CUE)
# 正确的选项有： and then one option a line
_LISTED = re.compile(
    rf"(?<!不)(?<!错误)({_CHOICE_CUE})(?<=\n)((?:(?:- ?|• ?)[A-Z](?:{_RESTATED}|[.:、)])[^\n]*(?:\n|$))+)"
)
# In the sentence before a statement, or behind it: it is supposed, asked, or what others choose.
_SUPPOSED = re.compile(
    r"如果|假如|假设|若|倘|有人|有些|很多|不少|部分|同学|学生|考生|容易|常常|经常|问.{0,8}则|初看|起初|一开始|原以为"
    r"|(?i:\b(?:if|many|some|students?|often|first|initially)\b)"
)
_ASKED = re.compile(r"\s*(?:吗|\?|还是|[^,。;]{0,4}(?:排除|是常见错误)|的理由|(?i:if\b))")
_OR = re.compile(r"\s*(?:或者?|(?i:or\b))\s*(?:选项)?\s*\(?[A-Z](?![A-Za-z])")
_LABEL = re.compile(r"(?<![A-Za-z0-9])([A-Z])\)?\s*[.、:,)(]*\s*")
_DENIED = re.compile(
    r"[ \t]*(?:选项|项)?[ \t]*(?:者|的(?:人|同学|学生|考生)"
    r"|(?:均|都|是|就|为)*[ \t]*(?:错|不对|不正确|不符|不合|不选|不是|不成立)"
    r"|(?i:(?:is|are)\s+(?:not|wrong|incorrect)))"
)
_AFFIRMED = (
    r"(?:\s*(?:选项|项)?\s*[:(.|]?\s*(?:的?(?:说法|描述|叙述|表述))?[是为最均都全部]*"
    r"(?:正确|符合|合适|恰当|准确|对(?=[\s,。;的]|$))"
    r"|\s*(?:才|就)?是(?:正确|最佳)?答案"
    r"|\s+(?i:(?:is|are)\s+(?:both\s+|all\s+)?(?:the\s+)?(?:correct|right|best|answers?|most\s+(?:appropriate|likely|suitable))))"
    r"(?!吗|\?|[^,。;]?部分|[ \t]+(?i:that|for)\b)"
)
_CONCLUDES = re.compile(r"(?:因此|所以|故|综上|但)[^,。;]{0,3}$")

_STRONG_CUE = re.compile(
    r"(?:答案|结果|结论)[\]】]?\s*(?:应该|应当|应)?(?:约|大约)?(?:是|为|[:=≈])|(?i:\b(?:answer|result)\s*(?:is|[:=]))|####"
)
_WEAK_CUE = re.compile(r"因此|所以|综上|最终|故|(?i:\b(?:therefore|thus|hence|so|finally)\b)")
_CUES_TRIED, _SENTENCE_LENGTH = 20, 400  # from the end; a degenerate reply must not take quadratic time
_REMARK = re.compile(
    r"[,;。]\s*(?:且|而|仍|已)?(?:明显|略|远)?(?:高于|低于|大于|小于|超过|正常|参考|再?加水|加稀释液|稀释[至到]|定容)"
    r"[^,;。\n]*"
)
_SENTENCE_END = re.compile(r"[。;!?！？；\n]|\.(?=\s|$)")


@dataclass(frozen=True)
class Judgement:
    """What was read from a reply (None: nothing readable), and whether that is the gold answer."""

    read: str | None
    right: bool


def strip_thinking(text: str) -> str:
    """The answer alone: what is left of `text` without its `<think>` blocks.

    Halves of a block count as well: of a reply that began inside a block which the prompt had opened
    (`… </think> answer`), and of one that was cut off while thinking (`<think> …`: nothing is left, no answer came).
    """
    kept: list[str] = []
    *closed, rest = text.split("</think>")
    for block in closed:
        before, opened, _ = block.partition("<think>")
        kept = [*kept, before] if opened else []
    return "".join([*kept, rest.partition("<think>")[0]]).strip()


def judge_choice(reply: str, answer: str | None, options: Mapping[str, str | None] | None = None) -> Judgement | None:
    """Whether a reply chooses exactly the letters of `answer`. None where `answer` is not option letters."""
    if options is not None and not isinstance(options, Mapping):
        raise ValueError(f"options: expected {{letter: text}}, got {str(options)[:60]}")
    gold = re.sub(r"[\s,、，;；/]", "", unicodedata.normalize("NFKC", str(answer or ""))).upper()
    if not gold or not set(gold) <= set(_known_letters(options)):
        return None
    read = read_choice(reply, options)
    return Judgement(read, read == "".join(sorted(set(gold))))


def judge_number(
    reply: str, answer: str | float | None, unit: str | None = None, tolerance: float | None = None
) -> Judgement | None:
    """Whether a reply comes to the quantity or the date `answer`. None where `answer` is neither.

    Args:
        answer: a number, `"12.5"`, `"12.5 mg"`, `"2024-05-01"`, or a worked solution that ends with `#### 12.5`.
        unit: of `answer`. A reply in another unit of the same kind is converted; a reply without a unit is taken to
            be in the unit that was asked for.
        tolerance: largest relative error, default 1e-6.
    """
    if tolerance is not None and (isinstance(tolerance, bool | str) or not 0 <= tolerance < 1):
        raise ValueError(f"tolerance: expected a relative error from 0 to below 1, got {tolerance!r}")
    if due := quantities.gold_date(answer):
        scope, first = _conclusion(reply, quantities.find_dates)
        scope = _outside_brackets(scope, quantities.find_dates)
        dates = quantities.find_dates(re.split("=|→|等于|即", scope)[-1]) or quantities.find_dates(scope)
        begins = first and quantities.starts_with_date(scope)
        read = dates[0 if begins else -1] if dates else None
        return Judgement(read and str(read), read == due)
    gold = quantities.gold_quantity(answer, unit)
    if gold is None:
        return None
    read = read_quantity(reply, gold.unit)
    return Judgement(read and str(read), read is not None and quantities.same(read, gold, tolerance))


LETTERS = "ABCDEFGHIJ"


def options_of(row: Mapping[str, object]) -> dict[str, str] | None:
    """The options of a multiple-choice row by letter, from any of the layouts; None if it has none."""
    options = row.get("option", row.get("options", row.get("Options", row.get("choices"))))
    if options is None and {"A", "B"} <= row.keys():
        options = {letter: row[letter] for letter in LETTERS if letter in row}
    if isinstance(options, str):
        lines = [line.strip() for line in options.splitlines() if line.strip()]
        if not all(re.match(r"[A-J][\s.．、:：]", line) for line in lines):
            return None
        options = {line[0]: line[2:] for line in lines}
    if isinstance(options, list):
        if all(isinstance(item, dict) and {"key", "value"} <= item.keys() for item in options):
            options = {item["key"]: item["value"] for item in options}
        elif all(isinstance(item, str) for item in options):
            options = dict(zip(LETTERS, options, strict=False))
    if not isinstance(options, dict):
        return None
    texts = {str(letter).strip().upper(): str(text).strip() for letter, text in options.items() if text is not None}
    return {letter: text for letter, text in texts.items() if text}


def read_choice(reply: str, options: Mapping[str, str | None] | None = None) -> str | None:
    """The option letters that a reply settles on, sorted (`"AC"`), or None.

    In this order: what is in `<answer>`; the last of 答案：C, 选C, `\\boxed{C}`, "the answer is C", … that is not only
    supposed; the last **C**; a first or last line that is just letters; all of "A正确，B错误，C正确", or the one that
    is called the best; letters at the beginning; the only option that the reply restates ("…是C. 感冒。"); a reply
    that is one option's text.
    """
    given = {k: _normal(text) for k, text in (options or {}).items() if text is not None and str(text).strip()}
    text = unicodedata.normalize("NFKC", _last_answer_tag(strip_thinking(reply)))
    text = re.sub(r"\s+", lambda space: "\n" if "\n" in space[0] else " ", text)
    letters = _letter_set(_known_letters(options))
    for apart, together in _APART.items():
        text = apart.sub(lambda found, form=together: form.format("、".join(re.findall("[A-Z]", found[0]))), text)
    bold = [found[1] for found in re.finditer(rf"\*\*\s*({letters})\s*[.、。:]?\s*\*\*", text)]
    text = _with_letters(_MARKUP.sub("", _BOXED.sub(r"答案:\1。", text)), given, letters)
    text = _LISTED.sub(_joined, text)
    for found in (
        _stated(text, letters),
        bold,
        _bare_letters(text, letters, alone=True),
        _affirmed(text, letters),
        _bare_letters(text, letters),
        _only_restated(text, letters),
    ):
        if found:
            return "".join(sorted(set(re.findall(r"[A-Z]", found[-1]))))
    same = [letter for letter, option in given.items() if option.rstrip(" .。") == text.strip().rstrip(" .。")]
    return same[0] if len(same) == 1 else None


def read_quantity(reply: str, unit: str = "") -> Quantity | None:
    """The quantity that a reply settles on, or None. `unit` is the one that was asked for: it tells the answer from
    the other numbers of a sentence."""

    def fitting(text: str) -> list[Quantity]:
        return quantities.fitting(quantities.find_quantities(text, unit), unit)

    scope, first = _conclusion(reply, fitting)
    if not fitting(scope):
        return _counted(reply, unit)
    scope = _outside_brackets(scope, fitting)
    if first:
        right_side = re.split(r"(?<![<>!])=|≈|等于", scope)[-1]
        scope = right_side if fitting(right_side) else scope
    else:
        without = _REMARK.sub("", scope)
        scope = without if fitting(without) else scope
    found = fitting(scope)
    return found[0] if first else found[-1]


def _counted(reply: str, unit: str) -> Quantity | None:
    """Where a rate was asked for and none is there: the quantity of what it counts (每分钟多少滴？ 31滴)."""
    counted = quantities.numerator(unit)
    found = read_quantity(reply, counted) if counted else None
    value = found and quantities.convert(found, counted)
    return None if value is None else Quantity(value, unit)


def _known_letters(options: Mapping[str, str | None] | None) -> str:
    letters = [letter for letter, text in options.items() if text is not None] if options else _LETTERS
    if wrong := [letter for letter in letters if not re.fullmatch("[A-Z]", letter)]:
        raise ValueError(f"options: expected capital letters as keys, got {wrong[0]!r}")
    return "".join(letters)


def _normal(text: str) -> str:
    return _MARKUP.sub("", unicodedata.normalize("NFKC", str(text))).strip()


def _last_answer_tag(text: str) -> str:
    tagged = _ANSWER_TAG.findall(text)
    return tagged[-1].strip() if tagged else text


def _letter_set(letters: str) -> str:
    """Pattern of one or several option letters: C, (C), AC, A、C, A, B, and C, 选项A和选项C, A. text; C. text."""
    one = rf"(?:\([{letters}]{_RESTATED}?\)|[{letters}]{_RESTATED}?\)?)"
    # behind a comma, letters that something is said of begin a new clause: 答案：D，A为并发症
    said = (
        rf"[ \t]*[{letters}](?:[ \t]*[、和与及]?[ \t]*[{letters}])*[ \t]*(?:选项|项)?[ \t]*(?:[为是错不属因会的]|is\b)"
    )
    joined = (
        rf"[ \t]*(?:、?[ \t]*(?:以及|还有|和|与|及|&|and\b)[ \t]*(?:选项)?|、[ \t]*(?:选项)?|[+/]"
        rf"|[,;][ \t]*(?:以及|还有|&|and\b)?(?!{said}))?[ \t]*"
    )
    between = rf"(?:(?<={_RESTATED})[\s;,、。.]*|{joined})"
    return rf"(?<![A-Za-z0-9])(?:\(|选项)?{one}(?:{between}{one}){{0,9}}(?![A-Za-z0-9]|{_WORDS})"


def _with_letters(text: str, options: Mapping[str, str], letters: str) -> str:
    """`A. text of A` becomes a marked A, and so does the bare text of an option behind a cue."""

    def restated(at: int, letters: list[str], boundary: str) -> str | None:
        """The letter whose text stands at a place."""
        for letter in letters:
            end = at + len(options[letter])
            if text.startswith(options[letter], at) and not re.match(boundary, text[end : end + 1]):
                return letter
        return None

    by_length = sorted(
        (k for k, option in options.items() if not re.fullmatch(letters, option)), key=lambda k: -len(options[k])
    )
    for opening, labelled, boundary in ((_LABEL, True, "[A-Za-z0-9]"), (_CUE, False, r"\w")):
        pieces, at = [], 0
        for found in opening.finditer(text):
            candidates = [found[1]] * (found[1] in options) if labelled else by_length
            letter = restated(found.end(), candidates, boundary)
            if letter and found.start() >= at:
                pieces += [text[at : found.start() if labelled else found.end()], letter, _RESTATED]
                at = found.end() + len(options[letter])
                at += found[0].endswith("(") and text.startswith(")", at)  # A(text of A)
            while letter and not labelled and (joint := re.compile(r"\s*[,、;]\s*").match(text, at)):
                if letter := restated(joint.end(), by_length, boundary):
                    pieces += [joint[0], letter, _RESTATED]
                    at = joint.end() + len(options[letter])
        text = "".join([*pieces, text[at:]])
    return text


def _joined(listed: re.Match) -> str:
    """A list of options behind a cue in one line; as it is if something is said against one."""
    if re.search(r"错|不|❌|✘|×|(?i:\b(?:in)?correct|\bwrong|\bnot\b)", listed[2]):
        return listed[0]
    return listed[1] + "、".join(re.findall(r"^(?:- ?|• ?)([A-Z])", listed[2], re.MULTILINE)) + "\n"


def _stated(text: str, letters: str) -> list[str]:
    """The letters of every statement that is neither denied nor an alternative. What is only supposed, or what others
    choose (若选A…, 很多人选A), counts where there is nothing else."""
    found = [
        match
        for match in re.finditer(rf"{_CHOICE_CUE}({letters})", text)
        if not _DENIED.match(text, match.end()) and not _OR.match(text, match.end())
    ]

    def sure(match: re.Match) -> bool:
        sentence = _SENTENCE_END.split(text[max(0, match.start() - 60) : match.start()])[-1]
        return not _SUPPOSED.search(sentence) and not _ASKED.match(text, match.end())

    return [match[1] for match in filter(sure, found)] or [match[1] for match in found]


def _affirmed(text: str, letters: str) -> list[str]:
    """All letters that are called right, together; or those that are called the best, or right in conclusion."""
    found = [
        match
        for match in re.finditer(rf"({letters}){_AFFIRMED}", text)
        if not text.endswith(("假设", "若", "如果"), 0, match.start())
    ]
    last = [
        match
        for match in found
        if re.search("最|best", match[0]) or _CONCLUDES.search(text[max(0, match.start() - 6) : match.start()])
    ]
    return ["".join(match[1] for match in last[-1:] or found)] if found else []


def _bare_letters(text: str, letters: str, alone: bool = False) -> list[str]:
    """Letters that are the first or the last line, or (not `alone`) begin the first. A list of options is none."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        return []
    if re.fullmatch(r"[a-h]", "".join(lines)):
        lines = [lines[0].upper()]
    only = rf"[(\[【\s]*(?:(?i:options?)\s*|选项\s*)?({letters})(?:选项|项)?[)\]】\s.。,、:;]*"
    if len([line for line in lines if re.match(rf"{letters}\s*[.、:){_RESTATED}]", line)]) > 1:
        return []
    begins = rf"({letters})(?:[.、:)。,;]|$|(?<={_RESTATED}))(?!{_DENIED.pattern})"
    at_first = None if alone else re.match(begins, lines[0])
    found = re.fullmatch(only, lines[0]) or at_first or re.fullmatch(only, lines[-1])
    return [found[1]] if found else []


def _only_restated(text: str, letters: str) -> list[str]:
    """The letters of the one place, or of several that agree, where options stand with their texts. Not of a list."""
    found = [m for m in re.finditer(letters, text) if _RESTATED in m[0] and not _DENIED.match(text, m.end())]
    one = len(set(re.findall("[A-Z]", "".join(match[0] for match in found)))) == 1
    same = len({match[0] for match in found}) == 1 and "\n" not in found[0][0]
    return [found[0][0]] if one or same else []


def _outside_brackets(text: str, find) -> str:
    """`text` without what stands in brackets, if `find` still finds something then."""
    outside = re.sub(r"\([^()]*\)", " ", text)
    return outside if find(outside) else text


def _conclusion(reply: str, find) -> tuple[str, bool]:
    """The part of a reply that states its result, and whether the result comes first there. In this order, if `find`
    finds something: what follows the last boxed, 答案： or ####; the sentence of the last 因此 or "so"; all of it."""
    answer = strip_thinking(reply)
    tagged = _ANSWER_TAG.findall(answer)
    text = quantities.normalise(_BOXED.sub(r"答案:\1 ", tagged[-1] if tagged else answer))
    for cue, first in ((_STRONG_CUE, True), (_WEAK_CUE, False)):
        for found in list(cue.finditer(text))[: -_CUES_TRIED - 1 : -1]:
            follows = text[found.end() : found.end() + _SENTENCE_LENGTH].lstrip()
            sentence = _SENTENCE_END.split(follows, maxsplit=1)[0]
            if find(sentence):
                return sentence, first
    return text, bool(tagged)
