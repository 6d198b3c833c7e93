"""Which number does an answer get: from a reward checkpoint, or from a language model that judges it.

model = RewardModel.load("outputs/rm")
model.score([[{"role": "user", "content": "头痛怎么办？"}, {"role": "assistant", "content": "多休息。"}]])
"""

import json
import math
import re
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from medical_qwen.answers import strip_thinking
from medical_qwen.metrics import wilson_interval
from medical_qwen.models import undivided
from medical_qwen.ppo.loading import RewardCheckpoint
from medical_qwen.ppo.rollout import read_at
from medical_qwen.rendering import Renderer

Message = dict[str, str]

JUDGE_PROMPT = """请你作为严格的医学专家，为下面的回答打分。考虑是否正确、是否安全、是否诚实、是否有帮助。

【问题】
{question}

【回答】
{answer}
{gold}
只输出一个 0 到 10 的整数，10 分最好。"""
OUT_OF_TEN = re.compile(r"([/／]\s*|[满总]分\s*(为|是)?\s*|out of )10(?!\d)", re.IGNORECASE)


class RewardModel:
    """Scores whole conversations: the number at the last token of the last answer, its end token included."""

    def __init__(
        self, trunk: nn.Module, head: nn.Module, tokenizer: PreTrainedTokenizerBase, batch_tokens: int = 16384
    ) -> None:
        """
        Args:
            trunk: the transformer up to its last hidden states.
            head: from a hidden state to one number.
            batch_tokens: padded tokens per forward pass. Only speed and memory depend on it.
        """
        self.trunk, self.head, self.tokenizer = trunk.eval(), head.eval(), tokenizer
        self.renderer, self.batch_tokens = Renderer(tokenizer), batch_tokens

    @classmethod
    def load(
        cls, path: str, dtype: str = "auto", device: torch.device | str | None = None, trust_remote_code: bool = False
    ) -> "RewardModel":
        """From a directory that `reward_modeling.py` left, an adapter or a whole model.

        Raises:
            ValueError: the directory holds something else; FileNotFoundError: it holds no model.
        """
        checkpoint = RewardCheckpoint.read(path, trust_remote_code)
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        with undivided():
            trunk = checkpoint.trunk(dtype).to(device)
        return cls(trunk, checkpoint.score_head().to(device), checkpoint.tokenizer)

    @classmethod
    def of(cls, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> "RewardModel":
        """Around a sequence classification model in memory, with or without adapters."""
        inner = model.get_base_model() if hasattr(model, "get_base_model") else model
        return cls(inner.base_model, inner.score, tokenizer)

    def score(
        self,
        conversations: Sequence[Sequence[Message]],
        tools: Sequence | None = None,
        finished: Sequence[bool] | None = None,
    ) -> list[float]:
        """One number per conversation; each ends with the assistant's answer. Too long: its oldest turns go.

        `finished`: False for answers that were cut off, which have no end.
        """
        tools, finished = tools or [None] * len(conversations), finished or [True] * len(conversations)
        return self.score_ids([self.encode(*row) for row in zip(conversations, tools, finished, strict=True)])

    def encode(self, conversation: Sequence[Message], tools: list | None = None, finished: bool = True) -> list[int]:
        """The ids that are scored."""
        limit = getattr(self.trunk.config.get_text_config(), "max_position_embeddings", None)
        return self.renderer.to_score(conversation, limit, tools, finished)

    @torch.inference_mode()
    def score_ids(self, ids: Sequence[Sequence[int]]) -> list[float]:
        """One number per row of token ids, taken at its last token that is not the pad token."""
        scores = [0.0] * len(ids)
        for rows in self._batches(ids):
            values = self._forward([list(ids[row]) for row in rows])
            for row, value in zip(rows, values.tolist(), strict=True):
                scores[row] = value
        return scores

    def _batches(self, ids: Sequence[Sequence[int]]) -> list[list[int]]:
        """Row numbers; rows of like length together."""
        batches: list[list[int]] = []
        for row in sorted(range(len(ids)), key=lambda row: -len(ids[row])):
            longest = len(ids[batches[-1][0]]) if batches else 0
            if not batches or (len(batches[-1]) + 1) * longest > self.batch_tokens:
                batches.append([])
            batches[-1].append(row)
        return batches

    def _forward(self, ids: list[list[int]]) -> Tensor:
        """(B,)"""
        device, longest = next(self.trunk.parameters()).device, max(map(len, ids))
        lengths = torch.tensor([len(row) for row in ids], device=device)
        pad = self.tokenizer.pad_token_id
        padded = torch.tensor([row + [pad] * (longest - len(row)) for row in ids], device=device)
        mask = torch.arange(longest, device=device) < lengths[:, None]
        hidden = self.trunk(input_ids=padded, attention_mask=mask.long(), use_cache=False).last_hidden_state
        last = hidden[torch.arange(len(ids), device=device), [read_at(row, pad) for row in ids]]
        return self.head(last.to(next(self.head.parameters()).dtype)).squeeze(-1).float()


def pair_report(
    chosen: Sequence[float], rejected: Sequence[float], margins: Sequence[float] | None = None, bins: int = 10
) -> dict[str, float]:
    """What a reward model makes of N pairs.

    Args:
        chosen, rejected: rewards. margins: by how much the first should be ahead in the loss (default 0).

    Returns:
        `accuracy` (a tie is half right) with its 95 % interval (Wilson), mean `margin`, `loss` (Bradley-Terry) and
        `calibration_error`: the answer with the higher reward has the probability sigmoid(|difference|) of being the
        better one; in `bins` equal parts of 0.5..1, the mean distance of that from the share in which it is (ECE,
        arXiv 1706.04599).
    """
    ahead = [first - second for first, second in zip(chosen, rejected, strict=True)]
    right = [1.0 if x > 0 else 0.5 if x == 0 else 0.0 for x in ahead]
    sure = [1 / (1 + math.exp(-min(abs(x), 700.0))) for x in ahead]
    groups: dict[int, list[float]] = {}
    for hit, confidence in zip(right, sure, strict=True):
        groups.setdefault(min(int((confidence - 0.5) * 2 * bins), bins - 1), []).append(hit - confidence)
    low, high = wilson_interval(round(sum(right)), len(right))
    short = [m - x for m, x in zip(margins or [0.0] * len(ahead), ahead, strict=True)]
    return {
        "pairs": len(ahead),
        "accuracy": sum(right) / len(right),
        "accuracy_low": low,
        "accuracy_high": high,
        "margin": sum(ahead) / len(ahead),
        "loss": sum(max(x, 0.0) + math.log1p(math.exp(-abs(x))) for x in short) / len(ahead),
        "calibration_error": sum(abs(sum(group)) for group in groups.values()) / len(ahead),
        "reward_chosen": sum(chosen) / len(ahead),
        "reward_rejected": sum(rejected) / len(ahead),
    }


def without_gaps(questions: Sequence[str], marks: Sequence[float | None]) -> list[float | None]:
    """Marks in which None is the mean of the others to its question: as a part of a sum it would count as 0. Where
    there are no others, None stays."""
    known: dict[str, list[float]] = {question: [] for question in questions}
    for question, mark in zip(questions, marks, strict=True):
        known[question] += [] if mark is None else [mark]
    means = {question: sum(found) / len(found) if found else None for question, found in known.items()}
    return [means[question] if mark is None else mark for question, mark in zip(questions, marks, strict=True)]


@dataclass
class Judge:
    """A language model behind an OpenAI-compatible server that marks answers from 0 to 10; returned as 0 to 1.

    An answer for which the reply holds no number from 0 to 10, or several, gets None: it cannot be judged. A server
    that cannot be reached, or refuses, is an error.
    """

    url: str  # up to and with /v1
    model: str
    api_key: str | None = None
    parallel: int = 8
    timeout: float = 120.0

    def score(
        self, questions: Sequence[str], answers: Sequence[str], gold: Sequence[str | None] | None = None
    ) -> list[float | None]:
        """One mark per answer; `gold`: the right answers, where they are known."""
        gold = gold or [None] * len(answers)
        with ThreadPoolExecutor(self.parallel) as pool:
            return list(pool.map(self._mark, questions, answers, gold))

    def _mark(self, question: str, answer: str, gold: str | None) -> float | None:
        known = f"\n【标准答案】\n{gold}\n" if gold else ""
        reply = self._ask(JUDGE_PROMPT.format(question=question, answer=answer, gold=known))
        found = {
            float(x)
            for x in re.findall(r"(?<!\S)-?\d+(?:\.\d+)?|\d+(?:\.\d+)?", OUT_OF_TEN.sub("", strip_thinking(reply)))
        }
        mark = found.pop() if len(found) == 1 else -1.0
        return mark / 10 if 0 <= mark <= 10 else None

    def _ask(self, text: str) -> str:
        body = {"model": self.model, "messages": [{"role": "user", "content": text}], "temperature": 0}
        headers = {"Content-Type": "application/json"}
        if self.api_key:
            headers["Authorization"] = f"Bearer {self.api_key}"
        request = urllib.request.Request(
            f"{self.url.rstrip('/')}/chat/completions", json.dumps(body, ensure_ascii=False).encode(), headers
        )
        try:
            with urllib.request.urlopen(request, timeout=self.timeout) as response:
                return json.loads(response.read())["choices"][0]["message"]["content"] or ""
        except (urllib.error.URLError, TimeoutError, json.JSONDecodeError, KeyError, IndexError) as error:
            raise ValueError(f"--judge_url: {self.url} gave no mark: {error}") from error
