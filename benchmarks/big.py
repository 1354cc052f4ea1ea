"""Passes 1 and 2 on tables larger than the memory of the workers: seconds and peak memory.

A tenth of the columns follow the column before, so that there is something to drop. Peaks are the
highest resident size of each process, from the ledger. Dask lets a worker spill from 70 % of its
limit on and pauses it at 80 %: a lower peak shows that neither happened.

Usage: ``python -m benchmarks.big [--rows 1000000 --columns 500,2000] [--memory-limit 2GiB]``
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from benchmarks import common


def measure(path: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Seconds of each pass and peak bytes of client and workers."""
    from dpipe.model.events import PassDone, RunStarted
    from dpipe.options import options_from
    from dpipe.pipeline import run

    events: list[Any] = []
    start = time.perf_counter()
    selection = run([path], options_from(settings), observers=[events.append])
    whole = time.perf_counter() - start
    began = next(event for event in events if isinstance(event, RunStarted))
    peaks: dict[str, int] = {}
    for reading in selection.ledger:
        who = "client" if reading.process == "client" else "worker"
        peaks[who] = max(peaks.get(who, 0), reading.peak)
    return {
        "kept": len(selection.selected),
        "seconds": whole,
        **{f"pass {e.number} s": e.seconds for e in events if isinstance(e, PassDone)},
        "planned MiB": began.worker_bytes >> 20,
        "worker peak MiB": peaks["worker"] >> 20,
        "limit MiB": began.memory_limit >> 20,
        "client peak MiB": peaks["client"] >> 20,
        "spilled or paused": peaks["worker"] > 0.7 * began.memory_limit,
    }


def main() -> None:
    """Measure and print."""
    parser = common.parser(__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--columns", default="500,2000")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--memory-limit", default="2GiB")
    parser.add_argument("--passes", default="1,2")
    arguments = parser.parse_args()
    print(common.machine(), time.strftime("%Y-%m-%d %H:%M"))
    settings = {
        "workers": arguments.workers,
        "memory_limit": arguments.memory_limit,
        "passes": arguments.passes,
    }
    figures = {}
    for columns in map(int, arguments.columns.split(",")):
        path = common.table(arguments.data, arguments.rows, columns, copies=0.1)
        size = {"GB": path.stat().st_size / 1e9}
        figures[f"{arguments.rows} x {columns}"] = size | measure(path, settings)
        print(figures, flush=True)
    first = next(iter(figures.values()))
    common.show(
        ("figure", *figures),
        [(name, *(each[name] for each in figures.values())) for name in first],
    )
    common.finish(arguments, figures)


if __name__ == "__main__":
    main()
