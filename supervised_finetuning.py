"""Supervised fine-tuning (SFT): teach a model to answer, from conversations.

    python supervised_finetuning.py \\
        --model_name_or_path Qwen/Qwen3-0.6B --train_file_dir data/sft --validation_split_ratio 0.05 \\
        --use_peft True --lora_r 16 --learning_rate 2e-4 --max_length 1024 --output_dir outputs/sft

    torchrun --nproc_per_node 2 supervised_finetuning.py ...    # several GPUs
    ... --deepspeed zero3.json                                  # large models in full
    ... --load_in_bits 4                                        # QLoRA
    ... --show_samples 3 --max_steps 1                          # look at what is learned

Only what the assistant says is learned, its end token included. Every option of TRL's `SFTConfig` is a flag here too;
`bash run_sft.sh` holds settings that work.
"""

from dataclasses import asdict

from trl import SFTConfig, SFTTrainer

from medical_qwen.arguments import DataArguments, ModelArguments
from medical_qwen.models import load_for_training, tokenizer_for_training
from medical_qwen.records import load_splits
from medical_qwen.rendering import Renderer
from medical_qwen.tokens import drop_unfit, prepare, show_rows
from medical_qwen.training import Measured, finish, parse, run


class Trainer(Measured, SFTTrainer):
    """TRL's trainer, measured. The rows come tokenized and labelled, so TRL renders nothing itself."""


def encode(row: dict, renderer: Renderer, max_length: int) -> dict:
    """Token ids and labels (-100: not learned) of a conversation, and what was cut. No ids: nothing fitted."""
    rendered, lost = renderer.fit(row["messages"], max_length, row.get("tools"))
    if rendered is None:
        return {"input_ids": [], "labels": [], **asdict(lost)}
    labels = [token if learned else -100 for token, learned in zip(rendered.input_ids, rendered.mask, strict=True)]
    return {"input_ids": rendered.input_ids, "labels": [-100, *labels[1:]], **asdict(lost)}


def main(argv: list[str] | None = None) -> dict:
    model_args, data_args, config = parse(ModelArguments, DataArguments, SFTConfig, argv=argv)
    tokenizer = tokenizer_for_training(model_args, config.trust_remote_code)
    renderer = Renderer(tokenizer)
    splits = load_splits(data_args, "conversation", config.seed)
    train, truncation = drop_unfit(
        prepare(splits.train, encode, config, renderer=renderer, max_length=config.max_length)
    )
    held_out, _ = drop_unfit(
        prepare(splits.validation, encode, config, renderer=renderer, max_length=config.max_length)
    )
    show_rows(train, tokenizer, data_args.show_samples)
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
        stage="sft",
        parent=model_args.model_name_or_path,
        data=splits.report.as_dict() | {"truncation": truncation, "max_length": config.max_length},
    )


if __name__ == "__main__":
    run(main)
