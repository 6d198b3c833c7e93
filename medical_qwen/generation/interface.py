"""What every engine understands and gives back, and how rows are put into batches. No model is needed to import it."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Request:
    """A conversation that waits for its next turn."""

    messages: list[dict]
    tools: list[dict] | None = None
    seed: int = 0


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen and when an answer ends."""

    max_new_tokens: int = 512
    temperature: float = 0.0  # 0 takes the likeliest token
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"--max_new_tokens: expected at least 1, got {self.max_new_tokens}")
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"--temperature: expected a number >= 0, got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"--top_p: expected 0 < p <= 1, got {self.top_p}")
        if not 0 < self.repetition_penalty < float("inf"):
            raise ValueError(f"--repetition_penalty: expected a number > 0, got {self.repetition_penalty}")
        if "" in self.stop:
            raise ValueError("--stop_str: an empty stop string would end every answer at once")


@dataclass(frozen=True)
class Answer:
    """finish_reason: stop (end token or stop string), length (max_new_tokens) or cancelled."""

    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int  # the end token included
    truncated: bool  # the oldest turns were left out of the prompt


class Stream:
    """Iterator over the pieces of an answer's text; `close` stops the model; `answer` is what there is so far."""

    def __init__(self, pieces: Iterator[str], answer: Callable[[], Answer], close: Callable[[], None]) -> None:
        self._pieces, self._answer, self.close = pieces, answer, close

    def __iter__(self) -> Iterator[str]:
        return self._pieces

    @property
    def answer(self) -> Answer:
        return self._answer()


class Engine(Protocol):
    """Who answers: a model in this process, or a server.

    context_length: tokens of prompt and answer together; None where nobody says.
    batches_itself: it keeps its own batches full, so that it is best given all requests at once.
    """

    context_length: int | None
    batches_itself: bool

    def measure(self, requests: list[Request], sampling: Sampling) -> list[int]:
        """Prompt lengths in tokens, after the oldest turns were dropped where needed.

        Raises ValueError for a request that cannot be answered.
        """
        ...

    def fits(self, request: Request, sampling: Sampling) -> bool:
        """Whether prompt and answer fit into the model's context with nothing left out; True where nobody says."""
        ...

    def answer(
        self,
        requests: list[Request],
        sampling: Sampling,
        batch_size: int = 8,
        progress: Callable[[int], object] = lambda rows: None,
        finished: Callable[[list[int], list[Answer]], object] = lambda numbers, answers: None,
    ) -> list[Answer]:
        """Answers in the order of the requests, `batch_size` of them at a time.

        Args:
            progress: called with the number of rows that were finished since the last call.
            finished: called with the numbers of requests and their answers as soon as these are final.
        """
        ...

    def stream(self, request: Request, sampling: Sampling) -> Stream:
        """The answer piece by piece, whole characters, never a part of a stop string."""
        ...


def plan_batches(lengths: list[int], batch_size: int) -> list[list[int]]:
    """Numbers of the rows of each batch. The longest prompts first: little padding, a lack of memory shows at once."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    return [order[i : i + batch_size] for i in range(0, len(order), batch_size)]


def summarize(answers: list[Answer], new_tokens: int, seconds: float) -> str:
    """One line for the end of a job, of which `new_tokens` were generated in `seconds` just now."""
    reasons = ", ".join(f"{name} {n}" for name, n in Counter(a.finish_reason for a in answers).most_common())
    return (
        f"{len(answers)} answers, {new_tokens} new tokens in {seconds:.1f} s ({new_tokens / seconds:.1f} tokens/s); "
        f"finish: {reasons}; prompts with turns left out: {sum(answer.truncated for answer in answers)}"
    )
