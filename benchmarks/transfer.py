"""Whether a selection holds on new data, against selecting anew on it.

Covers: seconds of `dpipe.transfer` and of `dpipe.select` on the second half of a table whose first
half was selected, in one open session; the largest difference to pandas of the values. With --shell
seconds and CPU seconds of ``dpipe run`` and ``dpipe transfer``, whole commands in turns, and of the
``dpipe transfer`` of another checkout.
Does not cover: a run's own time (benchmarks/big.py).

``python -m benchmarks.transfer [PARQUET] [--rows N] [--columns P] [--passes 1,2] [--repeats R]
[--shell] [--other CHECKOUT]``; without a PARQUET a table is made.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.dataset as ds
import pyarrow.parquet as pq

import dpipe
from benchmarks.common import (
    ROOT,
    command,
    finish,
    machine,
    median,
    parser,
    seconds,
    show,
    table,
)


def halves(source: str, folder: Path) -> tuple[Path, Path]:
    """The first and the second half of a table, numbers only."""
    whole = ds.dataset(source).to_table()
    cut = len(whole) // 2
    paths = folder / "first.parquet", folder / "second.parquet"
    for path, part in zip(paths, (whole[:cut], whole[cut:]), strict=True):
        pq.write_table(part, path)
    return paths


def largest_difference(answer: Any, path: Path) -> float:
    """To the pairwise Spearman of pandas, of every column that is compared by it."""
    mine = [each for each in answer.certificates if each.measure == "spearman"]
    names = sorted({name for each in mine for name in (each.column, each.representative)})
    frame = pd.read_parquet(path, columns=names)
    frame = frame.replace([float("inf"), -float("inf")], float("nan"))
    return max(
        abs(each.now - frame[each.column].corr(frame[each.representative], method="spearman"))
        for each in mine
        if each.now == each.now
    )


def commands(first: Path, second: Path, asked: argparse.Namespace) -> None:
    """Print seconds of whole commands and how they compare, medians of turns."""
    finished = first.parent / "run"
    options = [f"--passes={asked.passes}", "--quiet"]
    command(["run", str(first), "--output-dir", str(finished), *options], ROOT)
    again = ["transfer", str(finished), str(second), "--quiet"]
    checkouts = {"transfer": ROOT} | ({"other transfer": asked.other} if asked.other else {})
    taken: dict[str, list[tuple[float, float]]] = {}
    for turn in range(asked.repeats):
        anew = ["run", str(second), "--output-dir", str(first.parent / f"anew{turn}"), *options]
        taken.setdefault("run", []).append(command(anew, ROOT))
        for name, checkout in checkouts.items():
            taken.setdefault(name, []).append(command(again, checkout.resolve()))
    lines = []
    for name, each in taken.items():
        pairs = list(zip(taken["run"], each, strict=True))
        ratios = [median(anew[k] / one[k] for anew, one in pairs) for k in (0, 1)]
        lines.append([name, *(median(one[k] for one in each) for k in (0, 1)), *ratios])
    show(["command", "s", "CPU s", "run / it", "in CPU time"], lines)
    finish(asked, {"taken": taken})


def main() -> None:
    """Print seconds of both and how they compare."""
    arguments = parser(__doc__)
    arguments.add_argument("source", nargs="?")
    arguments.add_argument("--rows", type=int, default=100_000)
    arguments.add_argument("--columns", type=int, default=1000)
    arguments.add_argument("--passes", default="1,2,3,4")
    arguments.add_argument("--repeats", type=int, default=3)
    arguments.add_argument("--shell", action="store_true", help="measure whole commands")
    arguments.add_argument("--other", type=Path, help="another checkout to compare with")
    asked = arguments.parse_args()
    print(machine(), "\n")
    source = asked.source or str(
        table(asked.data, asked.rows, asked.columns, missing=0.05, copies=0.6)
    )
    passes = tuple(int(number) for number in asked.passes.split(","))
    with tempfile.TemporaryDirectory() as folder:
        first, second = halves(source, Path(folder))
        if asked.shell:
            commands(first, second, asked)
            return
        from distributed import Client

        with Client(
            processes=False, n_workers=1, threads_per_worker=2, dashboard_address=None
        ) as own:
            options: dict[str, Any] = {"client": own, "restart": "never"}
            run = dpipe.select(first, output_dir=f"{folder}/run", passes=passes, **options)

            def anew() -> None:
                dpipe.select(second, passes=passes, **options)

            def again() -> Any:
                return dpipe.transfer(f"{folder}/run", second, **options)

            answer = again()
            slow = median(seconds(anew) for _ in range(asked.repeats))
            fast = median(seconds(again) for _ in range(asked.repeats))
        off = largest_difference(answer, second)
    columns = sum(each.decision in ("kept", "dropped") for each in run.decisions)
    line = [asked.source or "made", columns, len(run.selected), slow, fast, slow / fast, off]
    head = ["table", "columns", "kept", "select (s)", "transfer (s)", "times", "off pandas"]
    show(head, [line])
    finish(asked, dict(zip(head, line, strict=True)))


if __name__ == "__main__":
    main()
