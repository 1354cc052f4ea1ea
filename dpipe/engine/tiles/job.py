"""What the tasks of one tile grid share, and where they find it.

Covers: the job as a record in the store, the catalogue of columns beside it, the columns'
marginal moments, the names of the files that tasks leave.
Does not cover: which tasks there are (`dpipe.engine.tiling`), what they do (the modules beside
this one).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from dpipe.engine.tiling import Tiling
from dpipe.kernels.fusion import Fusion
from dpipe.kernels.marginals import Marginals
from dpipe.rankstore import Catalogue, Store, load_catalogue


@dataclass(frozen=True)
class Job:
    """All that the tasks of one grid share; stored as JSON beside what they leave.

    Attributes
    ----------
    folder
        Prefix of the job's files in the store.
    tiling
        The grid.
    fusion
        The measures, and the mean of them that makes edges.
    parameters
        What the measures read, by name.
    threshold
        Similarity that makes an edge; None to make none.
    margin
        How far below the threshold a pair is still reported, because a float32 measure has to be
        settled there. (Spearman with missing cells has its own bound, `least_by_marginal_ranks`.)
    floor
        A lower similarity from which on every pair is reported as well, for a reader; infinite for
        none.
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
    fusion: Fusion
    parameters: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    threshold: float | None = None
    margin: float = 0.0
    floor: float = math.inf
    exact: bool = False
    min_valid: int = 2
    matrix: bool = True
    device: str = "cpu"
    precision: str = "float32"
    kept_bytes: int = 0

    def save(self, store: Store) -> None:
        """Write the job where its tasks find it."""
        store.write_json(f"{self.folder}/job.json", dataclasses.asdict(self))


@lru_cache(maxsize=4)
def _load_job(store: Store, folder: str) -> Job:
    """Read a job (kept for the next task of the same grid)."""
    content = store.read_json(f"{folder}/job.json")
    tiling = content.pop("tiling")
    for name in ("blocks", "splits"):
        tiling[name] = tuple(tuple(pair) for pair in tiling[name])
    fusion = Fusion(tuple((name, weight) for name, weight in content.pop("fusion")["weights"]))
    return Job(tiling=Tiling(**tiling), fusion=fusion, **content)


def open_job(store: Store, folder: str) -> tuple[Job, Catalogue]:
    """The job of a folder and the catalogue of its columns."""
    return _load_job(store, folder), load_catalogue(store, f"{folder}/catalogue.npz")


def marginals_name(folder: str, block: int) -> str:
    """File of a block's marginal moments."""
    return f"{folder}/marginals-{block:05d}.npz"


def tile_name(folder: str, i: int, j: int) -> str:
    """File of a finished tile."""
    return f"{folder}/tile-{i:05d}-{j:05d}.npz"


def settled_name(folder: str, key: str, start: int, stop: int) -> str:
    """File of the pairs `start` to `stop` of a list, settled."""
    return f"{folder}/settled-{key}-{start}-{stop}.npz"


@lru_cache(maxsize=8)
def _load_marginals(store: Store, folder: str, block: int) -> Marginals:
    """The marginal moments of a block of columns (kept for the next tiles of that block)."""
    return Marginals(**store.read_arrays(marginals_name(folder, block)))


def marginals_of(store: Store, job: Job, block: int) -> Marginals | None:
    """The marginal moments of a block of columns, None where no measure of the job needs them."""
    return _load_marginals(store, job.folder, block) if job.fusion.needs_marginals else None
