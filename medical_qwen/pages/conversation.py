"""From an engine into a chat: the turns of one user, what the chatbot shows of them, and streams as they grow."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest

from medical_qwen.causal import CausalStream, Network
from medical_qwen.generation import Stream, split_thinking
from medical_qwen.pages.language import Text

LONGEST_QUESTION = 50_000  # characters: above the context of most models, and a browser still draws it at once
THOUGHT = Text("思考过程", "Thinking")


@dataclass
class Turn:
    """A question and what was said to it. `votes`: every answer to this question and prompt, True for a thumb up."""

    question: str
    system: str = ""
    answer: str = ""
    other: str = ""  # the base model's answer, when the two are compared
    votes: dict[str, bool | None] = field(default_factory=dict)


@dataclass
class Conversation:
    """What one user has said and heard. Lives on the server while the user's page is open, and nowhere else."""

    turns: list[Turn] = field(default_factory=list)
    running: object | None = None  # the answer that is being written; a newer one or a stop takes its place
    causal: CausalStream | None = None  # what the causal network has heard: `heard`, the questions up to some turn
    heard: list[str] = field(default_factory=list)

    def listen(self, network: Network) -> CausalStream:
        """The causal network's view of all questions; after an edit or a step back it hears them again."""
        questions = [turn.question for turn in self.turns]
        if self.causal is None or self.heard != questions[: len(self.heard)]:
            self.causal, self.heard = CausalStream(network), []
        for question in questions[len(self.heard) :]:
            asked = self.causal.state and self.causal.state.question
            self.causal.hear(question, answer_to=asked.id if asked else None)
            self.heard.append(question)
        return self.causal

    def prompt(self, number: int) -> list[dict]:
        """The messages that turn `number` answers."""
        turn = self.turns[number]
        messages = [{"role": "system", "content": turn.system}] if turn.system else []
        for past in self.turns[:number]:
            if past.answer:
                messages += [said("user", past.question), said("assistant", past.answer)]
        return [*messages, said("user", turn.question)]

    def shown(self, language: str, other: bool = False) -> list[dict]:
        """The chatbot's messages, thoughts folded; with `other` those of the base model."""
        messages = []
        for turn in self.turns:
            answer = turn.other if other else turn.answer
            running = self.running is not None and turn is self.turns[-1]
            messages += [said("user", turn.question), *bubbles(answer, running, language)]
        return messages

    def place(self, index: int, other: bool = False) -> int:
        """The number of the turn that message `index` of the chatbot belongs to."""
        for number, turn in enumerate(self.turns):
            index -= 1 + len(bubbles(turn.other if other else turn.answer, False, "zh"))
            if index < 0:
                return number
        raise ValueError("this message is no longer part of the conversation")


def said(role: str, content: str) -> dict:
    return {"role": role, "content": content}


def bubbles(answer: str, running: bool, language: str) -> list[dict]:
    """An answer as the chatbot shows it: the thought folded as soon as it is done, then the text."""
    thought, text = split_thinking(answer)
    messages = []
    if thought:
        status = "pending" if running and not text else "done"
        messages.append(said("assistant", thought) | {"metadata": {"title": THOUGHT.said(language), "status": status}})
    if text:
        messages.append(said("assistant", text))
    return messages


def follow(streams: Sequence[Stream], wanted: Callable[[], bool], seconds: float = 0.05) -> Iterator[list[str]]:
    """The texts of several streams as they grow, at most one yield every `seconds` and one at the end.

    Whatever ends it, the last piece, `wanted` or a reader who left, the engine stops.
    """
    texts, last = [""] * len(streams), 0.0
    try:
        for pieces in zip_longest(*streams, fillvalue=""):
            texts = [text + piece for text, piece in zip(texts, pieces, strict=True)]
            if not wanted():
                break
            if time.monotonic() - last >= seconds:
                yield texts
                last = time.monotonic()
        yield texts
    finally:
        for stream in streams:
            stream.close()
