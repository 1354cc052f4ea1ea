"""Which of two columns a run would rather keep: one order, used by every pass.

Covers: the user's wishes, relevance, and the order of columns that follows from them, from what a
pass adds and from the names.
Does not cover: what a pass adds, as medoids or sums of similarities (the pass's own module).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from dpipe.model.records import MILLION


@dataclass(frozen=True)
class Priority:
    """What makes a column worth keeping before any pass looks at it.

    Attributes
    ----------
    keep
        Names never to drop.
    prefer
        Names to favour, the most favoured first; of a repeated name the first mention counts.
    relevance
        Name -> how much the column tells of what is to be predicted, in whole millionths; empty
        where nothing is. A column that is not named tells nothing.

    Examples
    --------
    >>> priority = Priority(keep=("d",), prefer=("c",), relevance={"b": 900_000, "e": 700_000})
    >>> names = ["a", "b", "c", "d", "e"]
    >>> [names[index] for index in priority.order(names)]
    ['d', 'c', 'b', 'e', 'a']
    """

    keep: Collection[str] = ()
    prefer: Sequence[str] = ()
    relevance: Mapping[str, int] = field(default_factory=dict)

    @cached_property
    def asked(self) -> frozenset[str]:
        """The names never to drop."""
        return frozenset(self.keep)

    @cached_property
    def _favour(self) -> dict[str, int]:
        """Place of each preferred name, the first mention of a repeated one."""
        return {name: place for place, name in reversed(list(enumerate(self.prefer)))}

    def order(self, names: Sequence[str], *added: NDArray[np.int64]) -> NDArray[np.int64]:
        """Indices of the columns, (n,), from the one most worth keeping to the one least so.

        Parameters
        ----------
        names
            The columns' names, (n,), all different; wishes for other columns are ignored.
        added
            What a pass looks at after the wishes and the relevance, the most important first:
            (n,) each, of which a smaller value is better. The name comes last.
        """
        asked = np.array([name not in self.asked for name in names], dtype=bool)
        last = len(self.prefer)
        favour = np.array([self._favour.get(name, last) for name in names], dtype=np.int64)
        relevance = np.array([-self.relevance.get(name, 0) for name in names], dtype=np.int64)
        return np.lexsort((name_places(names), *added[::-1], relevance, favour, asked))

    def relevance_of(self, names: Sequence[str]) -> NDArray[np.float64]:
        """Relevance of the columns, (n,), in shares of the largest of the whole table.

        Examples
        --------
        >>> Priority(relevance={"a": 400_000, "b": 100_000}).relevance_of(["b", "c"]).tolist()
        [0.25, 0.0]
        """
        largest = max(self.relevance.values(), default=0) or 1
        return np.array([self.relevance.get(name, 0) / largest for name in names])


def in_millionths(relevance: Mapping[str, float]) -> dict[str, int]:
    """Relevance in whole millionths, which no difference of rounding can tell apart.

    Examples
    --------
    >>> in_millionths({"a": 0.25, "b": 0.2500000001})
    {'a': 250000, 'b': 250000}
    """
    return {name: round(value * MILLION) for name, value in relevance.items()}


def name_places(names: Sequence[str]) -> NDArray[np.int64]:
    """Position of each name among the sorted names, (n,).

    Examples
    --------
    >>> name_places(["b", "c", "a"]).tolist()
    [1, 2, 0]
    """
    place = np.empty(len(names), dtype=np.int64)
    place[sorted(range(len(names)), key=names.__getitem__)] = np.arange(len(names))
    return place
