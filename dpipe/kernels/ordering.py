"""The order of one column's cells, in NumPy or CuPy: the reference of the compiled way.

Covers: ranks with ties and missing cells, distinct values, range, moments, fingerprint.
Does not cover: what is said of a column in the end (see `dpipe.kernels.ranks`).
See also: ``_ranking.c``, which gives the same `Ranking` to the last bit, several times as fast.

Three ways lead to the ranks, with the same answer to the last bit:

* a long host column of few values that fall into separate equal-width buckets is counted;
* any other host column is sorted as 64-bit whole numbers, order in the high bits and row number
  in the low ones, because sorting plain numbers is several times faster than an argsort;
* a device column is argsorted, which a GPU does at full speed.
"""

from __future__ import annotations

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
_FOLD = 1024  # terms that are added up pairwise
_FEW = 4  # rows a value, from which on sums run over the distinct values


@dataclass(frozen=True)
class Moments:
    """Sums over the values times 2**-exponent: so scaled, no square overflows or vanishes.

    ``mean`` is within the range of the values; ``rest`` and ``square`` are the mean and the mean
    square of what it leaves of them.
    """

    mean: float
    rest: float
    square: float
    exponent: int


@dataclass(frozen=True)
class Ranking:
    """What every way of ranking yields.

    Values of whole numbers are given as distances from `origin`, their lowest; reals have origin 0.

    Attributes
    ----------
    scores, valid, n_valid, n_unique, first_sign
        As `dpipe.kernels.ranks.RankedColumn` has them.
    top_count
        Rows of the commonest value.
    origin, low, high
        See above; lowest and highest value.
    picked
        The values at `places` of the order, ascending.
    moments
        Sums over rows in their order, or over the distinct values in theirs where each stands for
        four rows or more: then no order of rows changes a bit.
    rank_sum, missing_sum
        2 r - 1 - m of each row times its weight, and the weights of missing rows, modulo 2**64.
    """

    scores: Array
    valid: Array | None
    n_valid: int
    n_unique: int
    top_count: int
    origin: int
    low: float
    high: float
    picked: tuple[float, ...]
    moments: Moments
    first_sign: int
    rank_sum: int
    missing_sum: int


def places(n_valid: int) -> list[int]:
    """The places in the order between which the quantiles lie, two for each.

    Examples
    --------
    >>> places(101)
    [2, 3, 97, 98]
    """
    below = [math.floor((n_valid - 1) * q) for q in QUANTILES]
    return [min(place, n_valid - 1) for first in below for place in (first, first + 1)]


@dataclass(frozen=True)
class _Order:
    """A column in order: what each way finds.

    ``picked`` are the values at `places`. ``distinct`` are the distinct values in ascending order
    and the rows that each stands in, where these are few, else None.
    """

    centred: Array  # (n,) 2 r - 1 - m, 0 where missing
    n_unique: int
    top_count: int
    picked: Array
    distinct: tuple[Array, Array] | None


def rank_cells(values: Array, valid: Array | None) -> Ranking:
    """Rank a column of which some cell is valid.

    Parameters
    ----------
    values
        (n,) float64, int64 or uint64.
    valid
        (n,) bool, or None: all cells.
    """
    xp = namespace(values)
    n_valid = int(values.size if valid is None else xp.count_nonzero(valid))
    put_in_order = _order_on_host if xp is np else _order_on_device
    order = put_in_order(values, valid, sorted(places(n_valid)))
    present = values if valid is None else values[valid]
    lowest, highest = present.min(), present.max()
    if values.dtype.kind == "f":
        origin, low, high = 0, float(lowest) + 0.0, float(highest) + 0.0
    else:
        origin = int(lowest)
        low, high = 0, int(highest) - origin
    moments = _moments(order.distinct or (present, None), lowest, n_valid, float(low), float(high))
    centred = to_host(order.centred)
    rank_sum, missing_sum = _weigh(centred, None if valid is None else to_host(valid))
    return Ranking(
        scores=scores_of(order.centred, n_valid),
        valid=valid,
        n_valid=n_valid,
        n_unique=order.n_unique,
        top_count=order.top_count,
        origin=origin,
        low=low,
        high=high,
        picked=tuple(_as_numbers(order.picked, lowest).tolist()),
        moments=moments,
        first_sign=_first_sign(centred),
        rank_sum=rank_sum,
        missing_sum=missing_sum,
    )


def missing_only(n: int) -> int:
    """The weights of n missing rows, as `Ranking.missing_sum` has them.

    Examples
    --------
    >>> missing_only(0)
    0
    """
    return _weigh(np.zeros(n, dtype=np.int32), np.zeros(n, dtype=bool))[1]


def scores_of(centred: Array, n_valid: int) -> Array:
    """Centred ranks u - 1/2 in float32 from 2 r - 1 - m, 0 where that is."""
    xp = namespace(centred)
    scores = xp.empty(centred.shape, dtype=np.float32)
    xp.true_divide(centred, 2 * n_valid, out=scores)
    return scores


def _order_on_host(values: Array, valid: Array | None, wanted: list[int]) -> _Order:
    counted = None
    if _looks_countable(values):
        counted = _order_by_counting(values, valid, wanted)
    return _order_by_sorting(values, valid, wanted) if counted is None else counted


# Counting: equal-width buckets, each of which turns out to hold one distinct value.


def _looks_countable(values: Array) -> bool:
    """Whether some rows suggest few distinct values in separate buckets. Decides speed only."""
    if values.size < _BUCKETS or values.dtype.kind != "f":  # sorting costs less
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


def _order_by_counting(values: Array, valid: Array | None, wanted: list[int]) -> _Order | None:
    """Order without sorting, or None when the values do not fall into separate buckets."""
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
    n_unique = int(np.count_nonzero(used))
    return _Order(
        centred=centred,
        n_unique=n_unique,
        top_count=int(counts.max()),
        picked=member[ends.searchsorted(wanted, side="right")],
        distinct=(member[used], counts[used]) if n_unique * _FEW <= m else None,
    )


# Sorting: one 64-bit whole number a row holds its place in the order and its row number.


def _order_by_sorting(values: Array, valid: Array | None, wanted: list[int]) -> _Order:
    order, fresh = _sorted_rows(values, valid)
    picked = values[order[wanted]]
    in_order, n_unique, top_count, runs = _average_ranks(np, fresh, values.size)
    del fresh
    centred = np.zeros(values.size, dtype=in_order.dtype)
    centred[order] = in_order
    distinct = None if runs is None else (values[order[runs[0]]], runs[1])
    return _Order(centred, n_unique, top_count, picked, distinct)


def _sorted_rows(values: Array, valid: Array | None) -> tuple[Array, Array]:
    """The valid rows in ascending order of value, and where in it a new value begins."""
    present, rows = _present(np, values, valid)
    packed = np.empty(present.size, dtype=np.uint64)
    row_bits = int(values.size - 1).bit_length()
    lost = _pack(present, rows, row_bits, packed)
    del present, rows
    packed.sort()
    fresh = _where_keys_change(packed, row_bits)
    packed &= (1 << row_bits) - 1
    order = packed.view(np.intp)
    if lost:
        _settle_shortened(values, order, fresh)
    return order, fresh


def _pack(present: Array, rows: Array | None, row_bits: int, packed: Array) -> int:
    """Fill `packed`: each value's distance from the lowest, then its row number.

    Returns how many low bits of the distance had to go to make room for the row number. Bits that
    are 0 in every distance (float32 data, whole numbers) cost nothing. Works in blocks that stay
    in the cache, for a pass over memory costs as much as the arithmetic of five.
    """
    scratch = np.empty(min(_BLOCK, packed.size), dtype=np.int64)
    lowest = np.empty(1, dtype=np.int64)
    _steps(present.min(keepdims=True), lowest, scratch)
    used = 0
    for start in range(0, packed.size, _BLOCK):
        piece = packed[start : start + _BLOCK]
        steps = piece.view(np.int64)
        _steps(present[start : start + _BLOCK], steps, scratch)
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


def _steps(values: Array, steps: Array, scratch: Array) -> None:
    """Write int64 whose differences, read without a sign, are distances: in float64 steps or 1."""
    if values.dtype.kind != "f":
        steps[:] = values.view(np.int64)
        return
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


def _order_on_device(values: Array, valid: Array | None, wanted: list[int]) -> _Order:
    xp = namespace(values)
    present, rows = _present(xp, values, valid)
    order = xp.argsort(present)
    ascending = present[order]
    picked = to_host(ascending[xp.asarray(wanted)])
    fresh = xp.ones(ascending.size, dtype=bool)
    fresh[1:] = ascending[1:] != ascending[:-1]
    del present
    in_order, n_unique, top_count, runs = _average_ranks(xp, fresh, values.size)
    distinct = None if runs is None else (ascending[runs[0]], runs[1])
    del ascending
    centred = xp.zeros(values.size, dtype=in_order.dtype)
    centred[order if rows is None else rows[order]] = in_order
    return _Order(centred, n_unique, top_count, picked, distinct)


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


def _average_ranks(
    xp: Any, fresh: Array, n: int
) -> tuple[Array, int, int, tuple[Array, Array] | None]:
    """2 r - 1 - m along the sorted order, the number of runs and the longest run's length.

    Last come the runs' starts and lengths, where they are few.
    """
    m, whole = int(fresh.size), _whole_type(n)
    starts = xp.flatnonzero(fresh)
    if starts.size == m:
        return xp.arange(1 - m, m, 2, dtype=whole), m, 1, None
    lengths = xp.empty_like(starts)
    lengths[:-1] = starts[1:] - starts[:-1]
    lengths[-1] = m - starts[-1]
    n_unique, top_count = int(starts.size), int(lengths.max())
    runs = (starts.copy(), lengths.copy()) if n_unique * _FEW <= m else None
    starts *= 2
    starts += lengths
    starts -= m  # first row + one past the last row - m
    run_ranks = starts.astype(whole)
    del starts, lengths
    run = xp.cumsum(fresh, dtype=xp.intp)
    run -= 1
    # NumPy takes without a second buffer when it may clip; CuPy has no such argument.
    ranks = run_ranks.take(run, mode="clip") if xp is np else run_ranks[run]
    return ranks, n_unique, top_count, runs


def _as_numbers(cells: Array, lowest: Any) -> Array:
    """Values as float64; whole numbers as their distances from `lowest`."""
    if cells.dtype.kind == "f":
        return cells + 0.0  # turns -0.0 into 0.0
    return (cells - lowest).view(np.uint64).astype(np.float64)


def _moments(
    cells: tuple[Array, Array | None], lowest: Any, m: int, low: float, high: float
) -> Moments:
    """Two passes over values, each taken as often as it counts; the second on centred values."""
    values, counts = cells
    xp = namespace(values)
    exponent = min(max(math.frexp(max(abs(low), abs(high)))[1], -1000), 1000)
    scale = math.ldexp(1.0, -exponent)
    block = _BLOCK if xp is np else values.size  # a card has its cache for itself

    def average(mean: float, power: int) -> float:
        total = 0.0
        for start in range(0, values.size, block):
            part = slice(start, start + block)
            terms = _as_numbers(values[part], lowest)
            terms *= scale
            terms -= mean
            if power == 2:
                terms *= terms
            if counts is not None:
                terms *= counts[part]
            for term in _fold(xp, terms):
                total += term
        return total / m

    mean = min(max(average(0.0, 1), low * scale), high * scale)  # exact for a constant column
    return Moments(mean, average(mean, 1), average(mean, 2), exponent)


def _fold(xp: Any, terms: Array) -> list[float]:
    """The sums of every `_FOLD` terms, each added up pairwise, so in the same order everywhere."""
    sums = xp.zeros(-(-terms.size // _FOLD) * _FOLD)
    sums[: terms.size] = terms
    sums = sums.reshape(-1, _FOLD)
    while sums.shape[1] > 1:
        half = sums.shape[1] // 2
        sums = sums[:, :half] + sums[:, half:]
    found: list[float] = to_host(sums[:, 0]).tolist()
    return found


def _weigh(centred: Array, valid: Array | None) -> tuple[int, int]:
    """`Ranking.rank_sum` and `Ranking.missing_sum`: a row has the same weight in all columns.

    Sums of random weights tell columns apart but for one pair in 2**64; reversed ranks have the
    negated sum.
    """
    rank_sum = missing_sum = 0
    for start in range(0, centred.size, _BLOCK):
        piece = centred[start : start + _BLOCK]
        weights = np.arange(start + 1, start + 1 + piece.size, dtype=np.uint64)
        weights *= np.uint64(0x9E3779B97F4A7C15)
        weights ^= weights >> np.uint64(32)
        weights *= np.uint64(0xD6E8FEB86659FD93)
        weights ^= weights >> np.uint64(32)
        if valid is not None:
            missing_sum += int(weights[~valid[start : start + _BLOCK]].sum(dtype=np.uint64))
        weights *= piece.astype(np.int64).view(np.uint64)
        rank_sum += int(weights.sum(dtype=np.uint64))
    return rank_sum % 2**64, missing_sum % 2**64


def _first_sign(centred: Array) -> int:
    """The sign of the first entry that is not 0, or 0."""
    for start in range(0, centred.size, 4096):  # nearly always found at once
        piece = centred[start : start + 4096]
        found = np.flatnonzero(piece)
        if found.size:
            return int(np.sign(piece[found[0]]))
    return 0
