"""One PPO step (rollout and update) of this project against TRL 1.12's `trl.experimental.ppo`, in turns.

    python -m venv /somewhere/trl112 && /somewhere/trl112/bin/pip install trl==1.12.0 peft==0.21.2 torch==2.13.0
    python benchmarks/ppo_speed.py --trl_python /somewhere/trl112/bin/python --model_name_or_path MODEL

Each side runs in a process of its own and does one step when it is told to, so that a busy machine slows both. Same
base model, prompts (in each round the same ones), batch, answer length (end tokens are ignored: every answer has the
full length), PPO epochs and precision. Prompts are the questions of --train_file_dir with their history, of natural
length: of as many passes over as many rows, ours put few long rows or many short ones into one. With --prompt_length
all have one length, and there is no padding to save. Both train a LoRA adapter of the same rank as their policy, or
all weights with --full. Reward model, value model and reference are of the base's size: adapters on one base here,
models of their own there (TRL's reference with LoRA is the base, too; its value model is trained in full).

Prints the seconds per step of each side, the median of the step-by-step ratios with its range, and the memory that
each took beyond an empty process.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    options = parse()
    if options.worker:
        {"prepare": prepare, "ours": ours, "trl": trl}[options.worker](options)
        return
    with tempfile.TemporaryDirectory() as folder:
        options.folder = folder
        subprocess.run([sys.executable, __file__, *flags(options, "prepare")], check=True)
        sides = {
            name: Side(python, options, name)
            for name, python in (("ours", sys.executable), ("trl", options.trl_python))
        }
        for name, side in sides.items():
            side.step()  # warm-up
            print(f"{name}: ready", file=sys.stderr)
        seconds: dict[str, list[float]] = {name: [] for name in sides}
        for _ in range(options.steps):
            for name, side in sides.items():
                seconds[name].append(side.step())
                print(f"{name}: {seconds[name][-1]:.2f} s", file=sys.stderr, flush=True)
        memory = {name: side.finish() for name, side in sides.items()}
    ratios = [theirs / mine for mine, theirs in zip(seconds["ours"], seconds["trl"], strict=True)]
    print(f"{'':10}{'seconds per step':>24}{'memory':>14}")
    for name in sides:
        low, middle, high = min(seconds[name]), statistics.median(seconds[name]), max(seconds[name])
        print(f"{name:10}{f'{middle:.2f} ({low:.2f} to {high:.2f})':>24}{memory[name] / 2**20:>10.0f} MiB")
    print(
        f"TRL / ours: time {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}), "
        f"memory {memory['trl'] / memory['ours']:.2f}; {options.steps} steps each"
    )
    write_result(
        f"ppo_speed_{Path(options.model_name_or_path).name}" + ("_full" if options.full else ""),
        {
            "settings": {name: value for name, value in vars(options).items() if name not in ("worker", "folder")},
            "seconds_per_step": {name: [round(value, 2) for value in values] for name, values in seconds.items()},
            "time_ratio": {"median": statistics.median(ratios), "lowest": min(ratios), "highest": max(ratios)},
            "memory_mib": {name: round(value / 2**20) for name, value in memory.items()},
            "memory_ratio": memory["trl"] / memory["ours"],
        },
    )


def write_result(name: str, figures: dict) -> None:
    """To benchmarks/results/NAME.json; paths are kept as names of files."""
    figures["settings"] = {
        key: Path(value).name if isinstance(value, str) and "/" in value else value
        for key, value in figures["settings"].items()
    }
    revision = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"]
    figures["git_revision"] = subprocess.run(revision, capture_output=True, text=True).stdout.strip()
    target = ROOT / "benchmarks" / "results" / f"{name}.json"
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_name_or_path", default=str(ROOT.parent / "shared" / "models" / "minimind2-small"))
    parser.add_argument("--trl_python", default=sys.executable, help="python of an environment with trl==1.12.0")
    parser.add_argument("--train_file_dir", default=str(ROOT / "data" / "sft"))
    parser.add_argument("--steps", type=int, default=7)
    parser.add_argument("--batch", type=int, default=4, help="rows per forward pass in the update")
    parser.add_argument("--accumulation", type=int, default=4, help="batches per rollout")
    parser.add_argument(
        "--rollout_batch", type=int, default=8, help="rows at a time when answers are written and judged"
    )
    parser.add_argument("--ppo_epochs", type=int, default=4)
    parser.add_argument("--prompt_length", type=int, default=0, help="of all prompts; 0: natural, up to 512")
    parser.add_argument("--answer_length", type=int, default=64)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--full", action="store_true", help="train all weights instead of a LoRA adapter")
    parser.add_argument("--worker", choices=("prepare", "ours", "trl"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    return parser.parse_args()


def flags(options: argparse.Namespace, worker: str) -> list[str]:
    values = {**vars(options), "worker": worker}
    full = ["--full"] if values.pop("full") else []
    return [word for name, value in values.items() for word in (f"--{name}", str(value))] + full


class Side:
    """A process that trains one step at a time, on demand."""

    def __init__(self, python: str, options: argparse.Namespace, name: str) -> None:
        self.name = name
        self.process = subprocess.Popen(
            [python, __file__, *flags(options, name)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.result: dict = {}

    def step(self) -> float:
        """Let it do one step; seconds."""
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith('{"seconds"'):
                self.result = json.loads(line)
                return self.result["seconds"]
        raise SystemExit(f"{self.name} ended early, with code {self.process.wait()}")

    def finish(self) -> int:
        """Peak memory in bytes beyond the empty process."""
        self.process.kill()
        self.process.wait()
        return self.result["peak"]


# --- in the workers -----------------------------------------------------------------------------------------------


def resident(field: str) -> int:
    """VmRSS (now) or VmHWM (peak) of this process in bytes."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def peak_beyond(start: int) -> int:
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resident("VmHWM") - start


def stepper(start: int, steps_per_rollout: int):
    """A callback that waits for a line on stdin before each rollout and reports the time of the one before."""
    import torch
    from transformers import TrainerCallback

    class Stepper(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            self.wait()

        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step % steps_per_rollout == 0:
                if torch.cuda.is_available():
                    torch.cuda.synchronize()
                report = {"seconds": time.perf_counter() - self.began, "peak": peak_beyond(start)}
                print(json.dumps(report), flush=True)
                self.wait()

        def wait(self):
            if not sys.stdin.readline():
                sys.exit()
            self.began = time.perf_counter()

    return Stepper()


def load_prompts(options: argparse.Namespace) -> list[list[int]]:
    return json.loads((Path(options.folder) / "prompts.json").read_text())


def prepare(options: argparse.Namespace) -> None:
    """Write the prompts, and a reward model."""
    sys.path.insert(0, str(ROOT))
    from medical_qwen.arguments import DataArguments
    from medical_qwen.models import load_tokenizer
    from medical_qwen.records import load_splits
    from medical_qwen.rendering import Renderer

    renderer, size = Renderer(load_tokenizer(options.model_name_or_path)), options.prompt_length
    splits = load_splits(DataArguments(train_file_dir=options.train_file_dir), "prompt", seed=0)
    ids = [renderer.prompt(row["prompt"], row.get("tools"), 512) for row in splits.train]
    if size:
        stream = [token for prompt in ids for token in prompt]
        ids = [stream[i : i + size] for i in range(0, len(stream) - size, size)]
    random.Random(0).shuffle(ids)
    (Path(options.folder) / "prompts.json").write_text(json.dumps(ids))
    make_reward(options.model_name_or_path, Path(options.folder))


def make_reward(base: str, folder: Path) -> None:
    """A reward model with random weights: `adapter` on the base, and `reward`, the same merged."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    model.config.pad_token_id = tokenizer.pad_token_id
    adapter = LoraConfig(task_type="SEQ_CLS", r=16, lora_alpha=32, target_modules="all-linear")
    model = get_peft_model(model, adapter)
    for part in (model, tokenizer):
        part.save_pretrained(folder / "adapter")
    for part in (model.merge_and_unload(), tokenizer):
        part.save_pretrained(folder / "reward")


def ours(options: argparse.Namespace) -> None:
    sys.path.insert(0, str(ROOT))
    from datasets import Dataset

    from medical_qwen.arguments import ModelArguments
    from medical_qwen.models import load_tokenizer
    from medical_qwen.ppo import PPOConfig, PPOTrainer, load_ppo_model

    tokenizer = load_tokenizer(options.model_name_or_path)
    prompts = [{"prompt": [{"role": "user", "content": ""}], "prompt_ids": ids} for ids in load_prompts(options)]
    start = resident("VmRSS")
    arguments = ModelArguments(
        model_name_or_path=options.model_name_or_path, use_peft=not options.full, lora_r=16, dtype=options.dtype
    )
    reward = Path(options.folder) / ("reward" if options.full else "adapter")
    config = PPOConfig(
        output_dir=f"{options.folder}/ours",
        per_device_train_batch_size=options.batch,
        gradient_accumulation_steps=options.accumulation,
        num_ppo_epochs=options.ppo_epochs,
        per_device_eval_batch_size=options.rollout_batch,
        max_completion_length=options.answer_length,
        rollout_batch_size=options.rollout_batch,  # prompts of like length together: less padding
        max_steps=10_000,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        logging_strategy="no",
        log_samples_steps=0,
        gradient_checkpointing=False,
        max_kl=1e9,
    )

    class InOrder(PPOTrainer):
        def _prompts(self, number: int) -> list[dict]:
            size = self.args.local_rollout_size
            return [prompts[i % len(prompts)] for i in range(number * size, (number + 1) * size)]

    trainer = InOrder(
        load_ppo_model(arguments, tokenizer, str(reward)),
        config,
        Dataset.from_list(prompts),
        processing_class=tokenizer,
        callbacks=[stepper(start, options.ppo_epochs)],
    )
    trainer.experience.stop_ids = []
    trainer.train()


def trl(options: argparse.Namespace) -> None:
    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
    from trl import __version__
    from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

    if not __version__.startswith("1.12."):
        raise SystemExit(f"--trl_python has TRL {__version__}: the comparison is with 1.12")

    def in_order(*args, shuffle=True, **kwargs):
        return torch.utils.data.DataLoader(*args, shuffle=False, **kwargs)

    ppo_trainer.DataLoader = in_order
    tokenizer = AutoTokenizer.from_pretrained(options.model_name_or_path, padding_side="left")
    prompts = Dataset.from_list([{"input_ids": ids} for ids in load_prompts(options)])
    start, dtype = resident("VmRSS"), getattr(torch, options.dtype)

    def load(path, kind, **kwargs):
        return kind.from_pretrained(path, dtype=dtype, **kwargs)

    rows = options.batch * options.accumulation
    config = PPOConfig(
        output_dir=f"{options.folder}/trl",
        per_device_train_batch_size=options.batch,
        gradient_accumulation_steps=options.accumulation,
        num_ppo_epochs=options.ppo_epochs,
        num_mini_batches=1,
        local_rollout_forward_batch_size=options.rollout_batch,
        response_length=options.answer_length,
        temperature=1.0,
        total_episodes=10_000 * rows,
        num_sample_generations=0,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        bf16=torch.cuda.is_available(),
        gradient_checkpointing=False,
    )
    reward = f"{options.folder}/reward"
    adapter = LoraConfig(task_type="CAUSAL_LM", r=16, lora_alpha=32, target_modules="all-linear")
    trainer = PPOTrainer(
        config,
        tokenizer,
        load(options.model_name_or_path, AutoModelForCausalLM),
        load(options.model_name_or_path, AutoModelForCausalLM) if options.full else None,
        load(reward, AutoModelForSequenceClassification, num_labels=1),
        prompts,
        load(reward, AutoModelForSequenceClassification, num_labels=1),
        eval_dataset=prompts,
        peft_config=None if options.full else adapter,
        callbacks=[stepper(start, 1)],
    )
    trainer.train()


if __name__ == "__main__":
    main()
