"""From token ids to text, one token at a time: whole characters only, and never a piece of a stop string."""

from __future__ import annotations

from typing import TYPE_CHECKING

from medical_qwen.answers import strip_thinking

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

THINK_OPEN, THINK_CLOSE = "<think>", "</think>"
UNFINISHED = "\ufffd"  # what a decoder puts where the bytes of a character are not all there yet


class TextStream:
    """Turns the tokens of one answer into its text while they come.

    `push` and `finish` return the text that is new and final: text is held back while a character lacks bytes and
    while it could be the beginning of a stop string. The pieces joined are `decode` of all tokens up to the first stop
    string, without special tokens and leading spaces, whatever the tokens' borders.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop_strings: tuple[str, ...] = ()) -> None:
        self._tokenizer = tokenizer
        self._stops = stop_strings
        self._tokens: list[int] = []
        self._start = (
            0  # the tokens from here to _settled are decoded again: their neighbours may change a token's text
        )
        self._settled = 0  # the tokens up to here are in the text
        self._held = ""  # could be the beginning of a stop string
        self._begun = False  # something other than spaces has come
        self.stopped = False

    def push(self, token: int) -> str:
        """Take one token; the new text. `stopped` becomes true when a stop string is complete."""
        self._tokens.append(token)
        before = self._decode(self._start, self._settled)
        now = self._decode(self._start, len(self._tokens))
        if len(now) <= len(before) or now.endswith(UNFINISHED):
            return ""
        self._start, self._settled = self._settled, len(self._tokens)
        return self._release(now[len(before) :])

    def finish(self) -> str:
        """The text still held back, when no further token comes. A character that lacks bytes is left out."""
        if self.stopped:
            return ""
        before = self._decode(self._start, self._settled)
        rest = self._decode(self._start, len(self._tokens))[len(before) :].rstrip(UNFINISHED)
        text = self._release(rest)
        if not self.stopped:
            text, self._held = text + self._begin(self._held), ""
        return text

    def _decode(self, start: int, end: int) -> str:
        return self._tokenizer.decode(
            self._tokens[start:end], skip_special_tokens=True, clean_up_tokenization_spaces=False
        )

    def _release(self, new: str) -> str:
        text = self._held + new
        found = [(text.find(stop) + len(stop), -len(stop)) for stop in self._stops if stop in text]
        if found:  # the one that is complete first; of two that end together the longer
            end, length = min(found)
            self.stopped, self._held = True, ""
            return self._begin(text[: end + length])
        keep = max((overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return self._begin(text[: len(text) - keep])

    def _begin(self, text: str) -> str:
        text = text if self._begun else text.lstrip()
        self._begun = self._begun or bool(text)
        return text


def overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a beginning of `stop`, but not all of it."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)


def split_thinking(text: str) -> tuple[str, str]:
    """(thought, answer) of a reply, also of one still being written; the answer is that of `strip_thinking`."""
    *closed, rest = text.split(THINK_CLOSE)
    thoughts = [block.partition(THINK_OPEN)[2] if THINK_OPEN in block else block for block in closed]
    thoughts.append(rest.partition(THINK_OPEN)[2])
    return "\n\n".join(thought.strip() for thought in thoughts if thought.strip()), strip_thinking(text)
