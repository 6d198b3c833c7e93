"""Passages: what is found and cited. Cut at sentence ends, within one section, in tokens."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from medical_qwen.retrieval.document import Document

# Ends of sentences, with the closing quotes and brackets behind them; a full stop only before a blank.
SENTENCE_END = re.compile(r"[。！？!?；;…]+[”’」』）)】\"']*|\.(?=\s)|\n+")
CLAUSE_END = re.compile(r"[，,、：:\s]")
TOKEN = re.compile(r"[A-Za-z]+|\d+|\S")
COUNTED = 512  # sections whose tokens are counted in one call
WINDOW = 8  # characters a token that are looked at when one sentence is longer than a passage

Count = Callable[[list[str]], list[int]]  # tokens of each text


@dataclass(frozen=True)
class Passage:
    """`text` is `read_document(file).text[start:end]`. `heading` is the path of titles, or the row of a table."""

    text: str
    file: str
    page: int | None
    heading: str
    start: int
    end: int

    @property
    def indexed(self) -> str:
        """What is searched: the text under its heading, as long as the heading is no mere row number."""
        title = self.heading if self.page is not None or not re.search(r"\brow \d+$", self.heading) else ""
        return f"{title}\n{self.text}" if title and title.split(" > ")[-1] not in self.text else self.text


def count_tokens(texts: list[str]) -> list[int]:
    """Tokens where no tokenizer is at hand: an ideograph, a word of letters, a number, or a sign is one."""
    return [len(TOKEN.findall(text)) for text in texts]


def passages(document: Document, file: str, size: int, overlap: int, count: Count) -> Iterator[Passage]:
    """Every section as passages of at most `size` tokens; neighbours share whole sentences of at most `overlap`."""
    text, sections = document.text, document.sections
    for first in range(0, len(sections), COUNTED):
        group = [(section, trimmed(text, section.start, section.end)) for section in sections[first : first + COUNTED]]
        lengths = count([text[slice(*whole)] for _, whole in group])
        for (section, whole), length in zip(group, lengths, strict=True):
            for start, end in [whole] if length <= size else spans(text, whole, size, overlap, count):
                yield Passage(text[start:end], file, section.page, section.heading, start, end)


def spans(text: str, whole: tuple[int, int], size: int, overlap: int, count: Count) -> Iterator[tuple[int, int]]:
    """The spans of the passages of a section that is longer than one."""
    pieces = sentences(text, *whole)
    lengths = count([text[start:end] for start, end in pieces])
    pieces, lengths = fitting(text, pieces, lengths, size, count)
    first = used = 0
    for i, length in enumerate(lengths):
        if used + length > size:
            yield trimmed(text, pieces[first][0], pieces[i - 1][1])
            first, used = i, 0
            while first > 0 and used + lengths[first - 1] <= min(overlap, size - length):
                first -= 1
                used += lengths[first]
        used += length
    yield trimmed(text, pieces[first][0], pieces[-1][1])


def sentences(text: str, start: int, end: int) -> list[tuple[int, int]]:
    """Spans that tile start:end, each ending behind a sentence end or a line; blank ones belong to the one before."""
    found: list[tuple[int, int]] = []
    for boundary in [*(match.end() for match in SENTENCE_END.finditer(text, start, end)), end]:
        if not text[start:boundary].strip():
            if found and boundary > start:
                found[-1] = (found[-1][0], boundary)
                start = boundary
            continue
        found.append((start, boundary))
        start = boundary
    return found


def fitting(text: str, pieces: list, lengths: list[int], size: int, count: Count) -> tuple[list, list[int]]:
    """Pieces that are longer than a passage cut at commas or, without any, anywhere."""
    cut: list[tuple[int, int]] = []
    tokens: list[int] = []
    for (start, end), length in zip(pieces, lengths, strict=True):
        while length > size:
            window = text[start : min(end, start + WINDOW * size)]
            taken = len(window) if (n := count([window])[0]) <= size else max(1, len(window) * size // n)
            commas = [match.end() for match in CLAUSE_END.finditer(window, taken // 2, taken)]
            taken = commas[-1] if commas else taken
            while (n := count([window[:taken]])[0]) > size and taken > 1:
                taken = taken * 3 // 4
            cut.append((start, start + taken))
            tokens.append(n)
            start += taken
            length = count([text[start:end]])[0] if end - start <= WINDOW * size else size + 1
        if start < end:
            cut.append((start, end))
            tokens.append(length)
    return cut, tokens


def trimmed(text: str, start: int, end: int) -> tuple[int, int]:
    """The span without white space at its edges."""
    piece = text[start:end]
    return start + len(piece) - len(piece.lstrip()), start + len(piece.rstrip())
