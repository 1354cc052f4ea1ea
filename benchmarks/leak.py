"""Many runs in one process: does it grow, and do workers return to their baseline?

First with one session for all runs. Prints the slope of the client's resident size over the runs
(a least-squares line, the first quarter left out as warm-up) and, for each restart, the workers'
resident size against that after the first one. Then with a session for each call of
`dpipe.select`, as a service has it: the slope again, and how many schedulers are still alive.

Usage: ``python -m benchmarks.leak [--runs 30] [--calls 40]``
"""

from __future__ import annotations

import argparse
import gc
import time
from pathlib import Path

import numpy as np
import psutil

from benchmarks import common


def main() -> None:
    """Measure and print."""
    parser = common.parser(__doc__)
    parser.add_argument("--runs", type=int, default=30)
    parser.add_argument("--calls", type=int, default=40, help="each with a session of its own")
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--columns", type=int, default=60)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--passes", default="1,2,3,4")
    arguments = parser.parse_args()
    print(common.machine(), time.strftime("%Y-%m-%d %H:%M"))

    from dpipe.options import options_from
    from dpipe.pipeline import run
    from dpipe.session import open_session

    path = common.table(arguments.data, arguments.rows, arguments.columns, copies=0.1)
    options = options_from({"workers": arguments.workers, "passes": arguments.passes})
    process = psutil.Process()
    client: list[float] = []
    baselines: list[list[float]] = []
    with open_session(options) as session:
        for _ in range(arguments.runs):
            selection = run([path], options, client=session.client)
            for moment in {r.seconds for r in selection.ledger if r.moment == "recycled"}:
                baselines.append(
                    [
                        r.rss / 2**20
                        for r in selection.ledger
                        if r.seconds == moment and r.process != "client"
                    ]
                )
            del selection
            gc.collect()
            client.append(process.memory_info().rss / 2**20)
            print(f"client {client[-1]:.1f} MiB, workers {baselines[-1]}", flush=True)
    del session  # which would keep its scheduler
    means = np.array([np.mean(each) for each in baselines])
    drift = float(np.abs(means / means[0] - 1).max()) * 100
    figures = {
        "runs": arguments.runs,
        "restarts": len(baselines),
        "client growth, MiB a run": slope(client),
        "worker baseline, MiB": float(means[0]),
        "largest drift of the baseline, %": drift,
    }
    calls, schedulers = calls_with_own_sessions(arguments, path)
    figures |= {
        "calls": arguments.calls,
        "growth of the process, MiB a call": slope(calls),
        "schedulers alive after the last call": schedulers,
    }
    common.show(("figure", "value"), figures.items())
    series = {"client": client, "baselines": baselines, "calls_memory": calls}
    common.finish(arguments, {**figures, **series})


def calls_with_own_sessions(arguments: argparse.Namespace, path: Path) -> tuple[list[float], int]:
    """Resident size of this process after each call, in MiB; schedulers that are left."""
    from distributed import Scheduler

    import dpipe

    process = psutil.Process()
    sizes = []
    for _ in range(arguments.calls):
        dpipe.select(path, workers=arguments.workers, passes=arguments.passes)
        gc.collect()
        sizes.append(process.memory_info().rss / 2**20)
        print(f"process {sizes[-1]:.1f} MiB", flush=True)
    return sizes, sum(isinstance(thing, Scheduler) for thing in gc.get_objects())


def slope(sizes: list[float]) -> float:
    """Growth from one size to the next, the first quarter left out."""
    settled = sizes[len(sizes) // 4 :]
    return float(np.polyfit(range(len(settled)), settled, 1)[0]) if len(settled) > 1 else 0.0


if __name__ == "__main__":
    main()
