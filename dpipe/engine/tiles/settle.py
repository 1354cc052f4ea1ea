"""Single pairs measured exactly: inside the pair's own rows, or in float64 throughout.

Covers: a task that settles part of a list of pairs and leaves their values in the store.
Does not cover: which pairs are in doubt (`dpipe.engine.tiles.edges`).

No digit of a pair depends on what is settled beside it: what is worked out for many at once, is
worked out for each by operations of the same shape.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, reduce

import numpy as np
from numpy.typing import NDArray

from dpipe.device.arrays import Array, namespace, retried, to_device, to_host
from dpipe.engine.tiles.job import Job, open_job
from dpipe.engine.tiles.moments import functions_of, of_block, sums_of
from dpipe.kernels.marginals import Marginals, MarginalSums
from dpipe.kernels.measure import Settling
from dpipe.kernels.moments import ListMoments
from dpipe.kernels.rerank import centred_ranks, joint_scores, joint_spearman, spearman_of_pairs
from dpipe.rankstore import Catalogue, Store, read_piece

_ROWS_AT_ONCE = {"cpu": 2**13, "gpu": 2**17}
_PAIRS_AT_ONCE = {"cpu": 16, "gpu": 4}  # whose functions on so many rows are held together

Ranks = Callable[[NDArray[np.int64], int, int], Array]


def settle(store: Store, folder: str, listed: str, name: str, start: int, stop: int) -> None:
    """Leave the exact similarities of the pairs `start` to `stop` of a list in the store."""
    job, catalogue = open_job(store, folder)
    pairs = _load_pairs(store, listed)
    i, j = pairs["i"][start:stop], pairs["j"][start:stop]
    store.write_arrays(name, {"value": _settled(store, job, catalogue, i, j)})


@lru_cache(maxsize=2)
def _load_pairs(store: Store, name: str) -> dict[str, NDArray[np.int64]]:
    return store.read_arrays(name)


def _settled(
    store: Store, job: Job, catalogue: Catalogue, i: NDArray[np.int64], j: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Exact similarities of pairs that are ordered by their validity patterns."""
    changes = np.diff(catalogue.pattern[i]) | np.diff(catalogue.pattern[j])
    groups = np.split(np.arange(len(i)), np.flatnonzero(changes) + 1)
    if job.fusion.settling is Settling.RERANKED:
        return np.concatenate([_rerank(store, job, catalogue, i[some], j[some]) for some in groups])
    on_host = dataclasses.replace(job, device="cpu")

    def measured(some: NDArray[np.int64]) -> _Group:
        which = store, catalogue, i[some], j[some]
        return retried(
            job.device, lambda: _measured(job, *which), lambda: _measured(on_host, *which)
        )

    return _fused(job, [measured(some) for some in groups])


def _rerank(
    store: Store, job: Job, catalogue: Catalogue, i: NDArray[np.int64], j: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Rank again inside each pair; the pairs share one pair of validity patterns."""
    left, index_i = np.unique(i, return_inverse=True)
    right, index_j = np.unique(j, return_inverse=True)
    columns = np.concatenate([left, right])
    scores = _common_scores(store, catalogue, columns)
    if scores.shape[1] < job.min_valid:
        return np.full(len(i), np.nan)

    def on_card() -> NDArray[np.float64]:
        sides = to_device(scores, job.device)
        return to_host(joint_spearman(sides[: len(left)], sides[len(left) :]))[index_i, index_j]

    def here() -> NDArray[np.float64]:
        ranks = centred_ranks(scores, catalogue.n_valid[columns])
        return spearman_of_pairs(ranks[: len(left)], ranks[len(left) :], index_i, index_j)

    return here() if job.device == "cpu" else retried(job.device, on_card, here)


def _common_scores(
    store: Store, catalogue: Catalogue, columns: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Scores on the rows where the first and the last of some columns are both valid."""
    scores, valid = read_piece(store, catalogue, columns.tolist(), 0, catalogue.n_rows)
    return scores if valid is None else scores[:, valid[0] & valid[-1]]


@dataclass(frozen=True)
class _Columns:
    """Some columns on the rows that they share.

    Attributes
    ----------
    n_rows
        Rows of the table that `ranks` counts.
    ranks
        (places of columns, first row, last row) -> their centred ranks on what they share of it.
    marginals
        Of all of them on these rows.
    """

    n_rows: int
    ranks: Ranks
    marginals: Marginals


@dataclass(frozen=True)
class _Group:
    """Pairs that share one pair of validity patterns.

    Attributes
    ----------
    marginals
        Of their columns.
    places
        (2, pairs) of the columns of each.
    moments
        Of each.
    """

    marginals: Marginals
    places: NDArray[np.int64]
    moments: ListMoments


def _measured(
    job: Job, store: Store, catalogue: Catalogue, i: NDArray[np.int64], j: NDArray[np.int64]
) -> _Group:
    columns, index = np.unique(np.stack([i, j]), return_inverse=True)
    places = index.reshape(2, -1)
    if _on_same_rows(store, catalogue, int(i[0]), int(j[0])):
        found = _on_own_rows(store, job, catalogue, columns)
    else:
        ends = np.concatenate([i[:1], columns, j[:1]])  # the first and the last of both patterns
        found = _on_common_rows(job, catalogue, columns, _common_scores(store, catalogue, ends))
    step = _PAIRS_AT_ONCE[job.device]
    parts = [places[:, start : start + step] for start in range(0, len(i), step)]
    moments = [_products(job, found, part) for part in parts]
    return _Group(found.marginals, places, _joined(moments))


def _on_same_rows(store: Store, catalogue: Catalogue, first: int, second: int) -> bool:
    """Whether two columns miss the same cells of those that the pass looks at.

    In a draw of rows they may, though they differ elsewhere: nothing of either is lost to the pair,
    as the tile that measured it saw.
    """
    if catalogue.pattern[first] == catalogue.pattern[second]:
        return True
    if not len(catalogue.rows):
        return False
    _, valid = read_piece(store, catalogue, [first, second], 0, catalogue.n_rows)
    return valid is not None and np.array_equal(valid[0], valid[1])


def _on_own_rows(
    store: Store, job: Job, catalogue: Catalogue, columns: NDArray[np.int64]
) -> _Columns:
    """Columns that are valid on the same rows: their ranks there are those of the store."""

    def ranks(some: NDArray[np.int64], start: int, stop: int) -> Array:
        scores, valid = read_piece(store, catalogue, columns[some].tolist(), start, stop)
        return to_device(scores if valid is None else scores[:, valid[0]], job.device)

    return _columns(job, len(columns), catalogue.n_rows, ranks)


def _on_common_rows(
    job: Job, catalogue: Catalogue, columns: NDArray[np.int64], held: NDArray[np.float32]
) -> _Columns:
    """Columns as if the rows that all of them have were all rows.

    `held` are their scores there, between those of two others.
    """
    known = to_device(joint_scores(held[1:-1], catalogue.n_valid[columns]), job.device)

    def ranks(some: NDArray[np.int64], start: int, stop: int) -> Array:
        return known[to_device(some, job.device), start:stop]

    return _columns(job, len(columns), known.shape[1], ranks)


def _columns(job: Job, count: int, n_rows: int, ranks: Ranks) -> _Columns:
    """Some columns with marginals of these rows alone.

    Those that their blocks have would do where no row is lost, but for the last digits: these go
    by the rows of a split and by the functions of the other columns of a block.
    """
    everything = np.arange(count)
    step = _ROWS_AT_ONCE[job.device]
    strips = (
        ranks(everything, row, min(row + step, n_rows)).astype("float64")
        for row in range(0, max(n_rows, 1), step)
    )
    sums = reduce(MarginalSums.__iadd__, (sums_of(job, strip, None) for strip in strips))
    needed = np.full(count, job.tiling.functions)
    return _Columns(n_rows, ranks, of_block(job, sums.to_host(), needed))


def _products(job: Job, columns: _Columns, pairs: NDArray[np.int64]) -> ListMoments:
    """Moments of a few pairs of columns, (2, pairs) places."""
    some, index = np.unique(pairs, return_inverse=True)
    left, right = index.reshape(2, -1)
    change = columns.marginals[some].on_device(job.device)
    k = job.tiling.functions
    products, sums, count = np.zeros((len(left), k, k)), np.zeros((len(some), k)), 0
    step = _ROWS_AT_ONCE[job.device]
    for start in range(0, columns.n_rows, step):
        ranks = columns.ranks(some, start, min(start + step, columns.n_rows))
        functions = functions_of(ranks, None, change, dtype="float64").functions
        each = [functions[a] @ functions[b].T for a, b in zip(left, right, strict=True)]
        products += to_host(namespace(functions).stack(each))
        sums += to_host(functions.sum(axis=2))
        count += functions.shape[2]
    counts, unused = np.full((len(left), 1), float(count)), np.zeros((1, 1))
    return ListMoments(
        products[:, :, None], counts, sums[left][:, :, None], sums[right].T[None], unused, unused
    )


def _joined(parts: list[ListMoments]) -> ListMoments:
    """Moments of several lists of pairs as one."""
    axes = {"product": 0, "count": 0, "sum_i": 0, "sum_j": 2}
    whole = {
        name: np.concatenate([getattr(part, name) for part in parts], axis)
        for name, axis in axes.items()
    }
    return dataclasses.replace(parts[0], **whole)


def _fused(job: Job, groups: list[_Group]) -> NDArray[np.float64]:
    """The mean of the measures of each pair; NaN where too few rows are shared."""
    moments = _joined([group.moments for group in groups])
    marginals = Marginals.joined([group.marginals for group in groups])
    firsts = np.cumsum([0, *(len(group.marginals.count) for group in groups)])
    places = [group.places + first for group, first in zip(groups, firsts, strict=False)]
    left, right = (marginals[side] for side in np.concatenate(places, axis=1))
    values = {
        measure.name: to_host(measure.contract(moments, left, right, job.parameters))
        for measure in job.fusion.measures
    }
    fused = job.fusion.mean(values)[:, 0]
    return np.where(moments.count[:, 0] < job.min_valid, np.nan, fused)
