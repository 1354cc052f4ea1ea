"""The same command again: after a kill at every kind of write, and after something changed."""

from __future__ import annotations

import functools
import json
import os
import shutil
import signal
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import trials
from trials import Reference, make_reference, make_table, wait_for

import dpipe
from dpipe.common.plain import digest_of
from dpipe.model.events import Event, Note, PassDone, TaskDone
from dpipe.options import options_from
from dpipe.pipeline import resume, run
from dpipe.runfolder import RunFolder, files

ONE = ("--workers", "1", "--device", "cpu", "--restart", "never")
"""What is killed here is the client, and a process less starts thirty times."""
start = functools.partial(trials.start, verbose=True, where=ONE)

# In the order a run comes by them: every kind of file in every pass, of workers and of the client.
EVERY_KILL = (
    "kill-before */ranks-*/table-*.json",
    "kill-after */ranks-*/layout.json",
    "kill-before */block-*.f32",
    "kill-before */block-*.json",
    "kill-after */block-*.json",
    "kill-before */checkpoint/statistics.json",
    "kill-before */checkpoint/pass-1.json",
    "kill-before */spearman-*/catalogue.npz",
    "kill-before */spearman-*/tile-*.npz",
    "kill-after */spearman-*/tile-*.npz",
    "kill-before */spearman-*/pairs-*.npz",
    "kill-before */spearman-*/settled-*.npz",
    "kill-after */spearman-*/settled-*.npz",
    "kill-before */spearman.npy",
    "kill-before */checkpoint/manifest.json",
    "kill-after */checkpoint/pass-2.json",
    "kill-before */prediction-*/marginals-*.npz",
    "kill-after */prediction-*/tile-*.npz",
    "kill-before */checkpoint/pass-3.json",
    "kill-before */nonlinear-*/tile-*.npz",
    "kill-after */hsic.npy",
    "kill-before */checkpoint/pass-4.json",
    "kill-after */selected.txt",
    "kill-before */decisions.parquet",
    "kill-before */decisions.csv",
    "kill-before */communities.json",
    "kill-before */run/table",
    "kill-after */run/table",
    "kill-before */run.json",
    "kill-after */report.html",
)
KILLS = EVERY_KILL[::2]
"""Of each pass and of each side some; the others only with ``--runslow``."""


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    folder = tmp_path_factory.mktemp("resume")
    return make_reference(make_table(folder / "table"), folder / "run", where=ONE)


@pytest.mark.parametrize(
    "kills", [KILLS, pytest.param(EVERY_KILL, marks=pytest.mark.slow)], ids=["some", "every"]
)
def test_a_client_killed_at_every_kind_of_write_continues(
    reference: Reference, tmp_path: Path, kills: Sequence[str]
) -> None:
    log = tmp_path / "finished"
    folder = tmp_path / "run"
    for kill in kills:
        trial = start(reference.table, folder, "--write-table", fault=kill, log=log)
        assert trial.finish() == -signal.SIGKILL, (kill, trial.out, trial.errors)
    trial = start(reference.table, folder, "--write-table", log=log)
    trial.finish()
    reference.check(trial)
    assert trial.tasks == {}
    assert sorted(path.name for path in folder.glob("*table*")) == ["table"]
    finished = Counter(log.read_text().splitlines())
    assert reference.tasks["settle-pairs"] > 4
    assert len(finished) >= sum(reference.tasks.values()) / 2
    assert set(finished.values()) == {1}, "a finished task was run again"


def test_work_before_a_kill_is_counted_out_of_the_next_run(
    reference: Reference, tmp_path: Path
) -> None:
    trial = start(reference.table, tmp_path / "run", fault="kill-after */spearman-*/tile-*.npz")
    assert trial.finish() == -signal.SIGKILL
    finished = len(trial.files("tile-*.npz"))
    assert finished >= 1
    again = start(reference.table, tmp_path / "run")
    again.finish()
    reference.check(again)
    assert "pass 1 is taken from the run before." in again.out
    assert "rank-columns" not in again.tasks or again.tasks["rank-columns"] == 0
    expected = reference.tasks["moments-spearman"] - finished
    assert again.tasks.get("moments-spearman", 0) == expected


def test_ranks_that_a_crash_of_the_machine_lost_are_ranked_again(
    reference: Reference, tmp_path: Path
) -> None:
    trial = start(reference.table, tmp_path / "run", fault="kill-after */spearman-*/tile-*.npz")
    assert trial.finish() == -signal.SIGKILL
    block = max(trial.files("block-*.f32"))
    content = block.read_bytes()
    lost = 4096  # what a file system leaves of a page that it had no time to write
    block.write_bytes(bytes(lost) + content[lost:])
    again = start(reference.table, tmp_path / "run")
    again.finish()
    reference.check(again)
    assert again.tasks["check-columns"] == reference.tasks["rank-columns"]
    assert again.tasks["rank-columns"] == 1
    assert block.read_bytes() == content


def test_an_interrupted_run_ends_at_once_and_continues(
    reference: Reference, tmp_path: Path
) -> None:
    trial = start(reference.table, tmp_path / "run", seconds=0.5)
    wait_for(lambda: trial.files("block-*.json"), "the first finished block")
    trial.interrupt()
    assert trial.finish() == 130, trial.errors
    assert trial.errors == "interrupted; run the same command again to continue\n"
    again = start(reference.table, tmp_path / "run")
    again.finish()
    reference.check(again)
    assert again.tasks["rank-columns"] < reference.tasks["rank-columns"]


def test_two_runs_in_one_folder_exclude_each_other(reference: Reference, tmp_path: Path) -> None:
    first = start(reference.table, tmp_path / "run", seconds=0.5)
    wait_for(lambda: first.files("block-*.json"), "the first finished block")
    second = start(reference.table, tmp_path / "run")
    assert second.finish() == 2
    assert "another run" in second.errors
    assert str(tmp_path / "run") in second.errors
    first.finish()
    reference.check(first)


def test_what_another_command_left_half_done_does_not_leak_into_the_first(
    reference: Reference, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    first = start(reference.table, folder)
    first.finish()
    reference.check(first)
    matrix = (folder / "spearman.npy").read_bytes()
    for kill in ("kill-before */checkpoint/pass-1.json", "kill-before */checkpoint/pass-2.json"):
        other = start(
            reference.table,
            folder,
            "--max-missing-ratio",
            "0.1",
            "--sample-rows",
            "800",
            fault=kill,
        )
        assert other.finish() == -signal.SIGKILL, other.errors
    assert (folder / "spearman.npy").read_bytes() != matrix
    again = start(reference.table, folder)
    again.finish()
    reference.check(again)
    assert (folder / "spearman.npy").read_bytes() == matrix


def test_runs_that_share_a_scratch_folder_leave_each_other_alone(
    reference: Reference, tmp_path: Path
) -> None:
    scratch = ("--scratch-dir", str(tmp_path / "scratch"))
    one = start(reference.table, tmp_path / "one", *scratch, seconds=0.2)
    wait_for(lambda: list((tmp_path / "scratch").rglob("block-*.json")), "the first finished block")
    other = start(reference.table, tmp_path / "other", *scratch, "--fresh")
    other.finish()
    one.finish()
    reference.check(other)
    reference.check(one)
    assert list((tmp_path / "scratch").rglob("*.partial")) == []


# Changes, on workers that are there already


@pytest.fixture
def again(client: Any, tmp_path: Path) -> Any:
    """Run in one folder, and say which passes were reused, what was said, how many tasks ran."""
    home = make_table(tmp_path / "table")

    def run(table: Path = home, **changes: Any) -> tuple[list[bool], str, Counter[str]]:
        events: list[Event] = []
        options: dict[str, Any] = {"restart": "never", "min_valid": 50, **changes}
        dpipe.select(
            table,
            client=client,
            output_dir=tmp_path / "run",
            observers=[events.append],
            **{"nonlinear_threshold": 0.6, **options},
        )
        reused = [event.reused for event in events if isinstance(event, PassDone)]
        said = "\n".join(event.text for event in events if isinstance(event, Note))
        return reused, said, Counter(event.name for event in events if isinstance(event, TaskDone))

    reused, _, tasks = run()
    assert reused == [False] * 4
    assert tasks["rank-columns"] > 1
    return run


def test_what_a_pass_found_is_told_again_by_a_run_that_takes_it_over(
    client: Any, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    x, y, z = rng.random((3, 300))
    columns = {"x": x, "y": y, "z": z, "leak": y, "copy": x + 0.01 * z, "sum": x + z}
    path = tmp_path / "table.parquet"
    pq.write_table(pa.table(columns), path)

    def told(**changes: Any) -> list[str]:
        dpipe.select(
            path,
            client=client,
            output_dir=tmp_path / "run",
            **{"target": "y", "keep": ("x", "z", "copy", "sum"), "restart": "never", **changes},
        )
        notes = RunFolder(tmp_path / "run").read_run()["notes"]
        return [note["text"] for note in notes if note["level"] == "warning"]

    first = told()
    for words in ("'leak' follows the target", "though their spearman"):
        assert sum(words in text for text in first) == 1, (words, first)
    assert told() == first  # every pass from the checkpoint
    assert told(nonlinear_threshold=0.85) == first  # pass 4 anew
    assert len(told(keep=("x",))) == 1  # nothing is left of what was decided anew


@pytest.mark.parametrize(
    ("change", "reused"),
    [
        ({"max_missing_ratio": 0.3}, [False] * 4),
        ({"spearman_threshold": 0.9}, [True, False, False, False]),
        ({"missing": "exact"}, [True, False, False, False]),
        ({"r2_threshold": 0.8}, [True, True, False, False]),
        ({"weights": "hsic=1,rdc=0.5"}, [True, True, True, False]),
        ({"matrix_budget": 2**20}, [True] * 4),
        ({"memory_limit": 2**31, "checkpoint": False}, [True] * 4),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_an_option_that_changed_is_named_and_its_passes_are_done_again(
    again: Any, change: dict[str, Any], reused: list[bool]
) -> None:
    found, said, tasks = again(**change)
    assert found == reused
    if all(reused):
        assert not tasks
    else:
        first = reused.index(False) + 1
        assert f"pass {first} runs again because {next(iter(change))} changed." in said
    for number in range(1, reused.count(True) + 1):
        assert f"pass {number} is taken from the run before." in said


def test_what_decides_about_columns_reads_and_sorts_none_again(again: Any) -> None:
    for change in (
        {"keep": ("flag",)},
        {"prefer": ("square1", "noisy0_2")},
        {"seed": 7},
        {"min_valid": 60},
        {"max_missing_ratio": 0.3},
        {"variance_threshold": 0.01},
    ):
        reused, said, tasks = again(passes=(1,), **change)
        assert reused == [False]
        assert next(iter(change)) in said
        assert tasks["rank-columns"] == 0


def test_ranks_made_under_other_options_lead_to_the_same_answer(
    again: Any, client: Any, tmp_path: Path
) -> None:
    table = tmp_path / "table"
    first = RunFolder(tmp_path / "run").read_decisions()
    changes = {"keep": ("tail1", "empty"), "max_missing_ratio": 0.2, "min_valid": 100, "seed": 3}
    assert again(**changes)[2]["rank-columns"] == 0
    options = {"restart": "never", "nonlinear_threshold": 0.6, **changes}
    other = dpipe.select(table, client=client, output_dir=tmp_path / "other", **options)
    assert RunFolder(tmp_path / "run").read_decisions() == other.decisions
    assert other.decisions != first
    assert {"tail1", "empty"} <= set(other.selected)


def test_other_rows_are_ranked_anew_and_the_former_ranks_go(again: Any, tmp_path: Path) -> None:
    assert again(sample_rows=400)[2]["rank-columns"] > 0
    assert again(sample_rows=400, seed=1)[2]["rank-columns"] > 0
    assert again(sample_rows=400, seed=1, min_valid=60)[2]["rank-columns"] == 0
    assert len(list((tmp_path / "run" / "checkpoint").glob("ranks-*"))) == 1


def test_workers_that_know_the_table_find_it_where_it_moved(again: Any, tmp_path: Path) -> None:
    (tmp_path / "table").rename(tmp_path / "moved")
    for block in (tmp_path / "run" / "checkpoint").rglob("block-*"):
        block.unlink()
    (tmp_path / "run" / "checkpoint" / "pass-1.json").unlink()
    reused, _, tasks = again(table=tmp_path / "moved")
    assert tasks["rank-columns"] > 1
    assert reused[0] is False
    assert len(list((tmp_path / "run" / "checkpoint").rglob("table-*.json"))) == 1


def test_what_reused_passes_cost_is_not_forgotten(again: Any, tmp_path: Path) -> None:
    def record() -> dict[str, Any]:
        content: dict[str, Any] = json.loads((tmp_path / "run" / "run.json").read_text())
        return content

    first = record()
    assert first["ledger"]
    assert first["plan"]["passes"]
    again()
    second = record()
    for name in ("ledger", "plan", "faults"):
        assert second[name] == first[name]
    for one, other in zip(first["passes"], second["passes"], strict=True):
        assert other == {**one, "reused": True}
    again(r2_threshold=0.8)
    third = record()
    assert [done["reused"] for done in third["passes"]] == [True, True, False, False]
    assert [done["seconds"] for done in third["passes"][:2]] == [
        done["seconds"] for done in first["passes"][:2]
    ]
    old = [reading for reading in first["ledger"] if reading["pass_number"] <= 2]
    assert third["ledger"][: len(old)] == old
    moments = [(r["moment"], r["pass_number"]) for r in third["ledger"] if r["process"] == "client"]
    assert moments[-4:] == [("start", 0), ("after", 3), ("recycled", 3), ("after", 4)]
    seconds = [reading["seconds"] for reading in third["ledger"]]
    assert seconds == sorted(seconds)


def test_an_input_that_changed_is_named_and_read_again(again: Any, tmp_path: Path) -> None:
    part = tmp_path / "table" / "part-0.parquet"
    stamp = part.stat().st_mtime
    os.utime(part, (stamp + 5, stamp + 5))
    reused, said, _ = again()
    assert reused == [False] * 4
    assert "pass 1 runs again because the input changed." in said


def test_another_version_of_dpipe_trusts_nothing(again: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(resume, "version", lambda name="dpipe": "99.0")
    reused, said, _ = again()
    assert reused == [False] * 4
    assert "pass 1 runs again because the version of dpipe changed." in said


def test_fresh_starts_over(again: Any) -> None:
    reused, _, tasks = again(fresh=True)
    assert reused == [False] * 4
    assert tasks["rank-columns"] > 1


@pytest.mark.parametrize(
    ("name", "number", "why"),
    [
        ("pass-2.json", 2, ": checkpoint/pass-2.json does not have the checksum"),
        ("statistics.json", 1, " because checkpoint/statistics.json is missing or of another run"),
    ],
)
def test_a_checkpoint_that_was_altered_is_not_believed(
    again: Any, tmp_path: Path, name: str, number: int, why: str
) -> None:
    path = tmp_path / "run" / "checkpoint" / name
    path.write_bytes(path.read_bytes().replace(b"0", b"1", 1))
    reused, said, _ = again()
    assert reused[number - 1] is False
    assert f"pass {number} runs again{why}" in said


def test_a_folder_of_another_layout_is_done_again(again: Any, tmp_path: Path) -> None:
    path = tmp_path / "run" / "checkpoint" / "pass-1.json"
    body = json.loads(path.read_text())["body"]
    del body["schema"]  # as schema 1 had it
    path.write_text(json.dumps({"sha256": digest_of(body), "body": body}))
    reused, said, _ = again()
    assert reused[0] is False
    assert "pass 1 runs again because the layout of a run folder changed." in said


def test_a_matrix_that_is_gone_or_altered_is_made_again(again: Any, tmp_path: Path) -> None:
    path = tmp_path / "run" / "spearman.npy"
    before = np.load(path)
    path.unlink()
    reused, said, _ = again()
    assert reused == [True, False, True, True]
    assert "pass 2 runs again because spearman.npy is missing or of another run." in said
    altered = before.copy()
    altered[0, 0] = 2
    np.save(path, altered)
    assert again()[0] == [True, False, True, True]
    np.testing.assert_array_equal(np.load(path), before)


def test_a_matrix_is_read_for_its_digest_only_where_somebody_touched_it(
    again: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[str] = []

    def digest(path: Path) -> str:
        hashed.append(path.name)
        return read(path)

    read = files.digest
    monkeypatch.setattr(files, "digest", digest)
    assert again()[0] == [True] * 4
    assert hashed == []
    os.utime(tmp_path / "run" / "spearman.npy", (1, 1))
    assert again()[0] == [True] * 4
    assert hashed == ["spearman.npy"]


def test_a_rank_store_that_is_gone_is_made_again(again: Any, tmp_path: Path) -> None:
    (store,) = (tmp_path / "run" / "checkpoint").glob("ranks-*")
    shutil.rmtree(store)
    reused, _, tasks = again(r2_threshold=0.8)
    assert reused == [True, True, False, False]
    assert tasks["rank-columns"] > 1


def test_a_matrix_budget_below_the_table_leaves_passes_reusable(again: Any) -> None:
    assert again(matrix_budget=8 * 30**2, spearman_threshold=0.9)[0] == [True, False, False, False]
    assert again(matrix_budget=8 * 30**2, spearman_threshold=0.9)[0] == [True] * 4


def test_what_a_worker_had_half_written_goes_with_its_session(tmp_path: Path) -> None:
    make_table(tmp_path / "table")
    left: list[Path] = []

    def interrupt(event: Event) -> None:
        if isinstance(event, PassDone):
            (block,) = sorted((tmp_path / "run").rglob("block-*.f32"))[:1]
            left.append(block.with_name(f".{block.name}.0123456789ab.partial"))
            left[0].touch()
            raise KeyboardInterrupt

    options = options_from({"workers": 1, "device": "cpu", "passes": "1,2", "min_valid": 50})
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "table", options, output_dir=tmp_path / "run", observers=[interrupt])
    assert len(left) == 1
    assert not left[0].exists()
    assert list((tmp_path / "run").rglob("block-*.f32")) != []
