"""What a number of chosen columns explain, and which one explains most, by other means.

Covers: the shares of the table and of the targets that columns taken one by one explain, the gain
of every column that could have been taken instead; the targets as columns.
Does not cover: what the values must satisfy (see `dpipe.verify.checks`).

Ridge regression is least squares on vectors with some more elements: column j continued by
sqrt(penalty) in an element of its own, the targets by zeros.
"""

from __future__ import annotations

import math
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
    """The targets of a run as ranked columns.

    Attributes
    ----------
    columns
        One for a target of numbers; for classes the indicator of each.
    weights
        The square root of the share of each in the variance of its target.
    count
        Targets.
    """

    columns: RankedColumns
    weights: Floats
    count: int


def targets_of(
    table: Table, options: Options, rows: NDArray[np.int64] | None, path: str
) -> Targets:
    """Read and rank the targets on the rows that take part, into a file."""
    values: dict[str, Floats] = {}
    weights: list[float] = []
    for name in options.target:
        target = read_target(table, name, options.target_kind, rows)
        if target.classes is None:
            values[name] = target.values
            weights.append(1.0)
            continue
        valid = ~np.isnan(target.values)
        for number in range(len(target.classes)):
            own = target.values == number
            values[f"{name}\0{number}"] = np.where(valid, own, math.nan)
            share = np.count_nonzero(own) / np.count_nonzero(valid)
            weights.append(math.sqrt((1 - share) / (len(target.classes) - 1)))
    return Targets(rank_values(values, path), np.array(weights), len(options.target))


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


def of_targets(
    scores: Floats, targets: Floats, taken: Sequence[int], ridge: float, count: int
) -> Iterator[Taken]:
    """Columns taken in turn, by what they explain of the targets: ridge regression.

    Parameters
    ----------
    scores
        (m, p) columns of norm 1.
    targets
        (m, q) of norm 1 times their weights.
    taken
        Places of columns.
    ridge
        The penalty.
    count
        Targets, each of which has a variance of 1.
    """
    m, p = scores.shape
    rest = np.concatenate([targets, np.zeros((len(taken), targets.shape[1]))])
    basis = np.zeros((m + len(taken), len(taken)))
    left = np.full(p, 1 + ridge)
    waiting = np.ones(p, dtype=bool)
    share = 0.0
    for step, place in enumerate(taken):
        gains = ((scores.T @ rest[:m]) ** 2).sum(axis=1) / left
        gain, best = float(gains[place]), _best(gains, left, waiting)
        column = np.zeros(len(basis))
        column[:m], column[m + step] = scores[:, place], math.sqrt(ridge)
        for _ in range(2):
            column -= basis[:, :step] @ (basis[:, :step].T @ column)
        basis[:, step] = column / np.linalg.norm(column)
        onto = basis[:, step] @ rest
        rest -= np.outer(basis[:, step], onto)
        left -= (basis[:m, step] @ scores) ** 2
        waiting[place] = False
        share += float(onto @ onto) / count
        yield Taken(share, gain, best)


_CLEAR = 1e-6  # of what is less beside the columns taken, rounding decides the gain


def _best(gains: Floats, left: Floats, waiting: NDArray[np.bool_]) -> float:
    clear = gains[waiting & (left > _CLEAR)]
    return float(clear.max()) if len(clear) else 0.0
