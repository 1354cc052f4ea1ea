"""Does a model miss what dpipe takes away? Scores with all columns and with selections.

Gradient boosting, which ignores columns that it has no use for and so has least to gain from a
selection. The selection is fitted on the training rows of each fold alone and never sees the
target. Beside each selection stands as many columns drawn blindly: a selection that does not beat
them has done nothing but save columns.

Covers: R^2 of a regression, or area under the ROC curve with --classify; the paired difference
between each selection and all columns, fold by fold.

Usage: ``python -m benchmarks.downstream [TABLE... --target COLUMN --leave-out NAMES]
[--setting "spearman_threshold: 0.8, passes: [1, 2]"]``; without a table it takes examples/nci.
"""

from __future__ import annotations

import fnmatch
import glob
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import yaml
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.metrics import r2_score, roc_auc_score
from sklearn.model_selection import RepeatedKFold, RepeatedStratifiedKFold

import dpipe
from benchmarks import common

EXAMPLE = "examples/nci/*.parquet"
EXAMPLE_TARGET = "tpsa_reference"
EXAMPLE_COPIES = "id,smiles,TopoPSA*,rdkit_TPSA"
"""The example table, its target, and what is no descriptor or is the target under another name."""


def read(sources: Sequence[str], target: str, leave_out: str) -> tuple[pd.DataFrame, pd.Series]:
    """Numeric columns, without what is left out, and the target; rows whose target is known."""
    files = sorted(path for source in sources for path in glob.glob(source))
    frame = pd.concat([pd.read_parquet(path) for path in files], ignore_index=True)
    frame = frame[frame[target].notna()].reset_index(drop=True)
    patterns = [target, *filter(None, leave_out.split(","))]
    gone = [name for name in frame if any(fnmatch.fnmatchcase(name, p) for p in patterns)]
    numeric = frame.drop(columns=gone).select_dtypes(["number", "bool"])
    return numeric, frame[target].astype(float)


def parse_setting(text: str) -> dict[str, Any]:
    """Parameters of `DescriptorSelector` as YAML writes them on one line."""
    values: dict[str, Any] = yaml.safe_load(f"{{{text}}}")
    return values


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
    frame: pd.DataFrame, target: pd.Series, settings: Mapping[str, dict[str, Any]], arguments: Any
) -> dict[str, list[dict[str, float]]]:
    """Setting -> one record a fold: columns, their score, the score of as many drawn blindly."""
    how = {"n_splits": arguments.folds, "n_repeats": arguments.repeats, "random_state": 0}
    folds = RepeatedStratifiedKFold(**how) if arguments.classify else RepeatedKFold(**how)
    kind = HistGradientBoostingClassifier if arguments.classify else HistGradientBoostingRegressor
    model = kind(max_iter=arguments.trees, random_state=0)
    x = frame.to_numpy(dtype=float)
    x[~np.isfinite(x)] = np.nan  # the model takes missing cells, but no infinite ones
    y = target.to_numpy()
    generator = np.random.default_rng(0)
    found: dict[str, list[dict[str, float]]] = {name: [] for name in ("all columns", *settings)}
    for fold in folds.split(x, y):
        every = score(model, x, y, fold, arguments.classify)
        found["all columns"].append({"columns": x.shape[1], "score": every, "blind": every})
        for name, options in settings.items():
            selector = dpipe.DescriptorSelector(**options).fit(frame.iloc[fold[0]])
            kept = np.flatnonzero(selector.get_support())
            blind = np.sort(generator.choice(x.shape[1], len(kept), replace=False))
            record: dict[str, float] = {"columns": len(kept)}
            for what, chosen in (("score", kept), ("blind", blind)):
                record[what] = score(model, x[:, chosen], y, fold, arguments.classify)
            found[name].append(record)
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
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--trees", type=int, default=100)
    arguments = parser.parse_args()
    print(common.machine(), time.strftime("%Y-%m-%d %H:%M"))
    frame, target = read(arguments.sources, arguments.target, arguments.leave_out)
    settings = {"passes 1, 2": {"passes": (1, 2)}, "defaults": {}} | {
        text: parse_setting(text) for text in arguments.setting
    }
    found = measure(frame, target, settings, arguments)
    metric = "area under the curve" if arguments.classify else "R^2"
    print(
        f"\n{arguments.target}: {len(frame)} rows, {frame.shape[1]} columns, "
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
        rows.append((name, share, spread(list(scores)), change, drawn))
    common.show(("selection", "columns", metric, "change, %", "as many drawn blindly"), rows)
    common.finish(arguments, {"target": arguments.target, "folds": found})


if __name__ == "__main__":
    main()
