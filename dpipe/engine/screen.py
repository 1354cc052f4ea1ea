"""The similar pairs of some columns, where nothing is asked of the others.

Covers: leaving out by a cheap upper bound what cannot reach the threshold, measuring what is left
pair by pair, a grid of the measures themselves where that would not pay.
Does not cover: the bound (`dpipe.kernels.bound`), grids with matrices or with pairs below the
threshold (`dpipe.engine.grid`).
"""

from __future__ import annotations

from collections.abc import Sequence

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
    pairs = _in_doubt(context, prepared, columns, title, fusion, threshold)
    if pairs is None:
        grid = _grid(context, prepared, columns, title, fusion, threshold)
        edges = settled_edges(context, grid)
        pairs = [(grid.names[i], grid.names[j]) for i, j in zip(edges.i, edges.j, strict=True)]
        values = edges.value
    else:
        values = measured_pairs(
            context,
            prepared,
            pairs,
            f"{title}-pairs",
            fusion,
            rows=context.rows_of(fusion),
            min_valid=context.options.required_rows,
        )
    found = zip(pairs, values.tolist(), strict=True)
    return [(*sorted(pair), value) for pair, value in found if reaches(value, threshold)]


def _in_doubt(
    context: Context,
    prepared: Prepared,
    columns: Sequence[str],
    title: str,
    fusion: Fusion,
    threshold: float,
) -> list[tuple[str, str]] | None:
    """The pairs that may reach the threshold; None where there is no bound or it leaves many."""
    screen = fusion.screen(threshold)
    if screen is None or context.session.device != "cpu":  # a card multiplies as fast as it expands
        return None
    bound, least = screen
    grid = _grid(context, prepared, columns, f"{title}-bound", bound, least)
    found, _ = reported_pairs(context, grid)
    if len(found["i"]) > _FEW * len(columns) * (len(columns) - 1) / 2:
        return None
    return [(grid.names[i], grid.names[j]) for i, j in zip(found["i"], found["j"], strict=True)]


def _grid(
    context: Context,
    prepared: Prepared,
    columns: Sequence[str],
    title: str,
    fusion: Fusion,
    threshold: float,
) -> Grid:
    reranked = fusion.settling is Settling.RERANKED
    return run_grid(
        context,
        prepared,
        columns,
        title,
        fusion,
        rows=context.rows_of(fusion),
        threshold=threshold,
        margin=0.0 if reranked else MARGIN[context.options.precision],
        min_valid=context.options.required_rows,
        matrix=False,
    )
