"""Ranks, statistics and hash of one column against SciPy, NumPy and exact fractions.

Every host way of ranking (counting, sorting, the device's argsort run on NumPy) goes through the
same tests; the argsort also runs on CuPy where there is a GPU.
"""

from __future__ import annotations

import math
import tracemalloc
from collections import Counter
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import rankdata

from dpipe.device.arrays import to_host
from dpipe.engine import memory
from dpipe.kernels import ranks
from dpipe.kernels.ranks import RankedColumn, rank_column

Column = NDArray[np.float64]


def column(*values: float) -> Column:
    return np.array(values, dtype=np.float64)


def ulps_apart(n: int) -> Column:
    """Neighbouring floats in shuffled order between two far ends: shortened keys collide."""
    steps = np.random.default_rng(0).integers(0, 40, n)
    middle = (np.float64(1.0).view(np.int64) + steps).view(np.float64)
    return np.concatenate((column(1e300), middle, column(-1e300)))


def shapes() -> dict[str, Column]:
    rng = np.random.default_rng(1)
    normal = rng.standard_normal(3000)
    counts = rng.integers(0, 12, 3000).astype(np.float64)
    return {
        "normal": normal,
        "float32": normal.astype(np.float32).astype(np.float64),
        "rounded": np.round(normal, 1),
        "counts": counts,
        "binary": (normal > 1).astype(np.float64),
        "constant": np.full(40, 0.1),
        "offset": 1e8 + np.round(normal, 3),
        "far offset": 1e15 + counts / 8,
        "tiny": normal * 1e-310,
        "huge": normal * 1e300,
        "widest": column(-1.7e308, 1.7e308, 0.0, 3.0),
        "widest pair": column(1.7e308, -1.7e308),
        "skewed": np.floor(np.exp(5 * normal)),
        "vanishing middle": np.concatenate((column(1e308), np.tile(column(0, 5e-324, 1e-323), 99))),
        "outlier": np.concatenate((column(1e300), rng.random(999))),
        "ulps apart": ulps_apart(500),
        "sorted": np.arange(100.0),
        "reversed": np.arange(100.0)[::-1].copy(),
        "signed zeros": column(0.0, -0.0, 1.0, -0.0, -1.0),
        "smallest steps": column(0.0, 5e-324, -5e-324, 1e-323, 5e-324),
        "half missing": np.where(rng.random(3000) < 0.5, np.nan, normal),
        "large missing": np.where(normal > 0.3, np.nan, counts),
        "infinite": column(np.inf, 1.0, -np.inf, 2.0, 2.0),
        "one valid": column(np.nan, 7.0),
        "one row": column(7.0),
        "two rows": column(2.0, 1.0),
    }


SHAPES = shapes()
WAYS: dict[str, Callable[..., ranks._Ranking | None]] = {
    "chosen": ranks._rank_on_host,
    "counting": ranks._rank_by_counting,
    "sorting": ranks._rank_by_sorting,
    "argsort": ranks._rank_on_device,
}


def rank_by(way: str, values: Column) -> RankedColumn | None:
    """`rank_column` with one way forced; None when counting does not apply to these values."""
    if not np.isfinite(values).any():
        return rank_column(values)
    applies = WAYS[way](values, finite_or_none(values), [0]) is not None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranks, "_rank_on_host", WAYS[way])
        return rank_column(values) if applies else None


def finite_or_none(values: Column) -> NDArray[np.bool_] | None:
    valid = np.isfinite(values)
    return None if valid.all() else valid


def check_against_references(values: Column, got: RankedColumn) -> None:
    before = values.copy()
    valid = np.isfinite(values)
    present = values[valid]
    m = present.size
    # Ranks and masks
    expected = np.zeros(values.size, dtype=np.float32)
    expected[valid] = ((2 * rankdata(present) - 1 - m) / (2 * m)).astype(np.float32)
    assert got.scores.dtype == np.float32
    np.testing.assert_array_equal(got.scores, expected)
    assert (got.valid is None) == bool(valid.all())
    if got.valid is not None:
        np.testing.assert_array_equal(got.valid, valid)
    # Counts and order statistics
    assert got.n_valid == m
    distinct, counts = np.unique(present, return_counts=True)
    assert (got.n_unique, got.top_share) == (distinct.size, counts.max() / m)
    assert (got.minimum, got.maximum) == (present.min(), present.max())
    assert not math.copysign(1, got.minimum) < 0 or got.minimum < 0
    if present.max() / 2 - present.min() / 2 < 8e307:
        assert (got.q025, got.q975) == tuple(np.quantile(present, ranks.QUANTILES))
    else:  # NumPy overflows between so distant neighbours
        halves = 2 * np.quantile(present / 2, ranks.QUANTILES)
        assert (got.q025, got.q975) == pytest.approx(tuple(halves), rel=1e-14)
    assert got.minimum <= got.q025 <= got.q975 <= got.maximum
    check_moments(present, got)
    np.testing.assert_array_equal(values, before)


def check_moments(present: Column, got: RankedColumn) -> None:
    """Mean and variance against exact fractions."""
    terms = Counter(Fraction(float(v)) for v in present)
    m = present.size
    mean = sum((v * k for v, k in terms.items()), Fraction(0)) / m
    variance = sum(((v - mean) ** 2 * k for v, k in terms.items()), Fraction(0)) / m
    largest = Fraction(max(abs(got.minimum), abs(got.maximum)))
    smallest = Fraction(5e-324)
    assert abs(Fraction(got.mean) - mean) <= largest * Fraction(2.0**-52) + smallest
    assert got.minimum <= got.mean <= got.maximum
    if variance > Fraction(np.finfo(np.float64).max):
        assert got.variance == math.inf
    else:
        assert abs(Fraction(got.variance) - variance) <= variance / 10**12 + smallest
    width = Fraction(got.q975) - Fraction(got.q025)
    width = width or Fraction(got.maximum) - Fraction(got.minimum)
    if width == 0:
        assert got.normalised_variance == 0
        assert got.variance == 0
        assert got.mean == got.minimum
    elif variance / width**2 > Fraction(10) ** 300:
        assert got.normalised_variance > 1e290
    else:
        assert got.normalised_variance == pytest.approx(float(variance / width**2), rel=1e-9)


@pytest.mark.parametrize("way", ["chosen", "sorting", "argsort"])
@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_equals_the_references(shape: str, way: str) -> None:
    got = rank_by(way, SHAPES[shape])
    assert got is not None
    check_against_references(SHAPES[shape], got)


@pytest.mark.parametrize(
    "shape", ["counts", "binary", "constant", "rounded", "large missing", "one row"]
)
def test_columns_of_few_values_are_counted(shape: str) -> None:
    values = SHAPES[shape]
    got = rank_by("counting", values)
    assert got is not None
    check_against_references(values, got)


@pytest.mark.parametrize(
    ("shape", "countable"),
    [
        ("counts", True),
        ("large missing", True),
        ("normal", False),  # its rows repeat here, but values share buckets
        ("outlier", False),
        ("infinite", False),
        ("widest", False),
        ("smallest steps", False),
    ],
)
def test_a_probe_tells_which_long_columns_to_count(shape: str, countable: bool) -> None:
    values = np.resize(SHAPES[shape], ranks._BUCKETS)
    assert ranks._looks_countable(values) == countable
    assert not ranks._looks_countable(values[1:])
    check_against_references(values, rank_column(values))


def test_values_that_share_a_bucket_unseen_by_the_probe_are_sorted() -> None:
    values = np.zeros(ranks._BUCKETS)
    values[1:3] = 1e-9, 1.0
    assert ranks._looks_countable(values)
    assert ranks._rank_by_counting(values, None, [0]) is None
    check_against_references(values, rank_column(values))


def test_shortened_keys_collide_and_are_settled(monkeypatch: pytest.MonkeyPatch) -> None:
    settled = []
    settle = ranks._settle_shortened

    def settle_and_tell(*arguments: np.ndarray) -> None:
        settled.append(True)
        settle(*arguments)

    monkeypatch.setattr(ranks, "_settle_shortened", settle_and_tell)
    values = ulps_apart(2000)
    check_against_references(values, rank_column(values))
    assert settled


@pytest.mark.parametrize("block", [1, 2, 7])
def test_blocks_do_not_show(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "_BLOCK", block)
    for shape in ("normal", "ulps apart", "half missing", "one row"):
        values = SHAPES[shape][:300]
        got = rank_by("sorting", values)
        assert got is not None
        check_against_references(values, got)


@pytest.mark.parametrize("n", [0, 1, 5])
def test_without_a_valid_value_everything_is_undefined(n: int) -> None:
    got = rank_column(np.full(n, np.nan))
    assert (got.n_valid, got.n_unique) == (0, 0)
    numbers = (got.minimum, got.maximum, got.mean, got.variance, got.q025, got.q975)
    assert all(math.isnan(x) for x in (*numbers, got.top_share, got.normalised_variance))
    np.testing.assert_array_equal(got.scores, np.zeros(n, dtype=np.float32))
    assert (got.valid is None) == (n == 0)


def test_a_read_only_strided_column_is_accepted() -> None:
    values = np.asfortranarray(np.random.default_rng(2).standard_normal((50, 3)))[::2, 1]
    values.setflags(write=False)
    check_against_references(values, rank_column(values))


def test_counting_does_not_depend_on_row_order() -> None:
    values = np.resize(SHAPES["rounded"], ranks._BUCKETS)
    shuffled = np.random.default_rng(3).permutation(values)
    first, second = rank_column(values), rank_column(shuffled)
    assert (first.mean, first.variance) == (second.mean, second.variance)


@pytest.mark.parametrize(
    "shape", ["normal", "rounded", "half missing", "half missing rounded", "collisions", "ties"]
)
def test_memory_stays_under_the_stated_bound(shape: str) -> None:
    n = 400_000
    rng = np.random.default_rng(4)
    normal = rng.standard_normal(n)
    missing = rng.random(n) < 0.5
    values = {
        "normal": normal,
        "rounded": np.round(normal, 1),
        "half missing": np.where(missing, np.nan, normal),
        "half missing rounded": np.where(missing, np.nan, np.round(normal, 1)),
        "collisions": np.concatenate((column(np.nan, 1e300), 1 + normal[2:] * 1e-12)),
        "ties": np.concatenate((column(np.nan), np.round(normal[1:], 5))),
    }[shape]
    tracemalloc.start()
    try:
        rank_column(values)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    fixed = 6 * 8 * ranks._BUCKETS  # tables that do not grow with the rows
    assert peak <= memory.RANK_TEMPORARIES * n + fixed


def test_whole_ranks_fit_their_type() -> None:
    assert ranks._whole_type(2**31 - 1) is np.int32
    assert ranks._whole_type(2**31) is np.int64


# Laws

WHOLE = st.integers(-6, 6).map(float)
ANY_FINITE = st.floats(allow_nan=False, allow_infinity=False)
MODERATE = st.floats(1e-100, 1e100) | st.floats(-1e100, -1e-100) | st.just(0.0)


def columns_of(cells: st.SearchStrategy[float], min_size: int = 1) -> st.SearchStrategy[Column]:
    lists = st.lists(cells | st.just(math.nan), min_size=min_size, max_size=60)
    return lists.map(lambda cells: np.array(cells, dtype=np.float64))


@given(columns_of(ANY_FINITE) | columns_of(WHOLE), st.sampled_from(sorted(WAYS)))
def test_any_column_equals_the_references(values: Column, way: str) -> None:
    got = rank_by(way, values)
    if got is not None and got.n_valid:
        check_against_references(values, got)


@given(columns_of(MODERATE), st.integers(-60, 60))
def test_strictly_monotone_maps_change_nothing(values: Column, power: int) -> None:
    mapped = rank_column(values * 2.0**power)
    plain = rank_column(values)
    np.testing.assert_array_equal(mapped.scores, plain.scores)
    assert mapped.rank_hash == plain.rank_hash


@given(columns_of(WHOLE))
def test_monotone_maps_of_whole_numbers_change_nothing(values: Column) -> None:
    plain = rank_column(values)
    for mapped in (values**3, values + 1e8, np.exp2(values), values - 1e15):
        got = rank_column(mapped)
        np.testing.assert_array_equal(got.scores, plain.scores)
        assert got.rank_hash == plain.rank_hash


@given(columns_of(ANY_FINITE) | columns_of(WHOLE))
def test_reversal_negates_the_scores_and_keeps_the_hash(values: Column) -> None:
    plain, mirrored = rank_column(values), rank_column(-values)
    np.testing.assert_array_equal(mirrored.scores, -plain.scores)
    assert mirrored.rank_hash == plain.rank_hash
    assert mirrored.variance == pytest.approx(plain.variance, rel=1e-12, nan_ok=True)


@given(columns_of(ANY_FINITE) | columns_of(WHOLE), st.randoms(use_true_random=False))
def test_permuting_the_rows_permutes_the_scores(values: Column, random: object) -> None:
    order = np.arange(values.size)
    random.shuffle(order)  # type: ignore[attr-defined]
    plain, permuted = rank_column(values), rank_column(values[order])
    np.testing.assert_array_equal(permuted.scores, plain.scores[order])
    assert (permuted.n_unique, permuted.top_share) == (plain.n_unique, plain.top_share) or (
        plain.n_valid == 0
    )


@given(st.integers(1, 6).flatmap(lambda n: st.tuples(*[columns_of_length(n)] * 2)))
def test_hashes_are_equal_exactly_for_monotone_duplicates(pair: tuple[Column, Column]) -> None:
    first, second = (rank_column(values) for values in pair)
    same_rows = np.array_equal(np.isnan(pair[0]), np.isnan(pair[1]))
    same_ranks = np.array_equal(first.scores, second.scores)
    reversed_ranks = np.array_equal(first.scores, -second.scores)
    duplicates = same_rows and (same_ranks or reversed_ranks)
    assert (first.rank_hash == second.rank_hash) == duplicates


def columns_of_length(n: int) -> st.SearchStrategy[Column]:
    cells = st.lists(st.sampled_from([0.0, 1.0, 2.0, math.nan]), min_size=n, max_size=n)
    return cells.map(lambda cells: np.array(cells, dtype=np.float64))


def test_the_hash_sees_missing_cells_that_the_scores_do_not() -> None:
    with_middle, without = column(1.0, 2.0, 3.0), column(1.0, np.nan, 3.0)
    assert rank_column(with_middle).rank_hash != rank_column(without).rank_hash
    constant, empty = np.full(3, 5.0), np.full(3, np.nan)
    assert rank_column(constant).rank_hash != rank_column(empty).rank_hash


def test_the_hash_does_not_depend_on_the_way() -> None:
    for values in SHAPES.values():
        hashes = {got.rank_hash for way in WAYS if (got := rank_by(way, values))}
        assert len(hashes) == 1


@pytest.mark.gpu
@pytest.mark.parametrize("shape", SHAPES)
def test_the_device_equals_the_host(shape: str) -> None:
    import cupy

    values = SHAPES[shape]
    host, device = rank_column(values), rank_column(cupy.asarray(values))
    assert isinstance(device.scores, cupy.ndarray)
    np.testing.assert_array_equal(device.scores.get(), host.scores)
    masks = [None if got.valid is None else to_host(got.valid).tolist() for got in (host, device)]
    assert masks[0] == masks[1]
    for name in ("n_valid", "n_unique", "minimum", "maximum", "q025", "q975", "top_share"):
        assert getattr(device, name) == getattr(host, name)
    for name in ("mean", "variance", "normalised_variance"):
        assert getattr(device, name) == pytest.approx(getattr(host, name), rel=1e-12)
    assert device.rank_hash == host.rank_hash
