"""Who answers? An OpenAI-compatible server, ours (`vllm_deployment.sh`) or any other.

The server keeps its own batches; `answer` keeps it busy with several requests at once. Its chat template decides what
the model reads. Errors of the connection and of the server are ValueErrors that say what to do.
"""

import os
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from math import ceil
from urllib.parse import urlsplit

from medical_qwen.generation.interface import Answer, Request, Sampling, Stream
from medical_qwen.generation.text import THINK_CLOSE, THINK_OPEN

_CONNECT_SECONDS = 5
_ANSWER_SECONDS = 600  # for a whole answer; in a stream between two pieces
_TOO_LONG = re.compile(r"context|too (?:long|large)|maximum.{0,20}(?:length|tokens)", re.IGNORECASE)


class Server:
    """A model behind `api_base`, such as http://127.0.0.1:8000/v1 (the /v1 may be left out).

    Args:
        model: one of the names that the server gives its models; None: the only one that there is.
        api_key: None: $OPENAI_API_KEY; servers without keys ignore it.

    Raises ValueError where nobody answers, the key is refused or the model is unknown.
    """

    batches_itself = True

    def __init__(self, api_base: str, model: str | None = None, api_key: str | None = None) -> None:
        address = urlsplit(api_base)
        if address.scheme not in ("http", "https") or not address.netloc:
            raise ValueError(f"--api_base: expected an address such as http://127.0.0.1:8000/v1, got {api_base!r}")
        try:
            import openai
        except ImportError as error:
            raise ImportError("--api_base needs the client of the protocol: pip install openai==3.57.0") from error
        self._openai = openai
        self.api_base = api_base.rstrip("/") + ("" if address.path.strip("/") else "/v1")
        self._client = openai.OpenAI(
            base_url=self.api_base,
            api_key=api_key or os.environ.get("OPENAI_API_KEY") or "none",
            timeout=openai.Timeout(_ANSWER_SECONDS, connect=_CONNECT_SECONDS),
        )
        with self._explained():
            served = {one.id: one for one in self._client.models.list().data}
        if model and model not in served:
            raise ValueError(f"--api_model: {self.api_base} serves {', '.join(served)}, not {model}")
        if not model and len(served) > 1:  # a base and its adapters: which one is meant must not be a guess
            raise ValueError(f"--api_model is missing: {self.api_base} serves {', '.join(served)}")
        if not served:
            raise ValueError(f"--api_base {self.api_base}: the server names no model")
        self.model = model or next(iter(served))
        cards = [served[self.model], served.get(getattr(served[self.model], "parent", None))]  # an adapter's base
        lengths = [length for card in cards if (length := getattr(card, "max_model_len", None))]
        self.context_length: int | None = lengths[0] if lengths else None
        self._counts_tokens = True  # until it turns out that it does not

    def measure(self, requests: list[Request], sampling: Sampling) -> list[int]:
        """Prompt lengths in tokens where the server counts them (vLLM does), else in characters."""
        room = self._room(sampling)
        lengths = [self._count(request.messages, request.tools) or _characters(request) for request in requests]
        return [length if room is None else min(length, room) for length in lengths]

    def fits(self, request: Request, sampling: Sampling) -> bool:
        """Whether prompt and answer fit into the model's context, as far as the server says how long it is."""
        room = self._room(sampling)
        length = None if room is None else self._count(request.messages, request.tools)
        return length is None or length <= room

    def answer(
        self,
        requests: list[Request],
        sampling: Sampling,
        batch_size: int = 8,
        progress: Callable[[int], object] = lambda rows: None,
        finished: Callable[[list[int], list[Answer]], object] = lambda numbers, answers: None,
    ) -> list[Answer]:
        """Answers in the order of the requests, `batch_size` of them under way at any time."""
        answers: dict[int, Answer] = {}
        pool = ThreadPoolExecutor(batch_size)
        try:
            waiting = {pool.submit(self._whole, request, sampling): n for n, request in enumerate(requests)}
            for done in as_completed(waiting):
                number = waiting[done]
                answers[number] = done.result()
                progress(1)
                finished([number], [answers[number]])
        finally:  # after an error or Ctrl-C: what is under way is waited for, the rest is not asked
            pool.shutdown(cancel_futures=True)
        return [answers[number] for number in range(len(requests))]

    def stream(self, request: Request, sampling: Sampling) -> Stream:
        """The answer piece by piece. Closing it hangs up, which makes a server stop.

        Of an answer that was closed early the pieces are counted, not the tokens.
        """
        events, truncated = self._ask(request, sampling, stream=True, stream_options={"include_usage": True})
        reply = _Reply(truncated)

        def pieces() -> Iterator[str]:
            with self._explained():
                for event in events:
                    if text := reply.take(event):
                        yield text
            if text := reply.end():
                yield text

        written = pieces()

        def close() -> None:
            events.close()
            written.close()

        return Stream(written, reply.answer, close)

    def _whole(self, request: Request, sampling: Sampling) -> Answer:
        whole, truncated = self._ask(request, sampling)
        reply = _Reply(truncated)
        reply.take(whole)
        reply.end()
        return reply.answer()

    def _ask(self, request: Request, sampling: Sampling, **how):
        """What the server gives back, and whether the oldest part of the conversation had to be left out for it."""
        self._room(sampling)
        # What a server takes for granted is left out: not every one knows every argument.
        asked: dict = {"max_tokens": sampling.max_new_tokens, "temperature": sampling.temperature, **how}
        if sampling.temperature:
            asked |= {"top_p": sampling.top_p, "seed": request.seed}
        if request.tools:
            asked["tools"] = request.tools
        if sampling.stop:
            asked["stop"] = list(sampling.stop)
        if sampling.repetition_penalty != 1:
            asked["extra_body"] = {"repetition_penalty": sampling.repetition_penalty}
        messages = request.messages
        while True:
            try:
                with self._explained():
                    found = self._client.chat.completions.create(model=self.model, messages=messages, **asked)
                return found, messages is not request.messages
            except _TooLongError:
                if not (shorter := self._shorter(messages, request.tools, sampling)):
                    raise
                messages = shorter

    def _room(self, sampling: Sampling) -> int | None:
        """Tokens that a prompt may have; None where the server does not say."""
        if self.context_length is None:
            return None
        if (room := self.context_length - sampling.max_new_tokens) < 1:
            raise ValueError(
                f"--max_new_tokens {sampling.max_new_tokens} leaves no room for a question: the model's context is "
                f"{self.context_length} tokens"
            )
        return room

    def _shorter(self, messages: list[dict], tools: list[dict] | None, sampling: Sampling) -> list[dict] | None:
        """The messages without the oldest exchanges, or with the end of the only question. None: nothing is left.

        As much goes as the count of tokens says; half of it where nobody counts.
        """
        from medical_qwen.rendering.fitting import exchanges

        room, length = self._room(sampling), self._count(messages, tools)
        surplus = max(1 - room / length, 0.02) if room and length else 0.5
        head, turns = exchanges(messages)
        if len(turns) > 1:
            kept = turns[min(ceil(surplus * len(turns)), len(turns) - 1) :]
            return [*head, *(message for turn in kept for message in turn)]
        if not turns or len(text := str(turns[0][0].get("content") or "")) < 2:
            return None
        question = {**turns[0][0], "content": text[ceil(surplus * len(text)) :]}
        return [*head, question, *turns[0][1:]]

    def _count(self, messages: list[dict], tools: list[dict] | None) -> int | None:
        """Prompt tokens as vLLM counts them; None where the server has no such service."""
        if not self._counts_tokens:
            return None
        asked = {"model": self.model, "messages": messages, "add_generation_prompt": True}
        try:
            with self._explained():
                found = self._client.post(
                    self.api_base.removesuffix("/v1") + "/tokenize",
                    body=asked | ({"tools": tools} if tools else {}),
                    cast_to=dict[str, object],
                )
        except _NotThereError:
            found = {}
        except ValueError as error:  # a service of that name which wants other fields
            if isinstance(error, _TooLongError) or getattr(error.__cause__, "status_code", 0) not in (400, 415, 422):
                raise
            found = {}
        count = found.get("count")  # llama.cpp has a /tokenize of another form
        self._counts_tokens = isinstance(count, int)
        return count if self._counts_tokens else None

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Errors of the client as ValueErrors that say what is wrong with which flag."""
        where = f"--api_base {self.api_base}"
        try:
            yield
        except self._openai.APIStatusError as error:
            said = f"{error.status_code}: {error.message}"
            if error.status_code in (401, 403):
                raise ValueError(f"{where}: the server refuses the key, see --api_key ({said})") from error
            if error.status_code in (404, 405, 501):
                raise _NotThereError(f"{where}: the server has no such service ({said})") from error
            if error.status_code in (400, 413, 422) and _TOO_LONG.search(error.message):
                raise _TooLongError(f"{where}: the conversation is too long for the model ({said})") from error
            raise ValueError(f"{where}: the server refuses or fails ({said})") from error
        except self._openai.APITimeoutError as error:
            raise ValueError(f"{where}: no answer in time") from error
        except self._openai.APIError as error:
            raise ValueError(f"{where}: no server answers there ({error.__cause__ or error})") from error


class _NotThereError(ValueError):
    """The server is there, the service is not."""


class _TooLongError(ValueError):
    """Prompt and answer do not fit into the model's context."""


class _Reply:
    """An answer while it comes, in events of a stream or whole. Thoughts that come apart get their tags back."""

    def __init__(self, truncated: bool) -> None:
        self._text, self._finish_reason = "", "cancelled"
        self._prompt_tokens = self._completion_tokens = 0
        self._truncated, self._thinking = truncated, False

    def take(self, event) -> str:
        """A chat completion or a chunk of one; returns the new text."""
        if event.usage:
            self._prompt_tokens = event.usage.prompt_tokens
            self._completion_tokens = event.usage.completion_tokens
        if not event.choices:
            return ""
        choice = event.choices[0]
        self._finish_reason = choice.finish_reason or self._finish_reason
        said = choice.message if hasattr(choice, "message") else choice.delta
        thought = getattr(said, "reasoning_content", None) or getattr(said, "reasoning", None) or ""
        if thought and not self._thinking:
            thought, self._thinking = f"{THINK_OPEN}\n{thought}", True
        if not (thought or said.content):
            return ""
        self._completion_tokens += not event.usage
        return self._add(thought) + (self.end() + self._add(said.content) if said.content else "")

    def end(self) -> str:
        """Close the thoughts, if they are still open."""
        closing, self._thinking = f"\n{THINK_CLOSE}\n\n" if self._thinking else "", False
        return self._add(closing)

    def _add(self, text: str) -> str:
        text = text if self._text else text.lstrip()  # as the engine in this process has it
        self._text += text
        return text

    def answer(self) -> Answer:
        counts = self._prompt_tokens, self._completion_tokens
        return Answer(self._text, self._finish_reason, *counts, self._truncated)


def _characters(request: Request) -> int:
    return sum(len(str(message.get("content"))) for message in request.messages)
