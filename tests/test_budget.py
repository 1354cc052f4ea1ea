"""A number of columns: exactly that many, the same whatever the tiles, and checked anew.

Covers: pass 5 through whole runs, with and without targets; what is refused; resumption; what
verify proves of it.
Does not cover: the greedy choice by itself (`test_kernels_budget`).
"""

from __future__ import annotations

import json
import shutil
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from bending import leave
from scipy.stats import norm, rankdata
from sklearn.linear_model import LinearRegression, Ridge

import dpipe
from dpipe.engine.known import rank_known
from dpipe.engine.machine import Limits
from dpipe.engine.memory import ranking_bytes
from dpipe.engine.relevance import StoredTarget
from dpipe.engine.responses import bare_statistics
from dpipe.errors import InputError, VerificationError
from dpipe.estimator import DescriptorSelector
from dpipe.kernels.ranks import rank_column
from dpipe.model.events import Note, PassDone, TaskDone
from dpipe.model.inventory import RUN
from dpipe.options import Options
from dpipe.pipeline import plan_run, run
from dpipe.rankstore import (
    Store,
    StoredColumn,
    build_catalogue,
    read_block_columns,
    read_piece,
    write_block,
)
from dpipe.runfolder import RunFolder
from dpipe.verify import verify
from dpipe.verify.checks.claims import R2_TOLERANCE

N = 240
QUIET: dict[str, Any] = {"restart": "never", "passes": (1, 2, 3)}


def frame() -> pd.DataFrame:
    """Twelve columns of four factors, with missing cells in two; y follows from two factors."""
    rng = np.random.default_rng(3)
    factors = rng.normal(size=(4, N))
    columns = {
        f"c{place:02d}": factors[place % 4] * (0.3 + 0.1 * place) + 0.6 * rng.normal(size=N)
        for place in range(12)
    }
    table = pd.DataFrame(columns)
    table.loc[::9, "c03"] = np.nan
    table.loc[::5, "c10"] = np.nan
    table["y"] = 2 * factors[1] - factors[2] + 0.5 * rng.normal(size=N)
    table["kind"] = np.array(["low", "middle", "high"])[pd.cut(table["y"], 3, labels=False)]
    table["group"] = 1.0
    return table


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "t.parquet"
    frame().to_parquet(path)
    return path


def scores(column: pd.Series) -> np.ndarray:
    """Normal scores of a column, those of missing cells at the mean, of norm 1."""
    valid = column.notna().to_numpy()
    values = np.zeros(len(column))
    ranks = rankdata(column[valid])
    own = norm.ppf((ranks - 0.5) / valid.sum())
    values[valid] = own - own.mean()
    return values / np.linalg.norm(values)


def folder_of(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.mark.parametrize(
    ("target", "budget"), [((), 5), (("y",), 1), (("kind",), 5), (("y", "kind"), 3)], ids=str
)
def test_exactly_so_many_columns_stay_and_verify_proves_it(
    data: Path, tmp_path: Path, here: Any, target: tuple[str, ...], budget: int
) -> None:
    exclude = sorted({"y", "kind"} - set(target))
    settings = {"target": target, "exclude": exclude, "max_columns": budget}
    out = folder_of(tmp_path)
    result = dpipe.select(data, output_dir=out, client=here, **settings, **QUIET)
    assert len(result.selected) == budget
    report = verify(out)
    assert report.compared["choices of pass 5"] == budget
    assert report.compared["drops of pass 5"] >= 1
    gone = [d for d in result.decisions if d.pass_number == 5]
    assert {d.reason for d in gone} == {"over budget"}
    assert {(d.measure, d.threshold) for d in gone} == {("r2", None)}
    table = frame()
    x = np.stack([scores(table[name]) for name in result.selected], axis=1)
    for row in gone:
        y = scores(table[row.column])
        fitted = LinearRegression(fit_intercept=False).fit(x, y).predict(x)
        left = ((y - fitted) ** 2).sum() * (row.n_valid - 1) / (row.n_valid - 1 - budget)
        assert row.value == pytest.approx(1 - left, abs=1e-5)
        nearest = np.abs(x.T @ y).argmax()
        assert row.representative == result.selected[nearest]


def test_what_is_explained_is_that_of_least_squares_and_of_a_ridge(
    data: Path, tmp_path: Path, here: Any
) -> None:
    out = folder_of(tmp_path)
    settings: dict[str, Any] = {"exclude": "kind", "max_columns": 4}
    dpipe.select(data, output_dir=out, client=here, target="y", **settings, **QUIET)
    steps = json.loads((out / RUN).read_text())["chosen"]
    table = frame()
    everything = np.stack([scores(table[f"c{place:02d}"]) for place in range(12)], axis=1)
    y = scores(table["y"])
    for count in range(1, 5):
        x = np.stack([scores(table[step["column"]]) for step in steps[:count]], axis=1)
        beside = LinearRegression(fit_intercept=False).fit(x, everything).predict(x)
        left = ((everything - beside) ** 2).sum() / 12
        assert steps[count - 1]["table"] == pytest.approx(1 - left, abs=1e-6)
        ridge = 100 / N
        weights = Ridge(alpha=ridge, fit_intercept=False).fit(x, y).coef_
        rest = ((y - x @ weights) ** 2).sum() + ridge * (weights**2).sum()
        assert steps[count - 1]["target"] == pytest.approx(1 - rest, abs=1e-6)


def test_the_columns_that_tell_of_the_target_are_chosen_for_it(data: Path, here: Any) -> None:
    chosen = dpipe.select(data, client=here, target="y", exclude="kind", max_columns=4, **QUIET)
    assert {int(name[1:]) % 4 for name in chosen.selected} == {1, 2}
    blind = dpipe.select(data, client=here, exclude=("y", "kind"), max_columns=4, **QUIET)
    assert {int(name[1:]) % 4 for name in blind.selected} == {0, 1, 2, 3}


def test_the_choice_does_not_depend_on_tiles_or_on_the_order_of_columns_and_rows(
    data: Path, tmp_path: Path, here: Any
) -> None:
    options = Options(target=("y",), exclude=("kind",), max_columns=5, **QUIET)
    expected = run([str(data)], options, client=here).selected
    tiny = Limits(columns=3, fewest_columns=3, rank_rows=64, fewest_rows=64)
    assert run([str(data)], options, client=here, limits=tiny).selected == expected
    shuffled = frame().sample(frac=1, random_state=1)
    shuffled = shuffled[[*shuffled.columns[::-1]]]
    result = dpipe.select(shuffled, target="y", exclude="kind", max_columns=5, client=here, **QUIET)
    assert sorted(result.selected) == sorted(expected)


def test_columns_asked_to_be_kept_stay_and_count(data: Path, tmp_path: Path, here: Any) -> None:
    out = folder_of(tmp_path)
    settings: dict[str, Any] = {"exclude": "kind", "target": "y", "keep": ("c00", "group")}
    result = dpipe.select(data, output_dir=out, client=here, max_columns=3, **settings, **QUIET)
    assert {"c00", "group"} < set(result.selected)
    assert len(result.selected) == 3
    assert verify(out)
    result = dpipe.select(data, output_dir=out, client=here, max_columns=2, **settings, **QUIET)
    assert set(result.selected) == {"c00", "group"}
    assert verify(out)
    with pytest.raises(InputError, match=r"--keep names 2 columns, more than the 1 of --max-col"):
        dpipe.select(data, client=here, max_columns=1, **settings, **QUIET)
    with pytest.raises(InputError, match=r"give at least 2"):
        plan_run([str(data)], Options(max_columns=1, keep=("c00", "c01")))


def test_when_fewer_are_left_all_stay_and_a_sentence_says_so(data: Path, here: Any) -> None:
    events: list[Any] = []
    result = dpipe.select(
        data, client=here, exclude=("y", "kind"), max_columns=50, observers=[events.append], **QUIET
    )
    assert len(result.selected) == 12
    notes = [event.text for event in events if isinstance(event, Note)]
    assert "12 columns are left for pass 5, fewer than --max-columns 50: all stay." in notes
    assert any("explain 100 % of the variance of the columns" in note for note in notes)


@pytest.mark.parametrize("budget", [0, -3, 1.5, "many"])
def test_what_is_no_number_of_columns_is_refused(budget: Any, data: Path) -> None:
    with pytest.raises(InputError, match="--max-columns"):
        dpipe.select(data, max_columns=budget)


def test_pass_5_is_asked_for_by_its_option_alone(data: Path) -> None:
    planned = plan_run([str(data)], Options(max_columns=3, passes=(1, 2), workers=1))
    assert [part.number for part in planned.passes] == [1, 2, 5]
    with pytest.raises(InputError, match=r"takes a list out of 1,2,3,4 "):
        Options(passes=(1, 5), max_columns=3)


def test_another_number_of_columns_repeats_pass_5_alone(
    data: Path, tmp_path: Path, here: Any
) -> None:
    out = folder_of(tmp_path)
    settings: dict[str, Any] = {"exclude": "kind", "target": "y", "client": here, **QUIET}

    def passes(**changes: Any) -> dict[int, bool]:
        events: list[Any] = []
        dpipe.select(data, output_dir=out, observers=[events.append], **settings, **changes)
        assert verify(out)
        return {event.number: event.reused for event in events if isinstance(event, PassDone)}

    assert passes(max_columns=6) == dict.fromkeys((1, 2, 3, 5), False)
    first = RunFolder(out).read_selected()
    assert passes(max_columns=3) == {1: True, 2: True, 3: True, 5: False}
    assert set(RunFolder(out).read_selected()) < set(first)
    assert passes(max_columns=3) == dict.fromkeys((1, 2, 3, 5), True)
    assert passes() == {1: True, 2: True, 3: False}  # which asks for less R^2 without a budget
    assert json.loads((out / RUN).read_text())["chosen"] == []


def test_what_pass_3_dropped_stays_and_what_the_chosen_say_of_it_is_stated(
    tmp_path: Path, here: Any
) -> None:
    table = frame().drop(columns=["y", "kind"])
    table["sum"] = table["c00"] + table["c01"] + table["c02"]
    out = folder_of(tmp_path)
    result = dpipe.select(table, output_dir=out, client=here, max_columns=4, **QUIET)
    assert len(result.selected) == 4
    entries = [entry for group in result.communities.values() for entry in group]
    (predicted,) = (entry for entry in entries if entry["pass"] == 3)
    assert predicted["r2_final"] < 0.9
    assert all(entry["measure"] == "r2" for entry in entries)
    told = result.explain(predicted["column"])
    assert "predicted by" in told
    row = next(d for d in result.decisions if d.pass_number == 5)
    assert "(threshold" not in result.explain(row.column)
    assert f"over budget, r2 {row.value:.6g}; " in result.explain(row.column)


def test_more_columns_than_rows_leave_no_r_squared(tmp_path: Path, here: Any) -> None:
    rng = np.random.default_rng(0)
    table = pd.DataFrame(rng.normal(size=(20, 40))).add_prefix("c")
    path = tmp_path / "t.parquet"
    table.to_parquet(path)
    out = folder_of(tmp_path)
    result = dpipe.select(path, output_dir=out, client=here, max_columns=25, **QUIET)
    gone = [d for d in result.decisions if d.pass_number == 5]
    assert len(gone) == 15
    assert {d.value for d in gone} == {None}
    assert verify(out)


# Targets that are known in a part of the rows


NAMES = [f"c{place:02d}" for place in range(12)]


def test_verify_allows_for_what_hardly_any_degree_of_freedom_makes_of_rounding(
    tmp_path: Path, here: Any
) -> None:
    rng = np.random.default_rng(150)
    table = pd.DataFrame(rng.normal(size=(150, 260)), columns=[f"b{k}" for k in range(260)])
    for k in range(10):
        three = table.iloc[:, k] + table.iloc[:, k + 1] + table.iloc[:, k + 2]
        table[f"s{k}"] = three + 0.1 * rng.normal(size=150)
    table["y"] = table["b0"] + 0.5 * rng.normal(size=150)
    table.to_parquet(tmp_path / "t.parquet", index=False)
    options: dict[str, Any] = {"target": "y", "passes": (1, 3), "max_columns": 148}
    out = tmp_path / "out"
    dpipe.select(tmp_path / "t.parquet", client=here, output_dir=out, restart="never", **options)
    report = verify(out)
    assert R2_TOLERANCE < report.differences["r2"] < 1e-4  # of R^2 itself 1e-7


def partly() -> pd.DataFrame:
    """The same with targets known in a part of the rows; elsewhere the columns are mixed up.

    `y` is known in the first 110 rows, `kind` in 130 others and these but for 30; `c05` is constant
    where `y` is known, and `c06` has no value there.
    """
    table = frame().drop(columns="group")
    rng = np.random.default_rng(8)
    unknown = np.arange(110, N)
    mixed = table.loc[unknown, rng.permutation(NAMES)].to_numpy()
    table.loc[unknown, NAMES] = np.exp(mixed) + rng.normal(size=mixed.shape)
    table.loc[unknown, "y"] = np.nan
    table.loc[:29, "kind"] = None
    table.loc[: unknown[0] - 1, "c05"] = 1.0
    table.loc[: unknown[0] - 1, "c06"] = np.nan
    return table


@pytest.fixture(scope="module")
def part(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("part") / "t.parquet"
    partly().to_parquet(path)
    return path


def known_part(table: pd.DataFrame, target: str) -> tuple[np.ndarray, np.ndarray, float]:
    """Scores of the columns and of a target on the rows where it is known, and the penalty."""
    there = table[table[target].notna()]
    x = np.stack([unit_scores(there[name]) for name in NAMES], axis=1)
    if target == "y":
        return x, scores(there[target])[:, None], max(0.1, 100 / len(there))
    shares = there[target].value_counts(normalize=True)
    indicators = [
        scores((there[target] == kind).astype(float)) * np.sqrt((1 - share) / (len(shares) - 1))
        for kind, share in shares.items()
    ]
    return x, np.stack(indicators, axis=1), max(0.1, 100 / len(there))


def unit_scores(column: pd.Series) -> np.ndarray:
    return scores(column) if column.nunique() > 1 else np.zeros(len(column))


def explained_of(parts: Any, taken: list[int]) -> float:
    """Share of the targets that ridge regressions on some columns explain."""
    share = 0.0
    for x, responses, ridge in parts:
        some = x[:, taken]
        weights = np.linalg.solve(some.T @ some + ridge * np.eye(len(taken)), some.T @ responses)
        rest = ((responses - some @ weights) ** 2).sum() + ridge * (weights**2).sum()
        share += (1 - rest) / len(parts)
    return float(share)


def greedily(parts: Any, count: int) -> list[int]:
    taken: list[int] = []
    for _ in range(count):
        waiting = [place for place in range(len(NAMES)) if place not in taken]
        taken.append(max(waiting, key=lambda place: explained_of(parts, [*taken, place])))
    return taken


@pytest.mark.parametrize("target", [("y",), ("kind",), ("y", "kind")], ids=str)
def test_a_target_is_explained_in_the_rows_where_it_is_known(
    part: Path, tmp_path: Path, here: Any, target: tuple[str, ...]
) -> None:
    out, events = folder_of(tmp_path), []
    settings: dict[str, Any] = {"target": target, "exclude": sorted({"y", "kind"} - set(target))}
    settings |= {"max_columns": 5, "observers": [events.append], "spearman_threshold": 0.999}
    dpipe.select(part, output_dir=out, client=here, **settings, **QUIET | {"passes": (1, 2)})
    steps = json.loads((out / RUN).read_text())["chosen"]
    parts = [known_part(partly(), name) for name in target]
    taken = greedily(parts, 5)
    assert [step["column"] for step in steps] == [NAMES[place] for place in taken]
    for count, step in enumerate(steps, 1):
        assert step["target"] == pytest.approx(explained_of(parts, taken[:count]), abs=1e-6)
    assert verify(out).compared["choices of pass 5"] == 5
    last = next(event.text for event in events if "on normal scores" in getattr(event, "text", ""))
    rows = {"y": "110", "kind": "210"}[target[0]]
    where = (
        "targets', each in the rows where it is" if target[1:] else f"target's in the {rows} rows"
    )
    assert f"% of the {where}" in last
    assert not list(out.rglob("known-*"))


def test_all_rows_together_would_choose_other_columns() -> None:
    table = partly()
    everywhere = np.stack([unit_scores(table[name]) for name in NAMES], axis=1)
    on_all = [(everywhere, scores(table["y"])[:, None], 100 / N)]
    assert greedily(on_all, 5) != greedily([known_part(table, "y")], 5)


@pytest.mark.parametrize("gaps", [False, True])
def test_rows_without_the_target_have_no_say_in_what_is_chosen_for_it(
    here: Any, gaps: bool, tmp_path: Path
) -> None:
    table = partly()[[*NAMES, "y"]]
    known = table[table["y"].notna()].drop(columns=[] if gaps else ["c03", "c10", "c06"])
    more = table[table["y"].isna()][known.columns]
    more = more if gaps else more.ffill().bfill()
    more["y"] = np.nan
    settings: dict[str, Any] = {"target": "y", "max_columns": 6, "client": here}
    settings |= {"spearman_threshold": 1.0, "min_valid": 2} | QUIET | {"passes": (1, 2)}

    def chosen(rows: pd.DataFrame, folder: str) -> dict[str, float]:
        dpipe.select(rows, output_dir=tmp_path / folder, keep=["c05"], **settings)
        steps = json.loads((tmp_path / folder / RUN).read_text())["chosen"]
        return {step["column"]: step["target"] for step in steps}

    # A column that is constant or empty where the target is known explains nothing.
    alone = chosen(known, "alone")
    together = chosen(pd.concat([more, known, more]), "together")
    assert together.pop("c05") == 0
    assert list(together) == list(alone)[: len(together)]
    assert list(together.values()) == pytest.approx(list(alone.values())[: len(together)], abs=1e-9)


def test_where_the_target_is_known_neither_tiles_nor_orders_count(part: Path, here: Any) -> None:
    options = Options(target=("y", "kind"), max_columns=5, **QUIET)
    expected = run([str(part)], options, client=here).selected
    tiny = Limits(columns=3, fewest_columns=3, rank_rows=64, fewest_rows=64)
    assert run([str(part)], options, client=here, limits=tiny).selected == expected
    shuffled = partly().sample(frac=1, random_state=1)
    shuffled = shuffled[[*shuffled.columns[::-1]]]
    settings: dict[str, Any] = {"target": ("kind", "y"), "max_columns": 5, "client": here}
    assert sorted(dpipe.select(shuffled, **settings, **QUIET).selected) == sorted(expected)


def test_a_run_that_ended_among_the_rows_of_a_target_goes_on(
    part: Path, tmp_path: Path, here: Any
) -> None:
    out = folder_of(tmp_path)
    settings: dict[str, Any] = {"target": ("y", "kind"), "max_columns": 5, "client": here}

    def interrupt(event: Any) -> None:
        if isinstance(event, TaskDone) and event.name == "moments-budget":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        dpipe.select(part, output_dir=out, observers=[interrupt], **settings, **QUIET)
    assert list(out.rglob("known-*"))
    events: list[Any] = []
    result = dpipe.select(part, output_dir=out, observers=[events.append], **settings, **QUIET)
    done = [event.number for event in events if isinstance(event, PassDone) and event.reused]
    assert done == [1, 2, 3]
    assert result.selected == dpipe.select(part, **settings, **QUIET).selected
    assert not list(out.rglob("known-*"))
    assert verify(out)


def test_a_column_that_was_not_the_best_where_the_target_is_known_is_refused(
    part: Path, tmp_path: Path, here: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dpipe.passes import budget as of_pass

    choose = of_pass.choose_for_target

    def others(regressions: Any, r: Any, order: Any, asked: Any, *rest: Any) -> Any:
        return choose(regressions, r, order[::-1], np.arange(len(r)) % 3 == 0, *rest)

    monkeypatch.setattr(of_pass, "choose_for_target", others)
    out = folder_of(tmp_path)
    settings: dict[str, Any] = {"target": "y", "exclude": "kind", "max_columns": 4}
    dpipe.select(part, output_dir=out, client=here, **settings, **QUIET)
    with pytest.raises(VerificationError, match=r"where another column would have explained"):
        verify(out)


def left_in_stores(
    folder: Path, values: np.ndarray, known: np.ndarray
) -> tuple[Store, Store, StoredTarget, tuple[str, ...]]:
    """Columns ranked on all rows, a store for the known ones, a target, the order of the names."""
    store, there = Store(str(folder / "all")), Store(str(folder / "known"))
    columns, ranks, masks = [], [], []
    for slot, column in enumerate(values):
        ranked = rank_column(column)
        place = -1 if ranked.valid is None else len(masks)
        masks += [] if ranked.valid is None else [np.packbits(ranked.valid)]
        facts = bare_statistics(f"c{slot}", len(column), ranked.n_valid, ranked.n_unique)
        columns.append(StoredColumn(facts, 0, slot, place, "" if place < 0 else str(slot)))
        ranks.append(ranked.scores)
    write_block(store, 0, columns, ranks, masks)
    store.write("y.f32", np.where(known, 0, np.nan).astype(np.float32).tobytes())
    by_name = {column.statistics.name: column for column in columns}
    catalogue, names = build_catalogue(by_name, values.shape[1])
    catalogue.save(there, "source.npz")
    return store, there, StoredTarget("y", "y.f32", int(known.sum()), 2, (), "some"), names


def test_ranks_among_some_rows_are_those_of_these_rows_and_torn_ones_are_made_again(
    tmp_path: Path,
) -> None:
    rng = np.random.default_rng(0)
    values = np.round(rng.normal(size=(4, 50)), 1)
    values[2, ::4] = np.nan
    known = rng.random(50) < 0.4
    store, there, target, names = left_in_stores(tmp_path, values, known)
    for finished in (False, True):
        rank_known(store, there, target, 0, 0, 4, finished)
        stored = dict(zip(names, read_block_columns(there, 0), strict=True))
        catalogue, order = build_catalogue(stored, target.n_valid)
        found, valid = read_piece(there, catalogue, range(4), 0, target.n_valid)
        assert valid is not None
        for name, own, mask in zip(order, found, valid, strict=True):
            column = values[int(name[1:])][known]
            expected = rank_column(column)
            assert own.tolist() == expected.scores.tolist()
            assert mask.tolist() == np.isfinite(column).tolist()
            assert stored[name].statistics.n_unique == expected.n_unique
        with open(there.path("block-00000.f32"), "r+b") as torn:
            torn.write(bytes(16))


@pytest.mark.parametrize("share", [0.05, 0.95])
def test_ranking_among_some_rows_takes_no_more_than_is_planned(
    share: float, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(6, 200_000))
    values[::2, ::3] = np.nan
    known = rng.random(values.shape[1]) < share
    store, there, target, _ = left_in_stores(tmp_path, values, known)
    tracemalloc.start()
    rank_known(store, there, target, 0, 0, 6, False)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak <= ranking_bytes(values.shape[1], 6, 0)


# What is proved


LIES: dict[str, Any] = {
    "the R^2 of a drop": lambda rows, run_: rows.update(value=rows["value"] + 0.01),
    "the representative": lambda rows, run_: rows.update(representative=rows["other"]),
    "a share of the target": lambda rows, run_: run_["chosen"][1].update(target=0.99),
    "a share of the table": lambda rows, run_: run_["chosen"][1].update(table=0.99),
    "the order they were taken in": lambda rows, run_: run_["chosen"].reverse(),
}


@pytest.fixture(scope="module", params=["data", "part"])
def true(
    request: pytest.FixtureRequest, here: Any, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The folder of a run that holds, of a target known in every row or in a part of them."""
    out = tmp_path_factory.mktemp("true") / "out"
    settings: dict[str, Any] = {"target": "y", "exclude": "kind", "max_columns": 4}
    table = request.getfixturevalue(request.param)
    dpipe.select(table, output_dir=out, client=here, **settings, **QUIET)
    return out


@pytest.mark.parametrize("lie", LIES)
def test_verify_refuses_a_lie_about(lie: str, true: Path, tmp_path: Path) -> None:
    out = folder_of(tmp_path)
    shutil.copytree(true, out)
    folder = RunFolder(out)
    decisions = list(folder.read_decisions())
    record = json.loads((out / RUN).read_text())
    place = next(k for k, d in enumerate(decisions) if d.pass_number == 5)
    kept = [d.column for d in decisions if d.decision == "kept"]
    changed: dict[str, Any] = dict(vars(decisions[place]))
    changed["other"] = next(name for name in kept if name != changed["representative"])
    LIES[lie](changed, record)
    del changed["other"]
    decisions[place] = type(decisions[place])(**changed)
    leave(out, decisions, record)
    with pytest.raises(VerificationError, match="does not hold"):
        verify(out)


def test_verify_refuses_a_column_that_was_not_the_best(
    data: Path, tmp_path: Path, here: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dpipe.kernels import budget
    from dpipe.passes import budget as of_pass

    def worst(r: Any, order: Any, asked: Any, count: int) -> Any:
        taken = np.arange(len(r))[-count:]
        return budget.Chosen(taken, budget.explained_by(r, taken), np.empty(0))

    monkeypatch.setattr(of_pass, "choose_for_table", worst)
    out = folder_of(tmp_path)
    dpipe.select(data, output_dir=out, client=here, exclude=("y", "kind"), max_columns=3, **QUIET)
    with pytest.raises(VerificationError, match=r"where another column would have explained"):
        verify(out)


@pytest.mark.parametrize("classes", [False, True])
def test_the_selector_takes_a_number_of_columns(here: Any, classes: bool) -> None:
    table = frame().drop(columns=["y", "kind", "group"]).fillna(0.0)
    y = frame()["kind" if classes else "y"].to_numpy()
    fitted = DescriptorSelector(client=here, passes=(1, 2), max_columns=4).fit(table, y)
    assert fitted.get_support().sum() == 4
    assert fitted.transform(table).shape == (N, 4)
