"""Which pairs of columns are similar: products of all of them at once tell which may be.

Covers: the bounds by which most pairs are passed over, the pairs that are left, each settled by
its own value.
Does not cover: the values (`dpipe.verify.dependence`), the sums of all pairs
(`dpipe.verify.pairs`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

from dpipe.options import Options
from dpipe.verify.columns import RankedColumns, in_order, is_valid
from dpipe.verify.crew import Crew
from dpipe.verify.dependence import (
    Nonlinear,
    Pair,
    kernel_root,
    rhos,
    similarities,
)
from dpipe.verify.functions import CONSTANT, psi
from dpipe.verify.pairs import all_pairs

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dpipe.verify.pairs import Own, Piece

    Floats = NDArray[np.float64]
    Found = Iterator[tuple[str, str, float]]

_COARSE = 1e-4  # relative weight of kernel directions left out of the look at all pairs
_COARSE_MISS = 1e-3  # and what HSIC may then lack
_SMALL_CELLS = 10**8
_CELLS_IN_CACHE = 2**14


def spearman_pairs(
    columns: RankedColumns, names: Sequence[str], threshold: float, min_valid: int, crew: Crew
) -> Found:
    """Every pair of `names` whose |rho| reaches `threshold`, with its rho.

    All pairs are first measured by the columns' marginal ranks, which is exact for complete columns
    and off by a bounded angle for others; those that may reach the threshold are then ranked alone.
    In a small table all pairs with missing cells are.
    """
    names = in_order(names, columns)
    incomplete = sum(not columns.is_complete(name) for name in names)
    is_small = incomplete * len(names) * columns.n_rows <= _SMALL_CELLS
    for left, right, sums in all_pairs(columns, names, 1, _read_scores, crew):
        whole = all(columns.is_complete(name) for name in (*left, *right))
        low: float | Floats = threshold - 1e-9 if whole else -math.inf
        if not whole and not is_small:
            low = _least_by_marginal_ranks(
                threshold, sums.count, *(columns.n_valid(side) for side in (left, right))
            )
        may_reach = (np.abs(sums.correlation()) >= low) & (sums.count >= min_valid)
        measure = partial(rhos, min_valid=min_valid)
        for first, second, rho in _settled(columns, left, right, may_reach, measure, crew):
            if abs(rho) >= threshold:
                yield first, second, rho


def nonlinear_pairs(
    columns: RankedColumns, names: Sequence[str], threshold: float, options: Options, crew: Crew
) -> Found:
    """Every pair of `names` whose fused similarity reaches `threshold`, with it.

    No measure exceeds 1, so HSIC alone tells which pairs may reach the threshold.
    """
    names = in_order(names, columns)
    fused = Nonlinear(columns, options).fused
    functions = kernel_root(_COARSE).shape[1]
    measure = partial(similarities, options=options)
    own: dict[str, Own] = {}
    for left, right, sums in all_pairs(columns, names, functions, _read_kernel, crew):
        if left == right:
            own.update(zip(left, sums.own_moments(), strict=True))
        sides = [own[a] for a in left], [own[b] for b in right]
        norms = np.outer([each.norm for each in sides[0]], [each.norm for each in sides[1]])
        squares = (sums.covariance() ** 2).sum(axis=(2, 3))
        varies = norms > CONSTANT
        hsic = squares / np.where(varies, norms, 1)
        # By how the columns lie on the rows they share, near enough to tell what to look at.
        spread, shift = sums.on_common_rows(*sides)
        hsic = np.minimum(hsic / np.maximum(spread, CONSTANT) + shift + _COARSE_MISS, 1)
        at_most: dict[str, Any] = {**dict.fromkeys(options.shares, 1.0), "hsic": hsic}
        may_reach = varies & (fused(at_most) >= threshold)
        for pair in _settled(columns, left, right, may_reach, measure, crew):
            if pair[2] >= threshold:
                yield pair


def values_of(
    columns: RankedColumns,
    pairs: Sequence[Pair],
    measure: Callable[[RankedColumns, Sequence[Pair]], list[float]],
    crew: Crew,
) -> Iterator[float]:
    """The value of every pair, in order; pairs that share a column had better be neighbours."""
    step = max(1, math.ceil(len(pairs) / (4 * crew.workers)))
    parts = [pairs[start : start + step] for start in range(0, len(pairs), step)]
    tasks = ((columns.part(sorted({*chain(*part)})), part) for part in parts)
    for values in crew.each(measure, tasks):
        yield from values


def _settled(
    columns: RankedColumns,
    left: Sequence[str],
    right: Sequence[str],
    may_reach: NDArray[np.bool_],
    measure: Callable[[RankedColumns, Sequence[Pair]], list[float]],
    crew: Crew,
) -> Found:
    """The value of every pair of two blocks, or of one with itself, that may reach a threshold."""
    places = np.argwhere(np.triu(may_reach, 1) if left == right else may_reach)
    pairs = [(left[i], right[j]) for i, j in places]
    for pair, value in zip(pairs, values_of(columns, pairs, measure, crew), strict=True):
        yield *pair, value


def _least_by_marginal_ranks(
    threshold: float, count: Floats, n_left: Floats, n_right: Floats
) -> Floats:
    """Marginal ranks turn by at most the arcsine of the share of its rows that a column loses."""
    lost = 1 - count / np.maximum(n_left, 1)[:, None], 1 - count / np.maximum(n_right, 1)
    turned = math.acos(threshold) + sum(np.arcsin(np.clip(share, 0, 1)) for share in lost)
    return np.asarray(np.cos(np.minimum(turned, math.pi / 2)) - 1e-9)


def _read_scores(columns: RankedColumns, names: Sequence[str], rows: slice) -> Piece:
    ranks = columns.several(names, rows)
    valid = is_valid(ranks)
    scores = np.where(valid, ranks, 0) / (2 * np.maximum(columns.n_valid(names), 1))[:, None]
    return scores[:, None], valid


def _read_kernel(columns: RankedColumns, names: Sequence[str], rows: slice) -> Piece:
    """Functions whose squared covariances nearly add up to HSIC, 0 where missing."""
    root = kernel_root(_COARSE).T
    ranks = columns.several(names, rows)
    valid = is_valid(ranks)
    scales = np.maximum(columns.n_valid(names), 1)[:, None]
    functions = np.empty((len(names), len(root), ranks.shape[1]))
    at_once = max(1, _CELLS_IN_CACHE // max(1, ranks.shape[1]))
    for start in range(0, len(names), at_once):
        some = slice(start, start + at_once)
        argument = np.where(valid[some], ranks[some], 0) / scales[some]
        values = root @ psi(argument.ravel())
        values *= valid[some].ravel()
        functions[some] = values.reshape(len(root), *argument.shape).transpose(1, 0, 2)
    return functions, valid
