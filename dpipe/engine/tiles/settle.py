"""Single pairs measured exactly: inside the pair's own rows, or in float64 throughout.

Covers: a task that settles part of a list of pairs and leaves their values in the store.
Does not cover: which pairs are in doubt (`dpipe.engine.tiles.edges`).
"""

from __future__ import annotations

from functools import lru_cache, reduce

import numpy as np
from numpy.typing import NDArray

from dpipe.device.arrays import retried, to_device, to_host
from dpipe.engine.tiles.job import Job, load_marginals, open_job
from dpipe.engine.tiles.moments import functions_of, of_block, sums_of
from dpipe.kernels.joint import joint_scores
from dpipe.kernels.marginals import Marginals, MarginalSums
from dpipe.kernels.measure import Settling
from dpipe.kernels.moments import Moments, tile_moments
from dpipe.kernels.rerank import joint_spearman, may_count, places
from dpipe.rankstore import Catalogue, Store, read_piece

# Of a pair, which is as narrow as a tile is wide: a card needs some 150 kernels for each step.
_CHUNKS_AT_ONCE = 128


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
    values = np.empty(len(i))
    changes = np.diff(catalogue.pattern[i]) | np.diff(catalogue.pattern[j])
    for group in np.split(np.arange(len(i)), np.flatnonzero(changes) + 1):
        values[group] = _measured(store, job, catalogue, i[group], j[group])
    return values


def _measured(
    store: Store, job: Job, catalogue: Catalogue, i: NDArray[np.int64], j: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Exact similarities of pairs that share one pair of validity patterns."""
    if job.fusion.settling is Settling.RERANKED:
        return _rerank(store, job, catalogue, i, j)
    if catalogue.pattern[i[0]] != catalogue.pattern[j[0]]:
        return _on_common_rows(store, job, catalogue, i, j)
    pairs = zip(i.tolist(), j.tolist(), strict=True)
    return np.array([_settle_pair(store, job, catalogue, a, b) for a, b in pairs])


@lru_cache(maxsize=2)
def _load_pairs(store: Store, name: str) -> dict[str, NDArray[np.int64]]:
    return store.read_arrays(name)


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
    n_valid = catalogue.n_valid[columns]

    def rho(device: str) -> NDArray[np.float64]:
        counted = device == "cpu" and may_count(scores, n_valid)
        ranked = places(scores, n_valid) if counted else to_device(scores, device)
        return to_host(joint_spearman(ranked[: len(left)], ranked[len(left) :]))

    return retried(job.device, lambda: rho(job.device), lambda: rho("cpu"))[index_i, index_j]


def _common_scores(
    store: Store, catalogue: Catalogue, columns: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Scores on the rows where the first and the last of some columns are both valid."""
    scores, valid = read_piece(store, catalogue, columns.tolist(), 0, catalogue.n_rows)
    return scores if valid is None else scores[:, valid[0] & valid[-1]]


_ROWS_AT_ONCE = 2**15  # of a pair on its common rows, the same wherever it is measured


def _on_common_rows(
    store: Store, job: Job, catalogue: Catalogue, i: NDArray[np.int64], j: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Similarities as if the common rows were all rows; the pairs share two validity patterns."""
    columns, index = np.unique(np.concatenate([i, j]), return_inverse=True)
    ends = np.concatenate([i[:1], columns, j[:1]])  # the first and the last of both patterns
    scores = _common_scores(store, catalogue, ends)[1:-1]
    n_rows = scores.shape[1]
    if n_rows < job.min_valid:
        return np.full(len(i), np.nan)
    ranks = joint_scores(scores, catalogue.n_valid[columns])
    strips = [slice(row, row + _ROWS_AT_ONCE) for row in range(0, n_rows, _ROWS_AT_ONCE)]
    sums = reduce(MarginalSums.__iadd__, (sums_of(job, ranks[:, strip], None) for strip in strips))
    needed = catalogue.functions[columns]
    known: dict[int, Marginals] = {}
    for width in np.unique(needed):
        places = np.flatnonzero(needed == width)
        # One by one, so that no digit depends on other columns; what follows from them at once.
        ones = [
            of_block(job, sums.of(places[k : k + 1]), needed[places[:1]])
            for k in range(len(places))
        ]
        block = Marginals.joined(ones)
        known |= {int(place): block[k : k + 1] for k, place in enumerate(places)}

    def similarity(a: int, b: int) -> float:
        total: Moments | None = None
        for strip in strips:
            left, right = (
                functions_of(ranks[place : place + 1, strip], None, known[place], dtype="float64")
                for place in (a, b)
            )
            moments = tile_moments(left, right)
            total = moments.total() if total is None else total.__iadd__(moments)
        assert total is not None
        return _fused(job, total, known[a], known[b])

    pairs = zip(*np.split(index, 2), strict=True)
    return np.array([similarity(int(a), int(b)) for a, b in pairs])


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
    return _fused(job, moments, *marginals)


def _fused(job: Job, moments: Moments, left: Marginals, right: Marginals) -> float:
    """The mean of the measures of one pair."""
    values = {
        measure.name: to_host(measure.contract(moments, left, right, job.parameters))
        for measure in job.fusion.measures
    }
    return float(job.fusion.mean(values)[0, 0])


def _marginals_of_column(store: Store, job: Job, column: int) -> Marginals:
    for block, (start, stop) in enumerate(job.tiling.blocks):
        if start <= column < stop:
            return load_marginals(store, job.folder, block)[column - start : column - start + 1]
    raise IndexError(column)
