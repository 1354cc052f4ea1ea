"""Pass 1: exact statistics and exact ranks of every column; what cannot inform is dropped.

Covers: reading and ranking column blocks on the workers, monotone duplicates.
Does not cover: the ranking itself (`dpipe.kernels.ranks`), the files (`dpipe.rankstore`), the rules
(`dpipe.choice.rules`).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpipe.choice.priority import Priority
from dpipe.choice.rules import first_broken
from dpipe.common.words import counted, listed
from dpipe.device.arrays import retried, to_device, to_host
from dpipe.engine import memory, submit
from dpipe.engine.context import Context, Prepared
from dpipe.engine.machine import Machine
from dpipe.engine.plan import TableShape, plan_ranking
from dpipe.engine.relevance import measure_relevance, store_targets, warn_of_leaks
from dpipe.engine.tiling import ranking_blocks
from dpipe.kernels.ranks import RankedColumn, rank_column
from dpipe.model.events import Finding, Note, PlannedPass
from dpipe.model.records import ColumnStatistics, Drop, PassResult
from dpipe.model.registry import Pass, Reason
from dpipe.options import Options
from dpipe.rankstore import (
    FORMAT,
    Store,
    StoredColumn,
    finished_blocks,
    is_intact,
    pattern_of,
    read_block_columns,
    tell_apart,
    write_block,
)
from dpipe.table import Block, Table, read_block

ROWS_NAME = "rows.npz"


def ranks_key(table: Table, rows: NDArray[np.int64] | None, version: str) -> str:
    """Names the ranks by all that they follow from: input, columns, rows; no option that decides.

    Parameters
    ----------
    table, rows
        As in `prepare`.
    version
        Of dpipe: another one trusts nothing that this one left.
    """
    drawn = "" if rows is None else hashlib.sha256(rows.tobytes()).hexdigest()
    content = [FORMAT, version, table.fingerprint, table.features, table.coerced, drawn]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def prepare(context: Context, table: Table, rows: NDArray[np.int64] | None) -> Prepared:
    """Rank every feature column into the rank store; blocks already there are kept.

    The targets of the run, if any, are left there first, so that one that cannot be is refused
    before the work.

    Parameters
    ----------
    context
        The run.
    table
        The open table, whose features are ranked.
    rows
        Sorted rows that take part, or None for all.
    """
    store, names = context.store, table.features
    record = _write_record(store, table)
    if rows is not None:
        store.write_arrays(ROWS_NAME, {"rows": rows})
    if context.options.target:
        store_targets(context, table, record, None if rows is None else ROWS_NAME)
    blocks = ranking_blocks(
        context.n_rows, len(names), table.row_group, context.machine, len(table.files)
    )
    blocks = _resumable(store, blocks)
    intact = _intact_blocks(context).intersection(range(len(blocks)))
    todo = [
        (store, record, number, names[start:stop], context.session.device)
        for number, (start, stop) in enumerate(blocks)
        if number not in intact
    ]
    if intact:
        context.emit(
            Note(f"{len(intact):,} of {counted(len(blocks), 'column block')} were ranked before.")
        )
    widest = max(stop - start for start, stop in blocks)
    need = memory.ranking_bytes(context.n_rows, widest, table.row_group)

    def describe(index: int) -> str:
        block = todo[index][4]
        return f"{counted(len(block), 'column')} ({block[0]!r} to {block[-1]!r})"

    for _ in submit.run_tasks(
        context.session,
        "rank-columns",
        rank_columns,
        todo,
        context.emit,
        need=need,
        describe=describe,
    ):
        pass
    prepared = {
        column.statistics.name: column
        for number in range(len(blocks))
        for column in read_block_columns(store, number)
    }
    _tell_rounded(context, prepared)
    return _told_apart(context, prepared)


def _tell_rounded(context: Context, prepared: Prepared) -> None:
    """Say which columns could not be read exactly."""
    rounded = [name for name, column in prepared.items() if column.statistics.n_rounded]
    if rounded:
        text = (
            f"{listed(rounded)}: numbers of too many digits were rounded to float64, so that "
            "different ones may count as equal; such a column is never called constant or a "
            "duplicate. Store whole numbers of 64 bits in one type in all files."
        )
        context.emit(Finding(text, "warning"))


_COMPARED = 64  # columns that a task compares, unless more have the same fingerprint


def _told_apart(context: Context, prepared: Prepared) -> Prepared:
    """The columns, with another fingerprint for those that only have the same by chance."""
    same: dict[str, list[StoredColumn]] = defaultdict(list)
    for column in prepared.values():
        if column.statistics.n_unique > 1:
            same[column.statistics.rank_hash].append(column)
    tasks: list[list[StoredColumn]] = []
    for group in same.values():
        if len(group) == 1:
            continue
        if not tasks or len(tasks[-1]) + len(group) > _COMPARED:
            tasks.append([])
        tasks[-1] += group
    if not tasks:
        return prepared
    distinct = dict(prepared)
    for index, fingerprints in submit.run_tasks(
        context.session,
        "compare-columns",
        tell_apart,
        [(context.store, columns, context.n_rows) for columns in tasks],
        context.emit,
        need=memory.ranking_bytes(context.n_rows, 1, 0),
        describe=lambda index: f"{counted(len(tasks[index]), 'column')} of equal fingerprints",
    ):
        for column, fingerprint in zip(tasks[index], fingerprints, strict=True):
            facts = dataclasses.replace(column.statistics, rank_hash=fingerprint)
            distinct[facts.name] = dataclasses.replace(column, statistics=facts)
    return distinct


def _write_record(store: Store, table: Table) -> str:
    """Leave the record of the table for the tasks; its name in the store.

    It is named by its content: a worker keeps the record it has parsed, and the same table may
    be found in another folder by the next run.
    """
    content = table.to_json().encode()
    name = f"table-{hashlib.sha256(content).hexdigest()[:16]}.json"
    if not store.has(name):
        store.remove("table-")
        store.write(name, content)
    return name


def _intact_blocks(context: Context) -> set[int]:
    """The blocks a former run finished and the disk still holds (an object is there whole)."""
    store, n_rows = context.store, context.n_rows
    finished = sorted(finished_blocks(store, n_rows))
    if not finished or not store.local:
        return set(finished)
    checked = submit.run_tasks(
        context.session,
        "check-columns",
        is_intact,
        [(store, number, n_rows) for number in finished],
        context.emit,
        need=memory.ranking_bytes(n_rows, 1, 0),
        describe=lambda index: f"block {finished[index]} of the rank store",
    )
    return {finished[index] for index, intact in checked if intact}


def _resumable(store: Store, blocks: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The blocks a former run cut the columns into, so that its finished ones can be used."""
    layout = "layout.json"
    if store.has(layout):
        return [(int(start), int(stop)) for start, stop in store.read_json(layout)]
    store.write_json(layout, blocks)
    return blocks


def rank_columns(
    store: Store,
    record: str,
    number: int,
    names: Sequence[str],
    device: str,
) -> None:
    """Task: read one column block, rank its columns, write the block."""
    table = dataclasses.replace(_load_table(store, record), storage_options=store.storage_options)
    rows = store.read_arrays(ROWS_NAME)["rows"] if store.has(ROWS_NAME) else None
    block = read_block(table, names, rows)
    statistics: list[ColumnStatistics] = []
    scores: dict[str, NDArray[np.float32]] = {}
    masks: dict[str, NDArray[np.uint8]] = {}
    for position, name in enumerate(names):
        ranked = _rank(*block.column(position), device)
        statistics.append(_statistics(name, position, block, ranked))
        # The ranks take the place of the values, which nobody needs any more.
        scores[name] = block.values[position].view(np.float32)[: ranked.scores.size]
        scores[name][:] = ranked.scores
        if ranked.valid is not None:
            masks[name] = np.packbits(ranked.valid)
    store.write_arrays(_sample_name(number), _sample(scores, masks, block.values.shape[1]))
    order = sorted(names, key=lambda name: name in masks)  # complete columns first
    slots = {name: slot for slot, name in enumerate(order)}
    valid_slots = {name: slot for slot, name in enumerate(masks)}
    columns = [
        StoredColumn(
            statistics=facts,
            block=number,
            slot=slots[facts.name],
            valid_slot=valid_slots.get(facts.name, -1),
            pattern=pattern_of(masks.get(facts.name)),
        )
        for facts in statistics
    ]
    write_block(store, number, columns, [scores[name] for name in order], list(masks.values()))


def _rank(values: NDArray[Any], counted: NDArray[np.bool_] | None, device: str) -> RankedColumn:
    """One column ranked where `device` computes, or on the host if a card is full: host arrays."""

    def on(where: str) -> RankedColumn:
        cells = None if counted is None else to_device(counted, where)
        ranked = rank_column(to_device(values, where), cells)
        valid = None if ranked.valid is None else to_host(ranked.valid)
        return dataclasses.replace(ranked, scores=to_host(ranked.scores), valid=valid)

    return retried(device, lambda: on(device), lambda: on("cpu"))


SAMPLED_ROWS = 200
"""Rows, evenly spread, whose ranks are kept for the scatter of a pair in the report."""


def _sample_name(number: int) -> str:
    return f"sample-{number:05d}.npz"


def _sample(
    scores: Mapping[str, NDArray[np.float32]], masks: Mapping[str, NDArray[np.uint8]], n_rows: int
) -> dict[str, NDArray[Any]]:
    """Ranks of a few rows in a byte each: 0 where missing, else 1 + 254 u, rounded."""
    rows = np.unique(np.linspace(0, n_rows - 1, min(n_rows, SAMPLED_ROWS)).astype(np.int64))
    codes = np.empty((len(scores), len(rows)), dtype=np.uint8)
    for place, (name, column) in enumerate(scores.items()):
        codes[place] = np.rint(1 + 254 * (column[rows] + 0.5)).clip(1, 255)
        if name in masks:
            codes[place, np.unpackbits(masks[name], count=n_rows)[rows] == 0] = 0
    return {"names": np.array(list(scores), dtype=np.str_), "codes": codes}


def rank_sample(store: Store, prepared: Prepared) -> tuple[list[str], NDArray[np.uint8]]:
    """The sampled ranks of every stored column: names (p,) and codes (p, m)."""
    blocks = sorted({column.block for column in prepared.values()})
    parts = [store.read_arrays(_sample_name(number)) for number in blocks]
    names = [str(name) for part in parts for name in part["names"]]
    return names, np.concatenate([part["codes"] for part in parts])


@lru_cache(maxsize=2)
def _load_table(store: Store, record: str) -> Table:
    return Table.from_json(store.read_text(record))


def _statistics(name: str, position: int, block: Block, ranked: RankedColumn) -> ColumnStatistics:
    """The record of one column, from how it was read and how it ranked."""
    unit = 10.0 ** block.scale(position)
    return ColumnStatistics(
        name=name,
        n_rows=block.values.shape[1],
        n_null=int(block.n_null[position]),
        n_nan=int(block.n_nan[position]),
        n_inf=int(block.n_inf[position]),
        n_valid=ranked.n_valid,
        n_unique=ranked.n_unique,
        minimum=ranked.minimum / unit,
        maximum=ranked.maximum / unit,
        mean=ranked.mean / unit,
        variance=ranked.variance / unit / unit,
        normalised_variance=ranked.normalised_variance,
        q025=ranked.q025 / unit,
        q975=ranked.q975 / unit,
        top_share=ranked.top_share,
        rank_hash=ranked.rank_hash,
        first_sign=ranked.first_sign,
        n_rounded=int(block.n_rounded[position]),
    )


def run(this: Pass, context: Context, prepared: Prepared, columns: Sequence[str]) -> PassResult:
    """Decide on the ranked columns; leave their statistics, and some ranks for the report.

    Where the run has targets, measure how much the columns that stay tell of them.
    """
    if context.folder is not None:
        context.folder.write_statistics(column.statistics for column in prepared.values())
        context.folder.write_rank_sample(*rank_sample(context.store, prepared))
    result = decide(this, prepared, columns, context.options, context.priority)
    if not context.options.target or not result.kept:
        return result
    measured = measure_relevance(context, prepared, result.kept)
    warn_of_leaks(context, measured)
    relevance = {
        name: float(value)
        for name, value in zip(measured.columns, measured.values, strict=True)
        if not np.isnan(value)
    }
    return dataclasses.replace(result, relevance=relevance)


def plan(this: Pass, table: TableShape, options: Options, machine: Machine) -> PlannedPass:
    """Every column read and ranked, a block at a time."""
    return plan_ranking(this, table, machine)


def decide(
    this: Pass,
    prepared: Prepared,
    names: Sequence[str],
    options: Options,
    priority: Priority,
) -> PassResult:
    """Drop what the rules reject, then all but one of each set of monotone duplicates.

    Parameters
    ----------
    this
        The pass.
    prepared
        What the rank store holds.
    names
        The feature columns in input order.
    options
        The run's options, for the rules.
    priority
        Columns that no rule drops, and which of a set of duplicates stays.
    """
    known = {name: prepared[name].statistics for name in names}
    drops = {
        name: rule.drop(known[name], this.number, options)
        for name in names
        if name not in priority.asked and (rule := first_broken(known[name], options)) is not None
    }
    same: dict[str, list[str]] = defaultdict(list)
    for name in names:
        if name not in drops and known[name].n_unique > 1 and not known[name].n_rounded:
            same[known[name].rank_hash].append(name)
    for group in same.values():
        if len(group) == 1:
            continue
        first, *others = [group[index] for index in priority.order(group)]
        for name in others:
            if name not in priority.asked:
                alike = known[name].first_sign == known[first].first_sign
                rho = 1.0 if alike else -1.0
                drops[name] = Drop(name, this.number, Reason.DUPLICATE, "spearman", rho, 1.0, first)
    kept = tuple(name for name in names if name not in drops)
    ordered = tuple(drops[name] for name in names if name in drops)
    return PassResult(this.number, this.name, kept, ordered)
