"""The table of pairs, and what a run would have kept at another threshold."""

from __future__ import annotations

import itertools
import math
import os
import subprocess
import sys
from concurrent.futures.process import BrokenProcessPool
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import psutil
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from conftest import ROOT
from tables import mixed_table, write_parts

import dpipe
from dpipe.choice.certificate import came_back
from dpipe.cli import main
from dpipe.common.processes import Processes
from dpipe.engine import grid
from dpipe.errors import InputError
from dpipe.model.events import Note
from dpipe.options import Options
from dpipe.report import results
from dpipe.report.results import read_results
from dpipe.runfolder import RunFolder, thresholds
from dpipe.selection import Selection

OPTIONS: dict[str, Any] = {"restart": "never", "min_valid": 50, "nonlinear_threshold": 0.6}
FLOOR = 0.4
WHOLE: dict[str, Any] = {**OPTIONS, "spearman_threshold": 0.98, "r2_threshold": 0.6}


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("thresholds") / "table"
    return write_parts(mixed_table(600, families=3), folder, parts=2)


@pytest.fixture(scope="module")
def run(table: Path, here: Any) -> Selection:
    return dpipe.select(
        table,
        client=here,
        output_dir=table.parent / "run",
        passes=(1, 2, 4),
        pairs_from=FLOOR,
        **OPTIONS,
    )


def test_every_pair_is_listed_as_pandas_has_it(run: Selection, table: Path) -> None:
    pairs = run.pairs("pandas")
    found = pairs[pairs["pass"] == 2].set_index(["column_a", "column_b"])
    assert found.exact.all()
    received = [d.column for d in run.decisions if d.pass_number != 1]
    frame = pd.read_parquet(table)[received].replace([np.inf, -np.inf], np.nan)
    rho = frame.corr(method="spearman", min_periods=50)
    valid = frame.notna().to_numpy()
    joint = pd.DataFrame(valid.T.astype(int) @ valid, index=received, columns=received)
    expected = {
        (a, b): rho.loc[a, b]
        for a in received
        for b in received
        if a < b and round(abs(rho.loc[a, b]), 6) >= FLOOR
    }
    assert set(found.index) == set(expected)
    assert any(joint.loc[pair] < len(frame) for pair in expected)
    for pair, row in found.iterrows():
        assert row.value == pytest.approx(expected[pair], abs=1e-6)
        assert row.rows == joint.loc[pair]
    assert pairs.value.abs().round(6)[pairs["pass"] == 2].is_monotonic_decreasing


@pytest.mark.parametrize("threshold", [0.4, 0.55, 0.7, 0.85, 0.9, 0.97])
def test_pass_2_keeps_what_a_run_at_that_threshold_keeps(
    threshold: float, run: Selection, table: Path, here: Any
) -> None:
    options = {**OPTIONS, "passes": (1, 2), "spearman_threshold": threshold}
    again = dpipe.select(table, client=here, output_dir=table.parent / "again", **options)
    assert run.what_if(threshold).kept == again.selected


def test_pairs_of_each_measure_are_those_of_its_matrix(run: Selection) -> None:
    pairs = run.pairs("pandas")
    pairs = pairs[pairs["pass"] == 4]
    assert list(pairs.measure.unique()) == ["hsic+rdc", "hsic", "rdc"]
    assert not pairs.exact[pairs.measure != "hsic+rdc"].any()
    for measure in ("hsic", "rdc"):
        values = np.load(run.folder / f"{measure}.npy", allow_pickle=False)
        columns = (run.folder / f"{measure}_columns.txt").read_text().splitlines()
        expected = {
            tuple(sorted((columns[i], columns[j]))): values[i, j]
            for i, j in zip(*np.triu_indices(len(columns), 1), strict=True)
            if round(float(values[i, j]), 6) >= FLOOR
        }
        found = pairs[pairs.measure == measure].set_index(["column_a", "column_b"]).value
        assert set(found.index) == set(expected)
        assert found.is_monotonic_decreasing or found.round(6).is_monotonic_decreasing
        for pair, value in found.items():
            assert value == pytest.approx(expected[pair], abs=1e-6)


def test_a_measure_that_decides_alone_is_listed_once(table: Path, here: Any) -> None:
    found = dpipe.select(
        table,
        client=here,
        passes=(1, 4),
        weights={"hsic": 1, "rdc": 0},
        pairs_from=FLOOR,
        **OPTIONS,
    )
    pairs = found.pairs("pandas")
    assert list(pairs.measure.unique()) == ["hsic", "rdc"]
    assert not pairs.duplicated(["measure", "column_a", "column_b"]).any()
    assert found.what_if(0.5, 4).measure == "hsic"


@pytest.mark.parametrize("threshold", [0.45, 0.6, 0.75])
def test_pass_4_keeps_what_a_run_at_that_threshold_keeps(
    threshold: float, run: Selection, table: Path, here: Any
) -> None:
    options = {**OPTIONS, "passes": (1, 2, 4), "nonlinear_threshold": threshold}
    again = dpipe.select(table, client=here, output_dir=table.parent / "again", **options)
    assert run.what_if(threshold, 4).kept == again.selected


@pytest.fixture(scope="module")
def whole(table: Path, here: Any) -> Selection:
    """A run of all passes in which pass 3 drops columns and takes some of them back."""
    return dpipe.select(
        table, client=here, output_dir=table.parent / "whole", pairs_from=FLOOR, **WHOLE
    )


def test_a_what_if_says_what_takes_a_run_to_tell(run: Selection, whole: Selection) -> None:
    assert run.what_if(0.75, 4).left_open == ""
    assert run.what_if(0.9).left_open.startswith("what pass 4 would make of these")
    assert whole.what_if(0.9).left_open.startswith("what pass 3 and pass 4 would make of these")
    told = whole.what_if(0.5, 4).left_open
    assert told.startswith("which of ")
    assert told.endswith(" that pass 3 dropped would come back takes a run.")
    assert whole.what_if(1.0, 4).left_open == ""  # nothing goes, so nothing comes back


@pytest.mark.parametrize("threshold", [0.45, 0.6, 0.75])
def test_pass_4_after_pass_3_keeps_what_it_keeps_in_a_run(
    threshold: float, whole: Selection, table: Path, here: Any
) -> None:
    options = {**WHOLE, "nonlinear_threshold": threshold}
    again = dpipe.select(table, client=here, output_dir=table.parent / "again", **options)
    back = {d.column for d in again.decisions if came_back(d)}
    kept = whole.what_if(threshold, 4).kept
    assert kept == tuple(name for name in again.selected if name not in back)
    entries = itertools.chain(*RunFolder(again.folder).read_communities().values())
    gone_again = {entry["column"] for entry in entries if entry.get("came_back")}
    predicted = {d.column for d in again.decisions if d.pass_number == 3} | back | gone_again
    record = RunFolder(again.folder).read_run()
    assert set(record["returned"]) == back | gone_again
    assert record["passes"][-1]["n_back"] == len(record["returned"])
    assert predicted
    assert not predicted & set(kept)
    if threshold == 0.45:
        assert gone_again  # a what-if that left this out would be wrong


def test_processes_that_share_the_answers_give_the_same(run: Selection, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(
        "import multiprocessing, sys\n"
        "from dpipe.common.environment import own_this_process, worker_environment\n"
        "from dpipe.runfolder import thresholds\n"
        "from dpipe.session.forkserver import serve_workers\n"
        "if __name__ == '__main__':\n"
        "    own_this_process()\n"
        "    passes = thresholds.passes_of(sys.argv[1])\n"
        "    alone = [thresholds.table_of(each) for each in passes]\n"
        "    with thresholds.helpers(passes) as processes:\n"
        "        assert processes is None, 'there is no server'\n"
        "    serve_workers(worker_environment())\n"
        "    thresholds.cores = lambda: 2\n"
        "    for few in (10**6, 0):\n"
        "        thresholds.FEW_PAIRS = few\n"
        "        with thresholds.helpers(passes) as processes:\n"
        "            assert (processes is None) == bool(few)\n"
        "            shared = [thresholds.table_of(each, 20, processes) for each in passes]\n"
        "            assert shared == alone\n"
        "            started = len(multiprocessing.active_children())\n"
        "            assert started == (0 if few else 2), started\n"
        "    assert not multiprocessing.active_children()\n"
    )
    done = subprocess.run(
        [sys.executable, tmp_path / "script.py", run.folder],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert not done.stderr


@pytest.mark.parametrize(
    ("free", "number"), [(2**40, 8), (2 * 320 * 5_000_000 * 3 + 100, 3), (2**31, None)]
)
def test_processes_that_share_the_answers_fit_into_the_free_memory(
    free: int, number: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[int] = []
    monkeypatch.setattr(thresholds, "serves", lambda: True)
    monkeypatch.setattr(thresholds, "cores", lambda: 64)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=free))
    monkeypatch.setattr(
        thresholds, "Processes", lambda n, forked: nullcontext(started.append(n) or started)
    )
    passes: Any = [SimpleNamespace(n_pairs=5_000_000), SimpleNamespace(n_pairs=7)]
    with thresholds.helpers(passes) as processes:
        assert (processes or [None]) == [number]


def test_the_page_has_its_answers_though_a_process_was_killed(
    run: Selection, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = read_results(run.folder).curves
    with Processes(1) as processes:
        with pytest.raises(BrokenProcessPool):
            list(processes.each(os._exit, [(1,)]))
        monkeypatch.setattr(results, "helpers", lambda _passes: nullcontext(processes))
        found = read_results(run.folder)
    assert found.curves == alone
    assert alone
    assert not found.troubles


def test_a_finished_run_is_opened_by_its_folder(run: Selection) -> None:
    found = dpipe.load(run.folder)
    assert found == run
    assert found.pairs().equals(run.pairs())
    assert found.pairs("polars").shape == (len(run.pairs()), 7)


def test_the_command_prints_each_pass_and_marks_the_run(run: Selection) -> None:
    done = CliRunner().invoke(main, ["thresholds", str(run.folder)])
    assert done.exit_code == 0, done.output
    lines = [line.split() for line in done.stdout.splitlines()[1:]]
    own = {line[0]: line for line in lines if line[-2:] == ["this", "run"]}
    assert own["2"][:3] == ["2", "spearman", "0.95"]
    assert own["4"][2] == "0.6"
    assert int(own["4"][4]) == len(run.selected)
    numbers = [float(line[2]) for line in lines if line[0] in "24"]
    assert min(numbers) == FLOOR
    assert done.stdout.endswith("pass 2: what pass 4 would make of these columns takes a run.\n")


def test_too_many_pairs_raise_the_floor_and_it_is_said(
    run: Selection, table: Path, here: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grid, "MOST_PAIRS", 40)
    notes: list[Note] = []
    options = {**OPTIONS, "passes": (1, 2), "pairs_from": FLOOR, "output_dir": tmp_path / "run"}
    bounded = dpipe.select(table, client=here, observers=[notes.append], **options)
    assert (
        bounded.decisions
        == dpipe.select(table, client=here, **{**OPTIONS, "passes": (1, 2)}).decisions
    )
    (said,) = [n.text for n in notes if isinstance(n, Note) and "pairs.parquet lists" in n.text]
    pairs, everything = bounded.pairs("pandas"), run.pairs("pandas")
    everything = everything[everything["pass"] == 2]
    floor = float(said.split(" from ")[1].split(" on")[0])
    assert floor > FLOOR
    pd.testing.assert_frame_equal(pairs, everything[everything.value.abs() >= floor - 5e-7])
    with pytest.raises(InputError, match=r"from 0\.\d+ on: a threshold of 0\.4 takes a run"):
        bounded.what_if(0.4)


def test_bad_wishes_are_refused_in_a_sentence(run: Selection, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--pairs-from 0\.97 is above --spearman-threshold 0\.95"):
        Options(pairs_from=0.97)
    assert Options(pairs_from=0.93, passes=(1, 2)).pairs_from == 0.93  # above that of pass 4
    with pytest.raises(InputError, match=r"from 0\.4 on: a threshold of 0\.3 takes a run"):
        run.what_if(0.3)
    for wrong in (2, -1, math.nan, math.inf):
        with pytest.raises(InputError, match=f"must be between 0 and 1, not {wrong}"):
            run.what_if(wrong)
    with pytest.raises(InputError, match=r"must be a number, not '0\.9'"):
        run.what_if("0.9")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="holds no pass 3"):
        run.what_if(0.9, 3)
    with pytest.raises(InputError, match="not as 'excel'"):
        run.pairs("excel")
    with pytest.raises(InputError, match="does not exist"):
        dpipe.load(tmp_path / "nothing")


def test_a_run_of_pass_1_alone_leaves_no_pair(table: Path, here: Any) -> None:
    found = dpipe.select(table, client=here, passes=(1,), **OPTIONS)
    assert pq.read_table(found.folder / "pairs.parquet").num_rows == 0
    with pytest.raises(InputError, match="holds no pass 2 that has a threshold"):
        found.what_if(0.9)
