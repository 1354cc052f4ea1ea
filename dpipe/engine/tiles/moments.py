"""Moments of columns and of tiles: the tasks that read the rank store.

Covers: marginal moments of a column block, moments of a tile over a row split, pieces of the store
where the job computes, smaller pieces on a card that is full, adding moments.
Does not cover: what moments become (`dpipe.engine.tiles.edges`).
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from functools import reduce
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from dpipe.common.words import counted
from dpipe.device import cache
from dpipe.device.arrays import (
    Array,
    Pace,
    free_device_memory,
    out_of_device_memory,
    retried,
    set_precision,
    staged,
    to_device,
)
from dpipe.engine.tiles.job import Job, marginals_name, marginals_of, open_job
from dpipe.errors import ResourceError
from dpipe.kernels.bound import leading
from dpipe.kernels.copula import BASIS, PAIR_BASIS
from dpipe.kernels.marginals import Marginals, MarginalSums, marginal_sums, untied_sums, whitened
from dpipe.kernels.measure import Scale
from dpipe.kernels.moments import (
    Moments,
    Piece,
    Scratch,
    expand_normal,
    expand_ranks,
    expand_whitened,
    in_quarters,
    tile_moments,
)
from dpipe.kernels.normal import normal_moments, normal_sums, untied_normal_sums
from dpipe.rankstore import Catalogue, Store, read_piece

_READERS = 8  # threads that read for a card, which would wait for one
_LONG_READ = 2**16  # rows; shorter reads leave threads nothing but the interpreter's lock
_SUMMED_ROWS = 2048  # a few columns of them stay in a core's cache through all functions


def marginals_partial(store: Store, folder: str, block: int, split: int) -> MarginalSums | None:
    """Marginal sums of one column block over one row split (host arrays).

    Only of its columns with ties or missing cells; None without any.
    """
    job, catalogue = open_job(store, folder)
    tied = ~_untied(job, catalogue, block)
    if not tied.any():
        return None
    part = slice(None) if tied.all() else to_device(np.flatnonzero(tied), job.device)

    def sums(strip_rows: int, keep: bool = True) -> MarginalSums:
        total: MarginalSums | None = None
        pace = Pace(job.device)
        for start, stop in _chunks(job, split):
            scores, valid = _piece(store, job, catalogue, block, start, stop, keep)
            for row in range(0, stop - start, strip_rows):
                strip = slice(row, row + strip_rows)
                mask = None if valid is None else valid[part, strip]
                more = sums_of(job, scores[part, strip].astype("float64"), mask)
                total = more if total is None else total.__iadd__(more)
            pace.step()
        assert total is not None, "a split has at least one chunk"
        return total.to_host()

    first, last = job.tiling.blocks[block]
    strip = _SUMMED_ROWS if job.device == "cpu" else job.tiling.chunk_rows
    what = counted(last - first, "column")
    return _on_card(lambda: sums(strip), lambda: sums(_SUMMED_ROWS, keep=False), what, job.device)


def marginals_finish(
    store: Store, folder: str, block: int, parts: Sequence[MarginalSums | None]
) -> None:
    """Leave a block's marginal moments for the tiles."""
    job, catalogue = open_job(store, folder)
    untied = _untied(job, catalogue, block)
    measured = [part for part in parts if part is not None]
    total = reduce(MarginalSums.__iadd__, measured) if measured else None
    known = _untied_sums(job, catalogue.n_rows) if untied.any() else None
    sums = _put_together(untied, known, total)
    needed = catalogue.functions[slice(*job.tiling.blocks[block])]
    store.write_arrays(marginals_name(folder, block), of_block(job, sums, needed).arrays())


def of_block(job: Job, sums: MarginalSums, needed: NDArray[np.int64]) -> Marginals:
    """The change of basis that the job's measures ask for."""
    if _is_normal(job):
        return normal_moments(sums)
    if job.fusion.scale is Scale.LEADING:
        # Of all directions that a pair is measured in, not of those alone that are multiplied.
        return leading(whitened(sums, spanned=PAIR_BASIS), int(needed.max()))
    return whitened(sums, needed, job.tiling.functions)


def _is_normal(job: Job) -> bool:
    return job.fusion.scale is Scale.NORMAL


def sums_of(job: Job, scores: Array, valid: Array | None) -> MarginalSums:
    """Marginal sums of some columns on some rows, as the job's measures need them."""
    if _is_normal(job):
        return normal_sums(scores, valid)
    return marginal_sums(scores, _known(job), valid, job.fusion.needs_distances)


def _untied_sums(job: Job, n_rows: int) -> MarginalSums:
    if _is_normal(job):
        return untied_normal_sums(n_rows)
    return untied_sums(n_rows, _known(job), job.fusion.needs_distances)


def _known(job: Job) -> int:
    """Functions whose marginal moments are known: more than are multiplied cost little."""
    return max(BASIS, job.tiling.functions)


def _put_together(
    untied: NDArray[np.bool_], known: MarginalSums | None, measured: MarginalSums | None
) -> MarginalSums:
    """Sums of a block, from those of its columns without ties and those of the others, in order."""

    def joined(name: str) -> NDArray[np.float64] | None:
        first, others = (getattr(part, name, None) for part in (known, measured))
        like = first if first is not None else others
        if like is None:
            return None
        array = np.empty((len(untied), *like.shape[1:]))
        if first is not None:
            array[untied] = first
        if others is not None:
            array[~untied] = others
        return array

    return MarginalSums(joined("count"), joined("total"), joined("bins"))


def _untied(job: Job, catalogue: Catalogue, block: int) -> NDArray[np.bool_]:
    """Which columns of a block have marginal sums that need no look at their ranks."""
    return catalogue.untied[slice(*job.tiling.blocks[block])]


def moments_partial(store: Store, folder: str, i: int, j: int, split: int) -> Moments:
    """Moments of tile (i, j) over one row split (host arrays, float64)."""
    return tile(store, folder, i, j, split).to_host()


def tile(store: Store, folder: str, i: int, j: int, split: int) -> Moments:
    """Moments of tile (i, j) over one row split, in float64 where the job computes.

    A device without room for the tile gets it in quarters, which are put together on the host.
    """
    job, catalogue = open_job(store, folder)
    set_precision(job.device, job.precision)
    whole = (slice(None), slice(None) if i != j else None)

    def accumulate(sides: tuple[slice, slice | None], parts: int) -> Moments:
        keep = parts == 1  # a card that is full has no room for what is not needed now
        expand_i = _expander(store, job, catalogue, i, sides[0], keep)
        expand_j = None
        if sides[1] is not None:
            expand_j = _expander(store, job, catalogue, j, sides[1], keep)
        total: Moments | None = None
        scratch, pace = Scratch(), Pace(job.device)
        for start, stop in _chunks(job, split, parts):
            right = None if expand_j is None else expand_j(start, stop)
            moments = tile_moments(expand_i(start, stop), right, scratch)
            if total is None:
                total = moments.total()
            else:
                total += moments
            pace.step()
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

    what = f"a tile of {counted(job.tiling.widest, 'column')}"
    return _on_card(lambda: accumulate(whole, 1), smaller, what, job.device)


def _chunks(job: Job, split: int, parts: int = 1) -> list[tuple[int, int]]:
    """The rows of a split as its task works through them; `parts` makes them that much shorter."""
    start, stop = job.tiling.splits[split]
    step = max(1, job.tiling.chunk_rows // parts)
    return [(row, min(row + step, stop)) for row in range(start, stop, step)]


def _has_masks(job: Job, catalogue: Catalogue, block: int) -> bool:
    return bool(np.any(catalogue.valid_slot[slice(*job.tiling.blocks[block])] >= 0))


def _halves(size: int) -> tuple[slice, slice]:
    return slice(0, (size + 1) // 2), slice((size + 1) // 2, size)


_T = TypeVar("_T")


def _on_card(first: Callable[[], _T], smaller: Callable[[], _T], what: str, device: str) -> _T:
    """`first`, or `smaller` on a card that is full; says what to do when that fails as well."""

    def last() -> _T:
        cache.CACHE.clear()
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
    marginals = marginals_of(store, job, block)
    change = None
    if marginals is not None and job.tiling.functions > 1:
        change = marginals[part].on_device(job.device)
    scratch = Scratch()

    def expand(start: int, stop: int) -> Piece:
        scores, valid = _piece(store, job, catalogue, block, start, stop, keep)
        mask = None if valid is None else valid[part]
        if _is_normal(job):
            return expand_normal(scores[part], mask, scratch)
        return functions_of(scores[part], mask, change, scratch)

    return expand


def functions_of(
    scores: Array,
    valid: Array | None,
    change: Marginals | None,
    scratch: Scratch | None = None,
    dtype: str = "float32",
) -> Piece:
    """Functions of some columns; `change` is their change of basis when K > 1."""
    if change is None:
        return expand_ranks(scores, valid, scratch)
    return expand_whitened(scores, valid, change, dtype, scratch)


def _piece(
    store: Store, job: Job, catalogue: Catalogue, block: int, start: int, stop: int, keep: bool
) -> tuple[Array, Array | None]:
    """Scores and validity of a column block on rows [start, stop), where the job computes."""
    columns = range(*job.tiling.blocks[block])
    if job.device == "cpu":
        return read_piece(store, catalogue, columns, start, stop)
    key = (store, job.folder, block, start, stop)
    piece = cache.CACHE.get(key)
    if piece is None:
        readers = _READERS if stop - start >= _LONG_READ else 1
        scores, valid = read_piece(
            store, catalogue, columns, start, stop, empty=staged, readers=readers
        )
        mask = None if valid is None else to_device(valid, job.device)
        piece = (to_device(scores, job.device), mask)
        if keep:
            cache.CACHE.put(key, piece, job.kept_bytes)
    return piece


def merge(parts: Sequence[Moments]) -> Moments:
    """The sum of moments over disjoint rows; an inner node of the tree-sum."""
    return reduce(Moments.__iadd__, parts[1:], parts[0].copy())
