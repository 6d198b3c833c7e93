"""Continued pretraining (PT): let a model read domain documents, or train one from scratch.

    python pretraining.py \\
        --model_name_or_path Qwen/Qwen3-0.6B --train_file_dir data/pretrain --text_documents paragraph \\
        --validation_split_ratio 0.05 --use_peft True --learning_rate 2e-4 --max_length 1024 --packing True \\
        --output_dir outputs/pt

    torchrun --nproc_per_node 8 pretraining.py ... --deepspeed zero2.json    # several GPUs
    python pretraining.py --config_name my_config --tokenizer_name_or_path my_tokenizer ...   # fresh weights

Every token of a document is learned, and an end token behind its last. A document longer than `--max_length` becomes
several rows; none of it is lost. Every option of TRL's `SFTConfig` is a flag here too; `bash run_pt.sh` holds settings
that work.
"""

from dataclasses import dataclass, field
from itertools import pairwise

from transformers import PreTrainedTokenizerBase
from trl import SFTConfig, SFTTrainer

from medical_qwen.arguments import DataArguments, ModelArguments
from medical_qwen.models import load_for_training, load_from_config, tokenizer_for_training
from medical_qwen.records import load_splits
from medical_qwen.rendering.encoding import Encoder, Span
from medical_qwen.tokens import prepare, show_rows
from medical_qwen.training import Measured, finish, parse, run


@dataclass
class PretrainingArguments(ModelArguments):
    config_name: str | None = field(
        default=None, metadata={"help": "Train from scratch: the directory or hub id of a model configuration."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if bool(self.config_name) == bool(self.model_name_or_path):
            raise ValueError("give either --model_name_or_path (go on from weights) or --config_name (fresh weights)")
        if self.config_name and (self.use_peft or not self.tokenizer_name_or_path):
            raise ValueError(
                "--config_name trains all of a fresh model: it needs --tokenizer_name_or_path, no --use_peft"
            )


class Trainer(Measured, SFTTrainer):
    """TRL's trainer, measured. The rows come tokenized and labelled."""


def encode(batch: dict, tokenizer: PreTrainedTokenizerBase, max_length: int) -> dict:
    """Documents to rows of at most `max_length` tokens; the first token of a row has no context and no label.

    A control token that a document spells out (`<|im_end|>` on a web page) stays ordinary text.
    """
    encoder = Encoder(tokenizer, tokenizer.chat_template)
    begin = [token for token in tokenizer("").input_ids if token == tokenizer.bos_token_id]
    rows = {"input_ids": [], "labels": []}
    for text in batch["text"]:
        ids = [*begin, *encoder.encode(text, [Span(0, len(text), 0, False)]).ids, tokenizer.eos_token_id]
        cuts = [*range(0, len(ids), max_length), len(ids)]
        if len(cuts) > 2 and cuts[-1] - cuts[-2] == 1:  # a lone token could not be learned
            cuts[-2] -= 1
        for start, end in pairwise(cuts):
            if end - start > 1:
                rows["input_ids"].append(ids[start:end])
                rows["labels"].append([-100, *ids[start + 1 : end]])
    return rows


def main(argv: list[str] | None = None) -> dict:
    model_args, data_args, config = parse(PretrainingArguments, DataArguments, SFTConfig, argv=argv)
    tokenizer = tokenizer_for_training(model_args, config.trust_remote_code)
    splits = load_splits(data_args, "text", config.seed)
    train, held_out = (
        prepare(part, encode, config, batched=True, tokenizer=tokenizer, max_length=config.max_length)
        for part in (splits.train, splits.validation)
    )
    show_rows(train, tokenizer, data_args.show_samples)
    if model_args.config_name:
        model = load_from_config(model_args.config_name, tokenizer, trust_remote_code=config.trust_remote_code)
        adapter = None
    else:
        model, adapter = load_for_training(model_args, tokenizer, trust_remote_code=config.trust_remote_code)
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
        stage="pretraining",
        parent=model_args.model_name_or_path,
        data=splits.report.as_dict() | {"train_rows": len(train), "max_length": config.max_length},
    )


if __name__ == "__main__":
    run(main)
