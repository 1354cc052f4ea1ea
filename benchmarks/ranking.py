"""Time the ways of ranking one column, compiled and in NumPy.

Prints CPU time of one thread in milliseconds, medians of alternating runs: `rank_column` as it is,
in NumPy, and the ratio; with ``--other FOLDER`` also that of another checkout, in the same process.
Usage: ``python benchmarks/ranking.py --rows 10000,100000,1000000``
"""

from __future__ import annotations

import argparse
import importlib
import os
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from dpipe.kernels import ranks


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


def other_checkout(folder: str) -> Callable[[np.ndarray], Any]:
    """`rank_column` of another checkout, imported beside this one."""
    ours = {
        name: sys.modules.pop(name) for name in list(sys.modules) if name.split(".")[0] == "dpipe"
    }
    sys.path.insert(0, folder)
    try:
        function: Callable[[np.ndarray], Any] = importlib.import_module(
            "dpipe.kernels.ranks"
        ).rank_column
        return function
    finally:
        sys.path.remove(folder)
        sys.modules.update(ours)


def in_numpy(values: np.ndarray) -> ranks.RankedColumn:
    """`rank_column` as it is without a compiler."""
    compiled, ranks.compiled = ranks.compiled, None
    try:
        return ranks.rank_column(values)
    finally:
        ranks.compiled = compiled


def milliseconds(
    functions: dict[str, Callable[[np.ndarray], Any]], values: np.ndarray, repeats: int
) -> dict[str, float]:
    """Median CPU time of each function, all of them taking turns."""
    spent: dict[str, list[float]] = {name: [] for name in functions}
    calls = min(200, max(1, 200_000 // values.size))
    for turn in range(repeats + 1):
        for name, function in functions.items():
            start = time.thread_time()
            for _ in range(calls):
                function(values)
            if turn:  # the first one warms up
                spent[name].append((time.thread_time() - start) / calls * 1e3)
    return {name: statistics.median(times) for name, times in spent.items()}


def main() -> None:
    """Parse the arguments and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", default="1000000", help="row counts, separated by commas")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--other", help="a checkout to compare with")
    arguments = parser.parse_args()
    functions: dict[str, Callable[[np.ndarray], Any]] = {
        ranks.implementation(): ranks.rank_column,
        "NumPy": in_numpy,
    }
    if arguments.other:
        functions["other"] = other_checkout(os.path.abspath(arguments.other))
    names = list(functions)
    first, last = names[0], names[-1]
    print(f"NumPy {np.__version__}, milliseconds")
    for rows in map(int, arguments.rows.split(",")):
        heads = (*names, f"{last} / {first}")
        print(f"{rows:>10} rows       " + "".join(f"{name:>14s}" for name in heads))
        for name, values in columns(rows).items():
            took = milliseconds(functions, values, arguments.repeats)
            cells = [f"{took[way]:.2f}" for way in names] + [f"{took[last] / took[first]:.2f}"]
            print(f"{name:22s}" + "".join(f"{cell:>14s}" for cell in cells))


if __name__ == "__main__":
    main()
