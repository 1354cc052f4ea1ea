"""Selectors that people use instead of dpipe, each as a function of training rows and a target.

Covers: columns by mutual information and by the importance of trees (scikit-learn), minimum
redundancy and maximum relevance three times over (mrmr-selection, mrmrs, feature-engine), HSIC
Lasso (pyHSICLasso) and groups by correlation (feature-engine). None of them takes a missing cell or
a column without variance: the median stands for the one, the other is left out before.
Does not cover: what a model makes of the columns (see `benchmarks.downstream`).
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import pandas as pd

BY_CORRELATION = "SmartCorrelatedSelection"
"""Says itself how many columns are left, as dpipe without a budget does."""


def filled(frame: pd.DataFrame) -> pd.DataFrame:
    """The columns that vary, as float64, missing cells at the median."""
    numbers = frame.astype(float).replace([np.inf, -np.inf], np.nan)
    numbers = numbers.fillna(numbers.median()).dropna(axis=1)
    return numbers.loc[:, numbers.nunique() > 1]


def smart_correlated(frame: pd.DataFrame, target: pd.Series) -> Sequence[str]:
    """feature-engine: of each group with |Spearman| >= 0.95 the one closest to the target."""
    from feature_engine.selection import SmartCorrelatedSelection

    selector = SmartCorrelatedSelection(
        method="spearman", threshold=0.95, selection_method="corr_with_target"
    )
    return _names(selector.fit(filled(frame), target).get_feature_names_out())


def by_mutual_information(
    frame: pd.DataFrame, target: pd.Series, count: int, classify: bool
) -> Sequence[str]:
    """scikit-learn's SelectKBest."""
    from sklearn.feature_selection import (
        SelectKBest,
        mutual_info_classif,
        mutual_info_regression,
    )

    information = mutual_info_classif if classify else mutual_info_regression
    selector = SelectKBest(partial(information, random_state=0), k=count)
    return _names(selector.fit(filled(frame), target).get_feature_names_out())


def by_trees(frame: pd.DataFrame, target: pd.Series, count: int, classify: bool) -> Sequence[str]:
    """The most important columns of scikit-learn's extremely randomised trees: a wrapper."""
    from sklearn.ensemble import ExtraTreesClassifier, ExtraTreesRegressor

    kind = ExtraTreesClassifier if classify else ExtraTreesRegressor
    numbers = filled(frame)
    trees = kind(n_estimators=300, random_state=0, n_jobs=1).fit(numbers, target)
    return _names(numbers.columns[np.argsort(-trees.feature_importances_)[:count]])


def by_mrmr_selection(
    frame: pd.DataFrame, target: pd.Series, count: int, classify: bool
) -> Sequence[str]:
    """mrmr-selection: F statistic divided by the mean correlation with those chosen before."""
    from mrmr import mrmr_classif, mrmr_regression

    choose = mrmr_classif if classify else mrmr_regression
    return _names(choose(X=filled(frame), y=target, K=count, show_progress=False, n_jobs=1))


def by_mrmrs(frame: pd.DataFrame, target: pd.Series, count: int, classify: bool) -> Sequence[str]:
    """mrmrs: the same in Rust."""
    import polars
    from mrmrs import mrmr

    task = "classification" if classify else "regression"
    chosen = mrmr(polars.from_pandas(filled(frame)), polars.from_pandas(target), count, task)
    return [feature.name for feature in chosen]


def by_feature_engine(
    frame: pd.DataFrame, target: pd.Series, count: int, classify: bool
) -> Sequence[str]:
    """feature-engine's MRMR with its default method, mutual information over correlation."""
    from feature_engine.selection import MRMR

    selector = MRMR(max_features=count, regression=not classify, random_state=0)
    return _names(selector.fit(filled(frame), target).get_feature_names_out())


def by_hsic_lasso(
    frame: pd.DataFrame, target: pd.Series, count: int, classify: bool
) -> Sequence[str]:
    """pyHSICLasso in blocks of 20 rows, its default; it may return fewer than asked for."""
    from pyHSICLasso import HSICLasso

    numbers = filled(frame)
    lasso = HSICLasso()
    with contextlib.redirect_stdout(io.StringIO()):
        lasso.input(numbers.to_numpy(), target.to_numpy(), featname=np.array(numbers.columns))
        solve = lasso.classification if classify else lasso.regression
        solve(count, B=20, n_jobs=1)
    return _names(numbers.columns[lasso.get_index()[:count]])


PEERS: dict[str, Callable[..., Sequence[str]]] = {
    "mutual information": by_mutual_information,
    "trees": by_trees,
    "mrmr-selection": by_mrmr_selection,
    "mrmrs": by_mrmrs,
    "MRMR": by_feature_engine,
    "HSIC Lasso": by_hsic_lasso,
}


def _names(found: object) -> list[str]:
    return [str(name) for name in found]  # type: ignore[attr-defined]
