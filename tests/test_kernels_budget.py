"""Exactly K columns, against greedy choices worked out by least squares at every step."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from dpipe.kernels.budget import (
    Regression,
    choose_for_table,
    choose_for_target,
    explained_by,
)

Table = NDArray[np.float64]


def unit(values: Table) -> Table:
    centred = values - values.mean(axis=1, keepdims=True)
    return np.asarray(centred / np.linalg.norm(centred, axis=1, keepdims=True))


def table(seed: int, p: int = 12) -> Table:
    rng = np.random.default_rng(seed)
    loads = rng.standard_normal((p, 4))
    return unit(loads @ rng.standard_normal((4, 60)) + 0.5 * rng.standard_normal((p, 60)))


def none(p: int) -> NDArray[np.bool_]:
    return np.zeros(p, dtype=bool)


def left_of(scores: Table, chosen: list[int]) -> float:
    """Sum of squares that least squares on the chosen columns leaves of all."""
    x = scores[chosen].T
    fitted = x @ np.linalg.lstsq(x, scores.T, rcond=None)[0]
    return float(((scores.T - fitted) ** 2).sum())


def ridge_left(scores: Table, responses: Table, chosen: list[int], ridge: float) -> float:
    """The penalised sum of squares of a ridge regression of the responses on the chosen columns."""
    x = scores[chosen].T
    weights = np.linalg.solve(x.T @ x + ridge * np.eye(len(chosen)), x.T @ responses.T)
    rest = float(((responses.T - x @ weights) ** 2).sum())
    return rest + ridge * float((weights**2).sum())


@given(st.integers(0, 10**6))
def test_without_a_target_each_column_explains_most_of_what_is_left(seed: int) -> None:
    scores = table(seed)
    found = choose_for_table(scores @ scores.T, np.arange(12), none(12), 5)
    chosen: list[int] = []
    for number, taken in enumerate(found.indices.tolist()):
        best = min(left_of(scores, [*chosen, j]) for j in range(12) if j not in chosen)
        chosen.append(taken)
        assert left_of(scores, chosen) == pytest.approx(best, rel=1e-5)
        assert found.table[number] == pytest.approx(1 - left_of(scores, chosen) / 12, abs=1e-9)


@given(st.integers(0, 10**6), st.integers(1, 3))
def test_with_a_target_each_column_lowers_the_penalised_error_most(seed: int, q: int) -> None:
    scores = table(seed)
    responses = unit(np.random.default_rng(seed).standard_normal((q, 60)) + scores[:q] * 8)
    gram = scores @ scores.T
    of = Regression(gram, scores @ responses.T, 0.2)
    found = choose_for_target([of], gram, np.arange(12), none(12), 5, q)
    chosen: list[int] = []
    for number, taken in enumerate(found.indices.tolist()):
        best = min(
            ridge_left(scores, responses, [*chosen, j], 0.2) for j in range(12) if j not in chosen
        )
        chosen.append(taken)
        reached = ridge_left(scores, responses, chosen, 0.2)
        assert reached == pytest.approx(best, rel=1e-5)
        assert found.target[number] == pytest.approx(1 - reached / q, abs=1e-9)
    assert found.table == pytest.approx(explained_by(scores @ scores.T, found.indices))


@pytest.mark.parametrize("count", [1, 11, 12, 50])
def test_exactly_as_many_as_asked_for_are_chosen_or_all(count: int) -> None:
    scores = table(3)
    doubled = np.concatenate([scores[:6], scores[:6]])
    gram, order = doubled @ doubled.T, np.arange(12)
    for found in (
        choose_for_table(gram, order, none(12), count),
        choose_for_target([Regression(gram, gram[:, :1], 0.1)], gram, order, none(12), count, 1),
    ):
        assert len(set(found.indices.tolist())) == min(count, 12)


def test_columns_asked_for_are_taken_first_and_allowed_for() -> None:
    scores = table(4)
    asked = np.isin(np.arange(12), [3, 7])
    gram = scores @ scores.T
    for found in (
        choose_for_table(gram, np.arange(12), asked, 4),
        choose_for_target([Regression(gram, gram[:, :1], 0.1)], gram, np.arange(12), asked, 4, 1),
    ):
        assert set(found.indices[:2].tolist()) == {3, 7}


@given(st.integers(0, 10**6))
def test_the_answer_does_not_depend_on_how_the_columns_are_numbered(seed: int) -> None:
    scores = table(seed)
    numbers = np.random.default_rng(seed).permutation(12)
    here, there = (s @ s.T for s in (scores, scores[numbers]))
    target = unit(np.random.default_rng(seed).standard_normal((1, 60)))
    order = np.argsort(numbers)
    one = Regression(here, scores @ target.T, 0.1)
    other = Regression(there, scores[numbers] @ target.T, 0.1)
    for found, expected in (
        (
            choose_for_table(here, np.arange(12), none(12), 6),
            choose_for_table(there, order, none(12), 6),
        ),
        (
            choose_for_target([one], here, np.arange(12), none(12), 6, 1),
            choose_for_target([other], there, order, none(12), 6, 1),
        ),
    ):
        assert found.indices.tolist() == numbers[expected.indices].tolist()


def test_equal_gains_go_to_the_first_in_order() -> None:
    scores = table(5)
    twice = np.concatenate([scores, scores])
    gram = twice @ twice.T
    order = np.concatenate([np.arange(12, 24), np.arange(12)])
    assert choose_for_table(gram, order, none(24), 5).indices.min() >= 12
    found = choose_for_target(
        [Regression(gram, gram[:, :1] * 0.5, 0.1)], gram, order, none(24), 1, 1
    )
    assert found.indices.tolist() == [12]
