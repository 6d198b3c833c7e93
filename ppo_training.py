"""PPO: reinforcement learning of the SFT model against a reward model, with a value model, on one base.

    python ppo_training.py \\
        --model_name_or_path outputs/sft --reward_model_path outputs/rm --train_file_dir data/sft \\
        --use_peft True --learning_rate 1e-5 --max_completion_length 256 --output_dir outputs/ppo

    torchrun --nproc_per_node 2 ppo_training.py ...             # several GPUs
    ... --deepspeed zero3.json                                  # large models, in full or with LoRA
    ... --load_in_bits 4                                        # QLoRA
    ... --reward_url http://127.0.0.1:9000/score                # the reward model lives elsewhere
    ... --target_kl 6                                           # steer the KL penalty
    ... --use_vllm True --vllm_mode colocate                    # or server: answers by vLLM, as in grpo_training.py

With LoRA policy, value model, reference and reward model share one frozen base (`medical_qwen/ppo`). The data are
questions: conversations lend their turns before the last answer, with their whole history.
"""

from transformers import set_seed

from medical_qwen.arguments import DataArguments, ModelArguments
from medical_qwen.lineage import resolve
from medical_qwen.models import tokenizer_for_training, whole_directory
from medical_qwen.ppo import PPOConfig, PPOTrainer, from_endpoint, load_ppo_model
from medical_qwen.records import load_splits
from medical_qwen.rendering import Renderer
from medical_qwen.tokens import show_rows, tokenize_prompts
from medical_qwen.training import finish, parse, run


def main(argv: list[str] | None = None) -> dict:
    model_args, data_args, config = parse(ModelArguments, DataArguments, PPOConfig, argv=argv)
    if config.use_vllm and (model_args.load_in_bits or model_args.use_dora):
        raise ValueError("--use_vllm knows plain LoRA and full training: not --load_in_bits, not --use_dora")
    if not (config.reward_model_path or config.reward_url):
        raise ValueError("no reward: give --reward_model_path or --reward_url")
    if model_args.lora_dropout:
        raise ValueError("--lora_dropout: PPO runs without dropout, the update has to see the network of the rollout")
    tokenizer = tokenizer_for_training(model_args, config.trust_remote_code)
    renderer = Renderer(tokenizer)
    splits = load_splits(data_args, "prompt", config.seed)
    (train, truncation), (held_out, _) = (
        tokenize_prompts(part, renderer, config, config.max_prompt_length)
        for part in (splits.train, splits.validation)
    )
    show_rows(train, tokenizer, data_args.show_samples)
    set_seed(config.seed)  # new adapters start from random numbers
    model = load_ppo_model(model_args, tokenizer, config.reward_model_path, config.trust_remote_code)
    if config.use_vllm:
        lineage = resolve(model_args.model_name_or_path, model_args.adapter_name_or_path)
        source = {"revision": model_args.model_revision, "trust_remote_code": config.trust_remote_code}
        model.language_model.name_or_path = whole_directory(lineage, tokenizer, **source)
    trainer = PPOTrainer(
        model=model,
        args=config,
        train_dataset=train,
        eval_dataset=held_out,
        processing_class=tokenizer,
        scorer=from_endpoint(config.reward_url, renderer.stop_token_ids) if config.reward_url else None,
    )
    data = splits.report.as_dict() | {"truncation": truncation}
    return finish(trainer, stage="ppo", parent=model_args.model_name_or_path, data=data)


if __name__ == "__main__":
    run(main)
