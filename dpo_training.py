"""Preference optimisation without reinforcement learning: DPO and all its losses; KTO, ORPO, SimPO, CPO.

    python dpo_training.py \\
        --model_name_or_path outputs/sft --train_file_dir data/preference --validation_split_ratio 0.1 \\
        --use_peft True --lora_r 16 --learning_rate 5e-5 --beta 0.1 --max_length 1024 --output_dir outputs/dpo

    ... --loss_type ipo                               # hinge, robust, exo_pair, apo_zero, ...: every loss of TRL's DPO
    ... --loss_type sigmoid sft --loss_weights 1 0.2  # several at once
    ... --method orpo                                 # or simpo, cpo, kto

The reference model is the checkpoint that training starts from. With LoRA that is the model with its new adapter
switched off: no second copy. In full training, or over several epochs, its log-probabilities are computed once and
kept on disk. Every option of TRL's `DPOConfig` (`KTOConfig`, `ORPOConfig`, `CPOConfig`) is a flag here too;
`bash run_dpo.sh` holds settings that work.
"""

import argparse
import importlib
import math
import sys
from dataclasses import asdict, dataclass, field
from importlib.metadata import version

from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer

from medical_qwen.arguments import DataArguments, ModelArguments
from medical_qwen.models import load_for_training, tokenizer_for_training
from medical_qwen.records import load_splits
from medical_qwen.rendering import Renderer
from medical_qwen.tokens import drop_unfit, prepare, show_rows
from medical_qwen.training import Measured, finish, parse, run

METHODS = ("dpo", "kto", "orpo", "simpo", "cpo")


@dataclass
class PreferenceArguments(ModelArguments):
    method: str = field(default="dpo", metadata={"help": f"One of {', '.join(METHODS)}.", "choices": METHODS})


@dataclass
class Config(DPOConfig):
    precompute_ref_log_probs: bool | None = field(
        default=None,
        metadata={
            "help": "Compute the reference's log-probabilities once and keep them. Default: where it is cheaper."
        },
    )


class Trainer(Measured, DPOTrainer):
    """TRL's trainer, measured. The rows come tokenized; held-out figures weigh every pair the same.

    But for those that fill up the last batches where several ranks share a number of pairs that they cannot divide.
    """

    def _prepare_dataset(self, dataset, *args):
        return dataset

    def prediction_step(self, model, inputs, *args, **kwargs):
        self._pairs.append(len(inputs["input_ids"]) // 2)
        return super().prediction_step(model, inputs, *args, **kwargs)

    def evaluation_loop(self, *args, **kwargs):
        self._pairs: list[int] = []
        output = super().evaluation_loop(*args, **kwargs)
        for values in self._metrics["eval"].values():  # one per batch, of which the last may be small
            if len(values) == len(self._pairs):
                values[:] = [sum(x * n for x, n in zip(values, self._pairs, strict=True)) / sum(self._pairs)]
        return output


class UnpairedTrainer(Measured, KTOTrainer):
    """KTO (arXiv 2402.01306): each answer by itself is desirable or not."""

    def _prepare_dataset(self, dataset, processing_class, args, name):
        """Two rows of each pair, in random order; the KL term pairs a prompt with its neighbour's answer."""
        rows = dataset.map(unpair, batched=True, remove_columns=dataset.column_names, desc="unpairing")
        rows = rows.shuffle(seed=args.seed)
        if not self.calculate_KL:
            return rows
        return rows.map(rotate, batched=True, batch_size=args.per_device_train_batch_size, desc="mismatching")


class ReferenceFree(Measured):
    """Before TRL's ORPO and CPO trainers: they take the rows as they come, tokenized."""

    def tokenize_row(self, row: dict, model=None) -> dict:
        columns = {"prompt_input_ids": row["prompt_ids"], "prompt_attention_mask": [1] * len(row["prompt_ids"])}
        for name in ("chosen", "rejected"):
            answer = row[f"{name}_ids"]
            columns[f"{name}_input_ids"] = row["prompt_ids"] + answer
            columns[f"{name}_attention_mask"] = [1] * (len(row["prompt_ids"]) + len(answer))
            columns[f"{name}_labels"] = [-100] * len(row["prompt_ids"]) + answer
        return columns

    def get_batch_logps(self, logits, *args, **kwargs):
        return super().get_batch_logps(logits.float(), *args, **kwargs)  # sums over hundreds of tokens

    def training_step(self, model, inputs, *args, **kwargs):
        joined = self.concatenated_inputs(inputs)  # as the model will see it: for the count of tokens
        seen = {name: joined[f"concatenated_{name}"] for name in ("input_ids", "attention_mask")}
        return super().training_step(model, inputs | seen, *args, **kwargs)


def unpair(batch: dict) -> dict:
    return {
        "prompt_ids": batch["prompt_ids"] * 2,
        "completion_ids": batch["chosen_ids"] + batch["rejected_ids"],
        "label": [True] * len(batch["chosen_ids"]) + [False] * len(batch["rejected_ids"]),
    }


def rotate(batch: dict) -> dict:
    return {"KL_completion_ids": batch["completion_ids"][-1:] + batch["completion_ids"][:-1]}


def classes(method: str) -> tuple[type[TrainingArguments], type]:
    """Options and trainer of a method."""
    if method in ("dpo", "kto"):
        return (Config, Trainer) if method == "dpo" else (KTOConfig, UnpairedTrainer)
    name = "ORPO" if method == "orpo" else "CPO"  # SimPO is a loss of TRL's CPO trainer
    try:
        module = importlib.import_module(f"trl.experimental.{name.lower()}")
        config, trainer = getattr(module, f"{name}Config"), getattr(module, f"{name}Trainer")
    except (ImportError, AttributeError) as error:
        raise ValueError(f"--method {method}: TRL {version('trl')} does not offer it ({error})") from error
    return config, type(f"Measured{name}Trainer", (ReferenceFree, trainer), {})


def encode(row: dict, renderer: Renderer, max_length: int | None) -> dict:
    """Token ids of a prompt and of its two answers, and what was cut. No ids: they do not fit."""
    pair, lost = renderer.pair(row["prompt"], (row["chosen"], row["rejected"]), max_length, row.get("tools"))
    prompt, (chosen, rejected) = pair if pair else ([], ([], []))
    length = len(prompt) + max(len(chosen), len(rejected))
    return {"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected, "length": length, **asdict(lost)}


def precomputes(config: Config, use_peft: bool, rows: int, held_out: int = 0) -> bool:
    """Whether the reference reads all rows once, ahead, not in every pass: as asked, or where that is cheaper."""
    fixed = config.ld_alpha is None and not config.sync_ref_model  # TRL's cache does not know ld_alpha
    if config.precompute_ref_log_probs is not None:
        if config.precompute_ref_log_probs and not fixed:
            raise ValueError("--precompute_ref_log_probs does not go together with --ld_alpha or --sync_ref_model")
        return config.precompute_ref_log_probs
    per_step = config.train_batch_size * config.gradient_accumulation_steps * config.world_size
    read = config.max_steps * per_step if config.max_steps > 0 else config.num_train_epochs * rows
    every = config.eval_steps or 1  # a share of all steps, or steps
    evaluations = {
        "steps": 1 / every if every < 1 else read / per_step / every,
        "epoch": read / max(rows, 1),
    }.get(config.eval_strategy, 1)
    read += max(1, math.floor(evaluations)) * held_out
    return fixed and (read > rows + held_out or (read == rows + held_out and not use_peft))


def reference(
    args: PreferenceArguments, config: TrainingArguments, tokenizer: PreTrainedTokenizerBase, rows: int, held_out: int
) -> PreTrainedModel | None:
    """A frozen copy of the starting point, where one is needed: full training without log-probabilities kept."""
    if args.method == "dpo":
        config.precompute_ref_log_probs = precomputes(config, args.use_peft, rows, held_out)
    if args.method not in ("dpo", "kto") or args.use_peft or config.precompute_ref_log_probs:
        return None
    return load_for_training(args, tokenizer, trust_remote_code=config.trust_remote_code)[0].requires_grad_(False)


def main(argv: list[str] | None = None) -> dict:
    argv = sys.argv[1:] if argv is None else argv
    peek = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    peek.add_argument("--method", default="dpo", choices=METHODS)
    method = peek.parse_known_args(argv)[0].method
    config_class, trainer_class = classes(method)
    defaults = ["--loss_type", "simpo", "--cpo_alpha", "0"] if method == "simpo" else []
    model_args, data_args, config = parse(PreferenceArguments, DataArguments, config_class, argv=[*defaults, *argv])
    config.remove_unused_columns = False  # `length` groups rows of like length
    tokenizer = tokenizer_for_training(model_args, config.trust_remote_code)
    renderer = Renderer(tokenizer)
    splits = load_splits(data_args, "preference", config.seed)
    (train, truncation), (held_out, _) = (
        drop_unfit(prepare(part, encode, config, renderer=renderer, max_length=config.max_length), ids="chosen_ids")
        for part in (splits.train, splits.validation)
    )
    show_rows(train, tokenizer, data_args.show_samples)
    model, adapter = load_for_training(model_args, tokenizer, trust_remote_code=config.trust_remote_code)
    frozen = reference(model_args, config, tokenizer, len(train), len(held_out or []))
    trainer = trainer_class(
        model=model,
        **({"ref_model": frozen} if frozen else {}),
        args=config,
        peft_config=adapter,
        train_dataset=train,
        eval_dataset=held_out,
        processing_class=tokenizer,
    )
    return finish(
        trainer,
        stage=method,
        parent=model_args.model_name_or_path,
        data=splits.report.as_dict() | {"truncation": truncation, "max_length": config.max_length},
    )


if __name__ == "__main__":
    run(main)
