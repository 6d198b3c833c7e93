"""Citations in an answer: which passages it names, checked while it is written."""

import re
from collections.abc import Iterator

NUMBERS = r"\d{1,3}(?:\s*[,，、;；~–-]\s*\d{1,3})*"
CITATION = re.compile(rf"[\[【]\s*({NUMBERS})\s*[\]】]")
OPENED = re.compile(r"[\[【][\d\s,，、;；~–-]{0,24}\Z")  # what may become a citation with the next piece


class Citations:
    """The citations of one answer. `[1, 3]` and `【1-3】` become `[1][3]` …; numbers of no passage are left out.

    Args:
        passages: how many there are; the numbers 1 to `passages` are right.
    """

    def __init__(self, passages: int) -> None:
        self.passages = passages
        self.cited: list[int] = []  # in order of appearance, each once
        self.unknown: list[int] = []
        self._held = ""

    def push(self, piece: str) -> str:
        """Text that is ready: all but an opened bracket that may still become a citation."""
        text = self._held + piece
        opened = OPENED.search(text)
        ready = opened.start() if opened else len(text)
        self._held = text[ready:]
        return CITATION.sub(self._checked, text[:ready])

    def finish(self) -> str:
        """What was held back when the answer ended."""
        text, self._held = self._held, ""
        return text

    def checked(self, pieces: Iterator[str]) -> Iterator[str]:
        """The pieces of an answer with their citations checked."""
        for piece in pieces:
            if text := self.push(piece):
                yield text
        if text := self.finish():
            yield text

    def _checked(self, found: re.Match) -> str:
        kept = []
        for number in numbers(found[1]):
            known = self.cited if 1 <= number <= self.passages else self.unknown
            if number not in known:
                known.append(number)
            kept += [number] if known is self.cited else []
        return "".join(f"[{number}]" for number in kept)


def numbers(text: str) -> list[int]:
    """The numbers of `1, 3` or `2-4`, ranges written out."""
    found: list[int] = []
    for part in re.split(r"[,，、;；]", text):
        first, *last = [int(number) for number in re.split(r"[~–-]", part)]
        found += range(first, last[-1] + 1) if last else [first]
    return found


def uncited(text: str) -> str:
    """The text without its citations: their numbers mean nothing in a later turn, which has other passages."""
    return CITATION.sub("", text)
