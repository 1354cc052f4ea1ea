"""What a number of chosen columns explain, and which one explains most, by other means.

Covers: the shares of the table and of the targets that columns taken one by one explain, the gain
of every column that could have been taken instead; the targets as columns.
Does not cover: what the values must satisfy (see `dpipe.verify.checks`).

Ridge regression is least squares on vectors with some more elements: column j continued by
sqrt(penalty) in an element of its own, the targets by zeros.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dpipe.options import Options
from dpipe.table import Table
from dpipe.table.target import read_target
from dpipe.verify.columns import RankedColumns, rank_values
from dpipe.verify.prediction import DEPENDENT

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

_MOST_OPERATIONS = 10**11


@dataclass(frozen=True)
class Targets:
    """The targets that are known in the same rows, as ranked columns of these rows.

    Attributes
    ----------
    rows
        The rows, counted among those that take part.
    columns
        One for a target of numbers; for classes the indicator of each.
    weights
        The square root of the share of each in the variance of its target.
    count
        Targets.
    """

    rows: NDArray[np.int64]
    columns: RankedColumns
    weights: Floats
    count: int


def targets_of(
    table: Table, options: Options, rows: NDArray[np.int64] | None, path: str
) -> list[Targets]:
    """Read and rank the targets where each is known among the rows that take part, into files."""
    known = {name: read_target(table, name, options.target_kind, rows) for name in options.target}
    groups: dict[bytes, list[str]] = defaultdict(list)
    for name, target in known.items():
        groups[np.packbits(np.isfinite(target.values)).tobytes()].append(name)
    found = []
    for number, names in enumerate(groups.values()):
        where = np.flatnonzero(np.isfinite(known[names[0]].values))
        values: dict[str, Floats] = {}
        weights: list[float] = []
        for name in names:
            own = known[name].values[where]
            classes = known[name].classes or ()
            indicators = [(own == code).astype(np.float64) for code in range(len(classes))]
            shares = [float(indicator.mean()) for indicator in indicators]
            weights += [math.sqrt((1 - q) / (len(classes) - 1)) for q in shares] or [1.0]
            values |= {f"{name}\0{code}": each for code, each in enumerate(indicators or [own])}
        ranked = rank_values(values, f"{path}-{number}")
        found.append(Targets(where, ranked, np.array(weights), len(names)))
    return found


@dataclass(frozen=True)
class Taken:
    """One column of a sequence as it is taken.

    Attributes
    ----------
    share
        Of the variance of the table, or of the targets, that it and those before it explain.
    gain
        What it explains of what they leave; None where that was not worked out.
    best
        The most that any column not yet taken would have explained; None likewise.
    """

    share: float
    gain: float | None
    best: float | None


def of_table(scores: Floats, taken: Sequence[int]) -> Iterator[Taken]:
    """Columns taken in turn, by what they explain of all: least squares.

    Parameters
    ----------
    scores
        (m, p) columns of norm 1.
    taken
        Places of columns. The gains are worked out as long as that is not too much work.
    """
    rest = scores.copy()
    m, p = scores.shape
    compared = _MOST_OPERATIONS // max(1, m * m * p)
    waiting = np.ones(p, dtype=bool)
    share = 0.0
    for step, place in enumerate(taken):
        gain = best = None
        left = (rest**2).sum(axis=0)
        if step < compared:
            spread = np.einsum("ij,ij->j", rest, (rest @ rest.T) @ rest)
            gains = np.where(left > DEPENDENT, spread / np.maximum(left, DEPENDENT), 0)
            gain, best = float(gains[place]), _best(gains, left, waiting)
        if left[place] > DEPENDENT:
            direction = rest[:, place] / math.sqrt(left[place])
            onto = direction @ rest
            rest -= np.outer(direction, onto)
            share += float(onto @ onto) / p
        waiting[place] = False
        yield Taken(share, gain, best)


@dataclass
class Fit:
    """A ridge regression of targets on columns that are taken in turn.

    Attributes
    ----------
    scores
        (m, p) columns of norm 1, or of 0 where they are constant on the rows of the targets.
    targets
        (m, q) of norm 1 times their weights.
    ridge
        The penalty.
    """

    scores: Floats
    targets: Floats
    ridge: float

    def begin(self, count: int) -> None:
        """Make room for so many columns."""
        m, p = self.scores.shape
        self._rest = np.concatenate([self.targets, np.zeros((count, self.targets.shape[1]))])
        self._basis = np.zeros((m + count, count))
        self._taken = 0
        self.left = np.full(p, 1 + self.ridge)

    def gains(self) -> Floats:
        """What each column would explain of what is left."""
        products = self.scores.T @ self._rest[: len(self.scores)]
        return np.asarray((products**2).sum(axis=1) / self.left)

    def take(self, place: int) -> float:
        """What a column explains, which it does from now on."""
        m, step = len(self.scores), self._taken
        column = np.zeros(len(self._basis))
        column[:m], column[m + step] = self.scores[:, place], math.sqrt(self.ridge)
        for _ in range(2):
            column -= self._basis[:, :step] @ (self._basis[:, :step].T @ column)
        own = self._basis[:, step] = column / np.linalg.norm(column)
        onto = own @ self._rest
        self._rest -= np.outer(own, onto)
        self.left -= (own[:m] @ self.scores) ** 2
        self._taken += 1
        return float(onto @ onto)


def of_targets(fits: Sequence[Fit], taken: Sequence[int], count: int) -> Iterator[Taken]:
    """Columns taken in turn, by what they explain of `count` targets, each of a variance of 1.

    Parameters
    ----------
    fits
        Of the targets that are known in the same rows one each.
    taken
        Places of columns.
    count
        Targets in all.
    """
    for fit in fits:
        fit.begin(len(taken))
    waiting = np.ones(fits[0].scores.shape[1], dtype=bool)
    share = 0.0
    for place in taken:
        gains = np.sum([fit.gains() for fit in fits], axis=0)
        left = np.min([fit.left for fit in fits], axis=0)
        gain, best = float(gains[place]), _best(gains, left, waiting)
        share += sum(fit.take(place) for fit in fits) / count
        waiting[place] = False
        yield Taken(share, gain, best)


_CLEAR = 1e-6  # of what is less beside the columns taken, rounding decides the gain


def _best(gains: Floats, left: Floats, waiting: NDArray[np.bool_]) -> float:
    clear = gains[waiting & (left > _CLEAR)]
    return float(clear.max()) if len(clear) else 0.0
