"""The claims of pass 3: what predicts every drop, then and in the end.

Covers: R^2 on few and on many columns and on the final selection, columns that came back, inflated
variances.
Does not cover: regression (`dpipe.verify.prediction`).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

import numpy as np

from dpipe.common.words import counted
from dpipe.model.records import Decision
from dpipe.options import Options
from dpipe.verify.checks.claims import (
    COMBINATION,
    INFLATED,
    PREDICTED,
    R2_TOLERANCE,
    VIF_ROUNDING,
    VIF_TOLERANCE,
    Claims,
    Failures,
    Rule,
    r2_tolerance,
)
from dpipe.verify.columns import RankedColumns
from dpipe.verify.prediction import Scores

if TYPE_CHECKING:
    from numpy.typing import NDArray


def rules_of_prediction(options: Options) -> dict[str, Rule]:
    """Measure and threshold of every rule of pass 3."""
    rules: dict[str, Rule] = {
        COMBINATION: ("r2", 1.0),
        PREDICTED: ("r2", Claims.required_r2),
    }
    if options.vif_threshold is not None:
        rules[INFLATED] = ("vif", options.vif_threshold)
    return rules


def check_prediction(
    claims: Claims, columns: RankedColumns, rows: NDArray[np.int64] | None
) -> Failures:
    """What predicts every drop of pass 3, also on the final selection, and VIFs where asked for.

    What takes all kept columns is no matter of some decisions: only named predictors are.
    """
    swept = claims.swept
    kept = [name for name in claims.survivors(3) if _varies(name, columns)]
    inflated = [row for row in claims.dropped_by(3) if row.reason == INFLATED]
    predicted = [row for row in claims.dropped_by(3) if row.reason != INFLATED]
    named = [row for row in predicted if claims.entry(row.column).get("predictors")]
    by_many = [row for row in predicted if row not in named]
    if missing := {row.column for row in (*by_many, *inflated)} - set(claims.order):
        yield f"run.json does not say in which order pass 3 went through {min(missing)!r}"
        return
    others = {row.column for row in predicted} | {name for name in swept if name not in kept}
    known = [*kept, *sorted(name for name in others if _varies(name, columns))]
    scores = Scores(columns, known, claims.crew)
    for row in named:
        claims.compared["drops of pass 3"] += 1
        yield from _check_named(claims, row, scores, swept)
    if claims.drawn is not None:
        return
    yield from _check_unnamed(claims, by_many, scores, swept)
    yield from _check_final(claims, predicted, scores)
    yield from _check_back(claims, scores, swept)
    limit = claims.options.vif_threshold
    if limit is not None:
        yield from _check_inflated(claims, inflated, scores, kept, limit)


def _varies(name: str, columns: RankedColumns) -> bool:
    """Whether a column is looked at and has two values."""
    return name in columns.index and columns.facts[name].n_unique > 1


def _check_named(claims: Claims, row: Decision, scores: Scores, swept: Collection[str]) -> Failures:
    """The R^2 of a drop on the columns that it names."""
    name, recorded = row.column, row.value or 0.0
    entry = claims.entry(name)
    named = entry["predictors"]
    if odd := sorted(set(named) - set(swept)):
        yield f"column {name!r} is predicted by {odd[0]!r}, which pass 3 did not keep"
        return
    adjusted = scores.adjusted(name, list(named))[1]
    if len(named) != entry.get("n_predictors", 0):
        yield f"column {name!r} does not say how many columns predict it"
    elif claims.note("r2", recorded, adjusted) > R2_TOLERANCE:
        yield f"column {name!r} is predicted with R^2 {adjusted:.6f}, not {recorded:.6f}"
    elif adjusted < (row.threshold or 0.0) - R2_TOLERANCE:
        yield f"column {name!r} is predicted with R^2 {adjusted:.6f}, below the threshold"


def _check_unnamed(
    claims: Claims, drops: Sequence[Decision], scores: Scores, swept: Collection[str]
) -> Failures:
    """The R^2 of each drop that many columns predict: those kept before it in the order."""
    names = {row.column for row in drops}
    order = [name for name in claims.order if name in scores]
    found = scores.in_turn(order, swept, names) if names else {}
    for row in drops:
        claims.compared["drops of pass 3"] += 1
        name, recorded = row.column, row.value or 0.0
        adjusted, predictors = found[name]
        tolerance = r2_tolerance(scores.multiple(name, predictors))
        count = claims.entry(name).get("n_predictors", 0)
        if not count:
            yield f"column {name!r} does not say how many columns predict it"
        elif math.isinf(adjusted) or claims.note("r2", recorded, adjusted) > tolerance:
            yield f"column {name!r} is predicted with R^2 {adjusted:.6f}, not {recorded:.6f}"
        elif predictors != count:
            yield f"column {name!r} is predicted by {counted(predictors, 'column')}, not {count:,}"
        elif adjusted < (row.threshold or 0.0) - tolerance:
            yield f"column {name!r} is predicted with R^2 {adjusted:.6f}, below the threshold"


def _check_back(claims: Claims, scores: Scores, swept: Collection[str]) -> Failures:
    """What pass 3 kept predicts a column that came back, and what a later pass left does not.

    Its drop is not recorded any more, so that is asked of all columns together. What a later pass
    left are the columns that it kept with those that came back before, some of which it may have
    dropped for good, and those of the end: with more predictors an adjusted R^2 may fall.
    """
    if missing := claims.back - {*claims.returned}:
        yield f"column {min(missing)!r} cannot have come back: run.json does not say when"
        return
    left = [name for name in sorted(claims.survivors(4)) if name in scores]
    first = [name for name in left if name not in claims.back]
    order = [name for name in claims.returned if name in claims.back]
    for place, name in enumerate(order):
        claims.compared["columns that came back"] += 1
        limit = claims.required_r2(name)
        others = [other for other in left if other != name]
        kept = [other for other in sorted(swept) if other in scores]
        before = scores.adjusted(name, kept)[0] if name in scores else 0.0
        if not claims.dropped_by(4) or before < limit - R2_TOLERANCE:
            yield f"column {name!r} cannot have come back: pass 3 had no reason to drop it"
            continue
        sooner = [other for other in order[:place] if other in scores]
        stays = [other for other in sooner if other in left]
        stages = (first, [*first, *sooner], [*first, *stays], others)
        after, predictors = min(
            _on_selection(claims, scores, [name], stage)[name] for stage in stages
        )
        if after >= limit + r2_tolerance(scores.multiple(name, predictors)):
            yield (
                f"column {name!r} cannot have come back: the selection predicts it with R^2 "
                f"{after:.6f}"
            )


def _check_final(claims: Claims, predicted: Sequence[Decision], scores: Scores) -> Failures:
    """The R^2 of every drop on the columns kept in the end, which must reach the threshold.

    Where it is larger it is that on the few that the drop names.
    """
    selected = [name for name in sorted(claims.selected) if name in scores]
    on_selection = _on_selection(claims, scores, [row.column for row in predicted], selected)
    for row in predicted:
        claims.compared["predictions by the selection"] += 1
        entry = claims.entry(row.column)
        named = list(entry.get("predictors", {}))
        found, predictors = on_selection[row.column]
        if named and set(named) <= set(selected):
            by_named = scores.adjusted(row.column, named)[1], len(named)
            found, predictors = max((found, predictors), by_named)
        recorded, limit = entry.get("r2_final", -math.inf), claims.required_r2(row.column)
        if math.isfinite(max(found, recorded)):
            off = claims.note("r2_final", recorded, found)
        else:
            off = 0.0  # the rows leave no freedom, and nothing is recorded
        tolerance = r2_tolerance(scores.multiple(row.column, predictors))
        if off > tolerance:
            yield (
                f"the selection predicts column {row.column!r} with R^2 {found:.6f}, "
                f"not {recorded:.6f}"
            )
        elif claims.promises_prediction and found < limit - tolerance:
            yield (
                f"the selection predicts column {row.column!r} with R^2 {found:.6f}, "
                f"below the threshold {limit:g}"
            )


def _on_selection(
    claims: Claims, scores: Scores, names: Sequence[str], selected: Sequence[str]
) -> dict[str, tuple[float, int]]:
    """The adjusted R^2 of columns on a selection, or on those of it before them in the order.

    The larger of the two, and how many predictors it is of: many cost degrees of freedom.
    """
    on_all = dict(zip(names, scores.all_adjusted(names, selected), strict=True))
    members = {*names, *selected}
    order = [name for name in claims.order if name in members and name in scores]
    before = scores.in_turn(order, {*selected}, {*names})
    return {name: max(on_all[name], before.get(name, (-math.inf, 0))) for name in names}


def _check_inflated(
    claims: Claims, drops: Sequence[Decision], scores: Scores, kept: Sequence[str], limit: float
) -> Failures:
    """No column kept is inflated, and what went was.

    The worst inflated column in the order went first, so beside each one that went there were all
    better ones and the worse ones that stayed.
    """
    first = [name for name in kept if name in claims.asked]
    left = scores.independent(first) + [name for name in kept if name not in claims.asked]
    claims.compared["VIF of columns that pass 3 kept"] = len(left)
    for name, vif in zip(left, scores.inflation(left), strict=True):
        if name not in claims.asked and vif >= limit * (1 + VIF_TOLERANCE):
            yield f"column {name!r} was kept with a VIF of {vif:.6g} (limit {limit:g})"
    gone = {row.column for row in drops}
    found = scores.inflation_in_turn([n for n in claims.order if n in {*left, *gone}], gone)
    for row in drops:
        claims.compared["drops of pass 3"] += 1
        recorded, vif = row.value or 0.0, found[row.column]
        if not abs(recorded - vif) <= vif * (VIF_TOLERANCE + VIF_ROUNDING * vif):
            yield f"column {row.column!r} had a VIF of {vif:.6g}, not {recorded:.6g}"
        elif recorded < limit * (1 - VIF_TOLERANCE):
            yield f"column {row.column!r} had a VIF of {recorded:.6g}, below the threshold"
