"""The run folder keeps its promises when processes die and files are tampered with.

Covers: creating it, its lock with and without locks of the file system, its manifest.
Does not cover: single files (`test_runfolder_files`), checkpoints (`test_runfolder_checkpoints`),
results (`test_runfolder_results`).
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from folders import finish, start

from dpipe.errors import InputError
from dpipe.model import inventory
from dpipe.runfolder import RunFolder

# Creating and locking


def test_create_makes_folders_in_between(tmp_path: Path) -> None:
    assert RunFolder(tmp_path / "a" / "b").create().path.is_dir()


def test_a_file_in_the_way_is_an_input_error(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(InputError, match=r"out is a file; choose another\."):
        RunFolder(tmp_path / "out").create()
    assert (tmp_path / "out").read_text() == "mine"


def test_a_file_above_the_folder_is_an_input_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"lies in .*, which is a file; choose another\."):
        RunFolder(tmp_path / "file" / "out").create()


def test_a_folder_without_write_permission_is_an_input_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Path, **_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "touch", refuse)  # root could write anywhere
    with pytest.raises(InputError, match="Permission denied"):
        RunFolder(tmp_path).create()


def test_a_url_is_an_input_error() -> None:
    with pytest.raises(InputError, match="--output-dir"):
        RunFolder("s3://bucket/out")


def test_a_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert RunFolder("~/out").path == tmp_path / "out"


HOLD = """
    import sys
    from dpipe.runfolder import RunFolder
    with RunFolder(sys.argv[1]).lock():
        print("locked", flush=True)
        sys.stdin.read()
"""


def test_two_processes_exclude_each_other(folder: RunFolder) -> None:
    holder = start(HOLD, folder.path)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "locked\n"
    with (
        pytest.raises(InputError, match=rf"another run \(pid {holder.pid} .*is using .*out; wait"),
        folder.lock(),
    ):
        pass
    assert finish(holder)[0] == 0
    with folder.lock():
        pass
    assert not (folder.path / inventory.LOCK).exists()


def test_one_process_cannot_lock_twice(folder: RunFolder) -> None:
    with folder.lock():
        with pytest.raises(InputError, match="another run"), RunFolder(folder.path).lock():
            pass
        # The refused attempt must not have taken the lock away.
        with pytest.raises(InputError, match="another run"), RunFolder(folder.path).lock():
            pass


def test_the_lock_of_a_killed_run_is_taken_over(folder: RunFolder) -> None:
    holder = start(HOLD, folder.path)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "locked\n"
    holder.kill()
    finish(holder)
    assert (folder.path / inventory.LOCK).exists()
    with folder.lock():
        assert json.loads((folder.path / inventory.LOCK).read_text())["pid"] == os.getpid()


def test_the_lock_is_released_when_the_run_fails(folder: RunFolder) -> None:
    with pytest.raises(ValueError, match="the run failed"), folder.lock():
        raise ValueError("the run failed")
    with folder.lock():
        pass


@pytest.fixture
def no_flock(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)


def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@pytest.mark.usefixtures("no_flock")
def test_without_file_locks_a_living_owner_keeps_others_out(folder: RunFolder) -> None:
    with folder.lock(), pytest.raises(InputError, match=f"pid {os.getpid()} "), folder.lock():
        pass
    with folder.lock():
        pass


@pytest.mark.usefixtures("no_flock")
@pytest.mark.parametrize("content", ["{}", "", "[", '{"pid": "x"}', "null"])
def test_without_file_locks_nonsense_is_taken_over(folder: RunFolder, content: str) -> None:
    (folder.path / inventory.LOCK).write_text(content)
    with folder.lock():
        pass


@pytest.mark.usefixtures("no_flock")
def test_without_file_locks_a_dead_owner_is_replaced(folder: RunFolder) -> None:
    owner = {"pid": dead_pid(), "host": socket.gethostname()}
    (folder.path / inventory.LOCK).write_text(json.dumps(owner))
    with folder.lock():
        pass


@pytest.mark.usefixtures("no_flock")
def test_without_file_locks_another_host_may_be_at_work(folder: RunFolder) -> None:
    owner = {"pid": dead_pid(), "host": "elsewhere"}
    (folder.path / inventory.LOCK).write_text(json.dumps(owner))
    with pytest.raises(InputError, match=r"on elsewhere.* remove .*\.dpipe\.lock"), folder.lock():
        pass


# The manifest


def test_altered_and_missing_files_are_named(folder: RunFolder) -> None:
    for name in ("a.txt", "b.txt", "c.txt", "d.txt"):
        folder.write_text(name, "content")
    (folder.path / "b.txt").write_text("CONTENT")
    (folder.path / "c.txt").unlink()
    (folder.path / "d.txt").write_text("more content")
    assert folder.verify_checksums() == ("b.txt", "c.txt", "d.txt")


def test_another_process_sees_the_same_manifest(folder: RunFolder) -> None:
    folder.write_text("a.txt", "a")
    RunFolder(folder.path).write_text("b.txt", "b")
    listed = json.loads((folder.path / inventory.MANIFEST).read_text())["files"]
    assert list(listed) == ["a.txt", "b.txt"]


@pytest.mark.parametrize(
    "files",
    [
        {"../evil": {"sha256": "", "bytes": 0}},
        {"/etc/passwd": {"sha256": "", "bytes": 0}},
        {"a/../../evil": {"sha256": "", "bytes": 0}},
    ],
)
def test_a_manifest_that_leads_outside_is_refused(
    folder: RunFolder, files: dict[str, object], tmp_path: Path
) -> None:
    (tmp_path / "evil").write_text("not yours")
    (folder.path / inventory.MANIFEST).write_text(json.dumps({"files": files}))
    with pytest.raises(InputError, match="would leave the run folder"):
        folder.verify_checksums()
    with pytest.raises(InputError, match="would leave the run folder"):
        folder.prune_results([])
    assert (tmp_path / "evil").read_text() == "not yours"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"files": 3}',
        b'{"files": {"a": 1}}',
        b"\xff\xfe\x00",
        b"[" * 99999,
    ],
)
def test_a_broken_manifest_is_an_input_error(folder: RunFolder, content: bytes) -> None:
    (folder.path / inventory.MANIFEST).write_bytes(content)
    with pytest.raises(InputError, match=r"manifest\.json cannot be read: .*; run dpipe again\."):
        folder.verify_checksums()
    folder.write_text("a.txt", "a")
    assert folder.verify_checksums() == ()


def test_a_missing_manifest_is_an_input_error(folder: RunFolder) -> None:
    with pytest.raises(InputError, match=r"manifest\.json does not exist; give the folder"):
        folder.verify_checksums()


def test_a_run_without_its_checkpoint_says_what_needs_it(folder: RunFolder) -> None:
    folder.write_run({})
    shutil.rmtree(folder.path / inventory.CHECKPOINT)
    needs = "`dpipe transfer` needs the folder checkpoint of the run"
    with pytest.raises(InputError, match=rf"statistics\.json is missing: {needs}"):
        folder.read_statistics()


def test_results_of_an_earlier_run_can_be_pruned(folder: RunFolder) -> None:
    for name in ("selected.txt", "hsic.npy", "notes of the user.txt"):
        (folder.path / name).write_text("user")
    folder.write_selected(["a"])
    folder.write_npy("hsic.npy", np.eye(2))
    folder.prune_results(["selected.txt"])
    assert sorted(p.name for p in folder.path.iterdir() if p.is_file()) == [
        "notes of the user.txt",
        "selected.txt",
    ]
    assert folder.verify_checksums() == ()
