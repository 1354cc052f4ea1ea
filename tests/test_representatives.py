"""Representatives: checked against the rules read aloud, one pair at a time, on drawn tables."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpipe.choice.priority import Priority
from dpipe.choice.representatives import Choice, choose, priority_order
from dpipe.model.records import Edges

NONE = Edges(np.array([], np.int64), np.array([], np.int64), np.array([]))


class Case:
    """A drawn table of similarities, with everything `choose` looks at."""

    def __init__(self, draw: st.DrawFn) -> None:
        n = draw(st.integers(0, 9))
        self.names = draw(st.permutations([f"{letter}" for letter in "ihgfedcba"]))[:n]
        # Few different values, so that ties are the rule.
        values = st.sampled_from([0.0, 0.7, 0.8, -0.8, 0.8000004, 0.7999996, 0.9, -1.0, np.nan])
        self.similarity = {pair: draw(values) for pair in combinations(range(n), 2)}
        self.threshold = draw(st.sampled_from([0.7, 0.8, 0.9]))
        self.labels = np.array(draw(st.lists(st.integers(0, 3), min_size=n, max_size=n)), np.int64)
        self.n_missing = np.array(
            draw(st.lists(st.integers(0, 2), min_size=n, max_size=n)), np.int64
        )
        some = st.lists(st.sampled_from("abcxyz"), max_size=3)
        self.keep, self.prefer = draw(some), draw(some)

    def edges(self, order: list[int] | None = None) -> Edges:
        place = np.argsort(order) if order is not None else np.arange(len(self.names))
        pairs = list(self.similarity)
        i, j = (np.array([place[p[k]] for p in pairs], dtype=np.int64) for k in (0, 1))
        return Edges.sorted(i, j, np.array(list(self.similarity.values()), dtype=np.float64))

    def value(self, a: int, b: int) -> float:
        return float(self.similarity[min(a, b), max(a, b)])

    def strength(self, a: int, b: int) -> int:
        """|similarity| in millionths where it reaches the threshold, else 0."""
        value = abs(self.value(a, b))
        millionths = 0 if np.isnan(value) else round(value * 1e6)
        return millionths if millionths >= round(self.threshold * 1e6) else 0

    def choose(self) -> Choice:
        return choose(
            self.names,
            self.edges(),
            self.labels,
            threshold=self.threshold,
            priority=Priority(self.keep, self.prefer),
            n_missing=self.n_missing,
        )


@st.composite
def cases(draw: st.DrawFn) -> Case:
    return Case(draw)


def documented_order(case: Case) -> list[int]:
    """The order as the documentation words it, with sums over pairs at or above the threshold."""
    columns = range(len(case.names))

    def total(a: int, among: list[int]) -> int:
        return sum(case.strength(a, b) for b in among if b != a)

    def later_rules(a: int) -> tuple[int, int, str]:
        return case.n_missing[a], -total(a, list(columns)), case.names[a]

    medoids = set()
    for label in set(case.labels.tolist()):
        members = [a for a in columns if case.labels[a] == label]
        medoids.add(min(members, key=lambda a: (-total(a, members), *later_rules(a))))

    def favour(a: int) -> int:
        name = case.names[a]
        known = [wanted for wanted in case.prefer if wanted in case.names]
        return known.index(name) if name in known else len(case.prefer)

    return sorted(
        columns,
        key=lambda a: (
            case.names[a] not in case.keep,
            favour(a),
            a not in medoids,
            *later_rules(a),
        ),
    )


@given(cases())
def test_order_is_the_documented_one(case: Case) -> None:
    assert case.choose().order.tolist() == documented_order(case)


@given(cases())
def test_certificate(case: Case) -> None:
    choice = case.choose()
    kept = set(choice.kept.tolist())
    asked = {a for a, name in enumerate(case.names) if name in case.keep}
    assert asked <= kept
    assert choice.kept.tolist() == sorted(kept)
    for a, b in combinations(sorted(kept), 2):
        assert not case.strength(a, b) or {a, b} <= asked, "two kept columns are redundant"
    for a in range(len(case.names)):
        stands_for = int(choice.representative[a])
        if a in kept:
            assert (stands_for, choice.value[a]) == (a, 1.0)
        else:
            assert stands_for in kept
            assert case.strength(a, stands_for), "a column was dropped for no reason"
            assert choice.value[a] == case.value(a, stands_for)


@given(cases())
def test_kept_columns_are_those_of_a_walk_along_the_order(case: Case) -> None:
    kept: list[int] = []
    for a in documented_order(case):
        if case.names[a] in case.keep or not any(case.strength(a, b) for b in kept):
            kept.append(a)
    assert case.choose().kept.tolist() == sorted(kept)


@given(cases())
def test_representative_is_the_most_similar_own_community_first(case: Case) -> None:
    choice = case.choose()
    order = documented_order(case)
    for a in set(range(len(case.names))) - set(choice.kept.tolist()):
        neighbours = [int(b) for b in choice.kept if case.strength(a, int(b))]
        best = min(
            neighbours,
            key=lambda b, a=a: (  # type: ignore[misc]
                case.labels[a] != case.labels[b],
                -case.strength(a, b),
                order.index(b),
            ),
        )
        assert choice.representative[a] == best


@given(cases(), st.randoms(use_true_random=False))
def test_order_of_columns_does_not_matter(case: Case, random: object) -> None:
    order = list(range(len(case.names)))
    random.shuffle(order)  # type: ignore[attr-defined]
    names = [case.names[k] for k in order]
    shuffled = choose(
        names,
        case.edges(order),
        case.labels[order],
        threshold=case.threshold,
        priority=Priority(case.keep, case.prefer),
        n_missing=case.n_missing[order],
    )
    choice = case.choose()
    expected = {case.names[k] for k in choice.kept}
    assert {names[k] for k in shuffled.kept} == expected
    stands_for = {
        case.names[k]: case.names[r] for k, r in enumerate(choice.representative.tolist())
    }
    assert {names[k]: names[r] for k, r in enumerate(shuffled.representative)} == stands_for
    assert shuffled.redundant_keeps == choice.redundant_keeps


def test_columns_asked_for_stay_even_if_redundant_and_are_reported() -> None:
    edges = Edges(np.array([0, 0, 1]), np.array([1, 2, 2]), np.array([-0.99, 0.97, 0.98]))
    choice = choose(
        ["z", "b", "c"],
        edges,
        np.zeros(3, np.int64),
        threshold=0.95,
        priority=Priority(["b", "z", "not there"]),
        n_missing=np.zeros(3, np.int64),
    )
    assert choice.kept.tolist() == [0, 1]
    assert choice.representative.tolist() == [0, 1, 1]
    assert choice.redundant_keeps == (("b", "z", -0.99),)


def test_summation_order_cannot_decide() -> None:
    # In floating point 0.3 + 0.6 + 0.9 depends on the order; as millionths it does not.
    names = [f"c{k}" for k in range(8)]
    first = {(0, 2): 0.3, (0, 3): 0.6, (0, 4): 0.9, (1, 5): 0.9, (1, 6): 0.6, (1, 7): 0.3}
    i, j = (np.array([pair[k] for pair in first], dtype=np.int64) for k in (0, 1))
    edges = Edges.sorted(i, j, np.array(list(first.values())))
    order = priority_order(names, edges, np.zeros(8, np.int64), Priority(), np.zeros(8, np.int64))
    assert order[:2].tolist() == [0, 1]


@pytest.mark.parametrize("n", [0, 1, 3])
def test_without_edges_everything_stays(n: int) -> None:
    choice = choose(
        [f"c{k}" for k in range(n)],
        NONE,
        np.arange(n),
        threshold=0.9,
        priority=Priority(),
        n_missing=np.zeros(n, np.int64),
    )
    assert choice.kept.tolist() == list(range(n))
    assert choice.value.tolist() == [1.0] * n


@pytest.mark.slow
def test_wide_graph() -> None:
    rng = np.random.default_rng(0)
    n, m = 20_000, 2_000_000
    key = np.unique(rng.integers(0, n, m) * n + rng.integers(0, n, m))
    i, j = key // n, key % n
    edges = Edges.sorted(i[i < j], j[i < j], rng.uniform(0.9, 1, (i < j).sum()))
    choice = choose(
        [f"c{k}" for k in range(n)],
        edges,
        rng.integers(0, 500, n),
        threshold=0.9,
        priority=Priority(),
        n_missing=rng.integers(0, 10, n),
    )
    is_kept = np.isin(np.arange(n), choice.kept)
    assert not (is_kept[edges.i] & is_kept[edges.j]).any()
    assert is_kept[choice.representative].all()
