"""Where a chat template puts the texts of a conversation, and where the assistant's own words begin and end.

A template is a program; nothing is known of it but what it writes. So it is run once on a conversation of the same
shape in which every text is a single private-use character. What it writes between those characters are its own
words, the *pieces*; the characters mark the *slots*. The real conversation must then read piece, text, piece, text, …
from its first character to its last: `Layout.align` proves it and so finds the position of everything. No template has
to be prefix-stable or to carry `{% generation %}` marks for this.

An answer begins where the generation prompt ends: the template is also run on the messages before the answer, with
`add_generation_prompt`, and what the full conversation has beyond that is what the model will have to write. It ends
with the first end-of-turn mark after the text.
"""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from .messages import Message

Render = Callable[[list[Message], bool], str]  # (messages, add_generation_prompt) -> text

_FIRST, _LAST = 0x100000, 0x10FFFD
SLOT = re.compile(f"([{chr(_FIRST)}-{chr(_LAST)}])")
_TOOL_RESPONSE = ("<tool_response>", "</tool_response>")
_DISGUISED = re.compile(rf"<tool_response>{SLOT.pattern}\1</tool_response>")
_TEXT_MARK = re.compile(r"\s*(<[^<>\s]+>|[^<\s][^<]*?)(?=\s*(?:<|$))")  # an end of turn that is no token
FIELDS = ("content", "reasoning_content")


class Slot(NamedTuple):
    """The place of a field of message number `message`."""

    message: int
    field: str


class Mark(NamedTuple):
    """A position in the template's own words: so many characters into piece number `piece`."""

    piece: int
    offset: int


@dataclass(frozen=True)
class Answer:
    """What the assistant writes as message number `message`; `closed` if an end-of-turn mark is part of it."""

    message: int
    begin: Mark
    end: Mark
    closed: bool


@dataclass(frozen=True)
class Layout:
    """`pieces[0] slots[0] pieces[1] slots[1] … pieces[-1]`, the answers within, and what is not written."""

    pieces: list[str]
    slots: list[Slot]
    answers: list[Answer] = field(default_factory=list)
    dropped: list[Slot] = field(default_factory=list)

    def align(self, text: str, texts: dict[Slot, str]) -> tuple[list[int], list[tuple[int, int]]] | None:
        """Positions of the pieces and spans of the slots in `text`, or None if `text` does not read that way."""
        if not text.startswith(self.pieces[0]):
            return None
        positions, spans, at = [0], [], len(self.pieces[0])
        for i, slot in enumerate(self.slots):
            following = self.pieces[i + 1]
            for variant in _variants(texts[slot]):
                end = at + len(variant)
                if text.startswith(variant, at) and text.startswith(following, end):
                    break
            else:
                return None
            spans.append((at, end))
            positions.append(end)
            at = end + len(following)
        return (positions, spans) if at == len(text) else None


def _variants(text: str) -> list[str]:
    """The text as templates write it: as it is, trimmed in some way, or without the thought in front."""
    variants = [text]
    if text != text.strip():
        variants += [
            text.strip(),
            text.lstrip(),
            text.rstrip(),
            text.strip("\n"),
            text.lstrip("\n"),
            text.rstrip("\n"),
        ]
    if "</think>" in text:
        answer = text.split("</think>")[-1]
        variants += [answer, answer.strip(), answer.lstrip("\n")]
    return variants


def outline(messages: Sequence[Message], split_thoughts: bool) -> tuple[list[Message], dict[Slot, str]]:
    """The conversation with a private-use character for every text, and the texts.

    `split_thoughts`: the template knows `reasoning_content` and takes a thought in front of an answer apart itself; do
    the same here, since it cannot find `</think>` in a single character.
    """
    skeleton, texts = [], {}
    for i, message in enumerate(messages):
        bare = dict(message)
        content = bare.get("content")
        whole = message["role"] == "assistant" and not isinstance(bare.get("reasoning_content"), str)
        if split_thoughts and whole and content and "</think>" in content:
            thought, bare["content"] = content.split("</think>")[0], content.split("</think>")[-1].lstrip("\n")
            bare["reasoning_content"] = thought.rstrip("\n").split("<think>")[-1].lstrip("\n")
        for j, name in enumerate(FIELDS):
            if text := bare.get(name):
                slot = chr(_FIRST + 2 * i + j)
                texts[Slot(i, name)] = text
                # Qwen templates ask whether a user message is a tool's response in disguise.
                disguised = text.startswith(_TOOL_RESPONSE[0]) and text.endswith(_TOOL_RESPONSE[1])
                bare[name] = (2 * slot).join(_TOOL_RESPONSE) if disguised else slot
        skeleton.append(bare)
    return skeleton, texts


def shape(skeleton: Sequence[Message]) -> Any:
    """A hashable key, equal for conversations whose layout is the same."""
    if all(len(message) == 2 for message in skeleton):
        return tuple((message["role"], message["content"]) for message in skeleton)
    return json.dumps(skeleton, ensure_ascii=False, default=str)


def _parse(text: str) -> tuple[list[str], list[Slot]]:
    parts = SLOT.split(_DISGUISED.sub(r"\1", text))
    numbers = [ord(mark) - _FIRST for mark in parts[1::2]]
    return parts[0::2], [Slot(number // 2, FIELDS[number % 2]) for number in numbers]


def _shared(a: str, b: str) -> str:
    """What both texts begin with."""
    length = min(len(a), len(b))
    return a[: next((i for i in range(length) if a[i] != b[i]), length)]


class LayoutBuilder:
    """Finds the layout of conversations of one chat template.

    `controls` matches the tokenizer's control tokens, `eos` is the text of its end-of-sequence token.
    """

    def __init__(self, render: Render, controls: re.Pattern[str], eos: str) -> None:
        user, answer = {"role": "user", "content": chr(_FIRST)}, {"role": "assistant", "content": chr(_FIRST + 2)}
        self.example = render([user, answer, {"role": "user", "content": chr(_FIRST + 4)}], False)
        self.finished = render([user, answer], False)
        short, long = _parse(self.finished)[0], _parse(self.example)[0]
        asked, prompt = _parse(render([user], False))[0][-1], _parse(render([user], True))[0][-1]
        if (len(short), len(long)) != (3, 4):
            raise ValueError("the chat template does not write the texts of user and assistant once each, in order")
        self._generation = prompt.removeprefix(asked) if prompt.startswith(asked) else ""
        leading = [controls.match(piece.lstrip()) for piece in (short[2], long[2])]
        self.end_marks = [match[0] for match in leading if match]
        if not leading[0] and (mark := _TEXT_MARK.match(_shared(short[2], long[2]))):
            self.end_marks.append(mark[1])
        marks = "|".join(re.escape(mark) for mark in {*self.end_marks, eos})
        self._mark = re.compile(marks)
        # Where nothing ends an answer (ChatGLM3), the model stops by writing the mark of the next role, whichever.
        self._mark_at_once = self._mark if short[2].strip() else re.compile(f"{controls.pattern}|{marks}")
        self._eos_too = re.compile(f"(?:{controls.pattern})*?{re.escape(eos)}")

    def build(self, skeleton: list[Message], render: Render, generation: bool) -> Layout:
        """The layout of a conversation (`render` knows its tools); with `generation`, of the prompt for an answer."""
        pieces, slots = _parse(render(skeleton, generation))
        written = {slot.message for slot in slots}
        dropped = [
            Slot(i, "content")
            for i, message in enumerate(skeleton)
            if message.get("content") and Slot(i, "content") not in slots
        ]
        if generation:
            return Layout(pieces, slots, [], dropped)
        answers = []
        for k, message in enumerate(skeleton):
            silent = not any(message.get(name) for name in FIELDS)
            if message["role"] == "assistant" and (k in written or silent):
                answers.append(self._answer(skeleton, k, pieces, slots, render))
        return Layout(pieces, slots, answers, dropped)

    def _answer(self, skeleton: list[Message], k: int, pieces: list[str], slots: list[Slot], render: Render) -> Answer:
        own_slots = [i for i, slot in enumerate(slots) if slot.message == k]
        before = [i for i, slot in enumerate(slots) if slot.message < k]
        header = own_slots[0] if own_slots else before[-1] + 1 if before else 0
        begin = self._begin(skeleton[:k], pieces[header], bool(own_slots), render)
        piece = own_slots[-1] + 1 if own_slots else header
        offset = 0 if own_slots else begin
        plain = own_slots and slots[own_slots[-1]].field == "content" and not skeleton[k].get("tool_calls")
        end = self._end(pieces[piece], offset, at_once=bool(plain))
        if end is None and not plain:  # what the template writes even if nothing follows is the answer's own
            own = _shared(_parse(render(skeleton[: k + 1], False))[0][-1], pieces[piece])
            offset = max(offset, len(own.rstrip()))
        return Answer(k, Mark(header, begin), Mark(piece, offset if end is None else end), end is not None)

    def _begin(self, before: list[Message], header: str, has_slot: bool, render: Render) -> int:
        """Where in the piece in front of an answer the generation prompt ends."""
        try:
            prompt = _parse(render(before, True))[0][-1] if before else None
        except ValueError:  # many templates refuse a conversation that does not begin with a user
            prompt = None
        if prompt is not None and header.startswith(prompt):
            return len(prompt)
        if prompt is not None and has_slot and prompt.startswith(header):
            return len(header)  # the prompt goes further, as where it closes an empty thought
        if self._generation and (at := header.rfind(self._generation)) >= 0:
            return at + len(self._generation)
        if has_slot:
            return len(header)
        raise ValueError(f"cannot tell where an empty answer begins in the chat template's words {header!r}")

    def _end(self, piece: str, offset: int, at_once: bool) -> int | None:
        """Where in the piece after an answer its end-of-turn mark ends, if it has one.

        `at_once`: nothing but spaces may come before it, as there may where the answer ends with a tool call.
        """
        spaces = len(piece) - len(piece[offset:].lstrip())
        mark = self._mark_at_once.match(piece, spaces) if at_once else self._mark.search(piece, offset)
        if mark is None:
            return None
        following = self._eos_too.match(piece, mark.end())  # Cohere ends the response, then the turn
        return following.end() if following else mark.end()
