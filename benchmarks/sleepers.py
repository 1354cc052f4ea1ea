"""The tasks of a run that sleep instead of computing: stand-ins for those of `dpipe.engine.tiles`.

Covers: how long each would take, what it would return, the sum of what was slept.
Does not cover: the cluster they sleep on (`benchmarks.cluster`).

A task takes the arguments of the real one and reads the job from the store as it does. Time is
shortened by a factor, and the arrays that workers hand to one another are made smaller by the same
one, so that moving them stays as cheap or as dear beside the work. What goes by way of the
scheduler or the client keeps its size.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dpipe.engine.tiles.job import open_job
from dpipe.kernels.marginals import MarginalSums
from dpipe.kernels.moments import Moments
from dpipe.rankstore import Store

# One core with AVX-512 (docs/performance.md): seconds to decode and rank a cell and to sum a
# function of it, operations a second of products in float64 (K = 1) and float32, bytes a second
# of sums of arrays.
_RANK, _SUM, _DOUBLES, _FLOATS, _ADD = 50e-9, 1e-9, 70e9, 140e9, 1e9

_lock = threading.Lock()


@dataclass
class _Night:
    """How much shorter the tasks of this process are than in the plan, and what they slept."""

    factor: float = 1.0
    slept: float = 0.0


_night = _Night()


def begin(factor: float) -> None:
    """Let the tasks of this process be a factor shorter from now on, and count them anew."""
    with _lock:
        _night.factor, _night.slept = factor, 0.0


def slept() -> float:
    """Seconds that the tasks of this process have slept since `begin`."""
    return _night.slept


def _sleep(seconds: float) -> None:
    shorter = seconds / _night.factor
    time.sleep(shorter)
    with _lock:
        _night.slept += shorter


def nothing(_: int) -> None:
    """No work at all."""


def rank_columns(n_rows: int, *arguments: Any) -> None:
    """Rank a block of columns; `arguments` are those of `dpipe.passes.prepare.rank_columns`."""
    _sleep(n_rows * len(arguments[3]) * _RANK)


def moments_partial(store: Store, folder: str, i: int, j: int, split: int) -> Moments:
    """Moments of a tile over a row split."""
    job, _ = open_job(store, folder)
    (a, b), (c, d) = job.tiling.blocks[i], job.tiling.blocks[j]
    start, stop = job.tiling.splits[split]
    k = job.tiling.functions
    operations = 2 * (stop - start) * (b - a) * k * (d - c) * k / (2 if i == j else 1)
    _sleep(operations / (_DOUBLES if k == 1 else _FLOATS))
    side = 1 / math.sqrt(_night.factor)
    return _moments(max(1, round((b - a) * side)), max(1, round((d - c) * side)), k)


def _moments(b_i: int, b_j: int, k: int) -> Moments:
    """Those of complete columns."""
    one = (1, 1)
    shapes = ((b_i, k, b_j, k), one, (b_i, k, 1), (b_j, k, 1), *((b_i, 1), (b_j, 1)))
    return Moments(*(np.zeros(shape) for shape in shapes))


def merge(parts: Sequence[Moments]) -> Moments:
    """The sum of moments, which are added for real and then slept over."""
    total = parts[0].copy()
    for part in parts[1:]:
        total += part
    _sleep(total.product.nbytes * _night.factor * len(parts) / _ADD)
    return total


def tile_finish(store: Store, folder: str, i: int, j: int, moments: Moments) -> int:
    """Similarities and edges of a tile."""
    open_job(store, folder)
    _sleep(moments.product.nbytes * _night.factor * 10 / _ADD)
    return 0


def tile_whole(store: Store, folder: str, i: int, j: int) -> int:
    """A tile in one task."""
    return tile_finish(store, folder, i, j, moments_partial(store, folder, i, j, 0))


def marginals_partial(store: Store, folder: str, block: int, split: int) -> MarginalSums:
    """Marginal sums of a column block over a row split."""
    job, _ = open_job(store, folder)
    first, last = job.tiling.blocks[block]
    start, stop = job.tiling.splits[split]
    _sleep((stop - start) * (last - first) * 2 * job.tiling.functions * _SUM)
    return MarginalSums(np.zeros(last - first), np.zeros((last - first, 2 * job.tiling.functions)))


def marginals_finish(store: Store, folder: str, block: int, parts: Sequence[MarginalSums]) -> None:
    """Marginal moments of a block."""
    open_job(store, folder)


TASKS: dict[str, Callable[..., Any]] = {
    task.__name__: task
    for task in (
        *(marginals_partial, marginals_finish, moments_partial, merge, tile_finish, tile_whole),
    )
}
"""What replaces the tasks of the same names in `dpipe.engine.tiles`."""
