#!/usr/bin/env bash
# PPO on a CPU, one GPU or all GPUs of this machine. Settings come from the environment, further flags from the command
# line:    MODEL=outputs/sft REWARD=outputs/rm TRAIN=my_questions.jsonl bash run_ppo.sh --target_kl 6 --load_in_bits 4
set -euo pipefail
cd "$(dirname "$0")"
. tools/launch.sh

case " $* " in
  *" --reward_url"*) ;;
  *) set -- --reward_model_path "${REWARD:-outputs/rm}" "$@" ;;
esac
launch ppo_training.py \
  --model_name_or_path "$MODEL" \
  --train_file_dir "${TRAIN:-data/sft}" \
  --validation_split_ratio 0.05 \
  --output_dir "${OUTPUT:-outputs/ppo}" \
  --use_peft True --lora_r 16 --lora_alpha 32 \
  --per_device_train_batch_size 4 --gradient_accumulation_steps 16 --num_mini_batches 2 --num_ppo_epochs 2 \
  --num_train_epochs 1 --learning_rate 2e-5 --value_learning_rate 1e-4 --lr_scheduler_type constant \
  --max_prompt_length 512 --max_completion_length 256 --missing_eos_penalty 1.0 \
  --lam 1.0 --kl_coef 0.1 --target_kl 8 \
  --eval_strategy steps --eval_steps 8 --save_strategy steps --save_steps 8 --save_total_limit 2 \
  --logging_steps 4 --report_to tensorboard \
  "$@"
