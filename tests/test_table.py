"""Tests of `dpipe.table`: which files, which schema, which values, and what is said about dirt."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import errno
import gc
import itertools
import math
import os
import random
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import dirty
import hypothesis.strategies as st
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from dirty import Dirt, write
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import given
from pyarrow.parquet.core import ParquetReader
from tables import exact_cells

from dpipe.errors import DpipeError, InputError, ResourceError
from dpipe.model.records import Role
from dpipe.options import Options
from dpipe.table import (
    Table,
    TableFile,
    draw_rows,
    open_table,
    read_block,
)
from dpipe.table import decode as decode_module
from dpipe.table import files as files_module
from dpipe.table.convert import fill_float64, parse_number, text_as_float64
from dpipe.table.schema import Kind, kind_of, widen, widen_types

PLAIN = Options()
SKIP = Options(on_bad_file="skip")


def by_name(case: Dirt) -> str:
    return case.name


def refusal(sources: Any, options: Options = PLAIN) -> str:
    """The one sentence with which a table is refused."""
    with pytest.raises(InputError) as caught:
        open_table(sources, options=options)
    message = str(caught.value)
    assert message.endswith(".")
    assert "\n" not in message
    return message


# Dirt


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


# Sources


@pytest.mark.parametrize("name", dirty.ODD_PATHS)
def test_odd_file_names(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, x=[1.0])
    write(tmp_path / "br.parquet" / "unread", x=[1.0])
    for source in (path, str(path), f"file://{path}"):
        table = open_table([source], options=PLAIN)
        assert [file.path for file in table.files] == [str(path)]
        assert read_block(table, ["x"]).values.tolist() == [[1.0]]


@pytest.mark.parametrize("name", dirty.ODD_PATHS)
def test_odd_folder_names(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    paths = sorted(str(write(folder / inner, x=[1.0])) for inner in dirty.ODD_PATHS)
    for source in (folder, f"{folder}/", f"file://{folder}", f"{folder}/*"):
        table = open_table([source], options=PLAIN)
        assert [file.path for file in table.files] == paths


def test_folders_are_searched_recursively(tmp_path: Path) -> None:
    for name in ("b/2.parquet", "a.parquet", "b/c/1.parq"):
        write(tmp_path / name, x=[1.0])
    write(tmp_path / "b/_metadata.parquet", y=[1.0])
    write(tmp_path / ".cache/x.parquet", y=[1.0])
    write(tmp_path / "_temporary/x.parquet", y=[1.0])
    (tmp_path / "README.md").write_text("no data")
    table = open_table([tmp_path], options=PLAIN)
    assert [os.path.relpath(file.path, tmp_path) for file in table.files] == [
        "a.parquet",
        "b/2.parquet",
        "b/c/1.parq",
    ]
    (note,) = table.notes
    for name in ("_metadata.parquet", ".cache/x.parquet", "_temporary/x.parquet"):
        assert name in note


def test_globs_and_repeated_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a1.parquet", "a2.parquet", "b/a3.parquet"):
        write(tmp_path / name, x=[1.0])
    everything = open_table([tmp_path], options=PLAIN)
    for sources in (
        [f"{tmp_path}/**/*.parquet"],
        [f"{tmp_path}/a?.parquet", f"{tmp_path}/b"],
        [f"{tmp_path}/*"],
        [tmp_path, tmp_path / "a1.parquet", str(tmp_path)],
    ):
        assert open_table(sources, options=PLAIN) == everything
    monkeypatch.chdir(tmp_path)
    assert open_table(["b", "a[12].parquet"], options=PLAIN) == everything


def test_links_are_followed_once(tmp_path: Path) -> None:
    path = write(tmp_path / "data" / "a.parquet", x=[1.0])
    (tmp_path / "data" / "latest.parquet").symlink_to(path)
    (tmp_path / "data" / "loop").symlink_to(tmp_path / "data")
    (tmp_path / "elsewhere").mkdir()
    write(tmp_path / "elsewhere" / "b.parquet", x=[2.0])
    (tmp_path / "data" / "more").symlink_to(tmp_path / "elsewhere")
    table = open_table([tmp_path / "data"], options=PLAIN)
    assert read_block(table, ["x"]).values.tolist() == [[1.0, 2.0]]
    assert any("latest.parquet" in note for note in table.notes)


def test_partition_folders_are_noted(tmp_path: Path) -> None:
    write(tmp_path / "source=HIV" / "a.parquet", x=[1.0])
    assert any("source=HIV" in note for note in open_table([tmp_path], options=PLAIN).notes)


def test_sources_that_mean_nothing(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    write(tmp_path / "data.parquet", x=[1.0])
    assert "no file matches" in refusal([tmp_path / "x*.parquet"])
    assert "holds no file of a known format" in refusal([tmp_path / "empty"])
    assert "did you mean 'data.parquet'?" in refusal([tmp_path / "dat.parquet"])
    assert "no input was given" in refusal([])


def test_urls(memory: MemoryFileSystem) -> None:
    for name, number in (("a", 1.0), ("b", 2.0)):
        with memory.open(f"/data/{name}.parquet", "wb") as sink:
            pq.write_table(pa.table({"x": [number, None]}), sink)
    for source in ("memory://data", "memory:///data/*.parquet", "memory://data/?.parquet"):
        table = open_table([source], options=PLAIN)
        assert [file.path for file in table.files] == [
            "memory:///data/a.parquet",
            "memory:///data/b.parquet",
        ]
        assert read_block(table, ["x"]).values.tolist()[0] == pytest.approx(
            [1.0, math.nan, 2.0, math.nan], nan_ok=True
        )
    assert "does not exist" in refusal(["memory://nowhere"])
    assert "no file matches" in refusal(["memory://data/*.csv"])
    assert "cannot be reached" in refusal(["nosuch://data"])
    assert "not supported" in refusal(["simplecache::memory://data"])


def test_remote_and_local_read_the_same(memory: MemoryFileSystem, tmp_path: Path) -> None:
    values = np.random.default_rng(2).normal(size=(20, 9000))
    columns = pa.table({f"c{i}": row for i, row in enumerate(values)})
    pq.write_table(columns, tmp_path / "a.parquet", row_group_size=1000)
    memory.put(str(tmp_path / "a.parquet"), "/a.parquet")
    names, rows = ["c7", "c0", "c19"], np.arange(3, 9000, 700)
    for source in (tmp_path / "a.parquet", "memory://a.parquet"):
        table = open_table([source], options=PLAIN)
        np.testing.assert_array_equal(read_block(table, names).values, values[[7, 0, 19]])
        some = read_block(table, names, rows).values
        np.testing.assert_array_equal(some, values[[7, 0, 19]][:, rows])


def test_urls_hold_no_password() -> None:
    message = refusal(["ftp://me:secret@host/data"])
    assert "secret" not in message


@pytest.fixture
def memory() -> Iterator[MemoryFileSystem]:
    with dirty.memory_files() as system:
        yield system


class Throttled:
    """A remote file whose every third read fails."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle
        self._reads = 0

    def read(self, count: int = -1) -> bytes:
        self._reads += 1
        if self._reads % 3 == 1:
            raise RuntimeError("503 slow down")
        return bytes(self._handle.read(count))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._handle, name)

    def __enter__(self) -> Throttled:
        return self

    def __exit__(self, *details: object) -> None:
        self._handle.close()


def test_remote_reads_are_tried_again(
    memory: MemoryFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    with memory.open("/a.parquet", "wb") as sink:
        pq.write_table(pa.table({"x": np.arange(5.0)}), sink)
    monkeypatch.setattr(files_module, "_PAUSES", (0.0, 0.0))
    opened = MemoryFileSystem.open
    monkeypatch.setattr(
        MemoryFileSystem, "open", lambda *args, **kw: Throttled(opened(*args, **kw))
    )
    table = open_table(["memory://a.parquet"], options=PLAIN)
    assert read_block(table, ["x"]).values.tolist() == [[0.0, 1.0, 2.0, 3.0, 4.0]]


def test_remote_reads_that_never_work(
    memory: MemoryFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    with memory.open("/a.parquet", "wb") as sink:
        pq.write_table(pa.table({"x": np.arange(5.0)}), sink)
    monkeypatch.setattr(files_module, "_PAUSES", (0.0,))

    def refuse(*arguments: Any, **keywords: Any) -> Any:
        raise RuntimeError("403 forbidden")

    monkeypatch.setattr(MemoryFileSystem, "open", refuse)
    assert "403 forbidden" in refusal(["memory://a.parquet"])


@pytest.mark.parametrize(
    ("facts", "nanoseconds"),
    [
        ({"mtime": 1.5}, 1_500_000_000),
        ({"LastModified": datetime.datetime.fromtimestamp(2, datetime.UTC)}, 2_000_000_000),
        ({"mtime": None, "created": 3}, 3_000_000_000),
        ({}, 0),
    ],
)
def test_times_of_remote_files(
    memory: MemoryFileSystem,
    monkeypatch: pytest.MonkeyPatch,
    facts: dict[str, Any],
    nanoseconds: int,
) -> None:
    monkeypatch.setattr(MemoryFileSystem, "info", lambda *arguments: {"size": 7, **facts})
    assert files_module.modified("memory://a.parquet") == (7, nanoseconds)


# Bad files


def test_broken_files_are_named(tmp_path: Path) -> None:
    sound = write(tmp_path / "sound.parquet", x=[1.0, 2.0])
    for path, reason in dirty.broken_files(tmp_path).items():
        for sources in ([path], [path, sound]):
            message = refusal(sources)
            assert str(path) in message
            assert reason in message
            assert ("--on-bad-file skip" in message) == (len(sources) > 1)  # else nothing is left


def test_broken_files_can_be_skipped(tmp_path: Path) -> None:
    broken = dirty.broken_files(tmp_path)
    write(tmp_path / "sound.parquet", x=[1.0, 2.0])
    table = open_table([tmp_path], options=SKIP)
    assert [path for path, _ in table.skipped] == sorted(str(path) for path in broken)
    assert all(broken[Path(path)] in reason for path, reason in table.skipped)
    assert read_block(table, ["x"]).values.tolist() == [[1.0, 2.0]]
    (tmp_path / "sound.parquet").unlink()
    assert "none of 9 files can be used" in refusal([tmp_path], SKIP)


def test_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.parquet")
    assert "is not a file" in refusal([tmp_path])


def test_unreadable_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.parquet", x=[1.0])

    def deny(*arguments: Any) -> Any:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(files_module.pa, "OSFile", deny)
    assert f"{path} cannot be read (permission denied)" in refusal([path])


def test_tables_without_anything_to_do(tmp_path: Path) -> None:
    empty = write(tmp_path / "empty.parquet", x=pa.array([], pa.float64()))
    assert "there are no rows in 1 file" in refusal([empty])
    text = write(tmp_path / "text.parquet", s=["a"], t=["1"])
    assert "2 not numeric; --coerce-strings reads text" in refusal([text])
    names = write(tmp_path / "names.parquet", s=["a"])
    assert "1 not numeric; give a table of numbers" in refusal(
        [names], Options(coerce_strings=True)
    )
    one = write(tmp_path / "x.parquet", x=[1])
    assert "1 excluded; name fewer in --target, --exclude" in refusal(
        [one], Options(exclude=("x",))
    )
    pq.write_table(pa.table({}), tmp_path / "none.parquet")
    assert "no rows" in refusal([tmp_path / "none.parquet"])


def test_corrupt_pages_name_file_and_column(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", x=np.arange(12.0), y=np.arange(12.0) ** 2)
    dirty.damage_page(path, column=1, group=2)
    for options in (PLAIN, SKIP):
        table = open_table([path], options=options)
        assert read_block(table, ["x"]).values[0].tolist() == list(range(12))
        with pytest.raises(InputError, match=r"a\.parquet .*column 'y', row group 2") as caught:
            read_block(table, ["x", "y"])
        assert "\n" not in str(caught.value)


def test_encrypted_files_are_named(tmp_path: Path) -> None:
    columns = pa.table({"x": [1.0, 2.0], "y": [3.0, 4.0]})
    path = tmp_path / "a.parquet"
    dirty.write_encrypted(path, columns, "x", plain_footer=False)
    assert "is encrypted" in refusal([path])
    dirty.write_encrypted(path, columns, "x", plain_footer=True)
    table = open_table([path], options=PLAIN)
    if dirty.ARROW.major >= 26:  # older ones read nothing of such a file
        assert read_block(table, ["y"]).values.tolist() == [[3.0, 4.0]]
    with pytest.raises(InputError, match=r"a\.parquet has column 'x' encrypted; decrypt it"):
        read_block(table, ["x", "y"])


def test_too_little_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = open_table([write(tmp_path / "a.parquet", x=[1.0])], options=PLAIN)

    class Starved:
        def read_row_groups(self, *arguments: Any, **keywords: Any) -> Any:
            raise pa.ArrowMemoryError("malloc of size 99 failed")

    monkeypatch.setattr(decode_module, "open_part", lambda *args, **kw: Starved())
    with pytest.raises(ResourceError, match="not enough memory to decode 1 row"):
        read_block(table, ["x"])


def test_a_result_too_large_for_memory(tmp_path: Path) -> None:
    table = open_table([write(tmp_path / "a.parquet", x=[1.0])], options=PLAIN)
    endless = dataclasses.replace(table.files[0], n_rows=2**50, row_groups=(2**50,))
    with pytest.raises(ResourceError, match="not enough memory for 1 column"):
        read_block(dataclasses.replace(table, files=(endless,)), ["x"])


@pytest.mark.parametrize("seed", range(4))
def test_flipped_bytes_never_end_in_a_traceback(tmp_path: Path, seed: int) -> None:
    source = write(tmp_path / "a.parquet", x=np.arange(40.0), n=list(range(40)), s=["a", "b"] * 20)
    sound = source.read_bytes()
    dice = random.Random(seed)
    for _ in range(60):
        broken = bytearray(sound)
        for _ in range(dice.choice([1, 1, 4])):
            broken[dice.randrange(len(sound))] = dice.randrange(256)
        source.write_bytes(bytes(broken))
        with contextlib.suppress(DpipeError):
            table = open_table([source], options=PLAIN)
            read_block(table, table.features)


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


# Drawing rows


def record(sizes: dict[str, int]) -> Table:
    """A table of files given by footer hash and rows."""
    files = tuple(
        TableFile(f"/{number}", rows, 0, 0, (rows,), digest)
        for number, (digest, rows) in enumerate(sizes.items())
    )
    return Table(files, ())


def drawn_of(table: Table, rows: Any) -> dict[str, list[int]]:
    """The rows drawn, by footer hash of their file."""
    return {
        file.footer_hash: [r - start for r in rows if start <= r < start + file.n_rows]
        for file, start in zip(table.files, table.starts, strict=True)
    }


def test_draws_do_not_depend_on_the_order_of_files() -> None:
    sizes = {"aa": 50, "bb": 0, "cc": 200, "dd": 3, "ee": 50}
    one, other = record(sizes), record(dict(reversed(sizes.items())))
    for wanted in ({"sample_rows": 40}, {"sample_per_file": 10}):
        first, second = draw_rows(one, **wanted, seed=3), draw_rows(other, **wanted, seed=3)
        assert drawn_of(one, first) == drawn_of(other, second)


def test_draws_do_not_depend_on_the_layout_of_a_file(tmp_path: Path) -> None:
    columns = {"x": np.arange(400.0), "y": np.arange(400) % 7}
    tables = []
    for name, layout in {
        "a": {},
        "b": {"row_group_size": 30},
        "c": {"compression": "zstd"},
    }.items():
        pq.write_table(pa.table(columns), tmp_path / f"{name}.parquet", **layout)
        columns = dict(reversed(columns.items()))
        tables.append(open_table([tmp_path / f"{name}.parquet"], options=PLAIN))
    assert len({table.files[0].footer_hash for table in tables}) == len(tables)
    for wanted in ({"sample_rows": 40}, {"sample_per_file": 10}):
        first, *others = (draw_rows(table, **wanted, seed=3) for table in tables)
        for other in others:
            np.testing.assert_array_equal(first, other)


def test_draws_are_sorted_seeded_and_nested() -> None:
    table = record({"aa": 300, "bb": 100})
    small, large = draw_rows(table, 20, seed=1), draw_rows(table, 60, seed=1)
    assert small is not None
    assert large is not None
    assert small.dtype == np.int64
    assert np.all(np.diff(small) > 0)
    assert set(small) < set(large)
    assert not np.array_equal(small, draw_rows(table, 20, seed=2))
    assert draw_rows(table, 1000).tolist() == list(range(400))  # type: ignore[union-attr]
    assert draw_rows(table) is None


def test_draws_per_file() -> None:
    table = record({"aa": 300, "bb": 5, "cc": 100})
    rows = drawn_of(table, draw_rows(table, sample_per_file=10))
    assert [len(own) for own in rows.values()] == [10, 5, 10]


def test_draws_are_uniform() -> None:
    table = record({"aa": 60, "bb": 40})
    hits = np.zeros(100)
    for seed in range(2000):
        hits[draw_rows(table, 10, seed=seed)] += 1
    # Each row is hit 200 times on average, standard deviation 13.4: all 100 within 4.5 of them.
    assert abs(hits - 200).max() < 60
    assert abs(hits[:60].sum() / hits.sum() - 0.6) < 0.02


def test_copies_of_a_file_are_drawn_apart(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write(tmp_path / f"{name}.parquet", x=np.arange(100.0))
    table = open_table([tmp_path], options=PLAIN)
    rows = draw_rows(table, sample_per_file=10)
    assert rows is not None
    assert rows[:10].tolist() != (rows[10:] - 100).tolist()


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
