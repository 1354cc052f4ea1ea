"""Which column of a group of similar ones stays, and which one stands for each that goes.

Covers: the documented order of columns in passes 2 and 4, the maximal independent set taken in that
order, and the representative of every dropped column.
Does not cover: the user's wishes (see `dpipe.choice.priority`), the communities the order looks at
(see `dpipe.choice.communities`), or chains of representatives over several passes (see
`dpipe.choice.certificate`).

Similarities are compared and added as whole millionths, whose sums do not depend on the order they
are taken in, so the answer does not either: not on the order of columns, rows or tiles.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dpipe.choice.priority import Priority, name_places
from dpipe.model.records import Edges

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Choice:
    """What one pass keeps, and who stands for the rest.

    Attributes
    ----------
    kept
        Indices of the kept columns, rising, (k,).
    representative
        For every column the index of the kept column that stands for it (itself when kept), (n,).
    value
        Signed similarity of every column to its representative (1 when kept), (n,).
    order
        All columns from the best to the worst priority, as indices, (n,).
    redundant_keeps
        Pairs that were both asked to be kept although they reach the threshold, with their
        similarity; names in alphabetical order.
    """

    kept: NDArray[np.int64]
    representative: NDArray[np.int64]
    value: NDArray[np.float64]
    order: NDArray[np.int64]
    redundant_keeps: tuple[tuple[str, str, float], ...]


def choose(
    names: Sequence[str],
    edges: Edges,
    labels: NDArray[np.int64],
    *,
    threshold: float,
    priority: Priority,
    n_missing: NDArray[np.int64],
) -> Choice:
    """Keep a maximal set of columns of which no two are similar, the best priority first.

    Going through `priority_order`, a column stays if no kept column reaches the threshold with it.
    So nothing kept is redundant, and everything dropped has a kept neighbour: the most similar one,
    in its own community if there is one there, becomes its representative. Columns asked to be
    kept always stay.

    Parameters
    ----------
    names
        The columns' names, (n,), all different.
    edges
        Similar pairs; those below `threshold` are ignored.
    labels
        The columns' communities, (n,).
    threshold
        |similarity| at which one of two columns is redundant.
    priority
        The columns never to drop, and those to favour.
    n_missing
        Missing cells of the columns, (n,).

    Examples
    --------
    >>> pairs = Edges(np.array([0, 1]), np.array([1, 2]), np.array([0.96, -0.98]))
    >>> no_wish, none = Priority(), np.zeros(3, int)
    >>> choice = choose(
    ...     ["a", "b", "c"], pairs, none, threshold=0.95, priority=no_wish, n_missing=none
    ... )
    >>> choice.kept.tolist(), choice.representative.tolist(), choice.value.tolist()
    ([1], [1, 1, 1], [0.96, 1.0, -0.98])
    """
    edges = edges.at_least(threshold)
    order = priority_order(names, edges, labels, priority, n_missing)
    asked = np.array([name in priority.asked for name in names], dtype=bool)
    is_kept = _independent_set(order, asked, edges)
    representative, value = _representatives(edges, is_kept, labels, order)
    return Choice(
        kept=np.flatnonzero(is_kept),
        representative=representative,
        value=value,
        order=order,
        redundant_keeps=_redundant_keeps(names, edges, asked),
    )


def priority_order(
    names: Sequence[str],
    edges: Edges,
    labels: NDArray[np.int64],
    priority: Priority,
    n_missing: NDArray[np.int64],
) -> NDArray[np.int64]:
    """Indices of the columns, (n,), from the one most worth keeping to the one least so.

    To the `priority` come each community's medoid, the column with the largest sum of
    similarities inside it; then fewer missing cells; then a larger sum of all similarities; at
    last the name. Equal medoids are told apart by the later rules. Only the pairs in `edges` count
    for the sums.

    Examples
    --------
    >>> none = Edges(np.array([], int), np.array([], int), np.array([]))
    >>> wishes = Priority(prefer=["c"])
    >>> priority_order(["a", "b", "c"], none, np.arange(3), wishes, np.array([5, 2, 9])).tolist()
    [2, 1, 0]
    """
    n = len(names)
    strengths = edges.strengths()
    inside = labels[edges.i] == labels[edges.j]
    total = _sums(n, edges.i, edges.j, strengths)
    within = _sums(n, edges.i[inside], edges.j[inside], strengths[inside])
    by_community = np.lexsort((name_places(names), -total, n_missing, -within, labels))
    first = np.diff(labels[by_community], prepend=-1) != 0
    common = np.ones(n, dtype=np.int64)
    common[by_community[first]] = 0
    return priority.order(names, common, n_missing, -total)


def _sums(
    n: int, i: NDArray[np.int64], j: NDArray[np.int64], strengths: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Sum of the strengths at every column."""
    # bincount adds in float64, which is exact: whole numbers stay far below 2**53.
    both = np.bincount(i, strengths, n) + np.bincount(j, strengths, n)
    return both.astype(np.int64)


def _independent_set(
    order: NDArray[np.int64], asked: NDArray[np.bool_], edges: Edges
) -> NDArray[np.bool_]:
    """Which columns stay: greedily along `order`, and all that were asked to."""
    n = len(order)
    later, later_start = edges.j, np.searchsorted(edges.i, np.arange(n + 1))
    by_j = np.argsort(edges.j, kind="stable")
    earlier, earlier_start = edges.i[by_j], np.searchsorted(edges.j[by_j], np.arange(n + 1))
    blocked = np.zeros(n, dtype=bool)
    is_kept = np.zeros(n, dtype=bool)
    for column in order.tolist():
        if asked[column] or not blocked[column]:
            is_kept[column] = True
            blocked[later[later_start[column] : later_start[column + 1]]] = True
            blocked[earlier[earlier_start[column] : earlier_start[column + 1]]] = True
    return is_kept


def _representatives(
    edges: Edges,
    is_kept: NDArray[np.bool_],
    labels: NDArray[np.int64],
    order: NDArray[np.int64],
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The best kept neighbour of every dropped column, and the similarity to it."""
    n = len(order)
    representative, value = np.arange(n, dtype=np.int64), np.ones(n)
    strengths = edges.strengths()
    mixed = [
        np.flatnonzero(~is_kept[a] & is_kept[b])
        for a, b in ((edges.i, edges.j), (edges.j, edges.i))
    ]
    pair = np.concatenate(mixed)
    dropped = np.concatenate([edges.i[mixed[0]], edges.j[mixed[1]]])
    kept = np.concatenate([edges.j[mixed[0]], edges.i[mixed[1]]])
    rank = np.empty(n, dtype=np.int64)
    rank[order] = np.arange(n)
    best_first = np.lexsort(
        (rank[kept], -strengths[pair], labels[dropped] != labels[kept], dropped)
    )
    best = best_first[np.diff(dropped[best_first], prepend=-1) != 0]
    representative[dropped[best]] = kept[best]
    value[dropped[best]] = edges.value[pair[best]]
    return representative, value


def _redundant_keeps(
    names: Sequence[str], edges: Edges, asked: NDArray[np.bool_]
) -> tuple[tuple[str, str, float], ...]:
    """Similar pairs of which both were asked to be kept."""
    pairs = []
    for index in np.flatnonzero(asked[edges.i] & asked[edges.j]).tolist():
        first, second = sorted((names[edges.i[index]], names[edges.j[index]]))
        pairs.append((first, second, float(edges.value[index])))
    return tuple(sorted(pairs))
