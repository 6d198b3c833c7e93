"""How good are the answers in a file? Rows in, a report of every system and of every row out.

A system is a list of rows: what one model said to the questions that the other systems answered too. The first system
is the one that the others are compared with.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from medical_qwen.answers import Judgement, judge_choice, judge_number, options_of, strip_thinking
from medical_qwen.metrics import SCORES, TOKENIZERS, compare_shares, compare_texts, score_texts

TASKS = ("qa", "exam", "calculation")
REFERENCE_FIELDS = ("reference", "output", "answer", "label")
SHOWN_PROBLEMS = 20


@dataclass(frozen=True)
class Row:
    """What a system said, and what is right."""

    where: str  # file:line
    fields: dict
    prediction: str
    references: list[str]


def read_lines(path: str) -> Iterator[tuple[str, object]]:
    """(`file:line`, value) of a file of JSON lines; a line that is none comes out as its ValueError."""
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: expected JSON lines in UTF-8, got other bytes ({error})") from error
    if not any(line.strip() for line in lines):
        raise ValueError(f"{path}: expected JSON objects, one a line, got an empty file")
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                yield f"{path}:{number}", json.loads(line)
            except json.JSONDecodeError as error:
                yield f"{path}:{number}", ValueError(f"expected a JSON object, got {line[:60]!r} ({error})")


def read_rows(
    values: Iterable[tuple[str, object]], prediction_field: str = "prediction", reference_field: str | None = None
) -> list[Row]:
    """Checked rows. All problems are told at once, as `file:line: field: expected … got …`."""
    rows, problems = [], []
    for where, fields in values:
        try:
            prediction, references = _checked(fields, prediction_field, reference_field)
            rows.append(Row(where, fields, prediction, references))
        except ValueError as error:
            problems.append(f"{where}: {error}")
    raise_problems(problems)
    return rows


def raise_problems(problems: list[str]) -> None:
    """ValueError with the first of the problems and the number of the others, if there are any."""
    if problems:
        rest = len(problems) - SHOWN_PROBLEMS
        raise ValueError("\n".join(problems[:SHOWN_PROBLEMS] + [f"... and {rest} more"] * (rest > 0)))


def _checked(fields: object, prediction_field: str, reference_field: str | None) -> tuple[str, list[str]]:
    """(prediction, references); ValueError says what is wrong with the row."""
    if isinstance(fields, ValueError):
        raise fields
    if not isinstance(fields, dict):
        raise ValueError(f"expected a JSON object, got {str(fields)[:60]!r}")
    names = (reference_field,) if reference_field else REFERENCE_FIELDS
    found = next((name for name in names if fields.get(name) not in (None, "", [])), None)
    if found is None:
        raise ValueError(f"{' or '.join(names)}: expected a reference, got fields {', '.join(fields)}")
    texts = fields[found] if isinstance(fields[found], list) else [fields[found]]
    if any(isinstance(text, bool) or not isinstance(text, str | int | float) for text in texts):
        raise ValueError(f"{found}: expected text or a list of texts, got {str(fields[found])[:60]!r}")
    if not all(strip_thinking(str(text)) for text in texts):
        raise ValueError(f"{found}: expected text, got nothing but white space or <think>")
    if prediction_field not in fields:
        raise ValueError(f"{prediction_field}: expected the predicted text, got fields {', '.join(fields)}")
    prediction = "" if fields[prediction_field] is None else fields[prediction_field]
    if not isinstance(prediction, str):
        raise ValueError(f"{prediction_field}: expected the predicted text, got {str(prediction)[:60]}")
    return prediction, [str(text) for text in texts]


def evaluate(
    systems: Sequence[list[Row]], task: str = "qa", samples: int = 1000, seed: int = 0
) -> tuple[list[dict], list[list[dict]]]:
    """A report of each system, and of each of its rows.

    `qa`: {rows, empty_predictions, character, word: see `metrics.compare_texts`}; a row has its scores at both levels.
    `exam`, `calculation`: {rows, empty_predictions, unreadable, accuracy: `metrics.compare_shares`}; a row has what
    was `read` from its prediction and whether that is `right`.

    Raises ValueError where the systems did not answer the same rows, or a gold answer is none of the task's kind.
    """
    _check_same_rows(systems)
    scored, per_row = _score(systems, samples, seed) if task == "qa" else _judge(systems, task, samples, seed)
    empty = [sum(not strip_thinking(row.prediction) for row in rows) for rows in systems]
    reports = [
        {"rows": len(rows), "empty_predictions": none, **report}
        for rows, none, report in zip(systems, empty, scored, strict=True)
    ]
    return reports, per_row


def _check_same_rows(systems: Sequence[list[Row]]) -> None:
    for rows in systems[1:]:
        for ours, theirs in zip(systems[0], rows, strict=False):
            if ours.references != theirs.references:
                raise ValueError(f"{theirs.where}: the reference is not that of {ours.where}: expected the same rows")
        if len(rows) != len(systems[0]):
            raise ValueError(
                f"{rows[-1].where} is row {len(rows)}, the last: expected {len(systems[0])} as in the first"
            )


def _score(systems: Sequence[list[Row]], samples: int, seed: int) -> tuple[list[dict], list[list[dict]]]:
    reports, per_row = [{} for _ in systems], [[{} for _ in rows] for rows in systems]
    for level in TOKENIZERS:
        scored = [score_texts([r.prediction for r in rows], [r.references for r in rows], level) for rows in systems]
        for report, result in zip(reports, compare_texts(scored, samples, seed), strict=True):
            report[level] = result
        for entries, system in zip(per_row, scored, strict=True):
            for entry, values, repeated in zip(entries, system.rows, system.repetition, strict=True):
                own = dict(zip(SCORES, values.tolist(), strict=True))
                entry[level] = {**own, "repetition-4": 100 * float(repeated)}
    return reports, per_row


def _judge(systems: Sequence[list[Row]], task: str, samples: int, seed: int) -> tuple[list[dict], list[list[dict]]]:
    judged = [[judgement(row, task) for row in rows] for rows in systems]
    shares = compare_shares([[found.right for found in rows] for rows in judged], samples, seed)
    reports = [
        {"unreadable": sum(found.read is None for found in rows), "accuracy": share}
        for rows, share in zip(judged, shares, strict=True)
    ]
    return reports, [[{"read": found.read, "right": found.right} for found in rows] for rows in judged]


def judgement(row: Row, task: str) -> Judgement:
    gold, fields = row.references[0], row.fields
    if len(row.references) > 1 and task == "exam":  # ["A", "C"]: all of them
        gold = "".join(row.references)
    elif len(row.references) > 1:
        raise ValueError(f"{row.where}: answer: expected one, got {len(row.references)}")
    try:
        if task == "exam":
            options = options_of(fields) or fields.get("options")
            found, expected = judge_choice(row.prediction, gold, options), "letters of the options"
        else:
            found = judge_number(row.prediction, gold, fields.get("unit"), fields.get("tolerance"))
            expected = "a number or a date"
    except ValueError as error:
        raise ValueError(f"{row.where}: {error}") from error
    if found is None:
        raise ValueError(f"{row.where}: answer: expected {expected}, got {gold[:60]!r}")
    return found


def table(reports: dict[str, dict]) -> str:
    """Reports by name as text: scores are lines; systems, and their differences from the first one, are columns."""
    first, *others = columns = {name: _flat(report) for name, report in reports.items()}
    lines = [["", *columns, *(f"{name} - {first}" for name in others)]]
    for label, value in columns[first].items():
        differences = [columns[name][label].get("difference") if isinstance(value, dict) else None for name in others]
        own = [_cell(rows[label]) for rows in columns.values()]
        lines.append([label, *own, *(_cell(difference, "+") for difference in differences)])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    padded = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines]
    return "\n".join(line.rstrip() for line in padded)


def _flat(report: dict, prefix: str = "") -> dict[str, dict | float]:
    """`{"character": {"corpus": {"BLEU-4": …}}}` as `{"character corpus BLEU-4": …}`."""
    rows = {}
    for name, value in report.items():
        nested = isinstance(value, dict) and "value" not in value
        rows |= _flat(value, f"{prefix}{name} ") if nested else {prefix + name: value}
    return rows


def _cell(value: dict | float | None, sign: str = "") -> str:
    if isinstance(value, dict):
        return f"{value['value']:{sign}.2f} [{value['low']:{sign}.2f}, {value['high']:{sign}.2f}]"
    return "" if value is None else str(value) if isinstance(value, int) else f"{value:.2f}"
