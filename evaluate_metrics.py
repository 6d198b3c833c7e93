"""Score answers: BLEU-1..4 and ROUGE-1/2/L by characters and by words, exam and calculation accuracy, retrieval.

    python evaluate_metrics.py --data_file answers.jsonl --output_file scores.json --per_row_file rows.jsonl
    python evaluate_metrics.py --data_file base.jsonl sft.jsonl --names base sft     # side by side, paired differences
    python evaluate_metrics.py --task exam --data_file exam_answers.jsonl
    python evaluate_metrics.py --retrieval --data_file rag_answers.jsonl     # of chatpdf.py: passages and faithfulness
    python evaluate_metrics.py --base_model outputs/sft --data_file data/eval/heldout_qa.jsonl     # answers them first

Files of answers hold one JSON object a line, as inference.py writes them. Task `qa`: `prediction` and `reference` (or
`output`, `answer`, `label`; a list holds several references). `exam`: `prediction`, `answer` (letters), `options`.
`calculation`: `prediction`, `answer`, `unit`, `tolerance`. --retrieval: `gold`, `passages` and, if there is one,
`prediction`; medical_qwen/grounding.py says what is scored. With --base_model the file holds questions in any known
form. medical_qwen/metrics.py says how the scores are defined, medical_qwen/answers.py how answers are read. All scores
are 0..100 and all intervals 95 %: bootstrap over rows, Wilson for accuracies.
"""

import argparse
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from medical_qwen.evaluation import REFERENCE_FIELDS, TASKS, Row, evaluate, judgement, read_lines, read_rows, table
from medical_qwen.grounding import evaluate_grounding, read_ranked

GENERATION = {
    "lora_model": None,
    "tokenizer_path": None,
    "template_name": None,
    "system_prompt": None,
    "only_cpu": False,
    "max_new_tokens": 512,
    "eval_batch_size": 8,
    "prediction_file": "predictions.jsonl",
}


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--data_file", nargs="+", required=True, help="JSONL; several files are systems that answered the same rows")
    add("--names", nargs="+", help="names of the systems; default: those of the files")
    add("--task", choices=TASKS, default="qa")
    add("--retrieval", action="store_true", help="score the passages that were found, and answers by what they say")
    add("--prediction_field", default="prediction", help="field with what the system said (default: %(default)s)")
    add("--reference_field", help=f"default: the first that a row has of {', '.join(REFERENCE_FIELDS)}")
    add("--output_file", help="scores as JSON")
    add("--per_row_file", help="scores of every row as JSONL")
    add("--bootstrap_samples", type=int, default=1000, help="(default: %(default)s)")
    add("--seed", type=int, default=0, help="of the bootstrap (default: %(default)s)")
    answering = parser.add_argument_group("to answer the questions of --data_file first (inference.py has more flags)")
    add = answering.add_argument
    add("--base_model", help="model directory, hub id, or adapter directory")
    add("--lora_model", help="a further adapter directory on top of --base_model")
    add("--tokenizer_path", help="default: --lora_model if it has a tokenizer, else --base_model")
    add("--template_name", help="prompt template of template.py; default: the checkpoint's own, vicuna if it has none")
    add("--system_prompt", help="replaces the template's")
    add("--only_cpu", action="store_const", const=True, help="leave the GPUs alone")
    add("--max_new_tokens", type=int, help="longest answer (default: 512)")
    add("--eval_batch_size", type=int, help="rows answered together (default: 8)")
    add("--prediction_file", help="where the answers go (default: predictions.jsonl); a killed run goes on from there")
    args = parser.parse_args(argv)
    if not args.base_model and (given := [name for name in GENERATION if getattr(args, name) is not None]):
        parser.error(f"{', '.join('--' + name for name in given)}: of use with --base_model only")
    if args.retrieval and (args.base_model or args.task != "qa"):
        parser.error("--retrieval: scores a file of answers by itself, without --base_model or --task")
    if args.base_model and args.prediction_field != "prediction":
        parser.error("--prediction_field: of use without --base_model only")
    if args.base_model and len(args.data_file) > 1:
        parser.error(f"--base_model answers one --data_file, got {len(args.data_file)}")
    for name, default in GENERATION.items():
        setattr(args, name, default if getattr(args, name) is None else getattr(args, name))
    args.names = args.names or [Path(path).stem for path in args.data_file]
    if len(args.names) != len(args.data_file) or len(set(args.names)) < len(args.names):
        parser.error(f"--names: expected {len(args.data_file)} different names, got {' '.join(args.names)}")
    if args.bootstrap_samples < 1:
        parser.error(f"--bootstrap_samples: expected at least 1, got {args.bootstrap_samples}")
    return args


def answered(args: argparse.Namespace) -> Iterator[tuple[str, dict]]:
    """The rows of --data_file with the model's `prediction`, and with the gold answer under its usual name."""
    from medical_qwen.generation import Generator, Sampling, answer_file, describe_files, describe_model
    from medical_qwen.lineage import resolve
    from medical_qwen.records import stream

    [questions] = args.data_file
    # what has no gold answer, or one of another task, is found before hours are spent on it
    asked = ((read.where, {**read.row, **gold(read.record), "prediction": ""}) for read in stream(questions, "prompt"))
    for row in read_rows(asked, "prediction", args.reference_field):
        if args.task != "qa":
            judgement(row, args.task)
    lineage = resolve(args.base_model, args.lora_model)
    job = {name: getattr(args, name) for name in ("base_model", *GENERATION) if name != "prediction_file"}
    job["files"] = describe_files(questions) | describe_model(lineage.root, *lineage.adapters, args.tokenizer_path)
    load = {name: getattr(args, name) for name in ("tokenizer_path", "template_name", "only_cpu")}
    summary = answer_file(
        questions,
        args.prediction_file,
        lambda: Generator.load(args.base_model, args.lora_model, **load),
        Sampling(args.max_new_tokens),
        batch_size=args.eval_batch_size,
        system_prompt=args.system_prompt,
        seed=0,
        job=job,
    )
    print(f"{args.prediction_file}: {summary}", file=sys.stderr)
    for (record, where, _), (_, row) in zip(
        stream(questions, "prompt"), read_lines(args.prediction_file), strict=True
    ):
        yield where, {**row, **gold(record)}


def gold(record: dict) -> dict:
    return {name: record[name] for name in ("answer", "options") if record[name] is not None}


def described(row: Row | dict) -> dict:
    """What a row of --per_row_file says beside its scores."""
    if isinstance(row, dict):
        return {name: value for name, value in row.items() if name != "passages"}
    return {"where": row.where, "prediction": row.prediction, "references": row.references}


def write(path: str, text: str) -> None:
    """Whole or not at all: written beside, then renamed."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = target.with_name(f".{target.name}.tmp")
    beside.write_text(text, encoding="utf-8")
    os.replace(beside, target)


def main(argv: list[str] | None = None) -> dict[str, dict]:
    """Print the table, write the files that were asked for; returns the reports by system."""
    args = parse(argv)
    sources = [answered(args)] if args.base_model else map(read_lines, args.data_file)
    if args.retrieval:
        systems = [read_ranked(source) for source in sources]
        results, per_row = evaluate_grounding(systems, args.bootstrap_samples, args.seed)
    else:
        systems = [read_rows(source, args.prediction_field, args.reference_field) for source in sources]
        results, per_row = evaluate(systems, args.task, args.bootstrap_samples, args.seed)
    reports = dict(zip(args.names, results, strict=True))
    print(table(reports))
    if args.output_file:
        task = "retrieval" if args.retrieval else args.task
        write(args.output_file, json.dumps({"task": task, "systems": reports}, ensure_ascii=False, indent=2) + "\n")
    if args.per_row_file:
        lines = [
            {"system": name, **described(row), **entry}
            for name, rows, entries in zip(args.names, systems, per_row, strict=True)
            for row, entry in zip(rows, entries, strict=True)
        ]
        write(args.per_row_file, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    return reports


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"error: {error}")
