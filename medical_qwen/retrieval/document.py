"""What a file says: its text, and which part of it stands on which page, under which heading, in which row.

Every reader gives lines; a line that looks like a heading opens a section. A passage is cut from one section, so it
never runs over a page, and its place can be cited. `text[start:end]` is the passage, character for character.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

TITLE = r"\S[^。；，,;!?！？]{0,38}"  # a title is short and is no sentence
HEADINGS = tuple(
    (level, re.compile(pattern))
    for level, pattern in (
        (1, rf"第[一二三四五六七八九十百零〇\d]+[章篇编部]分?\s*({TITLE})?"),
        (2, rf"第[一二三四五六七八九十百零〇\d]+节\s*({TITLE})?"),
        (3, rf"[一二三四五六七八九十]+、\s*{TITLE}"),
        (4, rf"[（(][一二三四五六七八九十]+[)）]\s*{TITLE}"),
        (4, rf"\d+(\.\d+)+\.?\s+{TITLE}"),
        (6, r"【[^【】]{1,20}】"),
    )
)
MARKED = re.compile(r"(#{1,6})\s+(\S.*?)\s*#*")
LABEL = re.compile(r"【([^【】]{1,20})】")  # as in a package leaflet, where the text may follow on the same line
LEADERS = re.compile(r"\s*(?:[.．·…‥] ?){5,}")  # of a table of contents
FENCE = re.compile(r"\s*(```|~~~)")
# Control characters, surrogates and noncharacters: none of them is text, and some cannot be written as UTF-8.
NO_TEXT = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufeff\ufffe\uffff\ud800-\udfff]")


class Unreadable(ValueError):
    """A file that gives no text. The message says why, and what can be done about it."""


@dataclass(frozen=True)
class Section:
    """A stretch of a document's text with one place: a page, a heading, or a row of a table."""

    start: int
    end: int
    page: int | None = None  # from 1
    heading: str = ""  # the titles above it, outermost first, joined by " > "


@dataclass
class Document:
    """`notes` say what could not be read of it, such as scanned pages."""

    text: str = ""
    sections: list[Section] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def clean(text: str) -> str:
    """The text without characters that are none, with `\\n` as the only line end."""
    return NO_TEXT.sub("", text.replace("\r\n", "\n").replace("\r", "\n").replace("\u2029", "\n").replace("\xa0", " "))


def from_lines(lines: Iterable[tuple[str, int | None]], notes: Iterable[str] = (), marked: bool = True) -> Document:
    """A document from (line, page) pairs. Headings: 第一章, 一、, （一）, 1.2, 【…】; if `marked`, also `# …`."""
    parts: list[str] = []
    sections: list[Section] = []
    titles: dict[int, str] = {}
    start = position = 0
    page, fenced = None, False
    said = body = False  # since `start`: anything, anything but headings

    def close() -> None:
        nonlocal start, said, body
        if said:
            sections.append(Section(start, position, page, " > ".join(titles[level] for level in sorted(titles))))
        start, said, body = position, False, False

    for line, number in lines:
        fenced ^= bool(FENCE.match(line))
        content = line.strip()
        found = None if fenced or (not marked and content.startswith("#")) else heading(content)
        if number != page or (found and body):
            close()
            page = number
        if found:
            level, title = found
            titles = {above: name for above, name in titles.items() if above < level} | {level: title}
        said |= bool(content)
        body |= bool(content) if not found else bool(LABEL.match(content) and LABEL.sub("", content))
        parts.append(line + "\n")
        position += len(line) + 1
    close()
    return Document("".join(parts), sections, list(notes))


def from_rows(rows: Iterable[tuple[str, str]], notes: Iterable[str] = ()) -> Document:
    """A document of (text, heading) rows, each a section of its own."""
    parts, sections, position = [], [], 0
    for text, place in rows:
        if text := text.strip():
            sections.append(Section(position, position + len(text), None, place))
            parts.append(text + "\n\n")
            position += len(text) + 2
    return Document("".join(parts), sections, list(notes))


def heading(line: str) -> tuple[int, str] | None:
    """Level (1: outermost) and title of a line that is a heading."""
    if marked := MARKED.fullmatch(line):
        return len(marked[1]), marked[2]
    if len(line) <= 60:
        for level, pattern in HEADINGS:
            if pattern.fullmatch(line):
                return level, LABEL.sub(r"\1", line)
    if label := LABEL.match(line):
        return 6, label[1]
    return None


def page_lines(page: str) -> list[str]:
    """The lines of a page's layout."""
    return [LEADERS.sub(" … ", line).strip() for line in clean(page).split("\n")]


def reflow(lines: list[str]) -> list[str]:
    """Lines of a layout as paragraphs: a full line that stops within a sentence goes on in the next one."""
    full = max(30, 0.75 * max(map(width, lines), default=0))
    joined: list[str] = []
    going_on = False
    for line in lines:
        if going_on and line and not heading(line):
            last = joined[-1]
            wide = unicodedata.east_asian_width(last[-1]) in "WF" or unicodedata.east_asian_width(line[0]) in "WF"
            if last.endswith("-") and line[0].islower():
                joined[-1] = last[:-1] + line
            else:
                joined[-1] = last + ("" if wide else " ") + line
        else:
            joined.append(line)
        going_on = (
            bool(line) and width(line) >= full and not re.search(r"[。！？!?；;：:.]$", line) and not heading(line)
        )
    return joined


def without_running_titles(pages: dict[int, list[str]]) -> dict[int, list[str]]:
    """Pages without a first or last line that many share but for its number, and that is no sentence."""
    edges = Counter(edge for lines in pages.values() if len(lines) > 2 for edge in {bare(lines[0]), bare(lines[-1])})
    running = {edge for edge, number in edges.items() if number > max(3, 0.3 * len(pages))}
    return {
        page: [
            line
            for i, line in enumerate(lines)
            if len(lines) < 3 or 0 < i < len(lines) - 1 or bare(line) not in running
        ]
        for page, lines in pages.items()
    }


def bare(line: str) -> str:
    """A line without its page number; sentences stay as they are, so that each is one of its own."""
    return line if re.search(r"[。！？；]", line) else re.sub(r"\b(\d+|[ivxlc]+)\b", "", line).strip()


def width(line: str) -> int:
    """Columns that a line takes: an ideograph counts two."""
    return sum(2 if unicodedata.east_asian_width(sign) in "WF" else 1 for sign in line)
