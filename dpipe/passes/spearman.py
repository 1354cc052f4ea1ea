"""Pass 2: columns that rank the rows alike.

Covers: all-pairs Spearman, exact re-ranking of pairs with missing cells, communities and
representatives, the matrix.
Does not cover: the tile grid (`dpipe.engine.submit`) or the rule of choice
(`dpipe.choice.representatives`).

A pair of columns with different valid rows is first measured by the columns' marginal ranks, which
differs from ranking again inside the pair by a bounded angle
(`dpipe.engine.tiles.least_by_marginal_ranks`). Every such pair that could be an edge is ranked
again, so the edges are exactly those that a pairwise-complete Spearman correlation gives.
"""

from __future__ import annotations

from collections.abc import Sequence

from dpipe.engine.context import Context, Prepared
from dpipe.engine.grid import by_name, leave_pairs, run_grid, settled_pairs, write_matrix
from dpipe.engine.machine import Machine
from dpipe.engine.measures import fusion_of
from dpipe.engine.plan import TableShape, plan_grid
from dpipe.model.events import PlannedPass
from dpipe.model.records import PassResult
from dpipe.model.registry import Pass
from dpipe.options import Options
from dpipe.passes.redundancy import keep_representatives


def run(this: Pass, context: Context, prepared: Prepared, columns: Sequence[str]) -> PassResult:
    """Drop every column that a kept one resembles at the Spearman threshold."""
    options = context.options
    fusion = fusion_of(this, options)
    grid = run_grid(
        context,
        prepared,
        columns,
        this.name,
        fusion,
        threshold=options.spearman_threshold,
        min_valid=options.required_rows,
        floor=context.pairs_floor(options.spearman_threshold),
        exact=options.missing == "exact",
        matrix=context.wants_matrix(len(columns)),
    )
    pairs = settled_pairs(context, grid)
    leave_pairs(context, grid, this.number, pairs)
    write_matrix(context, grid, fusion.name, columns, pairs.edges)
    return keep_representatives(
        context,
        prepared,
        this,
        fusion.name,
        columns,
        by_name(pairs.edges, grid.names, columns),
        options.spearman_threshold,
    )


def plan(this: Pass, table: TableShape, options: Options, machine: Machine) -> PlannedPass:
    """One grid of tiles, of the ranks themselves."""
    return plan_grid(this, table, machine, functions=fusion_of(this, options).functions)
