"""Pass 4 from the ranks: from the first of its tasks to its decisions, in threads of one process.

Covers: seconds and CPU seconds of the pass on a given table, or on a generated one without ties;
the same by another checkout, in turns.

Usage: ``python -m benchmarks.nonlinear [TABLE] [--exclude NAMES] [--rows 200000] [--columns 500]
[--repeats 5] [--other CHECKOUT]``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.common import finish, machine, median, parser, show, table, worker_env

ROOT = Path(__file__).resolve().parent.parent


def measure(source: str, exclude: str) -> None:
    """Print seconds and CPU seconds of pass 4 as JSON."""
    import igraph  # noqa: F401  (a pass before would have paid for it)

    from dpipe.pipeline import run
    from dpipe.session import threads_here

    try:
        from dpipe.model.events import PassDone, StageStarted
        from dpipe.options import options_from
    except ImportError:  # a checkout from before they had modules of their own
        from dpipe.config import options_from  # type: ignore[import-not-found, no-redef]
        from dpipe.model import PassDone, StageStarted  # type: ignore[no-redef, attr-defined]

    marks: dict[str, tuple[float, float]] = {}

    def watch(event: Any) -> None:
        now = time.perf_counter(), time.process_time()
        match event:
            case StageStarted(name=("marginals-nonlinear" | "own-nonlinear")):
                marks["start"] = now
            case PassDone(number=4):
                marks["stop"] = now

    given = {"passes": (1, 2, 4), "exclude": [name for name in exclude.split(",") if name]}
    with threads_here() as client:
        run([source], options_from(given), client=client, observers=[watch])
    print(json.dumps([b - a for a, b in zip(marks["start"], marks["stop"], strict=True)]))


def pass_4(checkout: Path, source: str, exclude: str) -> tuple[float, float]:
    """Seconds and CPU seconds of pass 4 by a checkout."""
    environment = {**os.environ, **worker_env(), "PYTHONPATH": str(checkout)}
    done = subprocess.run(
        [sys.executable, "-P", __file__, "--measure", source, exclude],
        env=environment,
        stdout=subprocess.PIPE,
        check=True,
        text=True,
        cwd=checkout,
    )
    seconds, cpu = json.loads(done.stdout.strip().splitlines()[-1])
    return seconds, cpu


def main() -> None:
    """Measure in turns, and compare."""
    if sys.argv[1:2] == ["--measure"]:
        measure(*sys.argv[2:])
        return
    arguments = parser(__doc__)
    arguments.add_argument("table", nargs="?", help="a table of yours; a generated one by default")
    arguments.add_argument("--exclude", default="", help="columns of it that are left out")
    arguments.add_argument("--rows", type=int, default=200_000)
    arguments.add_argument("--columns", type=int, default=500)
    arguments.add_argument("--repeats", type=int, default=5)
    arguments.add_argument("--other", type=Path, help="another checkout to compare with")
    given = arguments.parse_args()
    print(machine())
    source = os.path.abspath(given.table or table(given.data, given.rows, given.columns))
    checkouts = {"dpipe": ROOT} | ({"other": given.other.resolve()} if given.other else {})
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in checkouts}
    for _ in range(given.repeats):
        for name, checkout in checkouts.items():
            found[name].append(pass_4(checkout, source, given.exclude))
    rows = [
        (name, *(median(one[k] for one in each) for k in (0, 1))) for name, each in found.items()
    ]
    show(["pass 4", "s", "CPU s"], rows)
    if given.other:
        pairs = list(zip(found["dpipe"], found["other"], strict=True))
        ratios = [median(other[k] / own[k] for own, other in pairs) for k in (0, 1)]
        print(f"other / dpipe: {ratios[0]:.2f} in time, {ratios[1]:.2f} in CPU time")
    finish(given, {"found": found})


if __name__ == "__main__":
    main()
