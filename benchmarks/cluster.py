"""What the scheduler and the client cost a run on many workers, whose tasks sleep.

Every pass of the plan of a table goes through dpipe's own submission to a real Dask scheduler with
real workers, which share one process and one event loop; scheduler and client have a process each.
The tasks are those of `benchmarks.sleepers`, by a factor shorter than one core would take, which is
another for each pass: so much that they are over soon, and not so much that one process, which has
as many workers, is what they wait for. Fewer workers get as many rows less.

busy: what the workers slept over what they could have. scheduler: the CPU time of its process over
the time of all workers. client: its largest growth, by way of all passes. The time of a run is that
of its passes, each times its factor; weak scaling compares it with that on the fewest workers. At
the end a burst of tasks that do nothing shows how many a second client and scheduler manage.

Usage: ``python -m benchmarks.cluster [--workers 1,4,16,64] [--factor 1]``
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import Mock, patch

import psutil
from distributed import Client, Scheduler, Worker

from benchmarks import common, sleepers
from dpipe.engine import grid, submit, tiles
from dpipe.engine.context import Context
from dpipe.engine.measures import fusion_of
from dpipe.engine.tiling import ranking_blocks
from dpipe.model.events import silent
from dpipe.model.records import ColumnStatistics
from dpipe.model.registry import PASSES
from dpipe.options import Options
from dpipe.rankstore import Store, StoredColumn
from dpipe.session import attach_session

ROOT = Path(__file__).resolve().parent.parent
ROW_GROUP = 2**17
FACTORS = {"prepare": 20, "spearman": 10, "prediction": 10, "nonlinear": 500}
"""How much shorter the tasks of each pass are."""


async def serve_scheduler() -> None:
    """A scheduler that says its address and lives until its input ends."""
    async with Scheduler(host="127.0.0.1", port=0, dashboard_address="127.0.0.1:0") as scheduler:
        print(scheduler.address, flush=True)
        await asyncio.to_thread(sys.stdin.read)


async def serve_workers(address: str, number: str, memory: str) -> None:
    """Workers of one thread each, in this process and this event loop, as long."""
    workers = [
        Worker(address, nthreads=1, memory_limit=memory, dashboard=False, name=k)
        for k in range(int(number))
    ]
    await asyncio.gather(*workers)
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await asyncio.gather(*(worker.close(reason="the benchmark is over") for worker in workers))


@contextmanager
def served(*words: str) -> Iterator[str]:
    """A process of this module that serves; yields the line it says when it is ready."""
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.cluster", "--serve", *words],
        cwd=ROOT,
        env={**os.environ, "DASK_LOGGING__DISTRIBUTED": "error"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout is not None
        yield process.stdout.readline().strip()


class Growth:
    """The largest growth of this process while it is watched, in bytes."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._first = self._process.memory_info().rss
        self._over = threading.Event()
        self.peak = 0
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._over.wait(0.02):
            self.peak = max(self.peak, self._process.memory_info().rss - self._first)

    def stop(self) -> int:
        """The growth so far; the watch ends."""
        self._over.set()
        self._thread.join()
        return self.peak


@dataclass(frozen=True)
class Spent:
    """What a pass took.

    Attributes
    ----------
    tasks
        That the client has submitted.
    seconds
        Of wall time.
    slept
        Seconds of all tasks together.
    scheduler
        CPU seconds of its process.
    client
        CPU seconds of this one.
    factor
        How much shorter the tasks were.
    """

    tasks: int
    seconds: float
    slept: float
    scheduler: float
    client: float
    factor: float

    def row(self, workers: int) -> tuple[object, ...]:
        """As it is printed."""
        share = workers * self.seconds
        return (
            self.tasks,
            self.seconds,
            self.tasks / self.seconds,
            self.slept / share,
            f"{100 * self.scheduler / share:.3f} %",
            self.client / self.tasks * 1e3,
        )


def observed(client: Client, work: Callable[[], Any], factor: float = 1) -> Spent:
    """What one piece of work takes whose tasks are so much shorter."""
    first = [next(iter(client.scheduler_info(n_workers=-1)["workers"]))]  # in the process of all
    client.run(sleepers.begin, factor, workers=first)
    cpu, own = client.run_on_scheduler(time.process_time), time.process_time()
    with patch.object(client, "submit", Mock(side_effect=client.submit)) as submitted:
        seconds = common.seconds(work)
    own = time.process_time() - own
    cpu = client.run_on_scheduler(time.process_time) - cpu
    (slept,) = client.run(sleepers.slept, workers=first).values()
    return Spent(submitted.call_count, seconds, slept, cpu, own, factor)


def columns_of(number: int, n_rows: int, blocks: list[tuple[int, int]]) -> dict[str, StoredColumn]:
    """Complete columns, a quarter of them with ties, as pass 1 would leave them."""
    found = {}
    for block, (start, stop) in enumerate(blocks):
        for k in range(start, stop):
            unique = n_rows if k % 4 else n_rows // 1000
            facts = (*(n_rows, n_rows, 0, 0, 0, unique), *(0.0,) * 8, f"{k:064x}")
            statistics = ColumnStatistics(f"descriptor_{k:05d}", *facts)
            found[statistics.name] = StoredColumn(statistics, block, k - start, -1, "")
    assert len(found) == number
    return found


def passes(context: Context, number: int) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Every pass of the plan by its name: a call that submits its tasks and waits for them."""
    n_rows = context.n_rows
    blocks = ranking_blocks(n_rows, number, ROW_GROUP, context.machine)
    prepared = columns_of(number, n_rows, blocks)
    names = list(prepared)
    record = f"table-{0:016x}.json"
    tasks = [
        (n_rows, context.store, record, block, names[start:stop], "cpu")
        for block, (start, stop) in enumerate(blocks)
    ]

    def rank() -> None:
        for _ in submit.run_tasks(
            *(context.session, "rank-columns", sleepers.rank_columns, tasks, context.emit),
            need=0,
            describe=str,
        ):
            pass

    yield PASSES[1].name, rank
    for entry in PASSES.values():
        if entry.measures_pairs and entry.number in context.options.pass_numbers:
            fusion = fusion_of(entry, context.options)
            yield entry.name, partial(grid.run_grid, context, prepared, names, entry.name, fusion)


def measure(workers: int, given: Any) -> tuple[dict[str, Spent], float]:
    """Every pass on so many workers, and the client's growth in MiB."""
    rows = given.rows * workers // max(given.workers)
    found: dict[str, Spent] = {}
    with (
        served("scheduler") as address,
        served("workers", address, str(workers), given.memory),
        tempfile.TemporaryDirectory() as folder,
        attach_session(address, Options()) as session,
        patch.multiple(tiles, **sleepers.TASKS),
    ):
        options = Options().resolved(rows)
        store = Store(folder, durable=False)
        context = Context(session, store, options, silent, rows)
        growth = Growth()
        for name, work in passes(context, given.columns):
            found[name] = observed(session.client, work, given.factor * FACTORS[name])
        grown = growth.stop() / 2**20
        if workers == max(given.workers):
            tasks = [(k,) for k in range(given.burst)]
            found["nothing"] = observed(
                session.client,
                lambda: list(
                    submit.run_tasks(
                        *(session, "do-nothing", sleepers.nothing, tasks, silent),
                        need=0,
                        describe=str,
                    )
                ),
            )
    return found, grown


def main() -> None:
    """Measure and print."""
    if sys.argv[1:2] == ["--serve"]:
        kind, *words = sys.argv[2:]
        asyncio.run(serve_scheduler() if kind == "scheduler" else serve_workers(*words))
        return
    parser = common.parser(__doc__)
    parser.add_argument("--rows", type=int, default=120_000_000, help="of the most workers")
    parser.add_argument("--columns", type=int, default=1826)
    parser.add_argument("--workers", default="1,4,16,64")
    parser.add_argument("--memory", default="16GiB", help="of a worker, for the plan")
    parser.add_argument("--factor", type=float, default=1, help="by so much shorter again")
    parser.add_argument("--burst", type=int, default=5000, help="tasks that do nothing")
    given = parser.parse_args()
    given.workers = [int(word) for word in given.workers.split(",")]
    print(common.machine(), time.strftime("%Y-%m-%d %H:%M"))
    figures: dict[str, Any] = {}
    rows: list[tuple[Any, ...]] = []
    for workers in given.workers:
        found, grown = measure(workers, given)
        figures[str(workers)] = found
        head = ("tasks", "s", "tasks a second", "busy", "scheduler", "client, CPU ms a task")
        print(f"\n{workers} workers\n")
        common.show(("pass", *head), [(name, *spent.row(workers)) for name, spent in found.items()])
        run = [spent for name, spent in found.items() if name != "nothing"]
        whole = sum(spent.seconds * spent.factor for spent in run)
        slept = sum(spent.slept * spent.factor for spent in run) / workers
        share = sum(spent.scheduler for spent in run) / sum(spent.seconds for spent in run)
        tasks = sum(spent.tasks for spent in run)
        rows.append((workers, tasks, whole, slept / whole, f"{100 * share / workers:.3f} %", grown))
    print()
    common.show(
        ("workers", "tasks", "s of the plan", "busy", "scheduler", "client, MiB", "weak scaling"),
        [(*row, rows[0][2] / row[2]) for row in rows],
    )
    common.finish(given, figures)


if __name__ == "__main__":
    main()
