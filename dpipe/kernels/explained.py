"""How well a selection predicts other columns, and which of these it must have back.

Covers: the adjusted R^2 of columns on a given set of others, what that says of each column that a
sweep dropped, and the columns whose return makes the selection predict all of them again. Host
arrays only: one p x p Gram matrix.
Does not cover: the sweep itself (see `dpipe.kernels.prediction`).
See also: docs/statistics.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from dpipe.kernels.gram import RESIDUAL_VARIANCE, Factor, Indices, Matrix, factored
from dpipe.kernels.prediction import Prediction, adjusted, reached


def explained(
    r: Matrix, kept: Indices, others: Indices, rows: Indices, first: Indices | None = None
) -> Matrix:
    """How well columns together predict each of some others, adjusted for their number.

    Parameters
    ----------
    r
        (p, p) Gram matrix of unit-norm centred columns.
    kept, others
        Indices into r, in an order that does not depend on the input's.
    rows
        (p,) rows that each column's R^2 may count on.
    first
        (others,) how many of the first of `kept` each column is asked of as well: they may predict
        it where all of them leave no freedom.

    Returns
    -------
    (others,) adjusted R^2, minus infinity where the rows leave no freedom.

    Examples
    --------
    >>> import numpy as np
    >>> r, rows = np.array([[1.0, 0.8], [0.8, 1.0]]), np.array([50, 50])
    >>> explained(r, np.array([0]), np.array([1]), rows).round(2).tolist()
    [0.63]
    """
    factor = factored(r[np.ix_(kept, kept)])
    basis = kept[factor.basis]
    triangle = factor.values[factor.basis, : len(basis)]
    shares = np.zeros((len(basis) + 1, len(others)))
    shares[1:] = np.linalg.solve(triangle, r[np.ix_(basis, others)]) ** 2
    shares = shares.cumsum(axis=0)  # row k: what the first k of the basis explain

    def on(counts: Indices) -> list[float]:
        left = np.clip(1 - shares[counts, np.arange(len(others))], 0, 1)
        left[left < RESIDUAL_VARIANCE] = 0
        each = zip(left.tolist(), rows[others].tolist(), counts.tolist(), strict=True)
        return [adjusted(1 - rest, n, count) for rest, n, count in each]

    values = on(np.full(len(others), len(basis)))
    if first is None:
        return np.array(values)
    return np.maximum(values, on(np.searchsorted(factor.basis, first)))


def on_selection(
    r: Matrix, order: Indices, kept: Indices, predictions: Sequence[Prediction], rows: Indices
) -> Matrix:
    """The best adjusted R^2 of each column that went, on the columns of a later selection.

    Parameters
    ----------
    r, order, rows
        As for `dpipe.kernels.prediction.sweep`.
    kept
        The selection, as indices into r.
    predictions
        Answers of the sweep, in the order.

    Returns
    -------
    (predictions,) the largest of R^2 on all of `kept`, on those of them that come before the column
    in the order, and of its own few predictors where all of these are among `kept`: many predictors
    cost degrees of freedom, and the sweep asked those before it alone.
    """
    place = np.argsort(order)
    others = np.array([one.index for one in predictions], dtype=np.int64)
    kept = kept[np.argsort(place[kept])]
    first = np.searchsorted(place[kept], place[others])
    present = set(kept.tolist())
    stated = [
        one.r_squared
        if one.partners and all(column in present for column, _ in one.partners)
        else -math.inf
        for one in predictions
    ]
    return np.maximum(explained(r, kept, others, rows, first), stated)


def returning(
    r: Matrix,
    order: Indices,
    kept: Indices,
    predictions: Sequence[Prediction],
    rows: Indices,
    threshold: float | Matrix,
    admitted: Callable[[list[int]], list[int]] = list,
) -> Indices:
    """Which of the columns that went must come back, so that `kept` and they predict the others.

    Columns come back in their order, each where neither `kept` nor those that came back before it
    predict it: often one that comes back predicts others that fell with it.

    Parameters
    ----------
    r, order, kept, predictions, rows
        As for `on_selection`.
    threshold
        R^2 that a column needs to stay away, (p,) or one for all.
    admitted
        Which of some columns that must come back may: all, unless something else stands for one.

    Examples
    --------
    >>> import numpy as np
    >>> from dpipe.kernels.prediction import sweep
    >>> r = np.array([[1.0, 0.99, 0.0], [0.99, 1.0, 0.0], [0.0, 0.0, 1.0]])
    >>> order, rows = np.arange(3), np.full(3, 100)
    >>> predictions = sweep(r, order, np.zeros(3, bool), rows, 0.9, None)
    >>> kept = np.array([2])  # another pass took column 0
    >>> returning(r, order, kept, predictions, rows, 0.9).tolist()
    [1]
    """
    thresholds = np.broadcast_to(threshold, len(r))
    back: list[int] = []
    waiting = list(predictions)
    while waiting:
        selection = np.concatenate([kept, np.array(back, dtype=np.int64)])
        values = on_selection(r, order, selection, waiting, rows)
        fallen = [
            one.index
            for value, one in zip(values.tolist(), waiting, strict=True)
            if not reached(value, thresholds[one.index])
        ]
        missed = _missed(r, order, selection, fallen, rows, thresholds) if fallen else []
        if not missed:  # also where two ways to one R^2 round to either side of the threshold
            break
        back += admitted(missed)
        waiting = [one for one in waiting if one.index not in missed]
    return np.array(back, dtype=np.int64)


def _missed(
    r: Matrix,
    order: Indices,
    selection: Indices,
    columns: Sequence[int],
    rows: Indices,
    thresholds: Matrix,
) -> list[int]:
    """Which columns, taken in their order, neither a selection nor those taken before predict."""
    members = np.concatenate([selection, np.array(columns, dtype=np.int64)])
    everything = factored(r[np.ix_(members, members)], len(selection))
    members = order[np.isin(order, members)]
    before = Factor(r[np.ix_(members, members)])
    asked = {column: place for place, column in enumerate(columns, len(selection))}
    missed = []
    for j, column in enumerate(members.tolist()):
        left = before.left(j)
        if column not in asked:
            before.take(j)
            continue
        place, n = asked[column], int(rows[column])
        value = max(
            adjusted(1 - left, n, len(before.basis)),
            adjusted(1 - everything.left(place), n, len(everything.basis)),
        )
        if not reached(value, thresholds[column]):
            missed.append(column)
            before.take(j)
            everything.take(place)
    return missed
