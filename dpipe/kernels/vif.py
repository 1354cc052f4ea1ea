"""The strict reading of pass 3: no column left whose variance inflation factor is too large.

Covers: exact linear combinations, elimination by variance inflation factor (VIF) in an order of
columns. Host arrays only: one p x p matrix, however many rows it came from.
Does not cover: the Gram matrix itself, who stands for a dropped column (`dpipe.passes.prediction`).
See also: Belsley, Kuh & Welsch 1980 for VIF_j = (R^-1)_jj.

Everything below the public functions works in positions: 0 is the column of best priority.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RESIDUAL_VARIANCE = 1e-10
"""A column of unit variance with less than this left beside better ones is their combination."""

_ROUNDING = 1e-9  # relative; a VIF this close to the threshold reaches it, whoever did the sums
_NEGLIGIBLE = 1e-6  # coefficients this small beside the largest are rounding
_PANEL = 128  # columns factored, and downdates held back, before one matrix product applies them
_DRIFT = 1e-8  # relative error of a VIF that calls for a fresh inverse

Matrix = NDArray[np.float64]
Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Elimination:
    """One column that goes.

    Attributes
    ----------
    index
        The column, as the matrix counts.
    kind
        "combination" (exact, of better columns) or "vif".
    value
        Its VIF when it was dropped; inf for a combination.
    r_squared
        Its R^2 on the columns that were still in: 1 - 1 / VIF, and 1.0 for a combination.
    partners
        (column, coefficient) of a combination, largest coefficient first, in terms of the
        unit-norm scores. Empty for "vif".
    """

    index: int
    kind: str
    value: float
    r_squared: float
    partners: tuple[tuple[int, float], ...]


def eliminate(
    r: Matrix, order: Indices, keep: NDArray[np.bool_], threshold: float
) -> list[Elimination]:
    """Drop exact combinations of better columns, then the worst inflated one until none is.

    Parameters
    ----------
    r
        (p, p) Gram matrix of unit-norm centred columns: symmetric, positive semi-definite, unit
        diagonal.
    order
        (p,) every column once, best priority first. Columns of `keep` move ahead of the others.
    keep
        (p,) columns that are never dropped. One that is an exact combination of better columns
        to keep takes no part in the VIFs, which would all be infinite.
    threshold
        While the VIF of a column that may go reaches this and another column is left, the one of
        worst priority among such columns goes.

    Returns
    -------
    list of Elimination
        In the order of the drops: combinations by priority, then the others from the worst priority
        on, since a drop only lowers the VIFs of the columns left.

    Raises
    ------
    ValueError
        When the arguments do not fit together or `r` has no unit diagonal.

    Notes
    -----
    p^3 operations once and 2 p^2 for each drop; memory about 5 matrices of p x p. VIFs agree with
    those of a fresh inverse to a relative 1e-6 or better; the last ones are from a fresh inverse.

    Examples
    --------
    >>> import numpy as np
    >>> a, b = np.eye(4)[:2]
    >>> scores = np.stack([a, b, (a + b) / np.sqrt(2)])
    >>> steps = eliminate(scores @ scores.T, np.arange(3), np.zeros(3, dtype=bool), 10.0)
    >>> [(step.index, step.kind) for step in steps]
    [(2, 'combination')]
    >>> [(column, round(weight, 3)) for column, weight in steps[0].partners]
    [(0, 0.707), (1, 0.707)]
    """
    order, n_keep = _keep_first(r, order, keep)
    gram = r[np.ix_(order, order)]
    factor, basis, dependent = _factor(gram)
    steps = _combinations(factor, basis, dependent[dependent >= n_keep])
    del factor
    n_fixed = int(np.count_nonzero(basis < n_keep))
    inflated = _inflated(gram[np.ix_(basis, basis)], n_fixed, threshold)
    steps += [_renumbered(step, basis) for step in inflated]
    return [_renumbered(step, order) for step in steps]


def _keep_first(r: Matrix, order: Indices, keep: NDArray[np.bool_]) -> tuple[Indices, int]:
    """`order` with the columns of `keep` ahead, and how many those are."""
    p = len(r)
    if r.shape != (p, p) or keep.shape != (p,) or not np.array_equal(np.sort(order), np.arange(p)):
        raise ValueError("r, order and keep must speak of the same columns, each once.")
    if not np.allclose(np.diagonal(r), 1.0, rtol=0, atol=1e-6):  # NaN fails too
        raise ValueError("r must be the Gram matrix of columns of norm 1.")
    first = keep[order]
    return np.concatenate((order[first], order[~first])), int(np.count_nonzero(first))


def _renumbered(step: Elimination, names: Indices) -> Elimination:
    """`step` with every position replaced by what stands there in `names`."""
    return Elimination(
        index=int(names[step.index]),
        kind=step.kind,
        value=step.value,
        r_squared=step.r_squared,
        partners=tuple((int(names[column]), weight) for column, weight in step.partners),
    )


# Exact combinations


def _factor(gram: Matrix) -> tuple[Matrix, Indices, Indices]:
    """Cholesky factor in order of priority that passes over exact combinations.

    Returns the factor (p, m), one row for every column and one column for each of the m in the
    basis; the positions of the basis; the positions of the combinations. Left-looking in panels:
    almost all arithmetic is in one matrix product a panel.
    """
    p = len(gram)
    factor = np.zeros((p, p), order="F")
    basis: list[int] = []
    dependent: list[int] = []
    for start in range(0, p, _PANEL):
        stop = min(start + _PANEL, p)
        n_basis = len(basis)
        panel = gram[start:, start:stop] - factor[start:, :n_basis] @ factor[start:stop, :n_basis].T
        for j in range(start, stop):
            m = len(basis)
            rest = panel[j - start :, j - start] - factor[j:, n_basis:m] @ factor[j, n_basis:m]
            if rest[0] < RESIDUAL_VARIANCE:
                dependent.append(j)
                continue
            factor[j:, m] = rest / math.sqrt(rest[0])
            basis.append(j)
    return (
        factor[:, : len(basis)],
        np.array(basis, dtype=np.int64),
        np.array(dependent, dtype=np.int64),
    )


def _combinations(factor: Matrix, basis: Indices, dependent: Indices) -> list[Elimination]:
    """What each of the `dependent` columns is made of."""
    if not dependent.size:
        return []
    # Row j of the factor is 0 from the first worse column on, so its solution is too.
    weights = np.linalg.solve(factor[basis].T, factor[dependent].T)
    return [
        _combination(int(j), basis, column) for j, column in zip(dependent, weights.T, strict=True)
    ]


def _combination(j: int, basis: Indices, weights: Matrix) -> Elimination:
    size = np.abs(weights)
    used = np.flatnonzero(size > _NEGLIGIBLE * size.max())
    used = used[np.argsort(-size[used], kind="stable")]
    partners = basis[used]
    return Elimination(
        index=j,
        kind="combination",
        value=math.inf,
        r_squared=1.0,
        partners=tuple(zip(partners.tolist(), weights[used].tolist(), strict=True)),
    )


# Elimination by VIF


def _inflated(gram: Matrix, n_fixed: int, threshold: float) -> list[Elimination]:
    """Drops by VIF, worst priority first; the first `n_fixed` stay. `gram` has an inverse."""
    if len(gram) < 2:
        return []
    steps = []
    running = _RunningInverse(gram)
    while True:
        position = _worst_inflated(running, n_fixed, threshold)
        if position is not None:
            steps.append(running.drop(position))
        elif running.is_fresh:
            return steps
        else:
            running.refresh()  # so that no drift decides that nothing more has to go


def _worst_inflated(running: _RunningInverse, n_fixed: int, threshold: float) -> int | None:
    """The row of the next column to go; None when none reaches the threshold or one is left."""
    may_go = running.inside & (running.members >= n_fixed)
    if np.count_nonzero(running.inside) < 2 or not may_go.any():
        return None
    reaches = may_go & (running.vif >= threshold * (1 - _ROUNDING))
    return int(np.flatnonzero(reaches)[-1]) if reaches.any() else None


class _RunningInverse:
    """R^-1 of the columns still in, as they leave one by one.

    Leaving takes R^-1 -= u u' with u = (R^-1)_d / sqrt((R^-1)_dd). The u are collected and applied
    `_PANEL` at a time by one matrix product, several times faster than one by one; until then only
    the diagonal is up to date, which is all the choice of the next column needs.

    Where a VIF falls from a great height its digits cancel. The fall says when that could matter;
    then the residual of R R^-1 says whether it does; then the inverse is computed afresh.
    """

    def __init__(self, gram: Matrix) -> None:
        self.gram = gram
        self.members = np.arange(len(gram))  # which column of `gram` each row stands for
        self.inside = np.ones(len(gram), dtype=bool)
        self.refresh()

    def refresh(self) -> None:
        """Invert the columns still in anew."""
        self.members = self.members[self.inside]
        inverse = np.linalg.inv(self.gram[np.ix_(self.members, self.members)])
        self.is_fresh = True
        self._install((inverse + inverse.T) / 2)
        self._height = self.vif.copy()
        # The relative error of a fresh VIF is about the rounding of the largest.
        self._fall_allowed = max(0.1 * _DRIFT / (np.finfo(float).eps * self.vif.max()), 4.0)

    def _install(self, inverse: Matrix) -> None:
        self._inverse = inverse
        self.vif = np.diagonal(inverse).copy()
        self.inside = np.ones(len(inverse), dtype=bool)
        self._downdates = np.empty((len(inverse), _PANEL), order="F")
        self._waiting = 0

    def _row(self, row: int) -> Matrix:
        held = self._downdates[:, : self._waiting]
        current: Matrix = self._inverse[row] - held @ held[row]
        return current

    def drop(self, row: int) -> Elimination:
        """Take the column in `row` out."""
        vif, position = float(self.vif[row]), int(self.members[row])
        u = self._row(row) / math.sqrt(vif)
        self.inside[row] = False
        self.vif = self.vif - u * u
        self._downdates[:, self._waiting] = u
        self._waiting += 1
        self.is_fresh = False
        self._settle()
        return Elimination(
            index=position,
            kind="vif",
            value=vif,
            r_squared=1 - 1 / vif,
            partners=(),
        )

    def _settle(self) -> None:
        """Apply what waits when it is enough, and look after the precision."""
        vif, height = self.vif[self.inside], self._height[self.inside]
        fall = height / np.maximum(vif, 1.0)  # no VIF is below 1
        deepest = int(np.argmax(fall))
        if fall[deepest] > self._fall_allowed:
            if self._drift(int(np.flatnonzero(self.inside)[deepest])) > _DRIFT:
                self.refresh()
                return
            self._fall_allowed = 2 * float(fall[deepest])
        if self._waiting == _PANEL:
            left, held = self.inside, self._downdates[self.inside]
            self.members, self._height = self.members[left], height
            inverse = self._inverse[left].compress(left, axis=1)
            inverse -= held @ held.T
            self._install(inverse)

    def _drift(self, row: int) -> float:
        """Relative error of one VIF, from the residual of R R^-1 in its column."""
        computed = np.where(self.inside, self._row(row), 0.0)
        spread = np.zeros(len(self.gram))
        spread[self.members] = computed
        residual = (self.gram @ spread)[self.members]
        residual[row] -= 1.0
        return abs(float(computed @ residual)) / max(abs(float(computed[row])), 1.0)
