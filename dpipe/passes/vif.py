"""Pass 3: columns that several kept ones together determine linearly, in rank scores.

Covers: the Gram matrix of the survivors' rank scores, handing it to the elimination, its decisions.
Does not cover: the elimination (`dpipe.kernels.vif`).

The Gram matrix is one more measure on the tile grid, in float64 and with missing cells at the mean
rank. It is computed for the survivors of pass 2 alone, which is cheaper than keeping pass 2's
moments of all columns, and it is positive semi-definite, which a pairwise-complete matrix is not.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import psutil
from numpy.typing import NDArray

from dpipe.choice.priority import Priority
from dpipe.engine.context import Context, Prepared
from dpipe.engine.grid import assemble, run_grid
from dpipe.engine.measures import fusion_of
from dpipe.engine.memory import inflation_bytes
from dpipe.engine.plan import Machine, TableShape, check_client, plan_grid
from dpipe.kernels.vif import Elimination, eliminate, kept_combinations, stand_ins
from dpipe.model import MILLION, Drop, Note, PassResult, PlannedPass
from dpipe.options import Options
from dpipe.registry import Pass, Reason


def run(this: Pass, context: Context, prepared: Prepared, columns: Sequence[str]) -> PassResult:
    """Drop exact linear combinations, then the most inflated column, until none is left."""
    options = context.options
    varying = [name for name in columns if prepared[name].statistics.n_unique > 1]
    check_client(len(varying), psutil.virtual_memory().available)
    gram = np.empty((len(varying), len(varying)))
    if len(varying) > 1:
        fusion = fusion_of(this, options)
        grid = run_grid(context, prepared, varying, this.name, fusion)
        assemble(context, grid, fusion.name, varying, None, gram)
    else:
        gram[:] = 1.0
    order = _order(gram, prepared, varying, context.priority)
    keep = np.array([name in context.priority.asked for name in varying], dtype=bool)
    steps = eliminate(gram, order, keep, options.vif_threshold)
    determined = kept_combinations(gram, order, keep)
    for step in determined:
        context.emit(
            Note(
                f"{varying[step.index]!r} was asked to be kept, though it is a "
                f"{Reason.COMBINATION} {_terms(step, varying)} in rank scores.",
                "warning",
            )
        )
    dropped = np.array([step.index for step in steps], dtype=np.int64)
    dependent = [step.index for step in determined]
    survivors = np.setdiff1d(np.arange(len(varying)), [*dropped, *dependent])
    others = stand_ins(gram, survivors, dropped) if len(steps) else dropped
    drops = {
        varying[step.index]: _drop(this, step, varying, varying[other], options)
        for step, other in zip(steps, others, strict=True)
    }
    return PassResult(
        this.number,
        this.name,
        tuple(name for name in columns if name not in drops),
        tuple(drops[name] for name in columns if name in drops),
    )


def plan(this: Pass, table: TableShape, options: Options, machine: Machine) -> PlannedPass:
    """One grid of tiles, and the elimination on the client."""
    need = inflation_bytes(table.n_columns)
    return plan_grid(this, table, machine, functions=1, client_bytes=need)


def _order(
    gram: NDArray[np.float64], prepared: Prepared, columns: Sequence[str], priority: Priority
) -> NDArray[np.int64]:
    """Columns from best to worst priority.

    No two of them are similar enough for a community, so after the user's wishes and missing cells
    the larger sum of similarities decides (in whole millionths, which add up alike in any order).
    """
    missing = np.array([prepared[name].statistics.n_missing for name in columns], dtype=np.int64)
    sums = np.rint(np.abs(gram) * MILLION).astype(np.int64).sum(axis=1)
    return priority.order(columns, missing, -sums)


_MOST_TERMS = 8


def _terms(step: Elimination, columns: Sequence[str]) -> str:
    """Of what a combination is made, in words, the largest terms first."""
    largest = sorted(step.partners, key=lambda term: -abs(term[1]))
    terms = ", ".join(f"{columns[index]} ({weight:.3g})" for index, weight in largest[:_MOST_TERMS])
    more = len(largest) - _MOST_TERMS
    return f"of {terms}" + (f" and {more} more" if more > 0 else "")


def _drop(
    this: Pass, step: Elimination, columns: Sequence[str], other: str, options: Options
) -> Drop:
    name = columns[step.index]
    if step.kind == "combination":
        terms = _terms(step, columns)
        return Drop(name, this.number, Reason.COMBINATION, "r2", step.r_squared, 1.0, other, terms)
    limit = options.vif_threshold
    return Drop(name, this.number, Reason.INFLATED, "vif", step.value, limit, other)
