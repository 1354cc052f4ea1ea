"""Many calls of `dpipe.select` on one LocalCluster of the caller's: does the cluster stay whole?

Prints the workers lost, the longest call beside the median of its kind, and what the calls wrote to
the terminal. Every tenth call has a table on which a pass takes longer, so that restarts follow
each other in different rhythms.

Usage: ``python -m benchmarks.guest [--calls 100]``
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks import common


def main() -> None:
    """Measure and print."""
    parser = common.parser(__doc__)
    parser.add_argument("--calls", type=int, default=100)
    parser.add_argument("--rows", type=int, default=100_000, help="of the slow table")
    parser.add_argument("--columns", type=int, default=60)
    arguments = parser.parse_args()
    print(common.machine(), time.strftime("%Y-%m-%d %H:%M"))

    from distributed import Client, LocalCluster

    import dpipe

    paths = [
        common.table(arguments.data, rows, arguments.columns, copies=0.1)
        for rows in (max(arguments.rows // 50, 200), arguments.rows)
    ]
    seconds: dict[int, list[float]] = {0: [], 1: []}
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0") as cluster,
        Client(cluster) as client,
    ):
        with said_by_the_process() as said:
            for call in range(arguments.calls):
                slow = int(call % 10 == 9)
                began = time.monotonic()
                dpipe.select(paths[slow], client=client)
                seconds[slow].append(time.monotonic() - began)
        lost = 2 - len(client.run(os.getpid))
    figures: dict[str, float] = {"calls": arguments.calls, "workers lost": lost}
    for name, each in zip(("quick", "slow"), seconds.values(), strict=True):
        if each:
            median = statistics.median(each)
            figures[f"{name} table, median, s"] = median
            figures[f"{name} table, longest / median"] = max(each) / median
    figures["lines on the terminal"] = len(said)
    common.show(("figure", "value"), figures.items())
    common.finish(arguments, {**figures, "seconds": list(seconds.values()), "said": said})


@contextmanager
def said_by_the_process() -> Iterator[list[str]]:
    """Lines that this process and its children write to standard error inside the block."""
    lines: list[str] = []
    sys.stderr.flush()
    before = os.dup(2)
    with tempfile.TemporaryFile("w+") as file:
        os.dup2(file.fileno(), 2)
        try:
            yield lines
        finally:
            sys.stderr.flush()
            os.dup2(before, 2)
            os.close(before)
            file.seek(0)
            lines += file.read().splitlines()


if __name__ == "__main__":
    main()
