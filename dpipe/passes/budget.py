"""Pass 5: a number of columns, those that serve the targets best together or stand best for all.

Covers: choosing among what the passes before it left, the decisions on the rest, what the chosen
columns explain.
Does not cover: the choice itself (`dpipe.kernels.budget`), the Gram matrix (`dpipe.engine.gram`).

It chooses last and promises nothing but the number: what a column that goes loses is stated, as the
R^2 with which the final selection predicts it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dpipe.common.words import counted, percent, quoted
from dpipe.engine.context import Context, Prepared
from dpipe.engine.gram import Gram, gram_of, order_of
from dpipe.engine.machine import Machine
from dpipe.engine.memory import prediction_bytes
from dpipe.engine.plan import TableShape, plan_grid
from dpipe.engine.relevance import stored_targets
from dpipe.kernels.budget import Chosen, choose_for_table, choose_for_target, ridge_for
from dpipe.kernels.prediction import explained
from dpipe.model.events import Note, PlannedPass
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
            Note(f"{left} for pass 5, fewer than --max-columns {budget:,}: all stay.", "notice")
        )
    _say_where_targets_are_known(context)
    gram = gram_of(this, context, prepared, columns)
    constant = _constant(context, gram, columns)
    asked_for = sum(name in context.priority.asked for name in constant)
    chosen = _choose(context, gram, order_of(gram, prepared, context), budget - asked_for)
    names = [gram.names[index] for index in chosen.indices.tolist()]
    kept = {*names, *constant[: budget - len(names)]}
    steps = _steps(names, chosen)
    _say_what_is_explained(context, steps)
    dropped = [name for name in columns if name not in kept]
    return PassResult(
        this.number,
        this.name,
        tuple(name for name in columns if name in kept),
        tuple(_drops(this, gram, kept, dropped)),
        chosen=steps,
    )


def plan(this: Pass, table: TableShape, options: Options, machine: Machine) -> PlannedPass:
    """One grid of tiles, of which pass 3 leaves most, and the choice on the client."""
    need = prediction_bytes(table.n_columns)
    return plan_grid(this, table, machine, functions=1, client_bytes=need)


def _say_where_targets_are_known(context: Context) -> None:
    """A regression over all rows is not the one over those of a target that is seldom known."""
    for target in stored_targets(context.store) if context.options.target else ():
        if target.n_valid < context.n_rows / 2:
            known = f"{target.n_valid:,} of {context.n_rows:,} rows"
            context.emit(
                Note(
                    f"the target {quoted(target.name)} is known in {known}, and pass 5 weighs "
                    "columns by all rows, a missing target at the mean; for a choice by those rows "
                    "alone give a table of them.",
                    "notice",
                )
            )


def _constant(context: Context, gram: Gram, columns: Sequence[str]) -> list[str]:
    """Columns of one value, those asked for first: nothing can be told of them."""
    varies = set(gram.names)
    alike = sorted(name for name in columns if name not in varies)
    return sorted(alike, key=lambda name: name not in context.priority.asked)


def _choose(context: Context, gram: Gram, order: NDArray[np.int64], count: int) -> Chosen:
    asked = np.array([name in context.priority.asked for name in gram.names], dtype=bool)
    if gram.targets:
        return choose_for_target(
            gram.values,
            gram.responses,
            order,
            asked,
            count,
            ridge_for(context.n_rows),
            gram.targets,
        )
    return choose_for_table(gram.values, order, asked, count)


def _steps(names: Sequence[str], chosen: Chosen) -> tuple[Step, ...]:
    target: list[float | None] = list(chosen.target.tolist()) or [None] * len(names)
    return tuple(
        Step(name, table, of_target)
        for name, table, of_target in zip(names, chosen.table.tolist(), target, strict=True)
    )


def _say_what_is_explained(context: Context, steps: Sequence[Step]) -> None:
    if not steps:
        return
    last = steps[-1]
    explain = "explains" if len(steps) == 1 else "explain"
    target = "" if last.target is None else f" and {percent(last.target)} of the target's"
    of = "the variance of the columns that pass 5 chose from"
    sentence = f"{counted(len(steps), 'column')} {explain} {percent(last.table)} of {of}{target}"
    context.emit(Note(f"{sentence}, on normal scores.", "notice"))


def _drops(this: Pass, gram: Gram, kept: set[str], dropped: Sequence[str]) -> list[Drop]:
    """What goes, with the adjusted R^2 of each column on those that stay."""
    left, others = gram.of(sorted(kept)), gram.of(dropped)
    if len(left) and len(others):
        values = explained(gram.values, left, others, gram.rows)[0]
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
