"""Basis, moments and measures against SciPy, dense HSIC and the published RDC recipe."""

from __future__ import annotations

from functools import reduce
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from reference import dense_nhsic, distance_correlation, published_rdc

from dpipe.kernels import basis
from dpipe.kernels.basis import legendre, legendre_sums
from dpipe.kernels.contraction import Part
from dpipe.kernels.copula import BASIS, PAIR_BASIS
from dpipe.kernels.draws import rdc_draws
from dpipe.kernels.fusion import Fusion
from dpipe.kernels.joint import DEGREE, common, whitening
from dpipe.kernels.marginals import Marginals, MarginalSums, marginal_sums, untied_sums, whitened
from dpipe.kernels.measure import Scale
from dpipe.kernels.measures import MEASURES
from dpipe.kernels.moments import (
    Moments,
    expand_normal,
    expand_ranks,
    expand_whitened,
    tile_moments,
)
from dpipe.kernels.normal import normal_moments, normal_sums, untied_normal_sums
from dpipe.kernels.ranks import rank_column
from dpipe.kernels.rerank import (
    MOST_COUNTED,
    average_ranks,
    centred_ranks,
    counted_ranks,
    joint_scores,
    joint_spearman,
    places,
    spearman_of_pairs,
)

Array = NDArray[np.float64]


def shapes(n: int, seed: int) -> dict[str, Array]:
    """Columns of the seven synthetic shapes of docs/statistics.md, with x first."""
    rng = np.random.default_rng(seed)
    x = rng.random(n)
    angle = 2 * np.pi * x
    return {
        "x": x,
        "independent": rng.random(n),
        "linear": 0.9 * x + 0.1 * rng.random(n),
        "quadratic": (x - 0.5) ** 2 + 0.02 * rng.standard_normal(n),
        "sine": np.sin(4 * np.pi * x) + 0.1 * rng.standard_normal(n),
        "circle": np.where(rng.random(n) < 0.5, 1, -1) * np.sin(angle),
        "rounded": np.round(3 * x + rng.random(n)),
        "binary": (x + 0.3 * rng.random(n) > 0.6).astype(float),
        "rare": (rng.random(n) < 0.01) * np.round(1 + 2 * rng.random(n)),
    }


def prepared(columns: list[Array]) -> tuple[NDArray[np.float32], NDArray[np.bool_] | None]:
    ranked = [rank_column(column) for column in columns]
    scores = np.stack([column.scores for column in ranked])
    if all(column.valid is None for column in ranked):
        return scores, None
    full = np.ones(scores.shape[1], dtype=bool)
    return scores, np.stack([full if c.valid is None else c.valid for c in ranked])


def marginals_of(
    scores: NDArray[np.float32], valid: NDArray[np.bool_] | None, functions: int, chunk: int
) -> Marginals:
    parts = []
    for start in range(0, scores.shape[1], chunk):
        rows = slice(start, start + chunk)
        mask = None if valid is None else valid[:, rows]
        known = max(BASIS, functions)
        parts.append(marginal_sums(scores[:, rows].astype(float), known, mask, functions > 1))
    return whitened(reduce(MarginalSums.__iadd__, parts), spanned=functions)


def matrices(columns: list[Array], names: list[str], chunk: int = 10**9) -> dict[str, Array]:
    """Similarities of all pairs through the kernels, as one diagonal tile."""
    scores, valid = prepared(columns)
    functions = max(MEASURES[name].functions for name in names)
    normal = MEASURES[names[0]].scale is Scale.NORMAL
    if normal:
        marginals = normal_moments(normal_sums(scores, valid))
    else:
        marginals = marginals_of(scores, valid, functions, chunk)
    total: Moments | None = None
    for start in range(0, scores.shape[1], chunk):
        rows = slice(start, start + chunk)
        mask = None if valid is None else valid[:, rows]
        if normal:
            piece = expand_normal(scores[:, rows], mask)
        elif functions == 1:
            piece = expand_ranks(scores[:, rows], mask)
        else:
            piece = expand_whitened(scores[:, rows], mask, marginals)
        moments = tile_moments(piece, None)
        total = moments.total() if total is None else total.__iadd__(moments)
    assert total is not None
    return {name: MEASURES[name].contract(total, marginals, marginals, {}) for name in names}


@pytest.mark.parametrize("n", [1, 2, 101, 200_000])
def test_sums_of_the_normal_scores_of_untied_columns_are_known_without_looking(n: int) -> None:
    column = np.random.default_rng(n).permutation(n).astype(float)
    looked = normal_sums(rank_column(column).scores[None], None)
    known = untied_normal_sums(n)
    assert known.count == looked.count == n
    np.testing.assert_allclose(known.total, looked.total, rtol=0, atol=1e-8 * n)


@pytest.mark.parametrize("n", [1, 2, 101, 20_000])
def test_marginal_sums_of_untied_columns_are_known_without_looking(n: int) -> None:
    column = np.random.default_rng(n).permutation(n).astype(float)
    looked = marginal_sums(rank_column(column).scores[None].astype(float), BASIS, None)
    known = untied_sums(n, BASIS)
    assert known.count == looked.count == n
    np.testing.assert_allclose(known.total, looked.total, rtol=0, atol=1e-13 * n)


def test_basis__is_orthonormal_and_orthogonal_to_one() -> None:
    nodes, weights = np.polynomial.legendre.leggauss(40)
    values = legendre(nodes[None] / 2, BASIS)[0]
    np.testing.assert_allclose((values * weights / 2) @ values.T, np.eye(BASIS), atol=1e-13)
    np.testing.assert_allclose(values @ weights, 0, atol=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_basis__keeps_the_type_and_agrees_with_numpy(dtype: type) -> None:
    scores = np.linspace(-0.499, 0.499, 977, dtype=dtype)
    values = legendre(scores[None], BASIS)
    assert values.dtype == dtype
    for k in range(1, BASIS + 1):
        series = np.zeros(k + 1)
        series[k] = np.sqrt(2 * k + 1)
        expected = np.polynomial.legendre.legval(2 * scores.astype(float), series)
        tolerance = 1e-5 if dtype is np.float32 else 1e-12
        np.testing.assert_allclose(values[0, k - 1], expected, atol=tolerance)


@given(
    columns=st.integers(0, 5),
    rows=st.sampled_from([0, 1, 2, 1023, 1024, 1025, 3000]),
    functions=st.integers(1, 24),
    dtype=st.sampled_from([np.float32, np.float64]),
    masked=st.booleans(),
    seed=st.integers(0, 99),
)
def test_basis__compiled_is_numpy_to_the_bit(
    columns: int, rows: int, functions: int, dtype: type, masked: bool, seed: int
) -> None:
    if basis.compiled is None:
        pytest.skip("the basis is not compiled here")
    rng = np.random.default_rng(seed)
    valid = (rng.random((columns, rows)) < 0.8).astype(dtype) if masked else None
    scores = (rng.random((columns, 2 * rows)) - 0.5).astype(dtype)[:, ::2]  # no row in one piece
    if valid is not None:
        scores *= valid
    room = np.full((columns, 2 * functions, rows + 7), np.nan, dtype)
    compiled = legendre(scores, functions, valid, out=room[:, ::2, 3:-4])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(basis, "compiled", None)
        expected = legendre(scores, functions, valid)
        sums = legendre_sums(scores, functions, valid)
    np.testing.assert_array_equal(compiled, expected)
    np.testing.assert_array_equal(legendre_sums(scores, functions, valid), sums)
    room[:, ::2, 3:-4] = np.nan
    assert np.isnan(room).all(), "something was written beside the functions"


def test_basis__compiled_refuses_other_arrays() -> None:
    if basis.compiled is None:
        pytest.skip("the basis is not compiled here")
    scores, values = np.zeros((2, 5)), np.zeros((2, 3, 5))
    good = [scores, None, values, np.zeros(4)]
    basis.compiled.expand(*good)
    for place, other in (
        (0, scores.astype(np.float32)),
        (0, scores.astype(np.int64)),
        (0, scores[:, :4]),
        (0, scores[0]),
        (1, np.zeros((1, 5))),
        (1, np.zeros((2, 5), bool)),
        (2, values[:1]),
        (2, values.transpose(0, 2, 1)),
        (2, values[:, :0]),
        (3, np.zeros(3)),
        (3, np.zeros(4, np.float32)),
    ):
        with pytest.raises(ValueError, match="other types or shapes"):
            basis.compiled.expand(*[other if k == place else each for k, each in enumerate(good)])
    values.setflags(write=False)
    with pytest.raises((ValueError, BufferError)):
        basis.compiled.expand(*good)


@pytest.mark.parametrize("seed", range(3))
def test_spearman__complete_columns_equal_scipy(seed: int) -> None:
    columns = list(shapes(1500, seed).values())
    expected = scipy.stats.spearmanr(np.column_stack(columns)).statistic
    np.testing.assert_allclose(matrices(columns, ["spearman"])["spearman"], expected, atol=1e-6)


def test_spearman__missing_cells_use_marginal_ranks_on_joint_rows() -> None:
    rng = np.random.default_rng(5)
    columns = [column.copy() for column in shapes(900, 5).values()]
    for column in columns[::2]:
        column[rng.random(len(column)) < 0.3] = np.nan
    frame = pd.DataFrame(dict(enumerate(columns)))
    expected = frame.rank().corr(min_periods=2).to_numpy()
    np.testing.assert_allclose(matrices(columns, ["spearman"])["spearman"], expected, atol=1e-6)


def test_spearman__columns_constant_on_a_pair_have_no_similarity() -> None:
    x = np.array([1.0, 2, 3, np.nan, np.nan])
    y = np.array([1.0, 1, 1, 2, 3])
    rho = matrices([x, y], ["spearman"])["spearman"]
    assert np.isnan(rho[0, 1])
    assert rho[0, 0] == pytest.approx(1)


@pytest.mark.parametrize("seed", range(2))
def test_hsic__is_within_1e5_of_the_dense_estimate(seed: int) -> None:
    table = shapes(1200, seed)
    values = matrices(list(table.values()), ["hsic"])["hsic"]
    for j, column in enumerate(table.values()):
        assert values[0, j] == pytest.approx(dense_nhsic(table["x"], column), abs=1e-5)
        assert values[j, j] == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_rdc__is_the_published_recipe_with_the_same_draws(seed: int) -> None:
    columns = list(shapes(1000, seed).values())
    values = matrices(columns, ["rdc"])["rdc"]
    draws = rdc_draws(0, 5)
    for i in range(len(columns)):
        for j in range(i):
            expected = np.median([published_rdc(columns[i], columns[j], w, b) for w, b in draws])
            assert values[i, j] == pytest.approx(expected, abs=1e-3), (i, j)


def test_rdc__degree_is_seed_free_and_sees_finer_shapes() -> None:
    table = shapes(3000, 1)
    scores, _ = prepared([table["x"], table["sine"]])
    marginals = marginals_of(scores, None, BASIS, 10**9)
    moments = tile_moments(expand_whitened(scores, None, marginals), None).total()
    contract = MEASURES["rdc"].contract
    cubic = contract(moments, marginals, marginals, {"rdc_degree": 3})[0, 1]
    fine = contract(moments, marginals, marginals, {"rdc_degree": BASIS})[0, 1]
    assert contract(moments, marginals, marginals, {"rdc_degree": 3, "seed": 9})[0, 1] == cubic
    assert cubic < 0.6 < 0.9 < fine


def test_hsic__needs_ten_functions() -> None:
    table = {**shapes(500, 1), **counts(500, 1)}
    columns = [table[name] for name in table]
    scores, _ = prepared(columns)
    marginals = whitened(marginal_sums(scores.astype(float), BASIS, None), None, PAIR_BASIS)
    moments = tile_moments(expand_whitened(scores, None, marginals, "float64"), None).total()
    found = MEASURES["hsic"].contract(moments, marginals, marginals, {})
    expected = [[dense_nhsic(x, y) for y in columns] for x in columns]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


def test_rdc__of_as_many_functions_as_its_degree_asks_for() -> None:
    assert Fusion.of({"hsic": 1, "rdc": 1}).functions_for({"rdc_degree": BASIS}) == BASIS
    assert Fusion.of({"hsic": 1, "rdc": 1}).functions_for({"rdc_degree": 3}) == PAIR_BASIS
    assert Fusion.of({"hsic": 1}).functions_for({"rdc_degree": BASIS}) == PAIR_BASIS


def counts(n: int, seed: int) -> dict[str, Array]:
    """Columns of few values, some rare, and what hangs together with them."""
    rng = np.random.default_rng(seed)
    x = rng.random(n)
    return {
        "x": x,
        "flag": (x > 0.7).astype(float),
        "rare flag": (x + 0.1 * rng.random(n) > 1.05).astype(float),
        "five": np.floor(5 * x),
        "poisson": rng.poisson(2 * x).astype(float),
        "more": rng.poisson(9 * x).astype(float),
        "zeros": np.where(rng.random(n) < 0.8, 0, x),
        "other": rng.poisson(2, n).astype(float),
    }


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("columns", [shapes, counts])
def test_dcor__is_near_the_exact_value_on_ranks(columns: Any, seed: int) -> None:
    table = list(columns(1500, seed).values())
    found = matrices(table, ["dcor"])["dcor"]
    for i, x in enumerate(table):
        for j, y in enumerate(table[: i + 1]):
            assert found[i, j] == pytest.approx(distance_correlation(x, y), abs=1e-3), (i, j)


def test_dcor__of_columns_of_few_values_is_exact() -> None:
    table = counts(900, 4)
    few = [table[name] for name in ("flag", "rare flag", "five", "poisson", "other")]
    found = matrices(few, ["dcor"])["dcor"]
    expected = [[distance_correlation(x, y) for y in few] for x in few]
    np.testing.assert_allclose(found, expected, atol=2e-6)


def test_dcor__misses_what_swings_faster_than_its_functions() -> None:
    x = np.random.default_rng(0).random(2000)
    fast = np.sin(16 * np.pi * x)
    found = matrices([x, fast], ["dcor"])["dcor"][0, 1]
    assert distance_correlation(x, fast) - 0.015 < found < distance_correlation(x, fast)


def test_hsic_and_rdc__missing_pairs_follow_the_joint_rows() -> None:
    rng = np.random.default_rng(3)
    x = rng.random(4000)
    y = (x - 0.5) ** 2 + 0.02 * rng.standard_normal(4000)
    holes = y.copy()
    holes[rng.random(4000) < 0.4] = np.nan
    joint = ~np.isnan(holes)
    values = matrices([x, holes], ["hsic", "rdc"])
    assert values["hsic"][0, 1] == pytest.approx(dense_nhsic(x[joint], y[joint]), abs=0.02)
    w, b = rdc_draws(0, 1)[0]
    assert values["rdc"][0, 1] == pytest.approx(published_rdc(x[joint], y[joint], w, b), abs=0.02)


def left_out(name: str, x: Array) -> NDArray[np.bool_]:
    """Rows that are left: not at random but for the last."""
    distance = np.abs(x - 0.5)
    return {
        "upper 90 %": x > 0.1,
        "upper half": x > 0.5,
        "middle half": distance < 0.25,
        "tails": distance > 0.25,
        "half": np.random.default_rng(1).random(len(x)) < 0.5,
    }[name]


@pytest.mark.parametrize(
    ("rows", "off"),
    [
        ("upper 90 %", 0.04),
        ("upper half", 0.1),
        ("middle half", 0.2),
        ("tails", 0.28),
        ("half", 0.02),
    ],
)
@pytest.mark.parametrize("shape", ["linear", "quadratic", "binary"])
def test_hsic_and_rdc__of_rows_that_are_missing_for_a_reason_are_near_those_of_the_rest(
    rows: str, off: float, shape: str
) -> None:
    columns = shapes(4000, 3)
    x, y = columns["x"], columns[shape]
    joint = left_out(rows, x)
    values = matrices([x, np.where(joint, y, np.nan)], ["hsic", "rdc"])
    w, b = rdc_draws(0, 1)[0]
    assert values["hsic"][0, 1] == pytest.approx(dense_nhsic(x[joint], y[joint]), abs=off)
    expected = published_rdc(x[joint], y[joint], w, b)
    assert values["rdc"][0, 1] == pytest.approx(expected, abs=0.08 if rows == "tails" else 0.03)


def test_common__covariances_are_those_of_the_joint_rows() -> None:
    columns = list(shapes(2000, 5).values())[:6]
    for k, rows in enumerate(["upper 90 %", "tails", "half"]):
        columns[k + 1] = np.where(left_out(rows, columns[0]), columns[k + 1], np.nan)
    scores, valid = prepared(columns)
    assert valid is not None
    marginals = marginals_of(scores, valid, PAIR_BASIS, 10**9)
    moments = tile_moments(expand_whitened(scores, valid, marginals, "float64"), None).total()
    pairs = common(moments, marginals, marginals)
    assert pairs is not None
    everything = slice(0, 6)
    found, _ = pairs.covariances(
        Part(everything, everything, moments.product, moments.count, listed=False)
    )
    psi = legendre(scores.astype(float), DEGREE)
    for i in range(6):
        for j in range(6):
            joint = valid[i] & valid[j]
            expected = np.cov(psi[i][:, joint], bias=True)
            np.testing.assert_allclose(found[i, j], expected, atol=1e-6)
            assert pairs.partial[i, j] == (joint.sum() < max(valid[i].sum(), valid[j].sum()))
            if not pairs.partial[i, j]:
                assert pairs.shift[i, j] == pytest.approx(0, abs=1e-9)
            white = whitening(found[i, j])
            unit = white @ expected @ white.T
            np.testing.assert_allclose(unit, np.diag(np.diag(unit).round()), atol=1e-4)


@given(st.integers(0, 500), st.integers(3, 60))
def test_joint_scores__are_the_centred_ranks_of_the_rows_that_are_left(seed: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    values = np.round(3 * rng.standard_normal((2, n)))
    ranked = [rank_column(column) for column in values]
    rows = np.sort(rng.choice(n, rng.integers(1, n + 1), replace=False))
    scores = np.stack([column.scores[rows] for column in ranked])
    found = joint_scores(scores, np.array([n, n]))
    expected = scipy.stats.rankdata(values[:, rows], axis=1)
    np.testing.assert_allclose(found, (expected - (len(rows) + 1) / 2) / len(rows), atol=1e-12)


@pytest.mark.parametrize("names", [["spearman"], ["gram"], ["hsic", "rdc", "dcor"]])
@pytest.mark.parametrize("chunk", [37, 500])
def test_measures__do_not_depend_on_chunks(names: list[str], chunk: int) -> None:
    columns = list(shapes(1000, 7).values())
    columns[3][::3] = np.nan
    whole, cut = matrices(columns, names), matrices(columns, names, chunk)
    for name in names:
        np.testing.assert_allclose(whole[name], cut[name], atol=4e-6)


def test_tiles__off_the_diagonal_equal_the_diagonal_tile() -> None:
    columns = list(shapes(800, 2).values())
    columns[1][:100] = np.nan
    whole = matrices(columns, ["spearman"])["spearman"]
    parts = []
    for part in (columns[:4], columns[4:]):
        scores, valid = prepared(part)
        parts.append(expand_ranks(scores, valid))
    tile = MEASURES["spearman"].contract(tile_moments(*parts).total(), None, None, {})
    np.testing.assert_allclose(tile, whole[:4, 4:], atol=1e-12)


def test_gram__is_the_correlation_of_mean_imputed_normal_scores_and_semi_definite() -> None:
    rng = np.random.default_rng(11)
    columns = [column.copy() for column in shapes(700, 11).values()]
    for column in columns:
        column[rng.random(700) < 0.3] = np.nan
    gram = matrices(columns, ["gram"])["gram"]
    table = pd.DataFrame(dict(enumerate(columns)))
    scores = pd.DataFrame(scipy.stats.norm.ppf((table.rank() - 0.5) / table.count()))
    expected = scores.fillna(scores.mean()).corr().to_numpy()
    np.testing.assert_allclose(gram, expected, atol=1e-6)
    assert np.linalg.eigvalsh(gram).min() > -1e-12


@given(st.lists(st.lists(st.integers(0, 6), min_size=12, max_size=12), min_size=2, max_size=5))
def test_measures__are_symmetric_in_range_and_one_on_the_diagonal(rows: list[list[int]]) -> None:
    columns = [np.array(row, dtype=float) for row in rows]
    values = matrices(columns, ["hsic", "rdc", "dcor"]) | matrices(columns, ["spearman"])
    for name, matrix in values.items():
        defined = matrix[~np.isnan(matrix)]
        assert np.all(np.abs(defined) <= 1), name
        np.testing.assert_allclose(matrix, matrix.T, atol=1e-5)
        for value, column in zip(np.diag(matrix), columns, strict=True):
            if len(set(column)) == 1:
                assert np.isnan(value)
            else:
                assert value == pytest.approx(1, abs=1e-4)


@given(st.integers(0, 2**32 - 1))
def test_measures__ignore_monotone_maps_and_row_order(seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, y = rng.standard_normal(200), rng.integers(0, 9, 200).astype(float)
    shuffled = rng.permutation(200)
    changed = [np.exp(x)[shuffled], (y**3 - 5)[shuffled]]
    for names in (["spearman"], ["hsic", "rdc"]):
        before, after = matrices([x, y], names), matrices(changed, names)
        for name in names:
            np.testing.assert_allclose(before[name], after[name], atol=1e-5)


@given(
    st.lists(
        st.lists(st.integers(-3, 3), min_size=1, max_size=20).filter(bool), min_size=1, max_size=1
    )
)
def test_rerank__average_ranks_equal_scipy(rows: list[list[int]]) -> None:
    values = np.array(rows, dtype=float)
    np.testing.assert_array_equal(average_ranks(values), scipy.stats.rankdata(values, axis=1))


@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 2, 7, 1000, MOST_COUNTED]))
def test_rerank__counted_ranks_are_those_of_sorting(seed: int, n_valid: int) -> None:
    rng = np.random.default_rng(seed)
    cuts = np.unique(rng.integers(1, n_valid + 1, rng.integers(1, 1000)))
    ends = np.union1d(np.maximum(cuts - rng.integers(0, 2, len(cuts)), 1), [n_valid])
    starts = np.append(0, ends[:-1])  # the ties of each value, of one row to very many
    scores = ((starts + ends - n_valid) / (2 * n_valid)).astype(np.float32)
    drawn = rng.choice(scores, (1, 50))
    counted = counted_ranks(places(drawn, np.array([n_valid])))
    np.testing.assert_array_equal(counted, average_ranks(drawn))


@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 2, 7, 400]))
def test_rerank__centred_ranks_are_those_of_the_rows_that_are_left(seed: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    rows = [n, 2 * n, 9 * n]  # valid ones of a column, of which n are left: all, half, few
    columns = [np.round(rng.normal(size=size), 1) for size in rows]
    chosen = [rng.permutation(size)[:n] for size in rows]
    scores = [
        rank_column(column).scores[some] for column, some in zip(columns, chosen, strict=True)
    ]
    found = centred_ranks(np.stack(scores), np.array(rows))
    left = np.stack([column[some] for column, some in zip(columns, chosen, strict=True)])
    np.testing.assert_array_equal(found, scipy.stats.rankdata(left, axis=1) - (n + 1) / 2)


@pytest.mark.parametrize("n", [MOST_COUNTED, MOST_COUNTED + 3])
def test_rerank__scores_tell_the_ranks_of_very_many_rows(n: int) -> None:
    ranks = np.arange(n) - (n - 1) / 2
    scores = (ranks / n).astype(np.float32)[None]
    found = centred_ranks(scores, np.array([n]))[0]
    if n > MOST_COUNTED:  # where neighbours may have the same score
        np.testing.assert_array_equal(found, scipy.stats.rankdata(scores[0]) - (n + 1) / 2)
    else:
        np.testing.assert_array_equal(found, ranks)


@pytest.mark.parametrize("n", [7, 416, 10_001])
@pytest.mark.parametrize("pairs", [3, 400])
def test_rerank__pairs_are_those_of_the_whole_table(n: int, pairs: int) -> None:
    rng = np.random.default_rng(n)
    x = rng.standard_normal((30, n))
    y = np.round(x[:20] + 0.2 * rng.standard_normal((20, n)), 1)
    y[3] = 1.0
    i, j = rng.integers(30, size=pairs), rng.integers(20, size=pairs)
    i[0], j[0] = 3, 3
    left, right = (average_ranks(side) - (n + 1) / 2 for side in (x, y))
    found = spearman_of_pairs(left, right, i, j)
    assert np.isnan(found[0])
    np.testing.assert_array_equal(found, joint_spearman(x, y)[i, j])


@pytest.mark.parametrize("n", [7, 416, 10_001])
def test_rerank__no_digit_depends_on_what_is_measured_beside_a_pair(n: int) -> None:
    rng = np.random.default_rng(n)
    x = rng.standard_normal((6, n))
    y = np.round(x[:5] + 0.2 * rng.standard_normal((5, n)), 1)
    together = joint_spearman(x, y)
    for i, j in np.ndindex(together.shape):
        assert joint_spearman(x[i : i + 1], y[j : j + 1])[0, 0] == together[i, j]
    assert (np.diag(joint_spearman(x, x)) == 1).all()
    assert (np.diag(joint_spearman(x, -x)) == -1).all()


def test_rerank__equals_pandas_inside_pairs() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal(300), rng.integers(0, 5, 300).astype(float)
    joint = rng.random(300) < 0.6
    frame = pd.DataFrame({"x": np.where(joint, x, np.nan), "y": y})
    expected = frame.corr(method="spearman").to_numpy()[0, 1]
    assert joint_spearman(x[None, joint], y[None, joint])[0, 0] == pytest.approx(
        expected, abs=1e-12
    )
