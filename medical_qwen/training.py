"""How a run goes: parse, log, resume, train, evaluate, save on every rank, and tell what happened.

A stage script shows its stage and leaves this to us:

    model_args, data_args, config = parse(ModelArguments, DataArguments, SFTConfig)
    ...
    class Trainer(Measured, SFTTrainer): ...
    finish(trainer, stage="sft", ...)
"""

import json
import logging
import math
import os
import platform
import resource
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from transformers import HfArgumentParser, Trainer, TrainingArguments, set_seed
from transformers.trainer_pt_utils import BatchRebalanceSampler
from transformers.utils import logging as hf_logging

from medical_qwen.arguments import ALIASES, WITHOUT_EFFECT
from medical_qwen.checkpoints import Resumable, WrittenBy, checkpoints, last_complete_checkpoint
from medical_qwen.tokens import SeededOrder

logger = logging.getLogger(__name__)

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("torch", "transformers", "trl", "peft", "datasets", "accelerate")


def run(main: Callable[[], None]) -> None:
    """Call a script's `main`. An error that this project raises itself is a message, not a traceback; exit code 1."""
    try:
        main()
    except (ValueError, FileNotFoundError, ImportError) as error:
        raised_in = Path(traceback.extract_tb(error.__traceback__)[-1].filename).resolve()
        if ROOT not in raised_in.parents or ".venv" in raised_in.parts or os.environ.get("DEBUG"):
            raise
        sys.exit(f"error: {error}")
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def parse(*dataclasses: type, argv: list[str] | None = None) -> tuple:
    """The dataclasses filled from the command line. Unknown flags fail; MedicalGPT's spellings are understood.

    On a machine without a GPU, `--bf16` is off unless asked for (TRL's default is on).
    """
    argv = [_modern(word) for word in (sys.argv[1:] if argv is None else argv)]
    given = {word.partition("=")[0] for word in argv}
    if not torch.cuda.is_available():
        argv += [] if given & {"--bf16", "--fp16"} else ["--bf16", "False"]
        argv += [] if "--dataloader_pin_memory" in given else ["--dataloader_pin_memory", "False"]
    parser = HfArgumentParser(dataclasses, allow_abbrev=False)
    for flag in given & WITHOUT_EFFECT.keys():
        parser.error(f"{flag} would do nothing here: {WITHOUT_EFFECT[flag]}")
    try:
        *parsed, unknown = parser.parse_args_into_dataclasses(args=argv, return_remaining_strings=True)
    except (ValueError, FileNotFoundError) as error:
        parser.error(str(error))
    if unknown:
        parser.error(f"unknown flag or value: {' '.join(unknown)}")
    config = next(part for part in parsed if isinstance(part, TrainingArguments))
    _start(config)
    return tuple(parsed)


def _modern(word: str) -> str:
    flag, equals, value = word.partition("=")
    return ALIASES.get(flag, flag) + equals + value


def _start(config: TrainingArguments) -> None:
    """Logging on the main process, the checkpoint to resume from, and a refusal to overwrite an earlier run."""
    logging.basicConfig(
        level=logging.INFO if config.process_index == 0 else logging.WARNING,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        datefmt="%H:%M:%S",
        force=True,
    )
    for noisy in ("httpx", "filelock", "matplotlib", "fsspec", "bitsandbytes", "DeepSpeed"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    hf_logging.set_verbosity_warning()
    # PEFT looks for a config.json in the base of an adapter, which here may be an adapter directory itself.
    warnings.filterwarnings("ignore", message="Could not find a config file in")
    if config.deepspeed and config.use_cpu:
        import deepspeed  # ZeRO-3 counts the ranks while the model loads, so they must have met before

        deepspeed.init_distributed(dist_backend="gloo", verbose=False)
    if config.device.type == "cpu":
        config.__dict__["_setup_devices"] = torch.device("cpu")  # torch.load cannot resume on "cpu:0"
    set_seed(config.seed)  # fresh weights and new embedding rows are random
    if getattr(config, "packing", False) or getattr(config, "padding_free", False):
        _settle_flat_rows(config)
    last = last_complete_checkpoint(Path(config.output_dir), config.world_size)
    asked = config.resume_from_checkpoint
    if asked and str(asked).lower() in ("true", "auto", "last"):
        config.resume_from_checkpoint = last
        if not last and any(not [*path.glob("rng_state*.pth")] for path in checkpoints(Path(config.output_dir))):
            raise ValueError(f"{config.output_dir}: checkpoints of --save_only_model hold no state to go on from")
        logger.info("resume from %s", last or "nothing: there is no checkpoint yet")
    elif asked and str(asked).lower() == "false":
        config.resume_from_checkpoint = None
    elif asked and not Path(asked).is_dir():
        raise FileNotFoundError(f"--resume_from_checkpoint: {asked} does not exist")
    if not config.resume_from_checkpoint:
        if last or (not asked and checkpoints(Path(config.output_dir))):
            raise ValueError(
                f"--output_dir {config.output_dir} holds the checkpoints of an earlier run: "
                "go on with --resume_from_checkpoint True, or choose another folder"
            )
        if (Path(config.output_dir) / "run_summary.json").is_file():
            raise ValueError(f"--output_dir {config.output_dir} holds a run that is over: choose another folder")


def _settle_flat_rows(config: TrainingArguments) -> None:
    """What rows that lie one behind the other cannot do.

    On several ranks held-out rows are not packed, so that those which fill up the last batches can be told apart.
    """
    if config.neftune_noise_alpha:
        raise ValueError("--neftune_noise_alpha is scaled by the length of a row, which --packing hides: choose one")
    if not config.packing:
        return
    if config.packing_strategy == "wrapped":
        raise ValueError("--packing_strategy wrapped lets documents see each other: bfd keeps them apart")
    if config.world_size > 1:
        if config.eval_packing:
            raise ValueError("--eval_packing True counts rows twice on several ranks")
        config.eval_packing = False


class Measured(Resumable):
    """Mixed into a stage's trainer: counts tokens and padding, weighs the evaluation loss by tokens, orders the rows.

    `Trainer.evaluate` averages the loss over batches, so that short rows weigh more than long ones and the figure
    depends on the batch size; `exp` of that is not the perplexity. Here every predicted token weighs the same.
    """

    tokens_real: int | torch.Tensor = 0
    tokens_padded = 0
    evaluation_seconds = 0.0

    def training_step(self, model, inputs, *args, **kwargs):
        size = inputs["input_ids"].numel()
        mask = inputs.get("attention_mask")
        self.tokens_padded += size
        self.tokens_real += size if mask is None else mask.sum()  # stays on the device: no wait in every step
        return super().training_step(model, inputs, *args, **kwargs)

    def prediction_step(self, model, inputs, *args, **kwargs):
        own = 0
        if "labels" in inputs:
            starts = self._starts(inputs)
            own = self._own_rows(len(starts))
            if 0 < own < len(starts):
                labels = inputs["labels"].clone()
                (labels[0] if len(labels) == 1 else labels)[starts[own] :] = -100
                inputs = {**inputs, "labels": labels}
        result = super().prediction_step(model, inputs, *args, **kwargs)
        if own and result[0] is not None and hasattr(self, "_eval_sums"):
            predicted = (inputs["labels"][..., 1:] != -100).sum().item()
            self._eval_sums[0] += result[0].item() * predicted
            self._eval_sums[1] += predicted
        return result

    @staticmethod
    def _starts(inputs: dict) -> list[int]:
        """Where each row of a batch begins; with `--packing` they lie one behind the other in a single row."""
        if len(inputs["labels"]) == 1 and "position_ids" in inputs:
            return (inputs["position_ids"][0] == 0).nonzero().flatten().tolist()
        return list(range(len(inputs["labels"])))

    def _get_train_sampler(self, *args, **kwargs):
        sampler = super()._get_train_sampler(*args, **kwargs)
        # of batches, and from seed and epoch by itself
        return sampler if isinstance(sampler, BatchRebalanceSampler) else SeededOrder(sampler, self)

    def _get_eval_sampler(self, *args, **kwargs):
        sampler = super()._get_eval_sampler(*args, **kwargs)
        return sampler and SeededOrder(sampler, self)

    def _own_rows(self, rows: int) -> int:
        """How many rows of this rank's batch count: accelerate fills the ranks' last batches up with earlier rows."""
        state = self.accelerator.gradient_state
        if self.args.world_size == 1 or not state.end_of_dataloader or state.remainder <= 0:
            return rows
        return min(max(state.remainder - self.args.process_index * self.args.eval_batch_size, 0), rows)

    def evaluate(self, *args, metric_key_prefix: str = "eval", **kwargs):
        self._eval_sums = [0.0, 0]
        started = time.perf_counter()
        metrics = super().evaluate(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        self.evaluation_seconds += time.perf_counter() - started
        return metrics

    def evaluation_loop(self, *args, metric_key_prefix: str = "eval", **kwargs):
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        sums = torch.tensor(self._eval_sums, dtype=torch.float64)
        if dist.is_initialized():
            sums = sums.to(self.args.device)
            dist.all_reduce(sums)
        if sums[1] > 0:
            mean = (sums[0] / sums[1]).item()
            output.metrics[f"{metric_key_prefix}_loss"] = mean
            output.metrics[f"{metric_key_prefix}_perplexity"] = math.exp(min(mean, 700))
        return output


def finish(trainer: Trainer, *, stage: str, parent: str | None, data: dict, extra: dict | None = None) -> dict:
    """Train (or go on), evaluate, and leave a complete checkpoint directory behind. Every rank calls this.

    Returns the run summary that is written as `run_summary.json`.
    """
    config = trainer.args
    started = time.perf_counter()
    trainer.add_callback(WrittenBy(config.world_size))
    result = trainer.train(resume_from_checkpoint=config.resume_from_checkpoint)
    throughput = _throughput(trainer, result.metrics["train_runtime"])
    metrics = {key: value for key, value in result.metrics.items() if not key.startswith("total")}
    if config.resume_from_checkpoint:  # Trainer divides the loss of the steps since then by the number of all steps
        losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
        metrics["train_loss"] = sum(losses) / len(losses) if losses else None
    trainer.save_model(config.output_dir)  # before anything else can go wrong
    if trainer.eval_dataset is not None:
        metrics |= _evaluated_now(trainer) or trainer.evaluate()
    trainer.save_state()
    summary = {
        "stage": stage,
        "parent": parent,
        "base_fingerprint": getattr(_unwrapped(trainer), "base_fingerprint", None),
        "embedding_rows": getattr(_unwrapped(trainer), "embedding_rows", None),
        "data": data,
        "steps": trainer.state.global_step,
        "metrics": metrics,
        "wall_seconds": round(time.perf_counter() - started, 1),
        **throughput,
        "peak_memory_gib": round(peak_memory() / 2**30, 3),
        **(extra or {}),
        "resumed_from": config.resume_from_checkpoint,
        "world_size": config.world_size,
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES},
        "git_revision": git_revision(),
    }
    if trainer.is_world_process_zero():
        folder = Path(config.output_dir)
        write_json(folder / "training_args.json", config.to_sanitized_dict())
        write_json(folder / "run_summary.json", summary)
        plot_loss(trainer.state.log_history, folder / "loss.png")
        _tell(summary)
    return summary


def _evaluated_now(trainer: Trainer) -> dict:
    """The held-out metrics of the last step, where `--eval_strategy` has just measured them.

    None with `--load_best_model_at_end`: then another model than that of the last step is there.
    """
    if trainer.args.load_best_model_at_end:
        return {}
    rows = [row for row in trainer.state.log_history if row["step"] == trainer.state.global_step]
    return next(({k: v for k, v in row.items() if k.startswith("eval_")} for row in rows if "eval_runtime" in row), {})


def _unwrapped(trainer: Trainer) -> torch.nn.Module:
    model = trainer.accelerator.unwrap_model(trainer.model)
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _throughput(trainer: Trainer, runtime: float) -> dict:
    """Tokens trained on in this run, all ranks together; padding is not a token. `runtime` in seconds."""
    padded = getattr(trainer, "tokens_padded", 0)
    if not padded:
        return {}
    real = int(trainer.tokens_real)
    seconds = max(runtime - trainer.evaluation_seconds, 1e-9)
    return {
        "tokens_seen": real * trainer.args.world_size,
        "padding_share": round(1 - real / padded, 4),
        "tokens_per_second": round(real * trainer.args.world_size / seconds, 1),
    }


def _tell(summary: dict) -> None:
    wanted = ("train_loss", "eval_loss", "eval_perplexity", "tokens_seen", "tokens_per_second", "padding_share")
    figures = {
        key: value
        for key, value in (summary | summary["metrics"]).items()
        if key in (*wanted, "peak_memory_gib") and value is not None
    }
    logger.info("done: %s", ", ".join(f"{key} {value:,.4g}" for key, value in figures.items()))


def peak_memory() -> int:
    """Bytes: of GPU memory where there is one, else of the process (resident set)."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def git_revision() -> str | None:
    """The commit of this checkout, `+` behind it when files differ; None outside a git checkout."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty=+", "--abbrev=12"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or None


def write_json(path: Path, content: Any) -> None:
    """Whole or not at all: written beside, then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.tmp")
    beside.write_text(json.dumps(content, ensure_ascii=False, indent=2, default=str) + "\n", encoding="utf-8")
    os.replace(beside, path)


def plot_loss(history: list[dict], path: Path) -> None:
    """Training and evaluation loss over the steps, as PNG."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4), dpi=120)
    for key, label, style in (("loss", "training", "-"), ("eval_loss", "held out", "o-")):
        points = [(row["step"], row[key]) for row in history if key in row]
        if points:
            axes.plot(*zip(*points, strict=True), style, label=label, markersize=4)
    axes.set(xlabel="step", ylabel="loss", title=path.parent.name)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)
