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

from dpipe.kernels.gram import (
    PANEL,
    Factor,
    Indices,
    Matrix,
    asked_first,
    check_gram,
    factored,
    largest_first,
)

_ROUNDING = 1e-9  # relative; a VIF this close to the threshold reaches it, whoever did the sums
_DRIFT = 1e-8  # relative error of a VIF that calls for a fresh inverse


@dataclass(frozen=True)
class Elimination:
    """One column that goes.

    Attributes
    ----------
    index
        The column, as the matrix counts.
    value
        Its VIF when it was dropped; inf for an exact combination of better columns.
    partners
        (column, coefficient) of a combination, largest coefficient first, in terms of the
        unit-norm scores. Empty for any other.
    """

    index: int
    value: float
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
    >>> [(step.index, step.value) for step in steps]
    [(2, inf)]
    >>> [(column, round(weight, 3)) for column, weight in steps[0].partners]
    [(0, 0.707), (1, 0.707)]
    """
    check_gram(r, order, keep)
    order, n_keep = asked_first(order, keep)
    gram = r[np.ix_(order, order)]
    basis, steps = _combinations(factored(gram), n_keep)
    n_fixed = int(np.count_nonzero(basis < n_keep))
    inflated = _inflated(gram[np.ix_(basis, basis)], n_fixed, threshold)
    steps += [_renumbered(step, basis) for step in inflated]
    return [_renumbered(step, order) for step in steps]


def _renumbered(step: Elimination, names: Indices) -> Elimination:
    """`step` with every position replaced by what stands there in `names`."""
    return Elimination(
        index=int(names[step.index]),
        value=step.value,
        partners=tuple((int(names[column]), weight) for column, weight in step.partners),
    )


# Exact combinations


def _combinations(factor: Factor, n_fixed: int) -> tuple[Indices, list[Elimination]]:
    """The independent columns, and what each of the others but the first `n_fixed` is made of."""
    basis = np.array(factor.basis, dtype=np.int64)
    m = len(basis)
    others = np.setdiff1d(np.arange(n_fixed, len(factor.values)), basis)
    # Row j of the factor is 0 from the first worse column on, so its solution is too.
    weights = np.linalg.solve(factor.values[basis, :m].T, factor.values[others, :m].T)
    steps = [
        Elimination(int(j), math.inf, largest_first(basis, column))
        for j, column in zip(others, weights.T, strict=True)
    ]
    return basis, steps


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
    `PANEL` at a time by one matrix product, several times faster than one by one; until then only
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
        self._downdates = np.empty((len(inverse), PANEL), order="F")
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
        return Elimination(position, vif, ())

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
        if self._waiting == PANEL:
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
