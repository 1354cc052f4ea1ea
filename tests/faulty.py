"""The command line of dpipe on a machine that fails at a place a test names.

Covers: the client killed before or after a file gets its name, a worker killed when it opens one,
a disk that is full from the moment a file is opened, and tasks that take long; small tiles, so that
a small table has many tasks.
Does not cover: what must come of it (`test_resume`, `test_faults`).

Run as a script, ``python faulty.py run ...``. Workers import it too, as every program's main
module, and so share the trouble. ``FAULT`` holds ``KIND PATTERN``: the path of a file decides.
"""

from __future__ import annotations

import builtins
import fnmatch
import functools
import os
import resource
import signal
import sys
import time
from typing import Any

from dpipe.engine import grid

CLIENT = "FAULTY_CLIENT"
FAULT = "FAULTY"
LOG = "FAULTY_LOG"  # a file that lists every file of a finished task
SECONDS = "FAULTY_SECONDS"  # how long a task takes at least, by how long its file takes

_FINISHED = ("*/block-*.json", "*/marginals-*.npz", "*/tile-*.npz", "*/settled-*.npz")
_kind, _, _pattern = os.environ.get(FAULT, "none -").partition(" ")
_replace = os.replace
_open = builtins.open

grid._PAIRS_A_BATCH = 4
grid._RERANKED_A_BATCH = 4


def _strikes(kind: str, path: object) -> bool:
    return kind == _kind and fnmatch.fnmatch(str(path), _pattern)


def _kill(process: int) -> None:
    os.kill(process, signal.SIGKILL)
    time.sleep(60)  # a worker goes with its client, in its own time


def replace(source: Any, target: Any, **settings: Any) -> None:
    """``os.replace`` in unlucky circumstances."""
    finishes = any(fnmatch.fnmatch(str(target), pattern) for pattern in _FINISHED)
    if finishes:
        time.sleep(float(os.environ.get(SECONDS, "0")))
    if _strikes("kill-before", target):
        _kill(int(os.environ[CLIENT]))
    _replace(source, target, **settings)
    if finishes and LOG in os.environ:
        with _open(os.environ[LOG], "a") as log:
            log.write(f"{target}\n")
    if _strikes("kill-after", target):
        _kill(int(os.environ[CLIENT]))


def open(file: Any, mode: str = "r", *arguments: Any, **settings: Any) -> Any:
    """``open`` in unlucky circumstances."""
    if _strikes("worker-dies", file) and os.environ.get(CLIENT) != str(os.getpid()):
        os._exit(1)
    opened = _open(file, mode, *arguments, **settings)
    if "r" not in mode and _strikes("disk-full", file):
        resource.setrlimit(resource.RLIMIT_FSIZE, (20, resource.RLIM_INFINITY))
    return opened


async def no_report(*_: Any, **settings: Any) -> str:
    """For Dask's report of a run."""
    return "<p>Not drawn for this test.</p>"


os.replace = replace  # type: ignore[assignment]
builtins.open = open

if __name__ == "__main__":
    os.environ[CLIENT] = str(os.getpid())
    # Bokeh takes two seconds of a run, for Dask's own pages and report: a hundred runs go without.
    sys.modules["distributed.dashboard.scheduler"] = None  # type: ignore[assignment]
    from distributed.scheduler import Scheduler

    from dpipe import pipeline
    from dpipe.cli import main
    from dpipe.common.environment import own_this_process
    from dpipe.common.spared import spare_imports
    from dpipe.engine.machine import Limits

    small = Limits(
        columns=12, functions=144, fewest_columns=6, rank_rows=300, rows=300, fewest_rows=100
    )
    pipeline.run = functools.partial(pipeline.run, limits=small)  # type: ignore[assignment]
    Scheduler.performance_report = no_report
    own_this_process()  # as the program does
    spare_imports()
    main()
