"""Communities: independent of order, repeatable, as good as exhaustive search on small graphs."""

from __future__ import annotations

import random
from collections.abc import Iterator

import igraph
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dpipe
from dpipe.choice import communities
from dpipe.choice.communities import find_communities
from dpipe.errors import InputError
from dpipe.model.records import Edges


def edges_of(pairs: dict[tuple[int, int], float]) -> Edges:
    """Edges from a mapping of pairs to values."""
    i, j = (np.array([pair[k] for pair in pairs], dtype=np.int64) for k in (0, 1))
    return Edges.sorted(i, j, np.array(list(pairs.values()), dtype=np.float64))


def random_edges(n: int, density: float, low: float, seed: int) -> Edges:
    """A random graph with values between `low` and 1 of either sign."""
    rng = np.random.default_rng(seed)
    i, j = np.triu_indices(n, 1)
    chosen = rng.random(len(i)) < density
    value = rng.uniform(low, 1, chosen.sum()) * rng.choice([-1, 1], chosen.sum())
    return Edges.sorted(i[chosen], j[chosen], value)


def partitions(items: list[int]) -> Iterator[list[list[int]]]:
    """Every partition of a few items."""
    if not items:
        yield []
        return
    head, *rest = items
    for smaller in partitions(rest):
        yield [[head], *smaller]
        for k, group in enumerate(smaller):
            yield [*smaller[:k], [head, *group], *smaller[k + 1 :]]


def potts(groups: list[list[int]], edges: Edges, resolution: float) -> float:
    """The constant Potts objective, straight from its definition."""
    value = {(i, j): abs(v) for i, j, v in zip(edges.i, edges.j, edges.value, strict=True)}
    return sum(
        float(value.get((min(a, b), max(a, b)), 0.0)) - resolution
        for group in groups
        for k, a in enumerate(group)
        for b in group[:k]
    )


LIBRARIES = ["igraph", "leidenalg"]
NONE = Edges(np.array([], np.int64), np.array([], np.int64), np.array([]))


@pytest.mark.parametrize("n", [0, 1, 4])
def test_without_edges_every_column_is_its_own_community(n: int) -> None:
    names = [f"c{k}" for k in range(n)]
    assert find_communities(n, NONE, names, resolution=0.9, seed=0).tolist() == list(range(n))


def test_labels_are_ordered_by_size_then_by_smallest_name() -> None:
    names = ["z", "y", "x", "d", "c", "b", "a"]
    triangle = {(0, 1): 0.99, (0, 2): -0.99, (1, 2): 0.99}
    edges = edges_of({**triangle, (3, 4): 0.98, (5, 6): -0.98})
    labels = find_communities(7, edges, names, resolution=0.95, seed=0)
    assert labels.tolist() == [0, 0, 0, 2, 2, 1, 1]
    assert labels.dtype == np.int64


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("seed", range(6))
def test_reaches_the_best_partition_of_a_small_graph(seed: int, library: str) -> None:
    edges = random_edges(8, 0.5, 0.6, seed)
    labels = find_communities(8, edges, list("abcdefgh"), resolution=0.6, seed=0, library=library)
    found = [np.flatnonzero(labels == label).tolist() for label in range(labels.max() + 1)]
    best = max(potts(groups, edges, 0.6) for groups in partitions(list(range(8))))
    assert potts(found, edges, 0.6) == pytest.approx(best, abs=1e-5)


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 2**31),
    st.integers(2, 60),
    st.floats(0.02, 0.6),
    st.sampled_from(LIBRARIES),
)
def test_order_of_columns_does_not_matter(seed: int, n: int, density: float, library: str) -> None:
    edges = random_edges(n, density, 0.8, seed)
    names = [f"name {k}" for k in range(n)]
    labels = find_communities(n, edges, names, resolution=0.8, seed=3, library=library)
    order = np.random.default_rng(seed).permutation(n)
    place = np.argsort(order)
    shuffled = Edges.sorted(place[edges.i], place[edges.j], edges.value)
    again = find_communities(
        n, shuffled, [names[k] for k in order], resolution=0.8, seed=3, library=library
    )
    np.testing.assert_array_equal(again, labels[order])


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("seed", [0, 1, 2**40, 2**70])
def test_equal_seeds_give_equal_answers(seed: int, library: str) -> None:
    edges = random_edges(120, 0.2, 0.8, 5)
    names = [f"c{k}" for k in range(120)]
    settings = {"resolution": 0.8, "seed": seed, "library": library}
    first = find_communities(120, edges, names, **settings)
    random.seed(99)  # whatever the caller does with Python's own generator
    np.testing.assert_array_equal(first, find_communities(120, edges, names, **settings))


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_pair_at_the_threshold_is_a_community(library: str) -> None:
    values = {(0, 1): 0.95, (2, 3): -1.0, (4, 5): 0.97, (5, 6): 0.95, (4, 6): 0.95}
    for resolution, groups in ((0.95, [0, 0, 2, 2, 1, 1, 1]), (1.0, [1, 2, 0, 0, 3, 4, 5])):
        labels = find_communities(
            7, edges_of(values).at_least(resolution), list("fgdeabc"),
            resolution=resolution, seed=0, library=library,
        )  # fmt: skip
        same = labels[:, None] == labels
        np.testing.assert_array_equal(same, np.equal.outer(groups, groups))


@pytest.mark.parametrize("seed", range(3))
def test_the_hair_decides_only_where_nothing_else_does(seed: int) -> None:
    edges = random_edges(80, 0.3, 0.8, seed)
    weak = np.abs(edges.value) < 0.8 + 1e-5
    edges = Edges(edges.i[~weak], edges.j[~weak], edges.value[~weak])
    names = [f"c{k}" for k in range(80)]
    labels = find_communities(80, edges, names, resolution=0.8, seed=0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(communities, "HAIR", 0.0)
        without = find_communities(80, edges, names, resolution=0.8, seed=0)
    np.testing.assert_array_equal(labels, without)


def test_a_library_that_is_not_there_is_one_sentence_before_anything_is_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match="needs the package leidenalg: pip install leidenalg"):
        dpipe.select("nowhere.csv", leiden="leidenalg")


def test_columns_without_edges_do_not_influence_the_others() -> None:
    edges = random_edges(60, 0.3, 0.8, 8)
    names = [f"m{k:02d}" for k in range(60)]
    alone = find_communities(60, edges, names, resolution=0.8, seed=0)
    lonely = [f"a{k:02d}" for k in range(30)]
    more = find_communities(90, edges, names + lonely, resolution=0.8, seed=0)
    same = alone[:, None] == alone
    np.testing.assert_array_equal(same, more[:60, None] == more[:60])


def test_noise_below_one_millionth_does_not_matter() -> None:
    edges = random_edges(80, 0.3, 0.8, 11)
    edges = Edges(edges.i, edges.j, np.round(edges.value, 6))
    names = [f"c{k}" for k in range(80)]
    noise = np.random.default_rng(0).uniform(-4e-7, 4e-7, len(edges))
    noisy = Edges(edges.i, edges.j, edges.value + noise)
    np.testing.assert_array_equal(
        find_communities(80, edges, names, resolution=0.8, seed=0),
        find_communities(80, noisy, names, resolution=0.8, seed=0),
    )


def test_leaves_pythons_generator_and_igraph_as_they_were() -> None:
    edges = random_edges(40, 0.4, 0.8, 1)
    random.seed(7)
    before = random.getstate()
    find_communities(40, edges, [f"c{k}" for k in range(40)], resolution=0.8, seed=0)
    assert random.getstate() == before
    igraph.Graph.Erdos_Renyi(10, 0.5)  # igraph draws from Python's generator again
    assert random.getstate() != before


@pytest.mark.slow
def test_twenty_thousand_columns_and_a_million_edges() -> None:
    rng = np.random.default_rng(0)
    group = np.sort(rng.integers(0, 400, 20_000))
    start = np.searchsorted(group, np.arange(401))
    a = rng.integers(0, 20_000, 1_300_000)
    size = np.diff(start)[group[a]]
    b = start[group[a]] + (rng.random(len(a)) * size).astype(np.int64)
    key = np.unique((np.minimum(a, b) * 20_000 + np.maximum(a, b))[a != b])
    edges = Edges(key // 20_000, key % 20_000, rng.uniform(0.5, 1, len(key)))
    labels = find_communities(
        20_000, edges, [f"c{k}" for k in range(20_000)], resolution=0.5, seed=0
    )
    sizes = np.bincount(labels)
    assert sizes.sum() == 20_000
    assert (np.diff(sizes) <= 0).all()
    inside = labels[edges.i] == labels[edges.j]
    assert inside.mean() > 0.3
