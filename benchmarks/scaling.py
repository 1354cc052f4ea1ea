"""How the time grows with rows, columns, functions and workers, with tasks and bytes beside it.

Each size is halved step by step while the others stay; every point is the median of an all-pairs
similarity in an open session, Spearman (K = 1) and HSIC (K = 10). ``--plot FILE`` draws the curves.

Usage: ``python -m benchmarks.scaling [--rows 200000 --columns 256 --steps 4] [--plot FILE]``
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks import common

MEASURES = {"spearman": 1, "hsic": 10}


def points(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Every point of every curve, with its seconds, tasks and bytes."""
    from dpipe.options import options_from
    from dpipe.session import open_session

    for workers in map(int, arguments.workers.split(",")):
        options = options_from({"workers": workers, "memory_limit": arguments.memory_limit})
        with open_session(options) as session:
            similarity(common.table(arguments.data, 300, 5), "hsic", options, session.client)
            for axis, rows, columns in sizes(arguments):
                path = common.table(arguments.data, rows, columns)
                for measure, functions in MEASURES.items():
                    found = [
                        similarity(path, measure, options, session.client)
                        for _ in range(arguments.repeats)
                    ]
                    yield {
                        "axis": axis,
                        "rows": rows,
                        "columns": columns,
                        "K": functions,
                        "workers": workers,
                        "seconds": common.median(spent for spent, _ in found),
                        "tasks": found[0][1],
                        "bytes": path.stat().st_size + bytes_planned(rows, columns, functions),
                    }


def sizes(arguments: argparse.Namespace) -> Iterator[tuple[str, int, int]]:
    """(what varies, rows, columns), the largest first."""
    for step in range(arguments.steps):
        yield "rows", arguments.rows >> step, arguments.columns
    for step in range(arguments.steps):
        yield "columns", arguments.rows, arguments.columns >> step


def similarity(path: Path, measure: str, options: Any, client: Any) -> tuple[float, int]:
    """Seconds and tasks of one matrix."""
    from dpipe.model.events import TaskDone
    from dpipe.pipeline import allpairs

    done = []
    start = time.perf_counter()
    allpairs.similarity([path], measure, options=options, client=client, observers=[done.append])
    return time.perf_counter() - start, sum(isinstance(event, TaskDone) for event in done)


def bytes_planned(rows: int, columns: int, functions: int) -> int:
    """Bytes of the rank store, written once and read by the tiles at least once."""
    return rows * columns * 4 * (3 if functions > 1 else 2)


def plot(found: list[dict[str, Any]], target: Path) -> None:
    """Draw seconds against rows and against columns."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), sharey=True, layout="constrained")
    for axis, name in zip(axes, ("rows", "columns"), strict=True):
        for measure, functions in MEASURES.items():
            for workers in sorted({point["workers"] for point in found}):
                curve = [
                    (point[name], point["seconds"])
                    for point in found
                    if (point["axis"], point["K"], point["workers"]) == (name, functions, workers)
                ]
                style = "o-" if workers == 1 else "s--"
                colour = "tab:blue" if functions == 1 else "tab:red"
                label = f"{measure} (K = {functions}), {workers} worker{'s' * (workers > 1)}"
                axis.plot(*zip(*sorted(curve), strict=True), style, color=colour, label=label)
        axis.set(xlabel=name, xscale="log", yscale="log")
        sizes = sorted({point[name] for point in found if point["axis"] == name})
        axis.set_xticks(sizes, [f"{size:,}" for size in sizes])
        axis.set_xticks([], minor=True)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("seconds, file to matrix")
    axes[1].legend(fontsize=8)
    figure.savefig(target, dpi=120)


def main() -> None:
    """Measure, print and plot."""
    parser = common.parser(__doc__)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--columns", type=int, default=256)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--workers", default="1,2")
    parser.add_argument("--memory-limit", default="2GiB")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args()
    print(common.machine(), time.strftime("%Y-%m-%d %H:%M"))
    found = []
    for point in points(arguments):
        found.append(point)
        print(point, flush=True)
    print()
    common.show(tuple(found[0]), [tuple(point.values()) for point in found])
    if arguments.plot:
        plot(found, arguments.plot)
    common.finish(arguments, {"points": found})


if __name__ == "__main__":
    main()
