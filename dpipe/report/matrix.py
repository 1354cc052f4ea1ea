"""Similarity matrices made small enough for a page, and honest about it.

Covers: the order of columns by community, cells that stand for several pairs, one byte a cell.
Does not cover: drawing (see `dpipe.report.figures`).
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from dpipe.model.records import Decision
from dpipe.report.words import DROPPED

if TYPE_CHECKING:
    from numpy.typing import NDArray

CELLS = 520
"""Most cells along a side: no more than a laptop shows, and three matrices stay below 1 MB."""

MISSING = -128


def communities_of(decisions: Sequence[Decision], pass_number: int) -> dict[str, int]:
    """The communities of a pass, column -> number, from the decisions alone.

    A decision holds one number: of the pass that dropped the column, or of the last pass that found
    it in a community. A column that outlived the pass belongs to the community of those it stood
    for.

    Examples
    --------
    >>> def of(name, decision, number, representative, community):
    ...     return Decision(name, "double", 9, 0, 0, 0, 9, decision, number, "redundant",
    ...         "spearman", 0.97, 0.95, representative, community)
    >>> communities_of([of("a", "dropped", 2, "b", 0), of("b", "dropped", 4, "c", 5),
    ...     of("c", "kept", None, None, 5)], 2)
    {'a': 0, 'b': 0}
    """
    own = [d for d in decisions if d.decision == DROPPED and d.pass_number == pass_number]
    labels = {d.column: d.community for d in own if d.community is not None}
    numbers = set(labels.values())
    for decision in decisions:
        outlived = decision.pass_number is None or decision.pass_number > pass_number
        if outlived and decision.community in numbers:
            labels[decision.column] = decision.community
    for decision in own:
        if decision.representative is not None and decision.community is not None:
            labels.setdefault(decision.representative, decision.community)
    return labels


def community_order(
    columns: Sequence[str], communities: Mapping[str, int]
) -> tuple[NDArray[np.int64], list[int]]:
    """Columns by falling size of their community, single ones last, each in its input order.

    Returns
    -------
    order
        (p,) indices into `columns`.
    sizes
        Sizes of the communities of two and more, in this order.

    Examples
    --------
    >>> order, sizes = community_order("abcd", {"b": 7, "d": 7})
    >>> order.tolist(), sizes
    ([1, 3, 0, 2], [2])
    """
    members: dict[int, list[int]] = {}
    single: list[int] = []
    for index, name in enumerate(columns):
        number = communities.get(name)
        if number is None:
            single.append(index)
        else:
            members.setdefault(number, []).append(index)
    single += [group[0] for group in members.values() if len(group) == 1]
    groups = sorted((g for g in members.values() if len(g) > 1), key=lambda g: (-len(g), g[0]))
    flat = [index for group in groups for index in group] + sorted(single)
    return np.array(flat, dtype=np.int64), [len(group) for group in groups]


def condense(
    values: NDArray[Any], order: NDArray[np.int64], cells: int = CELLS
) -> tuple[NDArray[np.float32], int]:
    """A matrix in the given order with at most `cells` cells a side.

    Parameters
    ----------
    values
        (p, p), possibly mapped from disk; its rows are read once.
    order
        (p,) order of rows and columns.

    Returns
    -------
    cells
        (s, s) float32: of the ``step`` x ``step`` pairs of a cell the value that is largest in
        size, with its sign; NaN where none is defined. Where a cell stands for several pairs, a
        column with itself is not one of them.
    step
        Columns a cell stands for along a side.

    Examples
    --------
    >>> r = np.array([[1, .25, -.75], [.25, 1, .5], [-.75, .5, 1]], dtype=np.float32)
    >>> small, step = condense(r, np.arange(3), cells=2)
    >>> small.tolist(), step
    ([[0.25, -0.75], [-0.75, nan]], 2)
    """
    p = len(order)
    step = max(1, math.ceil(p / cells))
    starts = np.arange(0, p, step)
    small = np.empty((len(starts), len(starts)), dtype=np.float32)
    for row, start in enumerate(starts):
        chosen = order[start : start + step]
        block = np.asarray(values[chosen], dtype=np.float32)[:, order]
        if step > 1:
            block[np.arange(len(chosen)), start + np.arange(len(chosen))] = np.nan
        high = np.fmax.reduceat(np.fmax.reduce(block, axis=0), starts)
        low = np.fmin.reduceat(np.fmin.reduce(block, axis=0), starts)
        small[row] = np.where(high >= -low, high, low)
    return small, step


def pack(small: NDArray[np.float32]) -> str:
    """Hundredths of the upper triangle, row after row, one signed byte each, in base64.

    Examples
    --------
    >>> base64.b64decode(pack(np.array([[1, -.5], [-.5, np.nan]], dtype=np.float32))).hex()
    '64ce80'
    """
    codes = np.full(small.shape, MISSING, dtype=np.int8)
    defined = ~np.isnan(small)
    codes[defined] = np.rint(100 * np.clip(small[defined], -1, 1)).astype(np.int8)
    return base64.b64encode(codes[np.triu_indices(len(codes))].tobytes()).decode()
