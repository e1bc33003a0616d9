#!/usr/bin/env bash
# Tests and figures of packed training on one GPU, in under five minutes.
#
#   bash benchmarks/gpu.sh                  on the first CUDA card
#   bash benchmarks/gpu.sh --device cpu     tries the script where there is no card
#
# Exits with status 1 if a test fails or a figure cannot be trusted.
set -uo pipefail
cd "$(dirname "$0")/.."
device=cuda
if [ "${1:-}" = --device ]; then device=$2; fi
python=${PYTHON:-python}
if [ "$device" != cpu ]; then nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader || exit 1; fi

status=0
# trainer.device is auto: these tests take the card wherever torch sees one.
"$python" -m pytest -q -n "${WORKERS:-4}" tests/training/packed tests/training/test_loop.py \
  tests/training/test_runtime.py || status=1
"$python" benchmarks/packed.py --device "$device" --part training --rounds "${ROUNDS:-5}" || status=1
exit $status
