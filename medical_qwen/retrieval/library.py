"""Who answers from the documents? An engine that looks up first.

A `Library` stands between a front end and a language model and is itself an engine: a conversation goes in, the
passages that speak of its last question are put before it by the prompt of `evidence`, and the model's answer comes
out with its citations checked. Where no passage supports an answer it says so, and the model is not asked.
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace

from medical_qwen.answers import strip_thinking
from medical_qwen.evidence import REFUSAL, asked, with_documents
from medical_qwen.generation import Answer, Engine, Request, Sampling, Stream
from medical_qwen.retrieval.citations import Citations, uncited
from medical_qwen.retrieval.index import Index
from medical_qwen.retrieval.search import Hit

# Support below which an answer is refused: best balanced accuracy on data/rag/questions.jsonl and its documents, by
# tools/calibrate_support.py. Cosines of bge-small-zh-v1.5: 94 % of 64 questions with an answer pass, 96 % of 28
# without one do not. Words alone: 81 % and 93 %.
MIN_COSINE = 0.516
MIN_COVERED = 0.272
REWRITE = "把下面对话的最后一个问题改写成不看对话也能明白的一个问题。只写改写后的问题，不要回答。"
REWRITTEN = Sampling(max_new_tokens=64)
LONGEST_QUESTION = 200  # characters; what a model writes beyond that is no question
REFUSED = Answer(REFUSAL, "stop", 0, 0, False)


@dataclass(frozen=True)
class Found:
    """What was found for the last question of a conversation, and what the model is asked.

    hits: passage n of the prompt is `hits[n - 1]`; without support, what came closest.
    support: 0..1, how well the best passage fits the question.
    request: with the passages; None where they do not support an answer.
    shortened: the oldest turns had to be left out of the request.
    """

    query: str
    hits: list[Hit]
    support: float
    request: Request | None = None
    shortened: bool = False


class Reply(Stream):
    """An answer as it is written, its citations checked, and what it was written from."""

    def __init__(self, stream: Stream, found: Found) -> None:
        self.found, self.citations = found, Citations(len(found.hits))
        self._stream, self._written = stream, []
        super().__init__(self._pieces(), self._checked, stream.close)

    def _pieces(self) -> Iterator[str]:
        for piece in self.citations.checked(self._stream):
            self._written.append(piece)
            yield piece

    def _checked(self) -> Answer:
        answer = self._stream.answer
        return replace(answer, text="".join(self._written), truncated=answer.truncated or self.found.shortened)


class Library:
    """An engine (see `generation.Engine`) that answers from an index, with the model of another engine.

    Args:
        top_k: passages that are put before the model; fewer where its context does not hold them.
        min_support: 0..1; below it the answer is a refusal. None: as calibrated for this kind of index.
        rewrite: let the model rewrite follow-up questions for the search; else they are searched together with the
            question before them.
    """

    def __init__(
        self, index: Index, engine: Engine, top_k: int = 4, min_support: float | None = None, rewrite: bool = False
    ) -> None:
        if top_k < 1:
            raise ValueError(f"--top_k: expected at least 1, got {top_k}")
        if min_support is None:
            min_support = MIN_COSINE if index.encoder else MIN_COVERED
        if not 0 <= min_support <= 1:
            raise ValueError(f"--min_support: expected a number in 0..1, got {min_support}")
        self.index, self.engine = index, engine
        self.top_k, self.min_support, self.rewrite = top_k, min_support, rewrite
        self.context_length, self.batches_itself = engine.context_length, engine.batches_itself

    def measure(self, requests: list[Request], sampling: Sampling) -> list[int]:
        """Prompt lengths in tokens with the passages; 0 where the model is not asked."""
        prompts = [self.look_up(request, sampling).request for request in requests]
        lengths = iter(self.engine.measure([prompt for prompt in prompts if prompt], sampling))
        return [next(lengths) if prompt else 0 for prompt in prompts]

    def fits(self, request: Request, sampling: Sampling) -> bool:
        """Always, or `look_up` raises: passages and oldest turns are left out where the context is too short."""
        self.look_up(request, sampling)
        return True

    def answer(
        self,
        requests: list[Request],
        sampling: Sampling,
        batch_size: int = 8,
        progress: Callable[[int], object] = lambda rows: None,
        finished: Callable[[list[int], list[Answer]], object] = lambda numbers, answers: None,
    ) -> list[Answer]:
        """Answers in the order of the requests, their citations checked."""
        found = [self.look_up(request, sampling) for request in requests]
        refused = [number for number, one in enumerate(found) if not one.request]
        wanted = [number for number, one in enumerate(found) if one.request]
        answers = dict.fromkeys(refused, REFUSED)
        if refused:
            progress(len(refused))
            finished(refused, [REFUSED] * len(refused))

        def take(places: list[int], written: list[Answer]) -> None:
            numbers = [wanted[place] for place in places]
            own = [_checked(answer, found[number]) for number, answer in zip(numbers, written, strict=True)]
            answers.update(zip(numbers, own, strict=True))
            finished(numbers, own)

        self.engine.answer([found[number].request for number in wanted], sampling, batch_size, progress, take)
        return [answers[number] for number in range(len(requests))]

    def stream(self, request: Request, sampling: Sampling) -> Reply:
        """The answer piece by piece, with the passages that it is written from."""
        found = self.look_up(request, sampling)
        if found.request:
            return Reply(self.engine.stream(found.request, sampling), found)
        return Reply(Stream(iter([REFUSED.text]), lambda: REFUSED, lambda: None), found)

    def look_up(self, request: Request, sampling: Sampling) -> Found:
        """Search the last question of the conversation and write the prompt.

        Raises ValueError where the model's context does not even hold the question and one passage.
        """
        query = self.query(request.messages)
        hits = self.index.search(query, self.top_k)
        support = self.support(query, hits)
        if not hits or support < self.min_support:
            return Found(query, hits, support)
        whole = [
            {**turn, "content": uncited(turn["content"])} if turn["role"] == "assistant" else turn
            for turn in request.messages
        ]
        for messages, some in smaller(whole, hits):
            prompt = replace(request, messages=with_documents(messages, [asdict(hit.passage) for hit in some]))
            if self.engine.fits(prompt, sampling):
                return Found(query, some, support, prompt, shortened=len(messages) < len(whole))
        raise ValueError(
            f"the question and one passage do not fit into the model's context of {self.context_length} tokens beside "
            f"--max_new_tokens {sampling.max_new_tokens}: lower that, or index with a smaller --chunk_size"
        )

    def query(self, messages: list[dict]) -> str:
        """What is searched for the last question of a conversation."""
        questions = [asked(turn["content"]) for turn in messages if turn["role"] == "user"]
        if len(questions) < 2:
            return questions[-1]
        if self.rewrite:
            turns = [turn for turn in messages if turn["role"] in ("user", "assistant")][-3:]
            talk = "\n".join(f"{turn['role']}: {uncited(asked(turn['content']))[:LONGEST_QUESTION]}" for turn in turns)
            request = Request([{"role": "user", "content": f"{REWRITE}\n\n{talk}"}])
            written = self.engine.answer([request], REWRITTEN, 1)[0].text.strip()
            if written and len(written) <= LONGEST_QUESTION and "\n" not in written:
                return written
        return "\n".join(questions[-2:])

    def support(self, query: str, hits: list[Hit]) -> float:
        """How well the best of the passages fits: cosine of the vectors, else the share of the question's words."""
        if self.index.encoder:
            return max((hit.cosine for hit in hits), default=0.0)
        return max((self.index.covered(query, hit.passage) for hit in hits), default=0.0)

    def details(self, request: Request, sampling: Sampling, answer: Answer) -> dict:
        """What a row of a file tells beside its answer: query, support, passages with scores, citations."""
        found = self.look_up(request, sampling)
        citations = Citations(len(found.hits) if found.request else 0)
        citations.push(strip_thinking(answer.text))
        passages = [
            {**asdict(hit.passage), "score": hit.score, "words": hit.words, "cosine": hit.cosine} for hit in found.hits
        ]
        return {
            "query": found.query,
            "support": found.support,
            "supported": found.request is not None,
            "passages": passages,
            "citations": citations.cited,
        }


def smaller(messages: list[dict], hits: list[Hit]) -> Iterator[tuple[list[dict], list[Hit]]]:
    """What may be put before a model, most first: the last passages are left out, then the oldest turns."""
    for count in range(len(hits), 0, -1):
        yield messages, hits[:count]
    head = [turn for turn in messages[:1] if turn["role"] == "system"]
    for start in range(len(head) + 1, len(messages)):
        if messages[start]["role"] == "user":
            yield [*head, *messages[start:]], hits[:1]


def _checked(answer: Answer, found: Found) -> Answer:
    text = "".join(Citations(len(found.hits)).checked(iter([answer.text])))
    return replace(answer, text=text, truncated=answer.truncated or found.shortened)
