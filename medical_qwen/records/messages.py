"""Message lists: role names, tool calls, and the repairs that real conversations need."""

import json
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

from .problems import BadRecord, names, shown

Message = dict[str, Any]

ROLES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "function_call": "assistant",
    "tool": "tool",
    "observation": "tool",
    "function_response": "tool",
}
AT = "at"  # where a message stood in its row, for errors; gone from the finished record
KEPT = ("tool_calls", "tool_call_id", "name", "reasoning_content")  # of an OpenAI message, beside role and content


def stripped(text: str) -> str:
    """Without blank edges; the indent of a first line of code stays. Halves of surrogate pairs are mended."""
    if re.search(r"[\ud800-\udfff]", text):
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    text = re.sub(r"\A(?:[^\S\n]*\n)+", "", text).rstrip()
    return text if re.match(r"\t| {4}", text) else text.lstrip()


def text_of(row: dict[str, Any], field: str, default: str | None = None) -> str:
    """The text in a column. Numbers are written out; anything else is a BadRecord, and so is its absence without
    a default."""
    value = row.get(field)
    if value is None and default is not None:
        return default
    if isinstance(value, str):
        return stripped(value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    if field not in row:
        raise BadRecord(field, "text", f"no such field (the record has {names(row)})")
    raise BadRecord(field, "text", shown(value))


def from_sharegpt(items: Any, field: str) -> list[Message]:
    """Messages from a list of {from, value}."""
    messages = []
    for place, item in _items(items, field):
        role, name = _role(item, "from", place)
        value = _said(item, "value", place)
        message = {"role": role, "content": "", AT: f"{place}.value"}
        if name == "function_call":
            message["tool_calls"] = tool_calls(value, message[AT])
        else:
            message["content"] = _content(value, message[AT])
        messages.append(message)
    return messages


def from_openai(items: Any, field: str) -> list[Message]:
    """Messages from a list of {role, content}; content may be a list of text parts."""
    messages = []
    for place, item in _items(items, field):
        role, _ = _role(item, "role", place)
        value = item.get("content") if item.get("tool_calls") else _said(item, "content", place)
        message = {"role": role, "content": _content(value, f"{place}.content"), AT: f"{place}.content"}
        message |= {key: item[key] for key in KEPT if item.get(key) not in (None, "", [])}
        if "tool_calls" in message:
            message["tool_calls"] = tool_calls(message["tool_calls"], f"{place}.tool_calls")
        messages.append(message)
    return messages


def from_items(items: Any, field: str) -> list[Message]:
    """Messages from either spelling."""
    first = items[0] if isinstance(items, list) and items else None
    return (from_sharegpt if isinstance(first, dict) and "from" in first else from_openai)(items, field)


SPEAKERS = {"Human": "user", "User": "user", "<user>": "user", "prompter": "user", "人类": "user", "人類": "user",
            "Assistant": "assistant", "Asssistent": "assistant", "assistant": "assistant", "<bot>": "assistant",
            "助手": "assistant", "System": "system"}  # fmt: skip
_BEGINS = re.compile(r"\s*(Human|User|<user>|prompter|人[类類])\s*[:：]")
_AT_LINES = re.compile(r"(?:^|\n)\s*(Human|Assistant|prompter|assistant|人[类類]|助手)\s*[:：]")
_ANYWHERE = {"<user>": re.compile(r"(<user>|<bot>)\s*[:：]"),
             "User": re.compile(r"(User|Assistant|Asssistent|System)\s*[:：]")}  # fmt: skip


def from_transcript(text: str, field: str) -> list[Message] | None:
    """The turns of a dialogue that is one text, up to the user's last: `Human: …\\nAssistant: …\\nHuman: …`.

    In dialogues of `User:` and `<user>:` the labels stand anywhere, in others at the beginning of a line. What a
    `System:` says stands before the user's next turn. None where the text is no dialogue.
    """
    begins = _BEGINS.match(text)
    if not begins:
        return None
    _, *parts = _ANYWHERE.get(begins[1], _AT_LINES).split(text)
    if len(parts) == 2 and begins[1] != "<user>":  # one label alone may be a heading
        return None
    said = [(SPEAKERS[who], stripped(words)) for who, words in zip(parts[::2], parts[1::2], strict=True)]
    if said[-1] == ("assistant", ""):  # the place of the answer
        said.pop()
    messages, told = [], ""
    for role, words in said:
        if role == "system":
            told += f"{words}\n\n"
        else:
            messages.append({"role": role, "content": told + words, AT: field})
            told = ""
    roles = [message["role"] for message in messages]
    if told or roles != ["user", "assistant"] * (len(roles) // 2) + ["user"]:
        raise BadRecord(field, "turns of a dialogue that alternate and end on the user", " → ".join(roles))
    return messages


def tools_of(row: dict[str, Any]) -> list[dict[str, Any]] | None:
    """The `tools` column as a list of OpenAI function schemas, or None. It may be a JSON string."""
    tools = row.get("tools")
    if isinstance(tools, str):
        tools = _json(tools, "tools", "a JSON list of tools") if tools.strip() else None
    if tools in (None, []):
        return None
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise BadRecord("tools", "a list of tools", shown(tools))
    return [tool if "function" in tool else {"type": "function", "function": tool} for tool in tools]


def documents_of(row: dict[str, Any]) -> list[str | dict[str, Any]] | None:
    """The `documents` column: the passages to answer from, as texts or {text, file?, page?, heading?}, or None."""
    documents = row.get("documents")
    if documents in (None, "", []):
        return None
    documents = documents if isinstance(documents, list) else [documents]
    texts = [one.get("text") if isinstance(one, dict) else one for one in documents]
    if not all(isinstance(text, str) and text.strip() for text in texts):
        raise BadRecord("documents", "a list of texts or of {text, file?, page?, heading?}", shown(documents))
    return documents


def tool_calls(value: Any, field: str) -> list[dict[str, Any]]:
    """Tool calls in OpenAI's layout, their arguments as an object, from one call or a list, decoded or not."""
    expected = "a tool call {name, arguments}"
    value = _json(value, field, expected) if isinstance(value, str) else value
    calls = []
    for call in value if isinstance(value, list) else [value]:
        function = call.get("function", call) if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise BadRecord(field, expected, shown(value))
        arguments = function.get("arguments", {})
        if isinstance(arguments, str):
            arguments = _json(arguments, f"{field}.arguments", "a JSON object") if arguments.strip() else {}
        kept = {"id": call["id"]} if call.get("id") else {}
        calls.append({"type": "function", **kept, "function": {"name": function["name"], "arguments": arguments}})
    return calls


def repaired(messages: Sequence[Message], repairs: Counter[str]) -> list[Message]:
    """A conversation that begins with the user (after a system message) and whose neighbours have different roles.

    What was changed is counted in `repairs`. Raises BadRecord for an empty message or a late system message.
    """
    messages = [message for message in messages if message["content"] or message["role"] != "system"]
    joined = merged(messages, repairs)
    system = [message for message in joined[:1] if message["role"] == "system"]
    turns = joined[len(system) :]
    first_user = next((place for place, turn in enumerate(turns) if turn["role"] == "user"), len(turns))
    if first_user:
        repairs["turns before the first user turn dropped"] += 1
        turns = turns[first_user:]
    for turn in turns:
        if turn["role"] == "system":
            raise BadRecord(turn.get(AT, "messages"), "system as the first message only", "a later one")
        check_said(turn)
    return finished(system + turns)


def check_said(message: Message) -> None:
    """BadRecord for a message that says nothing. A tool may return nothing."""
    if not message["content"] and message["role"] != "tool" and not message.get("tool_calls"):
        what = "an answer" if message["role"] == "assistant" else "a question"
        raise BadRecord(message.get(AT, f"messages.{message['role']}"), what, "an empty text")


def finished(messages: Sequence[Message]) -> list[Message]:
    """Without the notes on where they stood."""
    return [{key: value for key, value in message.items() if key != AT} for message in messages]


def merged(messages: Sequence[Message], repairs: Counter[str]) -> list[Message]:
    merged: list[Message] = []
    for message in messages:
        last = merged[-1] if merged else None
        if last is None or last["role"] != message["role"] or message["role"] == "tool" or last.get("tool_calls"):
            if last and last.get("tool_calls") and message.get("tool_calls") and not message["content"]:
                merged[-1] = last | {"tool_calls": last["tool_calls"] + message["tool_calls"]}
            else:
                merged.append(message)
            continue
        check_said(last)  # before it vanishes in its neighbour
        check_said(message)
        content = "\n\n".join(part for part in (last["content"], message["content"]) if part)
        merged[-1] = last | message | {"content": content}
        repairs["neighbouring turns of one role merged"] += 1
    return merged


def _items(items: Any, field: str) -> list[tuple[str, dict[str, Any]]]:
    if not isinstance(items, list) or not items:
        raise BadRecord(field, "a list of messages", shown(items))
    for place, item in enumerate(items):
        if not isinstance(item, dict):
            raise BadRecord(f"{field}[{place}]", "a message", shown(item))
    return [(f"{field}[{place}]", item) for place, item in enumerate(items)]


def _role(item: dict[str, Any], key: str, place: str) -> tuple[str, str]:
    name = item.get(key)
    role = ROLES.get(name.strip().lower()) if isinstance(name, str) else None
    if role is None:
        got = shown(name) if key in item else "no such field"
        raise BadRecord(f"{place}.{key}", f"one of {', '.join(ROLES)}", got)
    return role, name.strip().lower()


def _said(item: dict[str, Any], key: str, place: str) -> Any:
    if key not in item:
        raise BadRecord(f"{place}.{key}", "text", f"no such field (the message has {names(item)})")
    return item[key]


def _content(value: Any, field: str) -> str:
    if isinstance(value, list):
        texts = [part.get("text", part.get("value")) if isinstance(part, dict) else part for part in value]
        if not all(isinstance(text, str) for text in texts):
            raise BadRecord(field, "text parts", shown(value))
        value = "\n".join(texts)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise BadRecord(field, "text", shown(value))
    return stripped(value)


def _json(text: str, field: str, expected: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise BadRecord(field, expected, f"{shown(text)} ({error})") from error
