"""Tests of `dpipe.table.find` and `dpipe.table.lake`: no file is read or left out in silence."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from dpipe.errors import InputError
from dpipe.table.find import Found, find_files

LAKES = {
    "Delta Lake": "_delta_log/00000000000000000000.json",
    "Hudi": ".hoodie/hoodie.properties",
    "Iceberg": "metadata/00001-0a1b2c3d-0000-4000-8000-000000000000.metadata.json",
    "Spark streaming": "_spark_metadata/0",
}
Place = tuple[str, Callable[[str], None]]


@pytest.fixture(params=["local", "memory"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    """Where files are: the address of an empty folder, and what puts a file into it."""
    parquet = pa.BufferOutputStream()
    pq.write_table(pa.table({"x": [1.0]}), parquet)
    content = parquet.getvalue().to_pybytes()

    def put_local(name: str) -> None:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    if request.param == "local":
        yield str(tmp_path), put_local
        return
    fs = MemoryFileSystem()
    root = f"/find-{tmp_path.name}"
    yield f"memory:/{root}", lambda name: fs.pipe_file(f"{root}/{name}", content)
    if fs.exists(root):
        fs.rm(root, recursive=True)


def names(found: Found, root: str) -> list[str]:
    """The files found, relative to the folder."""
    top = root.removeprefix("memory:/") if root.startswith("memory") else root
    return [path.removeprefix("memory://").removeprefix(top).lstrip("/") for path in found.paths]


@pytest.mark.parametrize("title", LAKES)
@pytest.mark.parametrize(
    "source", ["", "/*.parquet", "/**/*.parquet", "/part=1", "/part=1/a.parquet"]
)
def test_a_lake_table_is_refused_however_it_is_named(place: Place, title: str, source: str) -> None:
    root, put = place
    for name in ("a.parquet", "part=1/a.parquet", LAKES[title]):
        put(f"lake/{name}")
    with pytest.raises(InputError, match=f"in the {title} format") as caught:
        find_files([f"{root}/lake{source}"])
    assert f"{root.replace('memory:/', 'memory://')}/lake is a table" in str(caught.value)
    assert "snapshot" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_lake_table_below_a_folder_is_refused_too(place: Place) -> None:
    root, put = place
    for name in ("plain.parquet", "one/lake/a.parquet", f"one/lake/{LAKES['Delta Lake']}"):
        put(name)
    with pytest.raises(InputError, match="one/lake is a table in the Delta Lake format"):
        find_files([root])


def test_a_folder_called_metadata_makes_no_lake(place: Place) -> None:
    root, put = place
    for name in ("a.parquet", "metadata/descriptors.metadata.json", "metadata/README"):
        put(name)
    assert names(find_files([root]), root) == ["a.parquet"]


@pytest.mark.parametrize("pattern", ["", "/*", "/**/*.parquet"])
def test_a_partition_whose_key_begins_with_an_underscore_is_read(
    place: Place, pattern: str
) -> None:
    root, put = place
    put("a.parquet")
    put("_split=train/b.parquet")
    found = find_files([root + pattern])
    assert names(found, root) == ["_split=train/b.parquet", "a.parquet"]
    assert any("_split=train" in note for note in found.notes)


@pytest.mark.parametrize("pattern", ["", "/*", "/**"])
def test_what_is_private_is_left_out_and_told_in_a_folder_as_in_a_glob(
    place: Place, pattern: str
) -> None:
    root, put = place
    for name in ("a.parquet", "_metadata", "_SUCCESS", "_old.parquet", "_tmp/1/b.parquet"):
        put(name)
    put("_tmp/2/c.parquet")
    found = find_files([root + pattern])
    assert names(found, root) == ["a.parquet"]
    (note,) = found.notes
    assert "_old.parquet" in note
    assert "_tmp/1/b.parquet" in note, "one file of a private folder stands for all"
    assert "c.parquet" not in note


def test_a_private_name_that_is_asked_for_is_read(place: Place) -> None:
    root, put = place
    for name in ("_old/a.parquet", "_b.parquet", "c.parquet"):
        put(name)
    assert names(find_files([f"{root}/_old"]), root) == ["_old/a.parquet"]
    assert names(find_files([f"{root}/_b.parquet"]), root) == ["_b.parquet"]
    assert names(find_files([f"{root}/_*.parquet"]), root) == ["_b.parquet"]


def test_where_everything_is_private_the_error_says_so(place: Place) -> None:
    root, put = place
    put("data/_tmp/a.parquet")
    for pattern in ("/data", "/data/*/*.parquet"):
        with pytest.raises(InputError, match=r"begins with \. or _ .*_tmp/a\.parquet"):
            find_files([root + pattern])


@pytest.mark.skipif(os.getuid() == 0, reason="root may read every folder")
def test_a_private_folder_that_cannot_be_listed_costs_nothing(tmp_path: Path) -> None:
    pq.write_table(pa.table({"x": [1.0]}), tmp_path / "a.parquet")
    (tmp_path / ".snapshot").mkdir(mode=0)
    assert len(find_files([tmp_path]).paths) == 1


@pytest.mark.parametrize("mark", [["checkpoint/manifest.json"], ["run.json"]])
def test_results_of_a_run_are_left_out_with_its_checkpoints_and_without(
    tmp_path: Path, mark: list[str]
) -> None:
    for name in (
        "x.parquet",
        "out/decisions.parquet",
        "out/table/x.parquet",
        *(f"out/{n}" for n in mark),
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"PAR1")
    for source in (tmp_path, f"{tmp_path}/**/*.parquet"):
        found = find_files([source])
        assert names(found, str(tmp_path)) == ["x.parquet"]
        assert found.notes[0].startswith("results of runs of dpipe are left out: ")
    (tmp_path / "out" / mark[0]).unlink()  # nothing tells a run any more
    assert len(find_files([tmp_path]).paths) == 3
