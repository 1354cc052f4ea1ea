"""The similar pairs of some columns, where nothing is asked of the others.

Covers: leaving out by a cheap upper bound what cannot reach the threshold, measuring what is left
pair by pair, a grid of the measures themselves where that would not pay.
Does not cover: the bound (`dpipe.kernels.bound`), grids with matrices or with pairs below the
threshold (`dpipe.engine.grid`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
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
) -> list[tuple[str, str, float]]:
    """Pairs whose similarity reaches a threshold, as (first, second, value) by name.

    Parameters
    ----------
    context, prepared, title, fusion
        As in `dpipe.engine.grid.run_grid`.
    columns
        Two or more.
    threshold
        Of the fusion's mean.
    """
    settings: dict[str, Any] = {
        "rows": context.rows_of(fusion),
        "min_valid": context.options.required_rows,
    }

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

    screen = fusion.screen(threshold)
    pairs: list[tuple[str, str]] | None = None
    if screen is not None and context.session.device == "cpu":  # on a card all pairs cost little
        pairs = _in_doubt(context, grid_of(f"{title}-bound", *screen))
    if pairs is None:
        grid = grid_of(title, fusion, threshold)
        edges = settled_edges(context, grid)
        pairs, values = _named(grid, edges.i, edges.j), edges.value
    else:
        values = measured_pairs(context, prepared, pairs, f"{title}-pairs", fusion, **settings)
    found = zip(pairs, values.tolist(), strict=True)
    return [(*sorted(pair), value) for pair, value in found if reaches(value, threshold)]


def _in_doubt(context: Context, grid: Grid) -> list[tuple[str, str]] | None:
    """The pairs whose bound reaches the threshold; None where they are many."""
    found, _ = reported_pairs(context, grid)
    if len(found["i"]) > _FEW * math.comb(len(grid.names), 2):
        return None
    return _named(grid, found["i"], found["j"])


def _named(grid: Grid, i: NDArray[np.int64], j: NDArray[np.int64]) -> list[tuple[str, str]]:
    return [(grid.names[a], grid.names[b]) for a, b in zip(i, j, strict=True)]
