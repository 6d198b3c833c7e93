"""Reward model (RM): learn from pairs which of two answers people prefer.

    python reward_modeling.py \\
        --model_name_or_path outputs/sft --train_file_dir data/preference --validation_split_ratio 0.1 \\
        --use_peft True --lora_r 16 --learning_rate 1e-4 --max_length 1024 --output_dir outputs/rm

    ... --model_name_or_path Qwen/Qwen3-0.6B          # on a base model instead of an SFT adapter
    ... --load_in_bits 4                              # QLoRA
    ... --center_rewards_coefficient 0.01             # keep the rewards around zero

The Bradley-Terry loss (arXiv 2203.02155, eq. 1; with the records' `margin` as in arXiv 2307.09288) on one number per
answer, read at its end token. Both answers of a pair go through the model in one forward pass. `medical_qwen.scoring`
loads the result and scores conversations. Every option of TRL's `RewardConfig` is a flag here too; `bash run_rm.sh`
holds settings that work.
"""

import logging
from dataclasses import asdict, replace

import torch
from peft import LoraConfig
from torch import nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase, set_seed
from transformers.integrations import is_deepspeed_zero3_enabled
from trl import RewardConfig, RewardTrainer

from medical_qwen.arguments import DataArguments, ModelArguments
from medical_qwen.lineage import absolute, resolve
from medical_qwen.models import load_for_training, merged_directory, tokenizer_for_training
from medical_qwen.records import load_splits
from medical_qwen.rendering import Renderer
from medical_qwen.scoring import pair_report
from medical_qwen.tokens import drop_unfit, prepare, show_rows
from medical_qwen.training import Measured, finish, parse, run

logger = logging.getLogger(__name__)


class ScoreHead(nn.Linear):
    """A linear layer that computes in the precision of its weight, whatever the model around it does.

    In bfloat16 rewards would come in steps of 1/64, and the steps of the optimizer would be lost in rounding.
    """

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        with torch.autocast(hidden.device.type, enabled=False):
            return nn.functional.linear(hidden.to(self.weight.dtype), self.weight, self.bias)


class Trainer(Measured, RewardTrainer):
    """TRL's trainer, measured, with an evaluation that counts every held-out pair of all ranks exactly once."""

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        for head in (module for module in self.model.modules() if isinstance(module, ScoreHead)):
            if not is_deepspeed_zero3_enabled():  # which wants one precision for all parameters
                head.float()

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        loss, rewards, _ = super().prediction_step(model, inputs, False, ignore_keys)
        chosen, rejected = rewards.float().squeeze(-1).chunk(2)
        margin = inputs["margin"] if "margin" in inputs else torch.zeros_like(chosen)
        pairs = torch.stack([chosen, rejected, margin.to(chosen)], dim=1)
        self._pairs.append(self.accelerator.gather_for_metrics(pairs).cpu())
        return loss, None, None

    def evaluation_loop(self, *args, metric_key_prefix: str = "eval", **kwargs):
        self._pairs: list[torch.Tensor] = []
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        report = pair_report(*torch.cat(self._pairs).double().T.tolist())
        output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in report.items()})
        self._metrics["eval"].clear()  # TRL's own figures: means over batches
        logger.info(
            "pair accuracy %.3f (95 %% interval %.3f to %.3f) on %d pairs, mean margin %.3f, calibration error %.3f",
            *(report[name] for name in ("accuracy", "accuracy_low", "accuracy_high", "pairs", "margin")),
            report["calibration_error"],
        )
        return output


def encode(row: dict, renderer: Renderer, max_length: int | None) -> dict:
    """Token ids of the prompt with either answer, both whole. No ids: the answers do not fit.

    Where the history is too long, both lose the same turns.
    """
    pair, lost = renderer.pair(row["prompt"], (row["chosen"], row["rejected"]), max_length, row.get("tools"))
    if pair is None or lost.answer_tokens_lost:  # a cut answer has no end token, and that is where rewards are read
        pair, lost = None, replace(lost, answer_tokens_lost=lost.answer_tokens, left_out=True)
    chosen, rejected = ([*pair.prompt_ids, *ids] for ids in pair.completion_ids) if pair else ([], [])
    margin = {"margin": row["margin"] or 0.0} if "margin" in row else {}
    length = max(len(chosen), len(rejected))
    return {"chosen_ids": chosen, "rejected_ids": rejected, "length": length, **margin, **asdict(lost)}


def pad_apart(tokenizer: PreTrainedTokenizerBase, renderer: Renderer) -> None:
    """See to it that the pad token is not the one that ends answers.

    Classification models of transformers read a reward at the last token that is not the pad token.
    """
    pair, _ = renderer.pair([{"role": "user", "content": "?"}], [[{"role": "assistant", "content": "!"}]])
    end = pair.completion_ids[0][-1]
    if tokenizer.pad_token_id != end:
        return
    others = [token for id_, token in tokenizer.added_tokens_decoder.items() if token.special and id_ != end]
    if not others:
        raise ValueError(
            f"{tokenizer.pad_token!r} both pads and ends answers, and the tokenizer has no other special token"
        )
    tokenizer.pad_token = tokenizer.unk_token if tokenizer.unk_token_id not in (None, end) else others[0].content
    logger.info("pad token: %s, since the former one also ends answers", tokenizer.pad_token)


def load_with_head(
    args: ModelArguments, tokenizer: PreTrainedTokenizerBase, trust_remote_code: bool
) -> tuple[PreTrainedModel, LoraConfig | None]:
    """The checkpoint with a fresh score head instead of its language model head, and the adapter to train on it."""
    lineage = resolve(args.model_name_or_path, args.adapter_name_or_path)
    source = {"revision": args.model_revision, "trust_remote_code": trust_remote_code}
    if lineage.adapters:
        args = replace(args, model_name_or_path=merged_directory(lineage, **source), model_revision="main")
    model, adapter = load_for_training(
        replace(args, adapter_name_or_path=None),
        tokenizer,
        auto_class=AutoModelForSequenceClassification,
        num_labels=1,
        trust_remote_code=trust_remote_code,
    )
    model.name_or_path = absolute((lineage.root, *lineage.adapters)[-1])  # the base that the adapter will name
    fresh = getattr(model, "score", None)
    if not isinstance(fresh, nn.Linear):
        raise ValueError(
            f"{lineage.root}: a {type(model).__name__} has no linear `score` head to train as a reward model"
        )
    model.score = ScoreHead(fresh.in_features, fresh.out_features, bias=fresh.bias is not None, device="meta")
    model.score.weight, model.score.bias = fresh.weight, fresh.bias
    return model, adapter


def main(argv: list[str] | None = None) -> dict:
    model_args, data_args, config = parse(ModelArguments, DataArguments, RewardConfig, argv=argv)
    config.remove_unused_columns = False  # `length` groups rows of like length
    tokenizer = tokenizer_for_training(model_args, config.trust_remote_code)
    renderer = Renderer(tokenizer)
    pad_apart(tokenizer, renderer)
    splits = load_splits(data_args, "preference", config.seed)
    (train, truncation), (held_out, _) = (
        drop_unfit(prepare(part, encode, config, renderer=renderer, max_length=config.max_length), ids="chosen_ids")
        for part in (splits.train, splits.validation)
    )
    show_rows(train, tokenizer, data_args.show_samples)
    set_seed(config.seed)  # the score head starts from random numbers
    model, adapter = load_with_head(model_args, tokenizer, config.trust_remote_code)
    trainer = Trainer(
        model=model,
        args=config,
        peft_config=adapter,
        train_dataset=train,
        eval_dataset=held_out,
        processing_class=tokenizer,
    )
    return finish(
        trainer,
        stage="rm",
        parent=model_args.model_name_or_path,
        data=splits.report.as_dict() | {"truncation": truncation, "max_length": config.max_length},
    )


if __name__ == "__main__":
    run(main)
