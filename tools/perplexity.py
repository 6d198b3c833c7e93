"""Held-out perplexity of one or more checkpoints: how likely each finds the reference answers.

    python tools/perplexity.py --models outputs/pt outputs/sft --data_file data/eval/heldout_qa.jsonl \\
        --output_file perplexity.json

Records of any known form; only the answers count, every token alike. Adapter directories are loaded with their base.
"""

import argparse
import logging
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from medical_qwen.generation import Generator
from medical_qwen.perplexity import answer_likelihood
from medical_qwen.records import read_records
from medical_qwen.rendering import Renderer
from medical_qwen.training import run, write_json


def main(argv: list[str] | None = None) -> dict[str, dict]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", required=True, help="model or adapter directories, hub ids")
    parser.add_argument("--names", nargs="+", help="names of the models in the result; default: the folders' names")
    parser.add_argument("--data_file", required=True, help="held-out questions with answers, or conversations")
    parser.add_argument("--template_name", help="default: each checkpoint's own")
    parser.add_argument("--max_length", type=int, default=2048, help="tokens; the oldest turns go first")
    parser.add_argument("--output_file", type=Path, help="the figures as JSON")
    args = parser.parse_args(argv)
    names = args.names or [Path(model).name for model in args.models]
    if len(names) != len(args.models) or len(set(names)) < len(names):
        parser.error(f"--names: expected {len(args.models)} different names, got {' '.join(names)}")
    conversations = [record["messages"] for record, _ in read_records(args.data_file, "conversation")]
    results = {}
    for name, path in zip(names, args.models, strict=True):
        engine = Generator.load(path, template_name=args.template_name)
        found = answer_likelihood(engine.model, Renderer(engine.tokenizer), conversations, args.max_length)
        results[name] = {"perplexity": found.perplexity, "tokens": found.tokens, "rows": found.rows,
                         "rows_dropped": found.dropped}  # fmt: skip
        print(f"{name:20s} perplexity {found.perplexity:10.2f}  ({found.tokens} tokens, {found.rows} rows)")
    if args.output_file:
        write_json(args.output_file, results)
    return results


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    run(main)
