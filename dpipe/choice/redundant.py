"""From similar pairs to groups and to what is kept of them: the decision of passes 2 and 4.

Covers: communities and representatives at one threshold, from edges alone.
Does not cover: where the edges come from (`dpipe.passes`, `dpipe.runfolder.thresholds`), what is
said of the columns that go.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dpipe.choice.communities import find_communities
from dpipe.choice.priority import Priority
from dpipe.choice.representatives import Choice, choose
from dpipe.model.records import Edges


def decide_at(
    threshold: float,
    columns: Sequence[str],
    edges: Edges,
    *,
    seed: int,
    library: str,
    priority: Priority,
    n_missing: Sequence[int],
) -> tuple[NDArray[np.int64], Choice]:
    """The communities of the columns, (p,), and which of them are kept.

    Parameters
    ----------
    threshold
        Similarity at which a pair is redundant.
    columns
        The columns the pass received, in input order.
    edges
        Pairs of them; those below the threshold are ignored.
    seed
        Of the search for communities.
    library
        Whose Leiden searches for them.
    priority
        Which of two columns is worth more.
    n_missing
        Missing cells of each column.
    """
    strong = edges.at_least(threshold)
    labels = find_communities(
        len(columns), strong, columns, resolution=threshold, seed=seed, library=library
    )
    missing = np.array(n_missing, dtype=np.int64)
    choice = choose(
        columns, strong, labels, threshold=threshold, priority=priority, n_missing=missing
    )
    return labels, choice
