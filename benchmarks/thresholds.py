"""Evidence for the default of --nonlinear-threshold.

Covers: HSIC, RDC and their mean on the eight shapes of the RDC paper and on Gaussian pairs; how
many columns of a finished run would find a partner at each threshold.
Does not cover: the measures' accuracy (tests/test_kernels_measures.py).

    python benchmarks/thresholds.py [--rows 5000] [RUN_FOLDER...]
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import dpipe

NOISE = (0.0, 0.05, 0.1, 0.2)
GAUSSIAN = (0.8, 0.9, 0.95, 0.97, 0.99)
THRESHOLDS = (0.7, 0.75, 0.8, 0.85, 0.9, 0.95)


def shapes(x: np.ndarray, noise: float, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """The shapes of Lopez-Paz, Hennig & Schoelkopf 2013, figure 4, of x in [0, 1]."""
    e = noise * rng.standard_normal(len(x))
    side = rng.choice((-1, 1), len(x))
    return {
        "linear": x + e,
        "quadratic": 4 * (x - 0.5) ** 2 + e,
        "cubic": 80 * (x - 1 / 3) ** 3 - 12 * (x - 1 / 3) + 10 * e,
        "sine, 2 periods": np.sin(4 * np.pi * x) + 2 * e,
        "sine, 8 periods": np.sin(16 * np.pi * x) + e,
        "fourth root": x**0.25 + e,
        "circle": side * np.sqrt(1 - (2 * x - 1) ** 2) + e / 4,
        "step": (x > 0.5) + 5 * e,
    }


def draw(rows: int) -> tuple[dict[str, np.ndarray], dict[str, tuple[str, str]]]:
    """A table of all columns, and which two columns each printed line compares."""
    rng = np.random.default_rng(0)
    x = rng.random(rows)
    table, pairs = {"x": x}, {}
    for noise in NOISE:
        for name, y in shapes(x, noise, rng).items():
            table[f"{name}, noise {noise}"] = y
            pairs[f"{name}, noise {noise}"] = ("x", f"{name}, noise {noise}")
    for rho in GAUSSIAN:
        a, b = rng.standard_normal((2, rows))
        table[f"a {rho}"], table[f"b {rho}"] = a, rho * a + np.sqrt(1 - rho**2) * b
        pairs[f"Gaussian, correlation {rho}"] = (f"a {rho}", f"b {rho}")
    return table, pairs


def print_shapes(rows: int) -> None:
    """One line a shape: |Spearman|, HSIC, RDC and the mean of the last two."""
    table, pairs = draw(rows)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "shapes.parquet"
        pq.write_table(pa.table(table), path)
        measured = [measure(path) for measure in (dpipe.spearman, dpipe.hsic, dpipe.rdc)]
    place = {name: index for index, name in enumerate(measured[0].columns)}
    print("| pair | abs(rho) | HSIC | RDC | fused |\n|---|---|---|---|---|")
    for line, (first, second) in pairs.items():
        rho, hsic, rdc = (abs(float(m.values[place[first], place[second]])) for m in measured)
        print(f"| {line} | {rho:.2f} | {hsic:.2f} | {rdc:.2f} | {(hsic + rdc) / 2:.2f} |")


def print_run(folder: Path) -> None:
    """How many columns that reached pass 4 have a partner at each threshold."""
    fused = (np.load(folder / "hsic.npy") + np.load(folder / "rdc.npy")) / 2
    np.fill_diagonal(fused, 0)
    counts = (int((np.nan_to_num(fused) >= t).any(axis=1).sum()) for t in THRESHOLDS)
    print(f"| {folder.name}: {len(fused)} columns | " + " | ".join(map(str, counts)) + " |")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--rows", type=int, default=5000)
    parser.add_argument("runs", nargs="*", type=Path)
    arguments = parser.parse_args()
    print_shapes(arguments.rows)
    if arguments.runs:
        print("\n| columns with a partner at | " + " | ".join(map(str, THRESHOLDS)) + " |")
        print("|---" * (len(THRESHOLDS) + 1) + "|")
    for run in arguments.runs:
        print_run(run)


if __name__ == "__main__":
    main()
