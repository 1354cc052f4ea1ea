"""Tables that tests draw: columns with ties, missing cells, copies and odd shapes.

Covers: building a numeric table by seed and writing it as Parquet part files; the cells of a block.
"""

from __future__ import annotations

import itertools
from fractions import Fraction
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from dpipe.table import Block

Table = dict[str, NDArray[np.float64]]


def mixed_table(n: int, seed: int = 0, *, families: int = 4, missing: bool = True) -> Table:
    """A table with redundancy of every kind, in the manner of molecular descriptors.

    Each family has a base column, noisy and monotone copies of it, counts made of it and, with
    `missing`, columns that lack cells at random and by value.
    """
    rng = np.random.default_rng(seed)
    table: Table = {}
    for family in range(families):
        base = rng.standard_normal(n) * 10.0 ** rng.integers(-3, 4) + 10.0 ** rng.integers(0, 5)
        spread = base.std()
        table[f"base{family}"] = base
        table[f"copy{family}"] = np.exp(-(base - base.mean()) / spread)
        for k, noise in enumerate((0.05, 0.2, 0.6)):
            table[f"noisy{family}_{k}"] = base + noise * spread * rng.standard_normal(n)
        table[f"count{family}"] = np.floor(3 * rng.random(n) + 2 * (base > base.mean()))
        table[f"square{family}"] = (base - base.mean()) ** 2 + 0.05 * spread * rng.standard_normal(
            n
        )
        if missing:
            holes = base + 0.1 * spread * rng.standard_normal(n)
            holes[rng.random(n) < 0.2] = np.nan
            table[f"holes{family}"] = holes
            tail = base + 0.15 * spread * rng.standard_normal(n)
            tail[tail > np.quantile(tail, 0.7)] = np.inf
            table[f"tail{family}"] = tail
    table["flag"] = (rng.random(n) < 0.05).astype(float)
    table["constant"] = np.full(n, 7.0)
    table["empty"] = np.full(n, np.nan)
    table["combination"] = (
        table["base0"] / table["base0"].std() + table["base1"] / table["base1"].std()
    )
    return table


def write_parts(table: Table, folder: Path, *, parts: int = 2, row_group: int = 500) -> Path:
    """Write a table as `parts` Parquet files of consecutive rows into a new folder."""
    folder.mkdir(parents=True)
    arrow = pa.table(table)
    cuts = np.linspace(0, arrow.num_rows, parts + 1).astype(int)
    for part, (start, stop) in enumerate(itertools.pairwise(cuts)):
        piece = arrow.slice(start, stop - start)
        pq.write_table(piece, folder / f"part-{part}.parquet", row_group_size=row_group)
    return folder


def exact_cells(block: Block, position: int) -> list[Fraction | None]:
    """The cells of a column of a block as they were read, None where missing."""
    values, valid = block.column(position)
    valid = np.isfinite(values) if valid is None else valid
    unit = 10 ** block.scale(position)
    return [
        Fraction(cell) / unit if there else None
        for cell, there in zip(values.tolist(), valid.tolist(), strict=True)
    ]
