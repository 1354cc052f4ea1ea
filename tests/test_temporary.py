"""Temporary folders: gone with their owner, and those of the dead with the next one.

Covers: `dpipe.common.temporary`, and what a killed run on text leaves.
Does not cover: the lock of a run folder (see `test_runfolder`).
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import ROOT

from dpipe.common import temporary
from dpipe.common.temporary import OwnedFolder
from dpipe.options import Options
from dpipe.table import open_table

_OWNER = """
import sys
from dpipe.common.temporary import OwnedFolder
folder = OwnedFolder(sys.argv[1], sys.argv[2])
print(folder.path, flush=True)
sys.stdin.read()
"""


@contextmanager
def owner(prefix: str, parent: Path) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """A process that has made such a folder, with a file in it, and lives on."""
    process = subprocess.Popen(
        [sys.executable, "-c", _OWNER, prefix, str(parent)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=ROOT,
        text=True,
    )
    with process:
        assert process.stdout is not None
        folder = Path(process.stdout.readline().strip())
        (folder / "part.parquet").write_bytes(b"half")
        try:
            yield process, folder
        finally:
            process.kill()


def killed(prefix: str, parent: Path) -> Path:
    """What is left of a process that was killed."""
    with owner(prefix, parent) as (_, folder):
        pass
    assert (folder / "part.parquet").exists()
    return folder


def test_a_folder_goes_with_its_owner_and_a_parent_that_was_made_for_it(tmp_path: Path) -> None:
    parent = tmp_path / "made" / "for it"
    with OwnedFolder("dpipe-a-", str(parent)) as path:
        (Path(path) / "inner").mkdir()
        assert Path(path).parent == parent
    assert list(tmp_path.iterdir()) == []
    folder = OwnedFolder("dpipe-a-", str(parent))
    (parent / "of the user").touch()
    folder.remove()
    folder.remove()
    assert [each.name for each in parent.iterdir()] == ["of the user"]


def test_a_process_that_ends_removes_its_folder(tmp_path: Path) -> None:
    with owner("dpipe-a-", tmp_path) as (process, _):
        process.communicate()
        assert process.returncode == 0
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_goes_with_the_next_folder_of_its_kind(tmp_path: Path) -> None:
    left = killed("dpipe-a-", tmp_path)
    other_kind = killed("dpipe-b-", tmp_path)
    with owner("dpipe-a-", tmp_path) as (_, living):
        assert not left.exists()  # the process that lives came after it
        mine = OwnedFolder("dpipe-a-", str(tmp_path))
        second = OwnedFolder("dpipe-a-", str(tmp_path))  # of the same process
        assert {each.name for each in tmp_path.iterdir()} == {
            Path(each).name for each in (living, mine.path, second.path, other_kind)
        }
        assert (living / "part.parquet").exists()


def test_nothing_is_removed_whose_owner_may_live(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = killed("dpipe-a-", tmp_path)
    (elsewhere / ".owner").write_text("another machine, whose locks may not be seen here")
    unmarked = tmp_path / "dpipe-a-unmarked"  # or not yet
    unmarked.mkdir()
    of_a_user = tmp_path / "dpipe-a-file"
    of_a_user.touch()
    link = tmp_path / "dpipe-a-link"
    link.symlink_to(killed("dpipe-b-", tmp_path))
    OwnedFolder("dpipe-a-", str(tmp_path)).remove()
    assert all(each.exists() for each in (elsewhere, unmarked, of_a_user, link / ".owner"))
    here = killed("dpipe-c-", tmp_path)
    monkeypatch.setattr(temporary, "try_lock", lambda descriptor: None)  # no locks: who knows?
    OwnedFolder("dpipe-c-", str(tmp_path)).remove()
    assert here.exists()


def test_a_folder_works_where_the_file_system_knows_no_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(temporary, "try_lock", lambda descriptor: None)
    with OwnedFolder("dpipe-a-", str(tmp_path)) as path:
        assert list(Path(path).iterdir()) == []
    assert list(tmp_path.iterdir()) == []


def test_text_that_a_killed_run_made_into_parquet_goes_with_the_next_run(tmp_path: Path) -> None:
    source = tmp_path / "x.csv"
    source.write_text("a,b\n1,2\n3,4\n")
    left = killed(".dpipe-input-", tmp_path)
    with open_table([source], options=Options(), scratch=tmp_path) as table:
        assert not left.exists()
        assert Path(table.files[0].path).exists()
    assert list(tmp_path.iterdir()) == [source]
