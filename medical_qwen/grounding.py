"""Are the right passages found, and does an answer say what they say?

A row has `passages`, ranked, and `gold`: what they should hold. A gold item is a {file, page?, quote?, …}; a passage
holds it when the fields are equal and the quote stands in its text, white space aside. An item counts at the first
passage that holds it. An empty `gold` means that the documents do not answer.

recall@k     share of the gold items that stand among the first k passages
MRR          1 / rank of the first passage that holds an item, 0 where none does
nDCG@k       Σ 1 / log2(rank + 1) over those of the first k passages that hold an item not held before, divided by the
             largest possible sum: these passages, and one for each missing item, in front of all others (Järvelin and
             Kekäläinen, TOIS 2002, binary gains)

Of rows with a `prediction`, whose citations look like [1]:

refused      share of answers that say 「资料中没有」: all of them should without gold, none with it
cited        share of the other answers that cite a passage
faithful     share of their sentences that the passages cited by the sentence, else by the answer, support: at least
             `SUPPORTED` of its pairs of neighbouring tokens stand there, and all its numbers do. Lexical: a free
             paraphrase counts as unsupported, a sentence that turns the meaning round by a word as supported.
"""

import re
from collections.abc import Iterable, Sequence

import numpy as np

from medical_qwen.answers import strip_thinking
from medical_qwen.evaluation import raise_problems
from medical_qwen.evidence import REFUSAL
from medical_qwen.metrics import character_tokens, clean, compare_means

DEPTHS = (1, 3, 5, 10)
SUPPORTED = 0.6
SENTENCE = re.compile(r"[^。！？!?；;\n]+[。！？!?；;\n]*(?:\[\d+\])*")
CITED = re.compile(r"\[(\d+)\]")


def read_ranked(values: Iterable[tuple[str, object]]) -> list[dict]:
    """Checked rows of (`file:line`, value) pairs. All problems are told at once."""
    rows, problems = [], []
    for where, row in values:
        if problem := _problem(row):
            problems.append(f"{where}: {problem}")
        rows.append(row)
    raise_problems(problems)
    return rows


def _problem(row: object) -> str | None:
    if isinstance(row, ValueError):
        return str(row)
    if not isinstance(row, dict):
        return f"expected a JSON object, got {str(row)[:60]!r}"
    for field in ("gold", "passages"):
        items = row.get(field)
        if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
            return f"{field}: expected a list of objects, got {str(items)[:60]!r}"
    if not all(isinstance(passage.get("text"), str) for passage in row["passages"]):
        return "passages: expected `text` in each"
    if not isinstance(row.get("prediction", ""), str):
        return f"prediction: expected text, got {str(row['prediction'])[:60]!r}"
    return None


def holds(passage: dict, item: dict) -> bool:
    """Whether a passage is, or holds, a gold item."""
    quote = "".join(item.get("quote", "").split())
    same = all(passage.get(name) == value for name, value in item.items() if name != "quote")
    return same and quote in "".join(passage["text"].split())


def first_ranks(gold: Sequence[dict], passages: Sequence[dict]) -> list[int | None]:
    """Of each gold item the rank (from 1) of the first passage that holds it."""
    return [next((rank for rank, one in enumerate(passages, 1) if holds(one, item)), None) for item in gold]


def recall(ranks: Sequence[int | None], k: int) -> float:
    return sum(rank is not None and rank <= k for rank in ranks) / len(ranks)


def reciprocal_rank(ranks: Sequence[int | None]) -> float:
    return max((1 / rank for rank in ranks if rank is not None), default=0.0)


def ndcg(ranks: Sequence[int | None], k: int) -> float:
    found = {rank for rank in ranks if rank is not None}
    ideal = range(1, min(k, len(found) + ranks.count(None)) + 1)
    return sum(1 / np.log2(rank + 1) for rank in found if rank <= k) / sum(1 / np.log2(rank + 1) for rank in ideal)


def refuses(answer: str) -> bool:
    return REFUSAL in answer


def supported(sentence: str, passages: Sequence[str]) -> bool:
    """Whether passages say what a sentence says, by its tokens."""
    tokens = _tokens(sentence)
    known = [_tokens(text) for text in passages]
    width = min(2, len(tokens))  # a sentence of one token has no pair
    seen = {gram for text in known for gram in _grams(text, width)}
    sought = _grams(tokens, width)
    numbers = {token for token in tokens if token[0].isdigit()} - {token for text in known for token in text}
    return not numbers and sum(gram in seen for gram in sought) >= SUPPORTED * len(sought)


def _tokens(text: str) -> list[str]:
    return [token.lower() for token in character_tokens(clean(text)) if token[0].isalnum()]


def _grams(tokens: list[str], width: int) -> list[tuple[str, ...]]:
    return list(zip(*(tokens[start:] for start in range(width)), strict=False))


def faithfulness(answer: str, passages: Sequence[str]) -> float | None:
    """Share of the sentences of an answer that the passages it cites support; None where it says nothing."""
    whole = [int(number) for number in CITED.findall(answer)]
    judged = []
    for found in SENTENCE.findall(answer):
        text = CITED.sub("", found)
        if re.search(r"\w", text):
            own = [int(number) for number in CITED.findall(found)] or whole
            judged.append(supported(text, [passages[number - 1] for number in own if 1 <= number <= len(passages)]))
    return sum(judged) / len(judged) if judged else None


def judge(row: dict) -> dict[str, float | None]:
    """Every score of one row; None where a score does not apply to it."""
    scores: dict[str, float | None] = {}
    if row["gold"]:
        ranks = first_ranks(row["gold"], row["passages"])
        scores |= {f"recall@{k}": recall(ranks, k) for k in DEPTHS}
        scores |= {"MRR": reciprocal_rank(ranks), f"nDCG@{DEPTHS[-1]}": ndcg(ranks, DEPTHS[-1])}
    if row.get("prediction") is not None:
        answer = strip_thinking(row["prediction"])
        scores["refused, with gold" if row["gold"] else "refused, without gold"] = float(refuses(answer))
        if not refuses(answer):
            scores["cited"] = float(bool(CITED.search(answer)))
            scores["faithful"] = faithfulness(answer, [passage["text"] for passage in row["passages"]])
    return scores


def evaluate_grounding(
    systems: Sequence[list[dict]], samples: int = 1000, seed: int = 0
) -> tuple[list[dict], list[list[dict]]]:
    """A report of each system, {rows, score: {value, low, high, difference?}} in 0..100, and the scores of each row.

    A score is the mean over the rows that have it, with its 95 % bootstrap interval. Raises ValueError where the
    systems did not answer the same rows.
    """
    for rows in systems[1:]:
        if [row["gold"] for row in rows] != [row["gold"] for row in systems[0]]:
            raise ValueError("gold: expected the same rows, in the same order, from every system")
    judged = [[judge(row) for row in rows] for rows in systems]
    names = dict.fromkeys(name for scores in judged[0] for name, score in scores.items() if score is not None)
    reports = [{"rows": len(rows)} for rows in systems]
    for name in names:
        table = np.array([[scores.get(name) for scores in rows] for rows in judged], dtype=float)
        if np.isnan(table).all(axis=1).any():
            continue  # one of the systems has no such row
        for report, entry in zip(reports, compare_means(100 * table, samples, seed), strict=True):
            report[name] = entry
    return reports, judged
