"""Pass 3: columns that kept ones together predict, on the scale of normal scores.

Covers: the sweep through the survivors and the strict reading by variance inflation, their
decisions; what a later pass does to the predictions.
Does not cover: the Gram matrix (`dpipe.engine.gram`), the sweep (`dpipe.kernels.prediction`), the
elimination (`dpipe.kernels.vif`).

The Gram matrix is computed for the survivors of pass 2 alone, which is cheaper than keeping pass
2's moments of all columns.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from dpipe.common.words import counted
from dpipe.engine.context import Context, Prepared
from dpipe.engine.gram import Gram, gram_of, order_of
from dpipe.engine.machine import Machine
from dpipe.engine.memory import prediction_bytes
from dpipe.engine.plan import TableShape, plan_grid
from dpipe.errors import InputError
from dpipe.kernels.explained import on_selection, returning
from dpipe.kernels.prediction import Prediction, required_r2, sweep
from dpipe.kernels.vif import Elimination, eliminate
from dpipe.model.events import Finding, PlannedPass
from dpipe.model.records import Drop, PassResult
from dpipe.model.registry import PASSES, Pass, Reason
from dpipe.options import Options
from dpipe.passes.redundancy import drop_similar

MOST_PREDICTORS = 3
"""Most predictors of a column where no target says which columns matter (docs/models.md)."""

FEW = 5
"""Most predictors that are looked for one by one, where all together prove nothing."""

_MOST_TERMS = 8
_EXACT = 1e-9  # 1 - R^2 of an exact combination, adjusted


def run(this: Pass, context: Context, prepared: Prepared, columns: Sequence[str]) -> PassResult:
    """Go through the columns in order; drop each that kept ones predict."""
    options = context.options
    gram = gram_of(this, context, prepared, columns)
    order = order_of(prepared, context, gram)
    asked = np.array([name in context.priority.asked for name in gram.names], dtype=bool)
    required, most = _required(context, gram.names), _most(context)
    _say_what_rows_allow(context, gram, most)
    _say_what_asked_ones_predict(context, gram, order[asked[order]], required, most)
    predictions = sweep(gram.values, order, asked, gram.rows, required, most, _few(most))
    left = _others(len(gram.names), [one.index for one in predictions])
    inflated = _inflated(context, gram, order, asked, left)
    kept = np.setdiff1d(left, [one.index for one in inflated])
    drops = {
        gram.names[one.index]: _predicted(this, one, gram, kept, float(required[one.index]))
        for one in predictions
    } | {gram.names[one.index]: _strict(this, one, gram, kept, options) for one in inflated}
    return PassResult(
        this.number,
        this.name,
        tuple(name for name in columns if name not in drops),
        tuple(drops[name] for name in columns if name in drops),
        predicted=_on_selection(gram, order, kept, predictions),
        order=tuple(gram.names[index] for index in order) if drops else (),
    )


def plan(this: Pass, table: TableShape, options: Options, machine: Machine) -> PlannedPass:
    """One grid of tiles, and the sweep on the client."""
    need = prediction_bytes(table.n_columns)
    return plan_grid(this, table, machine, functions=1, client_bytes=need)


def review(
    this: Pass,
    context: Context,
    prepared: Prepared,
    mine: PassResult,
    between: Sequence[PassResult],
    later: PassResult,
) -> PassResult:
    """What a later pass kept, with the columns that come back because of what it dropped.

    A column that this pass dropped stays dropped only while the selection predicts it, or while the
    later pass would drop it as well. With ``--vif-threshold`` none comes back: it would be
    inflated. Nor does one after a pass that keeps a number of columns; what these predict of the
    others is stated.
    """
    if not mine.predicted or not later.drops:
        return later
    # Some came back before, and may have gone again.
    settled = {*later.kept, *(drop.column for result in (*between, later) for drop in result.drops)}
    drops = {d.column: d for d in mine.drops if d.column in mine.predicted}
    drops = {name: drop for name, drop in drops.items() if name not in settled}
    gram = gram_of(this, context, prepared, [*later.kept, *drops])
    order = gram.of(mine.order)
    place = {name: index for index, name in enumerate(gram.names)}
    predictions = [_as_found(drops[name], place) for name in mine.order if name in drops]
    kept, returned, similar = list(later.kept), list[str](), dict[str, Drop]()

    def admitted(missed: list[int]) -> list[int]:
        names = [gram.names[index] for index in missed]
        found = drop_similar(PASSES[later.number], context, prepared, names, kept)
        returned.extend(names)
        similar.update(found)
        kept.extend(name for name in names if name not in found)
        return [index for index in missed if gram.names[index] not in found]

    if context.options.vif_threshold is None and not PASSES[later.number].rations:
        required = _required(context, gram.names)
        left = gram.of(kept)
        returning(gram.values, order, left, predictions, gram.rows, required, admitted)
    predictions = [one for one in predictions if gram.names[one.index] not in returned]
    lost = {drop.column: drop for drop in later.drops} | similar
    return dataclasses.replace(
        later,
        kept=_in_order(prepared, kept),
        drops=tuple(lost[name] for name in _in_order(prepared, lost)),
        returned=tuple(returned),
        predicted=_on_selection(gram, order, gram.of(kept), predictions),
    )


def _on_selection(
    gram: Gram,
    order: NDArray[np.int64],
    kept: NDArray[np.int64],
    predictions: Sequence[Prediction],
) -> dict[str, float]:
    """The R^2 of each column that went, on the columns that stay."""
    if not predictions:
        return {}
    values = on_selection(gram.values, order, kept, predictions, gram.rows).tolist()
    names = (gram.names[one.index] for one in predictions)
    return dict(zip(names, values, strict=True))


def _required(context: Context, names: Sequence[str]) -> NDArray[np.float64]:
    """The R^2 at which each column goes."""
    return required_r2(context.options.required_r2, context.priority.relevance_of(names))


def _most(context: Context) -> int | None:
    """Most predictors of a column; None for any number, where a target says what matters."""
    if context.options.most_predictors is not None:
        return context.options.most_predictors
    return None if context.priority.relevance else MOST_PREDICTORS


def _few(most: int | None) -> int:
    return FEW if most is None else min(FEW, most)


def _others(p: int, indices: Sequence[int]) -> NDArray[np.int64]:
    return np.setdiff1d(np.arange(p), np.array(indices, dtype=np.int64))


def _in_order(prepared: Prepared, names: Collection[str]) -> tuple[str, ...]:
    members = frozenset(names)
    return tuple(name for name in prepared if name in members)


def _say_what_rows_allow(context: Context, gram: Gram, most: int | None) -> None:
    if 2 * len(gram.names) <= context.n_rows - 1:
        return
    few = f"what up to {_few(most)} kept columns predict"
    told = few if most is not None else f"{few}, or all of them while they are few enough"
    rows, columns = counted(context.n_rows, "row"), counted(len(gram.names), "column")
    context.emit(
        Finding(
            f"{rows} for {columns}: pass 3 claims {told}; more cannot be told from so few rows.",
            "notice",
        )
    )


def _say_what_asked_ones_predict(
    context: Context,
    gram: Gram,
    members: NDArray[np.int64],
    required: NDArray[np.float64],
    most: int | None,
) -> None:
    part, rows = gram.values[np.ix_(members, members)], gram.rows[members]
    nobody = np.zeros(len(members), dtype=bool)
    places = np.arange(len(members))
    for one in sweep(part, places, nobody, rows, required[members], most, _few(most)):
        terms = _terms([(gram.names[members[k]], weight) for k, weight in one.partners])
        by = f"by {terms}" if terms else f"by {counted(one.predictors, 'other column')} asked for"
        name = gram.names[members[one.index]]
        context.emit(
            Finding(
                f"{name!r} was asked to be kept, though it is {Reason.PREDICTED} {by}.", "warning"
            )
        )


def _inflated(
    context: Context,
    gram: Gram,
    order: NDArray[np.int64],
    asked: NDArray[np.bool_],
    left: NDArray[np.int64],
) -> list[Elimination]:
    """What goes of the columns that the sweep left, in the strict reading."""
    limit = context.options.vif_threshold
    if limit is None:
        return []
    if len(left) >= context.n_rows:
        raise InputError(
            f"--vif-threshold needs fewer columns than rows, and {len(left):,} columns of "
            f"{context.n_rows:,} rows are left; leave it out, or let more go before by a lower "
            "--r2-threshold or --spearman-threshold."
        )
    ranked = order[np.isin(order, left)]
    eliminations = eliminate(
        gram.values[np.ix_(ranked, ranked)], np.arange(len(ranked)), asked[ranked], limit
    )
    return [
        dataclasses.replace(
            one,
            index=int(ranked[one.index]),
            partners=tuple((int(ranked[k]), weight) for k, weight in one.partners),
        )
        for one in eliminations
    ]


def _predicted(
    this: Pass, one: Prediction, gram: Gram, kept: NDArray[np.int64], threshold: float
) -> Drop:
    stays = np.isin(one.representative, kept)
    other = one.representative if stays else gram.nearest(one.index, kept)
    predictors = tuple((gram.names[k], weight) for k, weight in one.partners)
    terms = _terms(predictors) or counted(one.predictors, "kept column")
    exact = 1 - one.r_squared < _EXACT and bool(predictors)
    return Drop(
        gram.names[one.index],
        this.number,
        Reason.COMBINATION if exact else Reason.PREDICTED,
        "r2",
        1.0 if exact else one.r_squared,
        1.0 if exact else threshold,
        gram.names[other],
        f"{'of' if exact else 'by'} {terms}",
        one.predictors,
        predictors,
    )


def _strict(
    this: Pass, one: Elimination, gram: Gram, kept: NDArray[np.int64], options: Options
) -> Drop:
    name, other = gram.names[one.index], gram.names[gram.nearest(one.index, kept)]
    if one.partners:
        predictors = tuple((gram.names[k], weight) for k, weight in one.partners)
        detail, count = f"of {_terms(predictors)}", len(predictors)
        cause = Reason.COMBINATION
        return Drop(name, this.number, cause, "r2", 1.0, 1.0, other, detail, count, predictors)
    limit = options.vif_threshold
    return Drop(name, this.number, Reason.INFLATED, "vif", one.value, limit, other)


def _terms(predictors: Sequence[tuple[str, float]]) -> str:
    """Predictors with their coefficients in words, the largest first."""
    terms = [f"{name} ({weight:.3g})" for name, weight in predictors[:_MOST_TERMS]]
    more = len(predictors) - _MOST_TERMS
    if more > 0:
        return f"{', '.join(terms)} and {more} more"
    return " and ".join([", ".join(terms[:-1]), terms[-1]] if len(terms) > 1 else terms)


def _as_found(drop: Drop, place: Mapping[str, int]) -> Prediction:
    """The prediction that a drop records, of columns that have no place at -1."""
    return Prediction(
        place[drop.column],
        drop.value or 0.0,
        drop.n_predictors,
        tuple((place.get(name, -1), weight) for name, weight in drop.predictors),
        place.get(drop.representative or "", -1),
    )
