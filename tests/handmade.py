"""A run made by hand: every pass by slow definitions, and the folder that it would have left.

Covers: pandas' pairwise Spearman, dense HSIC, the published RDC, predictors found by trying them
all, so that a check is itself checked by something else than dpipe's engine.
Does not cover: checking it (`test_verify`), changing runs that are written (`bending`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import scipy.stats
from reference import dense_nhsic, published_rdc

from dpipe.choice.certificate import alternatives, decide, follow_chain
from dpipe.choice.communities import find_communities
from dpipe.choice.priority import Priority
from dpipe.choice.representatives import choose
from dpipe.kernels.draws import rdc_draws
from dpipe.model.records import ColumnStatistics, Decision, Drop, Edges, PassResult
from dpipe.model.registry import Reason
from dpipe.options import Options
from dpipe.runfolder import RunFolder
from dpipe.table import Table, open_table

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


def run_by_hand(source: Path) -> Run:
    """Write the table of `hand_made_frame` and go through the passes."""
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
