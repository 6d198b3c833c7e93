"""What a conversation leaves behind: a training record to take away, and preference pairs from thumbs."""

import fcntl
import json
import os
from pathlib import Path

from medical_qwen.pages.conversation import Conversation, Turn, said


def vote(turn: Turn, answer: str, liked: bool | None) -> list[tuple[str, str]]:
    """Keep a thumb (None: taken back); the new (chosen, rejected) pairs among the answers to this question.

    One thumb alone says nothing about two answers. A thumb up beats every other answer that has none; a thumb down
    loses to those that have one. A vote that is changed adds the opposite pair, so the two cancel out.
    """
    before, turn.votes[answer] = turn.votes.get(answer), liked
    if liked is None or liked == before:
        return []
    others = [other for other in turn.votes if other != answer]
    if liked:
        return [(answer, other) for other in others if not turn.votes[other]]
    return [(other, answer) for other in others if turn.votes[other]]


def preference_rows(prompt: list[dict], pairs: list[tuple[str, str]]) -> list[dict]:
    """Rows that `dpo_training.py` reads."""
    return [
        {"prompt": prompt, "chosen": [said("assistant", chosen)], "rejected": [said("assistant", rejected)]}
        for chosen, rejected in pairs
    ]


def append_rows(path: str | Path, rows: list[dict]) -> None:
    """Add rows to a JSONL file, all or none of them, whoever else writes to it at the same time."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    with open(path, "ab", buffering=0) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        size = os.fstat(file.fileno()).st_size
        if file.write(lines) != len(lines):  # a full disk: no half a line stays
            file.truncate(size)
            raise OSError(f"{path}: no space left for a preference row")


def export(conversation: Conversation) -> str:
    """The answered turns as JSON, an array of one record of the form `conversation`."""
    answered = [number for number, turn in enumerate(conversation.turns) if turn.answer]
    if not answered:
        raise ValueError("there is no answer yet")
    last = answered[-1]
    messages = [*conversation.prompt(last), said("assistant", conversation.turns[last].answer)]
    return json.dumps([{"messages": messages}], ensure_ascii=False, indent=2)
