"""How long `dpipe verify` takes, and how much memory, beside the run that it verifies.

Covers: time, CPU time and peak memory of both commands, all their processes together.

Usage: ``python -m benchmarks.verification [--rows 10000000] [--columns 60] [--workers 2]
[--memory-limit 1.5GiB] [--repeats 1]``. The limit is that of each worker of the run; verification
gets what they have together.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil

from benchmarks.common import cpu_of_children, finish, machine, median, parser, show, table
from dpipe.options.kinds import parse_size


def measured(*words: str) -> tuple[float, float, int]:
    """Seconds, CPU seconds and peak memory of a dpipe command with all its processes."""
    spent, start = cpu_of_children(), time.perf_counter()
    peak, ended = 0, threading.Event()
    with subprocess.Popen([sys.executable, "-m", "dpipe", *words], stdout=subprocess.DEVNULL) as p:

        def watch() -> None:
            nonlocal peak
            while not ended.wait(0.2):
                peak = max(peak, _resident(p.pid))

        watcher = threading.Thread(target=watch)
        watcher.start()
        code = p.wait()
        took = time.perf_counter() - start
        ended.set()
        watcher.join()
    if code:
        raise SystemExit(f"dpipe {words[0]} ended with {code}")
    return took, spent(), peak


def _resident(pid: int) -> int:
    """Memory of a process and its descendants, what they share counted once for each."""
    total = 0
    try:
        process = psutil.Process(pid)
        for one in (process, *process.children(recursive=True)):
            try:
                total += one.memory_info().rss
            except psutil.NoSuchProcess:
                continue
    except psutil.NoSuchProcess:
        pass
    return total


def main() -> None:
    """Run, verify, and compare."""
    arguments = parser(__doc__)
    arguments.add_argument("--rows", type=int, default=10_000_000)
    arguments.add_argument("--columns", type=int, default=60)
    arguments.add_argument("--workers", type=int, default=2)
    arguments.add_argument("--memory-limit", default="1.5GiB")
    arguments.add_argument("--repeats", type=int, default=1)
    given = arguments.parse_args()
    print(machine())
    path = table(given.data, given.rows, given.columns, missing=0.1, copies=0.3)
    limit = parse_size(given.memory_limit)
    workers = f"--workers={given.workers}"
    found: dict[str, list[tuple[float, float, int]]] = {"run": [], "verify": []}
    for _ in range(given.repeats):
        with tempfile.TemporaryDirectory() as folder:
            out = str(Path(folder) / "out")
            options = (f"--memory-limit={limit}", workers, "--quiet")
            found["run"].append(measured("run", str(path), "--output-dir", out, *options))
            bound = f"--memory-limit={limit * given.workers}"
            found["verify"].append(measured("verify", out, workers, bound))
    rows = [
        (
            name,
            *(median(one[k] for one in each) for k in (0, 1)),
            max(one[2] for one in each) / 2**20,
        )
        for name, each in found.items()
    ]
    show(["command", "s", "CPU s", "peak, MiB"], rows)
    ratios = [
        median(v[k] / r[k] for r, v in zip(found["run"], found["verify"], strict=True))
        for k in (0, 1)
    ]
    print(f"\nverify / run: {ratios[0]:.2f} in time, {ratios[1]:.2f} in CPU time")
    finish(given, {"found": found, "ratios": ratios})


if __name__ == "__main__":
    main()
