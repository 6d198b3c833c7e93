"""One batch of answers while they are written: the forward pass, the choice of a token, the state of a row."""

import inspect
import random
from typing import NamedTuple

import torch
from torch.nn.functional import pad
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from medical_qwen.generation.interface import Answer, Sampling
from medical_qwen.generation.text import TextStream

GREEDY_BELOW = 1e-5  # a lower temperature would overflow the logits
MOST_PADDING = 16_384  # positions in a batch: more of them cost more than a batch of its own for the long row


class Prompt(NamedTuple):
    ids: list[int]
    truncated: bool


class Row:
    """One answer while it is written."""

    def __init__(self, prompt: Prompt, text: TextStream, sampling: Sampling, ends: set[int], seed: int) -> None:
        self.prompt, self.sampling, self.ends, self.seed = prompt, sampling, ends, seed
        self.pieces: list[str] = []  # one for each token, often empty
        self.finish_reason: str | None = None
        self.given_up = False  # nobody reads it any more
        self.error: BaseException | None = None  # of the step that should have written the next token
        self._text = text
        self._random = random.Random(seed)
        self._tokens = 0

    def draw(self) -> float:
        """The next number of this row's own random sequence, in [0, 1)."""
        return self._random.random()

    def push(self, token: int) -> None:
        """Take the next token. An end token is no text."""
        self._tokens += 1
        ends = token in self.ends
        if not ends:
            self.pieces.append(self._text.push(token))
        if ends or self._text.stopped:
            self.finish("stop")
        elif self._tokens >= self.sampling.max_new_tokens:
            self.finish("length")

    def finish(self, reason: str) -> None:
        """No further token comes."""
        if self.finish_reason is None:
            self.pieces.append(self._text.finish())
            self.finish_reason = reason  # last: whoever sees it in another thread has the whole text

    def answer(self) -> Answer:
        reason = self.finish_reason or "cancelled"
        return Answer("".join(self.pieces), reason, len(self.prompt.ids), self._tokens, self.prompt.truncated)


class Batch:
    """The rows that go through the model together, padded on the left, with their key-value cache."""

    def __init__(self, model: PreTrainedModel, rows: list[Row], vocabulary: int) -> None:
        prompts = [row.prompt.ids for row in rows]
        width = max(len(prompt) for prompt in prompts)
        self.rows, self._model, self._vocabulary = rows, model, vocabulary
        self._cache = DynamicCache(config=model.config)
        inner = model.get_base_model() if hasattr(model, "get_base_model") else model  # under an unmerged adapter
        self._takes_positions = "position_ids" in inspect.signature(inner.forward).parameters  # not with ALiBi
        padded = [[0] * (width - len(prompt)) + prompt for prompt in prompts]
        mask = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
        self._ids = torch.tensor(padded, device=model.device)
        self._mask = torch.tensor(mask, device=model.device)
        self._seen = None  # (rows, vocabulary): tokens that the repetition penalty makes less likely
        if any(row.sampling.repetition_penalty != 1 for row in rows):
            real = self._mask.bool() & (self._ids < vocabulary)
            self._seen = torch.zeros(len(prompts), vocabulary, dtype=torch.bool, device=model.device)
            places = torch.arange(len(prompts), device=model.device)[:, None].expand_as(self._ids)
            self._seen[places[real], self._ids[real]] = True

    @torch.inference_mode()
    def step(self) -> None:
        """One more token for every row; those that are finished leave."""
        logits = self._logits()
        draws = torch.tensor([row.draw() for row in self.rows], device=logits.device)
        tokens = self._choose(logits, draws)
        for row, token in zip(self.rows, tokens.tolist(), strict=True):
            row.push(token)
        self._ids = tokens[:, None].to(self._mask.device)
        self._mask = torch.cat([self._mask, torch.ones_like(self._ids)], dim=-1)
        if self._seen is not None:
            self._seen.scatter_(1, tokens[:, None], True)
        self.keep([row.finish_reason is None for row in self.rows])

    @torch.inference_mode()
    def keep(self, kept: list[bool]) -> None:
        """Only these rows stay."""
        going = [place for place, stays in enumerate(kept) if stays]
        if len(going) < len(self.rows):
            self.rows = [self.rows[place] for place in going]
            index = torch.tensor(going, device=self._ids.device, dtype=torch.long)
            self._ids, self._mask = self._ids[index], self._mask[index]
            self._seen = None if self._seen is None else self._seen[index.to(self._seen.device)]
            if going:
                self._cache.reorder_cache(index)

    @torch.inference_mode()
    def join(self, other: "Batch") -> bool:
        """Take in the rows of a batch that has made a step, too.

        False, and nothing has changed, for caches that do not keep every position and for rows of too unlike length.
        """
        layers = list(zip(self._cache.layers, other._cache.layers, strict=True))
        if not all(type(mine) is type(theirs) is DynamicLayer for mine, theirs in layers):
            return False
        starts = [int(batch._mask.any(0).int().argmax()) for batch in (self, other)]  # columns of padding alone go
        widths = [batch._mask.shape[1] - start for batch, start in zip((self, other), starts, strict=True)]
        width = max(widths)
        padding = sum((width - own) * len(batch.rows) for batch, own in zip((self, other), widths, strict=True))
        if padding > MOST_PADDING:
            return False

        def stacked(parts: tuple[torch.Tensor, torch.Tensor], width: int, dim: int) -> torch.Tensor:
            """The two, each without its first columns and padded on the left to `width` along `dim`."""
            fitted = []
            for part, start in zip(parts, starts, strict=True):
                part = part.narrow(dim, start, part.shape[dim] - start)
                fitted.append(pad(part, (0, 0) * (part.dim() - 1 - dim) + (width - part.shape[dim], 0)))
            return torch.cat(fitted)

        cached = [  # the last token is not in the cache yet
            [stacked((getattr(mine, name), getattr(theirs, name)), width - 1, 2) for name in ("keys", "values")]
            for mine, theirs in layers
        ]
        seen = None
        if self._seen is not None or other._seen is not None:
            seen = torch.cat([batch._seen_or_nothing() for batch in (self, other)])
        mask, ids = stacked((self._mask, other._mask), width, 1), torch.cat([self._ids, other._ids])
        # Only now, with all memory there: half a join would end the answers of all rows.
        for (mine, _), (keys, values) in zip(layers, cached, strict=True):
            mine.keys, mine.values = keys, values
        self._seen, self._mask, self._ids, self.rows = seen, mask, ids, [*self.rows, *other.rows]
        return True

    def _seen_or_nothing(self) -> torch.Tensor:
        shape = len(self.rows), self._vocabulary
        return torch.zeros(shape, dtype=torch.bool, device=self._ids.device) if self._seen is None else self._seen

    def _logits(self) -> torch.Tensor:
        """One forward pass; (rows, vocabulary) of the next token."""
        positions = {}
        if self._takes_positions:
            length = self._ids.shape[1]
            positions["position_ids"] = (self._mask.cumsum(-1) - 1).clamp(min=0)[:, -length:]
        output = self._model(
            input_ids=self._ids,
            attention_mask=self._mask,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
            **positions,
        )
        return output.logits[:, -1, : self._vocabulary].float()

    def _choose(self, logits: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
        """The next tokens (rows,), each as its row's sampling says."""
        kinds = {row.sampling for row in self.rows}
        if len(kinds) == 1:
            return choose(logits, self._seen, draws, kinds.pop())
        tokens = torch.empty(len(self.rows), dtype=torch.long, device=logits.device)
        for kind in kinds:
            index = torch.tensor([place for place, row in enumerate(self.rows) if row.sampling == kind])
            index = index.to(logits.device)
            seen = None if self._seen is None else self._seen[index]
            tokens[index] = choose(logits[index], seen, draws[index], kind)
        return tokens


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
