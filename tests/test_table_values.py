"""Values and their types, as a block holds them and as copies of columns have them.

Covers: conversion to float64 against NumPy, Python and decimals, blocks of any grouping and rows,
which types widen to which.
Does not cover: numbers that float64 cannot hold (`test_table_exact`).
"""

from __future__ import annotations

import itertools
import math
from decimal import Decimal
from pathlib import Path

import dirty
import hypothesis.strategies as st
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from dirty import write
from hypothesis import given
from reading import PLAIN

from dpipe.errors import InputError
from dpipe.options import Options
from dpipe.table import decode as decode_module
from dpipe.table import open_table, read_block
from dpipe.table.convert import fill_float64, parse_number, text_as_float64
from dpipe.table.schema import Kind, kind_of, widen, widen_types

# Values


@pytest.mark.parametrize("size", [1, 7, 64, 1000])
@pytest.mark.parametrize("offset", [0, 1, 8, 13])
def test_conversion_of_slices(size: int, offset: int) -> None:
    rng = np.random.default_rng(size + offset)
    total = offset + size
    arrays = {
        "double": rng.normal(size=total),
        "float": rng.normal(size=total).astype("float32"),
        "int": rng.integers(-9, 9, total),
        "uint8": rng.integers(0, 255, total).astype("uint8"),
        "bool": rng.random(total) < 0.5,
    }
    for name, values in arrays.items():
        for mask in (None, rng.random(total) < 0.3):
            chunk = pa.array(values, mask=mask).slice(offset)
            out = np.empty(size)
            counts = fill_float64(out, chunk)
            expected = values[offset:].astype(float)
            if mask is not None:
                expected[mask[offset:]] = np.nan
            np.testing.assert_array_equal(out, expected, err_msg=name)
            assert counts == (np.isnan(expected).sum(), 0, 0)


def test_null_cells_get_the_one_nan() -> None:
    out = np.empty(3)
    fill_float64(out, pa.array([None, 1.0, None]))
    assert out.view(np.int64)[0] == np.array(np.nan).view(np.int64)


@given(st.lists(st.none() | st.floats() | st.integers(-(2**53), 2**53).map(float)))
def test_conversion_law(cells: list[float | None]) -> None:
    out = np.empty(len(cells))
    n_null, n_nan, n_inf = fill_float64(out, pa.array(cells, pa.float64()))
    np.testing.assert_array_equal(out, np.array([dirty.as_number(c) for c in cells], dtype=float))
    assert (n_null, n_nan, n_inf) == dirty.counts(cells)


@given(st.lists(st.decimals(allow_nan=False, allow_infinity=False, places=7), min_size=1))
def test_decimals_are_rounded_exactly(cells: list[Decimal]) -> None:
    cells = [cell for cell in cells if abs(cell) < 10**20]
    out = np.empty(len(cells))
    fill_float64(out, pa.array(cells, pa.decimal128(30, 7)))
    assert out.tolist() == [float(cell) for cell in cells]


@given(st.text(alphabet="0123456789.eE+-_ nainfINFx,", max_size=8))
def test_text_numbers_agree_with_python(text: str) -> None:
    try:
        expected = None if "_" in text else float(text)
    except ValueError:
        expected = None
    read = text_as_float64(pa.array([text, "x"]))[0].as_py()
    for number in (parse_number(text), read):
        assert (number is None) == (expected is None)
        assert number is None or number == expected or math.isnan(number)


def test_block_layout(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", a=[1, 2], b=[3, 4], c=[5, 6])
    table = open_table([path], options=PLAIN)
    block = read_block(table, ["c", "a"])
    assert block.values.flags.c_contiguous
    assert block.values.dtype == np.float64
    assert block.values.tolist() == [[5, 6], [1, 2]]
    assert read_block(table, []).values.shape == (0, 2)


def test_names_that_cannot_be_read(tmp_path: Path) -> None:
    table = open_table([write(tmp_path / "a.parquet", x=[1], s=["1"])], options=PLAIN)
    with pytest.raises(InputError, match="column 's' is string, which is not numeric"):
        read_block(table, ["s"])
    with pytest.raises(InputError, match=r"no column 'X' \(did you mean 'x'\?\)"):
        read_block(table, ["X"])
    with pytest.raises(ValueError, match="twice"):
        read_block(table, ["x", "x"])
    ids = open_table([table.files[0].path], options=Options(id_columns=("s",)))
    with pytest.raises(InputError, match=r"'s' is string in .*a\.parquet"):
        read_block(ids, ["s"])


@pytest.mark.parametrize("merged", [1, 5, 1000])
@pytest.mark.parametrize("cells", [1, 7, 1000])
def test_any_grouping_reads_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, merged: int, cells: int
) -> None:
    monkeypatch.setattr(decode_module, "_MERGED_ROWS", merged)
    monkeypatch.setattr(decode_module, "_CELLS", cells)
    rng = np.random.default_rng(1)
    values = rng.normal(size=(5, 40))
    for part, columns in enumerate(np.array_split(values, 3, axis=1)):
        write(tmp_path / f"{part}.parquet", **{f"c{i}": row for i, row in enumerate(columns)})
    table = open_table([tmp_path], options=PLAIN)
    names = ["c3", "c0", "c4", "c1"]
    np.testing.assert_array_equal(read_block(table, names).values, values[[3, 0, 4, 1]])
    for count in (0, 1, 11, 39, 40):
        rows = np.sort(rng.choice(40, count, replace=False))
        block = read_block(table, names, rows)
        np.testing.assert_array_equal(block.values, values[[3, 0, 4, 1]][:, rows])


def test_row_groups_without_a_chosen_row_are_not_decoded(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", x=np.arange(200_000.0))
    pq.write_table(pa.table({"x": np.arange(200_000.0)}), path, row_group_size=100_000)
    dirty.damage_page(path, column=0, group=1)
    table = open_table([path], options=PLAIN)
    assert read_block(table, ["x"], np.array([5, 99_999])).values.tolist() == [[5.0, 99_999.0]]


@pytest.mark.parametrize("rows", [[3, 1], [1, 1], [-1], [4]])
def test_rows_must_increase_within_the_table(tmp_path: Path, rows: list[int]) -> None:
    table = open_table([write(tmp_path / "a.parquet", x=[1, 2, 3, 4])], options=PLAIN)
    with pytest.raises(ValueError, match="increase strictly"):
        read_block(table, ["x"], np.array(rows))


def test_memory_is_the_result_and_little_more(tmp_path: Path) -> None:
    n, p = 100_000, 60
    rng = np.random.default_rng(0)
    table = pa.table({f"c{i}": rng.normal(size=n) for i in range(p)})
    pq.write_table(table, tmp_path / "a.parquet", compression="none", use_dictionary=False)
    opened = open_table([tmp_path], options=PLAIN)
    pool = pa.default_memory_pool()
    before, peak = pool.bytes_allocated(), 0
    with decode_module.decoder(opened.files[0], opened.layouts[0]) as source:
        for part in source.parts(opened.features):
            peak = max(peak, pool.bytes_allocated() - before)
            del part
    assert peak < 2 * 8 * decode_module._CELLS < n * p * 8


# Types


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_widening_does_not_depend_on_order(count: int) -> None:
    for kinds in itertools.product(Kind, repeat=count):
        results = {widen(order) for order in itertools.permutations(kinds)}
        assert len(results) == 1
        assert results == {widen(set(kinds))} == {widen([*kinds, Kind.NULL])}


def test_what_meets_and_what_does_not() -> None:
    numbers = [Kind.BOOL, Kind.INT, Kind.FLOAT, Kind.DECIMAL]
    for first, second in itertools.combinations(Kind, 2):
        met = widen([first, second])
        if Kind.NULL in (first, second):
            assert met in (first, second)
        else:
            assert (met is not None) == (first in numbers and second in numbers)


FLAT = [
    *(pa.int8(), pa.int64(), pa.uint8(), pa.uint32(), pa.uint64(), pa.float16(), pa.float64()),
    *(
        pa.bool_(),
        pa.null(),
        pa.decimal128(9, 2),
        pa.string(),
        pa.dictionary(pa.int8(), pa.int16()),
    ),
]


@given(st.lists(st.sampled_from(FLAT), min_size=1, max_size=4))
def test_types_widen_to_the_kind_of_all(types: list[pa.DataType]) -> None:
    unified = widen_types(types)
    kinds = {kind_of(each) for each in types}
    if Kind.TEXT in kinds:
        assert kind_of(unified) is Kind.TEXT
    else:
        expected = widen(kinds)
        assert kind_of(unified) in (expected, Kind.FLOAT)


@pytest.mark.parametrize(
    ("types", "unified"),
    [
        ([pa.int8(), pa.bool_()], pa.int8()),
        ([pa.int8(), pa.uint8()], pa.int16()),
        ([pa.uint8(), pa.uint32()], pa.uint32()),
        ([pa.int8(), pa.uint64()], pa.float64()),
        ([pa.float32(), pa.float16()], pa.float64()),
        ([pa.float32(), pa.null(), pa.float32()], pa.float32()),
        ([pa.string(), pa.dictionary(pa.int8(), pa.string())], pa.string()),
        ([pa.int8(), pa.string()], pa.large_string()),
        ([pa.timestamp("s"), pa.timestamp("ns")], pa.timestamp("ns")),
        ([pa.date32(), pa.string()], None),
        ([pa.list_(pa.int8()), pa.float64()], None),
        ([], pa.null()),
    ],
)
def test_types_of_copies(types: list[pa.DataType], unified: pa.DataType | None) -> None:
    assert widen_types(types) == unified
    assert widen_types(reversed(types)) == unified
