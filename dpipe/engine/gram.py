"""The Gram matrix of normal scores: of a pass's columns, and of what is to be predicted.

Covers: the matrix as one more grid of tiles, used again as long as its tiles are there; the order
of columns that goes with it.
Does not cover: what is decided from it (`dpipe.passes`), the responses' columns
(`dpipe.engine.responses`).

It is computed in float64 and with missing cells at the mean score, so it is positive semi-definite,
which a pairwise-complete matrix is not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import psutil
from numpy.typing import NDArray

from dpipe.engine.context import Context, Prepared
from dpipe.engine.grid import assemble, run_grid
from dpipe.engine.measures import fusion_of
from dpipe.engine.plan import check_client
from dpipe.engine.responses import Responses, responses_of
from dpipe.model.records import MILLION
from dpipe.model.registry import PASSES, Pass


@dataclass(frozen=True)
class Gram:
    """The normal scores of some columns, as far as predictions need them.

    Attributes
    ----------
    names
        The columns, none of them constant.
    values
        (p, p) correlations with missing cells at the mean.
    rows
        (p,) valid rows of each.
    responses
        (p, q) products with the responses of the targets that are known in all these rows; no
        column where nothing is chosen for one.
    n_rows
        Rows that it is of.
    targets
        How many targets the responses are of; each has a variance of 1.
    """

    names: tuple[str, ...]
    values: NDArray[np.float64]
    rows: NDArray[np.int64]
    responses: NDArray[np.float64]
    n_rows: int
    targets: int = 0

    def of(self, names: Sequence[str]) -> NDArray[np.int64]:
        """Places of the columns among those named, as they are named."""
        place = {name: index for index, name in enumerate(self.names)}
        return np.array([place[name] for name in names if name in place], dtype=np.int64)

    def among(self, names: Sequence[str]) -> Gram:
        """The same of all of some columns; one that is not in it shares nothing with any."""
        if names == self.names:
            return self
        place = {name: index for index, name in enumerate(names)}
        known = [place[name] for name in self.names]
        values, rows = np.eye(len(names)), np.zeros(len(names), dtype=np.int64)
        responses = np.zeros((len(names), self.responses.shape[1]))
        values[np.ix_(known, known)] = self.values
        rows[known], responses[known] = self.rows, self.responses
        return Gram(tuple(names), values, rows, responses, self.n_rows, self.targets)

    def nearest(self, index: int, among: NDArray[np.int64]) -> int:
        """Which of some columns is most similar to one, the first by name of equals."""
        closeness = np.rint(np.abs(self.values[index, among]) * MILLION)
        best: list[int] = among[closeness == closeness.max()].tolist()
        return min(best, key=self.names.__getitem__)


def gram_of(
    this: Pass,
    context: Context,
    prepared: Prepared,
    columns: Sequence[str],
    responses: Responses | None = None,
) -> Gram:
    """The Gram matrix of columns; tiles that are still in the store are not computed again.

    The responses are those of the run's targets unless others are given.
    """
    members = set(columns)
    names = tuple(
        name for name in prepared if name in members and prepared[name].statistics.n_unique > 1
    )
    check_client(this, len(names), psutil.virtual_memory().available)
    responses = responses_of(context, prepared) if responses is None else responses
    wanted = (*names, *responses.columns)
    values = np.ones((len(wanted), len(wanted)))
    if len(wanted) > 1:
        title, held = _grid_with(this, context, wanted)
        fusion = fusion_of(this, context.options)
        grid = run_grid(context, {**prepared, **responses.columns}, held, title, fusion)
        context.store.write_json(_record(title), held)
        whole = values if len(held) == len(wanted) else np.ones((len(held), len(held)))
        order = wanted if len(held) == len(wanted) else held
        assemble(context, grid, fusion.name, order, None, whole)
        if whole is not values:
            place = {name: index for index, name in enumerate(held)}
            chosen = [place[name] for name in wanted]
            values = whole[np.ix_(chosen, chosen)]
    p = len(names)
    rows = np.array([prepared[name].statistics.n_valid for name in names], dtype=np.int64)
    products = np.nan_to_num(values[:p, p:]) * np.array(responses.weights)
    square = values[:p, :p] if len(responses.columns) else values
    square = np.ascontiguousarray(square)
    return Gram(names, square, rows, products, context.n_rows, responses.targets)


def _record(title: str) -> str:
    """Names the file with the columns of a grid; it goes when the grid is removed."""
    return f"{title}-columns.json"


def _grid_with(this: Pass, context: Context, wanted: Sequence[str]) -> tuple[str, Sequence[str]]:
    """The title and the columns of a grid that is there and has all those wanted; else their own.

    An earlier pass may have measured more columns than are left.
    """
    for entry in PASSES.values():
        if entry.measure == this.measure and context.store.has(_record(entry.name)):
            held = tuple(map(str, context.store.read_json(_record(entry.name))))
            if set(held).issuperset(wanted):
                return entry.name, held
    return this.name, wanted


def order_of(prepared: Prepared, context: Context, *grams: Gram) -> NDArray[np.int64]:
    """Columns from the one most worth keeping to the one least so.

    After the user's wishes, relevance and missing cells the larger sum of similarities decides (in
    whole millionths, which add up alike in any order), over all the matrices given, which are of
    the same columns.
    """
    names = grams[0].names
    missing = [prepared[name].statistics.n_missing for name in names]
    sums = np.zeros(len(names), dtype=np.int64)
    for gram in grams:
        sums += np.rint(np.abs(gram.values) * MILLION).astype(np.int64).sum(axis=1)
    return context.priority.order(names, np.array(missing, dtype=np.int64), -sums)
