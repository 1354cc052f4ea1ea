"""What a task of the tile grid does: read pieces of the rank store, return or leave small arrays.

Covers: own moments of a column block, moments of a tile over a row split, turning moments into
similarities and edges, settling single pairs exactly.
Does not cover: which tasks there are (`dpipe.plan`) and when they run (`dpipe.execute`).

Every function here is pure but for finished files in the store: it names its input by paths and
integers, may run twice, and on any worker.
"""

from __future__ import annotations

import dataclasses
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, reduce
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from dpipe import kept
from dpipe.backend import (
    Array,
    free_device_memory,
    out_of_device_memory,
    retried,
    set_precision,
    to_device,
    to_host,
)
from dpipe.errors import ResourceError
from dpipe.kernels.measures import MEASURES, Measure
from dpipe.kernels.moments import (
    Moments,
    Piece,
    Scratch,
    expand_ranks,
    expand_whitened,
    in_quarters,
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
    precision
        Of float32 products on a device: "float32" or "tf32".
    kept_bytes
        Bytes of pieces of the rank store that a worker may keep on its device between tasks.
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
    precision: str = "float32"
    kept_bytes: int = 0

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


def _chunks(job: Job, split: int, parts: int = 1) -> list[tuple[int, int]]:
    """The rows of a split as its task works through them; `parts` makes them that much shorter."""
    start, stop = job.tiling.splits[split]
    step = max(1, job.tiling.chunk_rows // parts)
    return [(row, min(row + step, stop)) for row in range(start, stop, step)]


# Own moments

_SUMMED_ROWS = 2048  # a few columns of them stay in a core's cache through all functions


def own_partial(store: Store, folder: str, block: int, split: int) -> OwnSums:
    """Own sums of one column block over one row split (host arrays)."""
    job, catalogue = _open(store, folder)

    def sums(strip_rows: int, keep: bool = True) -> OwnSums:
        parts = []
        for start, stop in _chunks(job, split):
            scores, valid = _piece(store, job, catalogue, block, start, stop, keep)
            for row in range(0, stop - start, strip_rows):
                strip = slice(row, row + strip_rows)
                mask = None if valid is None else valid[:, strip]
                parts.append(
                    own_sums(scores[:, strip].astype("float64"), job.tiling.functions, mask)
                )
        total = reduce(OwnSums.__iadd__, parts)
        return OwnSums(to_host(total.count), to_host(total.total))

    first, last = job.tiling.blocks[block]
    strip = _SUMMED_ROWS if job.device == "cpu" else job.tiling.chunk_rows
    what = f"{last - first} columns"
    return _on_card(lambda: sums(strip), lambda: sums(_SUMMED_ROWS, keep=False), what, job.device)


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
    return _tile(store, folder, i, j, split).to_host()


def _tile(store: Store, folder: str, i: int, j: int, split: int) -> Moments:
    """Moments of tile (i, j) over one row split, in float64 where the job computes.

    A device without room for the tile gets it in quarters, which are put together on the host.
    """
    job, catalogue = _open(store, folder)
    set_precision(job.device, job.precision)
    whole = (slice(None), slice(None) if i != j else None)

    def accumulate(sides: tuple[slice, slice | None], parts: int) -> Moments:
        keep = parts == 1  # a card that is full has no room for what is not needed now
        expand_i = _expander(store, job, catalogue, i, sides[0], keep)
        expand_j = None
        if sides[1] is not None:
            expand_j = _expander(store, job, catalogue, j, sides[1], keep)
        total: Moments | None = None
        scratch = Scratch()
        for start, stop in _chunks(job, split, parts):
            right = None if expand_j is None else expand_j(start, stop)
            moments = tile_moments(expand_i(start, stop), right, scratch)
            if total is None:
                total = moments.total()
            else:
                total += moments
        assert total is not None, "a split has at least one chunk"
        return total

    def smaller() -> Moments:
        widths = [stop - start for start, stop in (job.tiling.blocks[i], job.tiling.blocks[j])]
        if min(widths) < 2:
            return accumulate(whole, 2).to_host()
        halves = [_halves(width) for width in widths]

        def quarter(a: int, b: int) -> Moments:
            right = None if i == j and a == b else halves[1][b]
            return accumulate((halves[0][a], right), 2).to_host()

        masked = [_has_masks(job, catalogue, block) for block in (i, j)]
        return in_quarters(quarter, i == j, (masked[0], masked[1]))

    what = f"a tile of {job.tiling.widest} columns"
    return _on_card(lambda: accumulate(whole, 1), smaller, what, job.device)


def _has_masks(job: Job, catalogue: Catalogue, block: int) -> bool:
    return bool(np.any(catalogue.valid_slot[slice(*job.tiling.blocks[block])] >= 0))


def _halves(size: int) -> tuple[slice, slice]:
    return slice(0, (size + 1) // 2), slice((size + 1) // 2, size)


_T = TypeVar("_T")


def _on_card(first: Callable[[], _T], smaller: Callable[[], _T], what: str, device: str) -> _T:
    """`first`, or `smaller` on a card that is full; says what to do when that fails as well."""

    def last() -> _T:
        kept.pieces.clear()
        free_device_memory()
        try:
            return smaller()
        except Exception as error:
            if not out_of_device_memory(error):
                raise
            traceback.clear_frames(error.__traceback__)
        raise ResourceError(
            f"the card has no memory for {what}, nor for smaller pieces of it; end what else "
            "uses the card (nvidia-smi shows it), lower --threads-per-worker or choose "
            "--device cpu, then run the same command again to continue."
        )

    return retried(device, first, last)


def _expander(
    store: Store, job: Job, catalogue: Catalogue, block: int, part: slice, keep: bool
) -> Callable[[int, int], Piece]:
    """A function giving the functions of block `block`, or part of it, on rows [start, stop)."""
    own = _own(store, job, block)
    change = None
    if own is not None and job.tiling.functions > 1:
        change = own[part].on_device(job.device)
    scratch = Scratch()

    def expand(start: int, stop: int) -> Piece:
        scores, valid = _piece(store, job, catalogue, block, start, stop, keep)
        return _expand(scores[part], None if valid is None else valid[part], change, scratch)

    return expand


def _expand(
    scores: Array,
    valid: Array | None,
    change: Own | None,
    scratch: Scratch | None = None,
    dtype: str = "float32",
) -> Piece:
    """Functions of some columns; `change` is their change of basis when K > 1."""
    if change is None:
        return expand_ranks(scores, valid, scratch)
    return expand_whitened(scores, valid, change, dtype, scratch)


# Pieces


def _piece(
    store: Store, job: Job, catalogue: Catalogue, block: int, start: int, stop: int, keep: bool
) -> tuple[Array, Array | None]:
    """Scores and validity of a column block on rows [start, stop), where the job computes."""
    columns = range(*job.tiling.blocks[block])
    if job.device == "cpu":
        return read_piece(store, catalogue, columns, start, stop)
    key = (store, job.folder, block, start, stop)
    piece = kept.pieces.get(key)
    if piece is None:
        scores, valid = read_piece(store, catalogue, columns, start, stop)
        mask = None if valid is None else to_device(valid, job.device)
        piece = (to_device(scores, job.device), mask)
        if keep:
            kept.pieces.put(key, piece, job.kept_bytes)
    return piece


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
    return tile_finish(store, folder, i, j, _tile(store, folder, i, j, 0))


def _similarities(
    store: Store, job: Job, i: int, j: int, moments: Moments
) -> dict[str, NDArray[np.float64]]:
    """Each measure's (b_i, b_j) similarities, NaN where undefined, a unit diagonal."""
    own_i = _own(store, job, i)
    own_j = own_i if i == j else _own(store, job, j)
    count = to_host(moments.count)
    values = {}
    for measure in job.specs:
        value = _contract(job, measure, moments, own_i, own_j)
        if measure.pairwise:
            value = np.where(count < job.min_valid, np.nan, value)
        if i == j:
            diagonal = np.arange(len(value))
            value = (value + value.T) / 2
            value[diagonal, diagonal] = np.where(np.isnan(value[diagonal, diagonal]), np.nan, 1.0)
        values[measure.name] = value
    return values


def _contract(
    job: Job, measure: Measure, moments: Moments, own_i: Own | None, own_j: Own | None
) -> NDArray[np.float64]:
    """One measure of a tile, computed where the job computes; on the host if a card is full."""

    def on(place: Callable[[Moments], Moments]) -> NDArray[np.float64]:
        return to_host(measure.contract(place(moments), own_i, own_j, job.parameters))

    return retried(
        job.device, lambda: on(lambda m: m.on_device(job.device)), lambda: on(Moments.to_host)
    )


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
    scores = scores[:, joint]

    def rho(device: str) -> NDArray[np.float64]:
        ranked = to_device(scores, device)
        return to_host(joint_spearman(ranked[: len(left)], ranked[len(left) :]))

    return retried(job.device, lambda: rho(job.device), lambda: rho("cpu"))[index_i, index_j]


def _settle_pair(store: Store, job: Job, catalogue: Catalogue, i: int, j: int) -> float:
    """The fused similarity of one pair in float64 throughout."""
    own = [_own_of(store, job, column) for column in (i, j)]
    changes = [of_one.on_device(job.device) for of_one in own]
    total: Moments | None = None
    step = job.tiling.chunk_rows * 8
    for start in range(0, catalogue.n_rows, step):
        stop = min(start + step, catalogue.n_rows)
        pieces = []
        for column, change in zip((i, j), changes, strict=True):
            scores, valid = read_piece(store, catalogue, [column], start, stop)
            ranks = to_device(scores, job.device)
            mask = None if valid is None else to_device(valid, job.device)
            pieces.append(_expand(ranks, mask, change, dtype="float64"))
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
