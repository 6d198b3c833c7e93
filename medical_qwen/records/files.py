"""Which files are there, and what are their bytes: paths, compression, encoding. The extension decides nothing
that the content can tell."""

import codecs
import gzip
import hashlib
import io
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TextIO

from .problems import BadRecord

EXTENSIONS = (".txt", ".jsonl", ".json", ".csv", ".tsv", ".parquet")
COMPRESSIONS = (".gz", ".zst")
CHUNK = 1 << 20
# Text in GB18030 stops being UTF-8 within its first characters. A file that is good UTF-8 for longer is damaged UTF-8.
ENOUGH_UTF8 = 16
# Share of the characters of real GB18030 text that the old GB2312 has too: Latin-1 or Big5 taken for it have fewer.
COMMON_GB = 0.7
SAMPLE = 1 << 14  # characters of a chunk, and beyond ASCII, that are enough to judge by


@dataclass(frozen=True)
class File:
    """A data file as it was found."""

    path: Path
    sha256: str
    encoding: str  # empty for parquet

    @property
    def extension(self) -> str:
        return known_extension(self.path)

    @contextmanager
    def text(self, newline: str | None = None) -> Iterator[TextIO]:
        """The decompressed, decoded content, read as it is needed."""
        with opened(self.path) as stream, io.TextIOWrapper(stream, self.encoding, newline=newline) as text:
            yield text


def known_extension(path: Path) -> str:
    """`.json` of `a.json` and of `a.json.gz`; an empty string for an extension that no reader has."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in COMPRESSIONS:
        suffixes.pop()
    return suffixes[-1] if suffixes and suffixes[-1] in EXTENSIONS else ""


def find_files(path: str | Path) -> tuple[list[Path], list[Path]]:
    """The data files under a path in sorted order, and the files passed over for their extension."""
    path = Path(path)
    if path.is_file():
        return [path], []
    if not path.is_dir():
        raise FileNotFoundError(f"{path} does not exist")
    if any((path / name).exists() for name in ("dataset_dict.json", "state.json")):
        raise ValueError(f"{path} was written by save_to_disk: give it as --dataset_name")
    found = sorted(
        file
        for file in path.rglob("*")
        if file.is_file() and not any(part.startswith(".") for part in file.relative_to(path).parts)
    )
    known = [file for file in found if known_extension(file)]
    ignored = [file for file in found if not known_extension(file)]
    if not known:
        other = f"; it holds {', '.join(file.name for file in ignored[:5])}" if ignored else "; it is empty"
        raise FileNotFoundError(f"{path}: no data files ({' '.join(EXTENSIONS)}, also .gz or .zst){other}")
    return known, ignored


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """The bytes of a file, decompressed by what the file is and not by its name."""
    with path.open("rb") as raw:
        head = raw.read(4)
        raw.seek(0)
        if head[:2] == b"\x1f\x8b":
            try:
                with gzip.GzipFile(fileobj=raw) as stream:
                    yield stream
            except (EOFError, zlib.error) as error:
                raise OSError(f"broken gzip: {error}") from error
        elif head == b"\x28\xb5\x2f\xfd":
            try:
                import zstandard
            except ImportError as error:
                raise ImportError(f"{path} is zstd-compressed: pip install zstandard") from error
            try:
                with zstandard.ZstdDecompressor().stream_reader(raw, read_across_frames=True) as stream:
                    yield io.BufferedReader(stream)
            except zstandard.ZstdError as error:
                raise OSError(f"broken zstd: {error}") from error
        else:
            yield raw


def inspect(path: Path) -> File:
    """Hash the file and find its encoding: UTF-8, UTF-16 if marked as such, else GB18030.

    Raises BadRecord (fatal) for content that is no text and no parquet.
    """
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    try:
        with opened(path) as stream:
            head = stream.read(CHUNK)
            if head[:4] == b"PAR1":
                return File(path, digest, "")
            encoding = _encoding(path, head)
    except OSError as error:
        raise BadRecord("file", "readable, whole content", str(error), fatal=True) from error
    return File(path, digest, encoding)


def _encoding(path: Path, head: bytes) -> str:
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    if b"\0" in head:
        raise BadRecord("file", "text or parquet", "a binary file", fatal=True)
    error, good, _ = _decoded(path, "utf-8")
    if error is None:
        return "utf-8-sig" if head.startswith(codecs.BOM_UTF8) else "utf-8"
    if good > ENOUGH_UTF8:
        raise BadRecord("file", "UTF-8 text", f"a byte that is not UTF-8 at offset {error}", fatal=True)
    error, wide, common = _decoded(path, "gb18030")
    if error is None and common > COMMON_GB * wide:
        return "gb18030"
    raise BadRecord("file", "text in UTF-8 or GB18030, or parquet", "another encoding or a binary file", fatal=True)


def _decoded(path: Path, encoding: str) -> tuple[int | None, int, int]:
    """Offset of the first wrong byte or None; in a sample before it, characters beyond ASCII, and those in GB2312."""
    decoder = codecs.getincrementaldecoder(encoding)()
    offset = wide = common = 0
    with opened(path) as stream:
        while True:
            chunk = stream.read(CHUNK)
            pending = len(decoder.getstate()[0])
            try:
                text, error = decoder.decode(chunk, not chunk), None
            except UnicodeDecodeError as wrong:
                text, error = str(wrong.object[: wrong.start], encoding, "replace"), offset - pending + wrong.start
            if wide < SAMPLE and not text.isascii():
                beyond = re.sub(r"[\x00-\x7f]+", "", text[:SAMPLE] if error is None else text)
                wide += len(beyond)
                common += len(beyond.encode("gb2312", "ignore")) // 2
            if error is not None or not chunk:
                return error, wide, common
            offset += len(chunk)
