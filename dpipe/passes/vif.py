"""Pass 3: columns that several kept ones together determine linearly, in rank scores.

Covers: the Gram matrix of the survivors' rank scores, handing it to the elimination, its decisions.
Does not cover: the elimination (`dpipe.kernels.vif`).

The Gram matrix is one more measure on the tile grid, in float64 and with missing cells at the mean
rank. It is computed for the survivors of pass 2 alone, which is cheaper than keeping pass 2's
moments of all columns, and it is positive semi-definite, which a pairwise-complete matrix is not.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from dpipe.certificate import follow_chain
from dpipe.config import PASS_NAMES, Options
from dpipe.kernels.vif import Elimination, eliminate, kept_combinations
from dpipe.model import Drop, Edges, Note, PassResult
from dpipe.passes.context import Context, Prepared, assemble, run_grid
from dpipe.representatives import priority_order


def run(context: Context, prepared: Prepared, columns: Sequence[str]) -> PassResult:
    """Drop exact linear combinations, then the most inflated column, until none is left."""
    options = context.options
    varying = [name for name in columns if prepared[name][1].statistics.n_unique > 1]
    gram = np.empty((len(varying), len(varying)))
    if len(varying) > 1:
        grid = run_grid(context, prepared, varying, "vif", ("gram",))
        assemble(context, grid, "gram", varying, None, gram)
    else:
        gram[:] = 1.0
    order = _order(prepared, varying, options)
    keep = np.array([name in options.keep for name in varying], dtype=bool)
    gone = eliminate(gram, order, keep, options.vif_threshold)
    for step in kept_combinations(gram, order, keep):
        context.emit(
            Note(
                f"{varying[step.index]!r} was asked to be kept, though it is a "
                f"{_terms(step, varying)} in rank scores.",
                "warning",
            )
        )
    drops = {varying[step.index]: _drop(step, varying, options) for step in gone}
    return PassResult(
        3,
        PASS_NAMES[3],
        tuple(name for name in columns if name not in drops),
        # What stood for a column when it went may have gone by a later step of this very pass.
        tuple(
            dataclasses.replace(drops[name], representative=follow_chain(name, drops)[-1])
            for name in columns
            if name in drops
        ),
    )


def _order(prepared: Prepared, columns: Sequence[str], options: Options) -> np.ndarray:
    """Columns from best to worst priority; survivors of pass 2 have no similar column to count."""
    nothing = Edges(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0))
    return priority_order(
        columns,
        nothing,
        np.arange(len(columns)),
        keep=options.keep,
        prefer=options.prefer,
        n_missing=np.array(
            [prepared[name][1].statistics.n_missing for name in columns], dtype=np.int64
        ),
    )


def _terms(step: Elimination, columns: Sequence[str]) -> str:
    terms = ", ".join(f"{columns[index]} ({weight:.3g})" for index, weight in step.partners)
    return f"linear combination of {terms}"


def _drop(step: Elimination, columns: Sequence[str], options: Options) -> Drop:
    name, best = columns[step.index], columns[step.representative]
    if step.kind == "combination":
        return Drop(name, 3, _terms(step, columns), "r2", step.r_squared, 1.0, best)
    return Drop(name, 3, "inflated variance", "vif", step.value, options.vif_threshold, best)
