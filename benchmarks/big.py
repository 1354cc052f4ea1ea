"""Passes on tables larger than the memory of the workers: seconds and peak memory, pass by pass.

Whole commands, by this checkout and in turns by another one. A tenth of the columns follow the
column before, so that there is something to drop. Peaks are the highest resident size of each
process, from the ledger. Dask lets a worker spill from 70 % of its limit on and pauses it at 80 %:
a lower peak shows that neither happened.

Usage: ``python -m benchmarks.big [--rows 1000000 --columns 500,2000] [--memory-limit 2GiB]
[--passes 1,2] [--repeats 1] [--other CHECKOUT]``
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import common

MIB = 2**20


def measure(path: Path, checkout: Path, options: Sequence[str]) -> dict[str, float]:
    """Seconds of a run and of each of its passes, and peak MiB of client and workers."""
    with tempfile.TemporaryDirectory() as out:
        words = ["run", str(path), "--output-dir", out, "--quiet", *options]
        whole, cpu = common.command(words, checkout)
        run = json.loads((Path(out) / "run.json").read_text())
    found = {"kept": run["passes"][-1]["n_kept"], "seconds": whole, "CPU seconds": cpu}
    found |= {f"pass {each['number']} s": each["seconds"] for each in run["passes"]}
    found["passes s"] = sum(each["seconds"] for each in run["passes"])
    for number in (each["number"] for each in run["passes"]):
        found[f"pass {number} worker peak"] = _peak(run["ledger"], number)
    found["client peak"] = _peak(run["ledger"])
    found["planned"] = max(each["worker_bytes"] for each in run["plan"]["passes"]) / MIB
    found["limit"] = run["plan"]["machine"]["memory"] / MIB
    return found


def _peak(ledger: Sequence[dict[str, Any]], number: int | None = None) -> float:
    """MiB of the workers after a pass, or of the client where none is named."""
    after = ("after", number)
    return max(
        reading["peak"] / MIB
        for reading in ledger
        if (reading["process"] == "client") == (number is None)
        and (number is None or (reading["moment"], reading["pass_number"]) == after)
    )


def main() -> None:
    """Measure and print."""
    parser = common.parser(__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--columns", default="500,2000")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--memory-limit", default="2GiB")
    parser.add_argument("--passes", default="1,2")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--other", type=Path, help="another checkout to compare with")
    arguments = parser.parse_args()
    print(common.machine(), time.strftime("%Y-%m-%d %H:%M"))
    options = [
        f"--workers={arguments.workers}",
        f"--memory-limit={arguments.memory_limit}",
        f"--passes={arguments.passes}",
    ]
    checkouts = {"dpipe": common.ROOT}
    if arguments.other:
        checkouts["other"] = arguments.other.resolve()
    figures = {}
    for columns in map(int, arguments.columns.split(",")):
        path = common.table(arguments.data, arguments.rows, columns, copies=0.1)
        found: dict[str, list[dict[str, float]]] = {name: [] for name in checkouts}
        for _ in range(arguments.repeats):
            for name, checkout in checkouts.items():
                found[name].append(measure(path, checkout, options))
                print(name, found[name][-1], flush=True)
        figures[f"{arguments.rows} x {columns}"] = found
        print(f"\n{arguments.rows:,} x {columns:,}, {path.stat().st_size / 1e9:.1f} GB\n")
        common.show(("figure", *_heads(found)), _lines(found))
    common.finish(arguments, figures)


def _heads(found: dict[str, list[dict[str, float]]]) -> list[str]:
    return [*found, "other / dpipe"] if len(found) > 1 else [*found]


def _lines(found: dict[str, list[dict[str, float]]]) -> list[tuple[Any, ...]]:
    """Each figure of each checkout, medians of the turns, and the median of their ratios."""
    lines = []
    for figure in found["dpipe"][0]:
        turns = [[each[figure] for each in runs] for runs in found.values()]
        line = [figure, *(common.median(each) for each in turns)]
        if len(turns) > 1:
            line.append(common.median(b / a for a, b in zip(*turns, strict=True)))
        lines.append(tuple(line))
    return lines


if __name__ == "__main__":
    main()
