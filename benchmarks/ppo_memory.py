"""Peak memory of a PPO step with LoRA against a fine-tuning step with LoRA, at the same batch shape.

    python benchmarks/ppo_memory.py --model_name_or_path MODEL [--gradient_checkpointing True]

Each row is a process that takes a few steps on `--batch` rows of `--prompt_length + --answer_length` tokens:
fine-tuning, PPO with four roles on one base, and PPO in full training, where every role is a model of its own.
What an empty process holds (the interpreter and the libraries) is not counted.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from ppo_speed import make_reward, peak_beyond, resident, write_result

ROOT = Path(__file__).resolve().parents[1]
KINDS = {"sft": "SFT, LoRA", "ppo": "PPO, LoRA, one base", "full": "PPO, full, four models"}


def main() -> None:
    options = parse()
    if options.kind == "prepare":
        make_reward(options.model_name_or_path, Path(options.folder))
    elif options.kind:
        print(measure(options))
    if options.kind:
        return
    with tempfile.TemporaryDirectory() as folder:
        peaks = {}
        for kind in ("prepare", *KINDS):
            command = [sys.executable, __file__, *sys.argv[1:], "--kind", kind, "--folder", folder]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            peaks[kind] = next((int(line) for line in reversed(done.stdout.splitlines()) if line.isdigit()), 0)
    print(f"{'':28}{'peak':>12}{'as against SFT':>18}")
    for kind, name in KINDS.items():
        print(f"{name:28}{peaks[kind] / 2**20:>8.0f} MiB{peaks[kind] / peaks['sft']:>18.2f}")
    write_result(
        "ppo_memory",
        {"settings": {name: value for name, value in vars(options).items() if name not in ("kind", "folder")}}
        | {
            kind: {"mib": round(peaks[kind] / 2**20), "ratio_to_sft": round(peaks[kind] / peaks["sft"], 3)}
            for kind in KINDS
        },
    )


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_name_or_path", default=str(ROOT.parent / "shared" / "models" / "minimind2-small"))
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--prompt_length", type=int, default=256)
    parser.add_argument("--answer_length", type=int, default=128)
    parser.add_argument("--rollout", type=int, default=2, help="batches per rollout")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--gradient_checkpointing", default="False")
    parser.add_argument("--kind", choices=("prepare", *KINDS), help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    return parser.parse_args()


def measure(options: argparse.Namespace) -> int:
    """Bytes."""
    sys.path.insert(0, str(ROOT))
    import torch

    from medical_qwen.arguments import ModelArguments
    from medical_qwen.models import load_tokenizer

    torch.manual_seed(0)
    tokenizer = load_tokenizer(options.model_name_or_path)
    model_args = ModelArguments(
        model_name_or_path=options.model_name_or_path, use_peft=options.kind != "full", dtype=options.dtype
    )
    trainer = sft if options.kind == "sft" else ppo
    importing(options.kind)
    start = resident("VmRSS")
    trainer(options, tokenizer, model_args).train()
    return peak_beyond(start)


def importing(kind: str) -> None:
    """Load the libraries that are used, so that they do not count."""
    if kind == "sft":
        from trl import SFTTrainer  # noqa: F401
    else:
        from medical_qwen.ppo import PPOTrainer  # noqa: F401


def shared_settings(options: argparse.Namespace) -> dict:
    return {
        "output_dir": f"{options.folder}/{options.kind}",
        "per_device_train_batch_size": options.batch,
        "gradient_checkpointing": options.gradient_checkpointing == "True",
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
    }


def tokens(number: int, options: argparse.Namespace, length: int, size: int):
    import torch

    return torch.randint(5, size, (number, length)).tolist()


def sft(options: argparse.Namespace, tokenizer, model_args):
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    from medical_qwen.models import load_for_training

    model, adapter = load_for_training(model_args, tokenizer)
    ids = tokens(4 * options.batch, options, options.prompt_length + options.answer_length, model.config.vocab_size)
    labels = [[-100] * options.prompt_length + row[options.prompt_length :] for row in ids]
    config = SFTConfig(**shared_settings(options), max_steps=2, max_length=None, bf16=options.dtype == "bfloat16")
    data = Dataset.from_dict({"input_ids": ids, "labels": labels})
    return SFTTrainer(model=model, args=config, train_dataset=data, processing_class=tokenizer, peft_config=adapter)


def ppo(options: argparse.Namespace, tokenizer, model_args):
    from datasets import Dataset

    from medical_qwen.ppo import PPOConfig, PPOTrainer, load_ppo_model

    model = load_ppo_model(model_args, tokenizer, f"{options.folder}/adapter")
    config = PPOConfig(
        **shared_settings(options),
        gradient_accumulation_steps=options.rollout,
        per_device_eval_batch_size=options.batch,
        max_completion_length=options.answer_length,
        num_ppo_epochs=2,
        max_steps=2,
        max_kl=1e9,
        log_samples_steps=0,
        bf16=options.dtype == "bfloat16",
    )
    ids = tokens(4 * options.batch * options.rollout, options, options.prompt_length, model.config.vocab_size)
    data = Dataset.from_list([{"prompt": [{"role": "user", "content": ""}], "prompt_ids": row} for row in ids])
    trainer = PPOTrainer(model, config, data, processing_class=tokenizer)
    trainer.experience.stop_ids = []  # every answer has its full length
    return trainer


if __name__ == "__main__":
    main()
