"""What every folder of files promises: a file is whole or not there, and nothing in it runs code.

Covers: the run folder and the rank store, local and remote, by one suite of tests to inherit.
Does not cover: what each of them adds to that (see `test_runfolder`, `test_rankstore`).
"""

from __future__ import annotations

import errno
import io
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from numpy.typing import NDArray

from dpipe.errors import DpipeError
from dpipe.rankstore import Store, temporary_store
from dpipe.runfolder import RunFolder

ARRAYS = {
    "empty": np.zeros((0, 3), np.float32),
    "scalar": np.array(2.5),
    "fortran": np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3)),
    "strided": np.arange(10)[::2],
    "bool": np.array([True, False]),
    "text": np.array(["a", "bc"]),
    "special": np.array([np.nan, np.inf, -np.inf, -0.0, np.nextafter(0, 1)]),
}


class Trap:
    """Unpickling it creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (str(self.path), "w")


class StoreTests:
    """Inherit and say how a store is opened, written and read."""

    store: Any

    def write(self, name: str, content: bytes) -> None:
        raise NotImplementedError

    def read(self, name: str) -> bytes:
        raise NotImplementedError

    def write_array(self, name: str, array: NDArray[Any]) -> None:
        raise NotImplementedError

    def read_array(self, name: str) -> NDArray[Any]:
        raise NotImplementedError

    @pytest.mark.parametrize("content", [b"", b"x", b"two\nlines\r\n", b"x" * 3_000_000])
    def test_files_come_back_and_are_replaced(self, content: bytes) -> None:
        for old in (b"old", b"a much longer content than the new one has"):
            self.write("sub/a.txt", old)
            assert self.read("sub/a.txt") == old
        self.write("sub/a.txt", content)
        assert self.read("sub/a.txt") == content

    @pytest.mark.parametrize("name", ARRAYS)
    def test_arrays_come_back_exactly(self, name: str) -> None:
        self.write_array("a.npy", ARRAYS[name])
        back = self.read_array("a.npy")
        assert back.dtype == ARRAYS[name].dtype
        assert back.shape == ARRAYS[name].shape
        np.testing.assert_array_equal(back, ARRAYS[name])

    def test_json_comes_back(self) -> None:
        value = {"a": [1, None, "\N{SNOWMAN}\n"], "b": {"c": 0.1}}
        self.store.write_json("a.json", value)
        assert self.store.read_json("a.json") == value

    @pytest.mark.parametrize("content", [b"", b"{", b"[1,", b'{"a": tru'])
    def test_broken_json_is_named_in_one_sentence(self, content: bytes) -> None:
        self.write("a.json", content)
        with pytest.raises(DpipeError, match=r"a\.json") as caught:
            self.store.read_json("a.json")
        assert "\n" not in str(caught.value)

    def test_objects_are_never_written(self) -> None:
        with pytest.raises((TypeError, ValueError), match="pickle"):
            self.write_array("a.npy", np.array([object()]))
        with pytest.raises((DpipeError, FileNotFoundError)):
            self.read_array("a.npy")

    def test_a_pickle_is_not_opened(self, tmp_path: Path) -> None:
        trap = tmp_path / "trap"
        buffer = io.BytesIO()
        np.save(buffer, np.array([Trap(trap)], object))
        for content in (pickle.dumps(Trap(trap)), buffer.getvalue()):
            self.write("a.npy", content)
            with pytest.raises(DpipeError, match=r"a\.npy"):
                self.read_array("a.npy")
        assert not trap.exists()


class LocalStoreTests(StoreTests):
    """The same and more, of a folder of this machine."""

    folder: Path

    def tidy(self) -> None:
        """Remove what processes left that were killed."""
        raise NotImplementedError

    def partial_files(self) -> list[Path]:
        return list(self.folder.rglob("*.partial"))

    @pytest.mark.parametrize("step", ["fsync", "replace"])
    def test_a_disk_that_fills_up_leaves_the_old_file(
        self, step: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.write("a", b"old")

        def refuse(*_: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(f"os.{step}", refuse)
            with pytest.raises(DpipeError, match=r"[Nn]o space left") as caught:
                self.write("a", b"new")
        assert str(self.folder / "a") in str(caught.value)
        assert caught.value.exit_code == 3
        assert self.read("a") == b"old"
        assert self.partial_files() == []

    def test_an_interrupted_write_leaves_the_old_file(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.write("a", b"old")

        def interrupt(*_: object) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr("os.fsync", interrupt)
            with pytest.raises(KeyboardInterrupt):
                self.write("a", b"new")
        assert self.read("a") == b"old"
        assert self.partial_files() == []

    def test_writers_of_one_name_do_not_mix(self) -> None:
        contents = [bytes([65 + n]) * 100_000 for n in range(8)]
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda content: self.write("a", content), contents))
        assert self.read("a") in contents
        assert self.partial_files() == []

    def test_what_a_killed_writer_left_is_removed(self) -> None:
        self.write("a", b"x")
        (self.folder / ".a.0123.partial").write_bytes(b"half")
        self.tidy()
        assert self.partial_files() == []
        assert self.read("a") == b"x"


class TestRunFolder(LocalStoreTests):
    store: RunFolder

    @pytest.fixture(autouse=True)
    def _open(self, tmp_path: Path) -> None:
        self.folder = tmp_path / "out"
        self.store = RunFolder(self.folder).create()

    def write(self, name: str, content: bytes) -> None:
        with self.store.replacing(name) as file:
            file.write(content)

    def read(self, name: str) -> bytes:
        return self.store.read_bytes(name)

    def write_array(self, name: str, array: NDArray[Any]) -> None:
        self.store.write_npy(name, array)

    def read_array(self, name: str) -> NDArray[Any]:
        return self.store.read_npy(name)

    def tidy(self) -> None:
        with self.store.lock():
            pass


class TestRankStore(LocalStoreTests):
    store: Store

    @pytest.fixture(autouse=True)
    def _open(self, tmp_path: Path) -> None:
        self.folder = tmp_path / "ranks"
        self.store = Store(str(self.folder))

    def write(self, name: str, content: bytes) -> None:
        self.store.write(name, content)

    def read(self, name: str) -> bytes:
        return self.store.read_text(name).encode()

    def write_array(self, name: str, array: NDArray[Any]) -> None:
        self.store.write_arrays(name, {"x": array})

    def read_array(self, name: str) -> NDArray[Any]:
        return self.store.read_arrays(name)["x"]

    def tidy(self) -> None:
        self.store.remove_partial()

    def test_names_hide_what_is_not_finished(self) -> None:
        self.write("grid/tile", b"x")
        (self.folder / "grid" / "tile2.0123.partial").write_bytes(b"y")
        assert self.store.names("grid") == {"tile"}
        assert self.store.names("nothing") == set()


class TestRemoteRankStore(StoreTests):
    store: Store
    write, read = TestRankStore.write, TestRankStore.read
    write_array, read_array = TestRankStore.write_array, TestRankStore.read_array

    @pytest.fixture(autouse=True)
    def _open(self) -> None:
        fsspec.filesystem("memory").store.clear()
        self.store = Store("memory://store")


def test_a_temporary_store_makes_the_folder_that_is_asked_for(tmp_path: Path) -> None:
    parent = tmp_path / "not" / "yet"
    with temporary_store(str(parent), {}) as store:
        store.write_json("a.json", {})
        assert Path(store.root).parent == parent
    assert list(tmp_path.iterdir()) == []
