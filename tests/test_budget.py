"""A number of columns: exactly that many, the same whatever the tiles, and checked anew.

Covers: pass 5 through whole runs, with and without targets; what is refused; resumption; what
verify proves of it.
Does not cover: the greedy choice by itself (`test_kernels_budget`).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from bending import leave
from scipy.stats import norm, rankdata
from sklearn.linear_model import LinearRegression, Ridge

import dpipe
from dpipe.engine.machine import Limits
from dpipe.errors import InputError, VerificationError
from dpipe.estimator import DescriptorSelector
from dpipe.model.events import Note, PassDone
from dpipe.model.inventory import RUN
from dpipe.options import Options
from dpipe.pipeline import plan_run, run
from dpipe.runfolder import RunFolder
from dpipe.session import threads_here
from dpipe.verify import verify

N = 240
QUIET: dict[str, Any] = {"restart": "never", "passes": (1, 2, 3)}


@pytest.fixture(scope="module")
def here() -> Iterator[Any]:
    with threads_here() as client:
        yield client


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


@pytest.mark.parametrize("known", [100, 180])
def test_a_target_that_is_seldom_known_is_told(known: int, here: Any) -> None:
    events: list[Any] = []
    table = frame().drop(columns="kind")
    table["y"] = table["y"].where(table.index < known)
    settings: dict[str, Any] = {"target": "y", "max_columns": 4, "observers": [events.append]}
    dpipe.select(table, client=here, **settings, **QUIET)
    notes = [event.text for event in events if isinstance(event, Note)]
    told = [note for note in notes if "known in 100 of 240 rows, and pass 5 weighs" in note]
    assert len(told) == (known < N / 2)


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
    assert passes() == dict.fromkeys((1, 2, 3), True)
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


LIES: dict[str, Any] = {
    "the R^2 of a drop": lambda rows, run_: rows.update(value=rows["value"] + 0.01),
    "the representative": lambda rows, run_: rows.update(representative=rows["other"]),
    "a share of the target": lambda rows, run_: run_["chosen"][1].update(target=0.99),
    "a share of the table": lambda rows, run_: run_["chosen"][1].update(table=0.99),
    "the order they were taken in": lambda rows, run_: run_["chosen"].reverse(),
}


@pytest.fixture(scope="module")
def true(data: Path, here: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that holds."""
    out = tmp_path_factory.mktemp("true") / "out"
    settings: dict[str, Any] = {"target": "y", "exclude": "kind", "max_columns": 4}
    dpipe.select(data, output_dir=out, client=here, **settings, **QUIET)
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
