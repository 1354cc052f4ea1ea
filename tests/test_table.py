"""Tests of `dpipe.table`: which schema, which roles, what is said about dirt, what is recorded.

Covers: the dirt of `dirty` and real tables, against Python's numbers and pandas.
Does not cover: which files a table has (`test_table_sources`), damaged ones (`test_table_damaged`),
single values and types (`test_table_values`), draws of rows (`test_table_draws`).
"""

from __future__ import annotations

import gc
import math
from pathlib import Path

import dirty
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from dirty import Dirt, write
from pyarrow.parquet.core import ParquetReader
from reading import PLAIN, SKIP, refusal
from tables import exact_cells

from dpipe.errors import InputError
from dpipe.model.records import Role
from dpipe.options import Options
from dpipe.table import Table, open_table, read_block

# Dirt


def by_name(case: Dirt) -> str:
    return case.name


@pytest.mark.parametrize(
    "case", [*dirty.drifts(), *dirty.odd_columns(), *dirty.coerced_columns()], ids=by_name
)
def test_dirt_is_read_exactly_or_named(case: Dirt, tmp_path: Path) -> None:
    table = open_table([case.write(tmp_path / "t")], options=case.options)
    assert [column.name for column in table.columns] == case.names()
    roles = {c.name: c.role for c in table.columns if c.role is not Role.FEATURE}
    assert roles == case.others
    block = read_block(table, table.features)
    for place, name in enumerate(case.features()):
        cells = case.cells(name)
        read = [math.nan if cell is None else float(cell) for cell in exact_cells(block, place)]
        np.testing.assert_array_equal(read, [dirty.as_number(c) for c in cells])
        counted = (block.n_null[place], block.n_nan[place], block.n_inf[place])
        assert counted == dirty.counts(cells), name
    for words in case.notes:
        assert any(all(word in note for word in words) for note in table.notes), table.notes
    if not case.notes and len(case.files) == 1:
        assert table.notes == ()


def test_agreement_with_pandas(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    frames = []
    for part in range(3):
        frame = pd.DataFrame(rng.normal(size=(37, 6)), columns=list("abcdef"))
        frame["n"] = rng.integers(0, 5, 37)
        frame["flag"] = rng.random(37) < 0.5
        frame = frame.astype({"n": "Int8", "flag": "boolean"}).mask(rng.random(frame.shape) < 0.2)
        frame.to_parquet(tmp_path / f"{part}.parquet", row_group_size=10)
        frames.append(frame)
    expected = pd.concat(frames).astype("Float64").to_numpy(dtype=float, na_value=np.nan)
    table = open_table([tmp_path], options=PLAIN)
    np.testing.assert_array_equal(read_block(table, table.features).values, expected.T)


def test_odd_column_names(tmp_path: Path) -> None:
    case = dirty.odd_names()
    table = open_table([case.write(tmp_path / "t")], options=PLAIN)
    assert table.features == dirty.ODD_NAMES
    for name in dirty.ODD_NAMES:  # alone, so that a name is no prefix of another
        assert read_block(table, [name]).values[0].tolist() == case.cells(name)


def test_column_order_is_that_of_first_appearance(tmp_path: Path) -> None:
    write(tmp_path / "b.parquet", z=[1], y=[1])
    write(tmp_path / "a.parquet", y=[1], x=[1])
    for sources in ([tmp_path], [tmp_path / "b.parquet", tmp_path / "a.parquet"]):
        assert open_table(sources, options=PLAIN).features == ("y", "x", "z")


def test_duplicate_names_name_file_and_column(tmp_path: Path) -> None:
    twice = pa.table([pa.array([1.0]), pa.array([2.0])], names=["x", "x"])
    pq.write_table(twice, tmp_path / "twice.parquet")
    write(tmp_path / "good.parquet", x=[1.0])
    message = refusal([tmp_path])
    assert "twice.parquet" in message
    assert "'x'" in message
    assert open_table([tmp_path], options=SKIP).n_rows == 1


def test_pandas_index_is_an_id(tmp_path: Path) -> None:
    frame = pd.DataFrame({"x": [1.0, 2.0]}, index=[5, 9])
    frame.to_parquet(tmp_path / "plain.parquet")
    frame.rename_axis("mol").to_parquet(tmp_path / "named.parquet")
    for file, name in (("plain", "__index_level_0__"), ("named", "mol")):
        source = [tmp_path / f"{file}.parquet"]
        table = open_table(source, options=PLAIN)
        assert table.features == ("x",)
        assert table.column(name).role is Role.ID
        assert any("index" in note and name in note for note in table.notes)
        assert open_table(source, options=Options(keep=(name,))).features == ("x", name)


def test_many_columns_share_one_note(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", **{f"c{i}": [1.5] for i in range(300)})
    write(tmp_path / "b.parquet", **{f"c{i}": [1] for i in range(300)})
    write(tmp_path / "c.parquet", c0=[1.5])
    notes = open_table([tmp_path], options=PLAIN).notes
    assert len(notes) == 3
    assert all(len(note) < 500 for note in notes)


def test_footers_are_not_kept(tmp_path: Path) -> None:
    for part in range(5):
        write(tmp_path / f"{part}.parquet", x=[1.0])
    gc.collect()
    gc.disable()  # what only the collector would free counts as kept
    try:
        table = open_table([tmp_path], options=PLAIN)
        read_block(table, ["x"])
        kept = {type(each).__name__ for each in gc.get_objects()}
    finally:
        gc.enable()
    assert not {"FileMetaData", "ParquetSchema", "RowGroupMetaData"} & kept


def test_what_a_file_lacks(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", x=[1.0], y=[1.0])
    write(tmp_path / "b.parquet", y=[2.0], z=[2.0])
    table = open_table([tmp_path], options=PLAIN)
    assert [table.lacks(file) for file in table.files] == [("z",), ("x",)]


# Options and roles


def test_roles_from_options(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", id=[1], y=[2.0], x=[3.0], s=["a"])
    options = Options(id_columns=("id",), exclude=("y",), prefer=("x", "nowhere"), keep=("s",))
    table = open_table([path], options=options)
    roles = [column.role for column in table.columns]
    assert roles == [Role.ID, Role.EXCLUDED, Role.FEATURE, Role.NOT_NUMERIC]
    assert any("--prefer" in note and "'nowhere'" in note for note in table.notes)
    assert any("--keep" in note and "'s'" in note for note in table.notes)


@pytest.mark.parametrize("option", ["id_columns", "exclude", "keep"])
def test_unknown_columns_in_options(tmp_path: Path, option: str) -> None:
    path = write(tmp_path / "a.parquet", MolWt=[1.0], TPSA=[1.0])
    message = refusal([path], Options(**{option: ("molwt",)}))
    assert f"--{option.replace('_', '-')} names 'molwt'" in message
    assert "did you mean 'MolWt'?" in message


def test_a_column_has_one_role(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", x=[1.0], id=[1])
    options = Options(id_columns=("id",), exclude=("id",))
    assert "both --id-columns and --exclude" in refusal([path], options)


# The record


def test_record_survives_json(tmp_path: Path) -> None:
    case = next(each for each in dirty.drifts() if each.name.startswith("nested"))
    folder = case.write(tmp_path / "t")
    table = open_table([folder], options=PLAIN, storage_options={"key": "topsecret"})
    loaded = Table.from_json(table.to_json())
    assert loaded == table
    assert loaded.fingerprint == table.fingerprint
    np.testing.assert_array_equal(
        read_block(loaded, ["x", "y"]).values, read_block(table, ["x", "y"]).values
    )
    assert dict(table.storage_options) == {"key": "topsecret"}
    assert dict(loaded.storage_options) == {}
    assert "topsecret" not in table.to_json()
    assert "topsecret" not in repr(table)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"format": "dpipe-table", "version": 99}'])
def test_records_of_something_else(content: str) -> None:
    with pytest.raises(InputError, match="record of this version"):
        Table.from_json(content)


def test_fingerprint_depends_on_the_files_alone(tmp_path: Path) -> None:
    path = write(tmp_path / "a" / "x.parquet", x=[1.0], y=[2.0])
    first = open_table([path], options=PLAIN).fingerprint
    assert open_table([tmp_path / "a"], options=Options(exclude=("y",))).fingerprint == first
    (tmp_path / "a").rename(tmp_path / "b")
    assert open_table([tmp_path / "b"], options=PLAIN).fingerprint == first
    write(tmp_path / "b" / "x.parquet", x=[1.5], y=[2.0])
    assert open_table([tmp_path / "b"], options=PLAIN).fingerprint != first


@pytest.mark.parametrize("change", ["rewrite", "remove"])
def test_changed_files_are_found(tmp_path: Path, change: str) -> None:
    path = write(tmp_path / "a.parquet", x=[1.0, 2.0])
    write(tmp_path / "b.parquet", x=[1.0])
    table = open_table([tmp_path], options=PLAIN)
    if change == "rewrite":
        write(path, x=[2.0, 1.5])
    else:
        path.unlink()
    # Values are never taken from a file with another footer.
    with pytest.raises(InputError, match=r"a\.parquet"):
        read_block(table, ["x"])


# Real tables


@pytest.mark.parametrize("name", ["hiv_muv_rdkit", "physchem_mordred_rdkit"])
def test_real_tables(name: str, request: pytest.FixtureRequest) -> None:
    folder = request.config.rootpath.parent / "shared" / "data" / name
    if not folder.is_dir():
        pytest.skip(f"the real table {name} is not beside the repository")
    table = open_table([folder], options=Options(id_columns=("id",)))
    assert table.notes == ()
    names = table.features[:: len(table.features) // 12]
    block = read_block(table, names)
    frame = pd.concat(pd.read_parquet(file.path, columns=list(names)) for file in table.files)
    expected = frame.to_numpy(dtype=float)
    np.testing.assert_array_equal(block.values, np.where(np.isfinite(expected), expected, np.nan).T)
    assert block.n_inf.tolist() == np.isinf(expected).sum(axis=0).tolist()
    missing = (block.n_null + block.n_nan).tolist()
    assert missing == np.isnan(expected).sum(axis=0).tolist()


@pytest.mark.slow
def test_very_wide_table(tmp_path: Path) -> None:
    names = [f"column {i}" for i in range(20_000)]
    pq.write_table(pa.table({name: [1.0, 2.0] for name in names}), tmp_path / "a.parquet")
    table = open_table([tmp_path], options=PLAIN)
    assert len(table.features) == 20_000
    assert read_block(table, names[-3:]).values.tolist() == [[1.0, 2.0]] * 3


@pytest.mark.slow
def test_many_tiny_row_groups(tmp_path: Path) -> None:
    pq.write_table(pa.table({"x": np.arange(30_000.0)}), tmp_path / "a.parquet", row_group_size=3)
    table = open_table([tmp_path], options=PLAIN)
    assert len(table.files[0].row_groups) == 10_000
    np.testing.assert_array_equal(read_block(table, ["x"]).values[0], np.arange(30_000.0))


def test_the_reader_below_parquet_file_is_there() -> None:
    """`ParquetReader` is not in pyarrow's manual: notice early when it goes or changes."""
    buffer = pa.BufferOutputStream()
    pq.write_table(pa.table({"x": [1.0], "x.1": [2.0]}), buffer)
    reader = ParquetReader()
    reader.open(pa.BufferReader(buffer.getvalue()), page_checksum_verification=True)
    assert reader.read_row_groups([0], [0], use_threads=False).column_names == ["x"]
    assert [b.num_rows for b in reader.iter_batches(1, [0], [1], use_threads=False)] == [1]
