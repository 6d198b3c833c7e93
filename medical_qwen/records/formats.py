"""The layouts that published records have, each one small function from a row to a draft, or to several.

A draft is a dict in the columns of one standard form, before roles are put in order and before the form that the
caller wants is made of it (`forms`). To add a format: write the function and decorate it at its place in the order.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from medical_qwen.answers import LETTERS, options_of

from .messages import (
    AT,
    Message,
    documents_of,
    finished,
    from_items,
    from_openai,
    from_sharegpt,
    from_transcript,
    stripped,
    text_of,
    tools_of,
)
from .problems import BadRecord, names, shown

Row = dict[str, Any]


@dataclass(frozen=True)
class Format:
    """`detect` looks at the columns of a row, and at content only where columns are not enough."""

    name: str
    form: str
    columns: str  # what a row must have, in words
    detect: Callable[[Row], bool]
    convert: Callable[[Row], Row | list[Row]]


FORMATS: dict[str, Format] = {}  # in order of detection

QUESTIONS = ("question", "questions", "Question", "Open-ended Verifiable Question", "问", "ask", "prompt")
ANSWERS = ("answer", "answers", "Answer", "Ground-True Answer", "答", "completion", "response")
MESSAGE_LISTS = ("conversations", "conversation", "messages", "items")


def _format(name: str, form: str, columns: str, detect: Callable[[Row], bool]) -> Callable:
    def register(convert: Callable[[Row], Row | list[Row]]) -> Callable[[Row], Row | list[Row]]:
        FORMATS[name] = Format(name, form, columns, detect, convert)
        return convert

    return register


def _first(row: Row, columns: tuple[str, ...]) -> str | None:
    return next((column for column in columns if column in row), None)


def _column(row: Row, columns: tuple[str, ...], expected: str) -> str:
    if (column := _first(row, columns)) is None:
        raise BadRecord(columns[0], expected, f"no such field (the record has {names(row)})")
    return column


def _list_of(row: Row, columns: tuple[str, ...], *keys: str) -> str | None:
    """The column that holds a list of dicts with one of these keys."""
    for column in columns:
        items = row.get(column)
        if isinstance(items, list) and items and isinstance(items[0], dict) and any(key in items[0] for key in keys):
            return column
    return None


def _pair(row: Row) -> tuple[str, str] | None:
    pairs = ("chosen", "rejected"), ("response_chosen", "response_rejected"), ("chosen", "reject")
    whole = [pair for pair in pairs if row.keys() >= set(pair)]
    return next(iter(whole), next((pair for pair in pairs if not row.keys().isdisjoint(pair)), None))


def _replies(row: Row) -> Row:
    """`chosen` and `rejected` as message lists, from text, a message, or a list of them; and `margin`."""
    found = {}
    for name, column in zip(("chosen", "rejected"), _pair(row) or ("chosen", "rejected"), strict=True):
        value = row.get(column)
        if isinstance(value, dict):
            value = [value]
        if not isinstance(value, list):
            found[name] = [{"role": "assistant", "content": text_of(row, column), AT: column}]
        else:
            found[name] = from_items(value, column)
    if row.get("margin") not in (None, ""):
        found["margin"] = row["margin"]
    return found


def _system(row: Row) -> list[Message]:
    """The persona that stands beside the conversation."""
    text = next((text for name in ("system", "system_prompt") if (text := text_of(row, name, ""))), "")
    return [{"role": "system", "content": text}] if text else []


def _history(row: Row) -> list[Message]:
    pairs = row.get("history") or []
    if not isinstance(pairs, list) or not all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in pairs):
        raise BadRecord("history", "a list of [question, answer]", shown(pairs))
    messages = []
    for number, pair in enumerate(pairs):
        for role, text in zip(("user", "assistant"), pair, strict=True):
            if not isinstance(text, str):
                raise BadRecord(f"history[{number}]", "a question and an answer", shown(text))
            messages.append({"role": role, "content": stripped(text), AT: f"history[{number}]"})
    return messages


def _asked(row: Row, column: str) -> list[Message]:
    """The question; the turns before it, too, where the text is a transcript."""
    user = _user(row, column)
    return from_transcript(user["content"], column) or [user]


def _user(row: Row, column: str) -> Message:
    return {"role": "user", "content": _joined(row, column), AT: column}


def _joined(row: Row, column: str) -> str:
    """Instruction and input, a blank line between. Some sets write line ends at their edges as two characters."""
    parts = (text_of(row, column), text_of(row, "input", "").removeprefix("输入：") if column == "instruction" else "")
    parts = (stripped(re.sub(r"(\\n|\s)+\Z", "", part)) for part in parts)
    return "\n\n".join(part for part in parts if part)


@_format(
    "conversation-pair",
    "preference",
    "conversations, chosen, rejected",
    lambda row: bool(_pair(row) and _list_of(row, MESSAGE_LISTS[:2], "from", "role")),
)
def _conversation_pair(row: Row) -> Row:
    column = _column(row, MESSAGE_LISTS[:2], "a list of messages")
    return {"prompt": _system(row) + from_items(row[column], column), **_replies(row), "tools": tools_of(row)}


@_format(
    "openai-pair",
    "preference",
    "chosen and rejected as lists of {role, content}",
    lambda row: bool(_list_of(row, ("chosen",), "role") and _list_of(row, ("rejected",), "role")),
)
def _openai_pair(row: Row) -> Row:
    replies = _replies(row)
    chosen, rejected = finished(replies["chosen"]), finished(replies["rejected"])
    if isinstance(row.get("prompt"), list):
        prompt = from_openai(row["prompt"], "prompt")
    else:
        shared = 0
        while shared < min(len(chosen), len(rejected)) - 1 and chosen[shared] == rejected[shared]:
            shared += 1
        prompt, replies["chosen"], replies["rejected"] = chosen[:shared], chosen[shared:], rejected[shared:]
        if not prompt:
            prompt = [_user(row, "prompt")]
    return {"prompt": _system(row) + prompt, **replies, "tools": tools_of(row)}


@_format(
    "question-pair",
    "preference",
    "question, response_chosen (or chosen), response_rejected (or rejected); system and history if there are",
    lambda row: "question" in row and _pair(row) is not None,
)
def _question_pair(row: Row) -> Row:
    return {"prompt": [*_system(row), *_history(row), _user(row, "question")], **_replies(row)}


@_format(
    "plain-pair",
    "preference",
    "prompt or instruction, chosen, rejected",
    lambda row: bool(_pair(row)) and isinstance(row.get(_first(row, ("prompt", "instruction"))), str),
)
def _plain_pair(row: Row) -> Row:
    column = _column(row, ("prompt", "instruction"), "text")
    return {"prompt": [*_system(row), *_history(row), *_asked(row, column)], **_replies(row)}


RANKED = ("responses", "answers", "completions")


@_format(
    "ranking",
    "preference",
    "question or prompt, responses: a list, the best first, or with ranks (the lowest is the best)",
    lambda row: (
        not (_pair(row) or options_of(row))
        and ("question" in row or "prompt" in row)
        and isinstance(replies := row.get(_first(row, RANKED)), list)
        and len(replies) > 1
        and ("answers" not in row or "ranks" in row)  # else they are several right answers
    ),
)
def _ranking(row: Row) -> list[Row]:
    """A pair for every two answers of which one is better."""
    column = _column(row, RANKED, "a list of answers")
    replies = row[column]
    ranks = row["ranks"] if row.get("ranks") is not None else list(range(len(replies)))
    if not isinstance(ranks, list) or [type(rank) for rank in ranks] != [int] * len(replies):
        raise BadRecord("ranks", f"{len(replies)} whole numbers, one for each answer", shown(ranks))
    if isinstance(row.get("prompt"), list):
        prompt = _system(row) + from_openai(row["prompt"], "prompt")
    else:
        prompt = [*_system(row), *_history(row), _user(row, _column(row, ("question", "prompt"), "text"))]
    ranked = sorted(zip(ranks, replies, strict=True), key=lambda pair: pair[0])
    drafts = [
        {"prompt": prompt, **_replies({"chosen": better, "rejected": worse}), "tools": tools_of(row)}
        for (high, better), (low, worse) in combinations(ranked, 2)
        if high != low and better != worse
    ]
    if not drafts:
        raise BadRecord(column, "at least two answers of different rank", shown(replies))
    return drafts


@_format(
    "sharegpt",
    "conversation",
    "conversations: a list of {from, value}",
    lambda row: _list_of(row, MESSAGE_LISTS, "from", "value") is not None and not _pair(row),
)
def _sharegpt(row: Row) -> Row:
    column = _list_of(row, MESSAGE_LISTS, "from", "value") or _column(row, MESSAGE_LISTS, "a list of messages")
    messages = _system(row) + from_sharegpt(row[column], column)
    return {"messages": messages, "tools": tools_of(row), "documents": documents_of(row)}


@_format(
    "openai",
    "conversation",
    "messages: a list of {role, content}",
    lambda row: _list_of(row, MESSAGE_LISTS, "role", "content") is not None and not _pair(row),
)
def _openai(row: Row) -> Row:
    column = _list_of(row, MESSAGE_LISTS, "role", "content") or _column(row, MESSAGE_LISTS, "a list of messages")
    messages = _system(row) + from_openai(row[column], column)
    bad = row.get("label") is False
    return {"messages": messages, "tools": tools_of(row), "documents": documents_of(row), "bad_answer": bad}


def _letters(row: Row, options: dict[str, str]) -> str | None:
    """The right letters, sorted, from letters in any spelling, an index, or the text of an option; None without."""
    column = _first(row, ("answer_idx", "answer", "Answer", "label"))
    value = row.get(column) if column else None
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    if isinstance(value, int) and not isinstance(value, bool) and LETTERS[value : value + 1] in options:
        return LETTERS[value]
    text = " ".join(value) if isinstance(value, list) and all(isinstance(item, str) for item in value) else value
    if isinstance(text, str) and text.strip():
        letters = sorted(set(re.sub(r"[\s,，、;；|/]", "", text).upper()))
        if set(letters) <= options.keys():
            return "".join(letters)
        matching = [letter for letter, option in options.items() if option == stripped(text)]
        if len(matching) == 1:
            return matching[0]
    raise BadRecord(column or "answer", f"letters out of {''.join(options)}", shown(value))


@_format(
    "choice",
    "choice",
    "question, options (or columns A, B, …), answer",
    lambda row: _first(row, ("question", "Question")) is not None and bool(options_of(row)),
)
def _choice(row: Row) -> Row:
    options = options_of(row)
    if not options or len(options) < 2:
        raise BadRecord("options", "at least two options", shown(row.get("options")))
    if not all(re.fullmatch("[A-Z]", letter) for letter in options):
        raise BadRecord("options", "a letter for each option", names(options))
    question = text_of(row, _column(row, ("question", "Question"), "text"))
    return {"question": question, "options": options, "answer": _letters(row, options)} | _gold(row)


@_format(
    "alpaca",
    "conversation",
    "instruction (and input), output; system and history if there are",
    lambda row: (
        not _pair(row)
        and (
            (isinstance(row.get("instruction"), str) and "instances" not in row)
            or (isinstance(row.get("input"), str) and _first(row, ("output", "target")) is not None)
        )
    ),
)
def _alpaca(row: Row) -> Row:
    output = _first(row, ("output", "response", "target"))
    question = _asked(row, _column(row, ("instruction", "input"), "text"))
    answer = [{"role": "assistant", "content": text_of(row, output), AT: output}] if output else []
    messages = [*_system(row), *_history(row), *question, *answer]
    return {"messages": messages, "documents": documents_of(row), "answer_field": "output"}


@_format("prompt", "prompt", "prompt: a list of {role, content}", lambda row: bool(_list_of(row, ("prompt",), "role")))
def _prompt(row: Row) -> Row:
    model = row.get("reward_model")
    gold = model.get("ground_truth") if isinstance(model, dict) else None
    column = _first(row, ("answer", "solution", "ground_truth"))
    if gold is None and column:
        gold = text_of(row, column)
    messages = from_openai(row[_column(row, ("prompt",), "a list of messages")], "prompt")
    answer = None if gold is None else str(gold)
    return {"prompt": messages, "answer": answer, "options": options_of(row), "tools": tools_of(row)} | _gold(row)


def _gold(row: Row) -> Row:
    """What a reward needs beside the answer: the unit and relative tolerance of a number, the passages to cite."""
    tolerance = row.get("tolerance")
    if tolerance is not None and tolerance != "":  # cells of tables are texts
        try:
            tolerance = float(tolerance) if not isinstance(tolerance, bool) else math.nan
        except (TypeError, ValueError):
            tolerance = math.nan
        if not 0 <= tolerance < 1:
            raise BadRecord("tolerance", "a relative error from 0 to below 1", shown(row["tolerance"]))
    evidence = row.get("evidence")
    if evidence is not None:
        items = evidence if isinstance(evidence, list) else [evidence]
        evidence = [item.get("text") if isinstance(item, dict) else item for item in items]
        if not all(isinstance(text, str) and text.strip() for text in evidence):
            raise BadRecord("evidence", "a list of texts", shown(row["evidence"]))
    return {"unit": row.get("unit"), "tolerance": None if tolerance == "" else tolerance, "evidence": evidence}


@_format(
    "question-answer",
    "qa",
    "question, answer",
    lambda row: (
        isinstance(row.get(_first(row, QUESTIONS)), str | list)
        and not (_list_of(row, ("prompt",), "role") or _pair(row) or options_of(row))
    ),
)
def _question_answer(row: Row) -> Row:
    question = _one_text(row, _column(row, QUESTIONS, "text"))
    title = text_of(row, "title", "") if "ask" in row else ""
    if title and title not in question:
        question = f"{title}\n{question}".strip()
    answer = _first(row, ANSWERS)
    pair = {"question": question, "answer": _one_text(row, answer) if row.get(answer) is not None else None}
    return pair | {"before": [*_system(row), *_history(row)], "documents": documents_of(row)} | _gold(row)


def _one_text(row: Row, column: str) -> str:
    """Some sets nest paraphrases of one text in lists: the first one."""
    value = row[column]
    while isinstance(value, list) and value:
        value = value[0]
    return text_of({**row, column: value}, column)


@_format(
    "text",
    "text",
    "text",
    lambda row: (
        _first(row, ("text", "completion", "content", "raw_content")) is not None
        and _first(row, (*QUESTIONS, "instruction", "chat", "role", *MESSAGE_LISTS)) is None
    ),
)
def _text(row: Row) -> Row:
    column = _column(row, ("text", "completion", "content", "raw_content"), "text")
    return {"text": text_of(row, column)}
