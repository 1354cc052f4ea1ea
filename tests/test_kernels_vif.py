"""Exact combinations and VIF elimination against statsmodels and step-by-step least squares.

Tables are drawn as values with missing cells; their scores are the ranks `dpipe.kernels.ranks`
gives, a missing cell at the mean rank, each column scaled to norm 1: what pass 3 works on.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.typing import NDArray
from statsmodels.stats.outliers_influence import variance_inflation_factor
from statsmodels.tools import add_constant

from dpipe.kernels import gram
from dpipe.kernels import vif as kernel
from dpipe.kernels.ranks import rank_column
from dpipe.kernels.vif import Elimination, eliminate

Table = NDArray[np.float64]


def unit(scores: Table) -> Table:
    """Columns (rows of the array) centred and scaled to norm 1."""
    centred = scores - scores.mean(axis=1, keepdims=True)
    lengths: Table = np.linalg.norm(centred, axis=1, keepdims=True)
    return centred / lengths


def rank_scores(values: Table) -> Table:
    """(p, n) values to (p, n) unit-norm rank scores, missing cells at the mean rank."""
    return unit(np.stack([rank_column(column).scores.astype(np.float64) for column in values]))


def nothing_kept(p: int) -> NDArray[np.bool_]:
    return np.zeros(p, dtype=bool)


def run(
    scores: Table,
    threshold: float = 10.0,
    order: Sequence[int] | None = None,
    keep: Sequence[int] = (),
) -> list[Elimination]:
    p = len(scores)
    mask = np.isin(np.arange(p), keep)
    return eliminate(
        scores @ scores.T, np.arange(p) if order is None else np.array(order), mask, threshold
    )


def explained(target: Table, others: Table) -> float:
    """1 - R^2 of a unit-norm column on others, by least squares on the scores themselves."""
    if not len(others):
        return 1.0
    weights = np.linalg.lstsq(others.T, target, rcond=None)[0]
    return float(np.sum((target - weights @ others) ** 2))


def eliminate_by_least_squares(
    scores: Table, order: Sequence[int], keep: Sequence[int], threshold: float
) -> list[tuple[int, float]]:
    """The rule as written down, one regression at a time: (index, VIF)."""
    order = [c for c in order if c in keep] + [c for c in order if c not in keep]
    rank = {c: position for position, c in enumerate(order)}
    gone: list[tuple[int, float]] = []
    alive: list[int] = []
    for c in order:
        if explained(scores[c], scores[alive]) < 1e-10:
            if c not in keep:
                gone.append((c, math.inf))
            continue
        alive.append(c)

    def vifs(columns: Sequence[int]) -> dict[int, float]:
        return {
            c: 1 / explained(scores[c], scores[[o for o in columns if o != c]]) for c in columns
        }

    while len(alive) > 1:
        now = vifs(alive)
        inflated = [c for c in alive if c not in keep and now[c] >= threshold * (1 - 1e-9)]
        if not inflated:
            break
        worst = max(inflated, key=rank.__getitem__)
        alive.remove(worst)
        gone.append((worst, now[worst]))
    return gone


def check_against_least_squares(
    scores: Table, order: Sequence[int], keep: Sequence[int], threshold: float, rel: float = 1e-6
) -> list[Elimination]:
    got = run(scores, threshold, order, keep)
    expected = eliminate_by_least_squares(scores, order, keep, threshold)
    assert [e.index for e in got] == [index for index, _ in expected]
    for elimination, (_, value) in zip(got, expected, strict=True):
        if math.isinf(value):
            check_combination(scores, elimination)
        else:
            assert elimination.value == pytest.approx(value, rel=rel)
            assert elimination.partners == ()
    return got


def check_combination(scores: Table, elimination: Elimination) -> None:
    assert elimination.value == math.inf
    columns = [column for column, _ in elimination.partners]
    weights = np.array([weight for _, weight in elimination.partners])
    rebuilt = weights @ scores[columns]
    assert np.sum((rebuilt - scores[elimination.index]) ** 2) < 1e-9
    assert (np.diff(np.abs(weights)) < 1e-9).all()  # the largest first, but for rounding


def correlated(p: int, n: int, seed: int, missing: float = 0.0) -> Table:
    """(p, n) values of columns that share factors, with missing cells."""
    rng = np.random.default_rng(seed)
    factors = rng.standard_normal((max(2, p // 3), n))
    values = rng.standard_normal((p, len(factors))) @ factors
    values += 0.2 * rng.standard_normal((p, n))
    values[rng.random((p, n)) < missing] = np.nan
    return values


# Against statsmodels


@pytest.mark.parametrize(("missing", "threshold"), [(0.0, 4.0), (0.2, 1.4)])
def test_every_vif_equals_that_of_statsmodels(missing: float, threshold: float) -> None:
    scores = rank_scores(correlated(18, 400, seed=1, missing=missing))
    gone = run(scores, threshold)
    assert 4 < len(gone) < 17
    alive = list(range(18))
    for step in gone:
        assert step.partners == ()
        design = add_constant(scores[alive].T)
        found = [variance_inflation_factor(design, k + 1) for k in range(len(alive))]
        assert step.value == pytest.approx(found[alive.index(step.index)], rel=1e-6)
        assert all(value < threshold for value in found[alive.index(step.index) + 1 :])
        alive.remove(step.index)
    design = add_constant(scores[alive].T)
    assert all(variance_inflation_factor(design, k + 1) < threshold for k in range(len(alive)))


# Against least squares, step by step


@pytest.mark.parametrize("seed", range(4))
def test_correlated_tables_with_missing_cells(seed: int) -> None:
    scores = rank_scores(correlated(15, 200, seed, missing=0.1))
    order = np.random.default_rng(seed).permutation(15).tolist()
    assert check_against_least_squares(scores, order, [], 3.0)


@pytest.mark.parametrize("panel", [1, 2, 5])
def test_panels_do_not_show(panel: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (kernel, gram):
        monkeypatch.setattr(module, "PANEL", panel)
    scores = rank_scores(correlated(14, 150, seed=7, missing=0.1))
    scores = np.concatenate((scores, unit(scores[2:3] - 2 * scores[3:4])))
    check_against_least_squares(scores, list(range(15)), [4], 2.0)


small_values = st.integers(0, 3).map(float) | st.just(math.nan)


@st.composite
def tables(draw: st.DrawFn) -> Table:
    p, n = draw(st.integers(1, 7)), draw(st.integers(8, 16))
    cells = draw(st.lists(small_values, min_size=p * n, max_size=p * n))
    values = np.array(cells).reshape(p, n)
    assume(all(rank_column(column).n_unique > 1 for column in values))
    return values


@given(tables(), st.randoms(use_true_random=False), st.sampled_from([1.4142, 2.7183, 10.01]))
def test_any_table_of_few_values(values: Table, random: object, threshold: float) -> None:
    order = list(range(len(values)))
    random.shuffle(order)  # type: ignore[attr-defined]
    keep = order[::3] if len(order) % 2 else []
    check_against_least_squares(rank_scores(values), order, keep, threshold)


@given(tables(), st.randoms(use_true_random=False))
def test_the_order_of_columns_does_not_matter(values: Table, random: object) -> None:
    scores = rank_scores(values)
    place = list(range(len(values)))
    random.shuffle(place)  # type: ignore[attr-defined]
    plain = run(scores, 2.7183)
    # Column k of the shuffled table is column place[k] of the plain one; priorities are the same.
    shuffled = run(scores[place], 2.7183, order=[place.index(k) for k in range(len(place))])
    assert [place[e.index] for e in shuffled] == [e.index for e in plain]
    for one, other in zip(plain, shuffled, strict=True):
        assert [place[column] for column, _ in other.partners] == [c for c, _ in one.partners]
        assert other.value == pytest.approx(one.value, rel=1e-9)


# Exact combinations


def test_planted_combinations_are_named_with_their_coefficients() -> None:
    base = rank_scores(correlated(6, 100, seed=3, missing=0.2) + np.arange(100))
    mixed = 0.5 * base[1] - 2 * base[4] + 0.25 * base[5]
    scores = np.concatenate((base, unit(mixed[None]), unit(base[2:3] + base[0:1])))
    combinations = [e for e in run(scores, threshold=1e9) if math.isinf(e.value)]
    assert [e.index for e in combinations] == [6, 7]
    for combination in combinations:
        check_combination(scores, combination)
    norm = np.linalg.norm(mixed)
    assert dict(combinations[0].partners) == pytest.approx(
        {4: -2 / norm, 1: 0.5 / norm, 5: 0.25 / norm}, rel=1e-6
    )
    assert {column for column, _ in combinations[1].partners} == {0, 2}


def test_indicators_of_a_category_are_combinations_in_ranks_too() -> None:
    category = np.random.default_rng(5).integers(0, 3, 90)
    indicators = np.stack([category == k for k in range(3)]).astype(np.float64)
    either = np.maximum(indicators[0], indicators[1])  # the ranks of a binary column are affine
    gone = run(rank_scores(np.stack([*indicators, either])))
    assert [(e.index, e.value) for e in gone] == [(2, math.inf), (3, math.inf)]
    assert {column for column, _ in gone[0].partners} == {0, 1}


def test_a_copy_is_a_combination_of_one_column_and_priority_decides_which_goes() -> None:
    scores = rank_scores(correlated(3, 50, seed=6))
    scores = np.concatenate((scores, -scores[1:2]))
    (gone,) = (e for e in run(scores, 1e9, order=[3, 2, 1, 0]) if math.isinf(e.value))
    assert gone.index == 1
    assert dict(gone.partners) == pytest.approx({3: -1.0})


def test_combinations_do_not_name_other_combinations() -> None:
    a, b, c = rank_scores(np.random.default_rng(8).standard_normal((3, 60)))
    scores = np.stack([a, b, *unit(np.stack([a + b])), c, *unit(np.stack([a + b + c]))])
    gone = run(scores)
    assert [e.index for e in gone] == [2, 4]
    assert {column for column, _ in gone[1].partners} == {0, 1, 3}


# Columns to keep


def test_columns_to_keep_stay_and_others_go_in_their_place() -> None:
    scores = rank_scores(correlated(12, 200, seed=9))
    worst = run(scores, 3.0)[0].index
    kept = check_against_least_squares(scores, list(range(12)), [worst], 3.0)
    assert worst not in {e.index for e in kept}


def test_with_all_columns_kept_nothing_goes() -> None:
    scores = rank_scores(correlated(8, 100, seed=10))
    assert run(scores, 1.0, keep=range(8)) == []


def test_dependent_columns_to_keep_do_not_spoil_the_rest() -> None:
    scores = rank_scores(correlated(8, 100, seed=11))
    scores = np.concatenate((scores, unit(scores[0:1] + scores[5:6])))
    order, keep = [8, 7, 6, 5, 4, 3, 2, 1, 0], [0, 5, 8]
    gone = check_against_least_squares(scores, order, keep, 3.0)
    assert not {e.index for e in gone} & set(keep)
    assert all(math.isfinite(e.value) for e in gone)


# Ties


def test_of_the_inflated_the_worst_priority_goes() -> None:
    p, rho = 6, 0.95
    r = np.full((p, p), rho)
    np.fill_diagonal(r, 1.0)
    order = np.array([4, 2, 0, 5, 1, 3])
    gone = eliminate(r, order, nothing_kept(p), 5.0)
    assert [e.index for e in gone] == [3, 1, 5, 0, 2]


def test_rounding_does_not_decide_a_tie() -> None:
    rng = np.random.default_rng(12)
    r = np.full((6, 6), 0.95) + 1e-13 * rng.standard_normal((6, 6))
    r = (r + r.T) / 2
    np.fill_diagonal(r, 1.0)
    assert [e.index for e in eliminate(r, np.arange(6), nothing_kept(6), 5.0)] == [5, 4, 3, 2, 1]


def test_a_vif_equal_to_the_threshold_reaches_it() -> None:
    rho = math.sqrt(0.9)  # a VIF of 10, but for rounding
    r = np.array([[1.0, rho], [rho, 1.0]])
    assert [e.index for e in eliminate(r, np.arange(2), nothing_kept(2), 10.0)] == [1]
    assert eliminate(r, np.arange(2), nothing_kept(2), 10.001) == []


def test_the_last_column_stays_whatever_the_threshold() -> None:
    assert [e.index for e in eliminate(np.eye(3), np.arange(3), nothing_kept(3), 1.0)] == [2, 1]
    assert eliminate(np.eye(1), np.arange(1), nothing_kept(1), 1.0) == []
    assert eliminate(np.eye(0), np.arange(0), nothing_kept(0), 10.0) == []


# Precision


def nearly_singular(p: int, noise: float, seed: int) -> Table:
    """Unit-norm scores in which every column has a twin that differs by `noise`."""
    rng = np.random.default_rng(seed)
    base = unit(rng.standard_normal((p // 2, 6 * p)))
    twins = base + noise * unit(rng.standard_normal(base.shape))
    mixed = 0.4 * np.roll(base, 1, axis=0)
    return unit(np.concatenate((base, twins)) + np.concatenate((mixed, mixed)))


@pytest.mark.parametrize("noise", [1e-2, 1e-3, 1e-4])
def test_nearly_singular_tables_keep_their_digits(noise: float) -> None:
    scores = nearly_singular(24, noise, seed=13)
    # What rounding the Gram matrix itself does to a VIF of v is v times the rounding.
    gone = check_against_least_squares(
        scores, list(range(24)), [], 2.0, rel=max(1e-6, 1e-14 / noise**2)
    )
    assert max(e.value for e in gone) > 0.1 / noise**2


def test_the_running_vifs_agree_with_a_fresh_inverse(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = nearly_singular(80, 1e-3, seed=14)
    running = kernel._RunningInverse(scores @ scores.T)
    refreshed = []
    refresh = running.refresh

    def refresh_and_tell() -> None:
        refreshed.append(True)
        refresh()

    monkeypatch.setattr(running, "refresh", refresh_and_tell)
    while (row := kernel._worst_inflated(running, 0, 1.5)) is not None:
        running.drop(row)
        left = scores[running.members[running.inside]]
        fresh = np.diagonal(np.linalg.inv(left @ left.T))
        np.testing.assert_allclose(running.vif[running.inside], fresh, rtol=1e-6)
    assert len(refreshed) < 5


def test_drift_is_seen_and_mended() -> None:
    scores = rank_scores(correlated(30, 300, seed=15))
    running = kernel._RunningInverse(scores @ scores.T)
    assert running._drift(3) < 1e-10
    running._inverse[3] *= 1 + 1e-5
    running._inverse[:, 3] *= 1 + 1e-5
    running.vif[3] *= (1 + 1e-5) ** 2
    assert running._drift(3) == pytest.approx(2e-5, rel=0.01)
    running._height[3] *= 1e12  # as if that VIF had fallen far, so that the next drop looks
    running.drop(20)
    assert running.is_fresh
    left = scores[running.members[running.inside]]
    np.testing.assert_allclose(
        running.vif[running.inside], np.diagonal(np.linalg.inv(left @ left.T)), rtol=1e-9
    )


def test_no_drift_decides_that_nothing_more_has_to_go(monkeypatch: pytest.MonkeyPatch) -> None:
    def lose_digits(running: kernel._RunningInverse) -> None:
        running.vif *= 0.5

    monkeypatch.setattr(kernel._RunningInverse, "_settle", lose_digits)
    scores = rank_scores(correlated(30, 300, seed=18))
    left = np.setdiff1d(np.arange(30), [e.index for e in run(scores, 5.0)])
    assert np.diagonal(np.linalg.inv(scores[left] @ scores[left].T)).max() < 5.0


def test_a_read_only_matrix_stays_as_it_is() -> None:
    scores = rank_scores(correlated(10, 100, seed=16))
    r = scores @ scores.T
    before = r.copy()
    r.setflags(write=False)
    assert eliminate(r, np.arange(10), nothing_kept(10), 2.0)
    np.testing.assert_array_equal(r, before)


# Arguments


@pytest.mark.parametrize(
    ("r", "order", "keep"),
    [
        (np.eye(3)[:2], np.arange(2), nothing_kept(2)),
        (np.eye(2), np.array([0, 0]), nothing_kept(2)),
        (np.eye(2), np.arange(2), nothing_kept(3)),
        (2 * np.eye(2), np.arange(2), nothing_kept(2)),
        (np.full((2, 2), np.nan), np.arange(2), nothing_kept(2)),
    ],
)
def test_arguments_that_do_not_fit_are_refused(
    r: Table, order: NDArray[np.int64], keep: NDArray[np.bool_]
) -> None:
    with pytest.raises(ValueError, match="r "):
        eliminate(r, order, keep, 10.0)


@pytest.mark.slow
def test_a_large_table_is_feasible() -> None:
    p = 2000
    rng = np.random.default_rng(17)
    loadings = rng.standard_normal((p, p // 8)) * (rng.random((p, p // 8)) < 0.03) + 1e-6
    r = loadings @ loadings.T
    r[np.diag_indices(p)] *= 1 + 10.0 ** rng.uniform(-6, -1, p)
    scale = 1 / np.sqrt(np.diagonal(r))
    r *= scale[:, None] * scale
    np.fill_diagonal(r, 1.0)
    gone = eliminate(r, np.arange(p), nothing_kept(p), 10.0)
    left = np.setdiff1d(np.arange(p), [e.index for e in gone])
    assert 10 < left.size < p
    assert np.diagonal(np.linalg.inv(r[np.ix_(left, left)])).max() < 10.0
