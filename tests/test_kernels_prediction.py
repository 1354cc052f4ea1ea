"""The sweep of pass 3 and what a selection predicts: least squares, the F test, known answers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import scipy.special
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from dpipe.kernels.explained import explained, on_selection, returning
from dpipe.kernels.normal import normal_scores
from dpipe.kernels.prediction import Prediction, adjusted, log_chance, required_r2, sweep
from dpipe.kernels.ranks import rank_column

Table = NDArray[np.float64]


def unit_scores(values: Table) -> Table:
    """(p, n) values to (p, n) normal scores, centred and of norm 1."""
    scores = normal_scores(np.stack([rank_column(column).scores for column in values]))
    centred = scores - scores.mean(axis=1, keepdims=True)
    return np.asarray(centred / np.linalg.norm(centred, axis=1, keepdims=True))


def swept(
    scores: Table,
    threshold: float | Table = 0.9,
    most: int | None = None,
    order: NDArray[np.int64] | None = None,
    asked: Sequence[int] = (),
) -> list[Prediction]:
    p, n = scores.shape
    return sweep(
        scores @ scores.T,
        np.arange(p) if order is None else order,
        np.isin(np.arange(p), asked),
        np.full(p, n),
        threshold,
        most,
    )


def r_squared(scores: Table, target: int, predictors: Sequence[int]) -> float:
    """By least squares on the scores themselves."""
    if not len(predictors):
        return 0.0
    x = scores[list(predictors)].T
    weights = np.linalg.lstsq(x, scores[target], rcond=None)[0]
    return 1 - float(((scores[target] - x @ weights) ** 2).sum())


def mixed(p: int, n: int, factors: int, noise: float, seed: int) -> Table:
    """Columns that share factors."""
    rng = np.random.default_rng(seed)
    loads = rng.standard_normal((p, factors)) * (rng.random((p, factors)) < 0.5)
    return loads @ rng.standard_normal((factors, n)) + noise * rng.standard_normal((p, n))


def test_normal_scores_are_the_quantiles_of_scipy() -> None:
    u = np.concatenate([np.linspace(1e-6, 1 - 1e-6, 10_001), [1e-7, 1 - 1e-7]])
    assert normal_scores(u - 0.5) == pytest.approx(scipy.special.ndtri(u), abs=1e-9)
    assert np.isfinite(normal_scores(np.array([-0.5, 0.5], dtype=np.float32))).all()


@given(st.integers(0, 10**6), st.sampled_from([0.7, 0.9, 0.97]))
def test_a_column_goes_exactly_when_the_kept_ones_predict_it(seed: int, threshold: float) -> None:
    scores = unit_scores(mixed(14, 300, 5, 0.3, seed))
    gone = {one.index: one for one in swept(scores, threshold)}
    kept: list[int] = []
    for column in range(len(scores)):
        value = adjusted(r_squared(scores, column, kept), 300, len(kept))
        if column not in gone:
            assert value < threshold + 1e-6
            kept.append(column)
        elif not gone[column].partners:
            assert gone[column].r_squared == pytest.approx(value, abs=1e-9)
            assert value > threshold - 1e-6
        else:  # few of the kept ones may do better, once their number is allowed for
            assert gone[column].r_squared >= max(value, threshold - 1e-6) - 1e-9


@given(st.integers(0, 10**6))
def test_a_few_named_columns_predict_what_goes_with_at_most_three(seed: int) -> None:
    scores = unit_scores(mixed(14, 300, 5, 0.3, seed))
    found = swept(scores, 0.9, most=3)
    gone = {one.index for one in found}
    for one in found:
        named = [column for column, _ in one.partners]
        assert 1 <= len(named) == one.predictors <= 3
        assert not gone.intersection(named)
        assert one.representative in named
        value = adjusted(r_squared(scores, one.index, named), 300, len(named))
        assert one.r_squared == pytest.approx(value, abs=1e-9)
        assert one.r_squared >= 0.9 - 1e-6
        fitted = sum(weight * scores[column] for column, weight in one.partners)
        rest = float(((scores[one.index] - fitted) ** 2).sum())
        assert rest == pytest.approx(1 - r_squared(scores, one.index, named), abs=1e-9)


@pytest.mark.parametrize(("n", "p"), [(61, 863), (150, 300), (12, 200)])
@pytest.mark.parametrize("most", [3, None])
def test_independent_columns_stay_however_few_the_rows(n: int, p: int, most: int | None) -> None:
    values = np.random.default_rng(n).standard_normal((p, n))
    assert swept(unit_scores(values), most=most) == []


@pytest.mark.parametrize(("n", "p"), [(150, 300), (1000, 300)])
@pytest.mark.parametrize("most", [3, None])
def test_planted_combinations_are_found_and_nothing_else_goes(
    n: int, p: int, most: int | None
) -> None:
    rng = np.random.default_rng(n)
    values = rng.standard_normal((p, n))
    planted = rng.permutation(p)[:80].reshape(20, 4)
    for first, second, third, total in planted:
        values[total] = values[first] + values[second] + values[third]
    gone = {one.index for one in swept(unit_scores(values), most=most)}
    found = [gone.intersection(group) for group in planted.tolist()]
    assert sum(len(group) == 1 for group in found) >= 19
    assert len(gone) == sum(map(len, found))


def test_an_exact_combination_of_many_columns_goes_and_names_them_all() -> None:
    rng = np.random.default_rng(5)
    scores = rng.standard_normal((7, 200))
    scores -= scores.mean(axis=1, keepdims=True)
    scores[6] = scores[:6].sum(axis=0)
    lengths = np.linalg.norm(scores, axis=1)
    (one,) = swept(scores / lengths[:, None], most=3)
    assert one.index == 6
    assert one.r_squared == pytest.approx(1.0)
    weights = dict(one.partners)
    expected = {column: lengths[column] / lengths[6] for column in range(6)}
    assert weights == pytest.approx(expected)


def test_a_predictor_that_others_replace_is_neither_named_nor_counted() -> None:
    rng = np.random.default_rng(0)
    axes = np.linalg.svd(np.eye(12) - 1 / 12)[0][:, :11].T  # all that 12 centred rows can hold
    first, second, off, *others = axes @ rng.permutation(np.eye(12))
    total = first + second
    near = total + 0.9 * off  # forward selection takes it first, as nothing alone is closer
    scores = np.stack([first, second, near, *others, total])
    (one,) = swept(scores / np.linalg.norm(scores, axis=1, keepdims=True), most=3)
    assert one.index == len(scores) - 1
    assert sorted(column for column, _ in one.partners) == [0, 1]
    assert one.predictors == 2
    assert one.representative in (0, 1)
    assert one.r_squared == pytest.approx(1, abs=1e-12)


def test_what_is_asked_for_stays_and_is_taken_first() -> None:
    values = mixed(6, 200, 1, 0.01, 3)
    scores = unit_scores(values[np.abs(values).max(axis=1) > 1])
    found = swept(scores, asked=[2, 4])
    assert [one.index for one in found] == [i for i in range(len(scores)) if i not in (2, 4)]


@given(st.integers(0, 10**6))
def test_the_answer_does_not_depend_on_how_the_columns_are_numbered(seed: int) -> None:
    scores = unit_scores(mixed(20, 120, 4, 0.2, seed))
    numbers = np.random.default_rng(seed).permutation(20)
    here = swept(scores, most=3)
    there = swept(scores[numbers], most=3, order=np.argsort(numbers))
    assert [one.index for one in here] == [int(numbers[one.index]) for one in there]
    assert [one.representative for one in here] == [
        int(numbers[one.representative]) for one in there
    ]


@given(st.integers(3, 200), st.integers(1, 20), st.floats(0.05, 0.999), st.integers(0, 6))
def test_the_bound_on_chance_is_never_below_the_f_test(
    n: int, predictors: int, reached: float, extra: int
) -> None:
    freedom = n - 1 - predictors
    choices = predictors + extra
    if freedom <= 0:
        assert log_chance(reached, n, predictors, choices) == math.inf
        return
    tail = scipy.stats.beta(freedom / 2, predictors / 2).logcdf(1 - reached)
    exact = tail + math.log(math.comb(choices, predictors))
    assert log_chance(reached, n, predictors, choices) >= exact - 1e-6


def test_what_the_kept_columns_explain_is_that_of_least_squares() -> None:
    scores = unit_scores(mixed(30, 100, 6, 0.4, 8))
    kept, others = np.arange(0, 30, 3), np.array([1, 2, 28])
    values = explained(scores @ scores.T, kept, others, np.full(30, 100))
    expected = [adjusted(r_squared(scores, j, kept.tolist()), 100, 10) for j in others.tolist()]
    assert values == pytest.approx(expected, abs=1e-9)


def test_dependent_kept_columns_count_once_in_what_they_explain() -> None:
    scores = unit_scores(mixed(4, 50, 2, 0.4, 9))
    doubled = np.concatenate([scores[:3], scores[:3], scores[3:]])
    values = explained(doubled @ doubled.T, np.arange(6), np.array([6]), np.full(7, 50))
    assert values[0] == pytest.approx(adjusted(r_squared(scores, 3, [0, 1, 2]), 50, 3), abs=1e-9)


@pytest.mark.parametrize("first", [0, 4, 10])
def test_the_first_of_the_kept_columns_may_explain_more_than_all(first: int) -> None:
    scores = unit_scores(mixed(14, 14, 3, 0.4, 11))
    kept, others = np.arange(1, 11), np.array([0, 11, 13])
    counts = np.full(3, first)
    values = explained(scores @ scores.T, kept, others, np.full(14, 14), counts)
    for j, value in zip(others.tolist(), values.tolist(), strict=True):
        expected = max(
            adjusted(r_squared(scores, j, kept[:count].tolist()), 14, count)
            for count in (first, 10)
        )
        assert value == pytest.approx(expected, abs=1e-9)


@given(st.integers(0, 10**6))
def test_with_what_comes_back_a_later_selection_predicts_all_that_went(seed: int) -> None:
    scores = unit_scores(mixed(20, 120, 4, 0.2, seed))
    gone = swept(scores, most=3)
    lost = np.random.default_rng(seed).random(20) < 0.3
    kept = np.array(
        [j for j in range(20) if j not in {one.index for one in gone} and not lost[j]], np.int64
    )
    gram, rows = scores @ scores.T, np.full(20, 120)
    back = returning(gram, np.arange(20), kept, gone, rows, 0.9).tolist()
    selection = sorted([*kept.tolist(), *back])
    for one in gone:
        if one.index in back:
            continue
        before = [column for column in selection if column < one.index]
        sets = [selection, before, [column for column, _ in one.partners]]
        values = [
            adjusted(r_squared(scores, one.index, predictors), 120, len(predictors))
            for predictors in sets
            if set(predictors) <= set(selection)
        ]
        assert max(values) >= 0.9 - 1e-6


def test_a_column_that_comes_back_holds_others_that_fell_with_it() -> None:
    rng = np.random.default_rng(10)
    base = rng.normal(size=(8, 120))
    sums = rng.uniform(0.5, 1, size=(12, 8)) @ base + 0.4 * rng.normal(size=(12, 120))
    scores = unit_scores(np.concatenate([base, sums]))
    gone = swept(scores)
    assert [one.index for one in gone] == list(range(8, 20))
    rows, kept = np.full(20, 120), np.arange(1, 8)  # another pass takes the first
    values = [adjusted(r_squared(scores, j, kept.tolist()), 120, 7) for j in range(8, 20)]
    fallen = [j for j, value in enumerate(values, 8) if value < 0.9]
    expected: list[int] = []
    for j in fallen:
        by = [*kept.tolist(), *expected]
        if adjusted(r_squared(scores, j, by), 120, len(by)) < 0.9:
            expected.append(j)
    assert returning(scores @ scores.T, np.arange(20), kept, gone, rows, 0.9).tolist() == expected
    assert 1 <= len(expected) < len(fallen) / 2


def test_nothing_comes_back_while_the_kept_columns_stay() -> None:
    scores = unit_scores(mixed(30, 60, 6, 0.2, 6))
    gone = swept(scores, most=3)
    kept = np.setdiff1d(np.arange(30), [one.index for one in gone])
    assert gone
    assert not len(returning(scores @ scores.T, np.arange(30), kept, gone, np.full(30, 60), 0.9))


def test_nothing_comes_back_because_rows_are_fewer_than_the_kept_columns() -> None:
    rng = np.random.default_rng(12)
    base = rng.normal(size=(8, 40))
    sums = base.sum(axis=0) + 0.1 * rng.normal(size=(2, 40))
    scores = unit_scores(np.concatenate([base, sums, rng.normal(size=(45, 40))]))
    r, order, rows = scores @ scores.T, np.arange(55), np.full(55, 40)
    gone = swept(scores)
    assert [(one.index, one.predictors, one.partners) for one in gone] == [(8, 8, ()), (9, 8, ())]
    kept = np.setdiff1d(order, [8, 9])
    assert explained(r, kept, np.array([8, 9]), rows).tolist() == [-math.inf, -math.inf]
    stated = [one.r_squared for one in gone]
    assert on_selection(r, order, kept, gone, rows) == pytest.approx(stated, abs=1e-9)
    assert not len(returning(r, order, kept, gone, rows, 0.9))
    for lost, back in ((54, []), (0, [8])):  # a column that predicts nothing, one that does
        assert returning(r, order, kept[kept != lost], gone, rows, 0.9).tolist() == back


def test_each_column_goes_at_a_threshold_of_its_own() -> None:
    a, b, noise = unit_scores(np.random.default_rng(8).normal(size=(3, 400)))
    copies = [a, b, a + 0.25 * noise, b + 0.25 * noise]  # R^2 0.94 on what they copy
    scores = np.stack([one / np.linalg.norm(one) for one in copies])
    for thresholds, gone in (([0.9] * 4, [2, 3]), ([0.9, 0.9, 0.96, 0.9], [3])):
        assert [one.index for one in swept(scores, np.array(thresholds))] == gone
        order = np.array([3, 2, 0, 1])  # 0 and 1 come last
        expected = [one for one, by in ((0, thresholds[0]), (1, thresholds[1])) if by < 0.93]
        assert [one.index for one in swept(scores, np.array(thresholds), order=order)] == expected


def test_what_comes_back_falls_below_its_own_threshold() -> None:
    a, b = unit_scores(np.random.default_rng(9).normal(size=(2, 400)))
    scores = np.stack([a, a, 0.96 * a + 0.28 * b])  # R^2 0.92 of the last on the others
    scores /= np.linalg.norm(scores, axis=1, keepdims=True)
    r, rows = scores @ scores.T, np.full(3, 400)
    gone = [one for one in swept(scores, order=np.array([0, 2, 1])) if one.index == 1]
    order = np.array([0, 2, 1])
    for threshold, back in ((0.9, []), (0.95, [1])):
        thresholds = np.array([0.99, threshold, 0.99])
        assert returning(r, order, np.array([2]), gone, rows, thresholds).tolist() == back


@pytest.mark.parametrize("threshold", [0.0, 0.88, 0.95, 1.0])
def test_the_required_r_squared_rises_with_relevance(threshold: float) -> None:
    required = required_r2(threshold, np.linspace(0, 1, 11))
    assert required[0] == threshold
    assert required[-1] == pytest.approx(threshold + (1 - threshold) * 2 / 3, abs=1e-6)
    assert np.allclose(np.diff(required, n=2), 0, atol=2e-6)  # evenly


def test_a_matrix_that_is_no_gram_matrix_is_refused() -> None:
    with pytest.raises(ValueError, match="norm 1"):
        sweep(2 * np.eye(2), np.arange(2), np.zeros(2, bool), np.full(2, 9), 0.9, None)
    with pytest.raises(ValueError, match="same columns"):
        sweep(np.eye(2), np.array([0, 0]), np.zeros(2, bool), np.full(2, 9), 0.9, None)
