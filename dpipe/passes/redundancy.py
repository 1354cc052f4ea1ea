"""From edges to decisions: what passes 2 and 4 share.

Covers: communities of similar columns, one representative for each dropped column.
Does not cover: how similar columns are (`dpipe.passes.spearman`, `dpipe.passes.nonlinear`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dpipe.choice.redundant import decide_at
from dpipe.engine.context import Context, Prepared
from dpipe.engine.tiles import NEAR
from dpipe.model.events import Note
from dpipe.model.records import Drop, Edges, PassResult
from dpipe.model.registry import Pass, Reason


def keep_representatives(
    context: Context,
    prepared: Prepared,
    this: Pass,
    measure: str,
    columns: Sequence[str],
    edges: Edges,
    threshold: float,
) -> PassResult:
    """Find communities and keep, of each set of similar columns, a representative.

    Parameters
    ----------
    context, prepared
        The run, which is told of columns that stay only because they were asked to, and its
        rank store.
    this, measure
        The pass, and what its similarity is called in the decisions.
    columns
        The columns the pass received, in input order.
    edges
        Settled pairs of them, above and just below the threshold.
    threshold
        Similarity at which a pair is redundant.
    """
    labels, choice = decide_at(
        threshold,
        columns,
        edges,
        seed=context.options.seed,
        library=context.options.leiden,
        priority=context.priority,
        n_missing=[prepared[name].statistics.n_missing for name in columns],
    )
    for first, second, value in choice.redundant_keeps:
        context.emit(
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
            this.number,
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
        this.number,
        this.name,
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
