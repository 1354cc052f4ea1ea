"""What a task of the tile grid does: read pieces of the rank store, return or leave small arrays.

Covers: marginal moments of a column block, moments of a tile over a row split, turning moments into
similarities and edges, settling single pairs exactly.
Does not cover: which tasks there are (`dpipe.engine.tiling`) and when they run
(`dpipe.engine.submit`).

Every function here is pure but for finished files in the store: it names its input by paths and
integers, may run twice, and on any worker.
"""

from dpipe.engine.tiles.edges import (
    EDGE_ARRAYS,
    NEAR,
    least_by_marginal_ranks,
    tile_finish,
    tile_whole,
)
from dpipe.engine.tiles.job import Job, marginals_name, settled_name, tile_name
from dpipe.engine.tiles.moments import marginals_finish, marginals_partial, merge, moments_partial
from dpipe.engine.tiles.settle import settle

__all__ = [
    "EDGE_ARRAYS",
    "NEAR",
    "Job",
    "least_by_marginal_ranks",
    "marginals_finish",
    "marginals_name",
    "marginals_partial",
    "merge",
    "moments_partial",
    "settle",
    "settled_name",
    "tile_finish",
    "tile_name",
    "tile_whole",
]
