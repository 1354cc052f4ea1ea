"""The similar pairs of some columns, where nothing is asked of the others.

Covers: leaving out by a cheap upper bound what cannot reach the threshold, measuring what is left
pair by pair, a grid of the measures themselves where that would not pay.
Does not cover: the bound (`dpipe.kernels.bound`), grids with matrices or with pairs below the
threshold (`dpipe.engine.grid`).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpipe.engine.context import Context, Prepared
from dpipe.engine.grid import Grid, measured_pairs, reported_pairs, run_grid, settled_edges
from dpipe.kernels.fusion import Fusion
from dpipe.kernels.measure import MARGIN, Settling
from dpipe.model.records import reaches

_FEW = 1 / 256  # of all pairs; that many take as long one by one as all of them in tiles


def similar_pairs(
    context: Context,
    prepared: Prepared,
    columns: Sequence[str],
    title: str,
    fusion: Fusion,
    threshold: float,
    *,
    of: Collection[str] | None = None,
) -> list[tuple[str, str, float]]:
    """Pairs whose similarity reaches a threshold, as (first, second, value) by name.

    Which pairs these are is exact; the values of strong ones may be as precise as a tile's.

    Parameters
    ----------
    context, prepared, title, fusion
        As in `dpipe.engine.grid.run_grid`.
    columns
        Two or more.
    threshold
        Of the fusion's mean.
    of
        Some of the columns, where only their pairs are asked for: with each other and with the
        rest.
    """
    settings: dict[str, Any] = {
        "rows": context.rows_of(fusion),
        "min_valid": context.options.required_rows,
    }
    asked = frozenset(columns if of is None else of)

    def grid_of(name: str, measures: Fusion, least: float) -> Grid:
        reranked = measures.settling is Settling.RERANKED
        margin = 0.0 if reranked else MARGIN[context.options.precision]
        return run_grid(
            context,
            prepared,
            columns,
            name,
            measures,
            threshold=least,
            margin=margin,
            matrix=False,
            **settings,
        )

    pairs = _few_pairs(asked, columns)
    screen = fusion.screen(threshold)
    if pairs is None and screen is not None and context.session.device == "cpu":
        # On a card all pairs cost little.
        pairs = _in_doubt(context, grid_of(f"{title}-bound", *screen), asked)
    if pairs is None:
        grid = grid_of(title, fusion, threshold)
        edges = settled_edges(context, grid)
        pairs, values = _named(grid, edges.i, edges.j), edges.value
    else:
        values = measured_pairs(context, prepared, pairs, f"{title}-pairs", fusion, **settings)
    found = zip(pairs, values.tolist(), strict=True)
    return [
        (*sorted(pair), value)
        for pair, value in found
        if reaches(value, threshold) and not asked.isdisjoint(pair)
    ]


def _few_pairs(asked: frozenset[str], columns: Sequence[str]) -> list[tuple[str, str]] | None:
    """All pairs that are asked for; None where they are many."""
    others = [name for name in columns if name not in asked]
    if not _are_few(math.comb(len(asked), 2) + len(asked) * len(others), columns):
        return None
    return [*itertools.combinations(sorted(asked), 2), *itertools.product(sorted(asked), others)]


def _in_doubt(context: Context, grid: Grid, asked: frozenset[str]) -> list[tuple[str, str]] | None:
    """The pairs asked for whose bound reaches the threshold; None where they are many."""
    found, _ = reported_pairs(context, grid)
    pairs = [pair for pair in _named(grid, found["i"], found["j"]) if not asked.isdisjoint(pair)]
    return pairs if _are_few(len(pairs), grid.names) else None


def _are_few(pairs: int, columns: Sequence[str]) -> bool:
    """Whether so many pairs take less time one by one than all of the columns' in tiles."""
    return pairs <= _FEW * math.comb(len(columns), 2)


def _named(grid: Grid, i: NDArray[np.int64], j: NDArray[np.int64]) -> list[tuple[str, str]]:
    return [(grid.names[a], grid.names[b]) for a, b in zip(i, j, strict=True)]
