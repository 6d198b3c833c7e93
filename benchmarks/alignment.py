"""Do the alignment stages do what their names say? Real runs of the stage scripts on a small real model.

    python benchmarks/alignment.py --model_name_or_path MODEL --pairs dpo_zh_500.jsonl --output outputs/alignment

For the time of a CPU, those pairs are taken whose longer answer with its prompt is at most --longest tokens, and
those questions for PPO that are at most --longest_prompt tokens.

* rm: reward model; accuracy on held-out pairs with its 95 % interval.
* dpo: reward accuracy and margin on held-out pairs, over the steps. A third of the pairs is held out in turn, so that
  all of them count: with a third alone an accuracy of 0.6 cannot be told from chance.
* grpo: 24 exam questions with one right option, rewarded for beginning with option letters and for the right one; mean
  reward over the steps. A model of this size cannot know the answers: what it is to do is to learn these by heart.
* ppo: three seeds against the reward model of `rm`; its score on 256 held-out questions, and the KL, over the steps.
  For the time of a CPU answers are cut off after 24 tokens: what is scored are beginnings of answers.

Every run is a command that is printed and kept with the figures; one that is complete is not run again. Figures and
curves go to `benchmarks/results/alignment.json` and `alignment.png`.
"""

import argparse
import json
import random
import shlex
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from medical_qwen.metrics import wilson_interval

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
SHARED = ROOT.parent / "shared"
LORA = ["--use_peft", "True", "--lora_r", "16", "--lora_alpha", "32", "--gradient_checkpointing", "False"]
QUIET = ["--report_to", "none", "--logging_steps", "1", "--save_strategy", "no", "--disable_tqdm", "True"]
HELD_OUT = ["--validation_split_ratio", "0.35"]
FORM = r"[A-E]+(?:[.、：:。，,\s].*)?"  # begins with the letters
SYSTEM = "第一个字就写选项字母，例如“B”，然后写理由。"
QUESTIONS = 24  # of the exam
HELD_OUT_QUESTIONS = 256
SEEDS = (1, 2, 3)
FOLDS = (1, 2, 3)
TARGET_KL = 8  # nats per answer
COMMAND = "command.txt"  # in the folder of a run


def commands(options: argparse.Namespace) -> dict[str, list[str]]:
    """Name of a run -> its script and flags."""
    model = ["--model_name_or_path", options.model_name_or_path, *LORA, *QUIET]
    pairs = ["--train_file_dir", str(Path(options.output) / "pairs.jsonl"), *HELD_OUT]
    length = str(options.longest + 64)  # and the template's tokens
    each = ["--eval_strategy", "steps", "--eval_on_start", "True"]
    found = {
        "rm": ["reward_modeling.py", *model, *pairs, "--max_length", length, "--num_train_epochs", "2",
               "--per_device_train_batch_size", "8", "--learning_rate", "3e-4", "--lr_scheduler_type", "cosine",
               "--train_sampling_strategy", "group_by_length", *each, "--eval_steps", "20"],
        "grpo": ["grpo_training.py", *model, "--train_file_dir", str(Path(options.output) / "exam.jsonl"),
                 "--reward_funcs", f"format(format_pattern={FORM!r})", "choice", "--system_prompt", SYSTEM,
                 "--num_generations", "8", "--per_device_train_batch_size", "64", "--temperature", "1.0",
                 "--max_completion_length", "6", "--max_steps", "60", "--learning_rate", "1e-4",
                 "--lr_scheduler_type", "constant_with_warmup", "--warmup_steps", "3", "--beta", "0.0"],
    }  # fmt: skip
    for fold in FOLDS:
        found[f"dpo-{fold}"] = [
            "dpo_training.py", *model, "--train_file_dir", str(Path(options.output) / f"pairs_without_{fold}.jsonl"),
            "--validation_file_dir", str(Path(options.output) / f"pairs_{fold}.jsonl"), "--max_length", length,
            "--num_train_epochs", "1", "--per_device_train_batch_size", "2", "--gradient_accumulation_steps", "4",
            "--learning_rate", "5e-5", "--lr_scheduler_type", "cosine", "--warmup_steps", "0.1",
            "--train_sampling_strategy", "group_by_length", "--beta", "0.1", *each, "--eval_steps", "15",
            "--per_device_eval_batch_size", "1",  # the accuracy is a mean over batches
        ]  # fmt: skip
    for seed in SEEDS:
        found[f"ppo-{seed}"] = [
            "ppo_training.py", *model, "--train_file_dir", str(Path(options.output) / "prompts.jsonl"),
            "--validation_file_dir", str(Path(options.output) / "held_out_prompts.jsonl"),
            "--reward_model_path", str(Path(options.output) / "rm"),
            "--max_prompt_length", "128", "--max_completion_length", "24", "--per_device_train_batch_size", "16",
            "--gradient_accumulation_steps", "8", "--num_ppo_epochs", "2", "--max_steps", "20", "--learning_rate",
            "3e-4", "--value_learning_rate", "5e-4", "--lr_scheduler_type", "cosine", "--lam", "1.0",
            "--target_kl", str(TARGET_KL), "--kl_horizon", "1000", "--kl_coef", "0.1", "--rollout_batch_size", "128",
            "--per_device_eval_batch_size", "16", *each, "--eval_steps", "10", "--seed", str(seed),
        ]  # fmt: skip
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_name_or_path", default=str(SHARED / "models" / "minimind2-small"))
    parser.add_argument("--pairs", default=str(SHARED / "data" / "medicalgpt" / "reward" / "dpo_zh_500.jsonl"))
    questions = SHARED / "data" / "medicalgpt" / "sft" / "medical_sft_1K_format.jsonl"
    parser.add_argument("--questions", default=str(questions), help="of PPO")
    parser.add_argument("--output", default=str(ROOT / "outputs" / "alignment"))
    parser.add_argument("--longest", type=int, default=640)
    parser.add_argument("--longest_prompt", type=int, default=20)
    parser.add_argument("--only", nargs="+", help="names of runs")
    options = parser.parse_args()
    select(options)
    for name, command in commands(options).items():
        folder = Path(options.output) / name
        if options.only and name not in options.only:
            continue
        command = [*command, "--output_dir", str(folder)]
        told = shlex.join(["python", *command]).replace(f"{ROOT}/", "").replace(str(SHARED), "../shared")
        if (folder / "run_summary.json").is_file():
            if (folder / COMMAND).read_text(encoding="utf-8") != told:
                sys.exit(f"{folder} holds the run of another command: {folder / COMMAND}")
            continue
        print(told, flush=True)
        subprocess.run([sys.executable, *command], cwd=ROOT, check=True)
        (folder / COMMAND).write_text(told, encoding="utf-8")
    report(Path(options.output))


def select(options: argparse.Namespace) -> None:
    """Write the pairs and the questions that are short enough, and the first exam questions with one right option."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(options.model_name_or_path)

    def asked(row: dict) -> str:
        return "".join(turn["value"] for turn in row["conversations"] if turn["from"] != "gpt")

    def short(line: str, limit: int, *answers: str) -> bool:
        row = json.loads(line)
        texts = [asked(row) + row[answer] for answer in answers] or [asked(row)]
        return max(map(len, tokenizer(texts, add_special_tokens=False)["input_ids"])) <= limit

    pairs, questions, exam = (
        Path(path).read_text(encoding="utf-8").splitlines()
        for path in (options.pairs, options.questions, ROOT / "data" / "grpo" / "exam.jsonl")
    )
    questions = [line for line in questions if short(line, options.longest_prompt)]
    pairs = [line for line in pairs if short(line, options.longest, "chosen", "rejected")]
    shuffled = random.Random(0).sample(pairs, len(pairs))
    folds = {fold: shuffled[fold - 1 :: len(FOLDS)] for fold in FOLDS}
    files = {
        "pairs": pairs,
        "prompts": questions[HELD_OUT_QUESTIONS:],
        "held_out_prompts": questions[:HELD_OUT_QUESTIONS],  # the same ones for every seed
        "exam": [line for line in exam if len(json.loads(line)["answer"]) == 1][:QUESTIONS],
    }
    for fold, held_out in folds.items():
        rest = [line for other, lines in folds.items() if other != fold for line in lines]
        files |= {f"pairs_{fold}": held_out, f"pairs_without_{fold}": rest}
    Path(options.output).mkdir(parents=True, exist_ok=True)
    for name, kept in files.items():
        (Path(options.output) / f"{name}.jsonl").write_text("\n".join(kept) + "\n", encoding="utf-8")
        print(f"{name}: {len(kept)} rows", flush=True)


def report(output: Path) -> None:
    histories = {
        path.parent.name: json.loads(path.read_text(encoding="utf-8"))["log_history"]
        for path in sorted(output.glob("*/trainer_state.json"))
    }
    results = {}
    for name, history in histories.items():
        summary = json.loads((output / name / "run_summary.json").read_text(encoding="utf-8"))
        command = (output / name / COMMAND).read_text(encoding="utf-8")
        results[name] = {"command": command, "git_revision": summary["git_revision"], **figures(name, history)}
        if name.startswith("dpo-"):
            results[name]["eval_pairs"] = summary["data"]["validation"]
    if folds := [found for name, found in results.items() if name.startswith("dpo-")]:
        results["dpo"] = pooled(folds)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "alignment.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(results, indent=2))
    plot(histories, RESULTS / "alignment.png")


def pooled(folds: list[dict]) -> dict:
    """Accuracy over the pairs of all folds, with its 95 % interval, and the mean margin, after training."""
    right, margin, pairs = 0, 0.0, sum(fold["eval_pairs"] for fold in folds)
    for fold in folds:
        right += round(fold["eval_rewards/accuracies"]["last"] * fold["eval_pairs"])
        margin += fold["eval_rewards/margins"]["last"] * fold["eval_pairs"]
    low, high = wilson_interval(right, pairs)
    figures = {"accuracy": right / pairs, "accuracy_low": low, "accuracy_high": high, "margin": margin / pairs}
    return {"eval_pairs": pairs} | {f"eval_{name}": round(value, 4) for name, value in figures.items()}


def curve(history: list[dict], key: str) -> list[tuple[int, float]]:
    return [(row["step"], row[key]) for row in history if key in row]


def figures(name: str, history: list[dict]) -> dict:
    """What a run has to show: first and last value of each curve; for GRPO means of the first 2 and last 10 steps."""
    kind = name.partition("-")[0]
    found = {}
    for key in CURVES[kind]:
        values = [value for _, value in curve(history, key)]
        ends = (values[0], values[-1]) if kind != "grpo" else (sum(values[:2]) / 2, sum(values[-10:]) / 10)
        found[f"curve of {key}"] = [[step, round(value, 4)] for step, value in curve(history, key)]
        found[key] = {"first": round(ends[0], 4), "last": round(ends[1], 4), "highest": round(max(values), 4)}
    if kind == "rm":
        last = next(row for row in reversed(history) if "eval_accuracy" in row)
        found |= {key: last[key] for key in ("eval_pairs", "eval_accuracy_low", "eval_accuracy_high")}
    if kind == "grpo":
        reward = found["reward"]
        found["share_of_the_gap"] = round((reward["last"] - reward["first"]) / (2 - reward["first"]), 4)
    if kind == "ppo":  # of a mean over the held-out questions
        last = [value for _, value in curve(history, "eval_reward_std")][-1]
        found["eval_reward_standard_error"] = round(last / HELD_OUT_QUESTIONS**0.5, 4)
    found["steps"] = max(row["step"] for row in history)
    return found


CURVES = {
    "rm": ["eval_accuracy", "eval_margin"],
    "dpo": ["eval_rewards/accuracies", "eval_rewards/margins", "eval_loss"],
    "grpo": ["reward"],
    "ppo": ["eval_reward", "eval_kl", "kl", "reward"],
}


LABELS = {"dpo": "fold", "ppo": "seed"}


def plot(histories: dict[str, list[dict]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    panels = [
        ("rm", "eval_accuracy", "reward model: pair accuracy, held out"),
        ("dpo", "eval_rewards/accuracies", "DPO: reward accuracy, held out"),
        ("dpo", "eval_rewards/margins", "DPO: reward margin, held out"),
        ("grpo", "reward", "GRPO: reward of a step (form + right letter, at most 2)"),
        ("ppo", "eval_reward", "PPO: score of the reward model, held out"),
        ("ppo", "kl", "PPO: KL to the reference, nats per answer"),
    ]
    figure, axes = plt.subplots(2, 3, figsize=(13, 7), dpi=110)
    for axis, (kind, key, title) in zip(axes.flat, panels, strict=True):
        for name, history in histories.items():
            if name.partition("-")[0] == kind:
                axis.plot(*zip(*curve(history, key), strict=True), label=f"{LABELS.get(kind, kind)} {name[-1]}")
        axis.set(title=title, xlabel="step")
        axis.grid(alpha=0.3)
        if kind in LABELS:
            axis.legend()
    axes.flat[5].axhline(TARGET_KL, linestyle="--", color="grey", linewidth=1)
    figure.tight_layout()
    figure.savefig(path)


if __name__ == "__main__":
    main()
