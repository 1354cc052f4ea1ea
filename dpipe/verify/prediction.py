"""How well columns predict others, computed by other means than the engine's.

Covers: normal scores from ranks, a triangular factor of them, R^2 by least squares, variance
inflation.
Does not cover: what the values must satisfy (see `dpipe.verify.checks`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from statistics import NormalDist
from typing import TYPE_CHECKING

import numpy as np

from dpipe.verify.columns import RankedColumns, is_valid

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

DEPENDENT = 1e-10
"""1 - R^2 of a column that others determine."""

_ROWS_AT_ONCE = 4096


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
    targets
        More ranked columns, which are known by their names as well.
    """

    def __init__(
        self, columns: RankedColumns, names: Sequence[str], targets: RankedColumns | None = None
    ) -> None:
        sources = dict.fromkeys(names, columns)
        if targets is not None:
            sources |= dict.fromkeys(targets.index, targets)
        self._n_valid = [source.facts[name].n_valid for name, source in sources.items()]
        self._place = {name: place for place, name in enumerate(sources)}
        self._factor = _factor(sources, columns.n_rows)

    def __contains__(self, name: str) -> bool:
        return name in self._place

    def adjusted(self, name: str, predictors: Sequence[str]) -> tuple[float, float]:
        """R^2 of a column on others by least squares, as it is and adjusted for their number."""
        left, independent = self._left([name], predictors)
        return 1 - left[0], self._adjusted(name, left[0], independent)

    def all_adjusted(self, names: Sequence[str], predictors: Sequence[str]) -> list[float]:
        """The adjusted R^2 of each of many columns on the same others."""
        left, independent = self._left(names, predictors)
        return [
            self._adjusted(name, rest, independent) for name, rest in zip(names, left, strict=True)
        ]

    def inflation(self, names: Sequence[str]) -> Floats:
        """Variance inflation factor of each column beside the others; all infinite if dependent."""
        part = self.vectors(names)
        triangle = np.linalg.qr(part, mode="r")
        if len(part) < len(names) or np.any(np.diag(triangle) ** 2 <= DEPENDENT):
            return np.full(len(names), math.inf)
        return np.asarray((np.linalg.inv(triangle) ** 2).sum(axis=1))

    def independent(self, names: Sequence[str]) -> list[str]:
        """The columns less those that earlier ones determine."""
        return [names[place] for place in _basis(self.vectors(names))[1]]

    def vectors(self, names: Sequence[str]) -> Floats:
        """Vectors of norm 1, (m, len(names)), with the angles of the columns' scores."""
        return np.asarray(self._factor[:, [self._place[name] for name in names]])

    def _left(self, names: Sequence[str], predictors: Sequence[str]) -> tuple[list[float], int]:
        """What the predictors leave of each column's variance, and how many are independent."""
        basis, places = _basis(self.vectors(predictors))
        rest = self.vectors(names)
        for _ in range(2):  # twice is enough (Kahan; Parlett 1980)
            rest = rest - basis @ (basis.T @ rest)
        return np.minimum((rest**2).sum(axis=0), 1).tolist(), len(places)

    def _adjusted(self, name: str, left: float, predictors: int) -> float:
        rows = self._n_valid[self._place[name]]
        left = 0.0 if left < DEPENDENT else left
        freedom = rows - 1 - predictors
        return 1 - left * (rows - 1) / freedom if freedom > 0 else -math.inf


def _basis(vectors: Floats) -> tuple[Floats, list[int]]:
    """An orthonormal basis (p, m) of the columns' span, and which of them add to it."""
    basis = np.zeros((len(vectors), min(vectors.shape)), order="F")
    places: list[int] = []
    for place in range(vectors.shape[1]):
        held, rest = basis[:, : len(places)], vectors[:, place]
        for _ in range(2):
            rest = rest - held @ (held.T @ rest)
        beyond = float(rest @ rest)
        if beyond > DEPENDENT and len(places) < basis.shape[1]:
            basis[:, len(places)] = rest / math.sqrt(beyond)
            places.append(place)
    return basis[:, : len(places)], places


def _factor(sources: Mapping[str, RankedColumns], n_rows: int) -> Floats:
    """Triangle (at most p, p) of the QR factorisation of the centred scores, columns of norm 1."""
    means = {name: _mean(source, name) for name, source in sources.items()}
    factor: Floats = np.zeros((0, len(sources)))
    for start in range(0, n_rows, _ROWS_AT_ONCE):
        rows = slice(start, start + _ROWS_AT_ONCE)
        scores = np.stack(
            [
                np.where(
                    is_valid(source.of(name)[rows]), _of_rows(source, name, rows) - means[name], 0
                )
                for name, source in sources.items()
            ],
            axis=1,
        )
        factor = np.asarray(np.linalg.qr(np.concatenate([factor, scores]), mode="r"))
    norms = np.linalg.norm(factor, axis=0)
    return np.asarray(factor / np.where(norms > 0, norms, 1))


def _mean(columns: RankedColumns, name: str) -> float:
    scores = _of_rows(columns, name, slice(None))
    return float(scores[is_valid(columns.of(name))].mean())


def _of_rows(columns: RankedColumns, name: str, rows: slice) -> Floats:
    """Normal scores of some rows of a column, of no meaning where it is missing."""
    ranks = columns.of(name)[rows]
    quantiles = _quantiles(columns.facts[name].n_valid)
    whole = np.where(is_valid(ranks), ranks, 0)
    return np.asarray(np.sign(whole) * quantiles[np.abs(whole)])


@lru_cache(maxsize=64)
def _quantiles(n: int) -> Floats:
    """The standard normal quantile of (1 + k / n) / 2 for k = 0 to n - 1: of every whole rank."""
    inverse = NormalDist().inv_cdf
    return np.array([inverse((1 + k / n) / 2) for k in range(max(n, 1))])
