"""What the benchmarks share: arguments, generated tables, the machine in one line, Markdown tables.

Covers: everything a script needs beside what it measures.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.metadata
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from dpipe.common.environment import ONE_THREAD, worker_environment

ROW_GROUP = 65536
_FACTORS = 20
_ADOPT = 36  # PR_SET_CHILD_SUBREAPER
ROOT = Path(__file__).resolve().parent.parent


def parser(doc: str) -> argparse.ArgumentParser:
    """An argument parser with what every script takes."""
    made = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    folder = os.environ.get("DPIPE_BENCHMARK_DATA", f"{tempfile.gettempdir()}/dpipe-benchmarks")
    made.add_argument("--data", type=Path, default=Path(folder), help="folder of generated tables")
    made.add_argument("--json", type=Path, help="write the figures there, too")
    return made


def machine() -> str:
    """Processor, cores, load and versions, in one line."""
    model = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.split(":", 1)[1].strip() for line in lines if "model name" in line)
    except (OSError, StopIteration):
        pass
    versions = ", ".join(
        f"{name} {_version(name)}" for name in ("dpipe", "numpy", "pyarrow", "distributed")
    )
    load = os.getloadavg()[0]
    return (
        f"{model}, {os.cpu_count()} cores (load {load:.1f} at the start), "
        f"Python {platform.python_version()}, {versions}"
    )


def _version(name: str) -> str:
    """A package's version; a checkout on PYTHONPATH has none."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "from source"


def table(
    folder: Path, rows: int, columns: int, *, missing: float = 0.0, copies: float = 0.0
) -> Path:
    """A generated Parquet file, made once, a row group at a time; returns its path.

    Float64 columns driven by a few common factors; a quarter is rounded to two digits, which
    gives ties. `missing` is the share of empty cells in a third of the columns, `copies` the
    share of columns that follow the column before closely.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"n{rows}-p{columns}-m{missing:g}-c{copies:g}.parquet"
    if path.exists():
        return path
    rng = np.random.default_rng(0)
    names = [f"x{j:05d}" for j in range(columns)]
    schema = pa.schema([(name, pa.float64()) for name in names])
    partial = path.with_suffix(".partial")
    follows = (np.arange(columns) % 10 < round(10 * copies)) & (np.arange(columns) > 0)
    group = min(ROW_GROUP, max(256, 2**26 // columns))  # at most 512 MiB at a time
    with pq.ParquetWriter(partial, schema, compression="zstd", use_dictionary=False) as writer:
        for start in range(0, rows, group):
            n = min(group, rows - start)
            factors = rng.standard_normal((_FACTORS, n))
            arrays = []
            before = np.zeros(n)
            for j in range(columns):
                noise = rng.standard_normal(n)
                values = before + 0.05 * noise if follows[j] else noise + factors[j % _FACTORS]
                before = values
                if j % 4 == 0:
                    values = np.round(values, 1)
                if missing and j % 3 == 1:
                    values = np.where(rng.random(n) < missing, np.nan, values)
                arrays.append(pa.array(values))
            writer.write_table(pa.table(arrays, schema=schema), row_group_size=group)
    partial.rename(path)
    return path


def seconds(function: Callable[[], Any]) -> float:
    """How long a call takes."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def median(values: Iterable[float]) -> float:
    """The median, NaN of nothing."""
    listed = list(values)
    return statistics.median(listed) if listed else float("nan")


def own_process(module: str, *arguments: str, environment: dict[str, str] | None = None) -> Any:
    """Run ``python -m module arguments`` and return the JSON of its last line of output."""
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        env={**os.environ, **(environment or {})},
        stdout=subprocess.PIPE,
        check=True,
        text=True,
        cwd=ROOT,
    )
    return json.loads(done.stdout.strip().splitlines()[-1])


def command(words: Sequence[str], checkout: Path) -> tuple[float, float]:
    """Seconds of a command of dpipe, and CPU seconds of all the processes that it starts."""
    spent, start = cpu_of_children(), time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "dpipe", *words],
        env={**os.environ, "PYTHONPATH": str(checkout)},
        stdout=subprocess.DEVNULL,
        cwd=checkout,
        check=False,
    )
    took = time.perf_counter() - start
    if done.returncode not in (0, 4):  # 4: the selection does not hold
        done.check_returncode()
    return took, spent()


def cpu_of_children() -> Callable[[], float]:
    """What tells how many CPU seconds the processes took that this one started from here on.

    It waits until all have ended. Those that outlive their parents, as the server that workers are
    forked from, become this one's (Linux), so that they are counted.
    """
    ctypes.CDLL(None).prctl(_ADOPT, 1, 0, 0, 0)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)

    def spent() -> float:
        while psutil.Process().children():
            os.wait()
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    return spent


def worker_env() -> dict[str, str]:
    """The environment dpipe gives its workers; bare loops are measured in the same one."""
    return worker_environment()


def all_threads() -> dict[str, str]:
    """An environment in which libraries use every core."""
    return dict.fromkeys(ONE_THREAD, str(os.cpu_count()))


def show(header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a Markdown table."""
    print("| " + " | ".join(header) + " |")
    print("|" + " -- |" * len(header))
    show_rows(rows)


def show_rows(rows: Iterable[Sequence[object]]) -> None:
    """Print further rows of a Markdown table."""
    for row in rows:
        print("| " + " | ".join(_word(cell) for cell in row) + " |")
    sys.stdout.flush()


def _word(cell: object) -> str:
    if not isinstance(cell, float):
        return f"{cell}"
    return f"{cell:.3g}" if abs(cell) < 1e4 else f"{cell:,.0f}"


def finish(arguments: argparse.Namespace, figures: dict[str, Any]) -> None:
    """Write the figures as JSON where that was asked for."""
    if arguments.json:
        content = {"command": sys.argv, "machine": machine(), **figures}
        arguments.json.write_text(json.dumps(content, indent=1, default=str))
