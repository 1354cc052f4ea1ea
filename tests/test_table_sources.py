"""Which files a table has: odd names, folders, globs, links, URLs, remote reads that fail.

Covers: local files and `memory://`.
Does not cover: an object store (`test_remote`), tables of other kinds in a folder
(`test_table_find`).
"""

from __future__ import annotations

import datetime
import math
import os
from pathlib import Path
from typing import Any

import dirty
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from dirty import write
from fsspec.implementations.memory import MemoryFileSystem
from reading import PLAIN, refusal

from dpipe.table import files as files_module
from dpipe.table import open_table, read_block


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
