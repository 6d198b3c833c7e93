"""An index of documents: build it, keep it up to date, search it.

index = Index.build("outputs/index", ["data/rag/documents"], Encoder("BAAI/bge-small-zh-v1.5"))
for hit in index.search("高血压患者能吃党参吗？", k=5):
    print(hit.score, hit.passage.file, hit.passage.page, hit.passage.text)
"""

import json
import logging
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path

import numpy as np
from tqdm import tqdm

from medical_qwen.retrieval.chunks import Passage, count_tokens, passages
from medical_qwen.retrieval.document import Document, Unreadable
from medical_qwen.retrieval.encoder import Encoder, Reranker
from medical_qwen.retrieval.readers import fingerprint, read_document
from medical_qwen.retrieval.search import Hit, Searcher, folder, prepare
from medical_qwen.retrieval.store import ROW, WORD, Appender, Content, State, Store
from medical_qwen.retrieval.words import words

logger = logging.getLogger(__name__)

BATCH = 256  # passages embedded and written together; always the same ones, so that a killed run ends with equal bytes
COMMIT_SECONDS = 5.0
LINE = json.JSONEncoder(ensure_ascii=False).encode


@dataclass
class Update:
    """What an update did. `skipped` and `notes` hold (file, reason) of every file of the index, old or new."""

    added: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    deleted: list[str] = field(default_factory=list)
    unchanged: int = 0
    new_passages: int = 0  # read, cut into words and embedded by this update
    passages: int = 0
    seconds: float = 0.0
    skipped: list[tuple[str, str]] = field(default_factory=list)
    notes: list[tuple[str, str]] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [
            f"{self.passages} passages ({self.new_passages} new) in {self.seconds:.1f} s: "
            f"{len(self.added)} files added, {len(self.changed)} changed, {len(self.deleted)} deleted, "
            f"{self.unchanged} unchanged"
        ]
        lines += [f"skipped {file}: {reason}" for file, reason in self.skipped]
        return "\n".join(lines + [f"{file}: {note}" for file, note in self.notes])


class Index:
    """Passages of documents in a directory, found by words (BM25) and by meaning (an embedding model).

    Readers may search while one process updates: they see the last whole update until they `open` again.
    """

    def __init__(self, store: Store, state: State, encoder: Encoder | None, reranker: Reranker | None = None) -> None:
        self.store, self.state, self.encoder, self.reranker = store, state, encoder, reranker
        self.last_update: Update | None = None
        self._searcher: Searcher | None = None

    @classmethod
    def build(
        cls,
        directory: str | Path,
        paths: Iterable[str | Path],
        encoder: Encoder | None = None,
        *,
        reranker: Reranker | None = None,
        chunk_size: int = 256,
        overlap: int = 32,
        progress: bool = True,
    ) -> "Index":
        """Index the files and folders; or bring an index up to date; or go on where a killed build was.

        Args:
            chunk_size: longest passage in tokens of the embedding model; without one, an ideograph, a word, a number
                or a sign counts as one.
            overlap: tokens of whole sentences that neighbouring passages may share.
        """
        if chunk_size < 8 or not 0 <= overlap < chunk_size:
            raise ValueError(
                f"--chunk_size {chunk_size} --chunk_overlap {overlap}: expected at least 8, and an overlap below it"
            )
        if encoder and chunk_size > encoder.longest:
            raise ValueError(f"--chunk_size {chunk_size}: {encoder.name} reads at most {encoder.longest} tokens")
        settings = {"chunk_size": chunk_size, "overlap": overlap, "embedding": encoder and encoder.described()}
        store = Store(directory)
        state = store.read("progress.json") or store.read() or State(settings)
        for name, flag in (("chunk_size", "chunk_size"), ("overlap", "chunk_overlap")):
            if state.settings[name] != settings[name]:
                raise ValueError(
                    f"--{flag} {settings[name]}: {directory} was built with {state.settings[name]}; "
                    "give that, or build another index"
                )
        index = cls(store, state, encoder, reranker)
        index.update(paths, progress)
        return index

    @classmethod
    def open(cls, directory: str | Path, encoder: Encoder | None = None, reranker: Reranker | None = None) -> "Index":
        """The index as its last whole update left it. Without the embedding model the search is by words alone."""
        store = Store(directory)
        state = store.read()
        if state is None:
            begun = " was not finished: run the same command again" if store.read("progress.json") else " is no index"
            raise FileNotFoundError(f"{directory}{begun}")
        index = cls(store, state, encoder, reranker)
        index._check()
        return index

    @property
    def files(self) -> list[str]:
        """The files as they are cited, in the order of their paths."""
        return [name for _, (name, _) in sorted(self.state.files.items())]

    def __len__(self) -> int:
        return int(self.state.alive().sum())

    def search(self, query: str, k: int = 5) -> list[Hit]:
        """The k best passages, best first; fewer when fewer have a word of the query, or none."""
        if k < 1:
            raise ValueError(f"k: expected at least 1, got {k}")
        return self._opened().search(query, k)

    def covered(self, query: str, passage: Passage) -> float:
        """Share of the query's words that a passage of this index has, 0..1, rare words counting more."""
        return self._opened().covered(query, passage)

    def _opened(self) -> Searcher:
        if self._searcher is None:
            self._searcher = Searcher(self.store, self.state, self.encoder, self.reranker)
        return self._searcher

    def update(self, paths: Iterable[str | Path], progress: bool = True) -> Update:
        """Bring the index up to date with these files and folders; other files that it knows stay as they are.

        A file is known by its content: new and changed ones are read and embedded, moved or copied ones are not. A
        known file below the paths that is gone leaves the index. Files that cannot be read are reported and skipped.
        """
        begun, published = time.perf_counter(), self.state
        with self.store.writing():
            try:
                if self.state.update:
                    self._opened()  # while this runs, questions are answered from what there is now
                before = self.store.read()
                # A state of its own: this one changes, `before` stays as readers know it.
                self.state = self.store.read("progress.json") or self.store.read() or self.state
                self._check()
                update, files = self._plan([Path(path) for path in paths])
                update.new_passages = self._ingest(files, progress)
                self._publish(files, before)
            except BaseException:
                self.state = published
                raise
        self._searcher = None
        for name, key in files.values():
            content = self.state.contents[key]
            if content.problem:
                update.skipped.append((name, content.problem))
            update.notes += [(name, note) for note in content.notes if not content.problem]
        update.passages, update.seconds = len(self), time.perf_counter() - begun
        logger.info("%s: %s", self.store.directory, update)
        self.last_update = update
        return update

    def _check(self) -> None:
        built_with = self.state.settings["embedding"]
        if self.encoder and not built_with:
            raise ValueError(
                f"--embedding_model {self.encoder.name}: {self.store.directory} was built without one; "
                "build another index"
            )
        if built_with and self.encoder:
            self.encoder.check(built_with)
        if not self.encoder:
            logger.warning("no embedding model: passages are found by their words alone (BM25)")

    def _plan(self, paths: list[Path]) -> tuple[Update, dict[str, list[str]]]:
        """What differs from the paths, and the files that the index is to hold, as in `State.files`."""
        files, update, seen = dict(self.state.files), Update(), set()
        for path in paths:
            if not path.exists() and self._name(path) not in files:
                raise FileNotFoundError(f"{path} does not exist")
            for file in find(path, self.store.directory):
                name = str(file.relative_to(path if path.is_dir() else path.parent))
                seen.add(own := self._name(file))
                key = known_by(file)
                if own not in files:
                    update.added.append(name)
                elif files[own][1] != key:
                    update.changed.append(name)
                else:
                    update.unchanged += 1
                files[own] = [name, key]
        home, roots = os.path.realpath(self.store.directory), [os.path.realpath(path) for path in paths]
        for own in set(files) - seen:
            if any(Path(os.path.normpath(os.path.join(home, own))).is_relative_to(root) for root in roots):
                update.deleted.append(files.pop(own)[0])
        update.deleted.sort()
        return update, dict(sorted(files.items()))

    def _name(self, path: Path) -> str:
        """Path from the index's directory, so that both may move together."""
        return os.path.relpath(os.path.realpath(path), os.path.realpath(self.store.directory))

    def _ingest(self, files: dict[str, list[str]], progress: bool) -> int:
        """Append the passages of contents that the logs do not hold yet; how many there were."""
        if (embedding := self.state.settings["embedding"]) and not self.encoder:
            raise ValueError(f"{self.store.directory} was built with --embedding_model {embedding['name']}: give it")
        wanted: dict[str, Path] = {}
        for own, (_, key) in files.items():
            if key not in self.state.contents or not self.state.contents[key].done:
                wanted.setdefault(key, self.store.directory / own)
        self.state.contents = {
            key: content for key, content in self.state.contents.items() if content.done or key in wanted
        }
        count = self.encoder.count if self.encoder else count_tokens
        begun, written = time.monotonic(), self.state.rows
        size = sum(path.stat().st_size for path in wanted.values())
        with (
            Appender(self.store.directory / self.state.data, self.state) as logs,
            tqdm(
                total=size, unit="B", unit_scale=True, desc="index", disable=not progress or None, leave=False
            ) as bar,
        ):
            vocabulary = self.store.vocabulary(self.state)
            for batch in batches(self._read(wanted, count, bar), BATCH):
                self._append(logs, vocabulary, batch)
                if time.monotonic() - begun > COMMIT_SECONDS:
                    logs.flush()
                    self.store.write("progress.json", self.state)
                    begun = time.monotonic()
            logs.flush()
        self.store.write("progress.json", self.state)
        return self.state.rows - written

    def _read(self, wanted: dict[str, Path], count, bar: tqdm) -> Iterator[tuple[str, Passage | Document]]:
        """(content, passage) of what is not in the logs yet, and (content, document) behind its last passage.

        The content that a kill cut short comes first and goes on behind its last passage.
        """
        chunk_size, overlap = self.state.settings["chunk_size"], self.state.settings["overlap"]
        for key, path in sorted(wanted.items(), key=lambda item: item[0] not in self.state.contents):
            size, shown = path.stat().st_size, 0
            content = self.state.contents.setdefault(key, Content(self.state.rows, self.state.rows))
            try:
                document = read_document(path)
            except Unreadable as error:
                document = Document(notes=[str(error)])
            known = content.last - content.first
            for number, passage in enumerate(passages(document, path.name, chunk_size, overlap, count)):
                if number >= known:
                    yield key, passage
                step = size * passage.end // len(document.text) - shown
                bar.update(step)
                shown += step
            bar.update(size - shown)
            yield key, document

    def _append(self, logs: Appender, vocabulary: dict[str, int], batch: list) -> None:
        """Write a batch to the logs, row by row the same in each."""
        found = [item for _, item in batch if isinstance(item, Passage)]
        lines = [LINE({name: value for name, value in vars(passage).items() if name != "file"}) for passage in found]
        lines = [f"{line}\n".encode() for line in lines]
        known = len(vocabulary)
        numbers = [[vocabulary.setdefault(word, len(vocabulary)) for word in words(p.indexed)] for p in found]
        rows = np.zeros(len(found), ROW)
        rows["text"] = np.cumsum([len(line) for line in lines]) + self.state.sizes["passages.jsonl"]
        rows["words"] = np.cumsum([len(row) for row in numbers]) + self.state.sizes["words.bin"] // WORD.itemsize
        first = self.state.rows
        if self.encoder and found:
            logs.append("vectors.bin", self.encoder.encode([passage.indexed for passage in found]).tobytes())
        logs.append("passages.jsonl", b"".join(lines))
        logs.append("words.bin", np.array(list(chain.from_iterable(numbers)), WORD).tobytes())
        logs.append("vocabulary.txt", "".join(f"{word}\n" for word in islice(vocabulary, known, None)).encode())
        logs.append("rows.bin", rows.tobytes())
        for key, item in batch:
            content = self.state.contents[key]
            if isinstance(item, Passage):
                if content.first == content.last:
                    content.first = content.last = first
                first = content.last = content.last + 1
                continue
            content.done, content.notes = True, item.notes
            if content.first == content.last:
                content.problem = "; ".join(item.notes) or "there is no text in it"

    def _publish(self, files: dict[str, list[str]], before: State | None) -> None:
        """Let readers see it: contents without a file go, the search files are made, index.json is replaced."""
        used = {key for _, key in files.values()}
        if before and before.files == files and used <= before.contents.keys():
            self.state = before
            (self.store.directory / "progress.json").unlink()
            return
        self.state.files = files
        self.state.contents = {key: content for key, content in self.state.contents.items() if key in used}
        if len(self) * 2 < self.state.rows:
            self.state = self.store.compact(self.state)
        self.state.update += 1
        prepare(self.store, self.state, before)
        self.store.write("index.json", self.state)
        (self.store.directory / "progress.json").unlink()
        states = [state for state in (before, self.state) if state]
        self.store.sweep({state.data for state in states} | {folder(self.store, state).name for state in states})


def find(path: Path, apart: Path) -> list[Path]:
    """The file, or the files below the folder but `apart`, in sorted order; hidden ones are passed over."""
    if path.is_file():
        return [path]
    apart = apart.resolve()
    return sorted(
        file
        for file in path.rglob("*")
        if file.is_file()
        and not any(part.startswith(".") for part in file.relative_to(path).parts)
        and not file.resolve().is_relative_to(apart)
    )


def known_by(file: Path) -> str:
    """The fingerprint of a file; of one that cannot be opened the reason, so that it is tried again when that goes."""
    try:
        return fingerprint(file)
    except OSError as error:
        return f"{file.name}: {error.strerror}"


def batches(items: Iterable, size: int) -> Iterator[list]:
    """Lists with `size` passages each, and whatever stands between them."""
    batch, passages_in = [], 0
    for item in items:
        batch.append(item)
        passages_in += isinstance(item[1], Passage)
        if passages_in == size:
            yield batch
            batch, passages_in = [], 0
    if batch:
        yield batch
