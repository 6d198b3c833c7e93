"""Answers to a batch of prompts: written by the policy, laid out for the losses, remembered until they are learned."""

import contextlib
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

MANY_BATCHES = 16  # with more the rows are halved first: neighbours are alike then, and the time grows with the cube


@dataclass
class Texts:
    """Prompts and their answers as token ids; `finished`: the answer ends with an end token of its own."""

    prompts: list[list[int]]
    answers: list[list[int]]
    finished: list[bool]

    def __len__(self) -> int:
        return len(self.answers)

    def select(self, rows: Sequence[int]) -> "Texts":
        return Texts(*([getattr(self, part.name)[row] for row in rows] for part in fields(self)))

    def batches(self, count: int) -> list[list[int]]:
        """Row numbers in `count` batches with little padding."""
        lengths = [len(prompt) + len(answer) for prompt, answer in zip(self.prompts, self.answers, strict=True)]
        return divide(lengths, count)

    def mask(self, device: torch.device) -> Tensor:
        """(B, T) bool: where the answers have tokens."""
        lengths = torch.tensor([len(answer) for answer in self.answers], device=device)
        return torch.arange(int(lengths.max()), device=device) < lengths[:, None]

    def layout(self, pad_id: int, device: torch.device) -> dict[str, Tensor]:
        """What `PPOModel.forward` takes to judge every token of the answers.

        The tokens come in the order of the rows, as in `padded[mask]`. Token t of an answer is judged at the position
        before it: that is where the policy chooses it, and the state whose value counts.
        """
        joined = [prompt + answer for prompt, answer in zip(self.prompts, self.answers, strict=True)]
        spans = [
            (row, column)
            for row, (prompt, answer) in enumerate(zip(self.prompts, self.answers, strict=True))
            for column in range(len(prompt) - 1, len(prompt) + len(answer) - 1)
        ]
        rows, columns = torch.tensor(spans, device=device).T
        tokens = torch.tensor([token for answer in self.answers for token in answer], device=device)
        return {"input_ids": pad_right(joined, pad_id, device), "rows": rows, "columns": columns, "tokens": tokens}


def divide(lengths: Sequence[int], count: int) -> list[list[int]]:
    """Row numbers in `count` batches with the least padding: few long rows make a batch, or many short ones.

    The tokens of all batches, each padded to its longest row, are as few as they can be (by dynamic programming, up to
    `MANY_BATCHES`) while no batch takes more than ceil(rows / count) times the longest row: what batches of one size
    would have room for.
    """
    rows = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    if count > MANY_BATCHES:
        half = count // 2
        cut = math.ceil(len(rows) * half / count)
        parts = (rows[:cut], half), (rows[cut:], count - half)
        return [[part[i] for i in b] for part, number in parts for b in divide([lengths[i] for i in part], number)]
    sizes = np.arange(1, len(rows) + 1) - np.arange(len(rows))[:, None]  # [i, j]: of a batch from row i to row j
    padded = sizes * np.array([[float(lengths[row])] for row in rows])
    padded[(sizes < 1) | (padded > math.ceil(len(rows) / count) * padded[0, 0])] = np.inf
    best, begins = padded[0], []  # best[j]: the least number of tokens for the rows up to j in so many batches
    for _ in range(count - 1):
        totals = best[:-1, None] + padded[1:]
        begins.append(totals.argmin(0) + 1)
        best = totals.min(0)
    batches, end = [], len(rows)
    for begin in reversed(begins):
        batches.append(rows[begin[end - 1] : end])
        end = begin[end - 1]
    return [rows[:end], *reversed(batches)]


def pad_right(ids: list[list[int]], pad_id: int, device: torch.device) -> Tensor:
    """(B, T) long."""
    longest = max(map(len, ids))
    return torch.tensor([row + [pad_id] * (longest - len(row)) for row in ids], device=device)


def read_at(ids: list[int], pad_id: int | None) -> int:
    """Where transformers' classification models score a row, and so do we: at the last token that is not padding."""
    return max(i for i, token in enumerate(ids) if token != pad_id)


@dataclass
class Rollout:
    """What the update needs of the answers of one rank. Tensors are (B, T), 0 where an answer has no token."""

    number: int
    texts: Texts
    logprobs: Tensor
    values: Tensor
    advantages: Tensor
    returns: Tensor
    tokens_per_step: Tensor  # (epochs, mini-batches): tokens of all ranks, which the losses are averaged over

    def state_dict(self) -> dict[str, Any]:
        state = {part.name: getattr(self, part.name) for part in fields(self)}
        return state | {"texts": vars(self.texts)}

    @classmethod
    def from_state_dict(cls, state: dict[str, Any], device: torch.device) -> "Rollout":
        tensors = {name: value.to(device) for name, value in state.items() if isinstance(value, Tensor)}
        return cls(**state | tensors | {"texts": Texts(**state["texts"])})


@contextlib.contextmanager
def seeded(device: torch.device, *key: int) -> Iterator[None]:
    """Random numbers that depend on `key` alone; what they were before is restored afterwards.

    Sampling by (seed, rollout number, rank) makes a resumed run draw the answers of an uninterrupted one, and every
    rank draw its own.
    """
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(random.Random(repr(key)).getrandbits(63))
        yield


def order(size: int, *key: int) -> list[int]:
    """A permutation of `range(size)` that depends on `key` alone."""
    numbers = list(range(size))
    random.Random(repr(key)).shuffle(numbers)
    return numbers


@torch.no_grad()
def write_answers(
    model: PreTrainedModel,
    prompts: list[list[int]],
    *,
    stop_ids: list[int],
    pad_id: int,
    max_length: int,
    temperature: float,
    batch_size: int,
) -> Texts:
    """Sample one answer to each prompt: batched, with a KV cache, prompts of like length together.

    The model has to be in eval mode (gradient checkpointing and a cache exclude each other).
    """
    sampling = GenerationConfig(
        max_new_tokens=max_length,
        do_sample=True,
        temperature=temperature,
        top_k=0,
        top_p=1.0,
        eos_token_id=stop_ids,
        pad_token_id=pad_id,
        use_cache=True,
    )
    device, stops = model.device, set(stop_ids)
    answers: list[list[int]] = [[] for _ in prompts]
    by_length = sorted(range(len(prompts)), key=lambda row: -len(prompts[row]))
    with _bare_generation_config(model):
        for start in range(0, len(prompts), batch_size):
            batch = by_length[start : start + batch_size]
            longest = len(prompts[batch[0]])
            pads = [longest - len(prompts[row]) for row in batch]
            ids = torch.tensor([[pad_id] * pad + prompts[row] for pad, row in zip(pads, batch, strict=True)])
            mask = torch.arange(longest) >= torch.tensor(pads)[:, None]
            written = model.generate(
                input_ids=ids.to(device), attention_mask=mask.long().to(device), generation_config=sampling
            )
            for row, tokens in zip(batch, written[:, longest:].tolist(), strict=True):
                end = next((place + 1 for place, token in enumerate(tokens) if token in stops), len(tokens))
                answers[row] = tokens[:end]
    return Texts(prompts, answers, [answer[-1] in stops for answer in answers])


@contextlib.contextmanager
def _bare_generation_config(model: PreTrainedModel) -> Iterator[None]:
    """Hide the checkpoint's own defaults (a repetition penalty, ...): PPO has to sample from the policy as it is."""
    before, model.generation_config = model.generation_config, GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = before
