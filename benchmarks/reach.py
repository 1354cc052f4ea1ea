"""Few rows: what pass 3 drops of independent columns, what it finds of planted ones; a budget.

Covers: whole runs of `dpipe.select` on normal columns without any relation, with and without
twenty sums of three columns each; ridge regression on as many columns as a budget keeps, chosen
inside each fold, beside all columns.
Does not cover: other selectors and models (`benchmarks.downstream`).

``python -m benchmarks.reach [--shapes 61x863,150x300] [--table FILE --target NAME]``; without a
table the last part is left out.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import KFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import dpipe
from benchmarks.common import finish, parser, show
from dpipe.session import threads_here

PLANTED = 20
SETTINGS: dict[str, Any] = {"restart": "never", "checkpoint": False, "matrix_budget": 0}


def normal(rows: int, columns: int, seed: int) -> pd.DataFrame:
    """Independent columns."""
    values = np.random.default_rng(seed).standard_normal((rows, columns))
    return pd.DataFrame(values, columns=[f"c{place:05d}" for place in range(columns)])


def planted(table: pd.DataFrame, seed: int) -> pd.DataFrame:
    """The same with sums of three columns each in the place of the last ones."""
    rng = np.random.default_rng(seed)
    free = table.shape[1] - PLANTED
    chosen = rng.choice(free, (PLANTED, 3), replace=free < 3 * PLANTED)
    sums = table.to_numpy()[:, chosen].sum(axis=2)
    named = pd.DataFrame(sums, columns=[f"sum{place:02d}" for place in range(PLANTED)])
    return pd.concat([table.iloc[:, :free], named], axis=1)


def dropped_by_3(table: pd.DataFrame, client: Any) -> list[str]:
    """Reasons of what pass 3 drops of a table."""
    found = dpipe.select(table, client=client, passes=(1, 2, 3), **SETTINGS)
    return [d.reason for d in found.decisions if d.pass_number == 3]


def few_rows(shapes: list[tuple[int, int]], seed: int, client: Any) -> list[dict[str, Any]]:
    """One row of figures for each shape."""
    figures = []
    for rows, columns in shapes:
        table = normal(rows, columns, seed)
        figures.append(
            {
                "rows x columns": f"{rows} x {columns:,}",
                "independent: dropped": len(dropped_by_3(table, client)),
                f"planted: found of {PLANTED}": len(dropped_by_3(planted(table, seed), client)),
            }
        )
    return figures


def score_of(train: pd.DataFrame, test: pd.DataFrame, names: list[str], target: str) -> float:
    """R^2 of a ridge regression, its penalty by leave-one-out on the training rows."""
    model = make_pipeline(StandardScaler(), RidgeCV(alphas=np.logspace(-2, 5, 15)))
    model.fit(train[names], train[target])
    return float(model.score(test[names], test[target]))


def budget(
    path: Path, target: str, count: int, repeats: int, folds: int, client: Any
) -> dict[str, Any]:
    """The score with the columns of a budget, less that with all of them."""
    table = pd.read_parquet(path).select_dtypes("number")
    everything = [name for name in table.columns if name != target]
    scores = []
    for repeat in range(repeats):
        for inside, outside in KFold(folds, shuffle=True, random_state=repeat).split(table):
            train, test = table.iloc[inside], table.iloc[outside]
            found = dpipe.select(train, client=client, target=target, max_columns=count, **SETTINGS)
            kept = list(found.selected)
            scores.append([score_of(train, test, each, target) for each in (everything, kept)])
            print(f"fold {len(scores)}: {scores[-1]}", file=sys.stderr, flush=True)
    of_all, of_some = np.array(scores).T
    return {
        "columns": count,
        "all": f"{of_all.mean():.3f}",
        "chosen": f"{of_some.mean():.3f}",
        "change": f"{(of_some - of_all).mean():+.3f}",
        "spread over folds": f"{(of_some - of_all).std(ddof=1):.3f}",
        "folds": len(scores),
    }


def main() -> None:
    """Print the figures."""
    asked = parser(__doc__ or "")
    asked.add_argument("--shapes", default="61x863,150x300,102x12600")
    asked.add_argument("--seed", type=int, default=0)
    asked.add_argument("--table", type=Path)
    asked.add_argument("--target", default="target")
    asked.add_argument("--budget", type=int, default=50)
    asked.add_argument("--repeats", type=int, default=10)
    asked.add_argument("--folds", type=int, default=5)
    given = asked.parse_args()
    shapes = [tuple(map(int, each.split("x"))) for each in given.shapes.split(",")]
    with threads_here() as client:
        figures = few_rows([(rows, columns) for rows, columns in shapes], given.seed, client)
        rows_of: list[list[dict[str, Any]]] = [figures]
        if given.table is not None:
            chosen = budget(
                given.table, given.target, given.budget, given.repeats, given.folds, client
            )
            rows_of.append([chosen])
    for rows in rows_of:
        show(list(rows[0]), [list(row.values()) for row in rows])
    finish(given, {"reach": rows_of})


if __name__ == "__main__":
    main()
