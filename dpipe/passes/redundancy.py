"""From edges to decisions: what passes 2 and 4 share.

Covers: communities of similar columns, one representative for each dropped column.
Does not cover: how similar columns are (`dpipe.passes.spearman`, `dpipe.passes.nonlinear`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dpipe.choice.communities import find_communities
from dpipe.choice.representatives import choose
from dpipe.engine.context import Prepared
from dpipe.engine.tiles import NEAR
from dpipe.model import Drop, Edges, Emit, Note, PassResult
from dpipe.options import PASS_NAMES, Options
from dpipe.registry import Reason


def keep_representatives(
    number: int,
    measure: str,
    prepared: Prepared,
    columns: Sequence[str],
    edges: Edges,
    threshold: float,
    options: Options,
    emit: Emit,
) -> PassResult:
    """Find communities and keep, of each set of similar columns, a representative.

    Parameters
    ----------
    number, measure
        The pass, and what its similarity is called in the decisions.
    prepared
        The rank store's columns, for their missing cells.
    columns
        The columns the pass received, in input order.
    edges
        Settled pairs of them, above and just below the threshold.
    threshold
        Similarity at which a pair is redundant.
    options
        ``keep``, ``prefer`` and ``seed`` count.
    emit
        Told of columns that stay only because they were asked to.
    """
    strong = edges.at_least(threshold)
    labels = find_communities(
        len(columns), strong, columns, resolution=threshold, seed=options.seed
    )
    missing = [prepared[name].statistics.n_missing for name in columns]
    choice = choose(
        columns,
        strong,
        labels,
        threshold=threshold,
        keep=options.keep,
        prefer=options.prefer,
        n_missing=np.array(missing, dtype=np.int64),
    )
    for first, second, value in choice.redundant_keeps:
        emit(
            Note(
                f"{first!r} and {second!r} were both asked to be kept, though their {measure} "
                f"similarity is {value:.3f}.",
                "warning",
            )
        )
    kept = set(choice.kept.tolist())
    drops = tuple(
        Drop(
            name,
            number,
            Reason.REDUNDANT,
            measure,
            float(choice.value[index]),
            threshold,
            columns[choice.representative[index]],
        )
        for index, name in enumerate(columns)
        if index not in kept
    )
    sizes = np.bincount(labels, minlength=1)
    communities = {
        name: int(label) for name, label in zip(columns, labels, strict=True) if sizes[label] > 1
    }
    return PassResult(
        number,
        PASS_NAMES[number],
        tuple(name for index, name in enumerate(columns) if index in kept),
        drops,
        communities,
        near_threshold(edges, columns, threshold),
    )


_MOST_LISTED = 1000


def near_threshold(
    edges: Edges, columns: Sequence[str], threshold: float
) -> tuple[tuple[str, str, float], ...]:
    """The pairs closest to the threshold, on either side, the closest first."""
    distance = np.abs(np.abs(edges.value) - threshold)
    close = np.flatnonzero(distance <= NEAR)
    order = close[np.lexsort((edges.j[close], edges.i[close], distance[close]))][:_MOST_LISTED]
    return tuple((columns[edges.i[k]], columns[edges.j[k]], float(edges.value[k])) for k in order)
