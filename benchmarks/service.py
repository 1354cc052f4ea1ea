"""What a service does all day, in one process: does it grow?

Fits of `DescriptorSelector` in threads of this process, runs attached to one cluster of somebody
else's, whose scheduler is a process of its own and whose workers are never restarted, and pages
written again. Prints how much each process grows from one call to the next (a least-squares line,
the first quarter left out as warm-up). What Dask itself remembers of the past on that cluster (its
latest messages, events and transitions, an hour of profiles) is kept short, so that it is complete
after the warm-up and what goes on growing can be seen.

Usage: ``python -m benchmarks.service [--fits 200] [--attached 50] [--reports 50]``
"""

from __future__ import annotations

import gc
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from typing import Any
from unittest.mock import patch

import numpy as np
import psutil

from benchmarks import common
from benchmarks.leak import slope

Sizes = Mapping[str, float]
"""Process -> its resident size, MiB."""


def main() -> None:
    """Measure and print."""
    parser = common.parser(__doc__)
    parser.add_argument("--fits", type=int, default=200)
    parser.add_argument("--attached", type=int, default=50)
    parser.add_argument("--reports", type=int, default=50)
    parser.add_argument("--rows", type=int, default=5_000)
    parser.add_argument("--columns", type=int, default=40)
    arguments = parser.parse_args()
    print(common.machine(), time.strftime("%Y-%m-%d %H:%M"))

    import dpipe
    from dpipe.report import write_report

    frame = np.random.default_rng(0).normal(size=(arguments.rows, arguments.columns))
    path = common.table(arguments.data, arguments.rows, arguments.columns, copies=0.1)
    series = {
        "fit in threads": growth(
            arguments.fits, lambda: dpipe.DescriptorSelector().fit(frame), process_size
        ),
        "attached run": attached(arguments.attached, path),
    }
    with tempfile.TemporaryDirectory() as folder:
        dpipe.select(path, workers=1, output_dir=folder)
        series["report"] = growth(arguments.reports, lambda: write_report(folder), process_size)
    rows = [
        (name, process, f"{slope(sizes):.3f}")
        for name, processes in series.items()
        for process, sizes in processes.items()
    ]
    common.show(("what", "process", "growth, MiB a call"), rows)
    common.finish(arguments, {"sizes": series})


_SHORT_MEMORY = {
    "DASK_DISTRIBUTED__ADMIN__LOG_LENGTH": "100",
    "DASK_DISTRIBUTED__ADMIN__LOW_LEVEL_LOG_LENGTH": "100",
    "DASK_DISTRIBUTED__DIAGNOSTICS__COMPUTATIONS__MAX_HISTORY": "10",
    "DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED": "False",
}
"""Of the processes of a cluster, which are started with them."""


def attached(calls: int, path: str) -> dict[str, list[float]]:
    """Runs on one cluster that stays, and the sizes of its processes."""
    from distributed import Client
    from distributed.deploy.subprocess import SubprocessCluster

    import dpipe

    with (
        patch.dict(os.environ, _SHORT_MEMORY),
        SubprocessCluster(n_workers=2, threads_per_worker=1) as cluster,
        Client(cluster) as client,
    ):

        def sizes() -> Sizes:
            workers = client.run(_rss)
            names = (f"worker {number}" for number in range(len(workers)))
            return {
                **process_size(),
                "scheduler": client.run_on_scheduler(_rss),
                **dict(zip(names, (workers[each] for each in sorted(workers)), strict=True)),
            }

        return growth(calls, lambda: dpipe.select(path, client=client, restart="never"), sizes)


def growth(
    calls: int, call: Callable[[], Any], sizes: Callable[[], Sizes]
) -> dict[str, list[float]]:
    """The sizes of some processes after each call."""
    series: dict[str, list[float]] = {}
    for _ in range(calls):
        call()
        gc.collect()
        for process, size in sizes().items():
            series.setdefault(process, []).append(size)
    return series


def process_size() -> Sizes:
    """The size of this process."""
    return {"this process": _rss()}


def _rss() -> float:
    return float(psutil.Process().memory_info().rss) / 2**20


if __name__ == "__main__":
    main()
