"""What can be wrong with a record, and how it is said: `file:line: field: expected … got …`."""

import re
from collections.abc import Sequence
from typing import Any

SHOWN = 20


class BadRecord(ValueError):
    """One record cannot be used. `fatal` when the rest of its file cannot be read either."""

    def __init__(self, field: str, expected: str, got: str, fatal: bool = False) -> None:
        super().__init__(f"{field}: expected {expected}, got {got}")
        self.field, self.expected, self.fatal = field, expected, fatal

    @property
    def reason(self) -> str:
        """The problem without what differs from row to row, for counting."""
        return re.sub(r"\[\d+\]", "[]", self.field) + f": expected {self.expected}"


class LeftOut(Exception):
    """A record is whole, but is not one to learn from. Its text is counted in the report."""


class RecordError(ValueError):
    """Data cannot be trained on. The first problems, and how many there are."""

    def __init__(self, problems: Sequence[str], total: int | None = None, hint: str = "") -> None:
        self.problems, self.total = list(problems), len(problems) if total is None else total
        lines = self.problems[:SHOWN]
        if self.total > len(lines):
            lines = [*lines, f"… and {self.total - len(lines)} more"]
        head = f"{self.total} problem{'s' if self.total != 1 else ''} in the data"
        super().__init__("\n".join([f"{head}:", *(f"  {line}" for line in lines), *([hint] if hint else [])]))


def shown(value: Any, limit: int = 60) -> str:
    """A value as an error shows it: its type where that is the news, and a short excerpt."""
    if value is None:
        return "null"
    text = repr(value)
    text = text if len(text) <= limit else text[: limit - 1] + "…"
    return text if isinstance(value, str | int | float) else f"{type(value).__name__} {text}"


def names(columns: Any) -> str:
    """Column names in an error, at most twelve."""
    columns = [str(name) for name in columns]
    return ", ".join(columns[:12]) + (", …" if len(columns) > 12 else "") if columns else "no columns"
