"""Relevance as `dpipe verify` computes it: against slow definitions, true runs, forged ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from reference import dense_nhsic, published_rdc, uniform_ranks

import dpipe
from dpipe.errors import VerificationError
from dpipe.kernels.draws import rdc_draws
from dpipe.model.records import Decision
from dpipe.options import Options
from dpipe.runfolder import RunFolder
from dpipe.table import open_table
from dpipe.verify import verify
from dpipe.verify.checks.claims import RELEVANCE_TOLERANCE
from dpipe.verify.columns import rank_columns
from dpipe.verify.crew import Crew
from dpipe.verify.relevance import DRAWS, relevances

Array = NDArray[np.float64]
Rows = tuple[Decision, ...]
N = 260
SEED = 4


def frame(n: int = N) -> pd.DataFrame:
    """Columns of every kind and shape, with gaps at random and for a reason, and four targets."""
    rng = np.random.default_rng(8)
    a, b, c = rng.normal(size=(3, n))
    table = pd.DataFrame(
        {
            "line": a,
            "line_again": np.exp(a),
            "reversed": -a,
            "near": a + 0.1 * rng.normal(size=n),
            "square": b**2 + 0.1 * rng.normal(size=n),
            "noise": c,
            "counts": rng.poisson(1.0, n).astype(float),
            "flag": (a > 0.8).astype(float),
            "rare": (np.arange(n) % 23 == 0).astype(float),
            "constant": np.ones(n),
            "holes": np.where(rng.random(n) < 0.3, np.nan, b),
            "same_holes": np.where(np.arange(n) % 5 == 0, np.nan, a + b),
            "tails": np.where(np.abs(a) < 0.7, np.nan, a),
            "few": np.where(np.arange(n) < n // 8, c, np.nan),
        }
    )
    y = a + b**2 + 0.3 * rng.normal(size=n)
    table["y"] = y
    table["z"] = np.round(c + 0.5 * a, 1)
    table["two"] = np.where(y > 1, "high", "low")
    table["five"] = pd.qcut(y, [0, 0.1, 0.3, 0.4, 0.9, 1], labels=False).astype(float)
    table["gaps"] = np.where((a > 1) | (np.arange(n) % 4 == 0), np.nan, y)
    table["five_gaps"] = table["five"].where(np.arange(n) % 3 > 0)
    return table


TARGETS = ("y", "z", "two", "five", "gaps", "five_gaps")


def by_definition(column: Array, target: NDArray[Any], is_classes: bool) -> float:
    """The mean of the dense HSIC and the published RDC, on rows where both are known."""
    if not is_classes:
        y = target.astype(float)
        draws = [published_rdc(column, y, w, b) for w, b in rdc_draws(SEED, 5)]
        return (dense_nhsic(column, y) + float(np.median(draws))) / 2
    u = uniform_ranks(column)
    width = 1 - 1 / np.sqrt(2)
    kernels = [np.exp(-((u[:, None] - u) ** 2) / (2 * width**2)), target[:, None] == target]
    k, m = (each - each.mean(0) - each.mean(1)[:, None] + each.mean() for each in kernels)
    hsic = float((k * m).sum() / np.sqrt((k * k).sum() * (m * m).sum()))
    indicators = np.stack([target == each for each in np.unique(target)[1:]], axis=1).astype(float)
    own = np.linalg.qr(indicators - indicators.mean(axis=0))[0]
    found = []
    for w, b in rdc_draws(SEED, 5):
        features = np.sin((np.outer(u, w) + b) / 12)
        left, sizes, _ = np.linalg.svd(features - features.mean(axis=0), full_matrices=False)
        spanned = left[:, sizes > 1e-7 * sizes[0]]
        found.append(np.linalg.svd(spanned.T @ own, compute_uv=False)[0])
    return (hsic + float(np.median(found))) / 2


@pytest.mark.parametrize("target", TARGETS)
def test_relevance_is_that_of_the_definitions_on_the_common_rows(
    target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dpipe.verify.relevance._ROWS_AT_ONCE", 37)
    data = frame().drop(columns=[name for name in TARGETS if name != target])
    is_classes = target in {"two", "five", "five_gaps"}
    kind = "classes" if is_classes else "auto"
    data.to_parquet(tmp_path / "t.parquet")
    options = Options(target=(target,), target_kind=kind, min_valid=40, seed=SEED)
    with open_table([tmp_path / "t.parquet"], options=options) as table:
        columns = rank_columns(table, table.features, None, tmp_path, Crew())
        found = relevances(table, columns, table.features, None, options, Crew())
    for name in table.features:
        both = data[[name, target]].dropna()
        if len(both) < 40 or both[name].nunique() == 1:
            assert np.isnan(found[name])
            continue
        expected = by_definition(both[name].to_numpy(), both[target].to_numpy(), is_classes)
        assert found[name] == pytest.approx(expected, abs=1e-5), name
    assert {name for name, value in found.items() if np.isnan(value)} == {"constant", "few"}


def test_as_many_draws_are_taken_as_runs_take() -> None:
    assert DRAWS == 5


# Runs


def run_on(data: pd.DataFrame, target: Any, folder: Path, client: Any, **settings: Any) -> Path:
    """A run whose input and results lie in a folder."""
    names = [target] if isinstance(target, str) else list(target)
    left_out = [name for name in TARGETS if name not in names]
    data.drop(columns=left_out).to_parquet(folder / "t.parquet")
    quick = {
        "restart": "never",
        "min_valid": 40,
        "max_missing_ratio": 0.9,
        "passes": [1, 2],
    }
    dpipe.select(
        folder / "t.parquet",
        target=target,
        client=client,
        output_dir=folder / "out",
        **quick | settings,
    )
    return folder / "out"


@pytest.mark.parametrize(
    ("target", "settings"),
    [
        ("y", {}),
        ("y", {"passes": [1, 2, 3, 4], "max_columns": 4, "seed": 7, "rdc_seeds": 3}),
        ("y", {"sample_rows": 150, "seed": 2, "rdc_degree": 4, "passes": [1, 4]}),
        ("z", {"weights": "dcor=1"}),
        ("two", {}),
        ("five", {"target_kind": "classes"}),
        ("five", {"target_kind": "numbers"}),
        ("gaps", {}),
        ("five_gaps", {"target_kind": "classes"}),
        (["y", "z"], {}),
        (["z", "gaps", "two"], {"passes": [1]}),
    ],
)
def test_true_runs_hold(target: Any, settings: dict[str, Any], tmp_path: Path, here: Any) -> None:
    out = run_on(frame(), target, tmp_path, here, **settings)
    report = verify(out)
    decisions = RunFolder(out).read_decisions()
    stated = [row.column for row in decisions if row.relevance is not None]
    assert {"line", "line_again", "holes", "same_holes", "tails", "rare"} <= set(stated)
    assert f"checked: {len(stated)} relevances of columns" in report.lines
    assert report.differences["relevance"] <= RELEVANCE_TOLERANCE / 2


@pytest.mark.parametrize("n", [21, 40])
@pytest.mark.parametrize("target", ["y", "two", "gaps", ["y", "z"]])
def test_runs_of_few_rows_hold(n: int, target: Any, tmp_path: Path, here: Any) -> None:
    data = frame(n).assign(two=np.where(np.arange(n) % 2, "odd", "even"))
    report = verify(run_on(data, target, tmp_path, here, min_valid=5))
    assert report.compared["relevances of columns"] > 8


@pytest.mark.parametrize("kind", ["numbers", "classes"])
def test_a_column_or_a_target_may_be_one_value_on_the_rows_they_share(
    kind: str, tmp_path: Path, here: Any
) -> None:
    data = frame()
    data["apart"] = data["noise"].where(data["five_gaps"].isna())
    data["constant_there"] = data["flag"].where(data["flag"].eq(1) | data["five_gaps"].isna())
    data["where_it_is_constant"] = data["line"].where(data["five_gaps"] == 3)
    out = run_on(data, "five_gaps", tmp_path, here, min_valid=15, passes=[1], target_kind=kind)
    verify(out)
    stated = {row.column: row.relevance for row in RunFolder(out).read_decisions()}
    assert stated["apart"] is None
    assert stated["constant_there"] is None
    assert stated["where_it_is_constant"] == pytest.approx(0, abs=1e-12)


# Lies told with matching checksums


def forged(out: Path, bent: Callable[[Rows], Rows], told: bool = True) -> Path:
    """Write other decisions, and communities that agree with them, as a run writes them."""
    folder = RunFolder(out)
    rows = bent(folder.read_decisions())
    folder.write_decisions(rows)
    if told:
        stated = {row.column: row.relevance for row in rows}
        communities = folder.read_communities()
        for entry in (entry for entries in communities.values() for entry in entries):
            entry.pop("relevance", None)
            if stated[entry["column"]] is not None:
                entry["relevance"] = stated[entry["column"]]
        folder.write_communities(communities)
    assert not folder.verify_checksums()
    return out


def state(column: str, value: float | None) -> Callable[[Rows], Rows]:
    return lambda rows: tuple(
        replace(row, relevance=value) if row.column == column else row for row in rows
    )


def raise_by(column: str, more: float) -> Callable[[Rows], Rows]:
    return lambda rows: tuple(
        replace(row, relevance=(row.relevance or 0) + more) if row.column == column else row
        for row in rows
    )


@pytest.mark.parametrize(
    ("bent", "words"),
    [
        (raise_by("noise", 0.2), r"'noise' has a relevance of 0\.\d+, not 0\.\d+"),
        (raise_by("holes", 2 * RELEVANCE_TOLERANCE), "'holes' has a relevance of"),
        (raise_by("near", -0.01), "'near' has a relevance of"),
        (raise_by("line_again", 0.01), "'line_again' has a relevance of"),
        (state("noise", float("nan")), "'noise' has a relevance of .*, not nan"),
        (state("square", None), "'square' has a relevance of .*, and none is stated"),
        (state("constant", 0.5), "'constant' has a relevance, although none was to be measured"),
    ],
)
@pytest.mark.parametrize("target", ["y", "two", ["gaps", "five_gaps"]])
def test_a_forged_relevance_is_found(
    target: Any, bent: Callable[[Rows], Rows], words: str, tmp_path: Path, here: Any
) -> None:
    out = run_on(frame(), target, tmp_path, here)
    verify(out)
    with pytest.raises(VerificationError, match=words):
        verify(forged(out, bent))


def test_no_relevance_can_be_stated_where_there_is_none(tmp_path: Path, here: Any) -> None:
    data = frame()
    data["apart"] = data["noise"].where(data["gaps"].isna())
    out = run_on(data, "gaps", tmp_path, here, min_valid=20)
    with pytest.raises(VerificationError, match=r"'apart' can have no relevance, not 0\.3"):
        verify(forged(out, state("apart", 0.3)))
    with pytest.raises(VerificationError, match="'gaps' has a relevance, although none was"):
        verify(forged(out, lambda rows: state("gaps", 1.0)(state("apart", None)(rows))))
    (tmp_path / "without").mkdir()
    out = run_on(data, [], tmp_path / "without", here)
    assert "relevances of columns" not in verify(out).compared
    with pytest.raises(VerificationError, match="'line' has a relevance, although none was"):
        verify(forged(out, state("line", 0.5)))


def test_decisions_and_communities_state_one_relevance(tmp_path: Path, here: Any) -> None:
    out = run_on(frame(), "y", tmp_path, here)
    folder = RunFolder(out)
    communities = folder.read_communities()
    entry = next(entry for entries in communities.values() for entry in entries)
    entry["relevance"] += 1e-9
    folder.write_communities(communities)
    with pytest.raises(VerificationError, match=f"differ about column '{entry['column']}'"):
        verify(out)


def test_of_a_sample_the_relevance_of_what_is_drawn_is_compared(tmp_path: Path, here: Any) -> None:
    out = run_on(frame(), ["gaps", "two"], tmp_path, here)
    columns = [row.column for row in RunFolder(out).read_decisions() if row.relevance is not None]
    counts = {n: verify(out, n_drawn=n).compared["relevances of columns"] for n in (3, 6, 9)}
    assert 0 < counts[9] <= 9
    true = RunFolder(out).read_decisions()
    found = set()
    for name in columns:
        forged(out, lambda _, name=name: raise_by(name, 0.01)(true))
        if told := refusal(out, n_drawn=6):
            assert f"'{name}' has a relevance of" in told
            found.add(name)
    assert len(found) == counts[6] < len(columns)


def refusal(out: Path, **settings: Any) -> str:
    """What `verify` says of a run that does not hold; nothing of one that does."""
    try:
        verify(out, **settings)
    except VerificationError as error:
        return str(error)
    return ""


def test_several_processes_find_the_same(tmp_path: Path, here: Any) -> None:
    out = run_on(frame(), ["gaps", "two"], tmp_path, here)
    alone, several = verify(out, workers=1), verify(out, workers=2)
    assert several.lines == alone.lines
    assert several.differences == alone.differences
