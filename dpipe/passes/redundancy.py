"""From similarities to decisions: what passes 2 and 4 share.

Covers: communities of similar columns, one representative for each dropped column, columns that
come to those a pass has kept.
Does not cover: how similar columns are (`dpipe.passes.spearman`, `dpipe.passes.nonlinear`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from dpipe.choice.redundant import decide_at
from dpipe.engine.context import Context, Prepared
from dpipe.engine.grid import measured_pairs
from dpipe.engine.measures import fusion_of
from dpipe.engine.screen import similar_pairs
from dpipe.engine.tiles import NEAR
from dpipe.model.events import Finding
from dpipe.model.records import MILLION, Drop, Edges, PassResult
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
            Finding(
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


def drop_similar(
    this: Pass,
    context: Context,
    prepared: Prepared,
    columns: Sequence[str],
    kept: Sequence[str],
) -> dict[str, Drop]:
    """Those of some columns that are as similar to one that stays as a pass asks, as its drops.

    They are looked at from the one most worth keeping on; one that stays counts for the others.

    Parameters
    ----------
    this, context, prepared
        The pass and the run.
    columns, kept
        The columns, and what stays in any case.
    """
    if this.threshold is None or not this.drops_similar:
        return {}
    threshold: float = getattr(context.options, this.threshold)
    fusion = fusion_of(this, context.options)
    missing = np.array([prepared[name].statistics.n_missing for name in columns], dtype=np.int64)
    order = [columns[index] for index in context.priority.order(columns, missing)]
    place = {name: at for at, name in enumerate(order)}  # whatever stays comes before them
    title = f"{this.name}-again"
    found = similar_pairs(
        context, prepared, [*kept, *columns], title, fusion, threshold, of=columns
    )
    pairs = [sorted(pair, key=lambda name: place.get(name, -1)) for *pair, _ in found]
    values = measured_pairs(
        context,
        prepared,
        [(first, second) for first, second in pairs],
        f"{title}-values",
        fusion,
        rows=context.rows_of(fusion),
        min_valid=context.options.required_rows,
    )
    similar: dict[str, list[tuple[int, str, float]]] = defaultdict(list)
    for (other, name), value in zip(pairs, values.tolist(), strict=True):
        similar[name].append((-round(abs(value) * MILLION), other, value))
    drops: dict[str, Drop] = {}
    for name in order:
        stays = [found for found in similar[name] if found[1] not in drops]
        if stays:
            _, other, value = min(stays)
            reason = Reason.REDUNDANT
            drops[name] = Drop(name, this.number, reason, fusion.name, value, threshold, other)
    return drops


_MOST_LISTED = 1000


def near_threshold(
    edges: Edges, columns: Sequence[str], threshold: float
) -> tuple[tuple[str, str, float], ...]:
    """The pairs closest to the threshold, on either side, the closest first."""
    distance = np.abs(np.abs(edges.value) - threshold)
    close = np.flatnonzero(distance <= NEAR)
    order = close[np.lexsort((edges.j[close], edges.i[close], distance[close]))][:_MOST_LISTED]
    return tuple((columns[edges.i[k]], columns[edges.j[k]], float(edges.value[k])) for k in order)
