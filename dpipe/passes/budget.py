"""Pass 5: a number of columns, those that serve the targets best together or stand best for all.

Covers: choosing among what the passes before it left, the decisions on the rest, what the chosen
columns explain.
Does not cover: the choice itself (`dpipe.kernels.budget`), the Gram matrix (`dpipe.engine.gram`).

It chooses last and promises nothing but the number: what a column that goes loses is stated, as the
R^2 with which the final selection predicts it. What is said of a target is said of the rows in
which it is known.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import psutil
from numpy.typing import NDArray

from dpipe.common.words import counted, percent
from dpipe.engine.context import Context, Prepared
from dpipe.engine.gram import Gram, gram_of, order_of
from dpipe.engine.known import grams_of_known, partly_known, remove_known
from dpipe.engine.machine import Machine
from dpipe.engine.memory import prediction_bytes
from dpipe.engine.plan import TableShape, check_client, plan_grid, with_grids_of_some_rows
from dpipe.kernels.budget import (
    Chosen,
    Regression,
    choose_for_table,
    choose_for_target,
    ridge_for,
)
from dpipe.kernels.explained import explained
from dpipe.model.events import Finding, PlannedPass
from dpipe.model.records import Drop, PassResult, Step
from dpipe.model.registry import Pass, Reason
from dpipe.options import Options


def run(this: Pass, context: Context, prepared: Prepared, columns: Sequence[str]) -> PassResult:
    """Keep exactly ``--max-columns`` columns, or all where fewer are left."""
    budget = context.options.max_columns
    assert budget is not None, "the option asks for the pass"
    if len(columns) < budget:
        left = f"{counted(len(columns), 'column')} {'is' if len(columns) == 1 else 'are'} left"
        context.emit(
            Finding(f"{left} for pass 5, fewer than --max-columns {budget:,}: all stay.", "notice")
        )
    free = psutil.virtual_memory().available
    check_client(this, len(columns), free, also=len(partly_known(context)))
    gram = gram_of(this, context, prepared, columns)
    constant = _constant(context, gram, columns)
    asked_for = sum(name in context.priority.asked for name in constant)
    parts = [gram] if gram.targets else []
    parts += grams_of_known(this, context, prepared, gram.names)
    order = order_of(prepared, context, *(parts or [gram]))
    chosen = _choose(context, gram, parts, order, budget - asked_for)
    remove_known(context)
    names = [gram.names[index] for index in chosen.indices.tolist()]
    kept = {*names, *constant[: budget - len(names)]}
    steps = _steps(names, chosen)
    _say_what_is_explained(context, steps, parts)
    dropped = [name for name in columns if name not in kept]
    return PassResult(
        this.number,
        this.name,
        tuple(name for name in columns if name in kept),
        tuple(_drops(this, gram, kept, dropped)),
        chosen=steps,
    )


def plan(this: Pass, table: TableShape, options: Options, machine: Machine) -> PlannedPass:
    """One grid of tiles, of which pass 3 leaves most, and the choice on the client.

    One more grid for each target, unless it is known in every row, which nobody has looked at yet.
    """
    targets = len(options.target)
    need = prediction_bytes(table.n_columns, targets)
    grid = plan_grid(this, table, machine, functions=1, client_bytes=need)
    return with_grids_of_some_rows(this, grid, table, machine, targets)


def _constant(context: Context, gram: Gram, columns: Sequence[str]) -> list[str]:
    """Columns of one value, those asked for first: nothing can be told of them."""
    varies = set(gram.names)
    alike = sorted(name for name in columns if name not in varies)
    return sorted(alike, key=lambda name: name not in context.priority.asked)


def _choose(
    context: Context, gram: Gram, parts: Sequence[Gram], order: NDArray[np.int64], count: int
) -> Chosen:
    """Columns for the targets of the `parts` of the rows, or for the table where there is none."""
    asked = np.array([name in context.priority.asked for name in gram.names], dtype=bool)
    if not parts:
        return choose_for_table(gram.values, order, asked, count)
    regressions = [Regression(g.values, g.responses, ridge_for(g.n_rows)) for g in parts]
    targets = sum(part.targets for part in parts)
    return choose_for_target(regressions, gram.values, order, asked, count, targets)


def _steps(names: Sequence[str], chosen: Chosen) -> tuple[Step, ...]:
    target: list[float | None] = list(chosen.target.tolist()) or [None] * len(names)
    return tuple(
        Step(name, table, of_target)
        for name, table, of_target in zip(names, chosen.table.tolist(), target, strict=True)
    )


def _say_what_is_explained(context: Context, steps: Sequence[Step], parts: Sequence[Gram]) -> None:
    if not steps:
        return
    last = steps[-1]
    explain = "explains" if len(steps) == 1 else "explain"
    target = (
        "" if last.target is None else f" and {percent(last.target)} of {_whose(context, parts)}"
    )
    of = "the variance of the columns that pass 5 chose from"
    sentence = f"{counted(len(steps), 'column')} {explain} {percent(last.table)} of {of}{target}"
    context.emit(Finding(f"{sentence}, on normal scores.", "notice"))


def _whose(context: Context, parts: Sequence[Gram]) -> str:
    """Whose variance is explained, and on which rows where these are not all."""
    several = sum(part.targets for part in parts) > 1
    whose = "the targets'" if several else "the target's"
    if all(part.n_rows == context.n_rows for part in parts):
        return whose
    if len(parts) > 1:
        return f"{whose}, each in the rows where it is known"
    return (
        f"{whose} in the {parts[0].n_rows:,} rows where {'they are' if several else 'it is'} known"
    )


def _drops(this: Pass, gram: Gram, kept: set[str], dropped: Sequence[str]) -> list[Drop]:
    """What goes, with the adjusted R^2 of each column on those that stay."""
    left, others = gram.of(sorted(kept)), gram.of(sorted(dropped))
    if len(left) and len(others):
        values = explained(gram.values, left, others, gram.rows)
    else:
        values = np.zeros(len(others))
    known = dict(zip((gram.names[index] for index in others), values.tolist(), strict=True))
    place = {name: index for index, name in enumerate(gram.names)}
    drops = []
    for name in dropped:
        value = known.get(name, -math.inf)
        similar = name in place and len(left) > 0
        nearest = gram.names[gram.nearest(place[name], left)] if similar else min(kept)
        r_squared = value if math.isfinite(value) else None
        drops.append(
            Drop(
                name, this.number, Reason.OVER_BUDGET, "r2", r_squared, None, representative=nearest
            )
        )
    return drops
