"""The table of pairs, and what a run would have kept at another threshold."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from tables import mixed_table, write_parts

import dpipe
from dpipe.cli import main
from dpipe.engine import grid
from dpipe.errors import InputError
from dpipe.model.events import Note
from dpipe.options import Options
from dpipe.selection import Selection
from dpipe.session import threads_here

OPTIONS: dict[str, Any] = {"restart": "never", "min_valid": 50, "nonlinear_threshold": 0.6}
FLOOR = 0.4


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("thresholds") / "table"
    return write_parts(mixed_table(600, families=3), folder, parts=2)


@pytest.fixture(scope="module")
def here() -> Iterator[Any]:
    with threads_here() as client:
        yield client


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


@pytest.mark.parametrize("threshold", [0.45, 0.6, 0.75])
def test_pass_4_keeps_what_a_run_at_that_threshold_keeps(
    threshold: float, run: Selection, table: Path, here: Any
) -> None:
    options = {**OPTIONS, "passes": (1, 2, 4), "nonlinear_threshold": threshold}
    again = dpipe.select(table, client=here, output_dir=table.parent / "again", **options)
    assert run.what_if(threshold, 4).kept == again.selected


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
    assert min(float(line[2]) for line in lines) == FLOOR


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
    with pytest.raises(InputError, match=r"from 0\.4 on: a threshold of 0\.3 takes a run"):
        run.what_if(0.3)
    with pytest.raises(InputError, match="holds no pass 3"):
        run.what_if(0.9, 3)
    with pytest.raises(InputError, match="not as 'excel'"):
        run.pairs("excel")
    with pytest.raises(InputError, match="does not exist"):
        dpipe.load(tmp_path / "nothing")


def test_a_run_of_pass_1_alone_leaves_no_pair(table: Path, here: Any) -> None:
    found = dpipe.select(table, client=here, passes=(1,), **OPTIONS)
    assert pq.read_table(found.folder / "pairs.parquet").num_rows == 0
