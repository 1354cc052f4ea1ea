"""The run folder keeps its promises when processes die, disks fill and files are tampered with."""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import pickle
import resource
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpipe import runfolder
from dpipe.common.plain import digest_of
from dpipe.errors import InputError, ResourceError
from dpipe.model import inventory
from dpipe.model.records import ColumnStatistics, Decision, Drop, PassResult
from dpipe.model.registry import Reason
from dpipe.runfolder import (
    SCHEMA_VERSION,
    Damaged,
    RunFolder,
    Saved,
    Stale,
    escape_name,
    plain,
    unescape_name,
)
from dpipe.runfolder.files import digest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "out").create()


def start(code: str, *arguments: object) -> subprocess.Popen[str]:
    """Another Python process that runs `code` with `sys.argv[1:]` = arguments."""
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def partial_files(folder: RunFolder) -> list[Path]:
    return list(folder.path.rglob("*.partial"))


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
        from test_runfolder import WRITERS
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


# Checkpoints of passes

RESULT = PassResult(
    number=3,
    name="prediction",
    kept=("MolWt", "two\nlines", "naïve"),
    drops=(
        Drop("TPSA", 3, Reason.INFLATED, "vif", float("inf"), 10.0, "MolWt"),
        Drop("LogP", 3, Reason.CONSTANT),
        Drop(
            "x",
            3,
            Reason.COMBINATION,
            "r2",
            0.1 + 0.2,
            1.0,
            None,
            "of MolWt (2)",
            1,
            (("MolWt", 2.0),),
        ),
    ),
    communities={"MolWt": 0, "two\nlines": 0},
    near_threshold=(("MolWt", "naïve", 0.9499999999999999),),
)
DEPENDS = {
    "version": "0.1.0",
    "input": "ab12",
    "options.vif_threshold": 10.0,
    "options.keep": ("MolWt",),
    "previous": None,
}


def load(folder: RunFolder, number: int, depends: dict[str, object]) -> Saved:
    found = folder.checkpoints.load(number, depends)
    assert isinstance(found, Saved), found
    return found


def test_a_pass_comes_back_exactly(folder: RunFolder) -> None:
    extra = {"files": {"vif.npy": "ab12"}, "cost": {"seconds": 0.1 + 0.2, "plan": None}}
    saved = folder.checkpoints.save(3, DEPENDS, RESULT, extra)
    assert load(RunFolder(folder.path), 3, DEPENDS) == saved
    assert (saved.result, saved.extra) == (RESULT, extra)


def test_a_pass_that_never_ran_is_none(folder: RunFolder) -> None:
    assert folder.checkpoints.load(1, {}) is None


@pytest.mark.parametrize(
    ("change", "fields"),
    [
        ({"version": "0.2.0"}, ("version",)),
        ({"input": "cd34", "previous": "k"}, ("input", "previous")),
        ({"options.vif_threshold": 10.000001}, ("options.vif_threshold",)),
        ({"options.keep": ()}, ("options.keep",)),
        ({"new": 1}, ("new",)),
        ({"previous": 0}, ("previous",)),
        ({"options.vif_threshold": True}, ("options.vif_threshold",)),
    ],
)
def test_changed_conditions_are_named(
    folder: RunFolder, change: dict[str, object], fields: tuple[str, ...]
) -> None:
    folder.checkpoints.save(3, DEPENDS, RESULT)
    assert folder.checkpoints.load(3, {**DEPENDS, **change}) == Stale(fields)


def test_a_condition_that_is_no_longer_given_is_named(folder: RunFolder) -> None:
    folder.checkpoints.save(3, DEPENDS, RESULT)
    fewer = {name: value for name, value in DEPENDS.items() if name != "input"}
    assert folder.checkpoints.load(3, fewer) == Stale(("input",))


def test_equal_results_have_equal_keys_whatever_they_cost(
    folder: RunFolder, tmp_path: Path
) -> None:
    other = RunFolder(tmp_path / "other")
    key = folder.checkpoints.save(3, DEPENDS, RESULT, {"seconds": 1}).key
    in_another_order = dict(reversed(DEPENDS.items()))
    assert other.checkpoints.save(3, in_another_order, RESULT, {"seconds": 2}).key == key
    assert other.checkpoints.save(3, {**DEPENDS, "version": "0.2.0"}, RESULT).key != key


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"body": {}}', b"\x80abc", b"[" * 99999])
def test_a_broken_record_counts_as_absent(folder: RunFolder, content: bytes) -> None:
    folder.checkpoints.save(3, DEPENDS, RESULT)
    (folder.path / "checkpoint/pass-3.json").write_bytes(content)
    found = folder.checkpoints.load(3, DEPENDS)
    assert isinstance(found, Damaged)
    assert "checkpoint/pass-3.json" in found.reason


def test_one_changed_letter_in_a_record_is_noticed(folder: RunFolder) -> None:
    folder.checkpoints.save(3, DEPENDS, RESULT)
    record = folder.path / "checkpoint/pass-3.json"
    record.write_text(record.read_text().replace("TPSA", "TPSB"))
    assert folder.checkpoints.load(3, DEPENDS) == Damaged(
        "checkpoint/pass-3.json does not have the checksum it was written with"
    )


def test_a_checkpoint_of_another_layout_is_stale(folder: RunFolder) -> None:
    folder.checkpoints.save(3, DEPENDS, RESULT)
    record = folder.path / "checkpoint/pass-3.json"
    body = json.loads(record.read_text())["body"]
    del body["schema"], body["extra"]
    body["arrays"] = {"file": "pass-3-ab12.npz"}  # as schema 1 had it
    record.write_text(json.dumps({"sha256": digest_of(body), "body": body}))
    assert folder.checkpoints.load(3, DEPENDS) == Stale(("schema",))


def test_a_full_disk_leaves_the_last_good_pass(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = folder.checkpoints.save(3, DEPENDS, RESULT, {"seconds": 1})

    def refuse(*_: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.replace", refuse)
        with pytest.raises(ResourceError, match="pass-3"):
            folder.checkpoints.save(3, {**DEPENDS, "version": "0.2.0"}, RESULT)
    assert load(folder, 3, DEPENDS) == saved


def test_clearing_forgets_passes_and_nothing_else(folder: RunFolder) -> None:
    folder.write_selected(["a"])
    folder.checkpoints.save(3, DEPENDS, RESULT)
    folder.checkpoints.clear()
    assert folder.checkpoints.load(3, DEPENDS) is None
    assert folder.verify_checksums() == ()


# Statistics, matrices, digests


def test_statistics_come_back_exactly(folder: RunFolder) -> None:
    numbers = (float("nan"), float("-inf"), 0.1 + 0.2, 1e-300, 5e-324, -0.0, 1.0)
    entries = tuple(
        ColumnStatistics(name, 9, 6, 1, 1, 1, 5, *numbers[k:], *numbers[:k], 0.5, "nan", -1)
        for k, name in enumerate(["nan", "inf", "two\nlines"])
    )
    folder.write_statistics(entries)
    again = folder.read_statistics()
    assert list(map(repr, again)) == list(map(repr, entries))
    assert folder.verify_checksums() == ()


@pytest.mark.parametrize("content", ['{"columns": 3}', '{"columns": [{"name": "x"}]}', "{}"])
def test_broken_statistics_are_an_input_error(folder: RunFolder, content: str) -> None:
    folder.write_text(inventory.STATISTICS, content)
    with pytest.raises(InputError, match=r"statistics\.json cannot be read: .*; run dpipe again"):
        folder.read_statistics()


def test_a_matrix_comes_back_with_its_columns(folder: RunFolder) -> None:
    with folder.write_matrix("hsic", ["a", "two\nlines"]) as out:
        out[:] = [[1, 0.25], [0.25, np.nan]]
    columns, values = folder.read_matrix("hsic")
    assert columns == ("a", "two\nlines")
    np.testing.assert_array_equal(values, np.array([[1, 0.25], [0.25, np.nan]], np.float32))
    folder.write_columns("hsic_columns.txt", ["a"])
    with pytest.raises(InputError, match=r"hsic\.npy cannot be read: it does not fit hsic_col"):
        folder.read_matrix("hsic")


def test_a_digest_is_of_the_content_whoever_wrote_it(folder: RunFolder) -> None:
    folder.write_text("a.txt", "one")
    ours = folder.digest_of("a.txt")
    assert ours == digest(folder.path / "a.txt")
    (folder.path / "a.txt").write_text("two")
    assert folder.digest_of("a.txt") == digest(folder.path / "a.txt") != ours
    assert folder.digest_of("b.txt") is None
    (folder.path / inventory.MANIFEST).write_text("broken")
    assert folder.digest_of("a.txt") == digest(folder.path / "a.txt")


def test_a_run_of_another_layout_is_refused_with_what_to_do(folder: RunFolder) -> None:
    folder.write_json("run.json", {"schema": 1})
    with pytest.raises(InputError, match=r"it has schema 1, .* reads 2; run dpipe again\.$"):
        folder.read_run()


# Results

NASTY = [
    '=HYPERLINK("http://x")',
    "+1",
    "-2",
    "@SUM(A1)",
    "\tx",
    "\rx",
    'comma, "quote"',
    "two\r\nlines",
    "<img src=x onerror=alert(1)>",
    "",
    " ",
    "ünïcode 🧪",
    "back\\slash\\n",
    "line\u2028separator\x85\x0b\x1c",
    "\ufeffbom",
]


def decision(column: str, **changes: object) -> Decision:
    values = dict.fromkeys(Decision.__dataclass_fields__) | {
        "column": column,
        "dtype": "double",
        "decision": "kept",
        "reason": "",
    }
    return Decision(**{**values, **changes})  # type: ignore[arg-type]


DECISIONS = [
    *map(decision, NASTY),
    decision(
        "full",
        n_valid=10**12,
        n_missing=3,
        n_nan=1,
        n_inf=1,
        n_unique=7,
        decision="dropped",
        pass_number=3,
        reason="vif",
        measure="vif",
        value=float("inf"),
        threshold=10.0,
        representative="=1+1",
        community=4,
    ),
    decision("negative", value=-0.1, threshold=0.95),
]


def test_decisions_come_back(folder: RunFolder) -> None:
    folder.write_decisions(DECISIONS)
    assert list(folder.read_decisions()) == DECISIONS
    assert pq.read_schema(folder.path / "decisions.parquet").names == [
        *("column", "dtype", "n_valid", "n_missing", "n_nan", "n_inf", "n_unique"),
        *("decision", "pass", "reason", "measure", "value", "threshold"),
        *("representative", "community", "relevance"),
    ]


def test_no_decisions_come_back(folder: RunFolder) -> None:
    folder.write_decisions([])
    assert folder.read_decisions() == ()


def test_the_csv_is_readable_and_harmless(folder: RunFolder) -> None:
    folder.write_decisions(DECISIONS)
    text = (folder.path / "decisions.csv").read_bytes().decode()
    rows = list(csv.reader(io.StringIO(text, newline=""), strict=True))
    assert rows[0] == runfolder.DECISIONS_SCHEMA.names
    assert {len(row) for row in rows} == {16}
    for row, name in zip(rows[1:], NASTY, strict=False):
        assert row[0] == (f"'{name}" if name[:1] in tuple("=+-@\t\r") and name else name)
    full = dict(zip(rows[0], rows[-2], strict=True))
    assert full["representative"] == "'=1+1"
    assert (full["n_valid"], full["value"], full["threshold"]) == ("1000000000000", "inf", "10.0")
    # A negative number is a number and stays one.
    assert dict(zip(rows[0], rows[-1], strict=True))["value"] == "-0.1"


def test_the_csv_is_what_pandas_reads(folder: RunFolder) -> None:
    pandas = pytest.importorskip("pandas")
    folder.write_decisions(DECISIONS)
    frame = pandas.read_csv(
        folder.path / "decisions.csv", keep_default_na=False, na_values={"value": [""]}
    )
    assert list(frame["column"])[6] == 'comma, "quote"'
    assert frame["value"].iloc[-1] == -0.1


def test_selected_columns_come_back_one_a_line(folder: RunFolder) -> None:
    folder.write_selected(NASTY)
    assert list(folder.read_selected()) == NASTY
    text = (folder.path / "selected.txt").read_bytes().decode()
    assert len(text.splitlines()) == len(NASTY)
    assert "back\\\\slash\\\\n\n" in text
    assert "two\\r\\nlines\n" in text
    assert "line\\u2028separator\\x85\\x0b\\x1c\n" in text


def test_ordinary_names_are_written_as_they_are(folder: RunFolder) -> None:
    folder.write_selected(["MolWt", "a b", "ünïcode"])
    assert (folder.path / "selected.txt").read_bytes() == "MolWt\na b\nünïcode\n".encode()
    folder.write_selected([])
    assert (folder.path / "selected.txt").read_bytes() == b""
    assert folder.read_selected() == ()


@pytest.mark.parametrize("content", [b"a\r\nb\r\n", b"\xef\xbb\xbfa\nb", b"a\nb\n"])
def test_a_list_saved_by_an_editor_still_reads(folder: RunFolder, content: bytes) -> None:
    (folder.path / "selected.txt").write_bytes(content)
    assert folder.read_selected() == ("a", "b")


@given(st.text(st.characters(codec="utf-8")))
def test_escaping_is_reversible_and_stays_on_one_line(name: str) -> None:
    line = escape_name(name)
    assert unescape_name(line) == name
    assert len(line.splitlines()) <= 1
    assert not line.endswith(("\n", "\r"))


@given(st.text(alphabet="\\nrxu0a\n\r\u2028"), st.text(alphabet="\\nrxu0a\n\r\u2028"))
def test_escaping_keeps_names_apart(one: str, other: str) -> None:
    assert unescape_name(escape_name(one)) == one
    assert (escape_name(one) == escape_name(other)) == (one == other)


def test_json_results_come_back(folder: RunFolder) -> None:
    communities = {"MolWt": [{"column": "<b>", "pass": 2, "measure": "spearman", "value": 0.97}]}
    folder.write_communities(communities)
    assert folder.read_communities() == communities
    folder.write_run({"options": DEPENDS, "ledger": (RESULT.drops[1],), "where": Path("a")})
    run = folder.read_run()
    assert run["schema"] == SCHEMA_VERSION
    assert run["where"] == "a"
    assert run["ledger"][0]["column"] == "LogP"


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("decisions.parquet", RunFolder.read_decisions),
        ("selected.txt", RunFolder.read_selected),
        ("communities.json", RunFolder.read_communities),
        ("run.json", RunFolder.read_run),
        ("spearman.npy", lambda folder: folder.read_npy("spearman.npy")),
    ],
)
def test_readers_name_what_is_missing_or_broken(
    folder: RunFolder, name: str, read: Callable[[RunFolder], object]
) -> None:
    with pytest.raises(InputError, match=f"{name} does not exist; give the folder of a finished"):
        read(folder)
    (folder.path / name).write_bytes(b"\xff\xfe broken")
    with pytest.raises(InputError, match=f"{name} cannot be read: .*; run dpipe again"):
        read(folder)
    (folder.path / name).unlink()
    (folder.path / name).mkdir()
    with pytest.raises(InputError, match=f"{name} cannot be read"):
        read(folder)


def test_another_parquet_file_is_no_decision_table(folder: RunFolder) -> None:
    folder.write_parquet("decisions.parquet", pa.table({"column": ["a"]}))
    with pytest.raises(InputError, match=r"decisions\.parquet cannot be read"):
        folder.read_decisions()


def test_plain_refuses_what_json_cannot_hold() -> None:
    with pytest.raises(TypeError, match="object has no form in JSON"):
        plain(object())


def test_plain_speaks_json() -> None:
    value = {
        "numpy": (np.float32(0.5), np.int64(3), np.bool_(True), np.arange(2)),
        "floats": [float("nan"), float("-inf"), 1e300],
        "sets": {"b", "a"},
        3: None,
    }
    text = json.dumps(plain(value), allow_nan=False)
    assert json.loads(text) == {
        "numpy": [0.5, 3, True, [0, 1]],
        "floats": ["nan", "-inf", 1e300],
        "sets": ["a", "b"],
        "3": None,
    }


def test_the_limit_on_file_size_is_still_this_process_own() -> None:
    """The tests above shrink it in children only."""
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
