"""Ranks, statistics and hash of one column against SciPy, NumPy and exact fractions.

Every way of ranking (compiled; in NumPy counting, sorting, the device's argsort) goes through the
same tests; the argsort also runs on CuPy where there is a GPU.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
import tracemalloc
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT, build_kernel, linker
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import rankdata

from dpipe.device.arrays import to_host
from dpipe.engine import memory
from dpipe.kernels import ordering, ranks
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
COMPILED = ranks.compiled
WAYS: dict[str, Callable[..., ordering._Order | None]] = {
    "chosen": ordering._order_on_host,
    "counting": ordering._order_by_counting,
    "sorting": ordering._order_by_sorting,
    "argsort": ordering._order_on_device,
}
EVERY_WAY = ["compiled", "compiled but for the sort", *WAYS]


def rank_by(
    way: str, values: NDArray[Any], valid: NDArray[np.bool_] | None = None
) -> RankedColumn | None:
    """`rank_column` with one way forced; None when it does not apply to these values."""
    with pytest.MonkeyPatch.context() as patch:
        if way.startswith("compiled"):
            patch.setattr(ranks, "_numpy_sorts_faster", lambda _: way != "compiled")
            return None if COMPILED is None else rank_column(values, valid)
        patch.setattr(ranks, "compiled", None)
        refused = []

        def order(*arguments: Any) -> ordering._Order:
            found = WAYS[way](*arguments)
            refused.append(found is None)
            return found or ordering._order_by_sorting(*arguments)

        patch.setattr(ordering, "_order_on_host", order)
        got = rank_column(values, valid)
        return None if any(refused) else got


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
        assert (got.q025, got.q975) == tuple(np.quantile(present, ordering.QUANTILES))
    else:  # NumPy overflows between so distant neighbours
        halves = 2 * np.quantile(present / 2, ordering.QUANTILES)
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


def check_every_way(values: Column) -> None:
    for way in EVERY_WAY:
        got = rank_by(way, values)
        if got is not None:
            check_against_references(values, got)


@pytest.mark.parametrize("way", ["compiled", "chosen", "sorting", "argsort"])
@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_equals_the_references(shape: str, way: str) -> None:
    if way == "compiled" and COMPILED is None:
        pytest.skip("there is no compiler")
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
    values = np.resize(SHAPES[shape], ordering._BUCKETS)
    assert ordering._looks_countable(values) == countable
    assert not ordering._looks_countable(values[1:])
    check_every_way(values)


def test_values_that_share_a_bucket_unseen_by_the_probe_are_sorted() -> None:
    values = np.zeros(ordering._BUCKETS)
    values[1:3] = 1e-9, 1.0
    assert ordering._looks_countable(values)
    assert ordering._order_by_counting(values, None, [0]) is None
    check_every_way(values)


def test_shortened_keys_collide_and_are_settled(monkeypatch: pytest.MonkeyPatch) -> None:
    settled = []
    settle = ordering._settle_shortened

    def settle_and_tell(*arguments: np.ndarray) -> None:
        settled.append(True)
        settle(*arguments)

    monkeypatch.setattr(ordering, "_settle_shortened", settle_and_tell)
    check_every_way(ulps_apart(2000))
    assert settled


@pytest.mark.parametrize("block", [ordering._FOLD, 3 * ordering._FOLD])
def test_blocks_do_not_show(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ordering, "_BLOCK", block)
    for shape in ("normal", "ulps apart", "half missing", "one row"):
        values = SHAPES[shape]
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
    check_every_way(values)


def test_few_values_do_not_depend_on_row_order() -> None:
    values = np.resize(SHAPES["rounded"], ordering._BUCKETS)
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
    for way in ("compiled", "compiled but for the sort", "chosen"):
        tracemalloc.start()
        try:
            rank_by(way, values)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        fixed = 6 * 8 * ordering._BUCKETS  # tables that do not grow with the rows
        assert peak <= memory.RANK_TEMPORARIES * n + fixed, way


def test_whole_ranks_fit_their_type() -> None:
    assert ordering._whole_type(2**31 - 1) is np.int32
    assert ordering._whole_type(2**31) is np.int64


# Laws

WHOLE = st.integers(-6, 6).map(float)
ANY_FINITE = st.floats(allow_nan=False, allow_infinity=False)
MODERATE = st.floats(1e-100, 1e100) | st.floats(-1e100, -1e-100) | st.just(0.0)


def columns_of(cells: st.SearchStrategy[float], min_size: int = 1) -> st.SearchStrategy[Column]:
    lists = st.lists(cells | st.just(math.nan), min_size=min_size, max_size=60)
    return lists.map(lambda cells: np.array(cells, dtype=np.float64))


@given(columns_of(ANY_FINITE) | columns_of(WHOLE), st.sampled_from(EVERY_WAY))
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
        hashes = {got.rank_hash for way in EVERY_WAY if (got := rank_by(way, values))}
        assert len(hashes) == 1


# Any type, and the compiled way


def test_the_compiled_way_is_there_where_there_is_a_compiler() -> None:
    assert (COMPILED is not None) or linker() is None
    assert ranks.implementation() == ("NumPy" if COMPILED is None else "C")


NUMBERS = ["f2", "f4", "f8", "?", *(f"{sign}{size}" for sign in "iu" for size in (1, 2, 4, 8))]
ODD_BITS = [0, 1, 2**63, 2**63 + 1, 0x7FF0 << 48, 0xFFF0 << 48, 0x7FF8 << 48, 2**64 - 1, 2**52]


@st.composite
def cells_of_any_type(draw: st.DrawFn) -> tuple[NDArray[Any], NDArray[np.bool_] | None]:
    """A column of any type and layout, from bits, and perhaps which cells count."""
    dtype = np.dtype(draw(st.sampled_from(NUMBERS)))
    few = st.sampled_from(draw(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=4)))
    near = st.integers(0, 300).map(lambda step: (0x3FF0 << 48) + step)
    cell = draw(st.sampled_from([st.integers(0, 2**64 - 1), st.sampled_from(ODD_BITS), few, near]))
    bits = np.array(draw(st.lists(cell, max_size=80)), dtype=np.uint64)
    bits = np.tile(bits, draw(st.sampled_from([1, 1, 3, 90])))
    if dtype.kind == "b":
        values = bits % 2 == 1
    elif dtype.kind == "f" and dtype.itemsize < 8:
        with np.errstate(over="ignore", invalid="ignore"):
            values = bits.view(np.float64).astype(dtype)
    else:
        values = bits.astype(f"u{dtype.itemsize}").view(dtype)
    match draw(st.integers(0, 4)):
        case 1:
            values = np.repeat(values, 3)[::3]
        case 2:
            values = values[::-1]
        case 3:
            values = values.astype(dtype.newbyteorder())
        case 4:
            values.setflags(write=False)
    if draw(st.booleans()):
        return values, None
    return values, np.random.default_rng(draw(st.integers(0, 9))).random(values.size) < 0.8


@given(cells_of_any_type())
def test_the_compiled_way_gives_the_bits_of_numpy(
    cells: tuple[NDArray[Any], NDArray[np.bool_] | None],
) -> None:
    if COMPILED is not None:
        check_same(*cells)


@pytest.mark.parametrize("n", [4097, 150_000])
@pytest.mark.parametrize("shape", SHAPES)
def test_long_columns_too(shape: str, n: int) -> None:
    # Long enough for parts, three digits and all counters.
    if COMPILED is not None:
        check_same(np.random.default_rng(5).permutation(np.resize(SHAPES[shape], n)))


def check_same(values: NDArray[Any], valid: NDArray[np.bool_] | None = None) -> None:
    compiled, mixed, expected = (
        rank_by(way, values, valid) for way in ("compiled", "compiled but for the sort", "chosen")
    )
    assert compiled is not None
    assert mixed is not None
    assert expected is not None
    for got in (asdict(compiled), asdict(mixed)):
        for name, value in asdict(expected).items():
            np.testing.assert_array_equal(got[name], value, err_msg=name, strict=True)
            if isinstance(value, float):
                assert math.copysign(1, value) == math.copysign(1, got[name])


@pytest.mark.parametrize("way", ["compiled", "chosen", "argsort"])
@pytest.mark.parametrize(
    ("cells", "dtype"),
    [
        ([2**60, 2**60 + 1, 2**60, 2**60 + 3], "i8"),
        ([-(2**63), 2**63 - 1, 2**63 - 2, -(2**63) + 1], "i8"),
        ([2**64 - 1, 2**64 - 2, 0, 2**63], "u8"),
        ([127, -128, 3, 3], "i1"),
    ],
)
def test_whole_numbers_are_ranked_as_whole_numbers(cells: list[int], dtype: str, way: str) -> None:
    values = np.array(cells, dtype=dtype)
    got = rank_by(way, values)
    if got is None:
        return
    order = [sorted(cells).index(cell) + (cells.count(cell) + 1) / 2 for cell in cells]
    expected = (2 * np.array(order) - 1 - len(cells)) / (2 * len(cells))
    np.testing.assert_array_equal(got.scores, expected.astype(np.float32))
    assert (got.n_unique, got.top_share) == (len(set(cells)), max(map(cells.count, cells)) / 4)
    assert (got.minimum, got.maximum) == (float(min(cells)), float(max(cells)))
    mean = Fraction(sum(cells), 4)
    variance = sum((cell - mean) ** 2 for cell in cells) / 4
    assert got.variance == pytest.approx(float(variance), rel=1e-12)
    assert got.mean == pytest.approx(float(mean), rel=1e-15, abs=1)
    spread = np.quantile([cell - min(cells) for cell in cells], ordering.QUANTILES)
    assert got.normalised_variance == pytest.approx(float(variance) / np.ptp(spread) ** 2)


def test_cells_that_do_not_count_change_nothing() -> None:
    valid = np.array([True, False, True, True])
    for way in EVERY_WAY:
        got = rank_by(way, np.array([5, 9, 7, 5]), valid)
        if got is not None:
            assert got.scores.tolist() == pytest.approx([-1 / 6, 0, 1 / 3, -1 / 6])
            assert got.valid is not None
            assert got.valid.tolist() == valid.tolist()
            blank = rank_by("sorting", np.array([5.0, np.nan, 7.0, 5.0]))
            assert blank is not None
            assert got.rank_hash == blank.rank_hash


@pytest.mark.parametrize("dtype", ["c16", "U3", "M8[s]", "O", "g"])
def test_what_is_no_number_cannot_be_ranked(dtype: str) -> None:
    if np.dtype(dtype).itemsize == 8 and dtype == "g":
        pytest.skip("a long double is a double here")
    with pytest.raises(TypeError, match="cannot be ranked"):
        rank_column(np.zeros(3, dtype=dtype))


def test_the_compiled_way_refuses_arrays_that_do_not_fit() -> None:
    if COMPILED is None:
        return
    cells, present, scores = np.arange(5.0), np.ones(5, bool), np.empty(5, np.float32)
    valid, room = np.empty(5, bool), np.empty(26, np.uint64)
    good = [cells, present, scores, valid, room, 0.1, 0.9, None]
    COMPILED.rank(*good)
    bad: list[tuple[int, object, type[Exception]]] = [
        (0, np.zeros(5, ">f8"), ValueError),
        (0, np.zeros(5, "c16"), ValueError),
        (0, np.zeros(10)[::2], ValueError),
        (0, None, TypeError),
        (1, np.ones(4, bool), ValueError),
        (2, np.empty(4, np.float32), ValueError),
        (3, np.empty(6, bool), ValueError),
        (4, np.empty(25, np.uint64), ValueError),
        (5, -0.1, ValueError),
        (6, math.nan, ValueError),
    ]
    for place, value, error in bad:
        with pytest.raises((error, BufferError)):
            COMPILED.rank(*[value if i == place else good[i] for i in range(8)])
    with pytest.raises(ZeroDivisionError):
        COMPILED.rank(*good[:7], lambda count: 1 // (count - 5))
    scores.setflags(write=False)
    with pytest.raises((ValueError, BufferError)):
        COMPILED.rank(*good)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "names", "tests"),
    [
        ("_ranking", "compiled or long or whole_numbers or do_not_count", "test_kernels_ranks.py"),
        ("_basis", "basis", "test_kernels_measures.py"),
        ("_spectrum", "spectrum", "test_kernels_spectrum.py"),
    ],
)
def test_the_compiled_way_is_clean_under_sanitizers(
    tmp_path: Path, module: str, names: str, tests: str
) -> None:
    """The same comparisons in a process of its own, where the first wrong byte ends it."""
    if linker() is None:
        pytest.skip("there is no compiler")
    flags = ["-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    target = tmp_path / f"{module}.abi3.so"
    build_kernel(target, *flags)
    runtime = subprocess.run(
        [*linker()[:1], "-print-file-name=libasan.so"], capture_output=True, text=True, check=True
    ).stdout.strip()
    if not Path(runtime).is_absolute():
        pytest.skip("the compiler has no sanitizers")
    program = (
        "import importlib.util, sys, pytest\n"
        f"spec = importlib.util.spec_from_file_location('dpipe.kernels.{module}', sys.argv[1])\n"
        "sys.modules[spec.name] = module = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(module)\n"
        f"sys.exit(pytest.main(['-q', '-p', 'no:cacheprovider', '-k', '({names}) and not sanit',\n"
        f"    'tests/{tests}']))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(target)],
        env={
            **os.environ,
            "LD_PRELOAD": runtime,
            "ASAN_OPTIONS": "detect_leaks=0",
            "PYTHONMALLOC": "malloc",
            "HYPOTHESIS_PROFILE": "thorough",
        },
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


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
    for name in (
        "n_valid",
        "n_unique",
        "minimum",
        "maximum",
        "q025",
        "q975",
        "top_share",
        "mean",
        "variance",
    ):
        assert getattr(device, name) == getattr(host, name)
    assert device.rank_hash == host.rank_hash
