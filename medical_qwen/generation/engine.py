"""Who answers? A language model in this process, through transformers.

`Generator` has the two calls that every front end needs: `answer` for many requests at once and `stream` for one that
is read while it is written. Both run the same loop, one forward pass a token for all rows of a batch, so a streamed
answer is the batch's answer. The loop is ours, not `model.generate`, for three things that one lacks: a row that is
finished leaves the batch, each request draws from its own seed whatever it shares a batch with, and whoever reads a
stream can stop it between two tokens without a thread.
"""

import logging
import threading
from collections.abc import Callable, Iterable, Iterator

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from medical_qwen.generation.decoding import Batch, Prompt, Row
from medical_qwen.generation.interface import Answer, Request, Sampling, Stream, plan_batches
from medical_qwen.generation.live import Live
from medical_qwen.generation.text import THINK_OPEN, TextStream
from medical_qwen.lineage import resolve
from medical_qwen.models import choose_tokenizer, fit_embeddings, load_base, load_tokenizer
from medical_qwen.rendering import Renderer

logger = logging.getLogger(__name__)


class TokenEngine:
    """What engines have in common that read and write tokens: the prompt of a request, the text of an answer.

    Args:
        ends: ids of the model's own end tokens, beyond those of the chat template.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, context_length: int | None, ends: Iterable[int]) -> None:
        self.tokenizer = tokenizer
        self.renderer = Renderer(tokenizer)
        self.context_length = context_length
        self.stop_token_ids = {*self.renderer.stop_token_ids, *ends}
        self._live, self._rendering = Live(self._begin), threading.Lock()

    def measure(self, requests: list[Request], sampling: Sampling) -> list[int]:
        """Prompt lengths in tokens, after the oldest turns were dropped where needed: for `plan_batches`."""
        return [len(self._prompt(request, sampling).ids) for request in requests]

    def fits(self, request: Request, sampling: Sampling) -> bool:
        """Whether prompt and answer fit into the model's context with nothing left out."""
        return not self._prompt(request, sampling).truncated

    def stream(self, request: Request, sampling: Sampling) -> Stream:
        """The answer piece by piece, whole characters, never a part of a stop string.

        Any number of threads may read streams of one engine: they share its passes, see `Live`.
        """
        row = self._row(self._prompt(request, sampling), request.seed, sampling)
        return Stream(self._live.pieces(row), row.answer, lambda: self._live.give_up(row))

    def _begin(self, rows: list[Row]) -> Batch:
        """The rows as a batch that has not made a step yet."""
        raise NotImplementedError

    def _prompt(self, request: Request, sampling: Sampling) -> Prompt:
        room = None if self.context_length is None else self.context_length - sampling.max_new_tokens
        if room is not None and room < 1:
            raise ValueError(
                f"--max_new_tokens {sampling.max_new_tokens} leaves no room for a question: the model's context is "
                f"{self.context_length} tokens"
            )
        with self._rendering:
            ids = self.renderer.prompt(request.messages, request.tools)
            if room is None or len(ids) <= room:
                return Prompt(ids, truncated=False)
            return Prompt(self.renderer.prompt(request.messages, request.tools, max_length=room), truncated=True)

    def _row(self, prompt: Prompt, seed: int, sampling: Sampling) -> Row:
        stops = tuple(dict.fromkeys((*self.renderer.stop_strings, *sampling.stop)))
        ends = self.stop_token_ids | self._control_tokens(sampling.stop)
        row = Row(prompt, TextStream(self.tokenizer, stops), sampling, ends, seed)
        if self.tokenizer.decode(prompt.ids[-8:]).rstrip().endswith(THINK_OPEN):
            row.pieces.append(f"{THINK_OPEN}\n")  # the prompt has begun the thought: cut off it would seem the answer
        return row

    def _control_tokens(self, stops: tuple[str, ...]) -> set[int]:
        """Ids of the stop strings that are special tokens: those never show up in the text."""
        special = set(self.tokenizer.all_special_tokens)
        return {self.tokenizer.convert_tokens_to_ids(stop) for stop in stops if stop in special}


class Generator(TokenEngine):
    """A causal language model and its tokenizer."""

    batches_itself = False  # its batches are planned, so that a job's answers do not depend on who finished when

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        ends = model.generation_config.eos_token_id
        context_length = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        super().__init__(tokenizer, context_length, {*(ends if isinstance(ends, list) else [ends])} - {None})
        self.model = model.eval()
        self.vocabulary = max(tokenizer.get_vocab().values()) + 1  # models may have more rows than that
        self.rows_at_once: int | None = None  # lowered when the device runs out of memory

    @classmethod
    def load(
        cls,
        base_model: str,
        lora_model: str | None = None,
        *,
        tokenizer_path: str | None = None,
        template_name: str | None = None,
        resize_emb: bool = False,
        only_cpu: bool = False,
        bits: int | None = None,
        merge: bool = True,
    ) -> "Generator":
        """Load a model directory, hub id or adapter directory, with a further adapter on top if `lora_model` is given.

        One visible GPU holds the whole model; on several its layers are spread out. `merge`: False keeps the last
        adapter apart, which is slower, but it can be switched off. Quantised weights are never merged into.
        """
        lineage = resolve(base_model, lora_model)
        tokenizer = find_tokenizer(base_model, lora_model, tokenizer_path, template_name)
        if bits == 8:  # it would say at every product of matrices that it computes in float16
            logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
        cpu = only_cpu or not torch.cuda.is_available()
        device_map = {"": "cpu"} if cpu else "auto" if torch.cuda.device_count() > 1 else {"": 0}
        model = load_base(
            lineage, dtype="float32" if cpu else "auto", bits=bits, merge=merge and bits is None, device_map=device_map
        )
        rows = model.get_input_embeddings().weight.shape[0]
        if resize_emb:
            fit_embeddings(model, tokenizer)
        elif len(tokenizer) > rows:
            raise ValueError(
                f"the tokenizer has {len(tokenizer)} tokens, the model {rows}: add --resize_emb, or give the model's"
                " own tokenizer with --tokenizer_path"
            )
        return cls(model, tokenizer)

    def answer(
        self,
        requests: list[Request],
        sampling: Sampling,
        batch_size: int = 8,
        progress: Callable[[int], object] = lambda rows: None,
        finished: Callable[[list[int], list[Answer]], object] = lambda numbers, answers: None,
    ) -> list[Answer]:
        """Answers in the order of the requests. Requests of similar length share a batch; `finished` gets whole ones.

        A batch that was taken out of the requests changes none of the others.
        """
        asked = [(self._prompt(request, sampling), request.seed) for request in requests]
        answers: dict[int, Answer] = {}
        for numbers in plan_batches([len(prompt.ids) for prompt, _ in asked], batch_size):
            batch = list(self._complete([asked[i] for i in numbers], sampling, progress))
            answers |= zip(numbers, batch, strict=True)
            finished(numbers, batch)
        return [answers[i] for i in range(len(requests))]

    def _begin(self, rows: list[Row]) -> Batch:
        return Batch(self.model, rows, self.vocabulary)

    def _complete(
        self, asked: list[tuple[Prompt, int]], sampling: Sampling, progress: Callable[[int], object]
    ) -> Iterator[Answer]:
        """One batch, in halves where the device's memory does not hold it."""
        while asked:
            some = asked[: self.rows_at_once]
            rows = [self._row(prompt, seed, sampling) for prompt, seed in some]
            finished = 0
            try:
                batch = self._begin(rows)
                while batch.rows:
                    batch.step()
                    if more := len(rows) - len(batch.rows) - finished:
                        finished += more
                        progress(more)
            except torch.OutOfMemoryError:
                if len(some) == 1:
                    raise
                progress(-finished)
                rows = batch = None
            if rows is None:  # outside of the handler: the exception keeps the failed batch's memory alive
                self.rows_at_once = len(some) // 2
                logger.warning("out of memory with %d rows: going on with %d", len(some), self.rows_at_once)
                torch.cuda.empty_cache()
                continue
            yield from (row.answer() for row in rows)
            asked = asked[len(some) :]


def find_tokenizer(
    base_model: str, lora_model: str | None, tokenizer_path: str | None, template_name: str | None
) -> PreTrainedTokenizerBase:
    """The tokenizer that was named, else the adapter's if it has one, else the base's."""
    return load_tokenizer(choose_tokenizer(base_model, lora_model, tokenizer_path), template_name)
