#!/usr/bin/env bash
# On any machine with an NVIDIA GPU: the tests that need one, then the benchmark, then a short table.
#
#   cluster/gpu_check.sh                          from a checkout with ".[test,gpu12]" installed
#   cluster/gpu_check.sh --scale 0.1              a tenth of the rows
#   cluster/gpu_check.sh --device cpu --scale 0.002        the same code without a GPU, to try it
#
# All arguments go to `python -m benchmarks.gpu`. At full size it needs 60 GB of disk (--data says
# where) and an hour, most of it for the CPU beside the GPU; --no-cpu leaves that out. The exit code
# is 0 when the tests pass and the card agrees with the CPU, whatever the speed.
set -euo pipefail

PYTHON=${PYTHON:-python}
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."

case " $* " in
*" --device cpu "* | *" --device=cpu "*) device=cpu ;;
*) device=gpu ;;
esac

status=0
if [ "$device" = gpu ]; then
    if ! "$PYTHON" -c 'import sys, cupy; sys.exit(cupy.cuda.runtime.getDeviceCount() == 0)'; then
        echo "CuPy finds no GPU here; --device cpu tries this script without one." >&2
        exit 2
    fi
    nvidia-smi --query-gpu=index,name,driver_version,memory.used,memory.total --format=csv
    export CUDA_DEVICE_ORDER=PCI_BUS_ID
    "$PYTHON" -m pytest -m gpu --runslow -q tests || status=$?
else
    "$PYTHON" -m pytest -q tests/test_gpu.py || status=$?
fi
"$PYTHON" -m benchmarks.gpu "$@" || status=$?
exit "$status"
