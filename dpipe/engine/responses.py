"""The targets as columns of the rank store, so that one grid of tiles measures them like any other.

Covers: one column for a target of numbers, one for each class; what each weighs in the variance of
its target.
Does not cover: relevance (`dpipe.engine.relevance`), the grid (`dpipe.engine.gram`).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
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
    """The responses of a run whose columns are chosen for its targets, left in the store.

    The normal scores of an indicator are a straight line of it. Of a target with C classes the
    indicators' variances add up to a share (1 - p_c) / (C - 1) for the class of the share p_c.
    """
    if context.options.max_columns is None or not context.options.target:
        return Responses()
    targets = stored_targets(context.store)
    first = 1 + max(column.block for column in prepared.values())
    weights = [_weights(target) for target in targets]
    starts = np.cumsum([first, *(len(each) for each in weights)]).tolist()
    blocks = list(range(first, starts[-1]))
    names = [name for target in targets for name in _names(target)]
    if not _are_there(context.store, dict(zip(blocks, names, strict=True))):
        todo = [
            (context.store, target, start, context.n_rows)
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
        name: read_block_columns(context.store, block)[0]
        for name, block in zip(names, blocks, strict=True)
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


def store_responses(store: Store, target: StoredTarget, first: int, n_rows: int) -> None:
    """Task: leave the responses of a target in the store, a block each from number `first` on."""
    values, valid = target_values(store, target, 0, n_rows)
    for place, name in enumerate(_names(target)):
        own = values == place if target.class_rows else values
        ranked = rank_column(np.where(valid, own, math.nan))
        mask = None if ranked.valid is None else np.packbits(ranked.valid)
        column = StoredColumn(
            statistics=_statistics(name, n_rows, ranked.n_valid, ranked.n_unique),
            block=first + place,
            slot=0,
            valid_slot=-1 if mask is None else 0,
            pattern="" if mask is None else hashlib.sha256(mask.tobytes()).hexdigest()[:32],
        )
        scores = np.asarray(ranked.scores, dtype=np.float32)
        write_block(store, first + place, [column], [scores], [] if mask is None else [mask])


def _statistics(name: str, n_rows: int, n_valid: int, n_unique: int) -> ColumnStatistics:
    """The counts of a response; nobody asks for the rest."""
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
