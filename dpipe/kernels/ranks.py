"""Exact average ranks of one column, and everything pass 1 says about it.

Covers: the statistics of pass 1, the fingerprint that finds monotone duplicates, the compiled way
of ranking.
Does not cover: ranking in NumPy and on a device (`dpipe.kernels.ordering`), which columns are then
dropped (see `dpipe.passes`), where the ranks are stored (see `dpipe.rankstore`), several columns at
once.
See also: `dpipe.kernels.basis`, which expands the scores; ``benchmarks/ranking.py``, which measures
what is claimed here.

The half-integer average rank r of m valid rows is held as the whole number 2 r - 1 - m: exact,
symmetric around 0, negated when the column is reversed. Scores and fingerprint both come from it.
"""

from __future__ import annotations

import functools
import math
import struct
import sys
import time
from dataclasses import dataclass
from types import ModuleType

import numpy as np

from dpipe.device.arrays import Array, namespace
from dpipe.kernels.compiled import load
from dpipe.kernels.ordering import (
    QUANTILES,
    Moments,
    Ranking,
    missing_only,
    places,
    rank_cells,
    scores_of,
)

compiled = load("_ranking")

_MOST_COMPILED = 2**31 - 1
_SIGN = 1 << 63


@dataclass(frozen=True)
class RankedColumn:
    """The ranks of one column and its exact statistics.

    Attributes
    ----------
    scores
        (n,) float32, u - 1/2 with u = (average rank - 1/2) / n_valid; 0 where missing.
    valid
        (n,) bool, or None when no cell is missing.
    n_valid, n_unique
        Valid rows, and distinct values among them; -0.0 equals 0.0.
    minimum, maximum, mean
        Of the valid values; NaN when there is none.
    variance
        Mean squared deviation (divisor n_valid); inf when it lies beyond float64.
    q025, q975
        Quantiles, interpolated linearly as ``numpy.quantile`` does.
    top_share
        Share of the most frequent value among the valid ones.
    normalised_variance
        variance / (q975 - q025)^2, or over the full range where that is 0. Computed on scaled
        values, so it is right even where `variance` overflows or underflows; 0 for a constant.
    rank_hash
        Equal for two columns of one table that are valid on the same rows and whose ranks are equal
        or exactly reversed; for others but by a chance of 2**-64, so compare before it counts.
    first_sign
        Sign of the first score that is not 0, or 0: opposite in columns of reversed ranks.
    """

    scores: Array
    valid: Array | None
    n_valid: int
    n_unique: int
    minimum: float
    maximum: float
    mean: float
    variance: float
    q025: float
    q975: float
    top_share: float
    normalised_variance: float
    rank_hash: str
    first_sign: int


def implementation() -> str:
    """What ranks host columns in this process: "C" or "NumPy"; the answer is the same.

    Examples
    --------
    >>> implementation() in ("C", "NumPy")
    True
    """
    return "NumPy" if compiled is None else "C"


def rank_column(values: Array, valid: Array | None = None) -> RankedColumn:
    """Rank one column exactly and describe it.

    Parameters
    ----------
    values
        (n,) real or whole numbers or bool of any size up to 64 bits, NumPy or CuPy; NaN or an
        infinity means missing. Not changed.
    valid
        (n,) bool, where only some cells of `values` count; of the kind of `values`.

    Returns
    -------
    RankedColumn
        Its arrays are of the kind of `values`; its numbers are plain Python ones.

    Raises
    ------
    TypeError
        When the values are something else.

    Notes
    -----
    Ties share their average rank (Kendall & Gibbons 1990, ch. 3). Whole numbers are told apart and
    ordered as such; their statistics are rounded to float64 in the end. `dpipe.engine.memory`
    counts with what it takes besides `values`. `mean`, `variance` and `normalised_variance` carry
    the rounding of a sum (relative 1e-12), in row order where there are fewer than four rows to a
    value; all else does not depend on row order.

    Examples
    --------
    >>> import numpy as np
    >>> column = rank_column(np.array([3.0, 1.0, np.nan, 1.0]))
    >>> [round(float(score), 4) for score in column.scores]
    [0.3333, -0.1667, 0.0, -0.1667]
    >>> column.n_valid, column.n_unique, column.minimum, column.maximum
    (3, 2, 1.0, 3.0)
    >>> rank_column(np.array([2**60, 2**60 + 1])).n_unique
    2
    """
    if values.dtype.kind not in "fiub" or values.dtype.itemsize > 8:
        raise TypeError(f"{values.dtype} cannot be ranked")
    on_host = namespace(values) is np
    if on_host and compiled is not None and values.size <= _MOST_COMPILED:
        ranking = _rank_compiled(compiled, values, valid)
    else:
        ranking = _rank_by_arrays(values, valid)
    return _nothing_to_rank(ranking) if ranking.n_valid == 0 else _described(ranking)


def _described(ranking: Ranking) -> RankedColumn:
    """The statistics of a column that has some value."""
    m, origin, moments = ranking.n_valid, ranking.origin, ranking.moments
    low, high = float(ranking.low), float(ranking.high)
    picked = dict(zip(sorted(places(m)), ranking.picked, strict=True))
    at = [picked[place] for place in places(m)]
    q025, q975 = (_interpolate(q, m, *at[2 * i : 2 * i + 2]) for i, q in enumerate(QUANTILES))
    variance = max(moments.square - moments.rest * moments.rest, 0.0)
    mean = _clip(math.ldexp(moments.mean + moments.rest, moments.exponent), low, high)
    minimum, maximum = float(origin + ranking.low), float(origin + ranking.high)
    sign = ranking.first_sign
    return RankedColumn(
        scores=ranking.scores,
        valid=ranking.valid,
        n_valid=m,
        n_unique=ranking.n_unique,
        minimum=minimum,
        maximum=maximum,
        mean=_clip(origin + mean, minimum, maximum),
        variance=_times_power_of_two(variance, 2 * moments.exponent),
        q025=_clip(origin + q025, minimum, maximum),
        q975=_clip(origin + q975, minimum, maximum),
        top_share=ranking.top_count / m,
        normalised_variance=_normalised_variance(low, high, q025, q975, variance, moments),
        rank_hash=_fingerprint(sign, ranking),
        first_sign=sign,
    )


def untied_scores(n: int, start: int, stop: int) -> np.ndarray:
    """Scores of the ranks `start` + 1 to `stop` of n rows without ties, as `rank_column` has them.

    Examples
    --------
    >>> untied_scores(4, 0, 4)
    array([-0.375, -0.125,  0.125,  0.375], dtype=float32)
    """
    return np.asarray(scores_of(np.arange(2 * start + 1 - n, 2 * stop - n, 2), n))


# Ways to a ranking


def _rank_by_arrays(values: Array, valid: Array | None) -> Ranking:
    """In NumPy or CuPy."""
    xp = namespace(values)
    if values.dtype.kind == "f":
        values = values.astype(np.float64, copy=False)
        finite = xp.isfinite(values)
        valid = finite if valid is None else finite & valid
    else:
        values = values.astype(np.uint64 if values.dtype.kind == "u" else np.int64, copy=False)
    if valid is None or bool(valid.all()):
        return rank_cells(values, None) if values.size else _empty(xp.zeros(0, dtype=np.float32))
    if not valid.any():
        scores = xp.zeros(values.shape, dtype=np.float32)
        return _empty(scores, valid, missing_only(values.size))
    return rank_cells(values, valid)


def _rank_compiled(compiled: ModuleType, values: Array, valid: Array | None) -> Ranking:
    """In C, as the cells stand in memory."""
    if values.dtype.kind == "f" and values.dtype.itemsize == 2:
        values = values.astype(np.float32)
    values = np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("="))
    scores = np.empty(values.size, dtype=np.float32)
    mask = np.empty(values.size, dtype=bool)
    room = np.empty(2 * values.size + 16, dtype=np.uint64)
    if valid is not None:
        valid = np.ascontiguousarray(valid, dtype=bool)

    def sort(count: int) -> None:
        room[:count].sort()

    outside = sort if _numpy_sorts_faster(compiled) else None
    n_valid, n_unique, top_count, ends, picked, moments, sign, rank_sum, missing_sum = (
        compiled.rank(values, valid, scores, mask, room, *QUANTILES, outside)
    )
    if n_valid == 0:
        return _empty(scores, mask if mask.size else None, missing_sum)
    is_real = values.dtype.kind == "f"
    low, high = ends
    return Ranking(
        scores=scores,
        valid=None if n_valid == values.size else mask,
        n_valid=n_valid,
        n_unique=n_unique,
        top_count=top_count,
        origin=0 if is_real else low - (_SIGN if values.dtype.kind == "i" else 0),
        low=_real(low) if is_real else 0,
        high=_real(high) if is_real else high - low,
        picked=tuple(_real(key) if is_real else float(key - low) for key in picked),
        moments=Moments(*moments),
        first_sign=sign,
        rank_sum=rank_sum,
        missing_sum=missing_sum,
    )


@functools.cache
def _numpy_sorts_faster(compiled: ModuleType) -> bool:
    """Whether the compiled way should let NumPy sort: it wins with AVX-512, and loses without.

    Tried on a few numbers once in a process. The order is the same in any case.
    """
    cells = np.random.default_rng(0).standard_normal(1 << 14)
    scores, valid = np.empty(cells.size, dtype=np.float32), np.empty(cells.size, dtype=bool)
    room = np.empty(2 * cells.size + 16, dtype=np.uint64)
    took = {True: math.inf, False: math.inf}
    for _ in range(4):
        for outside in took:
            sort = (lambda count: room[:count].sort()) if outside else None
            start = time.thread_time_ns()
            compiled.rank(cells, None, scores, valid, room, *QUANTILES, sort)
            took[outside] = min(took[outside], time.thread_time_ns() - start)
    return took[True] < took[False]


def _real(key: int) -> float:
    """The float64 that the compiled way knows by `key`."""
    bits = key ^ _SIGN if key & _SIGN else key ^ (2 * _SIGN - 1)
    number: float = struct.unpack("=d", bits.to_bytes(8, sys.byteorder))[0]
    return number


def _empty(scores: Array, valid: Array | None = None, missing_sum: int = 0) -> Ranking:
    """The ranking of a column without a valid cell."""
    nowhere = Moments(math.nan, math.nan, math.nan, 0)
    nothing = (math.nan,) * 4
    return Ranking(
        scores, valid, 0, 0, 0, 0, math.nan, math.nan, nothing, nowhere, 0, 0, missing_sum
    )


# Statistics


def _clip(value: float, low: float, high: float) -> float:
    return min(max(value, low), high)


def _times_power_of_two(value: float, exponent: int) -> float:
    try:
        return math.ldexp(value, exponent)
    except OverflowError:
        return math.inf


def _normalised_variance(
    low: float, high: float, q025: float, q975: float, variance: float, moments: Moments
) -> float:
    if low == high:
        return 0.0
    lower, upper = (q025, q975) if q025 < q975 else (low, high)
    scale = math.ldexp(1.0, -moments.exponent)
    width = upper * scale - lower * scale
    if width == 0.0:  # so far below the largest value that it vanishes beside it
        return math.inf
    ratio = math.sqrt(variance) / width
    return ratio * ratio


def _interpolate(q: float, m: int, below: float, above: float) -> float:
    """Quantile q of m values between its two neighbours, rounded as NumPy rounds it."""
    place = (m - 1) * q
    weight = place - math.floor(place)
    step = above - below
    if math.isinf(step):
        return below * (1 - weight) + above * weight
    return below + step * weight if weight < 0.5 else above - step * (1 - weight)


def _fingerprint(sign: int, ranking: Ranking) -> str:
    """The weighted sums, signed so that the first row off the middle counts as low."""
    turned = -ranking.rank_sum % 2**64 if sign > 0 else ranking.rank_sum
    return f"{turned:016x}{ranking.missing_sum:016x}"


def _nothing_to_rank(ranking: Ranking) -> RankedColumn:
    nothing = math.nan
    return RankedColumn(
        scores=ranking.scores,
        valid=ranking.valid,
        n_valid=0,
        n_unique=0,
        minimum=nothing,
        maximum=nothing,
        mean=nothing,
        variance=nothing,
        q025=nothing,
        q975=nothing,
        top_share=nothing,
        normalised_variance=nothing,
        rank_hash=_fingerprint(0, ranking),
        first_sign=0,
    )
