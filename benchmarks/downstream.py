"""Does a model miss what a selection takes away? Scores with all columns and with selections.

Gradient boosting, which ignores columns that it has no use for and so has least to gain from a
selection. Every selection is fitted on the training rows of each fold alone. Beside each stands as
many columns drawn blindly: a selection that does not beat them has done nothing but save columns.

Covers: R^2 of a regression, or area under the ROC curve with --classify; the paired difference
between each selection and all columns, fold by fold; dpipe without and with the target, with a
budget, and the selectors that people use instead at the same number of columns; with --all-rows,
selections that also see rows of which nobody knows the target.

Usage: ``python -m benchmarks.downstream [TABLE... --target COLUMN --leave-out NAMES]
[--setting "spearman_threshold: 0.8, passes: [1, 2]"] [--columns 50,200] [--peers all]
[--all-rows]``; without a table it takes examples/nci.
"""

from __future__ import annotations

import fnmatch
import glob
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import yaml
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.metrics import r2_score, roc_auc_score
from sklearn.model_selection import RepeatedKFold, RepeatedStratifiedKFold

import dpipe
from benchmarks import common
from benchmarks.selectors import BY_CORRELATION, PEERS, smart_correlated
from dpipe.session import threads_here

EXAMPLE = "examples/nci/*.parquet"
EXAMPLE_TARGET = "tpsa_reference"
EXAMPLE_COPIES = "id,smiles,TopoPSA*,rdkit_TPSA"
"""The example table, its target, and what is no descriptor or is the target under another name."""

Select = Callable[[pd.DataFrame, pd.Series], Sequence[str]]
"""Names of the columns that a selection keeps, from training rows and their target."""


def read(
    sources: Sequence[str], target: str, leave_out: str, all_rows: bool = False
) -> tuple[pd.DataFrame, pd.Series]:
    """Numeric columns, without what is left out, and the target; of rows whose target is known."""
    files = sorted(path for source in sources for path in glob.glob(source))
    frame = pd.concat([pd.read_parquet(path) for path in files], ignore_index=True)
    if not all_rows:
        frame = frame[frame[target].notna()].reset_index(drop=True)
    patterns = [target, *filter(None, leave_out.split(","))]
    gone = [name for name in frame if any(fnmatch.fnmatchcase(name, p) for p in patterns)]
    numeric = frame.drop(columns=gone).select_dtypes(["number", "bool"])
    return numeric, frame[target].astype(float)


def parse_setting(text: str) -> dict[str, Any]:
    """Parameters of `DescriptorSelector` as YAML writes them on one line."""
    values: dict[str, Any] = yaml.safe_load(f"{{{text}}}")
    return values


def select(frame: pd.DataFrame, target: pd.Series, **options: Any) -> Sequence[str]:
    """What dpipe keeps of the training rows."""
    if target.isna().any():  # which scikit-learn's way has no room for
        return _select_from_table(frame, target, **options)
    fitted = dpipe.DescriptorSelector(**options).fit(frame, target)
    return [str(name) for name in fitted.get_feature_names_out()]


def _select_from_table(
    frame: pd.DataFrame, target: pd.Series, use_y: bool = True, **options: Any
) -> Sequence[str]:
    name = "the target"
    table = pd.concat([frame, target.rename(name)], axis=1)
    role = {"target": name} if use_y else {"exclude": name}
    with threads_here() as client:
        return dpipe.select(table, client=client, restart="never", **role, **options).selected


def on_known(peer: Select) -> Select:
    """A selection that takes no row without a target."""
    return lambda frame, target: peer(frame[target.notna()], target[target.notna()])


def contenders(arguments: Any) -> dict[str, Select]:
    """The selections that are compared, by the name they have in the table."""
    settings = {"passes 1, 2": {"passes": (1, 2)}, "defaults": {}} | {
        text: parse_setting(text) for text in arguments.setting
    }
    counts = [int(count) for count in filter(None, arguments.columns.split(","))]
    found: dict[str, Select] = {
        name: partial(select, use_y=False, **options) for name, options in settings.items()
    }
    found["with the target"] = select
    for count in counts:
        found[f"{count} columns"] = partial(select, use_y=False, max_columns=count)
        found[f"with the target, {count} columns"] = partial(select, max_columns=count)
    chosen = {*PEERS, BY_CORRELATION} if arguments.peers == "all" else arguments.peers.split(",")
    if BY_CORRELATION in chosen:
        found[BY_CORRELATION] = on_known(smart_correlated)
    for name, peer in PEERS.items():
        if name in chosen:
            for count in counts:
                found[f"{name}, {count} columns"] = on_known(
                    partial(peer, count=count, classify=arguments.classify)
                )
    return found


def score(
    model: Any, x: np.ndarray, y: np.ndarray, fold: tuple[np.ndarray, np.ndarray], classify: bool
) -> float:
    """The score on the rows that a model was not fitted on."""
    train, test = fold
    # Binning refuses a column without any value; one of zeros says as little.
    x = np.where(np.isnan(x[train]).all(axis=0), 0.0, x)
    fitted = model.fit(x[train], y[train])
    if classify:
        return float(roc_auc_score(y[test], fitted.predict_proba(x[test])[:, 1]))
    return float(r2_score(y[test], fitted.predict(x[test])))


def measure(
    frame: pd.DataFrame, target: pd.Series, selections: Mapping[str, Select], arguments: Any
) -> dict[str, list[dict[str, float]]]:
    """Selection -> one record a fold: columns, seconds, score, that of as many drawn blindly."""
    how = {"n_splits": arguments.folds, "n_repeats": arguments.repeats, "random_state": 0}
    folds = RepeatedStratifiedKFold(**how) if arguments.classify else RepeatedKFold(**how)
    kind = HistGradientBoostingClassifier if arguments.classify else HistGradientBoostingRegressor
    model = kind(max_iter=arguments.trees, random_state=0)
    x = frame.to_numpy(dtype=float, copy=True)
    x[~np.isfinite(x)] = np.nan  # the model takes missing cells, but no infinite ones
    y = target.to_numpy()
    known, elsewhere = np.flatnonzero(~np.isnan(y)), np.flatnonzero(np.isnan(y))
    x, y = x[known], y[known]
    generator = np.random.default_rng(0)
    found: dict[str, list[dict[str, float]]] = {name: [] for name in ("all columns", *selections)}
    for fold in folds.split(x, y):
        every = score(model, x, y, fold, arguments.classify)
        found["all columns"].append({"columns": x.shape[1], "score": every, "blind": every})
        rows = np.sort(np.concatenate([known[fold[0]], elsewhere]))
        for name, selection in selections.items():
            began = time.monotonic()
            kept = np.sort(
                frame.columns.get_indexer(selection(frame.iloc[rows], target.iloc[rows]))
            )
            record: dict[str, float] = {"columns": len(kept), "seconds": time.monotonic() - began}
            blind = np.sort(generator.choice(x.shape[1], len(kept), replace=False))
            for what, chosen in (("score", kept), ("blind", blind)):
                record[what] = score(model, x[:, chosen], y, fold, arguments.classify)
            found[name].append(record)
            print(f"  {name}: {record}", flush=True)
        print(f"fold {len(found['all columns'])}: {every:.4f} with all columns", flush=True)
    return found


def spread(values: Sequence[float], digits: int = 4) -> str:
    """Mean and standard deviation over the folds."""
    return f"{np.mean(values):.{digits}f} ± {np.std(values, ddof=1):.{digits}f}"


def main() -> None:
    """Measure and print."""
    parser = common.parser(__doc__)
    parser.add_argument("sources", nargs="*", default=[EXAMPLE], help="Parquet files or globs")
    parser.add_argument("--target", default=EXAMPLE_TARGET, help="the column to predict")
    parser.add_argument("--leave-out", default=EXAMPLE_COPIES, help="names and globs")
    parser.add_argument("--classify", action="store_true", help="the target is 0 or 1")
    parser.add_argument(
        "--setting",
        action="append",
        default=[],
        help='options of one more selection, such as "passes: [1, 2]"; repeat for more',
    )
    parser.add_argument("--columns", default="", help="budgets to compare at, such as 50,200")
    parser.add_argument(
        "--peers", default="", help=f"{', '.join((BY_CORRELATION, *PEERS))}, or all of them"
    )
    parser.add_argument(
        "--all-rows", action="store_true", help="selections see rows without the target too"
    )
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--trees", type=int, default=100)
    arguments = parser.parse_args()
    print(common.machine(), time.strftime("%Y-%m-%d %H:%M"))
    frame, target = read(
        arguments.sources, arguments.target, arguments.leave_out, arguments.all_rows
    )
    found = measure(frame, target, contenders(arguments), arguments)
    metric = "area under the curve" if arguments.classify else "R^2"
    print(
        f"\n{arguments.target}: {target.notna().sum()} of {len(frame)} rows, "
        f"{frame.shape[1]} columns, "
        f"{arguments.repeats} x {arguments.folds} folds; mean and standard deviation over folds\n"
    )
    every = np.array([fold["score"] for fold in found["all columns"]])
    rows = []
    for name, folds in found.items():
        scores = np.array([fold["score"] for fold in folds])
        columns = np.mean([fold["columns"] for fold in folds])
        share = f"{columns:.0f} ({100 * columns / frame.shape[1]:.0f} %)"
        change = spread(list(100 * (scores / every - 1)), 2)
        drawn = spread([fold["blind"] for fold in folds])
        seconds = f"{np.median([fold.get('seconds', 0) for fold in folds]):.1f}"
        rows.append((name, share, spread(list(scores)), change, drawn, seconds))
    heads = ("selection", "columns", metric, "change, %", "as many drawn blindly", "seconds")
    common.show(heads, rows)
    common.finish(arguments, {"target": arguments.target, "folds": found})


if __name__ == "__main__":
    main()
