"""dpipe beside the floors of the same machine in the same run.

The floors are bare loops in as many processes as dpipe has workers, in the environment dpipe gives
its workers, on the same file: decode every byte with pyarrow, argsort every column with NumPy (and,
stricter, only sort it), multiply float32 ranks with their own transpose. dpipe's passes are timed
from their start to their decisions, less the restart of the workers.

The scheduler's share is the time between two tasks of a worker, over the time from its first task
of a pass to its last, as the Dask task stream has it.

Usage: ``python -m benchmarks.limit [--rows 1000000 --columns 500] [--nonlinear-rows 200000]``
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from benchmarks import common

CHUNK = 16384
BASIS = 10


def decode(path: str, part: int, parts: int) -> float:
    """Seconds to decode one part's columns of every row group, a few at a time as they come."""
    start = time.perf_counter()
    with pq.ParquetFile(path) as file:
        names = file.schema_arrow.names[part::parts]
        for group in range(file.num_row_groups):
            for first in range(0, len(names), 32):
                file.read_row_group(group, columns=names[first : first + 32], use_threads=False)
    return time.perf_counter() - start


def sort(path: str, part: int, parts: int, function: str) -> float:
    """Seconds to order one part's columns, which are read first."""
    with pq.ParquetFile(path) as file:
        names = file.schema_arrow.names[part::parts]
        spent = 0.0
        for first in range(0, len(names), 8):
            read = file.read(columns=names[first : first + 8], use_threads=False)
            columns = [column.to_numpy() for column in read.columns]
            start = time.perf_counter()
            for column in columns:
                getattr(np, function)(column)
            spent += time.perf_counter() - start
    return spent


def gram(rows: int, width: int, parts: int) -> float:
    """Seconds of the symmetric float32 product of one part's rows, chunk by chunk."""
    chunk = min(CHUNK if width < 2048 else CHUNK // 2, max(1, rows // parts))
    values = np.random.default_rng(0).random((width, chunk), dtype=np.float32)
    out = np.empty((width, width), dtype=np.float32)
    np.matmul(values, values.T, out=out)
    start = time.perf_counter()
    for _ in range(max(1, round(rows / parts / chunk))):
        np.matmul(values, values.T, out=out)
    return time.perf_counter() - start


def floors(path: str, workers: int, rows: int, columns: int, nonlinear: int) -> dict[str, float]:
    """Seconds of each floor: of the slowest of `workers` processes at work together."""
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        list(pool.map(time.sleep, [0.5] * workers))

        def slowest(function: Any, *arguments: Any) -> float:
            return max(f.result() for f in [pool.submit(function, *a) for a in arguments])

        parts = [(path, part, workers) for part in range(workers)]
        return {
            "decode": slowest(decode, *parts),
            "argsort": slowest(sort, *((*part, "argsort") for part in parts)),
            "sort": slowest(sort, *((*part, "sort") for part in parts)),
            "gram": slowest(gram, *[(rows, columns, workers)] * workers),
            "gram nonlinear": slowest(gram, *[(nonlinear, columns * BASIS, workers)] * workers),
        }


def passes(path: Path, workers: int, memory: str, chosen: tuple[int, ...]) -> dict[str, float]:
    """Seconds of dpipe's passes, less the start and the restart of the workers."""
    from dpipe.model.events import Event, MemoryRead, PassDone, PassStarted, RunStarted
    from dpipe.options import options_from
    from dpipe.pipeline import run

    marks: dict[str, float] = {}

    def watch(event: Event) -> None:
        now = time.perf_counter()
        match event:
            case PassStarted(number=number):
                marks[f"begin {number}"] = now
            case RunStarted():
                marks["begin 1"] = now
            case MemoryRead(readings=(first, *_)) if first.moment == "after":
                marks[f"end {first.pass_number}"] = now
            case PassDone(number=number):
                marks.setdefault(f"end {number}", now)

    options = options_from({"passes": chosen, "workers": workers, "memory_limit": memory})
    run([path], options, observers=[watch])
    return {f"pass {k}": marks[f"end {k}"] - marks[f"begin {k}"] for k in chosen}


def scheduler_share(path: Path, workers: int, memory: str) -> float:
    """Largest share of a worker's time between its tasks, of passes 1 and 2 in an open session."""
    from dpipe.options import options_from
    from dpipe.pipeline.allpairs import similarity
    from dpipe.session import open_session

    options = options_from({"workers": workers, "memory_limit": memory})
    with open_session(options) as session:
        session.client.get_task_stream()  # from now on it is recorded
        similarity([path], "spearman", options=options, client=session.client)
        tasks = session.client.get_task_stream()
    spans: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for task in tasks:
        kind = task["key"].split("-")[0]
        for step in task["startstops"]:
            if kind in ("rank", "moments") and step["action"] == "compute":
                key = (task["worker"], kind)
                spans.setdefault(key, []).append((step["start"], step["stop"]))
    shares = []
    for steps in spans.values():
        whole = max(stop for _, stop in steps) - min(start for start, _ in steps)
        shares.append(1 - sum(stop - start for start, stop in steps) / whole)
    return max(shares)


def main() -> None:
    """Measure floors and dpipe in turns, and print medians and their ratios."""
    if sys.argv[1:2] == ["--floors"]:
        path, *sizes = sys.argv[2:]
        print(json.dumps(floors(path, *map(int, sizes))))
        return
    parser = common.parser(__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--columns", type=int, default=500)
    parser.add_argument("--nonlinear-rows", type=int, default=200_000, help="rows of pass 4")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--memory-limit", default="2GiB")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    print(common.machine(), time.strftime("%Y-%m-%d %H:%M"))
    rounds = [one_round(arguments) for _ in range(arguments.repeats)]
    figures = {name: common.median(each[name] for each in rounds) for name in rounds[0]}
    print(f"\n{arguments.rows} x {arguments.columns}, pass 4 on {arguments.nonlinear_rows} rows\n")
    common.show(("figure", "median"), figures.items())
    common.finish(arguments, {"rounds": rounds, "medians": figures})


def one_round(arguments: argparse.Namespace) -> dict[str, float]:
    """Seconds of floors and passes, and the ratios of this round."""
    tall = common.table(arguments.data, arguments.rows, arguments.columns, copies=0.1)
    short = common.table(arguments.data, arguments.nonlinear_rows, arguments.columns)
    sizes = (arguments.workers, arguments.rows, arguments.columns, arguments.nonlinear_rows)
    found: dict[str, float] = common.own_process(
        "benchmarks.limit",
        *("--floors", str(tall), *map(str, sizes)),
        environment=common.worker_env(),
    )
    found |= passes(tall, arguments.workers, arguments.memory_limit, (1, 2))
    found |= {
        name: spent
        for name, spent in passes(short, arguments.workers, arguments.memory_limit, (1, 4)).items()
        if name == "pass 4"
    }
    both = found["pass 1"] + found["pass 2"]
    found["passes 1+2 / (decode + argsort + gram)"] = both / (
        found["decode"] + found["argsort"] + found["gram"]
    )
    found["passes 1+2 / (decode + sort + gram)"] = both / (
        found["decode"] + found["sort"] + found["gram"]
    )
    found["pass 4 / gram"] = found["pass 4"] / found["gram nonlinear"]
    found["scheduler's share"] = scheduler_share(tall, arguments.workers, arguments.memory_limit)
    print({name: round(value, 3) for name, value in found.items()}, flush=True)
    return found


if __name__ == "__main__":
    main()
