"""Scores of text: BLEU-1..4 and ROUGE-1/2/L by characters and by words, repetition, intervals.

Definitions, the same at both token levels:

* Text is Unicode-normalised (NFKC), its `<think>` blocks are removed, and it is cut into tokens.
  `character`: a CJK character is a token; so is a Latin word (`HbA1c`), a number (`3.5`; `5mg` are two tokens) and
  any other sign. `word`: the words of jieba, white space left out. Case is kept.
* BLEU-n (Papineni et al. 2002) has uniform weights on orders 1..n and clipped counts. Orders for which the
  predictions are too short to have a single n-gram are left out (sacrebleu's `effective_order`), so a correct answer
  of one character has 100. `corpus`: counts summed over the rows, no smoothing. `mean`: mean of the rows' own scores,
  with smoothing `exp` (an order without a match counts 1/2 match, the next one 1/4, ...: NIST, sacrebleu's default,
  nltk's method3).
* ROUGE-1/2/L (Lin 2004) are F1 of precision and recall on clipped n-gram counts, or on the longest common
  subsequence of the whole text. Where neither text has a bigram, ROUGE-2 takes the unigrams (rouge-score says 0
  there). `corpus`: counts summed over the rows; `mean`: mean of the rows.
* Several references: BLEU clips by the largest count and takes the closest length; ROUGE takes the reference with
  the best F1.
* An empty prediction scores 0 and is counted.
"""

import logging
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from medical_qwen.answers import strip_thinking

BLEU = ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4")
ROUGE = ("ROUGE-1", "ROUGE-2", "ROUGE-L")
SCORES = BLEU + ROUGE

_CJK = (
    "\u2e80-\u2fdf\u3005-\u3007\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff"
)
_TOKEN = re.compile(rf"[{_CJK}]|\d+(?:\.\d+)?|[^\W\d_{_CJK}][^\W_{_CJK}]*|[^\w\s]|_")

# Columns of the statistics of a row. They add up: the sum over rows is the statistics of the corpus.
_PREDICTED, _REFERENCE, _REPEATED = 0, 1, 19
_MATCHES, _TOTALS, _ROUGE = slice(2, 6), slice(6, 10), slice(10, 19)


def clean(text: str) -> str:
    """`text` as it is scored: NFKC-normalised, without `<think>` blocks."""
    return unicodedata.normalize("NFKC", strip_thinking(text))


def character_tokens(text: str) -> list[str]:
    """CJK characters, Latin words, numbers and signs of cleaned text."""
    return _TOKEN.findall(text)


def word_tokens(text: str) -> list[str]:
    """Words of cleaned text as jieba cuts them."""
    try:
        import jieba
    except ImportError as error:
        raise ImportError("scores by words need jieba to cut Chinese: pip install jieba==0.42.1") from error
    jieba.setLogLevel(logging.WARNING)
    return [word for word in jieba.lcut(text) if not word.isspace()]


TOKENIZERS: dict[str, Callable[[str], list[str]]] = {"character": character_tokens, "word": word_tokens}


def lcs_length(first: Sequence[str], second: Sequence[str]) -> int:
    """Length of the longest common subsequence, one big-integer step per token of `second`.

    Bit i of `row` is 0 where the LCS of the tokens seen so far grows at first[i] (Hyyrö 2004, "Bit-parallel LCS-length
    computation revisited"). 7,000 x 7,000 tokens take about 20 ms.
    """
    positions: dict[str, int] = {}
    for index, token in enumerate(first):
        positions[token] = positions.get(token, 0) | 1 << index
    row = full = (1 << len(first)) - 1
    for token in second:
        hits = row & positions.get(token, 0)
        row = ((row + hits) | (row - hits)) & full
    return len(first) - row.bit_count()


def ngram_counts(tokens: Sequence[str], order: int) -> Counter:
    """How often each n-gram occurs."""
    return Counter(zip(*(tokens[start:] for start in range(order)), strict=False))


def row_statistics(prediction: Sequence[str], references: Sequence[Sequence[str]]) -> np.ndarray:
    """Statistics of one prediction, additive over rows, shape (20,).

    Predicted length, length of the closest reference (the shorter of two), clipped BLEU matches of orders 1..4,
    predicted n-grams of orders 1..4, (overlap, predicted, reference) of ROUGE-1, 2, L, repeated 4-grams.
    """
    predicted = [ngram_counts(prediction, order) for order in range(1, 5)]
    known = [[ngram_counts(reference, order) for reference in references] for order in range(1, 5)]
    closest = min((abs(len(reference) - len(prediction)), len(reference)) for reference in references)[1]
    matches = [
        sum(min(count, max(counts[gram] for counts in known[order])) for gram, count in predicted[order].items())
        for order in range(4)
    ]
    rouge = []
    for order in (1, 2):
        candidates = []
        for index, reference in enumerate(references):
            effective = max(1, min(order, max(len(prediction), len(reference)))) - 1
            overlap = (predicted[effective] & known[effective][index]).total()
            candidates.append((overlap, predicted[effective].total(), known[effective][index].total()))
        rouge += max(candidates, key=_f1)
    rouge += max(
        ((lcs_length(prediction, reference), len(prediction), len(reference)) for reference in references), key=_f1
    )
    totals = [counts.total() for counts in predicted]
    repeated = totals[3] - len(predicted[3])
    return np.array([len(prediction), closest, *matches, *totals, *rouge, repeated], dtype=np.int64)


def _f1(counts: tuple[int, int, int]) -> float:
    overlap, predicted, reference = counts
    return 2 * overlap / max(1, predicted + reference)


def bleu(statistics: np.ndarray, smoothing: str) -> np.ndarray:
    """BLEU-1..4 in 0..100 of statistics (..., 20), shape (..., 4). `smoothing`: `none` or `exp` (see the module)."""
    if smoothing not in ("none", "exp"):
        raise ValueError(f"smoothing: expected none or exp, got {smoothing!r}")
    matches, totals = statistics[..., _MATCHES].astype(float), statistics[..., _TOTALS].astype(float)
    counted = totals > 0
    missed = counted & (matches == 0)
    if smoothing == "exp":
        matches = np.where(missed, 0.5 ** np.cumsum(missed, axis=-1), matches)
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.where(counted, np.log(matches) - np.log(totals), 0.0)
        mean_log = np.cumsum(logs, axis=-1) / np.maximum(1, np.cumsum(counted, axis=-1))
        length_ratio = statistics[..., _REFERENCE] / statistics[..., _PREDICTED]
        penalty = np.exp(np.minimum(0.0, 1.0 - length_ratio))
    score = 100 * penalty[..., None] * np.exp(mean_log)
    return np.where(statistics[..., 2, None] > 0, score, 0.0)


def rouge(statistics: np.ndarray) -> np.ndarray:
    """(precision, recall, F1) in 0..100 of ROUGE-1, 2, L for statistics (..., 20), shape (..., 3, 3)."""
    counts = statistics[..., _ROUGE].reshape(*statistics.shape[:-1], 3, 3).astype(float)
    overlap, predicted, reference = counts[..., 0], counts[..., 1], counts[..., 2]
    return 100 * np.stack(
        [
            overlap / np.maximum(1, predicted),
            overlap / np.maximum(1, reference),
            2 * overlap / np.maximum(1, predicted + reference),
        ],
        axis=-1,
    )


def scores(statistics: np.ndarray, smoothing: str) -> np.ndarray:
    """The seven `SCORES` in 0..100 of statistics (..., 20), shape (..., 7); ROUGE as F1."""
    return np.concatenate([bleu(statistics, smoothing), rouge(statistics)[..., 2]], axis=-1)


@dataclass(frozen=True)
class TextScores:
    """Every row of one system, scored at one token level."""

    statistics: np.ndarray  # (rows, 20)
    rows: np.ndarray  # (rows, 7), in 0..100
    distinct: tuple[float, float]  # share of different unigrams and bigrams among all (Li et al. 2016)

    @property
    def corpus(self) -> np.ndarray:
        """`SCORES` of the summed counts, shape (7,)."""
        return scores(self.statistics.sum(axis=0), "none")

    @property
    def mean(self) -> np.ndarray:
        """Means of the rows' `SCORES`, shape (7,)."""
        return self.rows.mean(axis=0)

    @property
    def precision_recall(self) -> np.ndarray:
        """Corpus (precision, recall) of ROUGE-1, 2, L, shape (3, 2)."""
        return rouge(self.statistics.sum(axis=0))[:, :2]

    @property
    def length_ratio(self) -> float:
        """Predicted tokens for one token of the (closest) reference."""
        return float(self.statistics[:, _PREDICTED].sum() / self.statistics[:, _REFERENCE].sum())

    @property
    def repetition(self) -> np.ndarray:
        """Of each row: share of the prediction's 4-grams that occurred in it before, shape (rows,)."""
        return self.statistics[:, _REPEATED] / np.maximum(1, self.statistics[:, _TOTALS][:, 3])

    def bootstrap(self, samples: int, seed: int) -> np.ndarray:
        """(corpus, mean) `SCORES` of resampled rows, shape (samples, 2, 7).

        The same seed draws the same rows of any system: differences of two systems' results are paired.
        """
        parts = [
            np.stack([scores(weights @ self.statistics, "none"), weights @ self.rows / len(self.rows)], axis=1)
            for weights in resamples(len(self.rows), samples, seed)
        ]
        return np.concatenate(parts)


def score_texts(predictions: Sequence[str], references: Sequence[Sequence[str]], level: str) -> TextScores:
    """Scores of raw predictions, each against one or several raw references, at token level `character` or `word`.

    Raises ValueError for an unknown level, no rows, different numbers of rows, or a row whose references hold no text.
    """
    if level not in TOKENIZERS:
        raise ValueError(f"level: expected one of {', '.join(TOKENIZERS)}, got {level!r}")
    if not predictions or len(predictions) != len(references):
        raise ValueError(f"expected as many predictions as references, got {len(predictions)} and {len(references)}")
    tokenize = TOKENIZERS[level]
    statistics, unigrams, bigrams = [], Counter(), Counter()
    for number, (prediction, expected) in enumerate(zip(predictions, references, strict=True), start=1):
        tokens = tokenize(clean(prediction))
        known = [cut for reference in expected if (cut := tokenize(clean(reference)))]
        if not known:
            raise ValueError(f"row {number}: reference: expected text, got {list(expected)!r}")
        statistics.append(row_statistics(tokens, known))
        unigrams += ngram_counts(tokens, 1)
        bigrams += ngram_counts(tokens, 2)
    table = np.stack(statistics)
    distinct = tuple(len(counts) / max(1, counts.total()) for counts in (unigrams, bigrams))
    return TextScores(table, scores(table, "exp"), distinct)


def resamples(rows: int, samples: int, seed: int) -> Iterator[np.ndarray]:
    """How often each row is drawn in each bootstrap sample, in chunks of shape (up to 100, rows)."""
    generator = np.random.default_rng(seed)
    for start in range(0, samples, 100):
        yield generator.multinomial(rows, np.full(rows, 1 / rows), size=min(100, samples - start))


def interval(values: np.ndarray, confidence: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """Percentile interval (low, high) of bootstrapped values along the first axis."""
    tail = (1 - confidence) / 2
    low, high = np.quantile(values, [tail, 1 - tail], axis=0)
    return low, high


def wilson_interval(right: int, total: int, z: float = 1.959963984540054) -> tuple[float, float]:
    """95 % interval (low, high) of the share `right / total` (Wilson 1927), honest near 0 and 1 as well."""
    if total < 1 or not 0 <= right <= total:
        raise ValueError(f"expected 0 <= right <= total and a total above 0, got {right} of {total}")
    share, spread = right / total, z * z / total
    centre = (share + spread / 2) / (1 + spread)
    half = z * ((share * (1 - share) + spread / 4) / total) ** 0.5 / (1 + spread)
    return max(0.0, centre - half), min(1.0, centre + half)


def compare_texts(systems: Sequence[TextScores], samples: int, seed: int) -> list[dict]:
    """Of each system at one level: its scores with bootstrap intervals, and paired differences from the first system.

    {corpus, mean: {score: {value, low, high, difference?: {value, low, high}}}, length_ratio, distinct-1, distinct-2,
    repetition-4}, all but the ratio in 0..100. ROUGE of the corpus has its precision and recall beside it.
    """
    points = [np.stack([system.corpus, system.mean]) for system in systems]
    draws = [system.bootstrap(samples, seed) for system in systems]
    results = []
    for number, system in enumerate(systems):
        table = _entries(points, draws, number)
        result = {
            kind: dict(zip(SCORES, row, strict=True)) for kind, row in zip(("corpus", "mean"), table, strict=True)
        }
        for score, (precision, recall) in zip(ROUGE, system.precision_recall.tolist(), strict=True):
            result["corpus"][score] |= {"precision": precision, "recall": recall}
        result |= {f"distinct-{order}": 100 * share for order, share in zip((1, 2), system.distinct, strict=True)}
        result |= {"length_ratio": system.length_ratio, "repetition-4": 100 * float(system.repetition.mean())}
        results.append(result)
    return results


def compare_shares(systems: Sequence[Sequence[bool]], samples: int, seed: int) -> list[dict]:
    """Of each system: share of right rows in 0..100 with Wilson's interval, and paired difference from the first.

    {value, low, high, difference?: {value, low, high}}
    """
    rows = 100 * np.array(systems, dtype=float).T
    draws = np.concatenate([weights @ rows for weights in resamples(len(rows), samples, seed)]).T / len(rows)
    results = []
    for number, right in enumerate(systems):
        low, high = wilson_interval(sum(right), len(right))
        results.append(_entries(rows.mean(axis=0), draws, number) | {"low": 100 * low, "high": 100 * high})
    return results


def compare_means(table: np.ndarray, samples: int, seed: int) -> list[dict]:
    """Of each system: mean of its values with bootstrap interval, and paired difference from the first.

    {value, low, high, difference?: {value, low, high}}. table: (systems, rows); nan where a row has no value.
    """
    known = ~np.isnan(table)
    values = np.where(known, table, 0)
    points = values.sum(axis=1) / known.sum(axis=1)
    draws = []
    for weights in resamples(table.shape[1], samples, seed):
        counts = weights @ known.T
        draws.append(np.where(counts > 0, weights @ values.T / np.maximum(counts, 1), points))
    return [_entries(points, np.concatenate(draws).T, number) for number in range(len(table))]


def _entries(points: Sequence[np.ndarray], draws: Sequence[np.ndarray], number: int) -> dict | list:
    """Value, interval and difference of system `number`, in lists of the shape of a point."""

    def entry(point: np.ndarray, drawn: np.ndarray) -> dict | list:
        if np.ndim(point):
            return [entry(part, drawn[:, index]) for index, part in enumerate(point)]
        low, high = interval(drawn)
        return {"value": float(point), "low": float(low), "high": float(high)}

    def joined(own: dict | list, difference: dict | list) -> dict | list:
        if isinstance(own, dict):
            return own | {"difference": difference}
        return [joined(*pair) for pair in zip(own, difference, strict=True)]

    own = entry(points[number], draws[number])
    return joined(own, entry(points[number] - points[0], draws[number] - draws[0])) if number else own
