"""Numbers of more digits than float64 has: read as they are, ranked as they are, or said.

Covers: reading blocks of them against Python's whole numbers and decimals, a whole run and its
verification, what is said where rounding cannot be avoided.
"""

from __future__ import annotations

import decimal
import math
import tempfile
import unittest.mock
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr
from tables import exact_cells

import dpipe
from dpipe.model.events import Note
from dpipe.options import Options
from dpipe.table import open_table, read_block
from dpipe.table.exact import whole_cells
from dpipe.verify import verify

LARGE = 2**60
COERCED = Options(coerce_strings=True, min_valid=2)


def read_chunks(folder: Path, *chunks: pa.Array) -> tuple[list[Fraction | None], int]:
    """Cells of a column that lies in several files, as they were read; how many were rounded."""
    folder.mkdir(parents=True)
    for number, chunk in enumerate(chunks):
        pq.write_table(pa.table({"x": chunk}), folder / f"{number}.parquet", row_group_size=3)
    block = read_block(open_table([folder], options=COERCED), ["x"])
    return exact_cells(block, 0), int(block.n_rounded[0])


@pytest.mark.parametrize(
    ("cells", "kind"),
    [
        ([LARGE, LARGE + 1, None, -LARGE - 1, 7], pa.int64()),
        ([2**64 - 1, 2**64 - 2, None, 0], pa.uint64()),
        ([2**63 - 1, -(2**63), 2**53, 2**53 + 1], pa.int64()),
        ([Decimal(LARGE) / 1000, Decimal(LARGE + 1) / 1000, None], pa.decimal128(38, 3)),
        (
            [Decimal("-0.012345678901234567"), Decimal("0.012345678901234568")],
            pa.decimal128(38, 18),
        ),
        ([Decimal(2**64 - 1), Decimal(5), None], pa.decimal256(40, 0)),
        ([str(LARGE), f" {LARGE + 1} ", None, "NA", "-5", "+7"], pa.string()),
        ([str(2**64 - 1), str(2**64 - 2)], pa.large_string()),
        ([str(LARGE + 1), str(LARGE)] * 2, pa.dictionary(pa.int8(), pa.string())),
    ],
)
@pytest.mark.parametrize("head", [[], [1, 2], [None, None, None, None]])
def test_digits_are_kept(
    cells: list[Any], kind: pa.DataType, head: list[Any], tmp_path: Path
) -> None:
    plain = kind.value_type if pa.types.is_dictionary(kind) else kind
    if plain in (pa.string(), pa.large_string()):
        head = [None if cell is None else str(cell) for cell in head]
        numbers = [None if c in (None, "NA") else Fraction(c.strip()) for c in head + cells]
    else:
        numbers = [None if cell is None else Fraction(cell) for cell in head + cells]
    chunk = pa.array(head + cells, plain)
    chunk = chunk if plain == kind else chunk.dictionary_encode()
    assert read_chunks(tmp_path / "t", chunk) == (numbers, 0)


def chunk_of(kind: str, cells: list[int | None]) -> pa.Array:
    """Whole numbers as a column of some type."""
    match kind:
        case "text":
            return pa.array([None if cell is None else str(cell) for cell in cells], pa.string())
        case "decimal":
            whole = [None if cell is None else Decimal(cell).scaleb(-2) for cell in cells]
            return pa.array(whole, pa.decimal128(38, 2))
        case "double":
            return pa.array([None if cell is None else float(cell) for cell in cells], pa.float64())
        case _:
            return pa.array(cells, kind)


def number(kind: str, cell: int | None) -> Fraction | None:
    """What a cell of `chunk_of` holds."""
    if cell is None:
        return None
    return (
        Fraction(cell, 100)
        if kind == "decimal"
        else Fraction(float(cell) if kind == "double" else cell)
    )


CELLS = st.sampled_from([0, 1, 7, 2**53 - 1, 2**53, 2**53 + 1, LARGE, LARGE + 1, 2**63 - 1])
FILES = st.tuples(
    st.sampled_from(["int64", "uint64", "decimal", "double"]),
    st.lists(st.none() | CELLS, min_size=1, max_size=5),
)


def places(cells: list[Fraction | None]) -> list[int | None]:
    """The place of each cell among the distinct ones."""
    order = {cell: k for k, cell in enumerate(sorted({c for c in cells if c is not None}))}
    return [None if cell is None else order[cell] for cell in cells]


@given(st.lists(FILES, min_size=1, max_size=3))
def test_files_of_many_types_are_exact_or_counted_in_any_order(
    files: list[tuple[str, list[int | None]]],
) -> None:
    numbers = [number(kind, cell) for kind, cells in files for cell in cells]
    with tempfile.TemporaryDirectory() as name:
        read, n_rounded = read_chunks(Path(name, "a"), *(chunk_of(*file) for file in files))
        turned, n_turned = read_chunks(Path(name, "b"), *(chunk_of(*file) for file in files[::-1]))
    floats = [None if cell is None else Fraction(float(cell)) for cell in numbers]
    assert read == floats or (n_rounded == 0 and read == numbers)
    if n_rounded == 0:
        assert places(read) == places(numbers)
    assert (n_turned > 0) == (n_rounded > 0)
    assert sorted(map(str, turned)) == sorted(map(str, read))
    if len({kind for kind, _ in files}) == 1:
        assert n_rounded == 0


@pytest.mark.parametrize("scale", [18, 28])
def test_decimals_of_few_digits_are_exact_whatever_their_scale(scale: int, tmp_path: Path) -> None:
    cells = [Decimal("1234.5"), Decimal("-0.001"), None, Decimal("123456789.125")]
    read, n_rounded = read_chunks(tmp_path / "t", pa.array(cells, pa.decimal128(38, scale)))
    assert n_rounded == 0
    assert read == [None if cell is None else Fraction(float(cell)) for cell in cells]


def test_a_fraction_makes_large_neighbours_inexact(tmp_path: Path) -> None:
    whole, real = pa.array([LARGE + 1, 3]), pa.array([0.5, 2.0])
    for name, chunks in {"a": (whole, real), "b": (real, whole)}.items():
        cells, n_rounded = read_chunks(tmp_path / name, *chunks)
        assert n_rounded == 1
        assert Fraction(float(LARGE + 1)) in cells


def test_a_whole_number_is_exact_beside_decimals_of_many_digits_in_either_order(
    tmp_path: Path,
) -> None:
    large = 2**53 - 1
    whole, cents = pa.array([large]), pa.array([Decimal(large) / 100], pa.decimal128(38, 2))
    for name, chunks in {"a": (whole, cents), "b": (cents, whole)}.items():
        cells, n_rounded = read_chunks(tmp_path / name, *chunks)
        assert n_rounded == 0
        assert set(cells) == {Fraction(large), Fraction(large, 100)}


def test_a_real_number_beyond_any_whole_one_is_read_beside_decimals(tmp_path: Path) -> None:
    cents = Decimal(LARGE + 1) / 10**9
    chunks = pa.array([1.7e308, -3.0]), pa.array([cents], pa.decimal128(38, 9))
    cells, n_rounded = read_chunks(tmp_path / "t", *chunks)
    assert cells == [Fraction(1.7e308), Fraction(-3), Fraction(float(cents))]
    assert n_rounded == 1


def test_a_missing_column_stays_missing_beside_large_numbers(tmp_path: Path) -> None:
    for name, columns in {"0": {"x": [LARGE + 1]}, "1": {"y": [5]}, "2": {"x": [LARGE]}}.items():
        pq.write_table(pa.table(columns), tmp_path / f"{name}.parquet")
    block = read_block(open_table([tmp_path], options=COERCED), ["x", "y"])
    assert exact_cells(block, 0) == [LARGE + 1, None, LARGE]
    assert block.n_null.tolist() == [1, 2]


@pytest.mark.parametrize(
    ("text", "is_said"),
    [
        ("0.1", False),
        ("0.30000000000000004", False),
        ("0.00012345678901234568", False),
        ("123456789.0123456789", True),
        ("0.1234567890123456789", True),
        ("1.50000000000000000000", False),
        ("120000000000000000000", False),
        ("123456789012345678901", True),
        ("1e300", False),
    ],
)
def test_text_of_more_digits_than_a_float_is_said(text: str, is_said: bool, tmp_path: Path) -> None:
    _, n_rounded = read_chunks(tmp_path / "t", pa.array([text, "2.5"]))
    assert (n_rounded > 0) == is_said


def test_cells_that_are_no_whole_numbers_of_64_bits_are_refused() -> None:
    for chunk in (
        pa.array([0.5]),
        pa.array(["1.5"]),
        pa.array([str(2**64)]),
        pa.array(["-1", str(2**64 - 1)]),
        pa.array([Decimal(2**64)], pa.decimal128(38, 0)),
        pa.array([Decimal("0.5")], pa.decimal128(38, 1)),
        pa.array([2.0**63]),
    ):
        assert whole_cells(chunk, 0) is None
    cells = whole_cells(pa.array([3.0, math.nan, None]), 1)
    assert cells is not None
    assert cells[0].tolist() == [30, 0, 0]


# A run


def large_table() -> dict[str, pa.Array]:
    """Columns that differ in digits that float64 does not have."""
    rng = np.random.default_rng(0)
    turn = 2000 * (np.arange(300) % 2)
    x, y = (LARGE + rng.integers(0, 100, 300) + turn for _ in range(2))
    flag = LARGE + rng.integers(0, 2, 300)
    cents = [Decimal(int(cell)) / 100 for cell in LARGE + rng.integers(0, 300, 300)]
    large = 2**64 - 1 - rng.integers(0, 300, 300).astype(np.uint64)
    return {
        "x": pa.array(x),
        "y": pa.array(y),
        "flag": pa.array(flag),
        "same as x": pa.array(x * 4 - 2**62),
        "uint64": pa.array(large),
        "cents": pa.array(cents, pa.decimal128(38, 2)),
        "text": pa.array([str(int(cell)) for cell in LARGE + rng.integers(0, 300, 300)]),
        "holes": pa.array(y + rng.integers(0, 9000, 300), mask=rng.random(300) < 0.2),
    }


def test_a_run_ranks_whole_numbers_as_whole_numbers(tmp_path: Path, client: Any) -> None:
    columns = large_table()
    pq.write_table(pa.table(columns), tmp_path / "a.parquet", row_group_size=100)
    result = dpipe.select(
        tmp_path / "a.parquet",
        client=client,
        output_dir=tmp_path / "out",
        coerce_strings=True,
        passes=(1, 2),
        spearman_threshold=0.7,
        restart="never",
    )
    rows = {row.column: row for row in result.decisions}
    for name, cells in columns.items():
        assert rows[name].n_unique == len(set(cells.drop_null().to_pylist())), name
    pair = {rows["x"].representative, rows["same as x"].representative} - {None}
    assert pair & {"x", "same as x"}
    assert "monotone duplicate" in {rows["x"].reason, rows["same as x"].reason}
    rho = spearmanr(*(columns[name].to_numpy() - LARGE for name in "xy")).statistic
    found = [row for row in result.decisions if row.measure == "spearman" and row.pass_number == 2]
    assert [row.value for row in found if {"y"} & {row.column, row.representative}] == [
        pytest.approx(rho, abs=1e-6)
    ]
    assert rows["flag"].decision == "kept"
    assert verify(tmp_path / "out").n_columns == len(columns)


def test_what_was_rounded_is_said_and_never_called_constant_or_duplicate(
    tmp_path: Path, client: Any
) -> None:
    tail = [Decimal(1) + Decimal(k % 3).scaleb(-27) for k in range(60)]
    table = {
        "a": pa.array(tail, pa.decimal128(38, 27)),
        "b": pa.array(tail[::-1], pa.decimal128(38, 27)),
        "c": pa.array([2 * cell + k % 2 for k, cell in enumerate(tail)], pa.decimal128(38, 27)),
        "d": pa.array([3 * cell + k % 2 for k, cell in enumerate(tail)], pa.decimal128(38, 27)),
    }
    pq.write_table(pa.table(table), tmp_path / "0.parquet")
    notes: list[str] = []

    result = dpipe.select(
        tmp_path,
        client=client,
        output_dir=tmp_path / "out",
        passes=(1,),
        min_valid=2,
        restart="never",
        observers=[lambda event: notes.append(event.text) if isinstance(event, Note) else None],
    )
    rows = {row.column: row for row in result.decisions}
    assert [rows[name].n_unique for name in "abcd"] == [1, 1, 2, 2]
    assert {row.decision for row in rows.values()} == {"kept"}
    assert any("'a', 'b', 'c' and 'd'" in note and "rounded" in note for note in notes)
    assert verify(tmp_path / "out").n_selected == 4


def test_decimals_are_described_in_their_own_unit(tmp_path: Path, client: Any) -> None:
    with decimal.localcontext() as context:
        context.prec = 40
        cells = [Decimal(LARGE + k) / 10**6 for k in range(40)]
    pq.write_table(pa.table({"x": pa.array(cells, pa.decimal128(38, 6))}), tmp_path / "a.parquet")
    result = dpipe.select(
        tmp_path / "a.parquet", client=client, output_dir=tmp_path / "out", passes=(1,), min_valid=2
    )
    assert [row.n_unique for row in result.decisions] == [40]


@given(st.lists(st.sampled_from(["plain", "large", "lacks", "other type", "missing"]), min_size=1))
def test_small_files_that_wait_for_each_other_are_read_as_one_by_one(files: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for number, what in enumerate(files):
            a = [number, 2**60 + number if what == "large" else 1, None if what == "missing" else 2]
            dtype = pa.int32() if what == "other type" else pa.int64()
            columns = {"a": pa.array(a, dtype), "b": pa.array([0.5, math.nan, number])}
            if what == "lacks":
                del columns["a"]
            pq.write_table(pa.table(columns), f"{folder}/{number:02d}.parquet")
        with open_table([folder], options=Options()) as table:
            names = list(table.features)
            blocks = [read_block(table, names)]
            for cells in (0, 7):
                with unittest.mock.patch("dpipe.table.read._MOST_WAITING", cells):
                    blocks.append(read_block(table, names))
    for other in blocks[1:]:
        for count in ("n_null", "n_nan", "n_inf", "n_rounded"):
            np.testing.assert_array_equal(getattr(blocks[0], count), getattr(other, count))
        for place in range(len(names)):
            assert exact_cells(blocks[0], place) == exact_cells(other, place)
            assert blocks[0].scale(place) == other.scale(place)
