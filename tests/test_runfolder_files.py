"""Files of a run folder are whole or not there when disks fill and processes die, and run no code.

Covers: every writer, arrays that are filled in place, names that lead elsewhere, pickles.
"""

from __future__ import annotations

import errno
import json
import os
import pickle
import resource
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from folders import RESULT, finish, load, partial_files, start

from dpipe.errors import InputError, ResourceError
from dpipe.model import inventory
from dpipe.runfolder import RunFolder

# Atomic writes


WRITERS: dict[str, Callable[[RunFolder, int], None]] = {
    "text.txt": lambda f, n: f.write_text("text.txt", "x" * n),
    "data.json": lambda f, n: f.write_json("data.json", {"key": "x" * n}),
    "data.csv": lambda f, n: f.write_csv("data.csv", ["a"], [["x" * n]]),
    "data.parquet": lambda f, n: f.write_parquet("data.parquet", noise_table(n)),
    "data.npy": lambda f, n: f.write_npy("data.npy", np.full(n // 8, 1.5)),
    "mapped.npy": lambda f, n: fill_array_file(f, n),
}


def noise_table(size: int) -> pa.Table:
    # Arrow compresses what it writes, so only noise has a size that is known beforehand.
    return pa.table({"a": np.random.default_rng(0).random(size // 8)})


def fill_array_file(folder: RunFolder, size: int) -> None:
    with folder.array_file("mapped.npy", (size // 8,), np.float64) as array:
        array[:] = 1.5


@pytest.mark.parametrize("name", WRITERS)
def test_every_writer_replaces_and_records(folder: RunFolder, name: str) -> None:
    for size in (80, 800):
        WRITERS[name](folder, size)
        assert folder.verify_checksums() == ()
        assert partial_files(folder) == []
    listed = json.loads((folder.path / inventory.MANIFEST).read_text())["files"]
    assert listed[name]["bytes"] == (folder.path / name).stat().st_size


@pytest.mark.parametrize("name", WRITERS)
def test_a_file_too_large_for_the_disk_leaves_the_old_one(folder: RunFolder, name: str) -> None:
    """A real failure of the system call, in a process whose files may not grow."""
    WRITERS[name](folder, 80)
    before = (folder.path / name).read_bytes()
    code = """
        import resource, sys
        sys.path.insert(0, "tests")
        from test_runfolder_files import WRITERS
        from dpipe.errors import ResourceError
        from dpipe.runfolder import RunFolder
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
        try:
            WRITERS[sys.argv[2]](RunFolder(sys.argv[1]), 1_000_000)
        except ResourceError as error:
            print(error, error.exit_code)
    """
    status, out, err = finish(start(code, folder.path, name))
    assert (status, err) == (0, "")
    assert f"there is no space left to write {folder.path / name}; make room" in out
    assert out.endswith(" 3\n")
    assert (folder.path / name).read_bytes() == before
    assert folder.verify_checksums() == ()
    assert partial_files(folder) == []


def test_another_failure_of_the_disk_names_the_path(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("os.fsync", refuse)
    with pytest.raises(ResourceError, match=r"selected\.txt cannot be written \(Input/output"):
        folder.write_selected(["a"])


def test_a_failure_while_an_array_is_filled_is_not_blamed_on_the_disk(folder: RunFolder) -> None:
    with (
        pytest.raises(FileNotFoundError, match="a tile is gone"),
        folder.array_file("mapped.npy", (3,), np.float32),
    ):
        raise FileNotFoundError("a tile is gone")
    assert not (folder.path / "mapped.npy").exists()
    assert partial_files(folder) == []


def test_a_crash_in_the_middle_leaves_the_old_file_and_the_next_lock_tidies(
    folder: RunFolder,
) -> None:
    folder.write_npy("mapped.npy", np.arange(3.0))
    folder.checkpoints.save(1, {"version": "1"}, RESULT)
    code = """
        import os, signal, sys
        import numpy as np
        from dpipe.runfolder import RunFolder
        folder = RunFolder(sys.argv[1])
        with folder.lock(), folder.replacing("checkpoint/pass-1.json") as file:
            file.write(b"half")
            file.flush()
            with folder.array_file("mapped.npy", (1000,), np.float32) as array:
                array[:500] = 1
                os.kill(os.getpid(), signal.SIGKILL)
    """
    assert finish(start(code, folder.path))[0] == -signal.SIGKILL
    assert len(partial_files(folder)) == 2
    assert list(folder.read_npy("mapped.npy")) == [0, 1, 2]
    with folder.lock():
        assert partial_files(folder) == []
        assert folder.verify_checksums() == ()
        assert load(folder, 1, {"version": "1"}).result == RESULT


def test_names_never_leave_the_folder(folder: RunFolder, tmp_path: Path) -> None:
    (folder.path / "link").symlink_to(tmp_path)
    for name in ("../evil.txt", "/tmp/evil.txt", "a/../../evil.txt", "link/evil.txt"):  # noqa: S108
        with pytest.raises(InputError, match="would leave the run folder"):
            folder.write_text(name, "evil")
        with pytest.raises(InputError, match="would leave the run folder"):
            folder.read_json(name)
    assert not list(tmp_path.glob("evil*"))


def test_written_files_can_be_read_by_the_group(folder: RunFolder) -> None:
    mask = os.umask(0o022)
    try:
        folder.write_text("a.txt", "")
    finally:
        os.umask(mask)
    assert (folder.path / "a.txt").stat().st_mode & 0o777 == 0o644


def test_the_limit_on_file_size_is_still_this_process_own() -> None:
    """The tests above shrink it in children only."""
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY


# Arrays


def test_an_array_file_has_its_space_before_it_is_filled(folder: RunFolder) -> None:
    with folder.array_file("a.npy", (1 << 18,), np.float32):
        (partial,) = partial_files(folder)
        assert partial.stat().st_blocks * 512 >= 1 << 20


@pytest.mark.parametrize("answer", [errno.EOPNOTSUPP, None])
def test_an_array_file_needs_no_help_of_the_file_system(
    folder: RunFolder, answer: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(answer, "Operation not supported")

    if answer is None:
        monkeypatch.delattr("os.posix_fallocate")
    else:
        monkeypatch.setattr("os.posix_fallocate", refuse)
    fill_array_file(folder, 80)
    assert list(folder.read_npy("mapped.npy")) == [1.5] * 10


def test_objects_are_never_written(folder: RunFolder) -> None:
    with pytest.raises(TypeError, match="pickle"):
        folder.write_npy("a.npy", np.array([{}], object))
    assert list(folder.path.rglob("*.np*")) == []


class Trap:
    """Unpickling it creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (str(self.path), "w")


def test_a_pickle_in_a_matrix_is_not_executed(folder: RunFolder, tmp_path: Path) -> None:
    np.save(folder.path / "hsic.npy", np.array([Trap(tmp_path / "trap")], object))
    with pytest.raises(InputError, match=r"hsic\.npy cannot be read: Array can't be memory"):
        folder.read_npy("hsic.npy")
    (folder.path / "rdc.npy").write_bytes(pickle.dumps(Trap(tmp_path / "trap")))
    with pytest.raises(InputError, match=r"rdc\.npy cannot be read"):
        folder.read_npy("rdc.npy")
    assert not (tmp_path / "trap").exists()
