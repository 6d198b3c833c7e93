"""One batch of answers while they are written: the forward pass, the choice of a token, the state of a row."""

import inspect
import random
from typing import NamedTuple

import torch
from transformers import DynamicCache, PreTrainedModel

from medical_qwen.generation.interface import Answer, Sampling
from medical_qwen.generation.text import TextStream

GREEDY_BELOW = 1e-5  # a lower temperature would overflow the logits


class Prompt(NamedTuple):
    ids: list[int]
    truncated: bool


class Row:
    """One answer while it is written."""

    def __init__(self, prompt: Prompt, text: TextStream, seed: int) -> None:
        self.prompt = prompt
        self.pieces: list[str] = []
        self.finish_reason: str | None = None
        self._text = text
        self._random = random.Random(seed)
        self._tokens = 0

    def draw(self) -> float:
        """The next number of this row's own random sequence, in [0, 1)."""
        return self._random.random()

    def push(self, token: int, ends: bool, max_new_tokens: int) -> None:
        """Take the next token. `ends`: it is an end token, which is no text."""
        self._tokens += 1
        if not ends:
            self.pieces.append(self._text.push(token))
        if ends or self._text.stopped:
            self.finish_reason = "stop"
        elif self._tokens >= max_new_tokens:
            self.finish_reason = "length"
        if self.finish_reason:
            self.pieces.append(self._text.finish())

    def answer(self) -> Answer:
        reason = self.finish_reason or "cancelled"
        return Answer("".join(self.pieces), reason, len(self.prompt.ids), self._tokens, self.prompt.truncated)


class Batch:
    """The rows that go through the model together, padded on the left, with their key-value cache."""

    def __init__(self, model: PreTrainedModel, prompts: list[list[int]], vocabulary: int, sampling: Sampling) -> None:
        width = max(len(prompt) for prompt in prompts)
        self._model, self._vocabulary, self._sampling = model, vocabulary, sampling
        self._cache = DynamicCache(config=model.config)
        inner = model.get_base_model() if hasattr(model, "get_base_model") else model  # under an unmerged adapter
        self._takes_positions = "position_ids" in inspect.signature(inner.forward).parameters  # not with ALiBi
        padded = [[0] * (width - len(prompt)) + prompt for prompt in prompts]
        mask = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
        self._ids = torch.tensor(padded, device=model.device)
        self._mask = torch.tensor(mask, device=model.device)
        self._seen = None  # (rows, vocabulary): tokens that the repetition penalty makes less likely
        if sampling.repetition_penalty != 1:
            real = self._mask.bool() & (self._ids < vocabulary)
            self._seen = torch.zeros(len(prompts), vocabulary, dtype=torch.bool, device=model.device)
            rows = torch.arange(len(prompts), device=model.device)[:, None].expand_as(self._ids)
            self._seen[rows[real], self._ids[real]] = True

    @torch.inference_mode()
    def next_tokens(self, draws: list[float]) -> torch.Tensor:
        """One forward pass and a choice for each row. draws: a random number in [0, 1) a row; returns ids (rows,)."""
        length = self._ids.shape[1]
        positions = {}
        if self._takes_positions:
            positions["position_ids"] = (self._mask.cumsum(-1) - 1).clamp(min=0)[:, -length:]
        output = self._model(
            input_ids=self._ids,
            attention_mask=self._mask,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
            **positions,
        )
        logits = output.logits[:, -1, : self._vocabulary].float()
        return choose(logits, self._seen, torch.tensor(draws, device=logits.device), self._sampling).to(
            self._ids.device
        )

    @torch.inference_mode()
    def advance(self, tokens: torch.Tensor, going: list[int]) -> None:
        """The chosen tokens (rows,) become the next input; only the rows `going` stay in the batch."""
        if len(going) < len(tokens):
            index = torch.tensor(going, device=tokens.device)
            tokens, self._mask = tokens[index], self._mask[index]
            self._seen = None if self._seen is None else self._seen[index]
            self._cache.reorder_cache(index)
        self._ids = tokens[:, None]
        self._mask = torch.cat([self._mask, torch.ones_like(self._ids)], dim=-1)
        if self._seen is not None:
            self._seen.scatter_(1, self._ids, True)


def choose(logits: torch.Tensor, seen: torch.Tensor | None, draws: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """Token ids (rows,) from logits (rows, vocabulary): likeliest, or drawn from the nucleus (arXiv 1904.09751).

    Args:
        seen: bool (rows, vocabulary), the tokens under the repetition penalty (arXiv 1909.05858, section 4.1).
        draws: (rows,) uniform in [0, 1). A row's token depends on its own logits and its own number only.
    """
    if seen is not None:
        penalty = sampling.repetition_penalty
        logits = torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)
    if sampling.temperature < GREEDY_BELOW:
        return logits.argmax(-1)
    probabilities, order = (logits / sampling.temperature).softmax(-1).sort(dim=-1, descending=True, stable=True)
    ahead = probabilities.cumsum(-1) - probabilities
    probabilities = probabilities.masked_fill(ahead >= sampling.top_p, 0)
    cumulative = probabilities.cumsum(-1)
    drawn = draws.to(cumulative.dtype)[:, None] * cumulative[:, -1:]
    last = (probabilities > 0).sum(-1, keepdim=True) - 1
    place = (cumulative <= drawn).sum(-1, keepdim=True).minimum(last)
    return order.gather(-1, place).squeeze(-1)
