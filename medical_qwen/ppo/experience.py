"""From prompts to what the update learns from: answers, scores, log-probabilities, values, advantages."""

import contextlib
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from medical_qwen.ppo import losses
from medical_qwen.ppo.config import PPOConfig
from medical_qwen.ppo.linear import kept_merged
from medical_qwen.ppo.roles import PPOModel
from medical_qwen.ppo.rollout import Rollout, Texts, order, pad_right, read_at, seeded, write_answers
from medical_qwen.ppo.scoring import Scorer, check_scores
from medical_qwen.rendering import Renderer

Row = dict[str, Any]


@dataclass
class Judged:
    """Answers and what the roles say of them. `scores` is (B,), the others are (B, T), 0 where there is no token."""

    texts: Texts
    words: list[str]
    mask: Tensor
    scores: Tensor
    logprobs: Tensor
    entropy: Tensor
    kl: Tensor


class Experience:
    """Lets the roles of a model speak, without gradients, on one rank of a run."""

    def __init__(
        self,
        model: PPOModel,
        config: PPOConfig,
        tokenizer: PreTrainedTokenizerBase,
        accelerator: Accelerator,
        scorer: Scorer | None,
    ) -> None:
        self.model, self.config, self.accelerator, self.scorer = model, config, accelerator, scorer
        self.tokenizer, self.pad_id = tokenizer, tokenizer.pad_token_id
        self.stop_ids = Renderer(tokenizer).stop_token_ids
        self._reward_renderer = Renderer(model.reward_tokenizer) if model.reward_tokenizer else None
        self._engine = None
        if config.use_vllm:
            from medical_qwen.ppo.vllm_rollout import Engine

            self._engine = Engine(model, config, tokenizer, accelerator, self.stop_ids)

    def sum(self, tensor: Tensor) -> Tensor:
        """Over the ranks."""
        return self.accelerator.reduce(tensor, "sum")

    def judge(self, rows: list[Row], *key: int) -> Judged:
        """Answer the prompts of `rows` with random numbers that depend on `key` alone, and judge the answers."""
        texts = self._answers(rows, *key)
        words = self.tokenizer.batch_decode(texts.answers, skip_special_tokens=True)
        scores = self._scores(rows, texts, words)
        check_scores(scores.tolist(), words)
        temperature = self.config.temperature
        logprobs, entropy = self._by_token("policy", texts, temperature=temperature, with_entropy=True)
        (reference,) = self._by_token("reference", texts, temperature=temperature)
        kl = losses.kl_estimate(logprobs, reference, self.config.kl_estimator)
        return Judged(texts, words, texts.mask(scores.device), scores, logprobs, entropy, kl)

    def roll_out(self, number: int, rows: list[Row], kl_coef: float) -> tuple[Rollout, Judged, dict[str, float]]:
        """Rollout `number`, what it was made of, and its figures over all ranks."""
        config, started = self.config, time.perf_counter()
        judged = self.judge(rows, config.seed, number, self.accelerator.process_index)
        (values,) = self._by_token("value", judged.texts)
        scores = judged.scores
        if config.missing_eos_penalty is not None:
            finished = torch.tensor(judged.texts.finished, device=scores.device)
            scores = losses.missing_eos_penalty(scores, finished, config.missing_eos_penalty)
        rewards = losses.token_rewards(scores, judged.kl, judged.mask, kl_coef)
        if config.whiten_rewards:
            rewards = losses.masked_whiten(rewards, judged.mask, shift_mean=False, reduce=self.sum)
        advantages, returns = losses.generalized_advantages(rewards, values, judged.mask, config.gamma, config.lam)
        figures = self.figures(judged)
        figures["explained_variance"] = losses.explained_variance(values, returns, judged.mask, self.sum).item()
        if config.whiten_advantages:
            advantages = losses.masked_whiten(advantages, judged.mask, reduce=self.sum)
        tokens = self.sum(self._tokens_per_step(number, judged.texts).to(scores.device))
        figures["rollout_seconds"] = time.perf_counter() - started
        return Rollout(number, judged.texts, judged.logprobs, values, advantages, returns, tokens), judged, figures

    def figures(self, judged: Judged, counted: int | None = None) -> dict[str, float]:
        """Means over all ranks' answers, of this rank's the first `counted` (default: all).

        `reward` is the plain score; `kl` is in nats per answer, `entropy` in nats per token.
        """
        scores, mask = judged.scores[:counted].double(), judged.mask[:counted]
        finished = torch.tensor(judged.texts.finished[:counted], device=mask.device)
        sums = [
            torch.ones_like(scores).sum(),
            mask.sum(),
            scores.sum(),
            (scores**2).sum(),
            judged.kl[:counted].sum(),
            judged.entropy[:counted].sum(),
            finished.sum(),
        ]
        answers, tokens, total, squares, kl, entropy, ends = self.sum(torch.stack([x.double() for x in sums])).tolist()
        mean = total / answers
        return {
            "reward": mean,
            "reward_std": max(squares / answers - mean**2, 0.0) ** 0.5,
            "kl": kl / answers,
            "entropy": entropy / tokens,
            "response_length": tokens / answers,
            "share_with_end": ends / answers,
        }

    def mini_batch(self, number: int, epoch: int, part: int, texts: Texts) -> list[int]:
        """Rows of mini-batch `part` in pass `epoch` over rollout `number`."""
        shuffled = order(len(texts), self.config.seed, number, self.accelerator.process_index, epoch)
        size = len(texts) // self.config.num_mini_batches
        return shuffled[part * size : (part + 1) * size]

    def _tokens_per_step(self, number: int, texts: Texts) -> Tensor:
        """(epochs, mini-batches): answer tokens of this rank in each optimizer step of a rollout."""
        return torch.tensor(
            [
                [
                    float(sum(len(texts.answers[row]) for row in self.mini_batch(number, epoch, part, texts)))
                    for part in range(self.config.num_mini_batches)
                ]
                for epoch in range(self.config.num_ppo_epochs)
            ]
        )

    @contextlib.contextmanager
    def _listening(self, role: str) -> Iterator[PPOModel]:
        """The model, unwrapped and in eval mode (no gradient checkpointing, so that a cache can be used)."""
        self.model.eval()
        with torch.no_grad(), self.accelerator.autocast(), self.model.acting(role):
            yield self.model

    def _answers(self, rows: list[Row], *key: int) -> Texts:
        if self._engine is not None:
            return self._engine.write_answers([row["prompt_ids"] for row in rows])
        with self._listening("policy") as model, kept_merged(model), seeded(self.accelerator.device, *key):
            return write_answers(
                model.language_model,
                [row["prompt_ids"] for row in rows],
                stop_ids=self.stop_ids,
                pad_id=self.pad_id,
                max_length=self.config.max_completion_length,
                temperature=self.config.temperature,
                batch_size=self.config.rollout_batch_size,
            )

    def _batches(self, texts: Texts) -> Iterator[tuple[list[int], Texts]]:
        """As many batches on every rank: with ZeRO-3 each is a collective."""
        for batch in texts.batches(math.ceil(len(texts) / self.config.per_device_eval_batch_size)):
            yield batch, texts.select(batch)

    def _by_token(self, role: str, texts: Texts, **kwargs) -> list[Tensor]:
        """What a role says of every token of the answers: tensors (B, T), 0 where there is no token."""
        device = self.accelerator.device
        mask = texts.mask(device)
        results: list[Tensor] = []
        with self._listening(role) as model:
            for rows, batch in self._batches(texts):
                output = model(**batch.layout(self.pad_id, device), **kwargs)
                output = output if isinstance(output, tuple) else (output,)
                results = results or [torch.zeros(mask.shape, device=device) for _ in output]
                for result, values in zip(results, output, strict=True):
                    padded = torch.zeros(len(rows), mask.shape[1], device=device)
                    padded[mask[rows]] = values
                    result[rows] = padded
        return results

    def _scores(self, rows: list[Row], texts: Texts, words: list[str]) -> Tensor:
        """(B,) on this rank's device, from the scorer or from the reward role."""
        device = self.accelerator.device
        if self.scorer is not None:
            return torch.tensor(self.scorer(rows, words, texts.answers), dtype=torch.float32, device=device)
        read = self._as_read_by_reward_model(rows, texts, words)
        scores = torch.zeros(len(texts), device=device)
        with self._listening("reward") as model:
            for batch_rows, batch in self._batches(read):
                ids = [prompt + answer for prompt, answer in zip(batch.prompts, batch.answers, strict=True)]
                last = [read_at(row, model.reward_pad_id) for row in ids]
                scores[batch_rows] = model(
                    input_ids=pad_right(ids, self.pad_id, device),
                    rows=torch.arange(len(ids), device=device),
                    columns=torch.tensor(last, device=device),
                )
        return scores

    def _as_read_by_reward_model(self, rows: list[Row], texts: Texts, words: list[str]) -> Texts:
        """The same tokens, end token included; or those of the reward model's own tokenizer and template."""
        if self._reward_renderer is None:
            return texts
        limit = 2 * (self.config.max_prompt_length + self.config.max_completion_length)
        talks = [
            [*row["prompt"], {"role": "assistant", "content": word}] for row, word in zip(rows, words, strict=True)
        ]
        read = [
            self._reward_renderer.to_score(talk, limit, row.get("tools"), finished)
            for talk, row, finished in zip(talks, rows, texts.finished, strict=True)
        ]
        return Texts(read, [[] for _ in read], texts.finished)
