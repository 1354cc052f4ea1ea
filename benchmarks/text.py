"""A table in CSV: seconds and peak memory of reading it, and passes 1 and 2 from there.

The peak of reading is the highest resident size of a process that opens the table and does nothing
else, less what it had after its imports. It must not grow with the rows.

Usage: ``python -m benchmarks.text [--rows 20000,100000 --columns 200] [--memory-limit 1GiB]``
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow.csv
import pyarrow.parquet as pq

from benchmarks import big, common

READ = """
import json, sys, time
from dpipe.options import Options
from dpipe.session.worker import process_memory
from dpipe.table import open_table
peak = lambda: process_memory()[1]
before, start = peak(), time.perf_counter()
with open_table([sys.argv[1]], options=Options(scratch_dir=sys.argv[2])) as table:
    print(json.dumps([time.perf_counter() - start, peak() - before, len(table.features)]))
"""


def as_text(parquet: Path) -> Path:
    """The same table as CSV, made once, a row group at a time."""
    path = parquet.with_suffix(".csv")
    if not path.exists():
        partial = path.with_suffix(".partial")
        table = pq.ParquetFile(parquet)
        with table, pyarrow.csv.CSVWriter(partial, table.schema_arrow) as writer:
            for group in range(table.num_row_groups):
                writer.write_table(table.read_row_group(group))
        partial.rename(path)
    return path


def reading(path: Path, scratch: Path) -> dict[str, Any]:
    """Seconds and peak memory of a process that opens the table."""
    command = [sys.executable, "-c", READ, str(path), str(scratch)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    seconds, peak, _ = json.loads(done.stdout)
    size = path.stat().st_size
    return {
        "MB": size / 1e6,
        "reading s": seconds,
        "reading MB/s": size / 1e6 / seconds,
        "reading peak MiB": peak >> 20,
    }


def main() -> None:
    """Measure and print."""
    parser = common.parser(__doc__)
    parser.add_argument("--rows", default="20000,100000")
    parser.add_argument("--columns", type=int, default=200)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--memory-limit", default="1GiB")
    arguments = parser.parse_args()
    print(common.machine(), time.strftime("%Y-%m-%d %H:%M"))
    options = [
        f"--workers={arguments.workers}",
        f"--memory-limit={arguments.memory_limit}",
        f"--scratch-dir={arguments.data / 'scratch'}",
        "--passes=1,2",
    ]
    figures: dict[str, dict[str, Any]] = {}
    for rows in map(int, arguments.rows.split(",")):
        path = as_text(common.table(arguments.data, rows, arguments.columns, copies=0.1))
        figures[f"{rows} x {arguments.columns}"] = {
            **reading(path, arguments.data / "scratch"),
            **big.measure(path, common.ROOT, options),
        }
        print(figures, flush=True)
    first = next(iter(figures.values()))
    common.show(
        ("figure", *figures),
        [(name, *(each[name] for each in figures.values())) for name in first],
    )
    common.finish(arguments, figures)


if __name__ == "__main__":
    main()
