"""Verify: accepts true runs, built by hand and by the pipeline, and refuses every kind of lie.

The run folders are built here by slow definitions (pandas, dense HSIC, the published RDC, plain
inverses), so that the check is itself checked by something else than dpipe's engine.
"""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.stats
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st
from reference import dense_nhsic, published_rdc, uniform_ranks
from statsmodels.stats.outliers_influence import (  # type: ignore[import-untyped]
    variance_inflation_factor,
)
from tables import mixed_table, write_parts

import dpipe
from dpipe.choice.certificate import alternatives, decide, follow_chain
from dpipe.choice.communities import find_communities
from dpipe.choice.priority import Priority
from dpipe.choice.representatives import choose
from dpipe.errors import InputError, ResourceError, VerificationError
from dpipe.kernels.draws import rdc_draws
from dpipe.model.inventory import CHECKPOINT, DECISIONS, MANIFEST
from dpipe.model.records import ColumnStatistics, Decision, Drop, Edges, PassResult
from dpipe.model.registry import Reason
from dpipe.options import Options, parse_size
from dpipe.report import write_report
from dpipe.runfolder import RunFolder
from dpipe.table import Table, open_table
from dpipe.table.sample import nonlinear_sample
from dpipe.verify import VerifyReport, screen, verify
from dpipe.verify.columns import RankedColumns, rank_columns
from dpipe.verify.crew import Crew, cores, crew_for
from dpipe.verify.dependence import Nonlinear, spearman
from dpipe.verify.prediction import Scores, normal_scores
from dpipe.verify.screen import nonlinear_pairs, spearman_pairs

Rows = tuple[Decision, ...]

OPTIONS = Options(
    id_columns=("name",),
    exclude=("target",),
    keep=("kept_one", "kept_two"),
    min_valid=60,
    r2_threshold=0.9,
    variance_threshold=0.005,
    nonlinear_threshold=0.6,
    rdc_seeds=3,
    seed=5,
)
N = 240


def hand_made_frame() -> pd.DataFrame:
    """Columns that each rule of each pass has something to say about."""
    rng = np.random.default_rng(2)
    a, b, c, d, e, f = rng.standard_normal((6, N))
    holes = a + 0.05 * rng.standard_normal(N)
    holes[rng.random(N) < 0.25] = np.nan
    tail = -b + 0.05 * rng.standard_normal(N)
    tail[tail > 0.5] = np.inf
    kind = rng.integers(0, 3, N)
    columns: dict[str, Any] = {
        "name": [f"row {k}" for k in range(N)],
        "a": a,
        "a_up": np.exp(a),
        "a_down": -a,
        "a_noisy": a + 0.02 * rng.standard_normal(N),
        "a_holes": holes,
        "b": b,
        "b_tail": tail,
        "c": c,
        "c_square": c**2 + 0.02 * rng.standard_normal(N),
        "d": d,
        "e": e,
        "sum": b + c + d + e + 0.5 * rng.standard_normal(N),
        "first": kind == 0,
        "second": (kind == 1).astype(float),
        "third": (kind == 2).astype(float),
        "kept_one": f,
        "kept_two": f + 0.01 * rng.standard_normal(N),
        "f_noisy": f + 0.03 * rng.standard_normal(N),
        "constant": np.full(N, 3),
        "empty": np.full(N, np.nan),
        "few": np.where(np.arange(N) < 30, a, np.nan),
        "gaps": np.where(np.arange(N) < 100, a, np.nan),
        "spike": np.where(np.arange(N) == 7, 1.0, 0.0),
        "target": rng.standard_normal(N),
        "text": ["x"] * N,
    }
    return pd.DataFrame(columns)


# A run by hand


def write(frame: pd.DataFrame, path: Path) -> None:
    """Write a frame; unlike `to_parquet`, NaN stays NaN and does not become null."""
    pq.write_table(pa.table({name: frame[name].tolist() for name in names_of(frame)}), path)


def names_of(frame: pd.DataFrame) -> list[str]:
    return [str(name) for name in frame.columns]


def numbers(frame: pd.DataFrame, table: Table) -> pd.DataFrame:
    return frame[list(table.features)].astype(float).replace([np.inf, -np.inf], np.nan)


def statistics_of(name: str, raw: pd.Series, values: pd.Series) -> ColumnStatistics:
    fields: dict[str, Any] = {field.name: 0 for field in dataclasses.fields(ColumnStatistics)}
    return ColumnStatistics(
        **fields
        | {
            "name": name,
            "n_rows": len(values),
            "n_valid": int(values.count()),
            "n_nan": int(raw.isna().sum()),
            "n_inf": int(np.isinf(raw.astype(float)).sum()),
            "n_unique": values.nunique(),
        }
    )


def prepare_by_hand(values: pd.DataFrame, options: Options) -> PassResult:
    drops: dict[str, Drop] = {}
    for name in names_of(values):
        column = values[name]
        present = column.dropna()
        share = 1 - len(present) / len(column)
        if len(present) == 0:
            drop = Drop(name, 1, Reason.NO_VALUE)
        elif len(present) < options.min_valid:
            limit = float(options.min_valid)
            drop = Drop(name, 1, Reason.TOO_FEW_VALUES, "n_valid", len(present), limit)
        elif share > options.max_missing_ratio:
            limit = options.max_missing_ratio
            drop = Drop(name, 1, Reason.TOO_MANY_MISSING, "missing_ratio", share, limit)
        elif present.min() == present.max():
            drop = Drop(name, 1, Reason.CONSTANT)
        else:
            width = present.quantile(0.975) - present.quantile(0.025)
            ratio = float(present.var(ddof=0) / (width or present.max() - present.min()) ** 2)
            if ratio >= options.variance_threshold:
                continue
            limit = options.variance_threshold
            drop = Drop(name, 1, Reason.LOW_VARIANCE, "normalised_variance", ratio, limit)
        drops[name] = drop
    left = [name for name in names_of(values) if name not in drops]
    for k, name in enumerate(left):
        for earlier in left[:k]:
            pair = values[[earlier, name]].dropna()
            same_rows = values[earlier].isna().equals(values[name].isna())
            rho = pair.corr(method="spearman").to_numpy()[0, 1]
            if same_rows and abs(abs(rho) - 1) < 1e-12 and earlier not in drops:
                drops[name] = Drop(
                    name, 1, Reason.DUPLICATE, "spearman", float(np.sign(rho)), 1.0, earlier
                )
    kept = tuple(name for name in left if name not in drops)
    return PassResult(1, "prepare", kept, tuple(drops[n] for n in names_of(values) if n in drops))


def redundancy_by_hand(
    number: int, measure: str, values: pd.DataFrame, matrix: np.ndarray, options: Options
) -> PassResult:
    names = names_of(values)
    threshold = options.spearman_threshold if number == 2 else options.nonlinear_threshold
    i, j = np.nonzero(np.triu(np.nan_to_num(np.abs(matrix)) >= threshold, 1))
    edges = Edges.sorted(i, j, matrix[i, j])
    labels = find_communities(len(names), edges, names, resolution=threshold, seed=options.seed)
    choice = choose(
        names,
        edges,
        labels,
        threshold=threshold,
        priority=Priority(options.keep, options.prefer),
        n_missing=values.isna().sum().to_numpy(),
    )
    drops = tuple(
        Drop(
            name,
            number,
            Reason.REDUNDANT,
            measure,
            float(choice.value[k]),
            threshold,
            names[choice.representative[k]],
        )
        for k, name in enumerate(names)
        if k not in set(choice.kept)
    )
    kept = tuple(names[k] for k in choice.kept)
    return PassResult(number, measure, kept, drops, dict(zip(names, labels.tolist(), strict=True)))


def filled_scores(values: pd.DataFrame) -> pd.DataFrame:
    """Normal scores of each column less their mean, missing cells at the mean, of norm 1."""
    scores = pd.DataFrame(
        scipy.stats.norm.ppf((values.rank() - 0.5) / values.count()), columns=values.columns
    )
    scores = (scores - scores.mean()).fillna(0.0)
    return scores / np.sqrt((scores**2).sum())


def adjusted_by_hand(values: pd.DataFrame, name: str, others: Sequence[str]) -> float:
    scores = filled_scores(values)
    weights = np.linalg.lstsq(scores[list(others)].to_numpy(), scores[name], rcond=None)[0]
    left = float(((scores[name] - scores[list(others)] @ weights) ** 2).sum())
    n = int(values[name].count())
    return 1 - left * (n - 1) / (n - 1 - len(others))


def prediction_by_hand(values: pd.DataFrame, options: Options) -> PassResult:
    """Every column in turn: it goes if some four of those kept before predict it."""
    scores = filled_scores(values)
    drops: list[Drop] = []
    left: list[str] = []
    for name in sorted(
        names_of(values), key=lambda n: (n not in options.keep, values[n].isna().sum(), n)
    ):
        found = _predictors_by_hand(values, name, left, options.required_r2)
        if not found or name in options.keep:
            left.append(name)
            continue
        weights = np.linalg.lstsq(scores[list(found)].to_numpy(), scores[name], rcond=None)[0]
        value = adjusted_by_hand(values, name, found)
        exact = 1 - value < 1e-10
        drop = Drop(
            name,
            3,
            Reason.COMBINATION if exact else Reason.PREDICTED,
            "r2",
            1.0 if exact else value,
            1.0 if exact else options.required_r2,
            found[0],
            "of these" if exact else "by these",
            len(found),
            tuple(zip(found, weights.tolist(), strict=True)),
        )
        drops.append(drop)
    kept = tuple(name for name in names_of(values) if name in left)
    return PassResult(3, "prediction", kept, tuple(drops))


def _predictors_by_hand(
    values: pd.DataFrame, name: str, among: Sequence[str], threshold: float
) -> tuple[str, ...]:
    r = filled_scores(values).pipe(lambda scores: scores.T @ scores)
    for size in range(1, 5):
        for some in map(list, combinations(among, size)):
            shared = r.loc[some, name].to_numpy()
            r2 = float(shared @ np.linalg.pinv(r.loc[some, some].to_numpy()) @ shared)
            if r2 >= threshold and adjusted_by_hand(values, name, some) >= threshold:
                return tuple(some)
    return ()


def on_selection_by_hand(
    values: pd.DataFrame, third: PassResult, selection: Sequence[str]
) -> dict[str, float]:
    """The R^2 of each drop of pass 3 on a selection: on all of it, or on its own predictors."""
    found = {}
    for drop in third.drops:
        found[drop.column] = adjusted_by_hand(values, drop.column, sorted(selection))
        if {name for name, _ in drop.predictors} <= set(selection):
            found[drop.column] = max(found[drop.column], drop.value or 0.0)
    return found


def nonlinear_by_hand(values: pd.DataFrame, options: Options) -> np.ndarray:
    """Fused similarity of complete columns; 0 where a cell is missing."""
    draws, weights = rdc_draws(options.seed, options.rdc_seeds), options.shares
    matrix = np.zeros((values.shape[1],) * 2)
    columns = [values[name].to_numpy() for name in names_of(values)]
    for i, x in enumerate(columns):
        for j, y in enumerate(columns[:i]):
            if np.isnan(x).any() or np.isnan(y).any():
                continue
            rdc = np.median([published_rdc(x, y, w, b) for w, b in draws])
            fused = weights.get("hsic", 0) * dense_nhsic(x, y) + weights.get("rdc", 0) * rdc
            matrix[i, j] = matrix[j, i] = fused / sum(weights.values())
    return matrix


@dataclass
class Run:
    """A finished run, still in memory: what a test may bend before it is written."""

    source: Path
    table: Table
    options: Options
    statistics: list[ColumnStatistics]
    passes: list[PassResult]

    def write(self, folder: Path, **bent: Any) -> RunFolder:
        """Write the run folder; `bent` replaces selected, decisions or communities."""
        decisions = decide(self.table.columns, self.statistics, self.passes, self.options.keep)
        decisions = bent.get("decisions", lambda rows: rows)(decisions)
        selected = bent.get("selected") or [d.column for d in decisions if d.decision == "kept"]
        communities = told_by(decisions, selected, self.passes)
        with RunFolder(folder).lock() as out:
            out.write_selected(selected)
            out.write_decisions(decisions)
            out.write_communities(bent.get("communities", lambda told: told)(communities))
            out.write_run(
                {
                    "options": dataclasses.asdict(self.options) | bent.get("options", {}),
                    "input": {
                        "sources": [str(self.source)],
                        "fingerprint": self.table.fingerprint,
                    },
                }
            )
        return out


def told_by(
    decisions: Rows, selected: Sequence[str], passes: Sequence[PassResult]
) -> dict[str, Any]:
    """communities.json as (bent) decisions would have it; what they leave open is left out."""
    dropped = [d for d in decisions if d.decision == "dropped"]
    drops = {
        d.column: Drop(
            d.column,
            d.pass_number or 0,
            d.reason,
            d.measure,
            d.value,
            d.threshold,
            d.representative,
            "",
            *_predictors_of(d, passes),
        )
        for d in dropped
    }
    try:
        ends = {follow_chain(name, drops)[-1] for name in drops}
    except ValueError:
        return {}
    result = PassResult(0, "all", (), tuple(drops.values()), predicted=passes[-1].predicted)
    told = alternatives([*selected, *sorted(ends - set(selected))], [result])
    return {name: told[name] for name in selected}


def _predictors_of(
    decision: Decision, passes: Sequence[PassResult]
) -> tuple[int, tuple[tuple[str, float], ...]]:
    """What the true drop of a column named, where the bent one is of the same pass."""
    for drop in (drop for result in passes for drop in result.drops):
        if (drop.column, drop.pass_number) == (decision.column, decision.pass_number):
            return drop.n_predictors, drop.predictors
    return 0, ()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    source = tmp_path_factory.mktemp("input") / "table.parquet"
    frame = hand_made_frame()
    write(frame, source)
    table = open_table([source], options=OPTIONS)
    values = numbers(frame, table)
    first = prepare_by_hand(values, OPTIONS)
    left = values[list(first.kept)]
    rho = left.corr(method="spearman", min_periods=OPTIONS.min_valid).to_numpy()
    second = redundancy_by_hand(2, "spearman", left, rho, OPTIONS)
    third = prediction_by_hand(values[list(second.kept)], OPTIONS)
    left = values[list(third.kept)]
    fourth = redundancy_by_hand(4, "hsic+rdc", left, nonlinear_by_hand(left, OPTIONS), OPTIONS)
    fourth = replace(fourth, predicted=on_selection_by_hand(values, third, fourth.kept))
    statistics = [statistics_of(name, frame[name], values[name]) for name in names_of(values)]
    return Run(source, table, OPTIONS, statistics, [first, second, third, fourth])


def test_hand_made_run_has_every_kind_of_drop_and_holds(run: Run, tmp_path: Path) -> None:
    told = {(drop.pass_number, drop.reason) for p in run.passes for drop in p.drops}
    assert told == {
        (1, "no valid value"),
        (1, "too few valid values"),
        (1, "too many missing values"),
        (1, "constant"),
        (1, "low variance"),
        (1, "monotone duplicate"),
        (2, "redundant"),
        (3, "linear combination"),
        (3, "predicted"),
        (4, "redundant"),
    }
    run.write(tmp_path)
    report = verify(tmp_path)
    assert (report.n_rows, report.n_columns) == (N, len(run.table.columns))
    assert report.compared["rows"] == len(run.table.columns)
    assert report.compared["chains"] == sum(
        drop.representative is not None for p in run.passes for drop in p.drops
    )
    assert set(report.differences) >= {"spearman", "hsic+rdc", "r2", "r2_final"}
    assert "the certificate holds" in report.lines[0]


def test_counts_are_told_with_their_nouns() -> None:
    compared = {"drops of pass 2": 1, "monotone duplicates": 1, "columns that came back": 1}
    compared |= {"pairs of kept columns, spearman": 69378, "rows": 1, "chains": 1101}
    assert VerifyReport(1, 1830, 1373, compared, {}).lines == (
        "1,373 of 1,830 columns kept, 1 row: the certificate holds.",
        "checked: 1 drop of pass 2",
        "checked: 1 monotone duplicate",
        "checked: 1 column that came back",
        "checked: 69,378 pairs of kept columns, spearman",
        "checked: 1 row of the decision table",
        "checked: 1,101 chains",
    )


def test_input_may_have_moved(run: Run, tmp_path: Path) -> None:
    run.write(tmp_path / "out")
    moved = tmp_path / "moved" / run.source.name
    moved.parent.mkdir()
    moved.write_bytes(run.source.read_bytes())
    times = run.source.stat()
    os.utime(moved, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert verify(tmp_path / "out", [moved]).n_rows == N


# Tampering that the checksums show


@pytest.mark.parametrize("name", ["selected.txt", "decisions.parquet", "communities.json"])
def test_altered_file(run: Run, tmp_path: Path, name: str) -> None:
    run.write(tmp_path)
    with (tmp_path / name).open("ab") as file:
        file.write(b"\n")
    with pytest.raises(VerificationError, match=f"{name} is not the file the run wrote"):
        verify(tmp_path)


def test_missing_file(run: Run, tmp_path: Path) -> None:
    run.write(tmp_path)
    (tmp_path / DECISIONS).unlink()
    with pytest.raises(VerificationError, match=r"decisions\.parquet is not the file"):
        verify(tmp_path)


def test_file_struck_from_the_manifest(run: Run, tmp_path: Path) -> None:
    folder = run.write(tmp_path)
    manifest = folder.read_json(MANIFEST)
    del manifest["files"]["selected.txt"]
    folder.write_json(MANIFEST, manifest)
    with pytest.raises(VerificationError, match=r"selected\.txt has no checksum"):
        verify(tmp_path)


def test_a_run_without_its_checkpoint_is_proved_but_for_the_checksums(
    run: Run, tmp_path: Path
) -> None:
    run.write(tmp_path)
    whole = verify(tmp_path)
    shutil.rmtree(tmp_path / CHECKPOINT)
    write_report(tmp_path)  # which vouches for no file that nobody checked
    proved = verify(tmp_path)
    assert dataclasses.replace(proved, has_checksums=True) == whole
    told = [line for line in proved.lines if line not in whole.lines]
    assert [line[:40] for line in told] == ["the folder checkpoint of the run is gone"]


def test_a_false_claim_is_found_without_checksums(run: Run, tmp_path: Path) -> None:
    run.write(tmp_path, selected=["a", "a_down"])
    shutil.rmtree(tmp_path / CHECKPOINT)
    with pytest.raises(VerificationError, match="the selection is not the kept columns"):
        verify(tmp_path)


def test_changed_input(run: Run, tmp_path: Path) -> None:
    run.write(tmp_path / "out")
    changed = tmp_path / run.source.name
    write(hand_made_frame().assign(a=0.5), changed)
    with pytest.raises(VerificationError, match="the input is not the one of the run"):
        verify(tmp_path / "out", [changed])


def test_run_that_does_not_say_where_its_input_lies(run: Run, tmp_path: Path) -> None:
    folder = run.write(tmp_path)
    folder.write_run({"options": dataclasses.asdict(run.options), "input": {}})
    with pytest.raises(InputError, match="name the files"):
        verify(tmp_path)
    folder.write_run({"input": {"sources": [str(run.source)]}})
    with pytest.raises(InputError, match="holds no options"):
        verify(tmp_path)


def test_folder_without_a_finished_run(run: Run, tmp_path: Path) -> None:
    run.write(tmp_path)
    (tmp_path / "run.json").unlink()
    with pytest.raises(InputError, match=r"run\.json"):
        verify(tmp_path)


# Lies told with matching checksums


def bend(column: str, **changes: Any) -> Callable[[Rows], Rows]:
    """Change one row of the decisions."""
    return lambda rows: tuple(
        replace(row, **changes) if row.column == column else row for row in rows
    )


def keep_it(column: str) -> Callable[[Rows], Rows]:
    nothing = dict.fromkeys(
        ("pass_number", "measure", "value", "threshold", "representative", "community")
    )
    return bend(column, decision="kept", reason="no similar column", **nothing)


def drop_it(
    column: str, number: int, reason: str, *cause: Any, representative: str | None = None
) -> Callable[[Rows], Rows]:
    measure, value, threshold = cause or (None, None, None)
    return bend(
        column,
        decision="dropped",
        pass_number=number,
        reason=reason,
        measure=measure,
        value=value,
        threshold=threshold,
        representative=representative,
    )


LIES: Mapping[str, tuple[Callable[[Rows], Rows], str]] = {
    "a redundant column was kept": (
        keep_it("a_noisy"),
        "'a' and 'a_noisy' were both kept although their spearman is 0.99",
    ),
    "so was one with missing cells": (
        keep_it("b_tail"),
        "'b' and 'b_tail' were both kept although their spearman is -0.9",
    ),
    "and one that pass 4 should drop": (
        keep_it("c_square"),
        r"'c' and 'c_square' were both kept although their hsic\+rdc is 0\.[67]",
    ),
    "a column of its own was dropped": (
        drop_it("d", 2, "redundant", "spearman", 0.97, 0.95, representative="a"),
        r"the spearman of 'd' and its representative 'a' is -?0\.[01]\d+, not 0\.97",
    ),
    "for less than the threshold": (
        drop_it("d", 4, "redundant", "hsic+rdc", 0.97, 0.6, representative="a"),
        r"the hsic\+rdc of 'd' and its representative 'a' is 0\.\d+, not 0\.97",
    ),
    "the value is another": (bend("a_noisy", value=0.9512), "is 0.99.*, not 0.951200"),
    "there is no value": (bend("a_noisy", value=None), "cannot have been dropped for it"),
    "the threshold is another": (
        bend("a_noisy", threshold=0.5),
        "by spearman at 0.5, where pass 2 uses spearman at 0.95",
    ),
    "the measure is another": (bend("a_noisy", measure="pearson"), "dropped by pearson at 0.95"),
    "there is no such rule": (bend("a_noisy", reason="boring"), "as 'boring': no rule"),
    "no such rule in pass 1": (drop_it("d", 1, "redundant"), "as 'redundant': no rule"),
    "no such rule in pass 3": (drop_it("d", 3, "redundant"), "as 'redundant': no rule"),
    "a pass that did not run": (drop_it("d", 7, "redundant"), "by pass 7, which did not run"),
    "nobody represents it": (bend("a_noisy", representative=None), "without a representative"),
    "nobody represents a duplicate": (bend("a_up", representative=None), "without a repr"),
    "a stranger represents it": (
        bend("a_noisy", representative="nobody"),
        "represented by 'nobody', which pass 2 did not keep",
    ),
    "the representative went in the same pass": (
        bend("a_noisy", representative="a_holes"),
        "represented by 'a_holes', which pass 2 did not keep",
    ),
    "it is not constant": (drop_it("d", 1, "constant"), "'d' was dropped as 'constant', which"),
    "it has values": (drop_it("d", 1, "no valid value"), "which it is not"),
    "it varies enough": (
        drop_it("d", 1, "low variance", "normalised_variance", 0.001, 0.005),
        "'d' was dropped as 'low variance', which it is not",
    ),
    "it is constant": (keep_it("constant"), "'constant' is 'constant' and was not dropped"),
    "it is empty": (keep_it("empty"), "'empty' is 'no valid value' and was not dropped"),
    "it has few values": (keep_it("few"), "'few' is 'too few valid values' and was not dropped"),
    "it has many gaps": (keep_it("gaps"), "'gaps' is 'too many missing values' and was not"),
    "it hardly varies": (keep_it("spike"), "'spike' is 'low variance' and was not dropped"),
    "another share is missing": (bend("gaps", value=0.75), "missing_ratio of 0.58.*, not 0.75"),
    "counts are wrong": (bend("a_holes", n_valid=200), "'a_holes' has n_valid .*, not 200"),
    "infinities are wrong": (bend("b_tail", n_inf=0), "'b_tail' has n_inf .*, not 0"),
    "it is no duplicate": (
        drop_it("d", 1, "monotone duplicate", "spearman", 1.0, 1.0, representative="e"),
        "'d' does not rank the rows as 'e' does",
    ),
    "a duplicate of rho 0.5": (bend("a_up", value=0.5), "rho of 'a_up' and its duplicate"),
    "a duplicate was kept": (keep_it("a_up"), "'a' and 'a_up' rank the rows alike and both"),
    "the R^2 is another": (
        bend("sum", value=0.95),
        r"'sum' is predicted with R.2 0\.9\d+, not 0.95",
    ),
    "it was not predicted": (
        drop_it("d", 3, "predicted by a (1)", "r2", 0.93, 0.9, representative="a"),
        "not say in which order pass 3 went through 'd'",
    ),
    "there was no strict reading": (
        drop_it("d", 3, "inflated variance", "vif", 9.0, 6.0, representative="a"),
        "as 'inflated variance': no rule",
    ),
    "a column asked for was dropped": (
        drop_it("kept_one", 2, "redundant", "spearman", 0.99, 0.95, representative="kept_two"),
        "'kept_one' was dropped although it was asked to be kept",
    ),
    "an identifier was kept": (keep_it("name"), "'name' is id but its decision says otherwise"),
    "text was kept": (keep_it("text"), "'text' is not_numeric but its decision"),
    "the type is another": (bend("a", dtype="int8"), "'a' holds double, not int8"),
    "a row is missing": (lambda rows: rows[:-1], "rows of the decisions are not.*'text'"),
    "the rows are in another order": (lambda rows: rows[::-1], "are not the columns .* order"),
}


@pytest.mark.parametrize("lie", LIES)
def test_lie(run: Run, tmp_path: Path, lie: str) -> None:
    bent, words = LIES[lie]
    run.write(tmp_path, decisions=bent)
    with pytest.raises(VerificationError, match=words):
        verify(tmp_path)


def test_selection_of_other_columns(run: Run, tmp_path: Path) -> None:
    run.write(tmp_path, selected=["a", "b"])
    with pytest.raises(VerificationError, match="selection is not the kept columns"):
        verify(tmp_path)


def test_chain_that_leads_nowhere(run: Run, tmp_path: Path) -> None:
    def circle(rows: Rows) -> Rows:
        return bend("a_noisy", representative="c")(
            drop_it("c", 4, "redundant", "hsic+rdc", 0.9, 0.6, representative="c_square")(rows)
        )

    run.write(tmp_path, decisions=circle)
    with pytest.raises(VerificationError, match="'c_square', which pass 4 did not keep"):
        verify(tmp_path)


Told = dict[str, list[dict[str, Any]]]


def retell(told: Told, **changes: Any) -> Told:
    """communities.json with another entry of the column that four others predict."""
    return {
        kept: [entry | changes if entry["column"] == "sum" else entry for entry in entries]
        for kept, entries in told.items()
    }


def predictors_are(named: dict[str, float], count: int | None = None) -> Callable[[Told], Told]:
    n = len(named) if count is None else count
    return lambda told: retell(told, predictors=named, n_predictors=n)


def final_is(value: float) -> Callable[[Told], Told]:
    return lambda told: retell(told, r2_final=value)


@pytest.mark.parametrize(
    ("bent", "words"),
    [
        (predictors_are({"a": 1.0}), r"'sum' is predicted with R.2 -?0\.\d+, not 0\.9"),
        (predictors_are({"a_noisy": 1.0}), "by 'a_noisy', which pass 3 did not keep"),
        (predictors_are({}, 200), "not say in which order pass 3 went through 'sum'"),
        (final_is(0.97), r"the selection predicts column 'sum' with R.2 0\.9\d+, not 0\.97"),
        (final_is(0.5), r"the selection predicts column 'sum' with R.2 0\.9\d+, not 0\.5"),
        (lambda told: {**told, "a": []}, "an alternative in one of communities.json and"),
        (lambda told: dict(list(told.items())[1:]), "not the selection"),
        (
            lambda told: {
                kept: [{**entry, "value": 0.5} for entry in entries]
                for kept, entries in told.items()
            },
            "differ about column",
        ),
    ],
)
def test_communities_that_tell_another_story(
    run: Run, tmp_path: Path, bent: Callable[[Any], Any], words: str
) -> None:
    run.write(tmp_path, communities=bent)
    with pytest.raises(VerificationError, match=words):
        verify(tmp_path)


def test_many_failures_are_counted(run: Run, tmp_path: Path) -> None:
    run.write(tmp_path, decisions=lambda rows: tuple(replace(row, n_unique=77) for row in rows))
    with pytest.raises(VerificationError, match=r"and 1\d more\.$") as caught:
        verify(tmp_path)
    assert str(caught.value).count("has n_unique") == 5


# The measures


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
    np.testing.assert_allclose(several, by_hand, rtol=0, atol=1e-9)


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


# Several processes, some decisions, little memory


def test_every_verdict_is_the_same_whatever_the_number_of_processes(
    run: Run, tmp_path: Path
) -> None:
    run.write(tmp_path / "true")
    run.write(
        tmp_path / "false", decisions=lambda rows: tuple(replace(row, n_unique=77) for row in rows)
    )
    alone, told = verify(tmp_path / "true"), []
    several = verify(tmp_path / "true", workers=2)
    assert several.lines == alone.lines
    assert several.differences == pytest.approx(alone.differences, abs=1e-12)
    for workers in (1, 2):
        with pytest.raises(VerificationError) as refused:
            verify(tmp_path / "false", workers=workers)
        told.append(str(refused.value))
    assert told[0] == told[1]


def test_a_sample_of_decisions_reads_what_they_name_and_says_what_it_left_out(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.write(tmp_path)
    read: list[str] = []

    def noted(table: Table, names: Sequence[str], *rest: Any) -> RankedColumns:
        read.extend(names)
        return rank_columns(table, names, *rest)

    monkeypatch.setattr("dpipe.verify.rank_columns", noted)
    seen = set()
    for n in range(1, 22, 4):
        read.clear()
        report = verify(tmp_path, n_drawn=n)
        assert report == verify(tmp_path, n_drawn=n)
        assert (report.n_drawn, report.seed) == (n, OPTIONS.seed)
        drawn = (
            "1 decision, drawn by seed 5, was"
            if n == 1
            else f"{n} decisions, drawn by seed 5, were"
        )
        assert f"a sample: {drawn} recomputed with" in report.lines[1]
        assert report.lines[0].endswith("what was drawn of the certificate holds.")
        assert n <= report.compared["columns"] == len(set(read))
        seen |= report.compared.keys()
    assert {"drops of pass 2", "drops of pass 3", "drops of pass 4"} <= seen
    assert verify(tmp_path, n_drawn=10**6).n_drawn is None


def test_a_sample_finds_the_lies_among_what_it_draws(run: Run, tmp_path: Path) -> None:
    run.write(tmp_path, decisions=lambda rows: tuple(replace(row, n_unique=77) for row in rows))
    with pytest.raises(VerificationError, match="has n_unique"):
        verify(tmp_path, n_drawn=3)


def test_memory_that_is_too_little_is_refused_with_a_size_that_is_enough_when_typed() -> None:
    for rows, columns in ((10**3, 5), (10**7, 60), (10**6, 2000)):
        with pytest.raises(ResourceError, match="verifying") as refused:
            crew_for(rows, columns, 4, 2**27)
        (named,) = re.findall("--memory-limit to at least ([^ ]+)[.]$", str(refused.value))
        assert crew_for(rows, columns, 4, parse_size(named)).workers == 1


def test_processes_are_as_many_as_memory_cores_and_columns_allow() -> None:
    assert crew_for(1000, 60, None, 2**40).workers == 1  # it would take longer to start them
    assert crew_for(1000, 60, 3, 2**40).workers == 3
    assert crew_for(10**7, 60, None, 2**40).workers == cores()
    assert crew_for(10**7, 2, 64, 2**40).workers == 2
    assert crew_for(10**7, 60, 64, 3 * 2**30).workers == 2


def test_a_process_that_is_killed_ends_in_one_sentence() -> None:
    before = set(multiprocessing.active_children())  # workers of the cluster of other tests
    with (
        pytest.raises(ResourceError, match=r"one of the 2 processes .* was killed"),
        Crew(2) as crew,
    ):
        list(crew.each(kill_itself, [()]))
    assert set(multiprocessing.active_children()) <= before


def kill_itself() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_an_interrupt_ends_the_processes_at_once() -> None:
    def sleeping() -> Iterator[tuple[float]]:
        yield (1000.0,)
        raise KeyboardInterrupt

    before = set(multiprocessing.active_children())
    with pytest.raises(KeyboardInterrupt), Crew(2) as crew:
        list(crew.each(time.sleep, sleeping()))
    assert set(multiprocessing.active_children()) <= before


def test_processes_end_with_the_one_that_started_them_and_hear_no_ctrl_c(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import os, signal, time\n"
        "from dpipe.verify.crew import Crew\n"
        "if __name__ == '__main__':\n"
        "    with Crew(2) as crew:\n"
        "        pids = list(crew.each(os.getpid, [()] * 4))\n"
        "        for pid in set(pids): os.kill(pid, signal.SIGINT)\n"
        "        assert list(crew.each(abs, [(-1,)] * 8)) == [1] * 8\n"
        "        print(*set(pids), flush=True)\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run(
        [sys.executable, script], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL, done.stderr
    pids = [int(pid) for pid in done.stdout.split()]
    assert pids
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):
            psutil.Process(pid).wait(60)
        assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == "zombie"


# Runs of the pipeline


@pytest.mark.parametrize("weights", ["hsic=1", "rdc=1", "dcor=1"])
def test_columns_that_differ_outside_of_a_draw_alone_lose_nothing_to_each_other(
    client: Any, tmp_path: Path, weights: str
) -> None:
    base = np.random.default_rng(0).normal(size=61)
    frame = pd.DataFrame({"base": base, "count": np.round(2 * np.abs(base))})
    gaps = np.sort(np.argsort(base)[-2:])  # whose ranks all others would move by
    frame.loc[gaps, "base"] = np.nan
    source = tmp_path / "table.parquet"
    pq.write_table(pa.table(frame), source)
    chosen: dict[str, Any] = {"weights": weights, "nonlinear_rows": 39, "passes": (1, 4)}
    seed = next(seed for seed in range(1000) if not _drawn(source, chosen, seed, gaps))
    chosen |= {"seed": seed, "nonlinear_threshold": 0.2, "min_valid": 10}
    selection = dpipe.select(source, client=client, output_dir=tmp_path / "out", **chosen)
    assert len(selection.selected) == 1
    verify(tmp_path / "out")
    recorded = pd.read_parquet(tmp_path / "out" / DECISIONS)["value"].max()
    name = weights.partition("=")[0]
    of_tile = np.load(tmp_path / "out" / f"{name}.npy")[0, 1]
    assert recorded == pytest.approx(of_tile, abs=1e-5)


@pytest.mark.parametrize("seed", [3, 8])
def test_columns_that_hardly_vary_in_some_directions_hold(
    client: Any, tmp_path: Path, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    counts = {}
    for place in range(25):
        shares = rng.dirichlet(np.full(int(rng.integers(8, 16)), 0.3))
        counts[f"c{place}"] = rng.choice(len(shares), size=200, p=shares)
    pq.write_table(pa.table(counts), tmp_path / "table.parquet")
    chosen = {"passes": (1, 4), "variance_threshold": 0, "nonlinear_threshold": 0.5}
    chosen |= {"weights": "rdc=1", "rdc_degree": 12}
    out = tmp_path / "out"
    dpipe.select(tmp_path / "table.parquet", client=client, output_dir=out, **chosen)
    assert verify(out).compared["drops of pass 4"] > 5


def test_distance_correlation_of_a_column_with_many_equal_values_holds(
    client: Any, tmp_path: Path
) -> None:
    rows = np.arange(33.0)
    frame = pd.DataFrame({"tied": np.maximum(rows, 8), "noisy": rows})
    frame["noisy"] += 6 * np.random.default_rng(0).normal(size=33)
    pq.write_table(pa.table(frame), tmp_path / "table.parquet")
    chosen = {"passes": (1, 4), "weights": "dcor=1", "nonlinear_threshold": 0.5}
    out = tmp_path / "out"
    dpipe.select(tmp_path / "table.parquet", client=client, output_dir=out, **chosen)
    assert verify(out).differences["dcor"] < 1e-6


def _drawn(source: Path, chosen: Mapping[str, Any], seed: int, rows: np.ndarray) -> bool:
    """Whether pass 4 would look at any of some rows."""
    options = Options(**chosen, seed=seed)
    drawn = nonlinear_sample(open_table([source], options=options), None, options)
    return bool(np.isin(rows, drawn).any())


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"keep": ["base0", "noisy0_0", "combination", "constant"], "prefer": ["noisy1_1"]},
        {"sample_rows": 700, "nonlinear_rows": 500, "seed": 3, "rdc_degree": 3},
        {"passes": [1, 4], "missing": "exact", "w_hsic": 0.0, "nonlinear_threshold": 0.9},
        {"vif_threshold": 5.0, "most_predictors": 1},
        {"most_predictors": 100, "r2_threshold": 0.8},
        {"passes": [1]},
    ],
)
def test_runs_of_the_pipeline_hold(client: Any, tmp_path: Path, changes: dict[str, Any]) -> None:
    source = write_parts(mixed_table(1000), tmp_path / "table")
    options = {"min_valid": 50, "nonlinear_threshold": 0.75} | changes
    dpipe.select(source, client=client, output_dir=tmp_path / "out", **options)
    write_parts(mixed_table(10), tmp_path / "table" / "added later", parts=1)
    report = verify(tmp_path / "out")
    assert report.n_rows == changes.get("sample_rows", 1000)
