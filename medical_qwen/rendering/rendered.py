"""A conversation as the model reads it: ids, loss mask, and where everything stands."""

from bisect import bisect_left
from dataclasses import dataclass, replace
from typing import NamedTuple

from .encoding import Encoding, Span


class Region(NamedTuple):
    """An answer, `start:end` in the text, with its end-of-turn mark if it is `closed` by one."""

    start: int
    end: int
    message: int
    closed: bool


@dataclass(frozen=True)
class Rendered:
    """A conversation as the model reads it.

    `mask[i]` is 1 where the assistant wrote `input_ids[i]`. Token i stands at `starts[i]:ends[i]` of `text`.
    `contents` are the texts of the messages, `answers` what the assistant writes (no header, but the end token).
    """

    text: str
    input_ids: list[int]
    mask: list[int]
    starts: list[int]
    ends: list[int]
    contents: tuple[Span, ...]
    answers: tuple[Region, ...]

    @classmethod
    def of(cls, text: str, encoding: Encoding, contents: list[Span], answers: list[Region]) -> "Rendered":
        """With the mask made from the answers."""
        ids, starts, ends = encoding.ids, encoding.starts, encoding.ends
        mask = [0] * len(ids)
        for answer in answers:
            first, last = bisect_left(starts, answer.start), bisect_left(starts, answer.end)
            # A token that begins in the header is the answer's if it carries more of it than spaces.
            if first and ends[first - 1] > answer.start and text[answer.start : ends[first - 1]].strip():
                first -= 1
            mask[first:last] = [1] * (last - first)
        return cls(text, ids, mask, starts, ends, tuple(contents), tuple(answers))

    def needed(self) -> int:
        """Number of tokens up to the last learned one; all of them if none is learned (a prompt)."""
        return len(self.mask) - self.mask[::-1].index(1) if 1 in self.mask else len(self.mask)

    def closed(self, eos: str, eos_id: int) -> "Rendered":
        """With the eos token after the last answer, if the template wrote nothing that ends it."""
        if not self.answers or self.answers[-1].closed:
            return self
        end = self.answers[-1].end
        kept = bisect_left(self.starts, end)
        return replace(
            self,
            text=self.text[:end] + eos,
            input_ids=[*self.input_ids[:kept], eos_id],
            mask=[*self.mask[:kept], 1],
            starts=[*self.starts[:kept], end],
            ends=[*self.ends[:kept], end + len(eos)],
        )

    def cut(self, max_length: int | None) -> "Rendered":
        """The first `max_length` tokens, fewer where those end within a character or with nothing but a header."""
        if max_length is None or len(self.input_ids) <= max_length:
            return self
        kept = max_length
        if self.needed() > max_length:
            while kept and (not self.mask[kept - 1] or self.starts[kept] < self.ends[kept - 1]):
                kept -= 1
        end = self.ends[kept - 1] if kept else 0
        return replace(
            self,
            text=self.text[:end],
            input_ids=self.input_ids[:kept],
            mask=self.mask[:kept],
            starts=self.starts[:kept],
            ends=self.ends[:kept],
            contents=tuple(span._replace(end=min(span.end, end)) for span in self.contents if span.start < end),
            answers=tuple(one._replace(end=min(one.end, end)) for one in self.answers if one.start < end),
        )
