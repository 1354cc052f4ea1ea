"""The rows in which a target is known, as a rank store of their own within that of the run.

Covers: which targets are known in the same part of the rows, columns ranked anew among these rows,
their Gram matrix there.
Does not cover: targets that are known in every row, for which the ranks of the run serve
(`dpipe.engine.responses`).

Columns are ranked anew, and not only centred, so that rows of which nobody knows the target have no
say in what columns tell of it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from dpipe.engine import memory, submit
from dpipe.engine.context import Context, Prepared
from dpipe.engine.gram import Gram, gram_of
from dpipe.engine.relevance import StoredTarget, stored_targets, target_values
from dpipe.engine.responses import bare_statistics, leave_responses
from dpipe.engine.tiling import ranking_blocks
from dpipe.kernels.ranks import rank_column
from dpipe.model.registry import Pass
from dpipe.rankstore import (
    Store,
    StoredColumn,
    build_catalogue,
    finished_blocks,
    is_intact,
    load_catalogue,
    pattern_of,
    read_block_columns,
    read_piece,
    write_block,
)

_FOLDERS = "known-"
_CATALOGUE = "source.npz"  # of the columns as the store of the run has them


def partly_known(context: Context) -> list[list[StoredTarget]]:
    """The targets that are known in a part of the rows, those of the same rows together."""
    groups: dict[str, list[StoredTarget]] = defaultdict(list)
    for target in stored_targets(context.store) if context.options.target else ():
        if target.pattern:
            groups[target.pattern].append(target)
    return list(groups.values())


def grams_of_known(
    this: Pass, context: Context, prepared: Prepared, names: Sequence[str]
) -> Iterator[Gram]:
    """The Gram matrix of columns for each part of the rows that targets are known in.

    Ranks lie on the disk for one part at a time; tiles stay until `remove_known`, so that a run
    that is continued repeats none of them.
    """
    for targets in partly_known(context) if names else ():
        there, ranked = _ranked_there(context, prepared, names, targets[0])
        responses = leave_responses(context, there.store, targets, ranked)
        gram = gram_of(this, there, ranked, names, responses)
        there.store.remove("block-")
        yield gram.among(names)


def remove_known(context: Context) -> None:
    """Remove what `grams_of_known` left, in this run and in former ones."""
    context.store.remove(_FOLDERS)


def _ranked_there(
    context: Context, prepared: Prepared, names: Sequence[str], target: StoredTarget
) -> tuple[Context, Prepared]:
    """The run as if it had the rows of a target alone, and columns as they rank there."""
    source = {name: prepared[name] for name in names}
    catalogue, ordered = build_catalogue(source, context.n_rows)
    blocks = ranking_blocks(context.n_rows, len(ordered), 0, context.machine)
    key = json.dumps([target.pattern, ordered, catalogue.key, blocks]).encode()
    folder = f"{_FOLDERS}{hashlib.sha256(key).hexdigest()[:16]}"
    store = Store(
        f"{context.store.root}/{folder}",
        context.store.storage_options,
        durable=context.store.durable,
    )
    catalogue.save(store, _CATALOGUE)
    finished = finished_blocks(store, target.n_valid)
    todo = [
        (context.store, store, target, number, start, stop, number in finished)
        for number, (start, stop) in enumerate(blocks)
    ]
    widest = max(stop - start for start, stop in blocks)
    for _ in submit.run_tasks(
        context.session,
        "rank-known",
        rank_known,
        todo,
        context.emit,
        need=memory.ranking_bytes(context.n_rows, widest, 0),
        describe=lambda index: f"columns {blocks[index][0]} to {blocks[index][1]}",
    ):
        pass
    there = dataclasses.replace(context, store=store, n_rows=target.n_valid, nonlinear_rows=None)
    stored = [
        column for number in range(len(blocks)) for column in read_block_columns(store, number)
    ]
    ranked = dict(zip(ordered, stored, strict=True))
    return there, {name: ranked[name] for name in names}


def rank_known(
    source: Store,
    store: Store,
    target: StoredTarget,
    number: int,
    start: int,
    stop: int,
    finished: bool,
) -> None:
    """Task: rank columns `start` to `stop` anew among the rows of a target, as a block.

    `source` has target and columns, on all rows; a block that a former run `finished` stays.
    """
    n_rows = target.n_valid
    if finished and is_intact(store, number, n_rows):
        return
    catalogue = load_catalogue(store, _CATALOGUE)
    known = target_values(source, target, 0, catalogue.n_rows)[1]
    scores, valid = read_piece(source, catalogue, range(start, stop), 0, catalogue.n_rows)
    columns: list[StoredColumn] = []
    ranks: list[NDArray[np.float32]] = []
    masks: list[NDArray[np.uint8]] = []
    for slot, old in enumerate(scores):
        ranked = rank_column(old[known], None if valid is None else valid[slot][known])
        mask = None if ranked.valid is None else np.packbits(ranked.valid)
        columns.append(
            StoredColumn(
                bare_statistics(str(start + slot), n_rows, ranked.n_valid, ranked.n_unique),
                block=number,
                slot=slot,
                valid_slot=-1 if mask is None else len(masks),
                pattern=pattern_of(mask),
            )
        )
        ranks.append(np.asarray(ranked.scores, dtype=np.float32))
        masks += [] if mask is None else [mask]
    write_block(store, number, columns, ranks, masks)
