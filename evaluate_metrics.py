"""Score answers: BLEU-1..4 and ROUGE-1/2/L by characters and by words, exam accuracy, calculation accuracy.

    python evaluate_metrics.py --data_file answers.jsonl --output_file scores.json --per_row_file rows.jsonl
    python evaluate_metrics.py --data_file base.jsonl sft.jsonl --names base sft     # side by side, paired differences
    python evaluate_metrics.py --task exam --data_file exam_answers.jsonl

The files hold one JSON object a line, as inference.py writes them. Task `qa`: `prediction` and `reference` (or
`output`, `answer`, `label`; a list holds several references). `exam`: `prediction`, `answer` (letters), `options`.
`calculation`: `prediction`, `answer`, `unit`, `tolerance`. medical_qwen/metrics.py says how the scores are defined,
medical_qwen/answers.py how answers are read. All scores are 0..100 and all intervals 95 %: bootstrap over rows, Wilson
for accuracies.
"""

import argparse
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from medical_qwen.answers import Judgement, judge_choice, judge_number, strip_thinking
from medical_qwen.metrics import SCORES, TOKENIZERS, compare_shares, compare_texts, score_texts

REFERENCE_FIELDS = ("reference", "output", "answer", "label")
SHOWN_PROBLEMS = 20


@dataclass(frozen=True)
class Row:
    """One line of a file: what a system said, and what is right."""

    where: str  # file:line
    fields: dict
    prediction: str
    references: list[str]


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--data_file", nargs="+", required=True, help="JSONL; several files are systems that answered the same rows")
    add("--names", nargs="+", help="names of the systems, default: the file names")
    add("--task", choices=("qa", "exam", "calculation"), default="qa")
    add("--prediction_field", default="prediction")
    add("--reference_field", help=f"default: the first that a row has of {', '.join(REFERENCE_FIELDS)}")
    add("--output_file", help="scores as JSON")
    add("--per_row_file", help="scores of every row as JSONL")
    add("--bootstrap_samples", type=int, default=1000)
    add("--seed", type=int, default=0, help="of the bootstrap")
    args = parser.parse_args(argv)
    args.names = args.names or [Path(path).stem for path in args.data_file]
    if len(args.names) != len(args.data_file) or len(set(args.names)) < len(args.names):
        parser.error(f"--names: expected {len(args.data_file)} different names, got {' '.join(args.names)}")
    if args.bootstrap_samples < 1:
        parser.error(f"--bootstrap_samples: expected at least 1, got {args.bootstrap_samples}")
    return args


def read_rows(path: str, args: argparse.Namespace) -> list[Row]:
    """The rows of a JSONL file. All its problems are told at once, as `file:line: field: expected … got …`."""
    rows, problems = [], []
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: expected JSON lines in UTF-8, got other bytes ({error})") from error
    for number, line in enumerate(lines, start=1):
        try:
            if line.strip():
                rows.append(as_row(json.loads(line), f"{path}:{number}", args))
        except json.JSONDecodeError as error:
            problems.append(f"{path}:{number}: expected a JSON object, got {line[:60]!r} ({error})")
        except ValueError as error:
            problems.append(str(error))
    if problems:
        rest = len(problems) - SHOWN_PROBLEMS
        raise ValueError("\n".join(problems[:SHOWN_PROBLEMS] + [f"... and {rest} more"] * (rest > 0)))
    if not rows:
        raise ValueError(f"{path}: expected JSON objects, one a line, got an empty file")
    return rows


def as_row(fields: object, where: str, args: argparse.Namespace) -> Row:
    """A checked row; ValueError says what is wrong with it."""
    if not isinstance(fields, dict):
        raise ValueError(f"{where}: expected a JSON object, got {str(fields)[:60]!r}")
    names = (args.reference_field,) if args.reference_field else REFERENCE_FIELDS
    found = next((name for name in names if fields.get(name) not in (None, "", [])), None)
    if found is None:
        raise ValueError(f"{where}: {' or '.join(names)}: expected a reference, got fields {', '.join(fields)}")
    texts = fields[found] if isinstance(fields[found], list) else [fields[found]]
    if any(isinstance(text, bool) or not isinstance(text, str | int | float) for text in texts):
        raise ValueError(f"{where}: {found}: expected text or a list of texts, got {str(fields[found])[:60]!r}")
    if not all(strip_thinking(str(text)) for text in texts):
        raise ValueError(f"{where}: {found}: expected text, got nothing but white space or <think>")
    prediction = fields.get(args.prediction_field, 0) or ""
    if args.prediction_field not in fields or not isinstance(prediction, str):
        got = fields.get(args.prediction_field, f"fields {', '.join(fields)}")
        raise ValueError(f"{where}: {args.prediction_field}: expected the predicted text, got {str(got)[:60]}")
    return Row(where, fields, prediction, [str(text) for text in texts])


def check_same_rows(systems: list[list[Row]]) -> None:
    """Differences are paired: every system must have answered the same rows in the same order."""
    for rows in systems[1:]:
        for ours, theirs in zip(systems[0], rows, strict=False):
            if ours.references != theirs.references:
                raise ValueError(f"{theirs.where}: the reference is not that of {ours.where}: expected the same rows")
        if len(rows) != len(systems[0]):
            raise ValueError(
                f"{rows[-1].where} ends after {len(rows)} rows: expected {len(systems[0])}, as in the first"
            )


def score(systems: list[list[Row]], args: argparse.Namespace) -> tuple[list[dict], list[list[dict]]]:
    """BLEU and ROUGE of every system at both token levels; and of every row."""
    reports, per_row = [{} for _ in systems], [[{} for _ in rows] for rows in systems]
    for level in TOKENIZERS:
        scored = [score_texts([r.prediction for r in rows], [r.references for r in rows], level) for rows in systems]
        for report, result in zip(reports, compare_texts(scored, args.bootstrap_samples, args.seed), strict=True):
            report[level] = result
        for entries, system in zip(per_row, scored, strict=True):
            for entry, values, repeated in zip(entries, system.rows, system.repetition, strict=True):
                entry[level] = dict(zip(SCORES, values.tolist(), strict=True)) | {
                    "repetition-4": 100 * float(repeated)
                }
    return reports, per_row


def judge(systems: list[list[Row]], args: argparse.Namespace) -> tuple[list[dict], list[list[dict]]]:
    """Accuracy of every system; and of every row what was read from its prediction."""
    judged = [[judge_row(row, args.task) for row in rows] for rows in systems]
    shares = compare_shares([[found.right for found in rows] for rows in judged], args.bootstrap_samples, args.seed)
    reports = [
        {"unreadable": sum(found.read is None for found in rows), "accuracy": share}
        for rows, share in zip(judged, shares, strict=True)
    ]
    return reports, [[{"read": found.read, "right": found.right} for found in rows] for rows in judged]


def judge_row(row: Row, task: str) -> Judgement:
    gold, fields = row.references[0], row.fields
    try:
        if task == "exam":
            found, expected = judge_choice(row.prediction, gold, fields.get("options")), "letters of the options"
        else:
            found = judge_number(row.prediction, gold, fields.get("unit"), fields.get("tolerance"))
            expected = "a number or a date"
    except ValueError as error:
        raise ValueError(f"{row.where}: {error}") from error
    if found is None:
        raise ValueError(f"{row.where}: answer: expected {expected}, got {gold[:60]!r}")
    return found


def flat(report: dict, prefix: str = "") -> dict[str, dict | float]:
    """`{"character": {"corpus": {"BLEU-4": …}}}` as `{"character corpus BLEU-4": …}`."""
    rows = {}
    for name, value in report.items():
        nested = isinstance(value, dict) and "value" not in value
        rows |= flat(value, f"{prefix}{name} ") if nested else {prefix + name: value}
    return rows


def table(reports: dict[str, dict]) -> str:
    """Scores as lines; systems, and their differences from the first one, as columns."""

    def cell(value: dict | float | None, sign: str = "") -> str:
        if not isinstance(value, dict):
            return "" if value is None else f"{value}" if isinstance(value, int) else f"{value:.2f}"
        return f"{value['value']:{sign}.2f} [{value['low']:{sign}.2f}, {value['high']:{sign}.2f}]"

    first, *others = columns = {name: flat(report) for name, report in reports.items()}
    lines = [["", *columns, *(f"{name} - {first}" for name in others)]]
    for label, value in columns[first].items():
        differences = [columns[name][label].get("difference") if isinstance(value, dict) else None for name in others]
        lines.append([label, *(cell(rows[label]) for rows in columns.values()), *(cell(d, "+") for d in differences)])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def write(path: str, text: str) -> None:
    """Whole or not at all: written beside, then renamed."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = target.with_name(f".{target.name}.tmp")
    beside.write_text(text, encoding="utf-8")
    os.replace(beside, target)


def main(argv: list[str] | None = None) -> dict:
    args = parse(argv)
    systems = [read_rows(path, args) for path in args.data_file]
    check_same_rows(systems)
    reports, per_row = (score if args.task == "qa" else judge)(systems, args)
    for report, rows in zip(reports, systems, strict=True):
        empty = sum(not strip_thinking(row.prediction) for row in rows)
        report |= {"rows": len(rows), "empty_predictions": empty} | {k: report.pop(k) for k in list(report)}
    named = dict(zip(args.names, reports, strict=True))
    print(table(named))
    if args.output_file:
        write(args.output_file, json.dumps({"task": args.task, "systems": named}, ensure_ascii=False, indent=2) + "\n")
    if args.per_row_file:
        lines = [
            {"system": name, "where": row.where, "prediction": row.prediction, "references": row.references} | entry
            for name, rows, entries in zip(args.names, systems, per_row, strict=True)
            for row, entry in zip(rows, entries, strict=True)
        ]
        write(args.per_row_file, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    return named


if __name__ == "__main__":
    try:
        main()
    except (ValueError, FileNotFoundError, ImportError) as error:
        sys.exit(f"error: {error}")
