"""Tests of `dpipe.table.copying`: values, types, and all or nothing."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from decimal import Decimal
from pathlib import Path

import dirty
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from dirty import Dirt, write
from fsspec.implementations.memory import MemoryFileSystem

from dpipe.errors import InputError
from dpipe.model.records import Role
from dpipe.options import Options
from dpipe.table import copy_columns, open_table, read_block

PLAIN = Options()


def test_copy_mirrors_the_input(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    write(folder / "a.parquet", id=["x", "y"], v=[1, 2], w=[1.5, None])
    write(folder / "sub" / "b.parquet", id=["z"], v=[3], w=[2.5])
    table = open_table([folder], options=PLAIN)
    written = copy_columns(table, ["w", "id"], tmp_path / "out")
    assert written == (str(tmp_path / "out/a.parquet"), str(tmp_path / "out/sub/b.parquet"))
    assert pq.read_table(written[0]).to_pydict() == {"w": [1.5, None], "id": ["x", "y"]}
    assert pq.read_table(written[1]).to_pydict() == {"w": [2.5], "id": ["z"]}
    assert sorted(os.listdir(tmp_path)) == ["in", "out"]
    again = open_table([tmp_path / "out"], options=PLAIN)
    np.testing.assert_array_equal(read_block(again, ["w"]).values, read_block(table, ["w"]).values)


def test_copy_into_one_file(tmp_path: Path) -> None:
    write(tmp_path / "in" / "a.parquet", x=[1, 2], y=[True, None], only=["here", "now"])
    write(tmp_path / "in" / "b.parquet", x=[0.5], y=[7])
    write(tmp_path / "in" / "c.parquet", z=[0.5])
    table = open_table([tmp_path / "in"], options=PLAIN)
    (written,) = copy_columns(table, ["x", "y", "only"], tmp_path / "out.parquet")
    copied = pq.read_table(written)
    assert copied.schema.types == [pa.float64(), pa.int64(), pa.string()]
    assert copied.to_pydict() == {
        "x": [1.0, 2.0, 0.5, None],
        "y": [1, None, 7, None],
        "only": ["here", "now", None, None],
    }


TYPED = {
    "i8": pa.array([1, None], pa.int8()),
    "u64": pa.array([2**64 - 1, None], pa.uint64()),
    "half": pa.array(np.float16([0.5, 1])),
    "dec": pa.array([Decimal("1.50"), None]),
    "cat": pa.array(["a", None]).dictionary_encode(),
    "big": pa.array(["a", None], pa.large_string()),
    "when": pa.array([0, None], pa.timestamp("us", tz="UTC")),
    "list": pa.array([[1, 2], None]),
    "struct": pa.array([{"a": 1, "b": [None]}, None]),
    "map": pa.array([[("k", 1)], None], pa.map_(pa.string(), pa.int8())),
    "null": pa.nulls(2),
    "bytes": pa.array([b"\x00", None]),
    "x": pa.array([1.5, math.nan]),
}


@pytest.mark.parametrize("name", ["out", "out.parquet"])
def test_copy_keeps_types_and_values(tmp_path: Path, name: str) -> None:
    source = pa.table(TYPED)
    pq.write_table(source, tmp_path / "a.parquet")
    table = open_table([tmp_path / "a.parquet"], options=PLAIN)
    (written,) = copy_columns(table, source.column_names, tmp_path / name)
    copied = pq.read_table(written)
    assert copied.schema.types == source.schema.types
    assert repr(copied.to_pylist()) == repr(source.to_pylist())


@pytest.mark.parametrize("case", [*dirty.drifts()], ids=lambda case: case.name)
def test_copy_of_drifting_columns(case: Dirt, tmp_path: Path) -> None:
    table = open_table([case.write(tmp_path / "t")], options=case.options)
    meeting = [name for name in case.names() if "date" not in case.name or name != "x"]
    (written,) = copy_columns(table, meeting, tmp_path / "out.parquet")
    again = open_table([written], options=PLAIN)
    assert {name: again.column(name).role for name in case.features() if name in meeting} == {
        name: Role.FEATURE for name in case.features() if name in meeting
    }
    for name in meeting:
        if name in case.features():
            expected = [dirty.as_number(cell) for cell in case.cells(name)]
            np.testing.assert_array_equal(read_block(again, [name]).values[0], expected)
        elif name == "x":
            texts = [cell if cell is None else str(cell) for cell in case.cells(name)]
            assert pq.read_table(written).column(name).to_pylist() == texts
    if meeting != case.names():
        with pytest.raises(InputError, match="column 'x' cannot be copied"):
            copy_columns(table, ["x"], tmp_path / "other.parquet")


def test_copy_streams_in_row_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dpipe.table.copying._ROWS", (1, 7))
    write(tmp_path / "a.parquet", x=np.arange(30.0), y=np.arange(30))
    table = open_table([tmp_path / "a.parquet"], options=PLAIN)
    (written,) = copy_columns(table, ["y"], tmp_path / "out.parquet")
    assert pq.ParquetFile(written).num_row_groups >= 30 // 7
    assert pq.read_table(written).column("y").to_pylist() == list(range(30))


def test_copy_stores_checksums(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", x=np.arange(5000.0))
    table = open_table([tmp_path / "a.parquet"], options=PLAIN)
    (written,) = copy_columns(table, ["x"], tmp_path / "out.parquet")
    dirty.damage_page(Path(written), column=0)
    with pytest.raises(InputError, match=r"column 'x'.*CRC"):
        read_block(open_table([written], options=PLAIN), ["x"])


def test_copy_never_replaces_unasked(tmp_path: Path) -> None:
    source = write(tmp_path / "in" / "a.parquet", x=[1.0])
    table = open_table([source], options=PLAIN)
    file, folder = tmp_path / "out.parquet", tmp_path / "out"
    for destination in (file, folder):
        copy_columns(table, ["x"], destination)
        with pytest.raises(InputError, match="exists already"):
            copy_columns(table, ["x"], destination)
    (folder / "stale.parquet").write_text("old")
    for destination in (file, folder):
        copy_columns(table, ["x"], destination, overwrite=True)
    assert os.listdir(folder) == ["a.parquet"]
    for destination in (source, source.parent):
        with pytest.raises(InputError, match="holds the input"):
            copy_columns(table, ["x"], destination, overwrite=True)
    (tmp_path / "plain").write_text("")
    with pytest.raises(InputError, match="is a file"):
        copy_columns(table, ["x"], tmp_path / "plain")
    assert sorted(os.listdir(tmp_path)) == ["in", "out", "out.parquet", "plain"]


@pytest.mark.parametrize("name", ["out", "out.parquet"])
def test_failed_copies_leave_nothing(tmp_path: Path, name: str) -> None:
    write(tmp_path / "in" / "a.parquet", x=np.arange(9.0))
    dirty.damage_page(write(tmp_path / "in" / "b.parquet", x=np.arange(9.0)), column=0)
    table = open_table([tmp_path / "in"], options=PLAIN)
    with pytest.raises(InputError, match=r"b\.parquet .*'x'"):
        copy_columns(table, ["x"], tmp_path / name)
    assert os.listdir(tmp_path) == ["in"]


def test_a_folder_stays_when_its_successor_cannot_take_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = open_table([write(tmp_path / "in" / "a.parquet", x=[1.0])], options=PLAIN)
    (written,) = copy_columns(table, ["x"], tmp_path / "out")
    former = Path(written).read_bytes()

    def fail(*arguments: object) -> None:
        raise OSError("device is gone")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(InputError, match=r"out cannot be written \(device is gone\)"):
        copy_columns(table, ["x"], tmp_path / "out", overwrite=True)
    assert Path(written).read_bytes() == former
    assert sorted(os.listdir(tmp_path)) == ["in", "out"]


def test_copy_refuses_changed_input(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", x=[1.0])
    table = open_table([path], options=PLAIN)
    write(path, x=[2.0, 3.0])
    with pytest.raises(InputError, match=r"a\.parquet changed"):
        copy_columns(table, ["x"], tmp_path / "out.parquet")


def test_copy_to_a_full_disk(tmp_path: Path) -> None:
    """A limit on the size of files stands for the full disk."""
    script = """
import resource, signal, sys
import numpy as np, pyarrow as pa, pyarrow.parquet as pq
from dpipe.options import Options
from dpipe.errors import ResourceError
from dpipe.table import copy_columns, open_table
folder = sys.argv[1]
table = open_table([folder + "/a.parquet"], options=Options())
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
try:
    copy_columns(table, ["x"], folder + "/out.parquet")
except ResourceError as error:
    print(error)
"""
    write(tmp_path / "a.parquet", x=np.random.default_rng(0).normal(size=20_000))
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert "out.parquet cannot be written" in done.stdout
    assert os.listdir(tmp_path) == ["a.parquet"]


def test_copy_between_urls(memory: MemoryFileSystem) -> None:
    for name in ("a", "b"):
        with memory.open(f"/in/{name}.parquet", "wb") as sink:
            pq.write_table(pa.table({"x": [1.0], "y": [2.0]}), sink)
    table = open_table(["memory://in"], options=PLAIN)
    written = copy_columns(table, ["y"], "memory://out/reduced")
    assert written == ("memory://out/reduced/a.parquet", "memory://out/reduced/b.parquet")
    (single,) = copy_columns(table, ["y"], "memory://out/all.parquet")
    assert open_table([single], options=PLAIN).n_rows == 2
    assert sorted(memory.find("/out")) == [
        "/out/all.parquet",
        "/out/reduced/a.parquet",
        "/out/reduced/b.parquet",
    ]
    with pytest.raises(InputError, match="exists already"):
        copy_columns(table, ["y"], single)
    copy_columns(table, ["x"], "memory://out/reduced", overwrite=True)
    assert open_table(["memory://out/reduced"], options=PLAIN).features == ("x",)


def test_parts_of_many_folders_keep_apart(tmp_path: Path) -> None:
    paths = [write(tmp_path / name, x=[1.0]) for name in ("a/p.data", "b/p.data", "b/_q.parquet")]
    table = open_table(paths, options=PLAIN)
    written = copy_columns(table, ["x"], tmp_path / "out")
    assert [os.path.relpath(path, tmp_path / "out") for path in written] == [
        "a/p.data.parquet",
        "part-00001.parquet",
        "b/p.data.parquet",
    ]
    assert open_table([tmp_path / "out"], options=PLAIN).n_rows == 3


@pytest.mark.parametrize("names", [[], ["x", "x"]])
def test_copy_needs_names(tmp_path: Path, names: list[str]) -> None:
    table = open_table([write(tmp_path / "a.parquet", x=[1.0])], options=PLAIN)
    with pytest.raises(ValueError, match="once"):
        copy_columns(table, names, tmp_path / "out")


def test_a_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    pq.write_table(pa.table({"x": [1.0, 2.0]}), tmp_path / "a.parquet")
    table = open_table(["~/a.parquet"], options=PLAIN)
    for destination in ("~/out", "~/out.parquet"):
        for written in copy_columns(table, ["x"], destination):
            assert pq.read_table(written).column_names == ["x"]
    assert not (tmp_path / "~").exists()
