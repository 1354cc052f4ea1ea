"""The targets as columns of the rank store, so that one grid of tiles measures them like any other.

Covers: one column for a target of numbers, one for each class; what each weighs in the variance of
its target.
Does not cover: relevance (`dpipe.engine.relevance`), the grid (`dpipe.engine.gram`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dpipe.engine import memory, submit
from dpipe.engine.context import Context, Prepared
from dpipe.engine.relevance import StoredTarget, stored_targets, target_values
from dpipe.kernels.ranks import rank_column
from dpipe.model.records import ColumnStatistics
from dpipe.rankstore import Store, StoredColumn, read_block_columns, write_block


@dataclass(frozen=True)
class Responses:
    """What is to be predicted, as columns of the rank store.

    Attributes
    ----------
    columns
        Each response by a name that no column of a table has.
    weights
        The square roots of their shares of the variance of their target; the variance of every
        target is 1.
    targets
        How many targets they are of.
    """

    columns: Mapping[str, StoredColumn] = field(default_factory=dict)
    weights: tuple[float, ...] = ()
    targets: int = 0


def responses_of(context: Context, prepared: Prepared) -> Responses:
    """The responses of a run whose columns are chosen for its targets, left in its store.

    Of the targets that are known in every row; the others have no say on rows where nobody knows
    them (`dpipe.engine.known`).
    """
    if context.options.max_columns is None or not context.options.target:
        return Responses()
    targets = [target for target in stored_targets(context.store) if not target.pattern]
    return leave_responses(context, context.store, targets, prepared)


def leave_responses(
    context: Context, store: Store, targets: Sequence[StoredTarget], prepared: Prepared
) -> Responses:
    """The responses of some targets, left in a store of the rows where all of them are known.

    Parameters
    ----------
    context
        The run, in whose store the targets are.
    store
        Where the responses go.
    targets
        They are known in the same rows.
    prepared
        The columns of that store, whose blocks come first.

    Notes
    -----
    The normal scores of an indicator are a straight line of it. Of a target with C classes the
    indicators' variances add up to a share (1 - p_c) / (C - 1) for the class of the share p_c.
    """
    first = 1 + max(column.block for column in prepared.values())
    weights = [_weights(target) for target in targets]
    starts = np.cumsum([first, *(len(each) for each in weights)]).tolist()
    blocks = list(range(first, starts[-1]))
    names = [name for target in targets for name in _names(target)]
    if not _are_there(store, dict(zip(blocks, names, strict=True))):
        todo = [
            (context.store, store, target, start, context.n_rows)
            for target, start in zip(targets, starts, strict=False)
        ]
        for _ in submit.run_tasks(
            context.session,
            "store-responses",
            store_responses,
            todo,
            context.emit,
            need=memory.ranking_bytes(context.n_rows, 3, 0),
            describe=lambda index: f"the target {targets[index].name!r}",
        ):
            pass
    columns = {
        name: read_block_columns(store, block)[0] for name, block in zip(names, blocks, strict=True)
    }
    return Responses(columns, tuple(w for each in weights for w in each), len(targets))


def _weights(target: StoredTarget) -> list[float]:
    others = len(target.class_rows) - 1
    shares = [rows / target.n_valid for rows in target.class_rows]
    return [math.sqrt((1 - share) / others) for share in shares] or [1.0]


def _names(target: StoredTarget) -> list[str]:
    return [f"{target.file}:{number}" for number in range(max(1, len(target.class_rows)))]


def _are_there(store: Store, wanted: Mapping[int, str]) -> bool:
    """Whether every block holds the response that it should; another target may have been there."""
    return all(
        store.has(f"block-{block:05d}.json")
        and read_block_columns(store, block)[0].statistics.name == name
        for block, name in wanted.items()
    )


def store_responses(
    source: Store, store: Store, target: StoredTarget, first: int, n_rows: int
) -> None:
    """Task: leave the responses of a target in a store of the rows where it is known.

    Each gets a block, from number `first` on; `source` has the target, on `n_rows` rows.
    """
    values, known = target_values(source, target, 0, n_rows)
    values = values[known]
    for place, name in enumerate(_names(target)):
        ranked = rank_column(values == place if target.class_rows else values)
        facts = bare_statistics(name, ranked.n_valid, ranked.n_valid, ranked.n_unique)
        column = StoredColumn(facts, block=first + place, slot=0, valid_slot=-1, pattern="")
        scores = np.asarray(ranked.scores, dtype=np.float32)
        write_block(store, first + place, [column], [scores], [])


def bare_statistics(name: str, n_rows: int, n_valid: int, n_unique: int) -> ColumnStatistics:
    """The counts of a column of which nobody asks for the rest."""
    unknown: dict[str, Any] = dict.fromkeys(
        ("minimum", "maximum", "mean", "variance", "normalised_variance", "q025", "q975"), math.nan
    )
    return ColumnStatistics(
        name=name,
        n_rows=n_rows,
        n_valid=n_valid,
        n_null=n_rows - n_valid,
        n_nan=0,
        n_inf=0,
        n_unique=n_unique,
        top_share=math.nan,
        rank_hash="",
        **unknown,
    )
