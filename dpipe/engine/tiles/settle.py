"""Single pairs measured exactly: inside the pair's own rows, or in float64 throughout.

Covers: a task that settles part of a list of pairs and leaves their values in the store.
Does not cover: which pairs are in doubt (`dpipe.engine.tiles.edges`).
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from dpipe.device.arrays import retried, to_device, to_host
from dpipe.engine.tiles.job import Job, load_marginals, open_job
from dpipe.engine.tiles.moments import functions_of
from dpipe.kernels.marginals import Marginals
from dpipe.kernels.measure import Settling
from dpipe.kernels.moments import Moments, tile_moments
from dpipe.kernels.rerank import MOST_COUNTED, joint_spearman, places
from dpipe.rankstore import Catalogue, Store, read_piece

# Of a pair, which is as narrow as a tile is wide: a card needs some 150 kernels for each step.
_CHUNKS_AT_ONCE = 128

_SPARSE = 2  # ranks of a column to each that is looked at, from which on sorting is faster


def settle(store: Store, folder: str, listed: str, name: str, start: int, stop: int) -> None:
    """Leave the exact similarities of the pairs `start` to `stop` of a list in the store."""
    job, catalogue = open_job(store, folder)
    pairs = _load_pairs(store, listed)
    i, j = pairs["i"][start:stop], pairs["j"][start:stop]
    store.write_arrays(name, {"value": _settled(store, job, catalogue, i, j)})


def _settled(
    store: Store, job: Job, catalogue: Catalogue, i: NDArray[np.int64], j: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Exact similarities of pairs that are ordered by their validity patterns."""
    if job.fusion.settling is not Settling.RERANKED:
        return np.array(
            [_settle_pair(store, job, catalogue, int(a), int(b)) for a, b in zip(i, j, strict=True)]
        )
    values = np.empty(len(i))
    changes = np.diff(catalogue.pattern[i]) | np.diff(catalogue.pattern[j])
    for group in np.split(np.arange(len(i)), np.flatnonzero(changes) + 1):
        values[group] = _rerank(store, job, catalogue, i[group], j[group])
    return values


@lru_cache(maxsize=2)
def _load_pairs(store: Store, name: str) -> dict[str, NDArray[np.int64]]:
    return store.read_arrays(name)


def _rerank(
    store: Store, job: Job, catalogue: Catalogue, i: NDArray[np.int64], j: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Rank again inside each pair; the pairs share one pair of validity patterns."""
    left, index_i = np.unique(i, return_inverse=True)
    right, index_j = np.unique(j, return_inverse=True)
    columns = np.concatenate([left, right]).tolist()
    scores, valid = read_piece(store, catalogue, columns, 0, catalogue.n_rows)
    joint = slice(None) if valid is None else valid[0] & valid[-1]
    scores = scores[:, joint]
    if scores.shape[1] < job.min_valid:
        return np.full(len(i), np.nan)

    n_valid = catalogue.n_valid[columns]
    may_count = n_valid.max() <= min(MOST_COUNTED, _SPARSE * scores.shape[1])

    def rho(device: str) -> NDArray[np.float64]:
        counted = device == "cpu" and may_count
        ranked = places(scores, n_valid) if counted else to_device(scores, device)
        return to_host(joint_spearman(ranked[: len(left)], ranked[len(left) :]))

    return retried(job.device, lambda: rho(job.device), lambda: rho("cpu"))[index_i, index_j]


def _settle_pair(store: Store, job: Job, catalogue: Catalogue, i: int, j: int) -> float:
    """The fused similarity of one pair in float64 throughout."""
    marginals = [_marginals_of_column(store, job, column) for column in (i, j)]
    changes = [of_one.on_device(job.device) for of_one in marginals]
    total: Moments | None = None
    step = job.tiling.chunk_rows * (8 if job.device == "cpu" else _CHUNKS_AT_ONCE)
    for start in range(0, catalogue.n_rows, step):
        stop = min(start + step, catalogue.n_rows)
        pieces = []
        for column, change in zip((i, j), changes, strict=True):
            scores, valid = read_piece(store, catalogue, [column], start, stop)
            ranks = to_device(scores, job.device)
            mask = None if valid is None else to_device(valid, job.device)
            pieces.append(functions_of(ranks, mask, change, dtype="float64"))
        moments = tile_moments(pieces[0], pieces[1])
        total = moments.total() if total is None else total.__iadd__(moments)
    assert total is not None
    moments = total.to_host()
    if moments.count[0, 0] < job.min_valid:
        return float("nan")
    values = {
        measure.name: to_host(measure.contract(moments, marginals[0], marginals[1], job.parameters))
        for measure in job.fusion.measures
    }
    return float(job.fusion.mean(values)[0, 0])


def _marginals_of_column(store: Store, job: Job, column: int) -> Marginals:
    for block, (start, stop) in enumerate(job.tiling.blocks):
        if start <= column < stop:
            return load_marginals(store, job.folder, block)[column - start : column - start + 1]
    raise IndexError(column)
