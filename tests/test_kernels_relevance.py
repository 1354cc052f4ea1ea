"""Relevance against dense kernels, canonical correlations of SciPy's making, and row chunks."""

from __future__ import annotations

from functools import reduce

import numpy as np
import pytest
from numpy.typing import NDArray
from reference import dense_nhsic, published_rdc, uniform_ranks

from dpipe.kernels.copula import BASIS
from dpipe.kernels.draws import rdc_draws
from dpipe.kernels.marginals import marginal_sums, whitened
from dpipe.kernels.ranks import rank_column
from dpipe.kernels.relevance import (
    CrossSums,
    Relevance,
    Target,
    cross_sums,
    of_classes,
    of_numbers,
    relevance,
)

Array = NDArray[np.float64]
ROWS = 400


def columns(seed: int) -> Array:
    """A factor under several shapes, and noise."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(ROWS)
    return np.stack(
        [
            x,
            x**2 + 0.1 * rng.standard_normal(ROWS),
            np.round(2 * x),
            (x > 0.5).astype(float),
            rng.standard_normal(ROWS),
            np.sin(4 * x) + 0.2 * rng.standard_normal(ROWS),
        ]
    )


def numbers(values: Array) -> Target:
    return of_numbers(rank_column(values).scores.astype(np.float64))


def measured(values: Array, *targets: Target, chunk: int = 150) -> Relevance:
    scores = np.stack([rank_column(column).scores.astype(np.float64) for column in values])
    strips = [slice(start, start + chunk) for start in range(0, values.shape[1], chunk)]
    parts = [cross_sums(scores[:, rows], targets, rows) for rows in strips]
    sums = reduce(CrossSums.__iadd__, parts)
    return relevance(sums, whitened(marginal_sums(scores, BASIS, None)), targets)


def dense_with_classes(column: Array, classes: NDArray[np.int64]) -> float:
    """Normalised biased HSIC with n x n kernels: Gaussian on the ranks, and "the same class"."""
    u = uniform_ranks(column)
    bandwidth = 1 - 1 / np.sqrt(2)
    gaussian = np.exp(-((u[:, None] - u) ** 2) / (2 * bandwidth**2))
    same = (classes[:, None] == classes).astype(float)
    centre = np.eye(len(u)) - 1 / len(u)
    a, b = centre @ gaussian @ centre, centre @ same @ centre
    return float((a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum()))


def split(values: Array, n_classes: int, seed: int) -> NDArray[np.int64]:
    """Classes by unequal bins of a noisy column, numbered at random."""
    rng = np.random.default_rng(seed)
    noisy = values + 0.5 * rng.standard_normal(len(values))
    edges = np.quantile(noisy, np.sort(rng.random(n_classes - 1)))
    numbers = rng.permutation(n_classes)
    found: NDArray[np.int64] = numbers[np.searchsorted(edges, noisy)]
    return np.unique(found, return_inverse=True)[1].astype(np.int64)


def test_numbers_agree_with_dense_kernels() -> None:
    values = columns(0)
    y = np.exp(values[0]) + 0.3 * np.random.default_rng(1).standard_normal(ROWS)
    found = measured(values, numbers(y))
    expected = [dense_nhsic(column, y) for column in values]
    assert found.hsic[:, 0] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("n_classes", [2, 5, 30])
def test_classes_agree_with_dense_kernels(n_classes: int) -> None:
    values = columns(2)
    classes = split(values[0], n_classes, 3)
    found = measured(values, of_classes(classes))
    expected = [dense_with_classes(column, classes) for column in values]
    assert found.hsic[:, 0] == pytest.approx(expected, abs=1e-5)


def test_the_canonical_correlation_with_numbers_is_the_published_one() -> None:
    values = columns(4)
    y = values[0] ** 3 + np.random.default_rng(5).standard_normal(ROWS)
    draws = rdc_draws(0, 5)
    expected = [np.median([published_rdc(column, y, w, b) for w, b in draws]) for column in values]
    assert measured(values, numbers(y)).rdc[:, 0] == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("n_classes", [2, 5])
def test_the_canonical_correlation_with_classes_is_that_of_their_indicators(n_classes: int) -> None:
    values = columns(6)
    classes = split(values[0], n_classes, 7)
    indicators = (classes == np.arange(n_classes)[:, None]).astype(float)
    y = np.linalg.qr((indicators - indicators.mean(axis=1)[:, None])[1:].T)[0]
    expected = []
    for column in values:
        cubic = np.vander(uniform_ranks(column) - 0.5, 4)[:, :3]
        cubic -= cubic.mean(axis=0)
        u, s, _ = np.linalg.svd(cubic, full_matrices=False)
        expected.append(np.linalg.svd(u[:, s > 1e-9 * s[0]].T @ y, compute_uv=False)[0])
    scores = np.stack([rank_column(column).scores.astype(np.float64) for column in values])
    targets = (of_classes(classes),)
    sums = cross_sums(scores, targets, slice(0, ROWS))
    found = relevance(sums, whitened(marginal_sums(scores, BASIS, None)), targets, degree=3)
    assert found.rdc[:, 0] == pytest.approx(expected, abs=1e-7)


def test_targets_do_not_see_each_other_nor_do_chunks_of_rows() -> None:
    values = columns(11)
    targets = numbers(values[0] * 2), of_classes(split(values[0], 4, 12)), numbers(values[4])
    together = measured(values, *targets, chunk=37)
    for number, target in enumerate(targets):
        alone = measured(values, target, chunk=ROWS)
        assert together.hsic[:, number] == pytest.approx(alone.hsic[:, 0], abs=1e-12)
        assert together.rdc[:, number] == pytest.approx(alone.rdc[:, 0], abs=1e-9)


def test_a_copy_of_the_target_is_fully_relevant_whatever_the_scale() -> None:
    y = columns(13)[0]
    found = measured(np.stack([np.exp(y), -y]), numbers(y))
    assert found.hsic == pytest.approx(1.0, abs=1e-9)
    assert found.rdc == pytest.approx(1.0, abs=1e-9)


def test_a_flag_says_the_same_as_a_number_and_as_two_classes() -> None:
    flag = columns(14)[3]
    found = measured(columns(14), of_classes(flag.astype(np.int64)), numbers(flag))
    assert found.hsic[:, 0] == pytest.approx(found.hsic[:, 1], abs=1e-6)
    assert found.hsic[3] == pytest.approx(1.0, abs=1e-9)


def test_constants_have_no_relevance() -> None:
    values = columns(15)[:2]
    values[0] = 1.0
    found = measured(values, numbers(columns(15)[0]))
    assert np.isnan(found.hsic[0]).all()
    assert np.isnan(found.rdc[0]).all()
    assert found.rdc[1] > 0
