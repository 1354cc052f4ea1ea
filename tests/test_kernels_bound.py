"""The upper bound of HSIC: never below it, and close to it.

Covers: the bound against HSIC itself for columns of all kinds, with ties and missing cells, of any
number of directions; what a fusion asks of it.
Does not cover: the pairs that a run leaves out by it (`test_transfer`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from dpipe.kernels.bound import LEADING, leading
from dpipe.kernels.copula import PAIR_BASIS
from dpipe.kernels.fusion import Fusion
from dpipe.kernels.marginals import marginal_sums, whitened
from dpipe.kernels.measures import MEASURES
from dpipe.kernels.moments import expand_whitened, tile_moments
from dpipe.kernels.ranks import rank_column

Array = NDArray[np.float64]
ROUNDING = 2e-5  # of float32 products (docs/statistics.md)


def both(columns: Array, directions: int = LEADING) -> tuple[Array, Array]:
    """HSIC of all pairs of columns (n, p), and its bound, through the kernels."""
    ranked = [rank_column(column) for column in columns.T]
    scores = np.stack([each.scores for each in ranked])
    valid = np.stack([~np.isnan(column) for column in columns.T])
    own = whitened(marginal_sums(scores.astype(float), 12, valid), spanned=PAIR_BASIS)
    few = leading(own, directions)

    def contracted(name: str, marginals: Any) -> Array:
        piece = expand_whitened(scores, valid, marginals)
        moments = tile_moments(piece, None).total()
        return np.asarray(MEASURES[name].contract(moments, marginals, marginals, {}))

    return contracted("hsic", own), contracted("hsic_bound", few)


def table(n: int, seed: int, step: float, missing: float) -> Array:
    """Columns that depend on each other in many ways, rounded to `step`, with missing cells."""
    rng = np.random.default_rng(seed)
    base = rng.standard_normal((n, 3))
    mixed = base @ rng.standard_normal((3, 8)) + 0.3 * rng.standard_normal((n, 8))
    bent = [np.abs(base), np.sin(3 * base), (base > 1).astype(float), base**3]
    values = np.concatenate([base, mixed, *bent], axis=1)
    if step:
        values = np.round(values / step) * step
    values[rng.random(values.shape) < missing] = np.nan
    return values


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    n=st.sampled_from([30, 200, 1000]),
    step=st.sampled_from([0, 0.1, 1, 3]),
    directions=st.integers(1, 5),
)
def test_the_bound_is_never_below(seed: int, n: int, step: float, directions: int) -> None:
    hsic, bound = both(table(n, seed, step, 0.0), directions)
    assert np.array_equal(np.isnan(hsic), np.isnan(bound))
    known = ~np.isnan(hsic)
    assert (bound[known] >= hsic[known] - ROUNDING).all()
    assert (bound[known] <= 1).all()


@pytest.mark.parametrize("n", [30, 200, 1000])
@pytest.mark.parametrize("missing", [0.05, 0.5])
def test_with_missing_cells_it_is_below_no_strong_pair(n: int, missing: float) -> None:
    for seed in range(20):
        hsic, bound = both(table(n, seed, [0, 0.1, 1][seed % 3], missing))
        strong = hsic > 0.6
        assert (bound[strong] >= hsic[strong] - ROUNDING).all()


def test_missing_cells_of_one_column_where_the_other_is_extreme() -> None:
    """What two columns have in common may be the ends of one, where covariances are largest."""
    rng = np.random.default_rng(1)
    x = rng.standard_normal(1000)
    y = x + 0.1 * rng.standard_normal(1000)
    y[np.abs(x) < 1] = np.nan
    hsic, bound = both(np.stack([x, y], axis=1))
    assert bound[0, 1] >= hsic[0, 1] - ROUNDING


@pytest.mark.parametrize(("step", "most"), [(0, 0.043), (0.5, 0.06)])
def test_it_is_close(step: float, most: float) -> None:
    hsic, bound = both(table(2000, 3, step, 0.0))
    excess = (bound - hsic)[np.triu_indices(len(hsic), 1)]
    assert excess.max() < most
    strong = hsic[np.triu_indices(len(hsic), 1)] > 0.6
    assert strong.any()
    assert excess[strong].max() < 0.03


def test_columns_without_a_value_have_none() -> None:
    values = table(50, 0, 0, 0.0)
    values[:, 0] = 1.0
    hsic, bound = both(values)
    assert np.isnan(hsic[0]).all()
    assert np.isnan(bound[0]).all()


@pytest.mark.parametrize(
    ("weights", "least"),
    [
        ({"hsic": 0.5, "rdc": 0.5}, 0.8),
        ({"hsic": 3.0, "rdc": 1.0}, 1 - 0.4 / 3),
        ({"hsic": 1.0, "rdc": 0.0}, 0.9),
        ({"hsic": 1.0, "rdc": 19.0}, None),  # it may be 0 where RDC is 1
        ({"rdc": 1.0, "dcor": 1.0}, None),
    ],
)
def test_what_a_fusion_asks_of_it(weights: dict[str, float], least: float | None) -> None:
    screen = Fusion.of(weights).screen(0.9)
    if least is None:
        assert screen is None
    else:
        assert screen is not None
        assert screen[0].names == ("hsic_bound",)
        assert screen[1] == pytest.approx(least)
