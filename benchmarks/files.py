"""How long pass 1 takes on a table of many small files.

Covers: pass 1 as a run reports it, the CPU time of the whole command, decoding all files by
pyarrow; the same by another checkout, in turns.

Usage: ``python -m benchmarks.files [--files 1000] [--rows 200] [--columns 400] [--repeats 3]
[--other CHECKOUT]``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.common import ROOT, cpu_of_children, finish, machine, median, parser, show


def folder_of_files(parent: Path, files: int, rows: int, columns: int) -> Path:
    """A folder of generated files, made once."""
    folder = parent / f"f{files}-n{rows}-p{columns}"
    if folder.exists():
        return folder
    partial = folder.with_suffix(".partial")
    partial.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for number in range(files):
        values = rng.standard_normal((columns, rows))
        values[::4] = np.round(values[::4], 1)
        table = pa.table({f"x{j:05d}": column for j, column in enumerate(values)})
        pq.write_table(table, partial / f"part-{number:05d}.parquet")
    partial.rename(folder)
    return folder


def pass_1(folder: Path, checkout: Path) -> tuple[float, float]:
    """Seconds of pass 1, and CPU seconds of the whole command."""
    spent = cpu_of_children()
    with tempfile.TemporaryDirectory() as out:
        words = [sys.executable, "-m", "dpipe", "run", str(folder), "--output-dir", out]
        subprocess.run(
            [*words, "--passes=1", "--workers=2", "--quiet"],
            cwd=checkout,
            env={**os.environ, "PYTHONPATH": str(checkout)},
            check=True,
        )
        passes = json.loads((Path(out) / "run.json").read_text())["passes"]
    return passes[0]["seconds"], spent()


def decode(folder: Path) -> tuple[float, float]:
    """Seconds and CPU seconds to decode every file, one after the other in one thread."""
    start, cpu = time.perf_counter(), time.process_time()
    for path in sorted(folder.iterdir()):
        pq.read_table(path, use_threads=False)
    return time.perf_counter() - start, time.process_time() - cpu


def main() -> None:
    """Measure in turns, and compare."""
    arguments = parser(__doc__)
    arguments.add_argument("--files", type=int, default=1000)
    arguments.add_argument("--rows", type=int, default=200)
    arguments.add_argument("--columns", type=int, default=400)
    arguments.add_argument("--repeats", type=int, default=3)
    arguments.add_argument("--other", type=Path, help="another checkout to compare with")
    given = arguments.parse_args()
    print(machine())
    folder = folder_of_files(given.data, given.files, given.rows, given.columns)
    found: dict[str, list[tuple[float, float]]] = {}
    for _ in range(given.repeats):
        found.setdefault("dpipe, pass 1", []).append(pass_1(folder, ROOT))
        if given.other:
            found.setdefault("other, pass 1", []).append(pass_1(folder, given.other.resolve()))
        found.setdefault("pyarrow, decode", []).append(decode(folder))
    rows = [
        (name, *(median(one[k] for one in each) for k in (0, 1))) for name, each in found.items()
    ]
    show(["what", "s", "CPU s"], rows)
    own = found["dpipe, pass 1"]
    for name, each in found.items():
        ratios = [median(o[k] / d[k] for d, o in zip(own, each, strict=True)) for k in (0, 1)]
        if each is not own:
            print(f"{name} / dpipe: {ratios[0]:.2f} in time, {ratios[1]:.2f} in CPU time")
    finish(given, {"found": found})


if __name__ == "__main__":
    main()
