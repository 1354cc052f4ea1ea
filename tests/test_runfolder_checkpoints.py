"""Checkpoints of passes come back exactly, or say why they do not count any more.

Does not cover: what a run makes of them (`test_resume`).
"""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest
from folders import DEPENDS, RESULT, load

from dpipe.common.plain import digest_of
from dpipe.errors import ResourceError
from dpipe.runfolder import Damaged, RunFolder, Stale


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
