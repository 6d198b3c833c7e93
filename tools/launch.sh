#!/usr/bin/env bash
# Sourced by run_*.sh: the environment, the default model, and `launch SCRIPT FLAGS...`, which takes every GPU.
. tools/environment.sh
install requirements.txt
default_model
export TOKENIZERS_PARALLELISM=false

# One process for a CPU or one GPU, torchrun for several. Several machines: NNODES, NODE_RANK, MASTER_ADDR, MASTER_PORT
# (or the scheduler's own launcher). NPROC overrides the number of processes on this machine.
launch() {
  local processes="${NPROC:-}"
  if [ -z "$processes" ] && [ -n "${CUDA_VISIBLE_DEVICES+set}" ]; then
    processes="$(tr ',' '\n' <<<"$CUDA_VISIBLE_DEVICES" | grep -c . || true)" # none where it is empty: a CPU
  elif [ -z "$processes" ]; then
    processes="$(nvidia-smi --list-gpus 2>/dev/null | grep -c '^GPU' || true)" # MIG slices are indented
  fi
  if [ "${NNODES:-1}" -gt 1 ] || [ "$processes" -gt 1 ]; then
    torchrun --nnodes "${NNODES:-1}" --node_rank "${NODE_RANK:-0}" --nproc_per_node "$((processes > 0 ? processes : 1))" \
      --master_addr "${MASTER_ADDR:-127.0.0.1}" --master_port "${MASTER_PORT:-29500}" "$@"
  else
    python "$@"
  fi
}
