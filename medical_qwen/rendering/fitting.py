"""What to leave out of a conversation that is too long, and how much that was."""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, fields
from itertools import chain

from .messages import Message
from .rendered import Rendered


@dataclass(frozen=True)
class Truncation:
    """What one conversation had and what it lost to the length limit (tokens, unless said otherwise)."""

    exchanges: int = 0  # a question with all that follows it up to the next question
    exchanges_dropped: int = 0
    prompt_tokens: int = 0  # not learned: questions, system prompt, the template's words
    prompt_tokens_cut: int = 0  # from the question that stayed
    answer_tokens: int = 0  # learned
    answer_tokens_lost: int = 0
    left_out: bool = False  # nothing learned would have fitted


class TruncationReport:
    """Sums the truncations of a data set; `str()` is one line for the log."""

    def __init__(self, truncations: Sequence[Truncation] = ()) -> None:
        self.conversations = 0
        self.shortened = 0
        self.total = {item.name: 0 for item in fields(Truncation)}
        for truncation in truncations:
            self.add(truncation)

    def add(self, truncation: Truncation) -> None:
        """Count one more conversation."""
        self.conversations += 1
        lost = (truncation.exchanges_dropped, truncation.prompt_tokens_cut, truncation.answer_tokens_lost)
        self.shortened += any(lost)
        for name, value in zip(self.total, astuple(truncation), strict=True):
            self.total[name] += int(value)

    def __str__(self) -> str:
        total = self.total

        def share(part: str, whole: int) -> str:
            return f"{total[part]} of {whole} ({100 * total[part] / max(whole, 1):.1f} %)"

        return (
            f"max_length: {self.shortened} of {self.conversations} conversations shortened; "
            f"dropped exchanges {share('exchanges_dropped', total['exchanges'])}, "
            f"prompt tokens cut {share('prompt_tokens_cut', total['prompt_tokens'])}, "
            f"answer tokens lost {share('answer_tokens_lost', total['answer_tokens'])}, "
            f"left out {share('left_out', self.conversations)}"
        )


def exchanges(messages: Sequence[Message]) -> tuple[list[Message], list[list[Message]]]:
    """The system messages in front, and the rest cut before every question."""
    head = 0
    while head < len(messages) and messages[head]["role"] == "system":
        head += 1
    turns: list[list[Message]] = []
    previous = None
    for message in messages[head:]:
        if not turns or (message["role"] == "user" and previous != "user"):
            turns.append([])
        turns[-1].append(message)
        previous = message["role"]
    return list(messages[:head]), turns


def shorten(
    messages: Sequence[Message], max_length: int | None, build: Callable[[list[Message]], list[Rendered]]
) -> tuple[list[Rendered], int, int]:
    """Leave out the oldest exchanges, then the beginning of the last question, until all fit into `max_length`.

    `build` renders the messages (several times, with one answer each, for a pair). Returns what it made last of them
    (still too long if even that did not suffice), the exchanges dropped, and the tokens cut from the question. System
    messages stay. Tool responses count as part of the question.
    """
    built = build(list(messages))
    head, turns = exchanges(messages)
    if max_length is None or _needed(built) <= max_length or not turns:
        return built, 0, 0
    tried = {0: built}

    def fits(dropped: int) -> bool:
        tried[dropped] = build([*head, *chain.from_iterable(turns[dropped:])])
        return _needed(tried[dropped]) <= max_length

    dropped = min(1 + bisect_left(range(1, len(turns)), True, key=fits), len(turns) - 1)
    kept = [*head, *chain.from_iterable(turns[dropped:])]
    built, cut = tried[dropped], 0
    while (over := _needed(built) - max_length) > 0:
        kept, taken = _cut_oldest(kept, max(built, key=Rendered.needed), over)
        if not taken:
            break
        built, cut = build(kept), cut + taken
    return built, dropped, cut


def _needed(built: list[Rendered]) -> int:
    return max(one.needed() for one in built)


def _cut_oldest(messages: list[Message], rendered: Rendered, over: int) -> tuple[list[Message], int]:
    """Copies of the messages with `over` tokens fewer at the beginning of the question; and how many were taken."""
    shorter, taken = list(messages), 0
    starts, ends = rendered.starts, rendered.ends
    for span in rendered.contents:
        if span.learned or shorter[span.message]["role"] == "system" or taken >= over:
            continue
        first, last = bisect_left(starts, span.start), bisect_left(starts, span.end)
        upto = min(first + over - taken, last)
        while upto < last and (starts[upto] < ends[upto - 1] or starts[upto] == span.start):
            upto += 1  # not within a character
        taken += upto - first
        at = starts[upto] if upto < last else span.end
        shorter[span.message] = {**shorter[span.message], "content": rendered.text[at : span.end]}
    return shorter, taken
