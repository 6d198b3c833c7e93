"""What an index keeps on disk: logs that only grow, and a small file that says how far they are good.

    index/
      index.json        what readers see; replaced as a whole when an update is finished
      progress.json     what the writer has so far; replaced after every few batches of an update
      lock              held by the one process that writes
      data-1/           passages.jsonl  rows.bin  words.bin  vocabulary.txt  vectors.bin: row n of each is passage n
      search-7/         the BM25 index of update 7, made anew from the words; cells of the vectors if there are many

A killed writer leaves logs that are longer than progress.json says; the next one cuts them and goes on. Readers never
see that: their rows lie before, and their index.json still stands. Nothing here is a pickle, so an index from somebody
else may be opened.
"""

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

VERSION = 1
ROW = np.dtype([("text", "<i8"), ("words", "<i8")])  # where the row ends: byte of passages.jsonl, number of words.bin
WORD = np.dtype("<i4")
LOGS = ("passages.jsonl", "rows.bin", "words.bin", "vocabulary.txt", "vectors.bin")


@dataclass
class Content:
    """What one file says, by the hash of its bytes: rows first:last. Two copies of a file share it."""

    first: int
    last: int
    done: bool = False
    problem: str = ""  # why there are no rows
    notes: list[str] = field(default_factory=list)  # what could not be read of it


@dataclass
class State:
    """How far the logs are good, and which of their rows count."""

    settings: dict
    update: int = 0  # number of the update
    data: str = "data-1"
    sizes: dict[str, int] = field(default_factory=lambda: dict.fromkeys(LOGS, 0))  # bytes
    contents: dict[str, Content] = field(default_factory=dict)
    files: dict[str, list[str]] = field(default_factory=dict)  # path from the index: [name to cite, content]

    @property
    def rows(self) -> int:
        return self.sizes["rows.bin"] // ROW.itemsize

    def alive(self) -> np.ndarray:
        """Which rows belong to a file that is still there: bool of (rows,)."""
        mask = np.zeros(self.rows, dtype=bool)
        for content in self.contents.values():
            mask[content.first : content.last] = True
        return mask


class Store:
    """The directory of an index."""

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory)

    def read(self, name: str = "index.json") -> State | None:
        """The state in index.json or progress.json; None if that file is not there."""
        path = self.directory / name
        try:
            written = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        if not isinstance(written, dict) or written.pop("version", None) != VERSION:
            raise ValueError(f"{path} is no index of this version: build it anew in another directory")
        written["contents"] = {key: Content(**content) for key, content in written["contents"].items()}
        state = State(**written)
        if Path(state.data).name != state.data:
            raise ValueError(f"{path}: data is {state.data!r}, expected a name")
        return state

    def write(self, name: str, state: State) -> None:
        """Whole or not at all."""
        beside = self.directory / f".{name}.tmp"
        with beside.open("w", encoding="utf-8") as stream:
            stream.write(json.dumps({"version": VERSION} | vars(state), ensure_ascii=False, default=vars))
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(beside, self.directory / name)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """This process alone writes; a kill gives the lock back. Raises ValueError when another one has it."""
        self.directory.mkdir(parents=True, exist_ok=True)
        with (self.directory / "lock").open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise ValueError(f"{self.directory}: another process is writing this index; wait for it") from error
            yield

    def array(self, state: State, log: str, dtype: np.dtype, columns: int | None = None) -> np.ndarray:
        """A log as an array in memory-mapped file; only what the state says is there."""
        size = state.sizes[log] // dtype.itemsize
        shape = (size,) if columns is None else (size // columns, columns)
        if not size:
            return np.empty(shape, dtype)
        return np.memmap(self.directory / state.data / log, dtype, "r", shape=shape)

    def vocabulary(self, state: State) -> dict[str, int]:
        path = self.directory / state.data / "vocabulary.txt"
        text = path.read_bytes()[: state.sizes["vocabulary.txt"]].decode() if path.exists() else ""
        return {word: number for number, word in enumerate(text.split("\n")[:-1])}

    def compact(self, state: State) -> State:
        """The state over new logs that hold its living rows alone."""
        fresh = replace(state, data=f"data-{int(state.data.split('-')[1]) + 1}", sizes=dict(state.sizes), contents={})
        old, new = self.directory / state.data, self.directory / fresh.data
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir()
        shutil.copyfile(old / "vocabulary.txt", new / "vocabulary.txt")
        rows = self.array(state, "rows.bin", ROW)
        ends = {name: np.concatenate([[0], rows[name]]) for name in ROW.names}
        dimension = state.sizes["vectors.bin"] // state.rows
        fresh.sizes |= dict.fromkeys(("passages.jsonl", "rows.bin", "words.bin", "vectors.bin"), 0)
        with Appender(new, fresh) as logs:
            streams = {name: (old / name).open("rb") for name in ("passages.jsonl", "words.bin", "vectors.bin")}
            for key, content in state.contents.items():
                first, last = content.first, content.last
                moved = rows[first:last].copy()
                moved["text"] += fresh.sizes["passages.jsonl"] - ends["text"][first]
                moved["words"] += fresh.sizes["words.bin"] // WORD.itemsize - ends["words"][first]
                start = fresh.rows
                for name, unit, edges in (
                    ("passages.jsonl", 1, ends["text"]),
                    ("words.bin", WORD.itemsize, ends["words"]),
                    ("vectors.bin", dimension, np.arange(state.rows + 1)),
                ):
                    streams[name].seek(int(edges[first]) * unit)
                    logs.append(name, streams[name].read(int(edges[last] - edges[first]) * unit))
                logs.append("rows.bin", moved.tobytes())
                fresh.contents[key] = replace(content, first=start, last=fresh.rows)
            for stream in streams.values():
                stream.close()
        return fresh

    def sweep(self, keep: set[str]) -> None:
        """Remove data and search folders that no state uses any more."""
        for folder in self.directory.glob("*-*"):
            if folder.is_dir() and folder.name.split("-")[0] in ("data", "search") and folder.name not in keep:
                shutil.rmtree(folder, ignore_errors=True)


class Appender:
    """The logs of a state, opened at the ends that the state gives; what lies beyond is cut off."""

    def __init__(self, folder: Path, state: State) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.state = state
        self.streams = {}
        for name in LOGS:
            stream = self.streams[name] = (folder / name).open("ab")
            if (size := stream.tell()) < state.sizes[name]:
                raise ValueError(
                    f"{folder / name} has {size} bytes, {state.sizes[name]} expected: build the index anew"
                )
            stream.truncate(state.sizes[name])

    def append(self, name: str, data: bytes) -> None:
        self.streams[name].write(data)
        self.state.sizes[name] += len(data)

    def flush(self) -> None:
        for stream in self.streams.values():
            stream.flush()
            os.fsync(stream.fileno())

    def __enter__(self) -> "Appender":
        return self

    def __exit__(self, *_: object) -> None:
        for stream in self.streams.values():
            stream.close()
