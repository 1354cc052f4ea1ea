"""The claims of pass 5: as many columns as asked for, the best one by one.

Covers: their number, the order they were taken in, what they explain of the others.
Does not cover: shares and gains (`dpipe.verify.budget`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from dpipe.common.words import counted
from dpipe.verify.budget import Fit, Targets, of_table, of_targets, targets_of
from dpipe.verify.checks.claims import (
    R2_TOLERANCE,
    SPEARMAN_TOLERANCE,
    Claims,
    Failures,
    r2_tolerance,
)
from dpipe.verify.columns import RankedColumns
from dpipe.verify.prediction import Scores

if TYPE_CHECKING:
    from numpy.typing import NDArray


def check_budget(
    claims: Claims, columns: RankedColumns, rows: NDArray[np.int64] | None
) -> Failures:
    """As many columns as asked for, which were best one by one, and the R^2 of every other one."""
    received = claims.survivors(4)
    wanted = min(claims.options.max_columns or 0, len(received))
    if len(claims.selected) != wanted:
        yield f"pass 5 kept {counted(len(claims.selected), 'column')}, and not {wanted:,}"
        return
    if claims.drawn is not None:  # it takes all columns to say what some explain
        return
    varying = [name for name in received if columns.facts[name].n_unique > 1]
    scores = Scores(columns, varying, claims.crew)
    yield from _check_rest(claims, scores)
    fits, count = [], 0
    if claims.options.target:
        for some in targets_of(claims.table, claims.options, rows, f"{columns.path}-targets"):
            fits.append(_fit(claims, columns, varying, some))
            count += some.count
    yield from _check_choice(claims, varying, scores, fits, count)


def _fit(claims: Claims, columns: RankedColumns, varying: Sequence[str], targets: Targets) -> Fit:
    """The regression of targets on the columns, all of it on the rows where these are known."""
    if len(targets.rows) < columns.n_rows:
        columns = columns.ranked_on(targets.rows, varying, f"{columns.path}-known", claims.crew)
    there = [name for name in varying if columns.facts[name].n_unique > 1]
    scores = Scores(columns, there, claims.crew, targets.columns)
    responses = scores.vectors(list(targets.columns.index)) * targets.weights
    vectors = np.zeros((len(responses), len(varying)))
    vectors[:, [varying.index(name) for name in there]] = scores.vectors(there)
    return Fit(vectors, responses, max(0.1, 100 / len(targets.rows)))


def _check_rest(claims: Claims, scores: Scores) -> Failures:
    """What the selection says of each column that went, and the column most similar to it."""
    selected = [name for name in sorted(claims.selected) if name in scores]
    drops = [row for row in claims.dropped_by(5) if row.column in scores]
    if not selected:
        return
    names = [row.column for row in drops]
    similar = np.abs(scores.vectors(names).T @ scores.vectors(selected))
    found = scores.all_adjusted(names, selected)
    for row, (value, predictors), near in zip(drops, found, similar, strict=True):
        claims.compared["drops of pass 5"] += 1
        recorded = -math.inf if row.value is None else row.value
        finite = math.isfinite(max(value, recorded))
        tolerance = r2_tolerance(scores.multiple(row.column, predictors))
        if finite and not claims.note("r2", recorded, value) <= tolerance:
            yield (
                f"the selection predicts column {row.column!r} with R^2 {value:.6f}, "
                f"not {recorded:.6f}"
            )
        other = row.representative
        if other not in selected or near[selected.index(other)] < near.max() - SPEARMAN_TOLERANCE:
            closest = selected[int(near.argmax())]
            yield f"column {row.column!r} is most similar to {closest!r}, not to {other!r}"


def _check_choice(
    claims: Claims,
    varying: Sequence[str],
    scores: Scores,
    fits: Sequence[Fit],
    count: int,
) -> Failures:
    """Every column taken explained most of what was left, and all of them what is stated."""
    names = [str(step["column"]) for step in claims.chosen]
    if set(names) != set(claims.selected) & set(varying) or len(names) != len(set(names)):
        yield "the columns that pass 5 says it took are not those that were kept"
        return
    n_asked = len(claims.asked & set(names))
    if not claims.asked.issuperset(names[:n_asked]):
        yield "columns that were asked to be kept were not taken first"
        return
    taken = [varying.index(name) for name in names]
    ways = {"table": of_table(scores.vectors(varying), taken)}
    if fits:
        ways["target"] = of_targets(fits, taken, count)
    decides = list(ways)[-1]
    for what, way in ways.items():
        for number, (step, found) in enumerate(zip(claims.chosen, way, strict=True)):
            share = step[what]
            if share is None or not claims.note("share", share, found.share) <= R2_TOLERANCE:
                yield (
                    f"the columns up to {step['column']!r} explain {found.share:.6f} of the "
                    f"{what}, not {share}"
                )
                break
            if what != decides or number < n_asked or found.gain is None:
                continue
            claims.compared["choices of pass 5"] += 1
            if found.best is not None and found.gain < found.best * (1 - 1e-4) - 1e-9:
                yield (
                    f"pass 5 took {step['column']!r}, which explains {found.gain:.6f}, where "
                    f"another column would have explained {found.best:.6f}"
                )
                break
