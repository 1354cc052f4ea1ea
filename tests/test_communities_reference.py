"""Communities are as good as those of leidenalg, the reference implementation of Leiden."""

from __future__ import annotations

import igraph
import leidenalg
import numpy as np
import pytest

from dpipe.choice.communities import find_communities
from dpipe.model.records import Edges


def similar_groups(n_groups: int, seed: int) -> tuple[int, Edges]:
    """Overlapping groups of similar columns with some noise, as descriptor tables have them."""
    rng = np.random.default_rng(seed)
    place = np.sort(rng.uniform(0, n_groups, 8 * n_groups))
    distance = np.abs(place[:, None] - place[None, :])
    value = 1 - 0.1 * distance + rng.normal(0, 0.005, distance.shape)
    i, j = np.nonzero(np.triu(value >= 0.9, 1))
    return len(place), Edges.sorted(i, j, np.minimum(value[i, j], 1.0))


@pytest.mark.parametrize("seed", range(3))
def test_quality_is_that_of_the_reference(seed: int) -> None:
    n, edges = similar_groups(30, seed)
    labels = find_communities(n, edges, [f"c{k}" for k in range(n)], resolution=0.9, seed=0)
    graph = igraph.Graph(n, list(zip(edges.i.tolist(), edges.j.tolist(), strict=True)))
    settings = {"weights": np.abs(edges.value).tolist(), "resolution_parameter": 0.9}
    found = leidenalg.CPMVertexPartition(graph, labels.tolist(), **settings)
    references = (
        leidenalg.find_partition(
            graph, leidenalg.CPMVertexPartition, n_iterations=-1, seed=start, **settings
        )
        for start in range(8)
    )
    best = max(partition.quality() for partition in references)
    # One Leiden run may miss the optimum; the best of several rarely does, and never by much.
    assert found.quality() >= 0.98 * best > 0
