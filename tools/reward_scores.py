"""What a reward model thinks of files of answers: the mean score of each, with a 95 % interval.

    python tools/reward_scores.py --reward_model outputs/rm --data_file base.jsonl sft.jsonl --names base sft \\
        --output_file reward.json

The files are JSONL with `question` and `prediction`, as inference.py writes them; empty answers are scored too.
"""

import argparse
import logging
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from medical_qwen.evaluation import read_lines
from medical_qwen.scoring import RewardModel
from medical_qwen.training import run, write_json


def conversation(where: str, row: object) -> list[dict[str, str]]:
    if not isinstance(row, dict):
        raise ValueError(f"{where}: expected a JSON object, got {str(row)[:60]!r}")
    for field in ("question", "prediction"):
        if not isinstance(row.get(field), str):
            raise ValueError(f"{where}: {field}: expected text, got {row.get(field)!r}")
    return [{"role": "user", "content": row["question"]}, {"role": "assistant", "content": row["prediction"]}]


def main(argv: list[str] | None = None) -> dict[str, dict]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reward_model", required=True, help="directory that reward_modeling.py left")
    parser.add_argument("--data_file", nargs="+", required=True, type=Path, help="files of answers, one per system")
    parser.add_argument("--names", nargs="+", help="names of the systems; default: the files' names")
    parser.add_argument("--output_file", type=Path, help="the figures as JSON")
    args = parser.parse_args(argv)
    names = args.names or [path.stem for path in args.data_file]
    if len(names) != len(args.data_file) or len(set(names)) < len(names):
        parser.error(f"--names: expected {len(args.data_file)} different names, got {' '.join(names)}")
    model = RewardModel.load(args.reward_model)
    results = {}
    for name, path in zip(names, args.data_file, strict=True):
        scores = model.score([conversation(where, row) for where, row in read_lines(str(path))])
        mean = statistics.fmean(scores)
        half = 1.96 * statistics.stdev(scores) / len(scores) ** 0.5 if len(scores) > 1 else 0.0
        results[name] = {"value": mean, "low": mean - half, "high": mean + half, "rows": len(scores)}
        print(f"{name:20s} mean reward {mean:8.3f} ± {half:.3f}  ({len(scores)} answers)")
    if args.output_file:
        write_json(args.output_file, results)
    return results


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    run(main)
