"""What is done to messages before a chat template reads them: checks, tool calls as it wants them, nothing forged."""

import json
import re
from collections.abc import Callable, Sequence
from typing import Any

from .encoding import Span

Message = dict[str, Any]

# Private-use characters that stand for control tokens spelled out in tool schemas and tool calls.
_HIDDEN = 0xF1000


def checked(messages: Sequence[Message]) -> list[Message]:
    """The messages without keys that have no value; `ValueError` if one is not a role and a text."""
    if not messages:
        raise ValueError("a conversation needs at least one message, got none")
    for i, message in enumerate(messages):
        role, content = message.get("role"), message.get("content")
        if not isinstance(role, str) or not re.fullmatch(r"[\w-]+", role):
            raise ValueError(f"messages[{i}].role: expected a word like user or assistant, got {role!r}")
        if not isinstance(content, str) and (content is not None or not message.get("tool_calls")):
            raise ValueError(f"messages[{i}].content: expected a text, got {content!r:.200}")
    return [
        message
        if len(message) == 2
        else {key: value for key, value in message.items() if value is not None or key == "content"}
        for message in messages
    ]


class ToolCalls:
    """How a chat template reads tool calls: content "" or None beside them, arguments as an object or as JSON text.

    Templates differ, and one that is given the other spelling fails or leaves the call out without a word.
    """

    def __init__(self, write: Callable[[list[Message]], str]) -> None:
        name, value = chr(_HIDDEN), chr(_HIDDEN + 1)
        self.spellings: list[tuple[str | None, type]] = []
        for empty in ("", None):
            for arguments in ({"a": value}, json.dumps({"a": value}, ensure_ascii=False)):
                call = {"type": "function", "function": {"name": name, "arguments": arguments}}
                answer = {"role": "assistant", "content": empty, "tool_calls": [call]}
                try:
                    text = write([{"role": "user", "content": "a"}, answer, {"role": "tool", "content": "b"}])
                except ValueError:
                    continue
                if name in text and value in text:
                    self.spellings.append((empty, type(arguments)))

    def spell(self, message: Message) -> Message:
        """The message as the template can read it: as it is, if possible."""
        if not message.get("tool_calls") or not self.spellings:
            return message
        content = message.get("content")
        arguments = [call.get("function", call).get("arguments") for call in message["tool_calls"]]
        kinds = {dict if isinstance(value, dict) else str for value in arguments}
        if any(kinds == {kind} and (content or content == empty) for empty, kind in self.spellings):
            return message
        empty, kind = self.spellings[0]
        return {**message, "content": content or empty, "tool_calls": [_call(c, kind) for c in message["tool_calls"]]}


def _call(call: dict[str, Any], kind: type) -> dict[str, Any]:
    function = call.get("function", call)
    arguments = function.get("arguments")
    if kind is str and not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False)
    elif kind is dict and isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except json.JSONDecodeError:
            return call  # not JSON: for the template to accept or refuse
    function = {**function, "arguments": arguments}
    return {**call, "function": function} if "function" in call else function


def shield(value: Any, pattern: re.Pattern[str], hidden: list[str]) -> Any:
    """A copy of nested data in which every match of `pattern` in a string is one private-use character.

    The matches are added to `hidden`, from which `reveal` puts them back.
    """
    if isinstance(value, str):

        def hide(match: re.Match[str]) -> str:
            hidden.append(match[0])
            return chr(_HIDDEN + len(hidden) - 1)

        return pattern.sub(hide, value)
    if isinstance(value, dict):
        return {shield(key, pattern, hidden): shield(item, pattern, hidden) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [shield(item, pattern, hidden) for item in value]
    return value


def reveal(text: str, hidden: Sequence[str], slots: Sequence[Span]) -> tuple[str, list[tuple[int, int]]]:
    """The text with the shielded strings back in place; and of each its position before, and the length gained.

    Nothing was shielded within the `slots`.
    """
    gained: list[tuple[int, int]] = []

    def show(match: re.Match[str]) -> str:
        if any(span.start <= match.start() < span.end for span in slots):
            return match[0]
        original = hidden[ord(match[0]) - _HIDDEN]
        gained.append((match.start(), len(original) - 1))
        return original

    characters = f"[{chr(_HIDDEN)}-{chr(_HIDDEN + len(hidden) - 1)}]"
    return re.sub(characters, show, text), gained
