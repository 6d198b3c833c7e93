"""Which passages speak of a question: by words, by meaning, and both joined.

The two rankings are joined by reciprocal rank fusion (Cormack, Clarke, Büttcher, SIGIR 2009): a passage scores the sum
of 1 / (60 + rank), so that scores of different kinds need no common scale.
"""

import bisect
import json
import logging
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from medical_qwen.retrieval.chunks import Passage
from medical_qwen.retrieval.encoder import Encoder, Reranker
from medical_qwen.retrieval.store import ROW, WORD, State, Store
from medical_qwen.retrieval.vectors import Nearest, best, build_cells
from medical_qwen.retrieval.words import words

FUSION = 60.0
DEPTH = 100  # passages of each ranking that take part
RERANKED = 30  # passages that a cross-encoder reads
FEW = 100  # passages; see `Searcher.covered`
VECTOR = np.dtype("<f4")


@dataclass(frozen=True)
class Hit:
    """A passage that was found. `score` is what hits are sorted by; the others are what it was made of."""

    passage: Passage
    score: float
    words: float = 0.0  # BM25
    cosine: float | None = None  # of the question's and the passage's vectors; None without an embedding model
    relevance: float | None = None  # of the cross-encoder; None without one


def bm25s() -> Any:
    try:
        import bm25s as library
    except ImportError as error:
        raise ImportError("search by words needs bm25s: pip install bm25s==0.3.16") from error
    logging.getLogger("bm25s").setLevel(logging.WARNING)
    return library


def folder(store: Store, state: State) -> Path:
    """Where the search files of an update lie."""
    return store.directory / f"search-{state.update}"


def prepare(store: Store, state: State, before: State | None) -> None:
    """Make the search files of an update: BM25 over the words of the living rows, and cells of many vectors."""
    target = folder(store, state)
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    living = np.flatnonzero(state.alive())
    ends = np.concatenate([[0], store.array(state, "rows.bin", ROW)["words"]])
    numbers = store.array(state, "words.bin", WORD)
    if len(living):
        rows = [numbers[ends[row] : ends[row + 1]].tolist() for row in living]
        index = bm25s().BM25()
        index.index((rows, store.vocabulary(state)), create_empty_token=False, show_progress=False)
        index.vocab_dict = {}  # the vocabulary has a log of its own
        index.save(target, show_progress=False)
    if state.settings["embedding"]:
        vectors = store.array(state, "vectors.bin", VECTOR, state.settings["embedding"]["dimension"])
        grown = before is not None and before.data == state.data
        build_cells(vectors, target, folder(store, before) if grown else None)


class Searcher:
    """An index opened for reading. Arrays are memory-mapped: opening costs no more than the vocabulary."""

    def __init__(self, store: Store, state: State, encoder: Encoder | None, reranker: Reranker | None) -> None:
        self.encoder, self.reranker = encoder, reranker
        alive = state.alive()
        self.living = np.flatnonzero(alive)
        self.ends = store.array(state, "rows.bin", ROW)["text"]
        self.text = store.array(state, "passages.jsonl", np.dtype("u1"))
        self.contents = sorted((content.first, key) for key, content in state.contents.items() if not content.problem)
        self.names = {key: name for _, (name, key) in sorted(state.files.items(), reverse=True)}
        self.vocabulary = store.vocabulary(state)
        if len(self.living):
            self.index = bm25s().BM25.load(folder(store, state), mmap=True, load_vocab=False, show_progress=False)
        if encoder:
            vectors = store.array(state, "vectors.bin", VECTOR, encoder.dimension)
            self.nearest = Nearest(vectors, alive, folder(store, state))

    def search(self, query: str, k: int) -> list[Hit]:
        """The k best passages for the question, best first."""
        if not len(self.living) or not query.strip():
            return []
        depth = max(DEPTH, k)
        by_words = self.by_words(query)
        rankings = [self.living[best(by_words, depth, above=0.0)]]
        vector = self.encoder.encode_query(query) if self.encoder else None
        if vector is not None:
            rankings.append(self.nearest.rows(vector, depth))
        fused = fuse(rankings)[: max(k, RERANKED if self.reranker else 0)]
        hits = []
        for row, score in fused:
            cosine = None if vector is None else float(self.nearest.vectors[row] @ vector)
            hits.append(Hit(self.passage(row), score, float(by_words[np.searchsorted(self.living, row)]), cosine))
        return (self.reranked(query, hits) if self.reranker else hits)[:k]

    def by_words(self, query: str) -> np.ndarray:
        """BM25 of every living passage: (living,)."""
        numbers = [self.vocabulary[word] for word in words(query) if word in self.vocabulary]
        return self.index.get_scores_from_ids(numbers)

    def covered(self, query: str, passage: Passage) -> float:
        """Share of the question's words that a passage has, 0..1; a word counts its inverse document frequency.

        Counted as if there were `FEW` passages at least: among very few, every word that is found is frequent, and
        one that is not (「怎么办」) would outweigh them all.
        """
        ends, total = self.index.scores["indptr"], max(len(self.living), FEW)

        def weight(word: str) -> float:
            number = self.vocabulary.get(word)
            found = 0 if number is None else int(ends[number + 1] - ends[number])
            return float(np.log(1 + (total - found + 0.5) / (found + 0.5)))

        sought = {word: weight(word) for word in words(query)}
        known = sum(sought[word] for word in sought.keys() & set(words(passage.indexed)))
        return known / max(sum(sought.values()), 1e-9)

    def reranked(self, query: str, hits: list[Hit]) -> list[Hit]:
        scores = self.reranker.score(query, [hit.passage.indexed for hit in hits])
        scored = [replace(hit, score=score, relevance=score) for hit, score in zip(hits, scores, strict=True)]
        return sorted(scored, key=lambda hit: -hit.score)

    def passage(self, row: int) -> Passage:
        """The passage of a row, under the name of the first file that holds it."""
        start, end = (int(self.ends[row - 1]) if row else 0), int(self.ends[row])
        content = self.contents[bisect.bisect_right(self.contents, (row, chr(0x10FFFF))) - 1][1]
        return Passage(file=self.names[content], **json.loads(self.text[start:end].tobytes()))


def fuse(rankings: list[np.ndarray]) -> list[tuple[int, float]]:
    """(row, score) by reciprocal rank fusion, best first; of equal ones the earlier row first."""
    scores: dict[int, float] = {}
    for ranking in rankings:
        for rank, row in enumerate(ranking.tolist(), 1):
            scores[row] = scores.get(row, 0.0) + 1 / (FUSION + rank)
    return sorted(scores.items(), key=lambda item: (-item[1], item[0]))
