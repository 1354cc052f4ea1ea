"""One machine with NVIDIA GPUs: a cluster of one worker per card, one run on it.

    python cluster/local_cuda.py data/ --output-dir out                 every visible card
    python cluster/local_cuda.py --cards 0,1 data/ --output-dir out     two of them

All other arguments go to ``dpipe run``, which with ``--device gpu`` opens the same cluster by
itself. Take this file when you want to set an option of dask-cuda, or to keep the cluster for more
than dpipe. Needs the extra gpu12 or gpu13.
"""

from __future__ import annotations

import argparse

from dask_cuda import LocalCUDACluster

from dpipe.cli import main as dpipe


def main() -> None:
    """Open the cluster, run, close the cluster."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cards", help="numbers or UUIDs of cards, as in nvidia-smi; default all")
    parser.add_argument("--memory-limit", default="auto", help="host memory of each worker")
    arguments, for_dpipe = parser.parse_known_args()

    cluster = LocalCUDACluster(
        CUDA_VISIBLE_DEVICES=arguments.cards,
        threads_per_worker=1,
        memory_limit=arguments.memory_limit,
        host="127.0.0.1",
        # The stream-ordered allocator does not fragment. CuPy has to use it too, or two allocators
        # starve each other; freed memory beyond half a card goes back to the system.
        rmm_async=True,
        rmm_release_threshold=0.5,
        rmm_allocator_external_lib_list=["cupy"],
    )
    with cluster:
        dpipe(["run", *for_dpipe, "--scheduler", cluster.scheduler_address])


if __name__ == "__main__":  # workers are processes that import this file
    main()
