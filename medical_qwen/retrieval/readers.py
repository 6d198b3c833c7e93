"""One reader for each kind of file. What a file is, its content decides: an extension may lie."""

import csv
import hashlib
import io
import json
import re
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from medical_qwen.records.files import inspect, opened
from medical_qwen.records.problems import BadRecord
from medical_qwen.retrieval.document import (
    Document,
    Unreadable,
    clean,
    from_lines,
    from_rows,
    page_lines,
    reflow,
    without_running_titles,
)

HEAD = 1 << 16
LARGEST = 1 << 31  # bytes that an Office file may unpack to
LONGEST = 1 << 28  # characters of a text, unpacked
WIDEST = 1 << 10  # columns of a sheet
TABLES = (".csv", ".tsv")
FOREIGN = (
    (b"\xd0\xcf\x11\xe0", "an old or an encrypted Office file: save it as .docx or .xlsx, without a password"),
    (b"\x89PNG", "a picture: text in it needs OCR first"),
    (b"\xff\xd8\xff", "a picture: text in it needs OCR first"),
    (b"GIF8", "a picture: text in it needs OCR first"),
    (b"{\\rtf", "an RTF file: save it as .docx or .txt"),
    (b"PAR1", "a parquet file: save it as .csv or .jsonl"),
    (b"7z\xbc\xaf", "an archive: unpack it"),
    (b"Rar!", "an archive: unpack it"),
)
GARBLED = 0.3  # share of signs outside the scripts of text at which a page's fonts name no characters
ODD = re.compile("[\ufffd\ue000-\uf8ff\U000f0000-\U0010ffff]")


def fingerprint(path: Path) -> str:
    """The hash of a file's bytes; of a table by name also that, because it is read as one."""
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return digest + (table_suffix(path) or "")


def table_suffix(path: Path) -> str | None:
    """.csv or .tsv, also in front of .gz or .zst; None for what is no table by name."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    own = suffixes[-2:-1] if suffixes[-1:] in ([".gz"], [".zst"]) else suffixes[-1:]
    return own[0] if own and own[0] in TABLES else None


def read_document(path: str | Path) -> Document:
    """The text of a pdf, docx, xlsx, html, md, txt, csv, tsv, json or jsonl file, the last six also as .gz.

    Raises Unreadable for a file that is empty, encrypted, damaged, or of a kind that holds no text.
    """
    path = Path(path)
    try:
        document = reader(path)(path)
    except (Unreadable, ImportError, MemoryError):
        raise
    except Exception as error:  # parsers raise what they like on a damaged file; the others are still to be read
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise Unreadable(f"damaged or unreadable: {reason}") from error
    if not document.text.strip():
        raise Unreadable("; ".join(document.notes) or "there is no text in it")
    return document


def reader(path: Path) -> Callable[[Path], Document]:
    """The function that reads what this file is."""
    if not path.stat().st_size:
        raise Unreadable("an empty file (0 bytes)")
    with opened(path) as stream:
        head = stream.read(HEAD)
    if b"%PDF-" in head[:1024]:
        return read_pdf
    if head.startswith(b"PK\x03\x04"):
        return office(path)
    for magic, what in FOREIGN:
        if head.startswith(magic):
            raise Unreadable(what)
    return read_text


def office(path: Path) -> Callable[[Path], Document]:
    with zipfile.ZipFile(path) as archive:
        names = set(archive.namelist())
        size = sum(entry.file_size for entry in archive.infolist())
    if size > LARGEST:
        raise Unreadable(f"it unpacks to {size / 2**30:.1f} GiB, more than the {LARGEST / 2**30:.0f} GiB allowed")
    if "word/document.xml" in names:
        return read_docx
    if "xl/workbook.xml" in names:
        return read_xlsx
    raise Unreadable("slides: save them as .pdf" if "ppt/presentation.xml" in names else "an archive: unpack it")


def read_pdf(path: Path) -> Document:
    """The text layer, page by page. A page of pictures without text is named, not guessed at."""
    pdfium = needed("pypdfium2", "pypdfium2")
    try:
        pdf = pdfium.PdfDocument(path)
    except pdfium.PdfiumError as error:
        if "password" in str(error).lower():
            raise Unreadable("an encrypted PDF: save a copy without a password") from error
        raise Unreadable(f"a damaged PDF ({error})") from error
    pages: dict[int, list[str]] = {}
    scanned, garbled, broken = [], [], []
    with pdf:
        for number in range(1, len(pdf) + 1):
            try:
                text, pictures = pdf_page(pdfium, pdf, number - 1)
            except pdfium.PdfiumError:
                broken.append(number)
                continue
            if text.strip() and len(ODD.findall(text)) > GARBLED * len(text.strip()):
                garbled.append(number)
            elif text.strip():
                pages[number] = page_lines(text)
            elif pictures:
                scanned.append(number)
    notes = [
        f"{len(bad)} {what} (page {', '.join(map(str, bad[:10]))}{', …' if len(bad) > 10 else ''})"
        for bad, what in (
            (scanned, "scanned or a picture, without a text layer: run OCR first"),
            (garbled, "in fonts that do not say which characters they show"),
            (broken, "damaged"),
        )
        if bad
    ]
    lines = ((line, page) for page, layout in without_running_titles(pages).items() for line in reflow(layout))
    return from_lines(lines, notes, marked=False)


def pdf_page(pdfium: Any, pdf: Any, index: int) -> tuple[str, bool]:
    """The text of a page, and whether there are pictures on it where there is none."""
    page = pdf[index]
    try:
        layer = page.get_textpage()
        text = layer.get_text_range()
        layer.close()
        pictures = not text.strip() and any(page.get_objects(filter=[pdfium.raw.FPDF_PAGEOBJ_IMAGE], max_depth=3))
        return text, pictures
    finally:
        page.close()


def read_docx(path: Path) -> Document:
    """Paragraphs and tables in their order; the styles Title and Heading 1–6 are headings."""
    docx = needed("docx", "python-docx")
    lines = []
    for block in docx.Document(str(path)).iter_inner_content():
        if hasattr(block, "rows"):
            lines += [" | ".join(cell.text.replace("\n", " ").strip() for cell in row.cells) for row in block.rows]
            continue
        style = (block.style.name if block.style is not None else "") or ""
        level = re.fullmatch(r"(?:Heading|标题) ?([1-6])", style, re.IGNORECASE)
        marks = "#" * int(level[1]) + " " if level else "# " if style == "Title" else ""
        lines += [marks + line if line.strip() else line for line in block.text.split("\n")]
    return from_lines((clean(line), None) for line in lines)


def read_xlsx(path: Path) -> Document:
    """One section a row, each cell with the name of its column."""
    openpyxl = needed("openpyxl", "openpyxl")
    book = openpyxl.load_workbook(path, read_only=True, data_only=True)
    try:
        rows = []
        for sheet in book.worksheets:
            cells = [
                ["" if cell is None else str(cell) for cell in row] if any(cell is not None for cell in row) else []
                for row in sheet.iter_rows(values_only=True, max_col=min(sheet.max_column or WIDEST, WIDEST))
            ]
            rows += table(cells, f"{sheet.title}, ")
        return from_rows(rows)
    finally:
        book.close()


def read_text(path: Path) -> Document:
    """Whatever has an encoding: JSON lines, a table, a web page, or plain text and Markdown."""
    text = clean(decode(path))
    start = text.lstrip()[:HEAD]
    if start.startswith(("{", "[")) and (records := json_records(text)):
        return from_rows((row_text(record), f"row {number}") for number, record in enumerate(records, 1))
    if re.match(r"<(!doctype html|html|head|body|\?xml[^>]*>\s*<(!doctype )?html)\b", start, re.IGNORECASE):
        return read_html(text)
    if table_suffix(path):
        csv.field_size_limit(1 << 27)
        first = text.split("\n", 1)[0]
        delimiter = max("\t,;", key=first.count)
        return from_rows(table(list(csv.reader(io.StringIO(text), delimiter=delimiter)), ""))
    return from_lines((line, None) for line in text.split("\n"))


def read_html(text: str) -> Document:
    """What a reader of the page sees; h1 to h6 are headings."""
    bs4 = needed("bs4", "beautifulsoup4")
    soup = bs4.BeautifulSoup(text, "lxml")
    for tag in soup(["script", "style", "noscript", "template", "svg", "head"]):
        tag.decompose()
    for string in soup.find_all(string=True):
        if type(string) is bs4.NavigableString and not string.find_parent("pre"):  # a comment is one of another type
            string.replace_with(re.sub(r"\s+", " ", string))
    for tag in soup.find_all(re.compile(r"^h[1-6]$")):
        tag.replace_with(f"\n\n{'#' * int(tag.name[1])} {tag.get_text(' ', strip=True)}\n\n")
    for tag in soup(["td", "th"]):
        tag.append(" | ")
    for tag in soup(["br", "p", "div", "li", "tr", "table", "ul", "ol", "dt", "dd", "section", "article", "pre"]):
        tag.insert_before("\n")
        tag.insert_after("\n")
    return from_lines((line.strip(" |"), None) for line in re.sub(r"\n\s*\n+", "\n\n", soup.get_text()).split("\n"))


def decode(path: Path) -> str:
    """Text in UTF-8, UTF-16, GB18030, or the encoding that charset-normalizer finds."""
    try:
        with inspect(path).text() as stream:
            text = stream.read(LONGEST + 1)
            if len(text) > LONGEST:
                raise Unreadable(f"it unpacks to more than {LONGEST >> 20} Mi characters")
            return text
    except BadRecord as problem:
        if problem.expected == "UTF-8 text":
            raise Unreadable(f"damaged text: {problem}") from problem
        with opened(path) as stream:
            guess = needed("charset_normalizer", "charset-normalizer").from_bytes(stream.read(LONGEST)).best()
        if guess is None:
            raise Unreadable("neither text nor a document of a known kind") from problem
        return str(guess)


def json_records(text: str) -> list[dict]:
    """The objects of JSON lines or of one JSON value; none if the text is neither."""
    try:
        whole = json.loads(text)
        records = whole if isinstance(whole, list) else [whole]
    except ValueError:
        try:
            records = [json.loads(line) for line in text.split("\n") if line.strip()]
        except ValueError:
            return []
    return records if all(isinstance(record, dict) for record in records) else []


def row_text(record: dict) -> str:
    """`name: value` a line; a lone value stands without its name."""
    values = {str(name): plain(value) for name, value in record.items()}
    values = {name: value for name, value in values.items() if value}
    return next(iter(values.values())) if len(values) == 1 else "\n".join(f"{n}: {v}" for n, v in values.items())


def plain(value: Any) -> str:
    """A JSON value as a reader would write it down."""
    if value is None:
        return ""
    if isinstance(value, dict):
        return "; ".join(f"{name}: {text}" for name, item in value.items() if (text := plain(item)))
    if isinstance(value, list):
        return "; ".join(text for item in value if (text := plain(item)))
    return clean(str(value)).strip()


def table(rows: list[list[str]], place: str) -> Iterator[tuple[str, str]]:
    """(text, place) of each row. A first row of short, distinct words names the columns."""
    rows = [[clean(cell).strip() for cell in row] for row in rows]
    first = [cell for cell in rows[0] if cell] if rows else []
    header = len(first) > 1 and len(set(first)) == len(first) and all(
        len(cell) <= 30 and not re.fullmatch(r"[\d.,%-]+", cell) for cell in first
    )  # fmt: skip
    names = rows[0] if header else []
    for number, row in enumerate(rows[header:], 1 + header):
        if header:
            named = {(names[i] if i < len(names) else "") or f"column {i + 1}": cell for i, cell in enumerate(row)}
            yield row_text(named), f"{place}row {number}"
        else:
            yield " | ".join(cell for cell in row if cell), f"{place}row {number}"


def needed(module: str, package: str) -> Any:
    """An optional package, or an error that says how it is installed."""
    try:
        return __import__(module)
    except ImportError as error:
        raise ImportError(f"this kind of file needs {package}: pip install {package}") from error
