#!/usr/bin/env bash
# GRPO on a CPU, one GPU or all GPUs of this machine. Settings come from the environment, further flags from the command
# line:    MODEL=outputs/sft TRAIN=data/grpo bash run_grpo.sh --reward_funcs choice number format --beta 0.02
set -euo pipefail
cd "$(dirname "$0")"
. tools/launch.sh

launch grpo_training.py \
  --model_name_or_path "$MODEL" \
  --train_file_dir "${TRAIN:-data/grpo}" \
  --output_dir "${OUTPUT:-outputs/grpo}" \
  --use_peft True --lora_r 16 --lora_alpha 32 \
  --reward_funcs choice number repetition --reward_weights 1 1 0.2 \
  --per_device_train_batch_size 8 --gradient_accumulation_steps 4 --num_generations 8 \
  --max_prompt_length 1024 --max_completion_length 256 --temperature 1.0 --beta 0.02 \
  --max_steps 60 --learning_rate 1e-4 --lr_scheduler_type constant_with_warmup --warmup_steps 0.05 \
  --save_strategy steps --save_steps 30 --save_total_limit 2 --logging_steps 1 --report_to tensorboard \
  "$@"
