"""Distance correlation of all pairs, against the fast algorithm of the package dcor, per pair.

Covers: seconds per pair of both, the largest difference of their values.
Does not cover: a run, or accuracy on shapes and counts (tests/test_kernels_measures.py).

``python -m benchmarks.dcor [--rows N] [--columns P] [--pairs M]``; dpipe on one worker, dcor on
the first M pairs, one thread each. Needs the package dcor.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
from pathlib import Path
from typing import Any

import dcor
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from scipy.stats import rankdata

import dpipe


def table(rows: int, columns: int) -> dict[str, Any]:
    """Columns with a common part, half of them continuous and half of them counts."""
    rng = np.random.default_rng(0)
    base = rng.standard_normal(rows)
    made = {}
    for k in range(columns):
        values = base * (k % 7) / 7 + rng.standard_normal(rows)
        made[f"c{k}"] = np.floor(2 * values) if k % 2 else values
    return made


def main() -> None:
    """Print seconds per pair of both and how they compare."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--columns", type=int, default=500)
    parser.add_argument("--pairs", type=int, default=20)
    asked = parser.parse_args()
    made = table(asked.rows, asked.columns)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "table.parquet"
        pq.write_table(pa.table(made), path)
        from distributed import Client

        with Client(processes=False, n_workers=1, threads_per_worker=1) as client:
            dpipe.similarity(path, "dcor", client=client)  # workers have imported everything
            start = time.perf_counter()
            found = dpipe.similarity(path, "dcor", client=client).values
            seconds = time.perf_counter() - start
    ranks = [rankdata(values) for values in made.values()]
    pairs = list(itertools.islice(itertools.combinations(range(asked.columns), 2), asked.pairs))
    dcor.distance_correlation(ranks[0], ranks[1], method="avl")  # compiled
    start = time.perf_counter()
    exact = [dcor.distance_correlation(ranks[i], ranks[j], method="avl") for i, j in pairs]
    slow = (time.perf_counter() - start) / len(pairs)
    fast = seconds / (asked.columns * (asked.columns - 1) / 2)
    off = max(abs(found[i, j] - value) for (i, j), value in zip(pairs, exact, strict=True))
    print(f"dpipe {seconds:.2f} s in all, {fast * 1e6:.2f} us a pair; dcor {slow * 1e3:.2f} ms")
    print(f"{slow / fast:.0f} times as fast; largest difference {off:.1e}")


if __name__ == "__main__":
    main()
