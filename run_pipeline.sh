#!/usr/bin/env bash
# The whole way: base -> pretraining -> fine-tuning -> reward model -> PPO, DPO, GRPO -> answers to held-out questions
# -> the scores of every stage side by side.
#
#   bash run_pipeline.sh                                     # the embedded 135M model and data/, on any machine
#   STAGES="pt sft" bash run_pipeline.sh                     # without alignment
#   MODEL=Qwen/Qwen3-0.6B OUTPUT=outputs/qwen3 bash run_pipeline.sh
#   MODEL=my_model OUTPUT=outputs/mine bash run_pipeline.sh --train_file_dir my_conversations   # flags: of the SFT
#
# Ends with $OUTPUT/report.md. A run that was stopped goes on where it was when the same command is given again.
# A GPU goes through all data; on a CPU every stage takes so many steps that all fits into half an hour.
set -euo pipefail
cd "$(dirname "$0")"
if [ -n "${TRAIN:-}" ]; then
  echo "TRAIN names the data of one stage: give those of the SFT as --train_file_dir, or run the stages one by one" >&2
  exit 2
fi
STAGES="${STAGES:-pt sft rm ppo dpo grpo}"
for stage in $STAGES; do
  case "$stage" in
    pt | sft | rm | ppo | dpo | grpo) ;;
    *) echo "STAGES: expected some of pt sft rm ppo dpo grpo with blanks between, got $stage" >&2 && exit 2 ;;
  esac
done
. tools/launch.sh

OUTPUT="${OUTPUT:-outputs/pipeline}"
HELD_OUT="${HELD_OUT:-data/eval}"
EXAM_PROMPT="请回答问题。最后一行只写“答案：”，后面是选项字母，或者数值和单位。"
PT=() SFT=() RM=() PPO=() DPO=() GRPO=()
CORES="$(getconf _NPROCESSORS_ONLN)"
if command -v nvidia-smi >/dev/null; then
  ROWS=1000 EXAM_ROWS=1000 NEW_TOKENS=512 BATCH=32 JOBS=1
else
  ROWS=24 EXAM_ROWS=8 NEW_TOKENS=96 BATCH=24
  # Several processes with a thread each answer more than one process with all threads; each takes about 2 GB.
  JOBS="$((CORES < 4 ? CORES : 4))"
  SMALL=(--gradient_checkpointing False --logging_steps 1 --gradient_accumulation_steps 1 --per_device_train_batch_size 4)
  PT=("${SMALL[@]}" --max_steps 10 --max_length 256 --learning_rate 5e-4 --eval_strategy no)
  # Rows of all lengths in each step: of so few steps, one of short answers alone (32 tokens count as much as 2,000)
  # would set the tone.
  SFT=("${SMALL[@]}" --per_device_train_batch_size 2 --gradient_accumulation_steps 2 --max_steps 14 --max_length 768
    --learning_rate 1e-3 --eval_strategy no --train_sampling_strategy random)
  RM=("${SMALL[@]}" --max_steps 8 --max_length 512 --learning_rate 5e-4 --eval_strategy no)
  # Questions alone: prompts with documents before them would be cut at 256 tokens.
  PPO=("${SMALL[@]}" --train_file_dir data/sft/medical_zh_single.jsonl --max_steps 6 --num_ppo_epochs 2
    --max_prompt_length 256 --max_completion_length 48)
  DPO=("${SMALL[@]}" --per_device_train_batch_size 2 --max_steps 8 --max_length 512 --learning_rate 2e-4
    --eval_strategy no --max_eval_samples 16)
  # Four steps do not find a right answer: the share of Chinese characters is a reward that differs between answers.
  GRPO=("${SMALL[@]}" --max_steps 4 --num_generations 4 --max_prompt_length 256 --max_completion_length 48
    --reward_funcs choice number chinese --reward_weights 1 1 0.5)
fi
BASE="$MODEL"
mkdir -p "$OUTPUT/answers" "$OUTPUT/scores"
COMMAND="MODEL=$MODEL STAGES='$STAGES' HELD_OUT=$HELD_OUT bash run_pipeline.sh $*"
if [ -f "$OUTPUT/command" ] && [ "$(cat "$OUTPUT/command")" != "$COMMAND" ]; then
  echo "$OUTPUT holds the results of another command, choose another OUTPUT or remove it: $(cat "$OUTPUT/command")" >&2
  exit 1
fi
printf '%s\n' "$COMMAND" >"$OUTPUT/command"

step() { printf '\n=== %s\n' "$*"; }
wanted() { [[ " $STAGES " == *" $1 "* ]]; }

# stage NAME COMMAND...: skipped when an earlier run finished it; otherwise it goes on from its last checkpoint.
stage() {
  local name="$1"
  shift
  wanted "$name" || return 0
  step "$name"
  [ -f "$OUTPUT/$name/run_summary.json" ] && { echo "done before"; return; }
  OUTPUT="$OUTPUT/$name" bash "$@" --resume_from_checkpoint True --save_strategy steps --save_steps 10
}

stage pt run_pt.sh "${PT[@]}"
if wanted pt; then MODEL="$OUTPUT/pt"; fi
export MODEL
stage sft run_sft.sh "${SFT[@]}" "$@"
if wanted sft; then MODEL="$OUTPUT/sft"; fi
stage rm run_rm.sh --validation_split_ratio 0 --validation_file_dir "$HELD_OUT/preference_pairs.jsonl" "${RM[@]}"
stage ppo run_ppo.sh --reward_model_path "$OUTPUT/rm" "${PPO[@]}"
stage dpo run_dpo.sh --validation_split_ratio 0 --validation_file_dir "$HELD_OUT/preference_pairs.jsonl" "${DPO[@]}"
stage grpo run_grpo.sh "${GRPO[@]}"

NAMES=(base) MODELS=("$BASE")
for name in pt sft ppo dpo grpo; do
  if wanted "$name"; then NAMES+=("$name") MODELS+=("$OUTPUT/$name"); fi
done

# answers TASK ROWS NEW_TOKENS FLAGS...: what every system says to the first rows of a held-out file.
answers() {
  local task="$1" rows="$2" tokens="$3" i
  shift 3
  head -n "$rows" "$HELD_OUT/$task.jsonl" >"$OUTPUT/answers/$task.jsonl"
  mkdir -p "$OUTPUT/answers/$task"
  FILES=()
  for i in "${!NAMES[@]}"; do FILES+=("$OUTPUT/answers/$task/${NAMES[$i]}.jsonl"); done
  for i in "${!NAMES[@]}"; do
    [ -f "${FILES[$i]}" ] || printf '%s\0' --base_model "${MODELS[$i]}" --output_file "${FILES[$i]}"
  done | OMP_NUM_THREADS="$((CORES / JOBS))" TQDM_DISABLE="$([ "$JOBS" = 1 ] || echo 1)" xargs -0 -r -n 4 -P "$JOBS" python inference.py \
    --data_file "$OUTPUT/answers/$task.jsonl" --max_new_tokens "$tokens" --eval_batch_size "$BATCH" \
    --repetition_penalty 1.1 "$@"
}

step "answers to held-out questions, and their scores"
answers heldout_qa "$ROWS" "$NEW_TOKENS"
python evaluate_metrics.py --data_file "${FILES[@]}" --names "${NAMES[@]}" \
  --output_file "$OUTPUT/scores/answers.json" --per_row_file "$OUTPUT/scores/answers_rows.jsonl" >"$OUTPUT/scores/answers.txt"
if wanted rm; then
  python tools/reward_scores.py --reward_model "$OUTPUT/rm" --data_file "${FILES[@]}" --names "${NAMES[@]}" \
    --output_file "$OUTPUT/scores/reward.json"
fi
python tools/perplexity.py --models "${MODELS[@]}" --names "${NAMES[@]}" --data_file "$OUTPUT/answers/heldout_qa.jsonl" \
  --output_file "$OUTPUT/scores/perplexity.json"
for task in exam calculations; do
  answers "$task" "$EXAM_ROWS" 32 --system_prompt "$EXAM_PROMPT"
  python evaluate_metrics.py --task "${task%s}" --data_file "${FILES[@]}" --names "${NAMES[@]}" \
    --output_file "$OUTPUT/scores/$task.json" >"$OUTPUT/scores/$task.txt"
done
python tools/report.py --output "$OUTPUT"
