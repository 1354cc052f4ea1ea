"""What verify proves of pass 3 in runs of the pipeline, and every lie about it that it finds.

Covers: predictions by few and by many columns, inflated columns, columns that came back.
Does not cover: the other passes (`test_verify`), the number of columns (`test_budget`).
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from bending import bend_column, bend_entry, leave, record_of

import dpipe
from dpipe.errors import VerificationError
from dpipe.runfolder import RunFolder
from dpipe.verify import verify

N = 500


def independent(count: int, seed: int = 0) -> pd.DataFrame:
    values = np.random.default_rng(seed).normal(size=(N, count))
    return pd.DataFrame(values, columns=[f"c{place}" for place in range(count)])


def by_many() -> pd.DataFrame:
    """A column that it takes eight others to predict."""
    table = independent(12)
    table["sum"] = table[[f"c{place}" for place in range(8)]].sum(axis=1)
    table["y"] = table["c0"] + table["c9"]
    return table


def relevant() -> pd.DataFrame:
    """Near copies of columns that tell of `y` by degrees; the last columns tell nothing of it."""
    table, other = independent(6), independent(6, seed=1)
    copies = {f"near{k}": table[f"c{k}"] + 0.28 * other[f"c{k}"] for k in range(6)}
    table["y"] = 3 * table["c0"] + 2 * table["c1"] + table["c2"] + 0.5 * table["c3"]
    return table.assign(**copies)


def comes_back() -> pd.DataFrame:
    """`curve` is nearly a function of c1, and predicts `sum` with c0 and c2."""
    table = independent(4)
    table["curve"] = table["c1"] ** 2 + 0.05 * independent(1, seed=1)["c0"]
    table["sum"] = table["c0"] + table["c2"] + 0.7 * table["curve"]
    return table


def few_rows() -> pd.DataFrame:
    """Eight columns predict `sum`; with 70 more there are more columns than rows."""
    table = independent(78)[:60].copy()
    table["sum"] = table[[f"c{place}" for place in range(8)]].sum(axis=1)
    table["curve"] = table["c77"] ** 2
    table["y"] = table["c0"] + table["c9"]
    return table


ASKED = [f"c{place}" for place in range(8)]

RUNS: dict[str, tuple[Callable[[], pd.DataFrame], dict[str, Any]]] = {
    "by many": (by_many, {"target": "y", "passes": (1, 3), "prefer": ASKED}),
    "by relevance": (relevant, {"target": "y", "passes": (1, 3)}),
    "inflated": (
        by_many,
        {
            "exclude": "y",
            "passes": (1, 3),
            "vif_threshold": 5.0,
            "most_predictors": 1,
            "keep": ["c3"],
        },
    ),
    "came back": (
        comes_back,
        {
            "passes": (1, 3, 4),
            "r2_threshold": 0.9,
            "nonlinear_threshold": 0.6,
            "prefer": ["c1", "c0", "c2", "curve"],
        },
    ),
    "few rows": (
        few_rows,
        {
            "target": "y",
            "passes": (1, 3, 4),
            "nonlinear_threshold": 0.6,
            "prefer": [*ASKED, "sum", "c77"],
        },
    ),
}


@pytest.fixture(scope="module")
def runs(here: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folders of runs that hold."""
    folders = {}
    for name, (table, settings) in RUNS.items():
        path = tmp_path_factory.mktemp("run")
        table().to_parquet(path / "t.parquet")
        dpipe.select(
            path / "t.parquet",
            client=here,
            output_dir=path / "out",
            restart="never",
            **settings,
        )
        folders[name] = path / "out"
    return folders


def test_a_prediction_by_many_is_that_of_the_columns_kept_before_it(runs: dict[str, Path]) -> None:
    assert verify(runs["by many"]).compared["drops of pass 3"] == 1
    (row,) = (d for d in RunFolder(runs["by many"]).read_decisions() if d.decision == "dropped")
    assert row.column == "sum"
    assert row.reason.endswith("kept columns")
    assert record_of(runs["by many"])["order"][:8] == [f"c{k}" for k in range(8)]


def test_a_prediction_holds_where_the_kept_columns_outnumber_the_rows(
    runs: dict[str, Path],
) -> None:
    report = verify(runs["few rows"])
    assert report.compared["predictions by the selection"] == 1
    rows = {d.column: d for d in RunFolder(runs["few rows"]).read_decisions()}
    assert rows["sum"].reason == "predicted by 8 kept columns"
    assert rows["curve"].pass_number == 4
    assert record_of(runs["few rows"])["returned"] == []
    told = RunFolder(runs["few rows"]).read_communities()
    assert len(told) > 60
    (value,) = (each["r2_final"] for each in chain(*told.values()) if each["column"] == "sum")
    assert value == pytest.approx(rows["sum"].value, abs=1e-9)


def test_what_tells_of_the_target_must_be_predicted_better(runs: dict[str, Path]) -> None:
    report = verify(runs["by relevance"])
    rows = RunFolder(runs["by relevance"]).read_decisions()
    relevance = {row.column: row.relevance or 0.0 for row in rows}
    largest = max(relevance.values())
    gone = [row for row in rows if row.decision == "dropped"]
    assert report.compared["drops of pass 3"] == len(gone) >= 2
    for row in gone:
        rise = relevance[row.column] / largest * 2 / 3 * (1 - 0.88)
        assert row.threshold == pytest.approx(0.88 + rise, abs=3e-6)
        assert row.value >= row.threshold
    # All six copies share as much with what they copy, R^2 0.93; that of what tells most stays.
    kept = {row.column for row in rows if row.decision == "kept"}
    assert {"c0", "near0"} <= kept
    assert not {"c4", "near4"} <= kept
    assert not {"c5", "near5"} <= kept


def test_an_inflated_column_went_beside_those_before_it(runs: dict[str, Path]) -> None:
    report = verify(runs["inflated"])
    assert report.compared["drops of pass 3"] >= 1
    rows = RunFolder(runs["inflated"]).read_decisions()
    assert "inflated variance" in {d.reason for d in rows}


def test_a_column_came_back_because_nothing_else_predicts_it(runs: dict[str, Path]) -> None:
    rows = {d.column: d for d in RunFolder(runs["came back"]).read_decisions()}
    assert rows["sum"].reason.startswith("came back")
    assert rows["curve"].pass_number == 4
    assert verify(runs["came back"]).compared["columns that came back"] == 1


def test_what_came_back_is_told_beside_what_the_pass_itself_kept(runs: dict[str, Path]) -> None:
    run = dpipe.load(runs["came back"])
    asked = run.what_if(0.6, 4)
    assert set(run.selected).difference(asked.kept) == {"sum"}
    kept = len(run.selected)
    told = f"1 of 1 column that pass 3 dropped came back to stay in this run, which kept {kept}."
    assert asked.left_open == told


def first_dropped(out: Path, reason: str) -> Any:
    rows = RunFolder(out).read_decisions()
    return next(d for d in rows if d.decision == "dropped" and d.reason.startswith(reason))


def value_is(reason: str, change: float) -> Callable[[Path], None]:
    def bend(out: Path) -> None:
        row = first_dropped(out, reason)
        bend_column(out, row.column, value=row.value + change)

    return bend


def backwards(out: Path) -> None:
    record = record_of(out)
    record["order"].reverse()
    leave(out, RunFolder(out).read_decisions(), record)


def no_order(out: Path) -> None:
    leave(out, RunFolder(out).read_decisions(), {**record_of(out), "order": []})


def came_back(name: str) -> Callable[[Path], None]:
    def bend(out: Path) -> None:
        bend_column(out, name, reason="came back: a later pass dropped what predicted it")
        leave(out, RunFolder(out).read_decisions(), {**record_of(out), "returned": ["sum", name]})

    return bend


def no_return(out: Path) -> None:
    leave(out, RunFolder(out).read_decisions(), {**record_of(out), "returned": []})


LIES: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "a smaller R^2 by many": (
        "by many",
        value_is("predicted", -0.002),
        r"'sum' is predicted with R.2 0\.9\d+, not 0\.9",
    ),
    "a larger R^2 by many": (
        "by many",
        value_is("predicted", 0.0005),
        r"'sum' is predicted with R.2 0\.9\d+, not ",
    ),
    "the threshold of a column that tells nothing": (
        "by relevance",
        lambda out: bend_column(out, first_dropped(out, "predicted").column, threshold=0.88 + 1e-4),
        r"was dropped by r2 at 0\.8801, where pass 3 uses r2 at 0\.88",
    ),
    "another R^2 on the selection": (
        "few rows",
        lambda out: bend_entry(out, "sum", r2_final=0.99),
        r"the selection predicts column 'sum' with R.2 0\.97\d+, not 0\.99",
    ),
    "more predictors": (
        "by many",
        lambda out: bend_entry(out, "sum", n_predictors=11),
        "'sum' is predicted by 9 columns, not 11",
    ),
    "another order": ("by many", backwards, "'sum' is predicted with R.2 -?[01]"),
    "no order": ("by many", no_order, "in which order pass 3 went"),
    "a smaller VIF": ("inflated", value_is("inflated", -0.05), r"had a VIF of \d+\.\d+, not"),
    "a larger VIF": ("inflated", value_is("inflated", 0.05), r"had a VIF of \d+\.\d+, not"),
    "a column that never went came back": (
        "came back",
        came_back("c3"),
        "'c3' cannot have come back: pass 3 had no reason",
    ),
    "no later pass dropped anything": (
        "by many",
        came_back("c2"),
        "'c2' cannot have come back: pass 3 had no reason",
    ),
    "no order of return": ("came back", no_return, "'sum' cannot have come back: run.json does"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_is_found(lie: str, runs: dict[str, Path], tmp_path: Path) -> None:
    name, bend, words = LIES[lie]
    shutil.copytree(runs[name], tmp_path / "out")
    bend(tmp_path / "out")
    with pytest.raises(VerificationError, match=words):
        verify(tmp_path / "out")
