"""What a run says it would keep at other thresholds, against runs at those thresholds.

Covers: the columns that `dpipe.load(folder).what_if` keeps and those of fresh runs, of pass 2, of
pass 4 after pass 2, and of pass 4 where pass 3 runs between; processor seconds of a what-if on a
table of pairs of any size.
Does not cover: how long a run takes (benchmarks/big.py).

``python -m benchmarks.whatif [PARQUET...] [--thresholds N] [--leave-out NAMES] [--columns P]
[--pairs M]``; each PARQUET is a table of its own.
"""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

import dpipe
from benchmarks.common import finish, machine, parser, show
from dpipe.choice.certificate import came_back
from dpipe.model.records import Decision, Edges, Pairs
from dpipe.options import Options
from dpipe.runfolder import RunFolder
from dpipe.runfolder.thresholds import FinishedPass

FLOOR = 0.6
SETTINGS = ((2, (1, 2)), (4, (1, 2, 4)), (4, (1, 2, 3, 4)))
"""The pass that is asked, and the passes of the run."""


def thresholds(many: int) -> list[float]:
    """As many, from the floor to nearly 1."""
    return [round(value, 3) for value in np.linspace(FLOOR, 0.98, many).tolist()]


def kept_by(selection: dpipe.Selection) -> tuple[str, ...]:
    """What the last pass kept: the selection without what pass 3 took back because of it."""
    return tuple(d.column for d in selection.decisions if d.decision == "kept" and not came_back(d))


def compare(
    table: str, many: int, options: dict[str, Any], client: Any, folder: Path
) -> Iterator[list[object]]:
    """A line for each setting: how many answers are those of a fresh run."""
    for number, passes in SETTINGS:
        name = {2: "spearman_threshold", 4: "nonlinear_threshold"}[number]
        run = {**options, "passes": passes, "client": client, "restart": "never"}
        run["output_dir"] = folder / "run"
        dpipe.select(table, pairs_from=FLOOR, **run)
        asked = dpipe.load(folder / "run")
        answers = {t: asked.what_if(t, number) for t in thresholds(many)}
        run["output_dir"] = folder / "again"
        same, sizes = 0, []
        for threshold, answer in answers.items():
            fresh = kept_by(dpipe.select(table, **run, **{name: threshold}))
            same += fresh == answer.kept
            sizes.append(len(fresh))
        words = ", ".join(map(str, passes))
        yield [table, number, words, f"{min(sizes)} to {max(sizes)}", f"{same} of {many}"]


def made_run(folder: Path, columns: int, pairs: int) -> float:
    """A run folder whose pass 2 left so many pairs of families of columns; its floor."""
    rng = np.random.default_rng(0)
    factors = rng.standard_normal((400, 40))
    loads = rng.dirichlet(np.full(40, 0.06), size=columns)
    values = factors @ loads.T
    values += 0.02 * values.std(axis=0) * rng.standard_normal(values.shape)
    i, j = np.triu_indices(columns, 1)
    value = np.corrcoef(values.T)[i, j]
    strong = np.argsort(-np.abs(value))[:pairs]
    value = 0.7 + 0.3 * np.abs(value[strong]) ** 2  # any such table lists them from 0.7 on
    names = [f"descriptor_{k:05d}" for k in range(columns)]
    run = RunFolder(folder).create()
    empty = (None,) * 5
    run.write_decisions(
        [
            Decision(n, "double", 400, 0, 0, 0, 400, "kept", None, "no similar column", *empty)
            for n in names
        ]
    )
    run.write_selected(names)
    run.write_communities({name: [] for name in names})
    run.write_run({"options": dataclasses.asdict(Options(passes=(1, 2))), "ledger": []})
    edges = Edges.sorted(i[strong], j[strong], value)
    listed = Pairs(edges, np.full(pairs, 400), np.ones(pairs, dtype=bool), 0.7)
    run.write_pairs(2, names, {"spearman": listed})
    run.join_pairs([2])
    return 0.7


def seconds_of(folder: Path, threshold: float) -> tuple[float, int]:
    """Processor seconds from the folder to an answer, and the columns it keeps."""
    start = time.process_time()
    kept = FinishedPass(folder, 2).at(threshold).kept
    return time.process_time() - start, len(kept)


def main() -> None:
    """Print both tables."""
    arguments = parser(__doc__)
    arguments.add_argument("tables", nargs="*", default=["examples/nci/*.parquet"])
    arguments.add_argument("--thresholds", type=int, default=10)
    arguments.add_argument("--leave-out", default="", help="columns, separated by commas")
    arguments.add_argument("--columns", type=int, default=2000)
    arguments.add_argument("--pairs", type=int, default=500_000)
    asked = arguments.parse_args()
    print(machine(), "\n")
    left_out = {"exclude": tuple(filter(None, asked.leave_out.split(",")))}
    lines, speed = [], []
    with tempfile.TemporaryDirectory() as folder:
        made_run(Path(folder) / "made", asked.columns, asked.pairs)
        seconds_of(Path(folder) / "made", 0.99)  # everything is imported
        for threshold in (0.7, 0.75, 0.8, 0.85, 0.9, 0.95):
            seconds, kept = seconds_of(Path(folder) / "made", threshold)
            speed.append([threshold, kept, seconds])
    show([f"threshold ({asked.columns:,} columns, {asked.pairs:,} pairs)", "kept", "CPU s"], speed)
    print()
    from distributed import Client

    with Client(processes=False, n_workers=1, threads_per_worker=2, dashboard_address=None) as own:
        for table in asked.tables:
            with tempfile.TemporaryDirectory() as folder:
                lines += compare(table, asked.thresholds, left_out, own, Path(folder))
    show(["table", "pass asked", "passes run", "columns kept", "same as a fresh run"], lines)
    finish(asked, {"speed": speed, "answers": lines})


if __name__ == "__main__":
    main()
