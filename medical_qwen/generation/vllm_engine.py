"""Who answers? vLLM in this process, on one GPU or several (tensor parallel)."""

from collections.abc import Callable
from itertools import count

from transformers import PreTrainedTokenizerBase

from medical_qwen.generation.decoding import GREEDY_BELOW, Row
from medical_qwen.generation.engine import TokenEngine, find_tokenizer
from medical_qwen.generation.interface import Answer, Request, Sampling
from medical_qwen.lineage import resolve
from medical_qwen.models import merged_directory


class VllmEngine(TokenEngine):
    """A `vllm.LLM` that gets our prompts as tokens and gives tokens back, so that text and stops are those of ours.

    Drawn tokens come from vLLM's own generators: the same seed gives other ones than `Generator`. One thread may wait
    in `answer`, or any number read streams, not both at once.
    """

    batches_itself = True

    def __init__(self, llm, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__(tokenizer, llm.llm_engine.model_config.max_model_len, ())
        self._engine = llm.llm_engine
        self._numbers = count()
        self._under_way: dict[str, Row] = {}

    @classmethod
    def load(
        cls,
        base_model: str,
        lora_model: str | None = None,
        *,
        tokenizer_path: str | None = None,
        template_name: str | None = None,
        tensor_parallel_size: int = 1,
    ) -> "VllmEngine":
        """Load what `Generator.load` loads; adapters are merged into a copy of the base in the cache folder."""
        try:
            from vllm import LLM
            from vllm.platforms import current_platform
        except ImportError as error:
            raise ImportError("--engine vllm needs vLLM: pip install -r requirements-vllm.txt") from error
        tokenizer = find_tokenizer(base_model, lora_model, tokenizer_path, template_name)
        lineage = resolve(base_model, lora_model)
        llm = LLM(
            merged_directory(lineage) if lineage.adapters else lineage.root,
            skip_tokenizer_init=True,
            max_model_len=-1,  # as much of the model's context as the memory holds
            tensor_parallel_size=tensor_parallel_size,
            dtype="float32" if current_platform.is_cpu() else "auto",
            enforce_eager=current_platform.is_cpu(),  # there compiling takes minutes
        )
        return cls(llm, tokenizer)

    def answer(
        self,
        requests: list[Request],
        sampling: Sampling,
        batch_size: int = 256,
        progress: Callable[[int], object] = lambda rows: None,
        finished: Callable[[list[int], list[Answer]], object] = lambda numbers, answers: None,
    ) -> list[Answer]:
        """Answers in the order of the requests, `batch_size` of them under way at any time."""
        answers: dict[int, Answer] = {}
        waiting = ((n, self._row(self._prompt(one, sampling), one.seed, sampling)) for n, one in enumerate(requests))
        numbers: dict[Row, int] = {}
        batch = self._begin([])
        try:
            while len(answers) < len(requests):
                while len(batch.rows) < batch_size and (new := next(waiting, None)):
                    numbers[new[1]] = new[0]
                    batch.join(self._begin([new[1]]))
                before = batch.rows
                batch.step()
                for row in before:
                    if row.finish_reason:
                        number = numbers.pop(row)
                        answers[number] = row.answer()
                        progress(1)
                        finished([number], [answers[number]])
        finally:
            batch.keep([False] * len(batch.rows))
        return [answers[number] for number in range(len(requests))]

    def _begin(self, rows: list[Row]) -> "_Batch":
        for row in rows:
            self._under_way[number := str(next(self._numbers))] = row
            self._engine.add_request(number, {"prompt_token_ids": row.prompt.ids}, _parameters(row))
        return _Batch(self, rows)

    def step(self) -> None:
        """A step of vLLM; the new tokens go to their rows."""
        for output in self._engine.step():
            if not (row := self._under_way.get(output.request_id)):
                continue  # it was dropped while this step was under way
            for token in output.outputs[0].token_ids:
                if row.finish_reason is None:
                    row.push(token)
            if output.finished:
                row.finish(output.outputs[0].finish_reason or "stop")
                del self._under_way[output.request_id]

    def drop(self, rows: set[Row]) -> None:
        """No further token of these rows is wanted."""
        numbers = [number for number, row in self._under_way.items() if row in rows]
        if numbers:
            self._engine.abort_request(numbers)
        for number in numbers:
            del self._under_way[number]


class _Batch:
    """Rows of vLLM with the face of `decoding.Batch`. vLLM has one batch of its own: a step is one of all rows."""

    def __init__(self, engine: VllmEngine, rows: list[Row]) -> None:
        self.rows, self._engine = rows, engine

    def step(self) -> None:
        self._engine.step()
        self.keep([row.finish_reason is None for row in self.rows])

    def keep(self, kept: list[bool]) -> None:
        dropped = {row for row, stays in zip(self.rows, kept, strict=True) if not stays}
        self._engine.drop(dropped)  # those that vLLM itself has finished are not under way any more
        self.rows = [row for row in self.rows if row not in dropped]

    def join(self, other: "_Batch") -> bool:
        self.rows = [*self.rows, *other.rows]
        return True


def _parameters(row: Row):
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    sampling, greedy = row.sampling, row.sampling.temperature < GREEDY_BELOW
    return SamplingParams(
        temperature=0.0 if greedy else sampling.temperature,
        top_p=1.0 if greedy else sampling.top_p,
        repetition_penalty=sampling.repetition_penalty,
        seed=None if greedy else row.seed,
        max_tokens=sampling.max_new_tokens,
        stop_token_ids=sorted(row.ends),
        detokenize=False,
        output_kind=RequestOutputKind.DELTA,
    )
