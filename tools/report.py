"""The result of run_pipeline.sh on one page: `report.md` and its plots, from what the steps left in the output folder.

python tools/report.py --output outputs/pipeline
"""

import argparse
import json
import logging
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from medical_qwen.evaluation import read_lines
from medical_qwen.metrics import wilson_interval
from medical_qwen.training import plot_loss, run

NOTICE = "Sample texts of a language model. They may be wrong; none of this is medical advice."
ANSWER_SCORES = (
    ("character", "corpus", "BLEU-1"),
    ("character", "corpus", "BLEU-4"),
    ("character", "corpus", "ROUGE-1"),
    ("character", "corpus", "ROUGE-L"),
    ("word", "corpus", "BLEU-4"),
    ("word", "corpus", "ROUGE-L"),
)
STAGE_FIGURES = ("train_loss", "eval_loss", "tokens_seen", "tokens_per_second", "padding_share", "peak_memory_gib",
                 "wall_seconds")  # fmt: skip
MARGINS = ("eval_margin", "eval_rewards/margins")
NEWLINE = "\n"


def read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def score_table(output: Path) -> tuple[list[str], dict[str, dict[str, float]], dict[str, dict[str, str]]]:
    """The systems, and for each score the value (for plots) and the text (with its interval) of every system."""
    scores = output / "scores"
    values: dict[str, dict[str, float]] = {}
    texts: dict[str, dict[str, str]] = {}

    def put(score: str, system: str, value: float, low: float | None = None, high: float | None = None) -> None:
        values.setdefault(score, {})[system] = value
        interval = "" if low is None else f" [{low:.2f}, {high:.2f}]"
        texts.setdefault(score, {})[system] = f"{value:.2f}{interval}"

    perplexity = read(scores / "perplexity.json")
    for system, found in perplexity.items():
        put("perplexity of the references ↓", system, found["perplexity"])
    for system, found in read(scores / "answers.json")["systems"].items():
        for level, average, name in ANSWER_SCORES:
            score = found[level][average][name]
            put(f"{name}, by {level} ↑", system, score["value"], score["low"], score["high"])
        put("empty answers", system, found["empty_predictions"])
        put("length ratio (1 is best)", system, found["character"]["length_ratio"])
        put("repeated 4-grams % ↓", system, found["character"]["repetition-4"])
    if (scores / "reward.json").is_file():
        for system, found in read(scores / "reward.json").items():
            put("reward model's score ↑", system, found["value"], found["low"], found["high"])
    for task, title in (("exam", "exam accuracy % ↑"), ("calculations", "calculation accuracy % ↑")):
        if (scores / f"{task}.json").is_file():
            for system, found in read(scores / f"{task}.json")["systems"].items():
                put(title, system, found["accuracy"]["value"], found["accuracy"]["low"], found["accuracy"]["high"])
    for system, accuracy in (("rm", "eval_accuracy"), ("dpo", "eval_rewards/accuracies")):
        file = output / system / "run_summary.json"
        summary = read(file) if file.is_file() else {"metrics": {}}
        if accuracy in summary["metrics"]:
            share, pairs = summary["metrics"][accuracy], summary["data"]["validation"]
            interval = wilson_interval(round(share * pairs), pairs)
            put("pair accuracy % ↑", system, 100 * share, *(100 * x for x in interval))
            texts["pair accuracy % ↑"][system] += f" of {pairs}"
    return [*perplexity, *(["rm"] if "rm" in values.get("pair accuracy % ↑", {}) else [])], values, texts


def markdown_table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def samples(answers: Path, systems: list[str], number: int) -> str:
    """The first questions with the reference and what every system said."""
    files = {name: [row for _, row in read_lines(str(answers / f"{name}.jsonl"))] for name in systems}
    parts = []
    for i, first in enumerate(files[systems[0]][:number]):
        rows = {name: lines[i] for name, lines in files.items()}
        parts.append(f"**{first['question']}**\n\n*reference*: {first['answer']}\n")
        parts += [f"*{name}*: {row['prediction'].strip() or '(empty)'}\n" for name, row in rows.items()]
    return "\n".join(parts)


def plot_scores(values: dict[str, dict[str, float]], systems: list[str], path: Path) -> None:
    """Bars of the systems, a panel a score; scores that nobody gets above zero are left out."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    shown = [score for score in values if score.endswith(("↑", "↓")) and any(values[score].values())]
    across = min(4, len(shown))
    down = -(-len(shown) // across)
    figure, panels = plt.subplots(down, across, figsize=(3 * across, 2.8 * down), dpi=120, squeeze=False)
    for panel, score in zip(panels.flat, shown, strict=False):
        names = [name for name in systems if name in values[score]]
        bars = panel.bar(names, [values[score][name] for name in names], color="#3b7ea1")
        panel.bar_label(bars, fmt="%.3g", fontsize=8)
        title = score.removesuffix(" ↓").removesuffix(" ↑")
        panel.set_title(f"{title}\n({'lower' if score.endswith('↓') else 'higher'} is better)", fontsize=9)
        panel.tick_params(labelsize=8)
        panel.margins(y=0.15)
        panel.spines[["top", "right"]].set_visible(False)
    for panel in list(panels.flat)[len(shown) :]:
        panel.set_visible(False)
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)


def report(output: Path, sample_number: int = 3) -> str:
    """Write the plots and return the text of report.md."""
    systems, values, texts = score_table(output)
    plot_scores(values, systems, output / "scores.png")
    stages = [name for name in systems if (output / name / "run_summary.json").is_file()]
    summaries = {name: read(output / name / "run_summary.json") for name in stages}
    for name in stages:
        plot_loss(read(output / name / "trainer_state.json")["log_history"], output / name / "loss.png")
    figures, learned = [], []
    for name, summary in summaries.items():
        known = {key: value for key, value in (summary | summary["metrics"]).items() if value is not None}
        figures.append([name, f"`{summary['parent']}`", str(summary["steps"])]
                       + [f"{known[key]:,.4g}" if key in known else "" for key in STAGE_FIGURES])  # fmt: skip
        learned += [f"- {name}: {key} {known[key]:.4g}" for key in MARGINS if key in known]
    rows = next(iter(read(output / "scores" / "answers.json")["systems"].values()))["rows"]
    curves = "\n".join(f"![loss of {name}]({name}/loss.png)" for name in stages)
    score_rows = [[score, *(texts[score].get(name, "") for name in systems)] for score in texts]
    return f"""# Report

{NOTICE}

## Scores on {rows} held-out questions

{markdown_table(["score", *systems], score_rows)}

In brackets: 95 % intervals (of BLEU and ROUGE by bootstrap over the questions, of shares by Wilson's formula, of the
reward from its standard error). ↑ higher is better, ↓ lower is better. Pair accuracy: how often the reward model, or
DPO's own reward, ranks the chosen answer of so many held-out preferences first.

![scores](scores.png)

## Training

{markdown_table(["stage", "from", "steps", *STAGE_FIGURES], figures)}

{NEWLINE.join(learned)}

{curves}

## Answers

{samples(output / "answers" / "heldout_qa", [name for name in systems if name != "rm"], sample_number)}
## Files

- checkpoints: {", ".join(f"`{name}/`" for name in stages)}
- answers: `answers/heldout_qa/`, `answers/exam/`, `answers/calculations/`, a file a system
- scores: `scores/`; of the answers row by row in `scores/answers_rows.jsonl`
"""


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="output folder of run_pipeline.sh")
    args = parser.parse_args(argv)
    text = report(args.output)
    beside = args.output / ".report.md.tmp"
    beside.write_text(text, encoding="utf-8")
    os.replace(beside, args.output / "report.md")
    print(text.split("## Training")[0])
    print(f"the whole report: {args.output / 'report.md'}")


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    run(main)
