#!/usr/bin/env bash
# All tests, on a CPU, without a network once the packages are there. Arguments go to pytest: bash run_tests.sh -k records
set -euo pipefail
cd "$(dirname "$0")"
. tools/environment.sh
install requirements.txt requirements-dev.txt requirements-model.txt
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false OMP_NUM_THREADS=1 PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
ruff check .
ruff format --check .
# One process a core; a file's tests stay together, so that a model is made once for them. The files that take longest
# come first (tests/conftest.py): at the end no process works alone for minutes.
exec python -m pytest -n "$(getconf _NPROCESSORS_ONLN)" --dist loadfile --no-loadscope-reorder "$@"
