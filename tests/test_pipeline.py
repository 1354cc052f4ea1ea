"""The whole run on real workers: certificate, same answer, real tables, reuse, options."""

from __future__ import annotations

import dataclasses
import datetime
import itertools
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from conftest import ROOT
from reference import dense_nhsic, published_rdc
from tables import mixed_table, write_parts

import dpipe
from dpipe.choice.communities import find_communities
from dpipe.choice.priority import Priority
from dpipe.choice.representatives import choose
from dpipe.cli import main as command_line
from dpipe.engine.machine import Limits
from dpipe.errors import InputError
from dpipe.kernels.draws import rdc_draws
from dpipe.model.events import Event, MemoryRead, Note, PassDone, TaskDone
from dpipe.model.records import Drop, Edges
from dpipe.options import Options, options_from
from dpipe.passes.redundancy import drop_similar
from dpipe.pipeline import plan_run, run
from dpipe.pipeline.allpairs import similarity
from dpipe.pipeline.driver import restarts_after
from dpipe.runfolder import RunFolder
from dpipe.selection import Selection
from dpipe.session import open_session
from dpipe.table import open_table
from dpipe.verify import verify

OPTIONS: dict[str, Any] = {"restart": "never", "min_valid": 50, "nonlinear_threshold": 0.6}


@pytest.fixture(scope="module")
def table_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_parts(mixed_table(1200), tmp_path_factory.mktemp("mixed") / "table", parts=3)


@pytest.mark.parametrize("asked", [{}, {"threads_per_worker": 2}, {"workers": 1}], ids=repr)
def test_a_plan_is_made_for_the_workers_a_run_would_open(asked: dict[str, int]) -> None:
    options = Options(device="cpu", **asked)
    machine = plan_run(None, options, rows=1000, columns=10).machine
    with open_session(options) as session:
        opened = session.n_workers, session.threads_per_worker, session.memory_limit
    assert (machine.workers, machine.threads, machine.memory) == opened


def rows_of(result: Selection) -> dict[str, Any]:
    return {decision.column: decision for decision in result.decisions}


def check_certificate(frame: pd.DataFrame, result: Selection) -> None:
    """Promise 1 by brute force, for the passes that pandas can check."""
    decisions = rows_of(result)
    assert list(decisions) == list(frame.columns)
    assert result.selected == tuple(c for c, d in decisions.items() if d.decision == "kept")
    rho = frame.replace([np.inf, -np.inf], np.nan).corr(method="spearman", min_periods=50)
    for decision in decisions.values():
        if decision.reason == "redundant" and decision.measure == "spearman":
            other = decision.representative
            assert abs(rho.loc[decision.column, other]) >= 0.95 - 1e-6
            assert decision.value == pytest.approx(rho.loc[decision.column, other], abs=1e-6)
            assert decisions[other].decision == "kept" or decisions[other].pass_number > 2
        if decision.decision == "dropped" and decision.representative:
            seen = {decision.column}
            while decision.decision == "dropped":
                decision = decisions[decision.representative]
                assert decision.column not in seen
                seen.add(decision.column)
            assert decision.column in result.selected
    kept = rho.loc[list(result.selected), list(result.selected)].abs().to_numpy(copy=True)
    np.fill_diagonal(kept, 0)
    assert not np.any(kept >= 0.95)


def test_select__proves_every_decision(table_folder: Path, client: Any) -> None:
    result = dpipe.select(table_folder, client=client, **OPTIONS)
    frame = pd.read_parquet(table_folder)
    check_certificate(frame, result)
    decisions = rows_of(result)
    assert decisions["constant"].reason == "constant"
    assert decisions["empty"].reason == "no valid value"
    assert {decisions["base0"].reason, decisions["copy0"].reason} >= {"monotone duplicate"}
    assert {d.pass_number for d in result.decisions} >= {1, 2, 3, 4}


def test_select__same_answer_whatever_the_order_of_columns_rows_and_files(
    table_folder: Path, client: Any, tmp_path: Path
) -> None:
    expected = dpipe.select(table_folder, client=client, **OPTIONS)
    rng = np.random.default_rng(1)
    table = mixed_table(1200)
    names = list(rng.permutation(list(table)))
    rows = rng.permutation(1200)
    shuffled = write_parts(
        {name: table[name][rows] for name in names}, tmp_path / "shuffled", parts=5, row_group=97
    )
    found = dpipe.select(shuffled, client=client, **OPTIONS)
    assert sorted(found.selected) == sorted(expected.selected)
    for name, decision in rows_of(expected).items():
        other = rows_of(found)[name]
        assert (decision.decision, decision.representative, decision.reason) == (
            other.decision,
            other.representative,
            other.reason,
        )


@pytest.mark.parametrize("workers", [1, 3])
def test_select__same_answer_whatever_the_tiles_and_workers(
    table_folder: Path, client: Any, workers: int
) -> None:
    expected = dpipe.select(table_folder, client=client, **OPTIONS)
    small = Limits(columns=7, functions=60, fewest_columns=3, rank_rows=200, rows=100)
    options = options_from({"workers": workers, "device": "cpu", **OPTIONS})
    found = run(table_folder, options, limits=small)
    assert found.selected == expected.selected
    for one, other in zip(expected.decisions, found.decisions, strict=True):
        assert one.representative == other.representative
        if one.value is not None:
            assert one.value == pytest.approx(other.value, rel=1e-5)


def select_of(
    folder: Path, frame: pd.DataFrame, names: Sequence[str], client: Any, out: Path
) -> Selection:
    """What passes 1 and 2 decide on some columns of a real table."""
    excluded = [name for name in frame.columns if name not in set(names)]
    return dpipe.select(
        folder,
        client=client,
        restart="never",
        passes=[1, 2],
        exclude=excluded,
        output_dir=out / "run",
    )


def test_select__real_mordred_decisions_are_those_of_pandas(
    shared_data: Path, client: Any, tmp_path: Path
) -> None:
    folder = shared_data / "physchem_mordred_rdkit"
    frame = pd.read_parquet(sorted(folder.glob("*.parquet"))).drop(
        columns=["id", "source", "smiles"]
    )
    chosen = np.random.default_rng(4).choice(frame.columns, 160, replace=False)
    names = [name for name in frame.columns if name in set(chosen)]
    check_real_decisions(frame[names], select_of(folder, frame, names, client, tmp_path))


def test_select__example_decisions_are_those_of_pandas(client: Any, tmp_path: Path) -> None:
    folder = ROOT / "examples" / "nci"
    frame = pd.read_parquet(sorted(folder.glob("*.parquet"))).drop(columns=["id", "smiles"])
    chosen = list(frame.columns[::6])
    check_real_decisions(frame[chosen], select_of(folder, frame, chosen, client, tmp_path))


def test_select__pairs_that_miss_rows_for_a_reason_are_measured_on_the_rest(
    client: Any, tmp_path: Path
) -> None:
    """What is stated is the dense estimate of the joint rows, of every pair from the floor on."""
    rng = np.random.default_rng(1)
    y, n = rng.standard_normal(1500), 1500
    ends = np.abs(y) > np.quantile(np.abs(y), 0.49)
    frame = pd.DataFrame(
        {
            "y": y,
            "ends": np.where(ends, y + 0.8 * rng.standard_normal(n), np.nan),
            "middle": np.where(~ends, np.tanh(y) + 0.1 * rng.standard_normal(n), np.nan),
            "square": np.where(y > -1, y**2 + 0.05 * rng.standard_normal(n), np.nan),
            "chance": np.where(rng.random(n) < 0.8, y**2, np.nan),
            "flag": np.where(y < 1, (y > 0).astype(float), np.nan),
        }
    )
    frame.to_parquet(tmp_path / "table.parquet")
    run = dpipe.select(
        tmp_path / "table.parquet",
        client=client,
        restart="never",
        passes=(1, 4),
        nonlinear_threshold=0.7,
        pairs_from=0.4,
        min_valid=50,
        max_missing_ratio=0.9,
        output_dir=tmp_path / "out",
    )
    draws = rdc_draws(0, 5)

    def exact(a: str, b: str) -> float:
        x, z = frame[[a, b]].dropna().to_numpy().T
        if len(x) < 50:
            return float("nan")
        rdc = np.median([published_rdc(x, z, *draw) for draw in draws])
        return float(dense_nhsic(x, z) + rdc) / 2

    listed = dpipe.load(tmp_path / "out").pairs("pandas")
    listed = listed[listed["measure"] == "hsic+rdc"]
    found = {frozenset(pair): v for *pair, v in listed[["column_a", "column_b", "value"]].values}
    for a, b in itertools.combinations(frame, 2):
        value = exact(a, b)
        if value >= 0.4:
            assert found.pop(frozenset((a, b))) == pytest.approx(value, abs=1e-3)
    assert all(value < 0.4 for value in found.values())
    for decision in run.decisions:
        if decision.representative is not None:
            value = exact(decision.column, decision.representative)
            assert decision.value == pytest.approx(value, abs=1e-3)
            assert value >= 0.7
    assert verify(tmp_path / "out").lines


def test_select__columns_that_come_back_are_dropped_anew_by_tiles_as_pair_by_pair(
    client: Any, example_table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where pass 4 drops what predicted them, and they are similar to something that stays."""
    frame = pd.read_parquet(sorted(example_table.glob("*.parquet")))
    target, known = "tpsa_reference", ["TopoPSA", "TopoPSA(NO)", "rdkit_TPSA"]
    features = frame.columns.drop(["id", "smiles", target, *known])
    frame = frame[[target, *features[1::3]]]
    asked: list[tuple[int, int]] = []
    measured = drop_similar

    def counted(*arguments: Any) -> dict[str, Drop]:
        dropped = measured(*arguments)
        asked.append((len(arguments[3]), len(dropped)))
        return dropped

    monkeypatch.setattr("dpipe.passes.prediction.drop_similar", counted)
    found = []
    for few in (1, 0, 1 / 256):  # pairs one by one, tiles, what the bound leaves in doubt
        monkeypatch.setattr("dpipe.engine.screen._FEW", few)
        result = dpipe.select(frame, target=target, client=client, restart="never")
        found.append((result.decisions, asked.copy()))
        asked.clear()
    assert sum(came for came, _ in found[0][1]) > sum(dropped for _, dropped in found[0][1]) > 0
    assert found[0] == found[1] == found[2]


def check_real_decisions(frame: pd.DataFrame, result: Selection) -> None:
    """Pass 2 by pandas' pairwise-complete matrix and the documented rule."""
    decisions = rows_of(result)
    received = [name for name in frame.columns if decisions[name].pass_number != 1]
    values = frame[received].astype(float).replace([np.inf, -np.inf], np.nan)
    rho = values.corr(method="spearman", min_periods=100).to_numpy()
    i, j = np.nonzero(np.triu(np.abs(np.nan_to_num(rho)) >= 0.95 - 1e-9, 1))
    edges = Edges.sorted(i, j, rho[i, j])
    labels = find_communities(len(received), edges, received, resolution=0.95, seed=0)
    missing = values.isna().sum().to_numpy()
    choice = choose(received, edges, labels, threshold=0.95, priority=Priority(), n_missing=missing)
    assert len(edges) > 100
    assert [received[index] for index in choice.kept] == list(result.selected)
    for index, name in enumerate(received):
        if decisions[name].decision == "dropped":
            assert decisions[name].representative == received[choice.representative[index]]
    matrix = np.load(result.folder / "spearman.npy")
    strong = np.abs(np.nan_to_num(rho)) >= 0.95
    np.testing.assert_allclose(matrix[strong], rho[strong], atol=1e-6)
    np.testing.assert_array_equal(np.isnan(matrix), np.isnan(rho))


def test_select__own_ranks_that_mislead_are_ranked_again(
    client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(2)
    base = rng.random(3000)
    table = {f"other{i}": rng.standard_normal(3000) for i in range(3)}
    table["low"] = np.where((base > 0.55) & (base < 0.95), np.nan, base)
    table["high"] = np.where((base > 0.05) & (base < 0.45), np.nan, 2 * base)
    frame = pd.DataFrame(table)
    own = frame.rank()["low"].corr(frame.rank()["high"])
    assert abs(own) < 0.8
    assert frame["low"].corr(frame["high"], method="spearman") == pytest.approx(1)
    write_parts(table, tmp_path / "table")
    result = dpipe.select(
        tmp_path / "table",
        client=client,
        restart="never",
        passes=[1, 2],
        output_dir=tmp_path / "run",
    )
    check_certificate(frame, result)
    assert len(result.selected) == 4
    monkeypatch.setattr("dpipe.verify.screen._SMALL_CELLS", 0)
    verify(tmp_path / "run")


def test_select__keep_prefer_exclude_and_ids_are_obeyed(table_folder: Path, client: Any) -> None:
    result = dpipe.select(
        table_folder,
        client=client,
        keep=["constant", "copy0", "base0"],
        prefer=["copy1"],
        exclude=["noisy2_0"],
        id_columns=["flag"],
        **OPTIONS,
    )
    decisions = rows_of(result)
    assert {"constant", "copy0", "base0", "copy1"} <= set(result.selected)
    assert decisions["noisy2_0"].decision == "excluded"
    assert decisions["flag"].decision == "id"
    assert decisions["base1"].representative == "copy1"


def test_select__a_second_run_reuses_and_redoes_exactly_what_changed(
    table_folder: Path, client: Any, tmp_path: Path
) -> None:
    events: list[Event] = []

    def again(**changes: Any) -> tuple[Selection, list[bool], int]:
        events.clear()
        result = dpipe.select(
            table_folder,
            client=client,
            output_dir=tmp_path / "run",
            observers=[events.append],
            **{**OPTIONS, **changes},
        )
        reused = [event.reused for event in events if isinstance(event, PassDone)]
        return result, reused, sum(isinstance(event, TaskDone) for event in events)

    first, reused, tasks = again()
    assert reused == [False] * 4
    assert tasks > 4
    second, reused, tasks = again()
    assert reused == [True] * 4
    assert tasks == 0
    assert second.decisions == first.decisions
    _, reused, _ = again(r2_threshold=0.8)
    assert reused == [True, True, False, False]
    assert any("r2_threshold" in e.text for e in events if isinstance(e, Note))
    _, reused, _ = again(fresh=True)
    assert reused == [False] * 4


def test_select__the_ledger_shows_new_processes_after_each_restart(table_folder: Path) -> None:
    events: list[Event] = []
    result = dpipe.select(
        table_folder,
        workers=2,
        device="cpu",
        observers=[events.append],
        **{**OPTIONS, "restart": "auto"},
    )
    moments = [reading.moment for reading in result.ledger if reading.process == "client"]
    assert moments == ["start", "after", "recycled", "after", "after", "recycled", "after"]
    assert any(isinstance(event, MemoryRead) for event in events)
    workers = [reading for reading in result.ledger if reading.process != "client"]
    pids = [{r.pid for r in workers if r.moment == "start"}]
    pids += [
        {r.pid for r in workers if r.moment == "recycled" and r.pass_number == number}
        for number in (1, 3)
    ]
    assert all(len(group) == 2 for group in pids)
    assert not pids[0] & pids[1]
    assert not pids[1] & pids[2]


def test_select__rows_can_be_sampled_and_pass_4_can_look_at_fewer(
    table_folder: Path, client: Any
) -> None:
    options = {**OPTIONS, "sample_rows": 600, "nonlinear_rows": 400}
    one = dpipe.select(table_folder, client=client, **options)
    other = dpipe.select(table_folder, client=client, **options)
    assert one.decisions == other.decisions
    assert rows_of(one)["base0"].n_valid == 600


def test_select__writes_the_reduced_table_when_asked(
    table_folder: Path, client: Any, tmp_path: Path
) -> None:
    def run(**options: Any) -> Selection:
        return dpipe.select(
            table_folder,
            client=client,
            restart="never",
            output_dir=tmp_path / "run",
            passes=[1, 2],
            **options,
        )

    result = run(write_table=True, id_columns=["flag"])
    written = tmp_path / "run" / "table"
    assert [path.name for path in sorted(written.iterdir())] == [
        f"part-{i}.parquet" for i in (0, 1, 2)
    ]
    frame = pd.read_parquet(table_folder)
    kept = [name for name in frame if name in {*result.selected, "flag"}]
    assert len(kept) < len(frame.columns)
    pd.testing.assert_frame_equal(pd.read_parquet(written), frame[kept])
    folder = RunFolder(tmp_path / "run")
    assert folder.verify_checksums() == ()
    with open(written / "part-1.parquet", "ab") as file:
        file.write(b"x")
    assert folder.verify_checksums() == ("table/part-1.parquet",)
    run(write_table=True, id_columns=["flag"], spearman_threshold=0.5)
    assert folder.verify_checksums() == ()
    assert len(pd.read_parquet(written).columns) < len(kept)
    run(id_columns=["flag"])
    assert not written.exists(), "it would be that of another selection"
    assert folder.verify_checksums() == ()


def test_select__columns_whose_types_do_not_meet_are_left_out_of_the_reduced_table(
    client: Any, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    numbers = np.arange(200.0)
    for name, drifting in (("a", 0.5), ("b", datetime.date(2020, 1, 1))):
        frame = pd.DataFrame({"x": numbers, "drifting": drifting, "label": "m"})
        frame.to_parquet(data / f"{name}.parquet")
    notes: list[Event] = []
    result = dpipe.select(
        data,
        client=client,
        restart="never",
        output_dir=tmp_path / "run",
        write_table=True,
        observers=[notes.append],
    )
    assert result.selected == ("x",)
    assert list(pd.read_parquet(tmp_path / "run" / "table")) == ["x", "label"]
    said = [note.text for note in notes if isinstance(note, Note) and note.level == "warning"]
    assert [text for text in said if "reduced table" in text] == [
        "column 'drifting' is not in the reduced table: its types conflict between files."
    ]
    words = ["apply", str(tmp_path / "run"), str(data), "--output", str(tmp_path / "new.parquet")]
    applied = CliRunner().invoke(command_line, words)
    assert applied.exit_code == 0, applied.stderr
    assert applied.stderr == ("left out 'drifting': its types conflict between files.\n")
    assert list(pd.read_parquet(tmp_path / "new.parquet")) == ["x", "label"]


def test_select__a_table_folder_of_somebody_else_is_left_alone(
    table_folder: Path, client: Any, tmp_path: Path
) -> None:
    mine = tmp_path / "table"
    shutil.copytree(table_folder, mine)
    before = {path.name: path.read_bytes() for path in mine.iterdir()}
    dpipe.select(mine, client=client, output_dir=tmp_path, passes=[1])
    with pytest.raises(InputError, match="/table was not written by a run"):
        dpipe.select(mine, client=client, output_dir=tmp_path, passes=[1], write_table=True)
    assert {path.name: path.read_bytes() for path in mine.iterdir()} == before


def test_select__a_run_beside_its_input_does_not_read_its_own_results(
    table_folder: Path, client: Any, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    shutil.copytree(table_folder, data)
    for place in (data, data / "out"):
        first, second = (
            dpipe.select(data, client=client, output_dir=place, passes=[1], write_table=True)
            for _ in range(2)
        )
        assert first.decisions == second.decisions
    for glob in ("data/**/*.parquet", "data/**/part-*"):
        again = dpipe.select(tmp_path / glob, client=client, passes=[1])
        assert again.decisions == first.decisions
    reduced = dpipe.select(data / "out" / "table", client=client, passes=[1])
    assert reduced.selected == first.selected


def test_select__saves_and_explains(table_folder: Path, client: Any, tmp_path: Path) -> None:
    result = dpipe.select(table_folder, client=client, passes=[1, 2], **OPTIONS)
    folder = result.save(tmp_path / "copy")
    for name in ("selected.txt", "decisions.parquet", "decisions.csv", "communities.json"):
        assert (folder / name).stat().st_size > 0
    assert (folder / "spearman.npy").exists()
    saved = pd.read_parquet(folder / "decisions.parquet")
    assert list(saved["column"]) == [decision.column for decision in result.decisions]
    assert set(result.communities) == set(result.selected)


@pytest.mark.parametrize("measure", ["spearman", "hsic", "rdc"])
def test_similarity__of_a_table(
    measure: str, table_folder: Path, client: Any, tmp_path: Path
) -> None:
    similarity = getattr(dpipe, measure)(table_folder, client=client)
    frame = pd.read_parquet(table_folder)
    assert similarity.columns == tuple(frame.columns)
    assert similarity.values.dtype == np.float32
    defined = ~np.isnan(similarity.values)
    assert np.all(np.abs(similarity.values[defined]) <= 1)
    empty = similarity.columns.index("empty")
    assert not defined[empty].any()
    assert defined.sum() == (len(frame.columns) - 2) ** 2
    if measure == "spearman":
        complete = [n for n in frame if np.isfinite(frame[n]).all() and n != "constant"]
        expected = frame[complete].corr(method="spearman").to_numpy()
        place = [similarity.columns.index(name) for name in complete]
        found = similarity.values[np.ix_(place, place)]
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_similarity__exact_missing_equals_pandas(table_folder: Path, client: Any) -> None:
    similarity = dpipe.spearman(table_folder, client=client, missing="exact")
    frame = pd.read_parquet(table_folder).replace([np.inf, -np.inf], np.nan)
    expected = frame.corr(method="spearman", min_periods=2).to_numpy()
    np.testing.assert_allclose(similarity.values, expected, atol=1e-6)


def test_options__bad_ones_are_one_sentence(table_folder: Path) -> None:
    with pytest.raises(
        InputError, match=r"'bas0', but the table has no such column \(did you mean 'base0'"
    ):
        dpipe.select(table_folder, keep=["bas0"])
    with pytest.raises(InputError, match="spearman-threshold must be between 0"):
        dpipe.select(table_folder, spearman_threshold=1.5)
    with pytest.raises(InputError, match="no option 'spearman'"):
        dpipe.select(table_folder, spearman=0.5)


def test_selection__is_a_frozen_record(table_folder: Path, client: Any) -> None:
    result = dpipe.select(table_folder, client=client, passes=[1])
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.selected = ()  # type: ignore[misc]


def test_similarity_leaves_two_files_and_no_trace_of_a_run(client: Any, tmp_path: Path) -> None:
    for name in ("table", "more"):  # a folder called as a run calls its reduced table
        write_parts(mixed_table(300), tmp_path / name)
    before = open_table([str(tmp_path)], options=Options()).n_rows
    options = Options(min_valid=50)
    similarity(
        [tmp_path / "more"], "spearman", options=options, client=client, output=tmp_path / "s.npy"
    )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["more", "s.npy", "s_columns.txt", "table"]
    assert open_table([str(tmp_path)], options=Options()).n_rows == before == 600


def test_similarity_of_too_few_rows_is_refused(client: Any, tmp_path: Path) -> None:
    table = write_parts(mixed_table(60), tmp_path / "table")
    with pytest.raises(InputError, match=r"60 rows and a pair needs 100 in common.*--min-valid"):
        similarity([table], "spearman", options=Options(min_valid=100), client=client)
    found = similarity([table], "spearman", options=Options(), client=client)
    assert np.isfinite(found.values[0, 1])


@pytest.mark.parametrize(("rows", "needed"), [(8, 8), (15, 10), (61, 30), (72, 36)])
def test_a_table_of_few_rows_keeps_columns_by_default(
    rows: int, needed: int, client: Any, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({f"x{k}": rng.standard_normal(rows) for k in range(30)})
    frame["holes"] = frame["x0"].where(np.arange(rows) < needed - 1)
    (tmp_path / "data").mkdir()
    frame.to_parquet(tmp_path / "data" / "a.parquet")
    options: dict[str, Any] = {"passes": (1,), "restart": "never", "client": client}
    result = dpipe.select(tmp_path / "data", output_dir=tmp_path / "run", **options)
    assert set(result.selected) == {f"x{k}" for k in range(30)}
    assert rows_of(result)["holes"].threshold == needed
    assert RunFolder(tmp_path / "run").read_run()["options"]["min_valid"] == needed
    assert verify(tmp_path / "run").n_selected == 30
    assert dpipe.select(tmp_path / "data", min_valid=rows + 1, **options).selected == ()


def test_select__a_matrix_of_the_run_before_does_not_stay(
    table_folder: Path, client: Any, tmp_path: Path
) -> None:
    def run(**options: Any) -> RunFolder:
        chosen = {**OPTIONS, "passes": (1, 2), **options}
        dpipe.select(table_folder, client=client, output_dir=tmp_path / "run", **chosen)
        return RunFolder(tmp_path / "run")

    assert (run().path / "spearman.npy").exists()
    folder = run(exclude=["base0"], matrix_budget=1)
    assert not list(folder.path.glob("spearman*"))
    assert folder.verify_checksums() == ()
    assert (run(exclude=["base0"]).path / "spearman.npy").exists()  # wanted again: done again


def test_select__without_checkpoint_nothing_is_left_to_go_on_from(
    table_folder: Path, client: Any, tmp_path: Path
) -> None:
    events: list[Event] = []
    for _ in range(2):
        dpipe.select(
            table_folder,
            client=client,
            output_dir=tmp_path / "run",
            checkpoint=False,
            passes=(1, 2),
            observers=[events.append],
            **OPTIONS,
        )
        left = [p.name for p in (tmp_path / "run" / "checkpoint").iterdir()]
        assert not [name for name in left if name.startswith(("pass-", "ranks-"))]
    assert [e.reused for e in events if isinstance(e, PassDone)] == [False] * 4
    assert RunFolder(tmp_path / "run").verify_checksums() == ()


@pytest.mark.parametrize(
    ("passes", "after"), [((1, 2, 3, 4), [1, 3]), ((1, 2, 4), [1, 2]), ((1, 4), [1]), ((1,), [])]
)
def test_passes_2_and_4_begin_with_fresh_workers(passes: tuple[int, ...], after: list[int]) -> None:
    assert [number for number in passes if restarts_after(number, passes)] == after


def test_select__the_rows_of_pass_4_do_not_depend_on_the_names_of_files(
    table_folder: Path, client: Any, tmp_path: Path
) -> None:
    renamed = tmp_path / "renamed"
    renamed.mkdir()
    for place, part in enumerate(sorted(table_folder.iterdir(), reverse=True)):
        shutil.copy(part, renamed / f"part-{place}.parquet")
    options = {**OPTIONS, "nonlinear_rows": 400, "passes": (1, 4)}
    for more in ({}, {"sample_rows": 700}, {"sample_per_file": 200}):
        one, other = (
            dpipe.select(folder, client=client, **options, **more)
            for folder in (table_folder, renamed)
        )
        assert one.selected == other.selected
        values = [[d.value for d in each.decisions] for each in (one, other)]
        np.testing.assert_allclose(
            np.array(values[0], float), np.array(values[1], float), atol=1e-9
        )


def test_select__a_reversed_duplicate_has_rho_minus_one(client: Any) -> None:
    base = np.random.default_rng(0).random(200)
    table = pd.DataFrame({"a": base, "down": -base, "up": base**3})
    result = dpipe.select(table, client=client, passes=(1,))
    assert {d.column: d.value for d in result.decisions if d.decision == "dropped"} == {
        "down": -1.0,
        "up": 1.0,
    }


def test_select__pairs_near_the_threshold_are_listed_on_both_sides(
    client: Any, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    table = rng.standard_normal((2000, 30)) + 2.5 * rng.standard_normal((2000, 1))
    frame = pd.DataFrame(table, columns=[f"c{k}" for k in range(30)])
    rho = frame.corr("spearman").to_numpy()[np.triu_indices(30, 1)]
    threshold = float(np.median(rho))
    dpipe.select(
        frame,
        client=client,
        restart="never",
        passes=(1, 2),
        spearman_threshold=threshold,
        output_dir=tmp_path,
    )
    listed = [value for _, _, value in RunFolder(tmp_path).read_run()["near_threshold"]["2"]]
    near = rho[np.abs(rho - threshold) <= 0.005]
    assert min(np.count_nonzero(near < threshold), np.count_nonzero(near > threshold)) > 20
    np.testing.assert_allclose(sorted(listed), sorted(near), atol=1e-9)
