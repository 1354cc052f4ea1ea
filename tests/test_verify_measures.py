"""What verify computes anew, against pandas, SciPy, statsmodels and slow definitions.

Covers: ranks and facts of a column, Spearman, HSIC and RDC of pairs, predictions on normal scores.
Does not cover: relevance (`test_verify_relevance`).
"""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from handmade import OPTIONS, adjusted_by_hand, filled_scores, names_of, nonlinear_by_hand, write
from hypothesis import given
from hypothesis import strategies as st
from reference import uniform_ranks
from statsmodels.stats.outliers_influence import (  # type: ignore[import-untyped]
    variance_inflation_factor,
)
from tables import mixed_table

from dpipe.options import Options
from dpipe.table import open_table
from dpipe.verify import screen
from dpipe.verify.columns import RankedColumns, rank_columns
from dpipe.verify.crew import Crew
from dpipe.verify.dependence import Nonlinear, spearman
from dpipe.verify.prediction import Scores, normal_scores
from dpipe.verify.screen import nonlinear_pairs, spearman_pairs


def ranked(frame: pd.DataFrame, folder: Path) -> RankedColumns:
    write(frame, folder / "t.parquet")
    table = open_table([folder / "t.parquet"], options=Options())
    return rank_columns(table, table.features, None, folder, Crew())


def dirty_frame(n: int = 400) -> pd.DataFrame:
    return pd.DataFrame(mixed_table(n, seed=3, families=2)).drop(columns=["empty"])


@given(st.lists(st.tuples(*[st.sampled_from([0.0, 1.0, 2.0, -1.0, np.nan])] * 2), min_size=1))
def test_spearman_is_that_of_pandas(rows: list[tuple[float, float]]) -> None:
    frame = pd.DataFrame(rows, columns=["x", "y"])
    twice = (2 * frame.rank() - frame.count() - 1).fillna(-(2**31)).astype(np.int32)
    found = spearman(twice["x"].to_numpy(), twice["y"].to_numpy(), 2)
    both = frame.dropna()
    varies = len(both) >= 2 and (both.nunique() > 1).all()
    expected = both.rank().corr().iloc[0, 1] if varies else np.nan
    assert found == pytest.approx(expected, abs=1e-12, nan_ok=True)


@pytest.mark.parametrize("small_cells", [10**8, 0])
def test_similar_pairs_are_those_of_pandas(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_cells: int
) -> None:
    monkeypatch.setattr(screen, "_SMALL_CELLS", small_cells)
    monkeypatch.setattr("dpipe.verify.pairs._WIDTH", 5)
    monkeypatch.setattr("dpipe.verify.pairs._ROWS_AT_ONCE", 111)
    frame = dirty_frame()
    columns = ranked(frame, tmp_path)
    pairs = spearman_pairs(columns, names_of(frame), 0.6, 50, Crew())
    found = {frozenset(pair[:2]): pair[2] for pair in pairs}
    values = frame.replace([np.inf, -np.inf], np.nan)
    rho = values.corr(method="spearman", min_periods=50).to_numpy()
    names = names_of(frame)
    expected = {
        frozenset((names[i], names[j])): rho[i, j]
        for i, j in combinations(range(len(names)), 2)
        if abs(rho[i, j]) >= 0.6
    }
    assert len(expected) > 20
    assert found == pytest.approx(expected, abs=1e-12)


def test_nonlinear_similarity_is_that_of_the_definitions(tmp_path: Path) -> None:
    frame = dirty_frame()[["base0", "square0", "count0", "flag", "noisy1_2"]]
    measure = Nonlinear(ranked(frame, tmp_path), OPTIONS)
    expected = nonlinear_by_hand(frame, OPTIONS)
    for i, a in enumerate(names_of(frame)):
        for j, b in enumerate(names_of(frame)[:i]):
            assert measure.similarity(a, b) == pytest.approx(expected[i, j], abs=2e-5)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"weights": "rdc=1"},
        {"weights": "hsic=1,rdc=0"},
        {"weights": "dcor=1,hsic=1"},
        {"rdc_degree": 4},
        {"nonlinear_rows": 300},
    ],
)
def test_nonlinear_pairs_are_those_found_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    monkeypatch.setattr("dpipe.verify.pairs._WIDTH", 30)
    monkeypatch.setattr("dpipe.verify.pairs._ROWS_AT_ONCE", 111)
    frame = dirty_frame()
    monkeypatch.setattr("dpipe.verify.pairs._ROWS_OF_A_TASK", 222)
    for module in ("functions", "dependence"):
        monkeypatch.setattr(f"dpipe.verify.{module}.ROWS_AT_ONCE", 100)
    names = names_of(frame)
    columns = ranked(frame, tmp_path)
    if changes.get("nonlinear_rows"):
        columns = columns.on(np.arange(0, 400, 2), names, Crew())
    options = OPTIONS.replace(**changes)
    measure = Nonlinear(columns, options)
    found = {
        frozenset(pair[:2]): pair[2]
        for pair in nonlinear_pairs(columns, names, 0.5, options, Crew())
    }
    one_by_one = {
        frozenset((a, b)): measure.similarity(a, b) for k, a in enumerate(names) for b in names[:k]
    }
    assert np.isnan(one_by_one[frozenset(("base0", "constant"))])
    expected = {pair: value for pair, value in one_by_one.items() if value >= 0.5}
    assert len(expected) > 20
    assert found == pytest.approx(expected, abs=1e-12)


def test_vif_and_r_squared_are_those_of_statsmodels_on_normal_scores(tmp_path: Path) -> None:
    frame = dirty_frame()[["base0", "noisy0_2", "count0", "holes0", "tail1", "square1"]]
    names = names_of(frame)
    scores = Scores(ranked(frame, tmp_path), names, Crew())
    values = frame.replace([np.inf, -np.inf], np.nan)
    table = filled_scores(values).assign(const=1.0).to_numpy()
    expected = [variance_inflation_factor(table, k) for k in range(frame.shape[1])]
    np.testing.assert_allclose(scores.inflation(names), expected, rtol=1e-9)
    found = [scores.adjusted(name, [n for n in names if n != name])[0] for name in names]
    np.testing.assert_allclose(found, 1 - 1 / np.array(expected), rtol=0, atol=1e-9)
    several = scores.all_adjusted(names[:2], names[2:])
    by_hand = [adjusted_by_hand(values, name, names[2:]) for name in names[:2]]
    np.testing.assert_allclose([value for value, _ in several], by_hand, rtol=0, atol=1e-9)
    assert {predictors for _, predictors in several} == {len(names) - 2}


def test_ranks_and_facts(tmp_path: Path) -> None:
    frame = dirty_frame(150)
    columns = ranked(frame, tmp_path)
    values = frame.replace([np.inf, -np.inf], np.nan)
    for name in names_of(frame):
        facts, ranks = columns.facts[name], columns.of(name)
        valid = values[name].notna().to_numpy()
        assert (facts.n_valid, facts.n_unique) == (valid.sum(), values[name].nunique())
        assert facts.n_inf == np.isinf(frame[name]).sum()
        u = uniform_ranks(values[name].dropna().to_numpy())
        np.testing.assert_allclose((ranks[valid] / facts.n_valid + 1) / 2, u, atol=1e-14)
        assert facts.normalised_variance == pytest.approx(
            normalised_variance_by_hand(frame[name].to_numpy()[valid]), rel=1e-12, nan_ok=True
        )
    assert columns.marks["base0"].signature == columns.marks["copy0"].signature
    assert columns.marks["base0"].signature != columns.marks["holes0"].signature


def test_a_step_far_smaller_than_the_values_has_the_variance_of_a_flag(tmp_path: Path) -> None:
    values = np.full(500, 2.5)
    values[3] += 1e-12
    facts = ranked(pd.DataFrame({"step": values}), tmp_path).facts["step"]
    assert facts.normalised_variance == pytest.approx(499 / 500**2, rel=1e-12)


def normalised_variance_by_hand(values: np.ndarray) -> float:
    if not len(values) or np.ptp(values) == 0:
        return 0.0 if len(values) else np.nan
    lower, upper = np.quantile(values, [0.025, 0.975])
    width = upper - lower if upper > lower else np.ptp(values)
    return float(np.var(values) / width**2)


def test_normal_scores_are_the_quantiles() -> None:
    for n in (1, 2, 7, 1000, 10**7):
        k = np.unique(np.linspace(1 - n, n - 1, 1001).astype(np.int32))
        expected = -np.sign(k) * scipy.stats.norm.ppf((n - abs(k)) / (2 * n))
        np.testing.assert_allclose(normal_scores(k, n), expected, rtol=0, atol=1e-11)
