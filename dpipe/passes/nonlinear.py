"""Pass 4: columns that determine each other in other than a monotone way.

Covers: the measures of the fusion from one set of moments, communities and representatives.
Does not cover: the measures (`dpipe.kernels.measures`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from dpipe.engine.context import Context, Prepared
from dpipe.engine.grid import (
    Grid,
    by_name,
    leave_pairs,
    run_grid,
    settle,
    settled_pairs,
    write_matrix,
)
from dpipe.engine.machine import Machine
from dpipe.engine.measures import fusion_of
from dpipe.engine.plan import TableShape, plan_grid
from dpipe.kernels.measure import MARGIN
from dpipe.model.events import PlannedPass
from dpipe.model.records import PassResult
from dpipe.model.registry import Pass
from dpipe.options import Options
from dpipe.passes.redundancy import keep_representatives


def run(this: Pass, context: Context, prepared: Prepared, columns: Sequence[str]) -> PassResult:
    """Drop every column that a kept one determines at the nonlinear threshold."""
    options = context.options
    threshold = options.nonlinear_threshold
    fusion = fusion_of(this, options)
    grid = run_grid(
        context,
        prepared,
        columns,
        this.name,
        fusion,
        rows=context.nonlinear_rows,
        threshold=threshold,
        margin=MARGIN[options.precision],
        floor=context.pairs_floor(threshold),
        min_valid=options.required_rows,
        matrix=context.wants_matrix(len(columns)),
    )
    pairs = settled_pairs(context, grid)
    leave_pairs(context, grid, this.number, pairs)
    for measure in fusion.names:
        write_matrix(context, grid, measure, columns, None)
    result = keep_representatives(
        context,
        prepared,
        this,
        fusion.name,
        columns,
        by_name(pairs.edges, grid.names, columns),
        threshold,
    )
    return _with_exact_values(context, grid, result)


def plan(this: Pass, table: TableShape, options: Options, machine: Machine) -> PlannedPass:
    """One grid of tiles of the measures' functions, on the rows drawn for it."""
    fusion = fusion_of(this, options)
    functions = fusion.functions_for({name: getattr(options, name) for name in fusion.parameters})
    return plan_grid(this, table, machine, functions=functions, n_rows=options.nonlinear_rows)


def _with_exact_values(context: Context, grid: Grid, result: PassResult) -> PassResult:
    """The same drops, each with its similarity to its representative in float64 throughout.

    What a decision records must stand up to verification, which float32 far from the threshold
    need not: 3e-5 was the most seen.
    """
    if not result.drops:
        return result
    number = {name: index for index, name in enumerate(grid.names)}
    pairs = np.array(
        [(number[drop.column], number[drop.representative or ""]) for drop in result.drops]
    )
    values = settle(context, grid, pairs.min(axis=1), pairs.max(axis=1))
    drops = tuple(
        dataclasses.replace(drop, value=float(value))
        for drop, value in zip(result.drops, values, strict=True)
    )
    return dataclasses.replace(result, drops=drops)
