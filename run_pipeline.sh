#!/usr/bin/env bash
# The whole way: base model -> continued pretraining -> fine-tuning -> answers to held-out questions -> scores side by side.
#
#   bash run_pipeline.sh                                     # the embedded 135M model and data/, on any machine
#   MODEL=Qwen/Qwen3-0.6B OUTPUT=outputs/qwen3 bash run_pipeline.sh
#   MODEL=my_model bash run_pipeline.sh --train_file_dir my_conversations     # flags go to the fine-tuning
#
# Ends with $OUTPUT/report.md. A run that was stopped goes on where it was when the same command is given again.
# On a CPU each stage takes a number of steps that fits into minutes; a GPU goes through all data. PT_STEPS and SFT_STEPS
# (-1: all data), EVAL_ROWS and MAX_NEW_TOKENS change that.
set -euo pipefail
cd "$(dirname "$0")"
. tools/launch.sh

OUTPUT="${OUTPUT:-outputs/pipeline}"
HELD_OUT="${HELD_OUT:-data/eval/heldout_qa.jsonl}"
if command -v nvidia-smi >/dev/null; then
  : "${PT_STEPS:=-1}" "${SFT_STEPS:=-1}" "${EVAL_ROWS:=1000}" "${MAX_NEW_TOKENS:=512}"
  SMALL=()
else
  : "${PT_STEPS:=12}" "${SFT_STEPS:=24}" "${EVAL_ROWS:=24}" "${MAX_NEW_TOKENS:=96}"
  SMALL=(--gradient_checkpointing False --per_device_train_batch_size 4 --gradient_accumulation_steps 1)
fi
BASE="$MODEL"
mkdir -p "$OUTPUT"

step() { printf '\n=== %s\n' "$*"; }

# stage NAME COMMAND...: skipped when an earlier run finished it; otherwise it goes on from its last checkpoint.
stage() {
  local name="$1"
  shift
  [ -f "$OUTPUT/$name/run_summary.json" ] && { echo "$name: done before"; return; }
  OUTPUT="$OUTPUT/$name" bash "$@" --resume_from_checkpoint True --save_strategy steps --save_steps 10 "${SMALL[@]}"
}

step "1. continued pretraining"
stage pt run_pt.sh --max_steps "$PT_STEPS" --max_length 256 --learning_rate 5e-4 --eval_strategy no

step "2. supervised fine-tuning"
MODEL="$OUTPUT/pt" stage sft run_sft.sh --max_steps "$SFT_STEPS" --max_length 768 --learning_rate 1e-3 \
  --eval_strategy no "$@"

step "3. answers to held-out questions"
head -n "$EVAL_ROWS" "$HELD_OUT" >"$OUTPUT/questions.jsonl"
NAMES=(base pt sft)
MODELS=("$BASE" "$OUTPUT/pt" "$OUTPUT/sft")
FILES=()
for i in "${!NAMES[@]}"; do
  FILES+=("$OUTPUT/answers/${NAMES[$i]}.jsonl")
  mkdir -p "$OUTPUT/answers"
  [ -f "${FILES[$i]}" ] && continue
  python inference.py --base_model "${MODELS[$i]}" --data_file "$OUTPUT/questions.jsonl" \
    --output_file "${FILES[$i]}" --max_new_tokens "$MAX_NEW_TOKENS" --eval_batch_size 24 --repetition_penalty 1.1
done

step "4. scores"
python tools/perplexity.py --models "${MODELS[@]}" --names "${NAMES[@]}" --data_file "$OUTPUT/questions.jsonl" \
  --output_file "$OUTPUT/scores/perplexity.json"
python evaluate_metrics.py --data_file "${FILES[@]}" --names "${NAMES[@]}" --output_file "$OUTPUT/scores/answers.json" \
  --per_row_file "$OUTPUT/scores/answers_rows.jsonl"
python tools/report.py --output "$OUTPUT"
