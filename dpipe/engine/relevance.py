"""How much every column tells of the targets, from the rank store.

Covers: leaving the targets in the store, what may not be a target, the tasks that measure a block
of columns against all targets.
Does not cover: the measures (`dpipe.kernels.relevance`), what follows from relevance
(`dpipe.choice.priority`).

A target is read once and kept like a column of the store: its centred ranks, or the numbers of its
classes, four bytes a row, so that a task reads the rows it works on and no more.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpipe.common.words import columns_phrase, counted, quoted
from dpipe.engine import memory, submit
from dpipe.engine.context import Context, Prepared
from dpipe.engine.tiling import even_blocks
from dpipe.errors import InputError
from dpipe.kernels.copula import BASIS
from dpipe.kernels.marginals import MarginalSums, marginal_sums, untied_sums, whitened
from dpipe.kernels.ranks import rank_column
from dpipe.kernels.relevance import (
    CrossSums,
    Relevance,
    Target,
    cross_sums,
    of_classes,
    of_numbers,
    relevance,
)
from dpipe.kernels.rerank import joint_scores
from dpipe.model.events import Finding
from dpipe.model.records import MILLION, TargetRelevance
from dpipe.rankstore import (
    Catalogue,
    Store,
    build_catalogue,
    bytes_of,
    load_catalogue,
    pattern_of,
    read_piece,
)
from dpipe.table import Table
from dpipe.table.target import read_target

FEWEST_OF_A_CLASS = 10
"""Rows that at least two classes of a target must have."""

_FEWEST_TO_FOLLOW = 20
"""Rows from which on nothing follows a target without error by chance, as in eight it may."""

_TARGETS = "targets.json"
_BLOCK = 64  # columns of a task: few enough that their functions on a chunk stay small
_CHUNK_ROWS = 8192
_CHUNK_CELLS = 2**20  # of a target's functions on a chunk, whatever the number of classes


@dataclass(frozen=True)
class StoredTarget:
    """A target in the store.

    Attributes
    ----------
    name
        Its column.
    file
        The file with its values, float32, NaN where missing.
    n_valid
        Rows with a value.
    n_unique
        Different values, or classes.
    class_rows
        Rows of each class; empty for numbers.
    pattern
        Equal for targets with a value in the same rows, "" for those that have one in every row.
    """

    name: str
    file: str
    n_valid: int
    n_unique: int
    class_rows: tuple[int, ...]
    pattern: str


def store_targets(context: Context, table: Table, record: str, rows: str | None) -> None:
    """Leave every target of a run in the store, and refuse what cannot be one.

    Parameters
    ----------
    context, table
        The run and its open table.
    record, rows
        Names in the store of the table's record and of the rows that take part (None: all).

    Raises
    ------
    InputError
        When a target is empty, constant, an identifier, or has no two classes of some size.
    """
    names, kind = context.options.target, context.options.target_kind
    keys = [json.dumps([record, kind, name]).encode() for name in names]
    todo = [
        (context.store, record, rows, name, kind, _file_of(key))
        for name, key in zip(names, keys, strict=True)
    ]
    stored = dict(
        submit.run_tasks(
            context.session,
            "read-target",
            store_target,
            todo,
            context.emit,
            need=memory.ranking_bytes(context.n_rows, 2, table.row_group),
            describe=lambda index: f"the target {names[index]!r}",
        )
    )
    targets = [stored[index] for index in range(len(names))]
    for target in targets:
        _check(target, context.options.required_rows)
    context.store.write_json(_TARGETS, [asdict(target) for target in targets])


def _file_of(key: bytes) -> str:
    return f"target-{hashlib.sha256(key).hexdigest()[:16]}.f32"


def store_target(
    store: Store, record: str, rows: str | None, name: str, kind: str, file: str
) -> StoredTarget:
    """Task: read one target and leave its ranks or classes in the store."""
    table = Table.from_json(store.read_text(record))
    table = dataclasses.replace(table, storage_options=store.storage_options)
    drawn = None if rows is None else store.read_arrays(rows)["rows"]
    column = read_target(table, name, kind, drawn)
    if column.classes is None:
        ranked = rank_column(column.values)
        values = np.array(ranked.scores, dtype=np.float32)
        if ranked.valid is not None:
            values[~ranked.valid] = math.nan
        n_valid, n_unique = ranked.n_valid, ranked.n_unique
        class_rows: tuple[int, ...] = ()
    else:
        values = column.values.astype(np.float32)
        coded = column.values[~np.isnan(column.values)].astype(np.int64)
        class_rows = tuple(np.bincount(coded, minlength=len(column.classes)).tolist())
        n_valid, n_unique = len(coded), len(class_rows)
    store.write(file, bytes_of(values))
    missing = np.isnan(values)
    pattern = pattern_of(np.packbits(~missing) if missing.any() else None)
    return StoredTarget(name, file, n_valid, n_unique, class_rows, pattern)


def _check(target: StoredTarget, fewest: int) -> None:
    name = quoted(target.name)
    if not target.n_valid:
        raise InputError(f"the target {name} is empty: it has no value in any row.")
    if target.n_unique == 1:
        raise InputError(f"the target {name} is constant: there is nothing to tell of it.")
    if target.n_valid < fewest:
        raise InputError(
            f"the target {name} has a value in {counted(target.n_valid, 'row')} and {fewest} are "
            "needed; lower --min-valid."
        )
    if not target.class_rows:
        return
    if target.n_unique == target.n_valid:
        raise InputError(
            f"the target {name} has another class in every row, as an identifier has; name what is "
            "to be predicted, or give --target-kind numbers if its values are numbers."
        )
    large = sum(rows >= FEWEST_OF_A_CLASS for rows in target.class_rows)
    if large < 2:
        raise InputError(
            f"the target {name} has {counted(large, 'class') if large == 1 else 'no class'} of at "
            f"least {FEWEST_OF_A_CLASS} rows, and two are needed."
        )


def stored_targets(store: Store) -> list[StoredTarget]:
    """The targets of a run, in the order that it names them."""
    return [
        StoredTarget(**(entry | {"class_rows": tuple(entry["class_rows"])}))
        for entry in store.read_json(_TARGETS)
    ]


# Measuring


def measure_relevance(
    context: Context,
    prepared: Prepared,
    names: Sequence[str],
) -> TargetRelevance:
    """How much each of some columns tells of each target.

    Parameters
    ----------
    context, prepared
        The run and its rank store.
    names
        The columns, in the order of the result.
    """
    targets = stored_targets(context.store)
    catalogue, ordered = build_catalogue({name: prepared[name] for name in names}, context.n_rows)
    folder = f"relevance-{catalogue.key}"
    catalogue.save(context.store, f"{folder}/catalogue.npz")
    blocks = even_blocks(0, len(ordered), _BLOCK)
    todo = [
        (context.store, folder, start, stop, context.options.required_rows, context.options.seed)
        for start, stop in blocks
    ]
    measured = dict(
        submit.run_tasks(
            context.session,
            "relevance",
            relevance_of_block,
            todo,
            context.emit,
            need=_task_bytes(targets, context.n_rows),
            describe=lambda index: f"columns {blocks[index][0]} to {blocks[index][1]}",
        )
    )
    context.store.remove(folder)
    place = {name: number for number, name in enumerate(ordered)}
    order = [place[name] for name in names]
    hsic, rdc = (
        np.concatenate([getattr(measured[index], field) for index in range(len(blocks))])[order]
        for field in ("hsic", "rdc")
    )
    return TargetRelevance(tuple(names), tuple(target.name for target in targets), hsic, rdc)


def relevance_of_block(
    store: Store, folder: str, first: int, last: int, least: int, seed: int
) -> Relevance:
    """Task: the measures of columns `first` to `last` of the catalogue with every target."""
    catalogue = load_catalogue(store, f"{folder}/catalogue.npz")
    targets = stored_targets(store)
    columns = np.arange(first, last)
    found = Relevance(*np.full((2, len(columns), len(targets)), math.nan))
    whole = np.array([target.n_valid == catalogue.n_rows for target in targets])
    complete = catalogue.valid_slot[columns] < 0
    if complete.any() and whole.any():
        some = [targets[place] for place in np.flatnonzero(whole)]
        on_all = _on_all_rows(store, catalogue, columns[complete], some, seed)
        _fill(found, np.ix_(complete, whole), on_all)
    for place, target in enumerate(targets):
        rest = np.flatnonzero(~complete) if whole[place] else np.arange(len(columns))
        for group in _alike(catalogue, columns[rest]):
            at = rest[group]
            on_common = _on_common_rows(store, catalogue, columns[at], target, least, seed)
            _fill(found, np.ix_(at, np.array([place])), on_common)
    return found


def _fill(found: Relevance, at: tuple[Any, ...], values: Relevance) -> None:
    found.hsic[at], found.rdc[at] = values.hsic, values.rdc


def _alike(catalogue: Catalogue, columns: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Places of columns that miss the same rows, few enough to hold all their rows at once."""
    most = max(1, _BLOCK * _CHUNK_ROWS // max(1, catalogue.n_rows))
    pattern = catalogue.pattern[columns]
    return [
        places[start : start + most]
        for places in (np.flatnonzero(pattern == one) for one in np.unique(pattern))
        for start in range(0, len(places), most)
    ]


def _on_all_rows(
    store: Store,
    catalogue: Catalogue,
    columns: NDArray[np.int64],
    stored: Sequence[StoredTarget],
    seed: int,
) -> Relevance:
    """The measures of complete columns with targets that are known in every row."""
    known = [_open_target(store, target, catalogue.n_rows) for target in stored]
    step = max(1, min(_CHUNK_ROWS, _CHUNK_CELLS // sum(each.n_functions for each in known)))
    untied = catalogue.untied[columns]
    cross: list[CrossSums] = []
    own: list[MarginalSums] = []
    for start in range(0, catalogue.n_rows, step):
        stop = min(start + step, catalogue.n_rows)
        scores, _ = read_piece(store, catalogue, columns.tolist(), start, stop)
        ranks = scores.astype(np.float64)
        part = tuple(
            dataclasses.replace(each, values=target_values(store, target, start, stop)[0])
            for target, each in zip(stored, known, strict=True)
        )
        cross = [_added(cross, cross_sums(ranks, part, slice(None)))]
        if not untied.all():
            own = [_added(own, marginal_sums(ranks[~untied], BASIS, None))]
    sums = MarginalSums(np.empty(len(untied)), np.empty((len(untied), 2 * BASIS)))
    if untied.any():
        complete = untied_sums(catalogue.n_rows, BASIS)
        sums.count[untied], sums.total[untied] = complete.count, complete.total
    if own:
        sums.count[~untied], sums.total[~untied] = own[0].count, own[0].total
    return relevance(cross[0], whitened(sums), tuple(known), seed)


def _on_common_rows(
    store: Store,
    catalogue: Catalogue,
    columns: NDArray[np.int64],
    stored: StoredTarget,
    least: int,
    seed: int,
) -> Relevance:
    """The measures of columns that miss the same rows, ranked again where the target is known."""
    values, known = target_values(store, stored, 0, catalogue.n_rows)
    scores, valid = read_piece(store, catalogue, columns.tolist(), 0, catalogue.n_rows)
    common = known if valid is None else known & valid[0]
    n_rows = int(np.count_nonzero(common))
    if n_rows < max(least, 1):
        return Relevance(*np.full((2, len(columns), 1), math.nan))
    if stored.class_rows:
        present = np.unique(values[common], return_inverse=True)[1]
        target = of_classes(present.astype(np.int64))
    else:
        there = values[None, common].astype(np.float32)
        target = of_numbers(joint_scores(there, np.array([stored.n_valid]))[0])
    ranks = joint_scores(scores[:, common], catalogue.n_valid[columns])
    step = max(1, min(_CHUNK_ROWS, _CHUNK_CELLS // target.n_functions))
    strips = [slice(start, start + step) for start in range(0, n_rows, step)]
    cross = reduce(
        CrossSums.__iadd__, (cross_sums(ranks[:, rows], (target,), rows) for rows in strips)
    )
    own = reduce(
        MarginalSums.__iadd__, (marginal_sums(ranks[:, rows], BASIS, None) for rows in strips)
    )
    return relevance(cross, whitened(own), (target,), seed)


def _added(total: list[Any], more: Any) -> Any:
    """The sum so far with some more, in place; the first becomes the sum."""
    if not total:
        return more
    total[0] += more
    return total[0]


def _open_target(store: Store, target: StoredTarget, n_rows: int) -> Target:
    """What the measures need to know of a target without a missing value, but for its values."""
    if target.class_rows:
        return Target(np.empty(0), np.array(target.class_rows) / target.n_valid, None)
    parts = []
    for start in range(0, n_rows, _CHUNK_ROWS):
        values, _ = target_values(store, target, start, min(start + _CHUNK_ROWS, n_rows))
        parts.append(marginal_sums(values[None], BASIS, None))
    return Target(np.empty(0), None, whitened(reduce(MarginalSums.__iadd__, parts)))


def target_values(
    store: Store, target: StoredTarget, start: int, stop: int
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """A target on rows `start` to `stop`: centred ranks or numbers of classes, 0 if missing."""
    stored = np.empty(stop - start, dtype=np.float32)
    with store.reader(target.file) as reader:
        reader.fill(stored, start * stored.itemsize)
    valid = ~np.isnan(stored)
    return np.where(valid, stored, 0).astype(np.float64), valid


_ROW_BYTES = 64  # of one column and a target on all rows: scores, ranks, what counts them


def _task_bytes(targets: Sequence[StoredTarget], n_rows: int) -> int:
    """Peak of one task: functions and cross moments of a block of columns, ranks on common rows."""
    functions = sum(max(BASIS, len(target.class_rows)) for target in targets)
    cells = 6 * _BLOCK * _CHUNK_ROWS + 4 * _CHUNK_CELLS + 4 * _BLOCK * BASIS * functions
    return 8 * cells + _ROW_BYTES * max(n_rows, _BLOCK * _CHUNK_ROWS)


def warn_of_leaks(context: Context, measured: TargetRelevance) -> None:
    """Name the columns that follow a target without error: a copy is the commonest leak of all."""
    if context.n_rows < _FEWEST_TO_FOLLOW:
        return
    for place, target in enumerate(measured.targets):
        copies = np.flatnonzero(measured.rdc[:, place] >= 1 - 1 / MILLION)
        if len(copies):
            names = [measured.columns[index] for index in copies]
            follow = "follows" if len(names) == 1 else "follow"
            context.emit(
                Finding(
                    f"{columns_phrase(names)} {follow} the target {quoted(target)} without error "
                    "(RDC 1); leave out by --exclude what was made from the target.",
                    "warning",
                )
            )
