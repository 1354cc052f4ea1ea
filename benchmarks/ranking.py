"""Time the ways of ranking one column, and the digests its hash could use.

Prints two tables in milliseconds: columns by methods, then digests. A dash: the method does not
apply. "whole" is `rank_column` as it is, with statistics and hash; the others only rank.
Usage: ``python benchmarks/ranking.py --rows 1000000``
"""

from __future__ import annotations

import argparse
import hashlib
import statistics
import time
from collections.abc import Callable

import numpy as np

from dpipe.kernels import ranks

METHODS = {
    "counting": ranks._rank_by_counting,
    "packed sort": ranks._rank_by_sorting,
    "argsort": ranks._rank_on_device,
}
DIGESTS = ("sha256", "sha1", "blake2b", "blake2s", "md5", "sha512")


def columns(n: int) -> dict[str, np.ndarray]:
    """One column of n rows per kind of data."""
    rng = np.random.default_rng(0)
    normal = rng.standard_normal(n)
    counts = rng.integers(0, 12, n).astype(np.float64)
    missing = rng.random(n) < 0.5
    return {
        "random float64": normal,
        "random float32": normal.astype(np.float32).astype(np.float64),
        "rounded to 0.01": np.round(normal, 2),
        "rounded to 0.00001": np.round(normal, 5),
        "12-valued counts": counts,
        "skewed counts": np.floor(np.exp(2 * normal)),
        "presorted": np.sort(normal),
        "50 % missing": np.where(missing, np.nan, normal),
        "50 % missing counts": np.where(missing, np.nan, counts),
        "one far outlier": np.concatenate(([1e300], 1 + normal[1:] * 1e-9)),
    }


def milliseconds(function: Callable[[], object], repeats: int) -> float:
    """The median duration of `function` after one call to warm up."""
    function()
    durations = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        durations.append(time.perf_counter() - start)
    return 1e3 * statistics.median(durations)


def time_column(values: np.ndarray, repeats: int) -> list[str]:
    """One row of the first table."""
    finite = np.isfinite(values)
    valid = None if finite.all() else finite
    cells = [f"{milliseconds(lambda: ranks.rank_column(values), repeats):.1f}"]
    for method in METHODS.values():
        if method(values, valid, []) is None:
            cells.append("-")
        else:
            spent = milliseconds(lambda method=method: method(values, valid, []), repeats)
            cells.append(f"{spent:.1f}")
    return cells


def main() -> None:
    """Parse the arguments and print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    print(f"NumPy {np.__version__}, {arguments.rows} rows, milliseconds")
    print(f"{'column':22s}" + "".join(f"{name:>13s}" for name in ("whole", *METHODS)))
    for name, values in columns(arguments.rows).items():
        cells = time_column(values, arguments.repeats)
        print(f"{name:22s}" + "".join(f"{cell:>13s}" for cell in cells))
    ranked = np.arange(arguments.rows, dtype=np.int32)
    for name in DIGESTS:
        spent = milliseconds(
            lambda name=name: hashlib.new(name, ranked, usedforsecurity=False).digest(),
            arguments.repeats,
        )
        print(f"{name:22s}{spent:13.1f}")


if __name__ == "__main__":
    main()
