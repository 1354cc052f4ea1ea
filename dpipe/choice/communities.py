"""Groups of columns that resemble each other: edges in, community labels out.

Covers: Leiden with the constant Potts model on the graph of similar pairs, made independent of the
order of columns and of summation order.
Does not cover: which columns are similar (see `dpipe.passes`) or which one of a community stays
(see `dpipe.choice.representatives`).

Two libraries do it, with the same graph, objective and stopping rule, each repeatable with a seed.
igraph's own is the default: on descriptor tables both reach the same quality, within 0.1 to 0.3 %
either way, and igraph is 7 to 18 times as fast (2,000 to 170,000 edges), 50 times on 20,000 columns
with a million edges (5 s against 240 s on one core). leidenalg is the reference implementation of
those who made the method. Single runs of either lie up to 20 % below the best on a graph of high
threshold, so there are several starts where the graph is not huge, of which the best is taken.
"""

from __future__ import annotations

import importlib.util
import random
import threading
from collections.abc import Generator, Sequence
from contextlib import closing
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from dpipe.choice.priority import name_places
from dpipe.errors import InputError
from dpipe.model.records import MILLION, Edges

if TYPE_CHECKING:
    from numpy.typing import NDArray

MOST_STARTS = 8
EDGES_TO_SEARCH = 10**6
RANDOMNESS = 0.01
"""Leiden's beta, in units of similarity: how freely the refinement leaves the best move."""
HAIRS = 1024
HAIR = 1 / HAIRS
"""How far, in millionths, the resolution lies below the threshold.

At a weight of just the resolution two columns gain nothing from each other and stay apart, though
a pair at the threshold is redundant; with a threshold of 1 no two columns would ever meet. The hair
is a power of two, so that sums stay exact, and decides where nothing else does.
"""

_GENERATOR_LOCK = threading.Lock()


def find_communities(
    n: int,
    edges: Edges,
    names: Sequence[str],
    *,
    resolution: float,
    seed: int,
    library: str = "igraph",
) -> NDArray[np.int64]:
    """Community of every column: Leiden, constant Potts model, run until stable.

    Maximises the sum over communities of (similarities inside) - resolution * (pairs inside), with
    a resolution a hair below the one that is given: a pair just there gains by being together. The
    graph is laid out in name order and its weights are whole millionths, whose sums are exact, so
    equal columns get equal communities whatever order they came in. A column without an edge is a
    community of its own and never influences the others.

    Parameters
    ----------
    n
        Number of columns.
    edges
        Similar pairs, as indices below `n`; their weights are |value| rounded to 1e-6.
    names
        The columns' names, (n,), all different.
    resolution
        Density a community must keep; dpipe passes the threshold of the similarity.
    seed
        Seed of the moves Leiden draws.
    library
        Whose Leiden: "igraph" or "leidenalg".

    Returns
    -------
    NDArray[np.int64]
        Labels, (n,): 0 is the largest community; equal sizes are ordered by their smallest name.

    References
    ----------
    Traag, Waltman & van Eck 2019, "From Louvain to Leiden", Scientific Reports 9:5233.

    Examples
    --------
    >>> pairs = Edges(np.array([0, 1]), np.array([2, 3]), np.array([0.99, -0.97]))
    >>> find_communities(5, pairs, ["a", "b", "c", "d", "e"], resolution=0.95, seed=0).tolist()
    [0, 1, 0, 1, 2]
    """
    place = name_places(names)
    labels = np.arange(n, dtype=np.int64)
    if len(edges):
        ends = np.sort(place[np.stack([edges.i, edges.j])], axis=0)
        order = np.argsort(ends[0] * n + ends[1])
        connected = np.flatnonzero(np.bincount(ends.ravel()))
        number = np.zeros(n, dtype=np.int64)
        number[connected] = np.arange(len(connected))
        partition = _best_partition(
            len(connected),
            number[ends[:, order]],
            edges.strengths()[order],
            round(resolution * MILLION),
            seed,
            library,
        )
        # A community is called after one of its members until all are renumbered together.
        column_at = np.argsort(place)
        first = np.zeros(partition.max() + 1, dtype=np.int64)
        first[partition] = column_at[connected]
        labels[column_at[connected]] = first[partition]
    return _renumber(labels, place)


def check_library(library: str) -> None:
    """Refuse a library that is not there.

    Raises
    ------
    InputError
        With how to get it.
    """
    if importlib.util.find_spec(library) is None:
        raise InputError(f"--leiden {library} needs the package {library}: pip install {library}.")


def _best_partition(
    n: int,
    ends: NDArray[np.int64],
    weights: NDArray[np.int64],
    resolution: int,
    seed: int,
    library: str,
) -> NDArray[np.int64]:
    """The best of a few Leiden runs, whose number depends on the size of the graph alone."""
    check_library(library)
    import igraph  # it loads Matplotlib where there is one, which takes as long as all else

    starts = max(1, min(MOST_STARTS, EDGES_TO_SEARCH // len(weights)))
    # Three times as fast as from an array.
    graph = igraph.Graph(n, list(zip(ends[0].tolist(), ends[1].tolist(), strict=True)))
    runs = _LIBRARIES[library](graph, weights.tolist(), resolution - HAIR, seed)
    with closing(runs):  # the lock of igraph's generator is held as long as they go on
        candidates = [np.asarray(labels, dtype=np.int64) for labels in islice(runs, starts)]
    return max(candidates, key=lambda labels: _quality(labels, ends, weights, resolution))


def _by_igraph(
    graph: Any, weights: list[int], resolution: float, seed: int
) -> Generator[list[int]]:
    """Memberships by igraph's Leiden, one after the other from one generator."""
    import igraph

    with _GENERATOR_LOCK:
        # igraph draws from one generator for the whole process; its default is `random` itself.
        igraph.set_random_number_generator(random.Random(seed))  # noqa: S311
        try:
            while True:
                partition = graph.community_leiden(
                    objective_function="CPM",
                    weights=weights,
                    resolution=resolution,
                    beta=RANDOMNESS * MILLION,
                    n_iterations=-1,
                )
                yield partition.membership
        finally:
            igraph.set_random_number_generator(random)


def _by_leidenalg(
    graph: Any, weights: list[int], resolution: float, seed: int
) -> Generator[list[int]]:
    """Memberships by leidenalg, each from a seed of its own."""
    import leidenalg

    # Without a seed leidenalg takes the second of the clock for one.
    seeds = random.Random(seed)  # noqa: S311
    while True:
        partition = leidenalg.find_partition(
            graph,
            leidenalg.CPMVertexPartition,
            weights=weights,
            resolution_parameter=resolution,
            n_iterations=-1,
            seed=seeds.randrange(2**31),
        )
        yield partition.membership


_LIBRARIES = {"igraph": _by_igraph, "leidenalg": _by_leidenalg}


def _quality(
    labels: NDArray[np.int64],
    ends: NDArray[np.int64],
    weights: NDArray[np.int64],
    resolution: int,
) -> int:
    """The objective, exactly: in millionths, and in hairs where those are equal."""
    inside = labels[ends[0]] == labels[ends[1]]
    sizes = np.bincount(labels)
    pairs = int((sizes * (sizes - 1) // 2).sum())
    return HAIRS * (int(weights[inside].sum()) - resolution * pairs) + pairs


def _renumber(labels: NDArray[np.int64], place: NDArray[np.int64]) -> NDArray[np.int64]:
    """Labels 0, 1, ... by falling size, then by smallest name."""
    _, compact, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    smallest = np.full(len(sizes), len(labels), dtype=np.int64)
    np.minimum.at(smallest, compact, place)
    number = np.empty(len(sizes), dtype=np.int64)
    number[np.lexsort((smallest, -sizes))] = np.arange(len(sizes))
    return number[compact]
