"""Exact average ranks of one column, and everything pass 1 says about it.

Covers: ranking with ties and missing cells, the statistics of pass 1, the hash that finds monotone
duplicates.
Does not cover: which columns are then dropped (see `dpipe.passes`), where the ranks are stored (see
`dpipe.rankstore`), several columns at once.
See also: `dpipe.kernels.basis`, which expands the scores; ``benchmarks/ranking.py``, which measures
what is claimed here.

The half-integer average rank r of m valid rows is held as the whole number 2 r - 1 - m: exact,
symmetric around 0, negated when the column is reversed. Scores and hash both come from it.

Three ways lead to the ranks, with the same answer to the last bit:

* a long host column of few values that fall into separate equal-width buckets is counted;
* any other host column is sorted as 64-bit whole numbers, order in the high bits and row number
  in the low ones, because sorting plain numbers is several times faster than an argsort;
* a device column is argsorted, which a GPU does at full speed.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from dpipe.device.arrays import Array, namespace, to_host

QUANTILES = (0.025, 0.975)
"""The quantiles of pass 1."""

_PROBE = 1024  # values looked at to guess whether counting will do
_PROBE_REPEATS = 16  # among them, so that about 30,000 distinct values are the most expected
_BUCKETS = 1 << 16  # counting tables of this length stay inside a core's second-level cache
_BLOCK = 1 << 16  # rows worked on at a time while packing, for the same reason


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
        Equal for two columns of one table exactly when they are valid on the same rows and their
        ranks are equal or exactly reversed.
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


def rank_column(values: Array) -> RankedColumn:
    """Rank one column exactly and describe it.

    Parameters
    ----------
    values
        (n,) float64, NumPy or CuPy; NaN or an infinity means missing. Not changed.

    Returns
    -------
    RankedColumn
        Its arrays are of the kind of `values`; its numbers are plain Python ones.

    Notes
    -----
    Ties share their average rank (Kendall & Gibbons 1990, ch. 3). `dpipe.engine.memory` counts with
    what it takes besides `values`. `mean`, `variance` and `normalised_variance` carry the rounding
    of a sum in row order (relative 1e-12); all else does not depend on row order.

    Examples
    --------
    >>> import numpy as np
    >>> column = rank_column(np.array([3.0, 1.0, np.nan, 1.0]))
    >>> [round(float(score), 4) for score in column.scores]
    [0.3333, -0.1667, 0.0, -0.1667]
    >>> column.n_valid, column.n_unique, column.minimum, column.maximum
    (3, 2, 1.0, 3.0)
    """
    xp = namespace(values)
    valid = xp.isfinite(values)
    n_valid = int(xp.count_nonzero(valid))
    if n_valid == 0:
        return _nothing_to_rank(xp, valid)
    if n_valid == values.size:
        valid = None
    rank = _rank_on_host if xp is np else _rank_on_device
    ranking = rank(values, valid, [k for q in QUANTILES for k in _neighbours(q, n_valid)])
    spot = ranking.spot
    q025, q975 = (
        _interpolate(q, n_valid, *ranking.picked[2 * i : 2 * i + 2])
        for i, q in enumerate(QUANTILES)
    )
    scores = _scores(ranking.centred, n_valid)
    centred = to_host(ranking.centred)
    sign = _first_sign(centred)
    return RankedColumn(
        scores=scores,
        valid=valid,
        n_valid=n_valid,
        n_unique=ranking.n_unique,
        minimum=spot.low,
        maximum=spot.high,
        mean=spot.mean,
        variance=_times_power_of_two(spot.scaled_variance, 2 * spot.exponent),
        q025=q025,
        q975=q975,
        top_share=ranking.top_count / n_valid,
        normalised_variance=_normalised_variance(spot, q025, q975),
        rank_hash=_rank_hash(centred, sign, valid if valid is None else to_host(valid)),
        first_sign=sign,
    )


def untied_scores(n: int, start: int, stop: int) -> np.ndarray:
    """Scores of the ranks `start` + 1 to `stop` of n rows without ties, as `rank_column` has them.

    Examples
    --------
    >>> untied_scores(4, 0, 4)
    array([-0.375, -0.125,  0.125,  0.375], dtype=float32)
    """
    return np.asarray(_scores(np.arange(2 * start + 1 - n, 2 * stop - n, 2), n))


def _scores(centred: Array, n_valid: int) -> Array:
    """Centred ranks u - 1/2 in float32 from 2 r - 1 - m, 0 where that is."""
    xp = namespace(centred)
    scores = xp.empty(centred.shape, dtype=np.float32)
    xp.true_divide(centred, 2 * n_valid, out=scores)
    return scores


@dataclass(frozen=True)
class _Spot:
    """Where the values lie: range, mean, and the variance of values times 2**-exponent."""

    low: float
    high: float
    mean: float
    scaled_variance: float
    exponent: int


@dataclass(frozen=True)
class _Ranking:
    """What each way of ranking yields: whole-number ranks and what the sorted order tells."""

    centred: Array  # (n,) 2 r - 1 - m, 0 where missing
    n_unique: int
    top_count: int
    picked: list[float]  # the values at the sorted positions asked for
    spot: _Spot


def _rank_on_host(values: Array, valid: Array | None, wanted: list[int]) -> _Ranking:
    counted = None
    if _looks_countable(values):
        counted = _rank_by_counting(values, valid, wanted)
    return _rank_by_sorting(values, valid, wanted) if counted is None else counted


# Counting: equal-width buckets, each of which turns out to hold one distinct value.


def _looks_countable(values: Array) -> bool:
    """Whether some rows suggest few distinct values in separate buckets. Decides speed only."""
    if values.size < _BUCKETS:  # sorting costs less than filling the tables
        return False
    probe = values[:: 1 + values.size // _PROBE]
    probe = probe[np.isfinite(probe)]
    distinct = np.unique(probe)
    if probe.size - distinct.size < _PROBE_REPEATS:
        return False
    low = float(np.fmin.reduce(values))
    per_unit = _buckets_per_unit(low, float(np.fmax.reduce(values)))
    if per_unit is None:
        return False
    buckets = ((distinct - low) * per_unit).astype(np.intp)
    return bool((buckets[1:] != buckets[:-1]).all())


def _buckets_per_unit(low: float, high: float) -> float | None:
    """The factor that spreads values over the buckets; None where float64 has no such number."""
    width = high - low
    factor = (_BUCKETS - 1) / width if width > 0 else 0.0
    return factor if math.isfinite(width) and math.isfinite(factor) else None


def _rank_by_counting(values: Array, valid: Array | None, wanted: list[int]) -> _Ranking | None:
    """Rank without sorting, or None when the values do not fall into separate buckets."""
    present, rows = _present(np, values, valid)
    low = float(present.min())
    per_unit = _buckets_per_unit(low, float(present.max()))
    if per_unit is None:
        return None
    work = np.subtract(present, low)
    work *= per_unit
    bucket = work.astype(np.intp)  # never decreasing in the value, so buckets are in order
    member = np.zeros(_BUCKETS)
    member[bucket] = present
    member.take(bucket, out=work, mode="clip")
    if not np.array_equal(work, present):  # some bucket holds two values
        return None
    del work
    counts = np.bincount(bucket, minlength=_BUCKETS)
    ends = np.cumsum(counts)
    m, n = present.size, values.size
    table = (2 * ends - counts - m).astype(_whole_type(n))
    centred = table.take(bucket)
    if rows is not None:
        ranked, centred = centred, np.zeros(n, dtype=table.dtype)
        centred[rows] = ranked
    used = counts > 0
    return _Ranking(
        centred=centred,
        n_unique=int(np.count_nonzero(used)),
        top_count=int(counts.max()),
        picked=[float(member[ends.searchsorted(k, side="right")]) + 0.0 for k in wanted],
        spot=_locate(np, member[used], counts=counts[used]),
    )


# Sorting: one 64-bit whole number a row holds its place in the order and its row number.


def _rank_by_sorting(values: Array, valid: Array | None, wanted: list[int]) -> _Ranking:
    order, fresh, spot = _sorted_rows(values, valid)
    picked = [float(values[order[k]]) + 0.0 for k in wanted]
    in_order, n_unique, top_count = _average_ranks(np, fresh, values.size)
    del fresh
    centred = np.zeros(values.size, dtype=in_order.dtype)
    centred[order] = in_order
    return _Ranking(centred, n_unique, top_count, picked, spot)


def _sorted_rows(values: Array, valid: Array | None) -> tuple[Array, Array, _Spot]:
    """The valid rows in ascending order of value, and where in it a new value begins."""
    present, rows = _present(np, values, valid)
    packed = np.empty(present.size, dtype=np.uint64)
    spot = _locate(np, present, scratch=packed.view(np.float64))
    row_bits = int(values.size - 1).bit_length()
    lost = _pack(present, rows, spot.low, row_bits, packed)
    del present, rows
    packed.sort()
    fresh = _where_keys_change(packed, row_bits)
    packed &= (1 << row_bits) - 1
    order = packed.view(np.intp)
    if lost:
        _settle_shortened(values, order, fresh)
    return order, fresh, spot


def _pack(present: Array, rows: Array | None, low: float, row_bits: int, packed: Array) -> int:
    """Fill `packed`: each value's distance from `low` in float64 steps, then its row number.

    Returns how many low bits of the distance had to go to make room for the row number. Bits that
    are 0 in every distance (float32 data, whole numbers) cost nothing. Works in blocks that stay
    in the cache, for a pass over memory costs as much as the arithmetic of five.
    """
    scratch = np.empty(min(_BLOCK, packed.size), dtype=np.int64)
    lowest = np.empty(1, dtype=np.int64)
    _float_steps(np.array([low]), lowest, scratch)
    used = 0
    for start in range(0, packed.size, _BLOCK):
        piece = packed[start : start + _BLOCK]
        steps = piece.view(np.int64)
        _float_steps(present[start : start + _BLOCK], steps, scratch)
        steps -= lowest  # may wrap around, and is right when read without a sign
        used |= int(np.bitwise_or.reduce(piece))
    idle = (used & -used).bit_length() - 1 if used else 0
    lost = max(0, used.bit_length() - idle + row_bits - 64)
    counting = np.arange(scratch.size, dtype=np.uint64)
    for start in range(0, packed.size, _BLOCK):
        piece = packed[start : start + _BLOCK]
        piece >>= idle + lost
        piece <<= row_bits
        if rows is None:
            piece |= counting[: piece.size]
            piece += start
        else:
            piece |= rows[start : start + _BLOCK].view(np.uint64)
    return lost


def _float_steps(values: Array, steps: Array, scratch: Array) -> None:
    """Write int64 that compare as float64 `values` do and count the steps between them."""
    np.add(values, 0.0, out=steps.view(np.float64))  # turns -0.0 into 0.0
    sign = np.right_shift(steps, 63, out=scratch[: steps.size])
    sign &= np.iinfo(np.int64).max
    steps ^= sign  # the bits of negative values count downwards


def _where_keys_change(packed: Array, row_bits: int) -> Array:
    """(m,) bool: the first entry of each run of equal keys in sorted `packed`."""
    fresh = np.ones(packed.size, dtype=bool)
    scratch = np.empty(min(_BLOCK, packed.size), dtype=np.uint64)
    for start in range(1, packed.size, _BLOCK):
        piece = packed[start : start + _BLOCK]
        differing = scratch[: piece.size]
        np.bitwise_xor(piece, packed[start - 1 : start - 1 + piece.size], out=differing)
        np.greater_equal(differing, 1 << row_bits, out=fresh[start : start + piece.size])
    return fresh


def _settle_shortened(values: Array, order: Array, fresh: Array) -> None:
    """Order, and tell apart, the rows whose keys became equal only by losing low bits.

    Shortening keeps the order between runs of equal keys, so their members sort in one go.
    """
    in_run = ~fresh
    in_run[:-1] |= in_run[1:]
    at = np.flatnonzero(in_run)
    del in_run
    rows = order[at]
    full = values.take(rows, mode="clip")
    if (full[1:] < full[:-1]).any():
        by_value = np.argsort(full)
        del full
        rows = rows[by_value]
        del by_value
        order[at] = rows
        full = values.take(rows, mode="clip")
    fresh[at[1:]] = full[1:] != full[:-1]


# The device: a plain argsort.


def _rank_on_device(values: Array, valid: Array | None, wanted: list[int]) -> _Ranking:
    xp = namespace(values)
    present, rows = _present(xp, values, valid)
    spot = _locate(xp, present)
    order = xp.argsort(present)
    ascending = present[order]
    picked = [float(ascending[k]) + 0.0 for k in wanted]
    fresh = xp.ones(ascending.size, dtype=bool)
    fresh[1:] = ascending[1:] != ascending[:-1]
    del present, ascending
    in_order, n_unique, top_count = _average_ranks(xp, fresh, values.size)
    centred = xp.zeros(values.size, dtype=in_order.dtype)
    centred[order if rows is None else rows[order]] = in_order
    return _Ranking(centred, n_unique, top_count, picked, spot)


# Shared by all ways.


def _present(xp: Any, values: Array, valid: Array | None) -> tuple[Array, Array | None]:
    """The valid values and their row numbers (None: all rows)."""
    if valid is None:
        return values, None
    rows = xp.flatnonzero(valid)
    return values[rows], rows


def _whole_type(n: int) -> type[np.signedinteger[Any]]:
    """The smallest whole-number type that holds every 2 r - 1 - m of n rows."""
    return np.int32 if n <= np.iinfo(np.int32).max else np.int64


def _average_ranks(xp: Any, fresh: Array, n: int) -> tuple[Array, int, int]:
    """2 r - 1 - m along the sorted order, the number of runs and the longest run's length."""
    m, whole = int(fresh.size), _whole_type(n)
    starts = xp.flatnonzero(fresh)
    if starts.size == m:
        return xp.arange(1 - m, m, 2, dtype=whole), m, 1
    lengths = xp.empty_like(starts)
    lengths[:-1] = starts[1:] - starts[:-1]
    lengths[-1] = m - starts[-1]
    n_unique, top_count = int(starts.size), int(lengths.max())
    starts *= 2
    starts += lengths
    starts -= m  # first row + one past the last row - m
    run_ranks = starts.astype(whole)
    del starts, lengths
    run = xp.cumsum(fresh, dtype=xp.intp)
    run -= 1
    # NumPy takes without a second buffer when it may clip; CuPy has no such argument.
    ranks = run_ranks.take(run, mode="clip") if xp is np else run_ranks[run]
    return ranks, n_unique, top_count


def _locate(
    xp: Any, values: Array, *, counts: Array | None = None, scratch: Array | None = None
) -> _Spot:
    """Range, mean and variance of `values`, each taken `counts` times.

    The values are scaled by a power of two (exact) to at most about 1, so that no square
    overflows or vanishes; then two passes, the second on centred values.
    """
    low, high = float(values.min()) + 0.0, float(values.max()) + 0.0
    exponent = min(max(math.frexp(max(abs(low), abs(high)))[1], -1000), 1000)
    scale = math.ldexp(1.0, -exponent)
    m = int(values.size if counts is None else counts.sum())

    def average(terms: Array) -> float:
        return float((terms if counts is None else terms * counts).sum()) / m

    work = xp.multiply(values, scale, out=scratch)
    mean = _clip(average(work), low * scale, high * scale)  # exact for a constant column
    work -= mean
    rest = average(work)
    xp.multiply(work, work, out=work)
    return _Spot(
        low=low,
        high=high,
        mean=_clip(math.ldexp(mean + rest, exponent), low, high),
        scaled_variance=max(average(work) - rest * rest, 0.0),
        exponent=exponent,
    )


def _clip(value: float, low: float, high: float) -> float:
    return min(max(value, low), high)


def _times_power_of_two(value: float, exponent: int) -> float:
    try:
        return math.ldexp(value, exponent)
    except OverflowError:
        return math.inf


def _normalised_variance(spot: _Spot, q025: float, q975: float) -> float:
    if spot.low == spot.high:
        return 0.0
    lower, upper = (q025, q975) if q025 < q975 else (spot.low, spot.high)
    scale = math.ldexp(1.0, -spot.exponent)
    width = upper * scale - lower * scale
    if width == 0.0:  # so far below the largest value that it vanishes beside it
        return math.inf
    ratio = math.sqrt(spot.scaled_variance) / width
    return ratio * ratio


def _neighbours(q: float, m: int) -> tuple[int, int]:
    """The two sorted positions between which quantile q of m values lies."""
    below = math.floor((m - 1) * q)
    return below, min(below + 1, m - 1)


def _interpolate(q: float, m: int, below: float, above: float) -> float:
    """Quantile q of m values between its two neighbours, rounded as NumPy rounds it."""
    place = (m - 1) * q
    weight = place - math.floor(place)
    step = above - below
    if math.isinf(step):
        return below * (1 - weight) + above * weight
    return below + step * weight if weight < 0.5 else above - step * (1 - weight)


def _rank_hash(centred: Array, sign: int, valid: Array | None) -> str:
    """SHA-256 over the ranks, signed so that the first row off the middle counts as low.

    Overwrites `centred`, the last use of which this is.
    """
    if sign > 0:
        np.negative(centred, out=centred)
    digest = hashlib.sha256(centred.astype(centred.dtype.newbyteorder("<"), copy=False))
    if valid is not None:
        digest.update(np.packbits(valid).tobytes())
    return digest.hexdigest()


def _first_sign(centred: Array) -> int:
    """The sign of the first entry that is not 0, or 0."""
    for start in range(0, centred.size, 4096):  # nearly always found at once
        piece = centred[start : start + 4096]
        places = np.flatnonzero(piece)
        if places.size:
            return int(np.sign(piece[places[0]]))
    return 0


def _nothing_to_rank(xp: Any, valid: Array) -> RankedColumn:
    nothing = math.nan
    return RankedColumn(
        scores=xp.zeros(valid.shape, dtype=np.float32),
        valid=valid if valid.size else None,
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
        rank_hash=_rank_hash(np.zeros(valid.size, dtype=np.int32), 0, to_host(valid)),
        first_sign=0,
    )
