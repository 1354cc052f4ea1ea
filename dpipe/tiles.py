"""What a task of the tile grid does: read pieces of the rank store, return or leave small arrays.

Covers: own moments of a column block, moments of a tile over a row split, turning moments into
similarities and edges, settling single pairs exactly.
Does not cover: which tasks there are (`dpipe.plan`) and when they run (`dpipe.execute`).

Every function here is pure but for finished files in the store: it names its input by paths and
integers, may run twice, and on any worker.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpipe.backend import Array, to_device, to_host
from dpipe.kernels.measures import MEASURES, Measure
from dpipe.kernels.moments import (
    Moments,
    Piece,
    Scratch,
    expand_ranks,
    expand_whitened,
    tile_moments,
)
from dpipe.kernels.own import Own, OwnSums, own_sums, whitened
from dpipe.kernels.rerank import joint_spearman
from dpipe.plan import Tiling
from dpipe.rankstore import Catalogue, Store, load_catalogue, read_piece


@dataclass(frozen=True)
class Job:
    """All that the tasks of one grid share; stored as JSON beside what they leave.

    Attributes
    ----------
    folder
        Prefix of the job's files in the store.
    tiling
        The grid.
    measures
        Names in `dpipe.kernels.measures.MEASURES`, all of one basis size.
    weights
        Weight of each measure in the similarity that makes edges; none to make no edges.
    parameters
        Parameters of the measures.
    threshold
        Similarity that makes an edge.
    margin
        How far below the threshold a pair is still reported, because a float32 measure has to be
        settled there. (Spearman with missing cells has a bound of its own, `least_by_own_ranks`.)
    exact
        Whether every pair that may have to be settled is reported, however weak.
    min_valid
        Fewest common rows of a pair.
    matrix
        Whether tasks leave the similarities of their tile, to be assembled into a matrix.
    device
        "cpu" or "gpu".
    """

    folder: str
    tiling: Tiling
    measures: tuple[str, ...]
    weights: tuple[float, ...] = ()
    parameters: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    threshold: float = 0.0
    margin: float = 0.0
    exact: bool = False
    min_valid: int = 2
    matrix: bool = True
    device: str = "cpu"

    def save(self, store: Store) -> None:
        """Write the job where its tasks find it."""
        store.write_json(f"{self.folder}/job.json", dataclasses.asdict(self))

    @property
    def specs(self) -> tuple[Measure, ...]:
        """The measures themselves."""
        return tuple(MEASURES[name] for name in self.measures)

    @property
    def needs_own(self) -> bool:
        """Whether the columns' own moments come first."""
        return self.tiling.functions > 1 or any(measure.needs_own for measure in self.specs)


@lru_cache(maxsize=4)
def load_job(store: Store, folder: str) -> Job:
    """Read a job (kept for the next task of the same grid)."""
    content = store.read_json(f"{folder}/job.json")
    tiling = content.pop("tiling")
    for name in ("blocks", "splits"):
        tiling[name] = tuple(tuple(pair) for pair in tiling[name])
    for name in ("measures", "weights"):
        content[name] = tuple(content[name])
    return Job(tiling=Tiling(**tiling), **content)


def _open(store: Store, folder: str) -> tuple[Job, Catalogue]:
    return load_job(store, folder), load_catalogue(store, f"{folder}/catalogue.npz")


def _chunks(job: Job, split: int) -> list[tuple[int, int]]:
    start, stop = job.tiling.splits[split]
    step = job.tiling.chunk_rows
    return [(row, min(row + step, stop)) for row in range(start, stop, step)]


# Own moments

_SUMMED_ROWS = 2048  # a few columns of them stay in a core's cache through all functions


def own_partial(store: Store, folder: str, block: int, split: int) -> OwnSums:
    """Own sums of one column block over one row split (host arrays)."""
    job, catalogue = _open(store, folder)
    columns = range(*job.tiling.blocks[block])
    parts = []
    for start, stop in _chunks(job, split):
        scores, valid = read_piece(store, catalogue, columns, start, stop)
        for row in range(0, stop - start, _SUMMED_ROWS):
            strip = slice(row, row + _SUMMED_ROWS)
            ranks = to_device(scores[:, strip].astype(np.float64), job.device)
            mask = None if valid is None else to_device(valid[:, strip], job.device)
            parts.append(own_sums(ranks, job.tiling.functions, mask))
    total = reduce(OwnSums.__iadd__, parts)
    return OwnSums(to_host(total.count), to_host(total.total))


def own_name(folder: str, block: int) -> str:
    """File of a block's own moments."""
    return f"{folder}/own-{block:05d}.npz"


def own_finish(store: Store, folder: str, block: int, parts: Sequence[OwnSums]) -> None:
    """Leave a block's own moments for the tiles."""
    own = whitened(reduce(OwnSums.__iadd__, parts))
    store.write_arrays(own_name(folder, block), own.arrays())


@lru_cache(maxsize=8)
def _load_own(store: Store, folder: str, block: int) -> Own:
    return Own(**store.read_arrays(own_name(folder, block)))


def _own(store: Store, job: Job, block: int) -> Own | None:
    return _load_own(store, job.folder, block) if job.needs_own else None


# Tiles


def moments_partial(store: Store, folder: str, i: int, j: int, split: int) -> Moments:
    """Moments of tile (i, j) over one row split (host arrays, float64)."""
    job, catalogue = _open(store, folder)
    expand_i = _expander(store, job, catalogue, i)
    expand_j = None if i == j else _expander(store, job, catalogue, j)
    total: Moments | None = None
    scratch = Scratch()
    for start, stop in _chunks(job, split):
        right = None if expand_j is None else expand_j(start, stop)
        moments = tile_moments(expand_i(start, stop), right, scratch)
        if total is None:
            total = moments.total()
        else:
            total += moments
    assert total is not None, "a split has at least one chunk"
    return total.to_host()


def _expander(
    store: Store, job: Job, catalogue: Catalogue, block: int
) -> Callable[[int, int], Piece]:
    """A function giving block `block`'s functions on rows [start, stop)."""
    columns = range(*job.tiling.blocks[block])
    own = _own(store, job, block)
    change = None if own is None or job.tiling.functions == 1 else _on_device(own, job.device)
    scratch = Scratch()

    def expand(start: int, stop: int) -> Piece:
        scores, valid = read_piece(store, catalogue, columns, start, stop)
        return _expand(job, scores, valid, change, scratch=scratch)

    return expand


def _on_device(own: Own, device: str) -> Own:
    return Own(**{name: to_device(array, device) for name, array in own.arrays().items()})


def _expand(
    job: Job,
    scores: NDArray[np.float32],
    valid: NDArray[np.bool_] | None,
    change: Own | None,
    dtype: str = "float32",
    scratch: Scratch | None = None,
) -> Piece:
    """Functions of some columns; `change` (on the device) is their change of basis when K > 1."""
    ranks = to_device(scores, job.device)
    mask = None if valid is None else to_device(valid, job.device)
    if change is None:
        return expand_ranks(ranks, mask, scratch)
    return expand_whitened(ranks, mask, change, dtype, scratch)


def merge(parts: Sequence[Moments]) -> Moments:
    """The sum of moments over disjoint rows; an inner node of the tree-sum."""
    return reduce(Moments.__iadd__, parts[1:], parts[0].copy())


def tile_name(folder: str, i: int, j: int) -> str:
    """File of a finished tile."""
    return f"{folder}/tile-{i:05d}-{j:05d}.npz"


def tile_finish(store: Store, folder: str, i: int, j: int, moments: Moments) -> int:
    """Turn a tile's moments into similarities and edges and leave them; returns the edges' number.

    The file holds ``i``, ``j`` (catalogue numbers), ``value`` and ``exact`` of each edge, and
    ``matrix_NAME`` of each measure when the job wants matrices.
    """
    job, catalogue = _open(store, folder)
    values = _similarities(store, job, i, j, moments)
    arrays = _edges(job, catalogue, i, j, values, to_host(moments.count))
    if job.matrix:
        for name, value in values.items():
            arrays[f"matrix_{name}"] = value.astype(MEASURES[name].dtype)
    store.write_arrays(tile_name(folder, i, j), arrays)
    return len(arrays["i"])


def tile_whole(store: Store, folder: str, i: int, j: int) -> int:
    """A tile that is not split over rows, from reading to edges in one task."""
    return tile_finish(store, folder, i, j, moments_partial(store, folder, i, j, 0))


def _similarities(
    store: Store, job: Job, i: int, j: int, moments: Moments
) -> dict[str, NDArray[np.float64]]:
    """Each measure's (b_i, b_j) similarities, NaN where undefined, a unit diagonal."""
    own_i, own_j = _own(store, job, i), _own(store, job, j)
    values = {}
    for measure in job.specs:
        value = to_host(measure.contract(moments, own_i, own_j, job.parameters))
        if measure.pairwise:
            value = np.where(moments.count < job.min_valid, np.nan, value)
        if i == j:
            diagonal = np.arange(len(value))
            value = (value + value.T) / 2
            value[diagonal, diagonal] = np.where(np.isnan(value[diagonal, diagonal]), np.nan, 1.0)
        values[measure.name] = value
    return values


def fuse(job: Job, values: Mapping[str, Array]) -> Array:
    """The weighted mean of the measures: the similarity that decides."""
    weighted = [
        weight * values[name]
        for name, weight in zip(job.measures, job.weights, strict=True)
        if weight > 0
    ]
    return sum(weighted) / sum(job.weights)


def _edges(
    job: Job,
    catalogue: Catalogue,
    i: int,
    j: int,
    values: Mapping[str, NDArray[np.float64]],
    count: NDArray[np.float64],
) -> dict[str, NDArray[Any]]:
    """Pairs at or above the threshold, and those below it that may yet have to be settled."""
    if not job.weights:
        empty = np.empty(0)
        return {"i": empty.astype(int), "j": empty.astype(int), "value": empty, "exact": empty > 0}
    fused = fuse(job, values)
    (first_i, last_i), (first_j, last_j) = job.tiling.blocks[i], job.tiling.blocks[j]
    least: float | NDArray[np.float64] = job.threshold - job.margin
    if job.tiling.functions == 1:
        n_i, n_j = catalogue.n_valid[first_i:last_i, None], catalogue.n_valid[None, first_j:last_j]
        least = least_by_own_ranks(job.threshold, count, n_i, n_j)
    found = np.abs(fused) >= least - 1e-6  # never true of NaN
    if job.exact:
        found |= ~np.isnan(fused)
    if i == j:
        found = np.triu(found, 1)
    rows, columns = np.nonzero(found)
    value = fused[rows, columns]
    rows, columns = rows + first_i, columns + first_j
    exact = is_exact(job, catalogue, rows, columns, value)
    return {"i": rows, "j": columns, "value": value, "exact": exact}


def least_by_own_ranks(
    threshold: float,
    count: NDArray[np.float64],
    n_i: NDArray[np.int64],
    n_j: NDArray[np.int64],
) -> NDArray[np.float64]:
    """How small abs(rho) by own ranks can be where rho by ranks inside the pair is `threshold`.

    Own ranks of a column that loses the share l of its valid rows to the pair are (1 - l) t + l G
    with the pair's ranks t and some distribution function G. Their angle to t is widest where G
    is a step, and then arcsin l; angles add up at worst.

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
    >>> least = least_by_own_ranks(0.95, np.array([[90.0]]), np.array([[100]]), np.array([[90]]))
    >>> least.round(3)
    array([[0.914]])
    """
    if threshold > 1:
        return np.full(np.broadcast_shapes(count.shape, n_i.shape, n_j.shape), threshold)
    angle = np.arccos(threshold)
    for n in (n_i, n_j):
        angle = angle + np.arcsin(np.clip(1 - count / np.maximum(n, 1), 0, 1))
    return np.asarray(np.cos(np.minimum(angle, np.pi / 2)))


def is_exact(
    job: Job,
    catalogue: Catalogue,
    i: NDArray[np.int64],
    j: NDArray[np.int64],
    value: NDArray[np.float64],
) -> NDArray[np.bool_]:
    """Whether a pair's value needs no settling.

    Spearman of two columns with the same valid rows is exact: their own ranks are the pair's.
    A float32 measure is good enough anywhere but near the threshold.
    """
    if job.tiling.functions == 1:
        return np.asarray(catalogue.pattern[i] == catalogue.pattern[j])
    return np.asarray(np.abs(np.abs(value) - job.threshold) > job.margin)


# Settling single pairs


def settled_name(folder: str, key: str, start: int, stop: int) -> str:
    """File of the pairs `start` to `stop` of a list, settled."""
    return f"{folder}/settled-{key}-{start}-{stop}.npz"


def settle(store: Store, folder: str, listed: str, name: str, start: int, stop: int) -> None:
    """Leave the exact similarities of the pairs `start` to `stop` of a list in the store."""
    job, catalogue = _open(store, folder)
    pairs = _load_pairs(store, listed)
    i, j = pairs["i"][start:stop], pairs["j"][start:stop]
    store.write_arrays(name, {"value": _settled(store, job, catalogue, i, j)})


def _settled(
    store: Store, job: Job, catalogue: Catalogue, i: NDArray[np.int64], j: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Exact similarities of pairs that are ordered by their validity patterns."""
    if job.tiling.functions > 1:
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
    assert valid is not None, "pairs of complete columns are never in doubt"
    joint = valid[0] & valid[-1]
    if np.count_nonzero(joint) < job.min_valid:
        return np.full(len(i), np.nan)
    ranked = to_device(scores[:, joint], job.device)
    rho = joint_spearman(ranked[: len(left)], ranked[len(left) :])
    return to_host(rho)[index_i, index_j]


def _settle_pair(store: Store, job: Job, catalogue: Catalogue, i: int, j: int) -> float:
    """The fused similarity of one pair in float64 throughout."""
    own = [_own_of(store, job, column) for column in (i, j)]
    changes = [_on_device(of_one, job.device) for of_one in own]
    total: Moments | None = None
    step = job.tiling.chunk_rows * 8
    for start in range(0, catalogue.n_rows, step):
        stop = min(start + step, catalogue.n_rows)
        pieces = []
        for column, change in zip((i, j), changes, strict=True):
            scores, valid = read_piece(store, catalogue, [column], start, stop)
            pieces.append(_expand(job, scores, valid, change, "float64"))
        moments = tile_moments(pieces[0], pieces[1])
        total = moments.total() if total is None else total.__iadd__(moments)
    assert total is not None
    moments = total.to_host()
    if moments.count[0, 0] < job.min_valid:
        return float("nan")
    values = {
        measure.name: to_host(measure.contract(moments, own[0], own[1], job.parameters))
        for measure in job.specs
    }
    return float(fuse(job, values)[0, 0])


def _own_of(store: Store, job: Job, column: int) -> Own:
    for block, (start, stop) in enumerate(job.tiling.blocks):
        if start <= column < stop:
            return _load_own(store, job.folder, block)[column - start : column - start + 1]
    raise IndexError(column)
