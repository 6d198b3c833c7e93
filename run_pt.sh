#!/usr/bin/env bash
# Continued pretraining on a CPU, one GPU or all GPUs of this machine. Settings come from the environment, further
# flags from the command line:    MODEL=Qwen/Qwen3-0.6B TRAIN=my_corpus bash run_pt.sh --num_train_epochs 2
set -euo pipefail
cd "$(dirname "$0")"
. tools/launch.sh

launch pretraining.py \
  --model_name_or_path "$MODEL" \
  --train_file_dir "${TRAIN:-data/pretrain}" --text_documents paragraph \
  --validation_split_ratio 0.05 \
  --output_dir "${OUTPUT:-outputs/pt}" \
  --use_peft True --lora_r 16 --lora_alpha 32 \
  --per_device_train_batch_size 4 --gradient_accumulation_steps 2 \
  --num_train_epochs 1 --learning_rate 2e-4 --lr_scheduler_type cosine --warmup_steps 0.05 \
  --max_length 1024 --packing True \
  --eval_strategy steps --eval_steps 0.2 --save_strategy steps --save_steps 0.2 --save_total_limit 2 \
  --logging_steps 5 --report_to tensorboard \
  "$@"
