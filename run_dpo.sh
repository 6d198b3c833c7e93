#!/usr/bin/env bash
# DPO (or KTO, ORPO, SimPO, CPO: --method) on a CPU, one GPU or all GPUs of this machine. Settings come from the
# environment, further flags from the command line:    MODEL=outputs/sft bash run_dpo.sh --loss_type ipo --beta 0.05
set -euo pipefail
cd "$(dirname "$0")"
. tools/launch.sh

case " $* " in
  *"--method kto "* | *"--method=kto "*) ;; # keeps its rows in their order
  *) set -- --train_sampling_strategy group_by_length "$@" ;;
esac
launch dpo_training.py \
  --model_name_or_path "$MODEL" \
  --train_file_dir "${TRAIN:-data/preference}" \
  --validation_split_ratio 0.1 \
  --output_dir "${OUTPUT:-outputs/dpo}" \
  --use_peft True --lora_r 16 --lora_alpha 32 \
  --per_device_train_batch_size 4 --gradient_accumulation_steps 2 \
  --num_train_epochs 1 --learning_rate 5e-5 --lr_scheduler_type cosine --warmup_steps 0.05 \
  --beta 0.1 --max_length 1024 \
  --eval_strategy steps --eval_steps 0.2 --save_strategy steps --save_steps 0.2 --save_total_limit 2 \
  --logging_steps 5 --report_to tensorboard \
  "$@"
