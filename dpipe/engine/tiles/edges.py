"""From a tile's moments to its similarities and edges.

Covers: every measure of a tile, the fused similarity that decides, the pairs at or above the
threshold and those that may have to be settled, the files of finished tiles.
Does not cover: forming moments (`dpipe.engine.tiles.moments`), settling
(`dpipe.engine.tiles.settle`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpipe.device.arrays import retried, to_host
from dpipe.engine.tiles.job import Job, marginals_of, open_job, tile_name
from dpipe.engine.tiles.moments import tile
from dpipe.kernels.joint import common
from dpipe.kernels.marginals import Marginals
from dpipe.kernels.measure import Measure, Settling
from dpipe.kernels.measures import MEASURES
from dpipe.kernels.moments import Moments
from dpipe.rankstore import Catalogue, Store

NEAR = 0.005
"""Pairs this close below a threshold are reported too: a reader may wish to look at them."""


SHIFTED = 0.25
"""How far a similarity can be off for each unit that a column's functions moved.

Twice and more of what was seen for tails, halves and middles of all shapes (docs/statistics.md).
"""


def tile_finish(store: Store, folder: str, i: int, j: int, moments: Moments) -> int:
    """Turn a tile's moments into similarities and edges and leave them; returns the edges' number.

    The file holds of each edge ``i``, ``j`` (catalogue numbers), ``value``, ``exact``, ``rows``
    (common to both columns), ``most`` (what |value| may turn out to be) and ``decides`` (whether
    the threshold needs it); ``NAME_i``, ``NAME_j``, ``NAME_value``, ``NAME_rows`` of the pairs of
    each single measure from the job's floor on; and ``matrix_NAME`` of each measure when the job
    wants matrices.
    """
    job, catalogue = open_job(store, folder)
    values = _similarities(store, job, i, j, moments)
    reach = _reach(store, job, catalogue, i, j, moments)
    arrays = _edges(job, catalogue, i, j, values, reach)
    if job.matrix:
        for name, value in values.items():
            arrays[f"matrix_{name}"] = value.astype(MEASURES[name].dtype)
    store.write_arrays(tile_name(folder, i, j), arrays)
    return len(arrays["i"])


def tile_whole(store: Store, folder: str, i: int, j: int) -> int:
    """A tile that is not split over rows, from reading to edges in one task."""
    return tile_finish(store, folder, i, j, tile(store, folder, i, j, 0))


def _similarities(
    store: Store, job: Job, i: int, j: int, moments: Moments
) -> dict[str, NDArray[np.float64]]:
    """Each measure's (b_i, b_j) similarities, NaN where undefined, a unit diagonal."""
    marginals_i = marginals_of(store, job, i)
    marginals_j = marginals_i if i == j else marginals_of(store, job, j)
    count = to_host(moments.count)
    values = {}
    for measure in job.fusion.measures:
        value = _contract(job, measure, moments, marginals_i, marginals_j)
        if measure.pairwise:
            value = np.where(count < job.min_valid, np.nan, value)
        if i == j:
            diagonal = np.arange(len(value))
            value = (value + value.T) / 2
            value[diagonal, diagonal] = np.where(np.isnan(value[diagonal, diagonal]), np.nan, 1.0)
        values[measure.name] = value
    return values


def _contract(
    job: Job,
    measure: Measure,
    moments: Moments,
    marginals_i: Marginals | None,
    marginals_j: Marginals | None,
) -> NDArray[np.float64]:
    """One measure of a tile, computed where the job computes; on the host if a card is full."""

    def on(place: Callable[[Moments], Moments]) -> NDArray[np.float64]:
        return to_host(measure.contract(place(moments), marginals_i, marginals_j, job.parameters))

    return retried(
        job.device, lambda: on(lambda m: m.on_device(job.device)), lambda: on(Moments.to_host)
    )


@dataclass(frozen=True)
class _Reach:
    """How far a pair's similarity may lie from that of its tile, because of missing cells.

    Attributes
    ----------
    count
        (b_i or 1, b_j or 1) common rows.
    least
        threshold -> the smallest value of a tile at which a pair may yet reach it.
    most
        value of a tile -> the largest that the pair's may be.
    """

    count: NDArray[np.float64]
    least: Callable[[float], float | NDArray[np.float64]]
    most: Callable[[NDArray[np.float64]], NDArray[np.float64]]


def _reach(
    store: Store, job: Job, catalogue: Catalogue, i: int, j: int, moments: Moments
) -> _Reach:
    """By the ranks that a column loses, or by how far its functions moved on the common rows."""
    count = to_host(moments.count)
    if job.fusion.settling is Settling.RERANKED:
        n_i, n_j = (catalogue.n_valid[slice(*job.tiling.blocks[block])] for block in (i, j))
        lost = count, n_i[:, None], n_j[None, :]
        return _Reach(
            count,
            lambda threshold: least_by_marginal_ranks(threshold, *lost),
            lambda value: most_by_marginal_ranks(value, *lost),
        )
    moved: float | NDArray[np.float64] = 0.0
    left, right = marginals_of(store, job, i), marginals_of(store, job, j)
    if job.fusion.settling is Settling.FLOAT64 and left is not None and right is not None:
        there = common(moments.to_host(), left, right)
        moved = 0.0 if there is None else SHIFTED * there.shift
    return _Reach(count, lambda threshold: threshold - moved, lambda value: value + moved)


def _edges(
    job: Job,
    catalogue: Catalogue,
    i: int,
    j: int,
    values: Mapping[str, NDArray[np.float64]],
    reach: _Reach,
) -> dict[str, NDArray[Any]]:
    """Pairs at or above the threshold or near it, and those that may yet have to be settled."""
    if job.threshold is None or job.fusion.settling is Settling.NEVER:
        return {name: np.empty(0, dtype) for name, dtype in EDGE_ARRAYS.items()}
    fused = job.fusion.mean(values)
    first_i, first_j = job.tiling.blocks[i][0], job.tiling.blocks[j][0]
    most = np.abs(fused) if job.floor > 1 else reach.most(np.abs(fused))
    least = np.minimum(reach.least(job.threshold) - job.margin, job.threshold - NEAR)
    decides = np.abs(fused) >= least - 1e-6  # never true of NaN
    if job.exact:
        decides |= ~np.isnan(fused)
    found = decides | (most >= job.floor - 1e-6)
    if i == j:
        found = np.triu(found, 1)
    at = np.nonzero(found)
    first, second, value = at[0] + first_i, at[1] + first_j, fused[at]
    # Of two columns with the same valid rows the marginal ranks are the pair's.
    exact = catalogue.pattern[first] == catalogue.pattern[second]
    if job.fusion.settling is not Settling.RERANKED:
        exact &= np.abs(np.abs(value) - job.threshold) > job.margin
    arrays = {
        "i": first,
        "j": second,
        "value": value,
        "exact": exact,
        "rows": np.broadcast_to(reach.count, fused.shape)[at].astype(np.int64),
        "most": most[at],
        "decides": decides[at],
    }
    for measure in job.fusion.singles:
        strong = np.abs(values[measure.name]) >= job.floor - 1e-6
        at = np.nonzero(np.triu(strong, 1) if i == j else strong)
        arrays |= {
            f"{measure.name}_i": at[0] + first_i,
            f"{measure.name}_j": at[1] + first_j,
            f"{measure.name}_value": values[measure.name][at],
            f"{measure.name}_rows": np.broadcast_to(reach.count, fused.shape)[at].astype(np.int64),
        }
    return arrays


EDGE_ARRAYS = {
    "i": np.int64,
    "j": np.int64,
    "value": np.float64,
    "exact": np.bool_,
    "rows": np.int64,
    "most": np.float64,
    "decides": np.bool_,
}
"""What a tile leaves of its edges (see `tile_finish`)."""


def least_by_marginal_ranks(
    threshold: float,
    count: NDArray[np.float64],
    n_i: NDArray[np.int64],
    n_j: NDArray[np.int64],
) -> NDArray[np.float64]:
    """How small abs(rho) by marginal ranks can be where rho inside the pair is `threshold`.

    Marginal ranks are a column's ranks among all its valid rows. Where it loses the share l of them
    to the pair they are (1 - l) t + l G with the pair's ranks t and some distribution function G.
    Their angle to t is widest where G is a step, and then arcsin l; angles add up at worst.

    Parameters
    ----------
    threshold
        Rho inside the pair, above 1 where no pair is wanted.
    count
        Common rows (b_i, b_j), or any shape that broadcasts to it.
    n_i, n_j
        Valid rows of each column, (b_i, 1) and (1, b_j).

    Examples
    --------
    >>> count, n_i, n_j = np.array([[90.0]]), np.array([[100]]), np.array([[90]])
    >>> least_by_marginal_ranks(0.95, count, n_i, n_j).round(3)
    array([[0.914]])
    """
    if threshold > 1:
        return np.full(np.broadcast_shapes(count.shape, n_i.shape, n_j.shape), threshold)
    angle = np.arccos(threshold) + _widest_angle(count, n_i, n_j)
    return np.asarray(np.cos(np.minimum(angle, np.pi / 2)))


def most_by_marginal_ranks(
    strength: NDArray[np.float64],
    count: NDArray[np.float64],
    n_i: NDArray[np.int64],
    n_j: NDArray[np.int64],
) -> NDArray[np.float64]:
    """How large abs(rho) inside a pair can be where it is `strength` by marginal ranks.

    The inverse of `least_by_marginal_ranks`, whose other parameters it shares.

    Examples
    --------
    >>> count, n = np.array([[90.0]]), np.array([[100]])
    >>> least = least_by_marginal_ranks(0.95, count, n, n)
    >>> most_by_marginal_ranks(least, count, n, n).round(6)
    array([[0.95]])
    """
    angle = np.arccos(np.minimum(strength, 1)) - _widest_angle(count, n_i, n_j)
    return np.asarray(np.cos(np.maximum(angle, 0)))


def _widest_angle(
    count: NDArray[np.float64], n_i: NDArray[np.int64], n_j: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Between rho by marginal ranks and rho inside the pair."""
    total = np.zeros(())
    for n in (n_i, n_j):
        total = total + np.arcsin(np.clip(1 - count / np.maximum(n, 1), 0, 1))
    return total
