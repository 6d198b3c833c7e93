"""The standard forms, and what can be made of what.

form            columns
text            text
conversation    messages: [{role, content, tool_calls?, …}], tools?
preference      prompt: [messages], chosen: [message], rejected: [message], margin?, tools?
prompt          prompt: [messages], answer? (the gold), options?, unit?, tolerance?, evidence?, tools?
qa              question, answer
choice          question, options: {letter: text}, answer: letters, sorted, such as "AC"

Messages, tools and options differ in their keys from row to row, so Arrow stores them as JSON (`datasets.Json`);
reading a row gives back the objects. A column marked `?` is left out of a data set in which no row has it. Passages
that a row carries as `documents` are written into its last question, by the prompt of `evidence`.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from medical_qwen.evidence import asked, with_documents

from .messages import AT, Message, check_said, finished, merged, repaired
from .problems import BadRecord, LeftOut, shown

Record = dict[str, Any]
Repairs = Counter[str]

# Columns of each form and how they are stored: text, number, json (any object), messages (a list of objects).
FORMS: dict[str, dict[str, str]] = {
    "text": {"text": "text"},
    "conversation": {"messages": "messages", "tools": "json"},
    "preference": {
        "prompt": "messages",
        "chosen": "messages",
        "rejected": "messages",
        "margin": "number",
        "tools": "json",
    },
    "prompt": {
        "prompt": "messages",
        "answer": "text",
        "options": "json",
        "unit": "text",
        "tolerance": "number",
        "evidence": "json",
        "tools": "json",
    },
    "qa": {"question": "text", "answer": "text"},
    "choice": {"question": "text", "options": "json", "answer": "text"},
}
OPTIONAL: dict[str, tuple[str, ...]] = {
    "text": (),
    "conversation": ("tools",),
    "preference": ("margin", "tools"),
    "prompt": ("answer", "options", "unit", "tolerance", "evidence", "tools"),
    "qa": (),
    "choice": (),
}
LONG_ENOUGH = 24  # bytes of a turn that is a question of its own: 8 Chinese characters, 24 letters


def make(draft: Record, source: str, form: str, repairs: Repairs) -> Record:
    """A record of `form` from a draft of form `source`. Raises BadRecord or LeftOut."""
    record = MAKERS[source, form](draft, repairs)
    return {column: record.get(column) for column in FORMS[form]}


def can_make(source: str, form: str) -> bool:
    return (source, form) in MAKERS


def _text(draft: Record, repairs: Repairs) -> Record:
    if not draft["text"]:
        raise BadRecord("text", "text", "an empty one")
    return draft


def _conversation(draft: Record, repairs: Repairs) -> Record:
    messages = draft["messages"]
    if draft.get("bad_answer"):
        raise LeftOut("answer marked as bad (label: false)")
    last = max((place for place, message in enumerate(messages) if message["role"] == "assistant"), default=-1)
    if last < 0:
        raise BadRecord(draft.get("answer_field", "messages"), "an answer of the assistant", _roles(messages))
    if last < len(messages) - 1:
        repairs["turns after the last answer dropped"] += 1
    messages = repaired(messages[: last + 1], repairs)
    if not messages or messages[-1]["role"] != "assistant":
        raise BadRecord("messages", "a question before an answer", _roles(draft["messages"]))
    return draft | {"messages": with_documents(messages, draft.get("documents"))}


def _preference(draft: Record, repairs: Repairs) -> Record:
    prompt = _open_prompt(draft["prompt"], repairs)
    replies = {}
    for name in ("chosen", "rejected"):
        reply = draft[name]
        if len(reply) != 1 or reply[0]["role"] != "assistant":
            raise BadRecord(name, "one reply of the assistant after the shared turns", _roles(reply))
        check_said({AT: name} | reply[0])
        replies[name] = finished(reply)
    if replies["chosen"] == replies["rejected"]:
        raise BadRecord("rejected", "another reply than chosen", "the same one")
    margin = draft.get("margin")
    if margin is not None:
        try:
            margin = float(margin)
        except (TypeError, ValueError):
            raise BadRecord("margin", "a number", shown(margin)) from None
    return draft | {"prompt": prompt, **replies, "margin": margin}


def _open_prompt(messages: list[Message], repairs: Repairs) -> list[Message]:
    """Messages that wait for an answer."""
    prompt = repaired(messages, repairs)
    if not prompt or prompt[-1]["role"] not in ("user", "tool"):
        raise BadRecord("prompt", "messages that end on the user", _roles(messages))
    return prompt


def _prompt(draft: Record, repairs: Repairs) -> Record:
    return draft | {"prompt": _open_prompt(draft["prompt"], repairs)}


def _prompt_of_conversation(draft: Record, repairs: Repairs) -> Record:
    """All but the last answer, which becomes the gold; the whole when it ends on the user."""
    messages, answer = merged(draft["messages"], repairs), None
    if messages[-1]["role"] == "assistant":
        answer = None if draft.get("bad_answer") else messages[-1]["content"] or None
        messages = messages[:-1]
    prompt = with_documents(_open_prompt(messages, repairs), draft.get("documents"))
    return {"prompt": prompt, "answer": answer, "tools": draft.get("tools")}


def _qa(draft: Record, repairs: Repairs) -> Record:
    for field in ("question", "answer"):
        if not draft[field]:
            raise BadRecord(field, "text", "an empty one" if draft[field] == "" else "no such field")
    return draft


def _qa_of_conversation(draft: Record, repairs: Repairs) -> Record:
    """The last question and its answer, without the turns before."""
    messages = _conversation(draft, repairs)["messages"]
    question, answer = messages[-2:] if len(messages) > 1 else (messages[0], messages[0])
    if question["role"] != "user" or not answer["content"]:
        raise LeftOut("conversation that does not end on a question and a text (tool calls)")
    return {"question": question["content"], "answer": answer["content"]}


def _qa_of_prompt(draft: Record, repairs: Repairs) -> Record:
    prompt = _open_prompt(draft["prompt"], repairs)
    return _qa({"question": prompt[-1]["content"], "answer": draft.get("answer")}, repairs)


def _conversation_of_qa(draft: Record, repairs: Repairs) -> Record:
    pair = _qa(draft, repairs)
    turns = [{"role": "user", "content": pair["question"]}, {"role": "assistant", "content": pair["answer"]}]
    return _conversation({**draft, "messages": [*draft.get("before", ()), *turns]}, repairs)


def _prompt_of_qa(draft: Record, repairs: Repairs) -> Record:
    if not draft["question"]:
        raise BadRecord("question", "text", "an empty one")
    messages = [*draft.get("before", ()), {"role": "user", "content": draft["question"]}]
    prompt = with_documents(_open_prompt(messages, repairs), draft.get("documents"))
    return draft | {"prompt": prompt, "answer": draft["answer"] or None}


def _prompt_of_preference(draft: Record, repairs: Repairs) -> Record:
    return {"prompt": _open_prompt(draft["prompt"], repairs), "tools": draft.get("tools")}


def _choice(draft: Record, repairs: Repairs) -> Record:
    if not draft["answer"]:
        raise BadRecord("answer", f"letters out of {''.join(draft['options'])}", shown(draft["answer"]))
    return _asked_choice(draft)


def _asked_choice(draft: Record) -> Record:
    if not draft["question"]:
        raise BadRecord("question", "text", "an empty one")
    return draft


def render_choice(question: str, options: dict[str, str]) -> str:
    """An exam question as a user writes it: the stem, then a line for each option."""
    return "\n".join([question, *(f"{letter}. {text}" for letter, text in options.items())])


def _prompt_of_choice(draft: Record, repairs: Repairs) -> Record:
    question = render_choice(_asked_choice(draft)["question"], draft["options"])
    return draft | {"prompt": [{"role": "user", "content": question}]}


MAKERS: dict[tuple[str, str], Callable[[Record, Repairs], Record]] = {
    ("text", "text"): _text,
    ("conversation", "conversation"): _conversation,
    ("conversation", "prompt"): _prompt_of_conversation,
    ("conversation", "qa"): _qa_of_conversation,
    ("preference", "preference"): _preference,
    ("preference", "prompt"): _prompt_of_preference,
    ("prompt", "prompt"): _prompt,
    ("prompt", "qa"): _qa_of_prompt,
    ("qa", "qa"): _qa,
    ("qa", "conversation"): _conversation_of_qa,
    ("qa", "prompt"): _prompt_of_qa,
    ("choice", "choice"): _choice,
    ("choice", "prompt"): _prompt_of_choice,
}


def questions(record: Record, form: str) -> Iterator[str]:
    """What a record asks, reduced to letters and digits: two records that share one of these ask the same thing.

    Each long enough user turn counts for itself; where all are as short as "hello", all of them together. Text asks
    nothing.
    """
    if form == "text":
        return
    if form == "qa":
        texts = [asked(record["question"])]
    elif form == "choice":  # many exam stems differ in their options only
        texts = ["\n".join([record["question"], *sorted(record["options"].values())])]
    else:
        messages = record["messages" if form == "conversation" else "prompt"]
        texts = [asked(message["content"]) for message in messages if message["role"] == "user"]
    plain = [plain_text(text) for text in texts]
    long = [text for text in plain if len(text.encode("utf-8", "surrogatepass")) >= LONG_ENOUGH]
    yield from long or ["|".join(plain)]


def plain_text(text: str) -> str:
    """NFKC, lower case, letters and digits only."""
    return re.sub(r"[\W_]+", "", unicodedata.normalize("NFKC", text).lower())


def _roles(messages: list[Message]) -> str:
    return " → ".join(message["role"] for message in messages[:8]) or "none"
