"""Scores from outside the model: an HTTP endpoint, or Python functions."""

import json
import logging
import math
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from typing import Any

logger = logging.getLogger(__name__)

# (rows of the data set, answers as text, answers as token ids) -> one number per answer
Scorer = Callable[[list[dict[str, Any]], list[str], list[list[int]]], list[float]]


def from_endpoint(url: str, stop_ids: Sequence[int], batch_size: int = 32, timeout: float = 120.0) -> Scorer:
    """A reward model behind HTTP: POST {"conversations": [[{role, content}, ...], ...]} -> {"scores": [0.5, ...]}.

    `"finished"` is false for answers that were cut, that is, do not end in one of `stop_ids`. Where there are
    conversations with tools, `"tools"` is a list of as many entries, null for those without.
    """

    def score(rows: list[dict[str, Any]], answers: list[str], ids: list[list[int]]) -> list[float]:
        talks = [
            [*row["prompt"], {"role": "assistant", "content": answer}]
            for row, answer in zip(rows, answers, strict=True)
        ]
        tools = [row.get("tools") for row in rows]
        finished = [bool(answer) and answer[-1] in stop_ids for answer in ids]
        return [
            number
            for start in range(0, len(talks), batch_size)
            for number in _post(url, *(x[start : start + batch_size] for x in (talks, tools, finished)), timeout)
        ]

    return score


def _post(url: str, conversations: list[list[dict]], tools: list, finished: list[bool], timeout: float) -> list[float]:
    body = {"conversations": conversations, "finished": finished} | ({"tools": tools} if any(tools) else {})
    request = urllib.request.Request(
        url,
        json.dumps(body, ensure_ascii=False).encode(),
        {"Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=timeout) as response:
            reply = json.loads(response.read())
    except (urllib.error.URLError, TimeoutError, json.JSONDecodeError) as error:
        raise ValueError(f"--reward_url: {url} gave no scores: {error}") from error
    scores = reply.get("scores") if isinstance(reply, dict) else None
    if not isinstance(scores, list) or len(scores) != len(conversations):
        raise ValueError(
            f"--reward_url: {url} was sent {len(conversations)} conversations; "
            f'expected {{"scores": [as many numbers]}}, got {str(reply)[:200]}'
        )
    return [float(score) for score in scores]


def from_functions(functions: Sequence[Callable[..., list[float | None]]], weights: Sequence[float] = ()) -> Scorer:
    """The weighted sum of reward functions with TRL's signature.

    A function gets `prompts` and `completions` (lists of message lists), `completion_ids`, and every further column of
    the rows as a list; it returns one number per completion. None ("cannot be judged") counts for nothing.
    """
    weights = list(weights) or [1.0] * len(functions)

    def score(rows: list[dict[str, Any]], answers: list[str], ids: list[list[int]]) -> list[float]:
        columns = {name: [row[name] for row in rows] for name in rows[0] if name not in ("prompt", "prompt_ids")}
        totals = [0.0] * len(rows)
        for function, weight in zip(functions, weights, strict=True):
            scores = function(
                prompts=[row["prompt"] for row in rows],
                completions=[[{"role": "assistant", "content": answer}] for answer in answers],
                completion_ids=ids,
                **columns,
            )
            totals = [total + weight * (number or 0.0) for total, number in zip(totals, scores, strict=True)]
        return totals

    return score


def check_scores(scores: Sequence[float], answers: Sequence[str]) -> None:
    """Refuse scores that are not finite numbers."""
    for score, answer in zip(scores, answers, strict=True):
        if not math.isfinite(score):
            raise ValueError(f"the reward gave {score} for the answer {answer[:200]!r}")
