"""How well columns predict others, computed by other means than the engine's.

Covers: normal scores from ranks, a triangular factor of them, R^2 by least squares, variance
inflation.
Does not cover: what the values must satisfy (see `dpipe.verify.checks`).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache
from statistics import NormalDist
from typing import TYPE_CHECKING

import numpy as np

from dpipe.verify.columns import RankedColumns, is_valid
from dpipe.verify.crew import Crew

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

DEPENDENT = 1e-10
"""1 - R^2 of a column that others determine."""

_ROWS_AT_ONCE = 4096
_ROWS_OF_A_TASK = 2**18
_NODES = 2**14


class Scores:
    """The normal scores of some columns as the triangle of a QR factorisation.

    Each column is centred on its valid rows, has a missing cell at 0 and norm 1. The triangle has
    the angles of the scores themselves, and keeps the digits that forming their products would
    lose.

    Parameters
    ----------
    columns
        The ranked input.
    names
        The columns, none of them constant.
    crew
        Who reads them.
    targets
        More ranked columns, which are known by their names as well.
    """

    def __init__(
        self,
        columns: RankedColumns,
        names: Sequence[str],
        crew: Crew,
        targets: RankedColumns | None = None,
    ) -> None:
        sources = [columns.part(names), *([] if targets is None else [targets])]
        facts = {name: known for source in sources for name, known in source.facts.items()}
        self._n_valid = [known.n_valid for known in facts.values()]
        self._place = {name: place for place, name in enumerate(facts)}
        self._factor = _factor(sources, crew)

    def __contains__(self, name: str) -> bool:
        return name in self._place

    def adjusted(self, name: str, predictors: Sequence[str]) -> tuple[float, float]:
        """R^2 of a column on others by least squares, as it is and adjusted for their number."""
        left, independent = self._left([name], predictors)
        return 1 - left[0], self._adjusted(name, left[0], independent)

    def all_adjusted(
        self, names: Sequence[str], predictors: Sequence[str]
    ) -> list[tuple[float, int]]:
        """The adjusted R^2 of each of many columns on the same others, and their number.

        Columns that others determine do not count.
        """
        left, independent = self._left(names, predictors)
        return [
            (self._adjusted(name, rest, independent), independent)
            for name, rest in zip(names, left, strict=True)
        ]

    def multiple(self, name: str, predictors: int) -> float:
        """How many times the error of R^2 one has that is adjusted for so many predictors."""
        n = self._n_valid[self._place[name]]
        return (n - 1) / max(n - 1 - predictors, 1)

    def inflation(self, names: Sequence[str]) -> Floats:
        """Variance inflation factor of each column beside the others; all infinite if dependent."""
        part = self.vectors(names)
        triangle = np.linalg.qr(part, mode="r")
        if len(part) < len(names) or np.any(np.diag(triangle) ** 2 <= DEPENDENT):
            return np.full(len(names), math.inf)
        return np.asarray((np.linalg.inv(triangle) ** 2).sum(axis=1))

    def in_turn(
        self, order: Sequence[str], kept: Collection[str], wanted: Collection[str]
    ) -> dict[str, tuple[float, int]]:
        """The adjusted R^2 of each column wanted on the kept ones before it, and their number.

        Columns that others determine do not count.
        """
        vectors = self.vectors(order)
        basis = np.zeros((len(vectors), min(vectors.shape)), order="F")
        rank = 0
        found = {}
        for place, name in enumerate(order):
            rest = _beside(basis[:, :rank], vectors[:, place])
            left = float(rest @ rest)
            if name in wanted:
                found[name] = (self._adjusted(name, left, rank), rank)
            elif name in kept and left > DEPENDENT and rank < basis.shape[1]:
                basis[:, rank] = rest / math.sqrt(left)
                rank += 1
        return found

    def inflation_in_turn(self, order: Sequence[str], gone: Collection[str]) -> dict[str, float]:
        """Variance inflation of each column that goes, the last in the order first."""
        triangle = np.linalg.qr(self.vectors(order), mode="r")
        if len(triangle) < len(order) or np.any(np.diag(triangle) ** 2 <= DEPENDENT):
            return dict.fromkeys(gone, math.inf)
        inverse = np.linalg.inv(triangle)
        precision = inverse @ inverse.T
        found = {}
        for place in reversed(range(len(order))):
            if order[place] in gone:
                own = precision[:, place].copy()
                found[order[place]] = float(own[place])
                precision -= np.outer(own, own) / own[place]
        return found

    def independent(self, names: Sequence[str]) -> list[str]:
        """The columns less those that earlier ones determine."""
        return [names[place] for place in _basis(self.vectors(names))[1]]

    def vectors(self, names: Sequence[str]) -> Floats:
        """Vectors of norm 1, (m, len(names)), with the angles of the columns' scores."""
        return np.asarray(self._factor[:, [self._place[name] for name in names]])

    def _left(self, names: Sequence[str], predictors: Sequence[str]) -> tuple[list[float], int]:
        """What the predictors leave of each column's variance, and how many are independent."""
        basis, places = _basis(self.vectors(predictors))
        rest = _beside(basis, self.vectors(names))
        return np.minimum((rest**2).sum(axis=0), 1).tolist(), len(places)

    def _adjusted(self, name: str, left: float, predictors: int) -> float:
        rows = self._n_valid[self._place[name]]
        left = 0.0 if left < DEPENDENT else left
        freedom = rows - 1 - predictors
        return 1 - left * (rows - 1) / freedom if freedom > 0 else -math.inf


def _beside(basis: Floats, vectors: Floats) -> Floats:
    """What an orthonormal basis leaves of vectors."""
    for _ in range(2):  # twice is enough (Kahan; Parlett 1980)
        vectors = vectors - basis @ (basis.T @ vectors)
    return vectors


def _basis(vectors: Floats) -> tuple[Floats, list[int]]:
    """An orthonormal basis (p, m) of the columns' span, and which of them add to it."""
    basis = np.zeros((len(vectors), min(vectors.shape)), order="F")
    places: list[int] = []
    for place in range(vectors.shape[1]):
        rest = _beside(basis[:, : len(places)], vectors[:, place])
        beyond = float(rest @ rest)
        if beyond > DEPENDENT and len(places) < basis.shape[1]:
            basis[:, len(places)] = rest / math.sqrt(beyond)
            places.append(place)
    return basis[:, : len(places)], places


def _factor(sources: Sequence[RankedColumns], crew: Crew) -> Floats:
    """Triangle (at most p, p) of the QR factorisation of the centred scores, columns of norm 1."""
    means = [dict.fromkeys(source.index, 0.0) for source in sources]
    for source, known in zip(sources, means, strict=True):
        # Scores of a column without ties add up to 0, by symmetry.
        tied = [n for n, facts in source.facts.items() if facts.n_unique < facts.n_valid]
        tasks = ((source.part([name]), name) for name in tied)
        known.update(zip(tied, crew.each(_mean, tasks), strict=True))
    width = sum(len(known) for known in means)
    step = max(_ROWS_OF_A_TASK, 8 * width)
    factor: Floats = np.zeros((0, width))
    starts = range(0, sources[0].n_rows, step)
    parts = ((sources, means, slice(start, start + step)) for start in starts)
    for triangle in crew.each(_triangle, parts):
        factor = np.asarray(np.linalg.qr(np.concatenate([factor, triangle]), mode="r"))
    norms = np.linalg.norm(factor, axis=0)
    return np.asarray(factor / np.where(norms > 0, norms, 1))


def _triangle(
    sources: Sequence[RankedColumns], means: Sequence[Mapping[str, float]], rows: slice
) -> Floats:
    """The triangle of some rows."""
    factor: Floats = np.zeros((0, sum(len(known) for known in means)))
    stop = min(rows.stop, sources[0].n_rows)
    for start in range(rows.start, stop, _ROWS_AT_ONCE):
        some = slice(start, min(start + _ROWS_AT_ONCE, stop))
        scores = [_centred(*each, some) for each in zip(sources, means, strict=True)]
        factor = np.asarray(np.linalg.qr(np.concatenate([factor, np.hstack(scores)]), mode="r"))
    return factor


def _centred(columns: RankedColumns, means: Mapping[str, float], rows: slice) -> Floats:
    """Scores (r, p) of columns on some rows, less their means, 0 where missing."""
    names = list(means)
    ranks = columns.several(names, rows)
    scores = normal_scores(ranks, columns.n_valid(names)[:, None])
    centred = scores - np.array([*means.values()])[:, None]
    return np.asarray(np.where(is_valid(ranks), centred, 0).T)


def _mean(columns: RankedColumns, name: str) -> float:
    """The mean score of the valid rows of a column."""
    total = 0.0
    for start in range(0, columns.n_rows, _ROWS_OF_A_TASK):
        ranks = columns.several([name], slice(start, start + _ROWS_OF_A_TASK))[0]
        total += float(normal_scores(ranks[is_valid(ranks)], columns.facts[name].n_valid).sum())
    return total / columns.facts[name].n_valid


def normal_scores(ranks: NDArray[np.int32], n_valid: int | Floats) -> Floats:
    """The standard normal quantile of (1 + k / n) / 2 for ranks k of n valid rows.

    Of no meaning where a rank is missing.
    """
    tail = np.maximum(n_valid - np.abs(ranks, dtype=np.float64), 1) / (2 * n_valid)
    # The quantile is smooth in the root of the tail's logarithm: parabolas miss by less than 1e-11.
    place = (np.sqrt(-2 * np.log(tail)) - _FIRST) * (_NODES / (_LAST - _FIRST))
    node = np.minimum(place.astype(np.int32), _NODES - 1)
    place -= node
    constant, slope, bend = _parabolas()
    scores = (bend[node] * place + slope[node]) * place + constant[node]
    return np.asarray(np.copysign(scores, ranks))


_FIRST, _LAST = math.sqrt(2 * math.log(2)), 7.0
"""Of the table: a tail of one half, and of 2e-11, less than half a row of 2^31."""


@lru_cache
def _parabolas() -> Floats:
    """Between any two nodes the parabola through them and their middle: coefficients (3, nodes)."""
    grid = np.linspace(_FIRST, _LAST, 2 * _NODES + 1)
    tails = np.exp(-(grid**2) / 2)
    tails[0] = 0.5
    values = -np.array([NormalDist().inv_cdf(tail) for tail in tails])
    left, middle, right = values[:-1:2], values[1::2], values[2::2]
    return np.stack([left, 4 * middle - 3 * left - right, 2 * (left + right - 2 * middle)])
