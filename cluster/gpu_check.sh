#!/usr/bin/env bash
# On any machine with an NVIDIA GPU: the tests that need one, then the benchmark, then a short table.
#
#   cluster/gpu_check.sh --quick                  from a checkout with ".[test,gpu12]" installed
#   cluster/gpu_check.sh                          the full sizes
#   cluster/gpu_check.sh --quick --tables ../a ../b        selections of these tables, too
#   cluster/gpu_check.sh --device cpu --quick --scale 0.002    the same code without a GPU, to try it
#
# All arguments go to `python -m benchmarks.gpu`. --quick is made for ten minutes on 16 cores and 8 GB
# of disk; --data says where the tables go. At full size it needs 60 GB of disk and an hour, most of
# it for the CPU beside the GPU; --no-cpu leaves that out. Nothing is fetched: where there is no
# network, put wheels of what is missing into a folder, install them with
# `pip install --no-index --no-deps --target SITE WHEELS/*.whl` and set PYTHONPATH=SITE.
# TESTS=no leaves the tests out, for a second call on the same machine.
# The exit code is 0 when the tests pass and the card agrees with the CPU, whatever the speed.
set -euo pipefail

PYTHON=${PYTHON:-$(command -v python || command -v python3)}
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."

case " $* " in
*" --device cpu "* | *" --device=cpu "*) device=cpu ;;
*) device=gpu ;;
esac
case " $* " in
*" --quick "*) slow=() ;;
*) slow=(--runslow) ;;
esac

status=0
if [ "$device" = gpu ]; then
    if ! why=$("$PYTHON" -c 'import sys, cupy; sys.exit(cupy.cuda.runtime.getDeviceCount() == 0)' 2>&1); then
        echo "CuPy finds no GPU here (${why##*$'\n'}); --device cpu tries this script without one." >&2
        exit 2
    fi
    nvidia-smi --query-gpu=index,name,driver_version,memory.used,memory.total --format=csv
    export CUDA_DEVICE_ORDER=PCI_BUS_ID
    # Dask workers, and dask-cuda's check of the driver, must be able to start: seconds, not minutes.
    "$PYTHON" -c 'import rmm, dask_cuda, dask_cuda.initialize' || exit 2
    # What only the CPU's tests compare with need not be installed. What others warn of, as dask-cuda
    # does of a driver that does not tell its CPUs, is no failure of dpipe.
    [ "${TESTS:-yes}" = no ] || "$PYTHON" -m pytest -W default -m gpu "${slow[@]}" -q \
        --durations=10 tests/test_gpu.py tests/test_kernels_ranks.py || status=$?
else
    [ "${TESTS:-yes}" = no ] || "$PYTHON" -m pytest -q tests/test_gpu.py tests/test_card.py || status=$?
fi
"$PYTHON" -m benchmarks.gpu "$@" || status=$?
exit "$status"
