"""How the work of a pass is cut: blocks of columns, splits of rows, tiles.

Covers: pure arithmetic from the table's shape and the workers.
Does not cover: what a tile is (`dpipe.engine.tiles`), the bytes of a task (`dpipe.engine.memory`).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from dpipe.common.words import counted
from dpipe.engine import memory
from dpipe.engine.machine import Machine, refuse, refuse_card

FAN_IN = 4
"""Partial moments added by one task of the tree-sum."""
# Enough to even out tasks of unequal length. Each tile evaluates its columns' functions again.
_TASKS_PER_THREAD, _TILES_PER_THREAD = 4, 3
_MOST_RANKED = 2**25  # cells of a ranking task; each task parses every footer, so not too few
# Seconds, as measured on one core: what a ranking task takes for every file, whatever it reads of
# it, and for each column of its footer; for a column of a file; for a cell.
_PER_FILE, _PER_ENTRY, _PER_CHUNK, _PER_CELL = 5e-4, 5e-6, 15e-6, 25e-9
_OPENING_SHARE = 0.1  # of a task's time, which opening files may take before tasks get wider
_LONG_CHUNK = 16384  # longer ones are halved before a tile is made narrower


@dataclass(frozen=True)
class Tiling:
    """One tile grid: column blocks x column blocks (the upper triangle) x row splits.

    Attributes
    ----------
    functions
        K, the functions that every column is expanded in.
    blocks
        Each block as (start, stop) of columns.
    splits
        Each split as (start, stop) of rows.
    chunk_rows
        Rows that a task holds at a time.
    """

    functions: int
    blocks: tuple[tuple[int, int], ...]
    splits: tuple[tuple[int, int], ...]
    chunk_rows: int

    @property
    def tiles(self) -> tuple[tuple[int, int], ...]:
        """Every (I, J) with I <= J, enumerated here and nowhere else.

        Those on the diagonal, half the work of the others, come last: they even out the end.
        """
        n = len(self.blocks)
        apart = tuple((i, j) for i in range(n) for j in range(i + 1, n))
        return apart + tuple((i, i) for i in range(n))

    @property
    def widest(self) -> int:
        """Columns of the widest block."""
        return max(stop - start for start, stop in self.blocks)

    @property
    def n_tasks(self) -> int:
        """Tasks of the grid: a moments task per tile and split, and the tree-sum's."""
        merges = 0
        width = len(self.splits)
        while width > 1:
            width = math.ceil(width / FAN_IN)
            merges += width
        finish = 1 if len(self.splits) > 1 else 0
        return len(self.tiles) * (len(self.splits) + merges + finish)

    @property
    def task_bytes(self) -> int:
        """Peak bytes of its hungriest task."""
        compute = memory.tile_bytes(self.widest, self.functions, self.chunk_rows)
        if len(self.splits) == 1:
            return compute
        return max(compute, memory.merge_bytes(self.widest, self.functions, FAN_IN))


def even_blocks(start: int, stop: int, widest: int) -> list[tuple[int, int]]:
    """Cut [start, stop) into as few parts of nearly equal size as `widest` allows.

    Examples
    --------
    >>> even_blocks(0, 10, 4)
    [(0, 3), (3, 6), (6, 10)]
    """
    size = stop - start
    if size <= 0:
        return []
    return _cut(start, stop, math.ceil(size / max(1, widest)))


def _cut(start: int, stop: int, parts: int) -> list[tuple[int, int]]:
    """Cut [start, stop) into so many parts of nearly equal size."""
    cuts = [start + (stop - start) * part // parts for part in range(parts + 1)]
    return list(itertools.pairwise(cuts))


def ranking_blocks(
    n_rows: int, n_columns: int, row_group: int, machine: Machine, files: int = 1
) -> list[tuple[int, int]]:
    """Column blocks of pass 1: as wide as memory allows and balance leaves useful.

    A task opens every file. Where there are so many that this would tell, tasks are fewer and
    wider, down to one for each thread. Where a thread has several, all have the same number.

    Raises
    ------
    ResourceError
        When not even one column fits a task.
    """
    fixed = memory.ranking_bytes(n_rows, 0, 0)
    per_column = memory.ranking_bytes(n_rows, 1, row_group) - fixed
    widest = (machine.task_budget - fixed) // per_column
    if widest < 1:
        refuse("prepare", fixed + per_column, machine, "one column")
    if machine.device is not None and (
        (need := memory.device_ranking_bytes(n_rows)) > machine.device_budget
    ):
        refuse_card("prepare", need, machine, "one column")
    opening = files * (_PER_FILE + n_columns * _PER_ENTRY)
    working = n_columns * (files * _PER_CHUNK + n_rows * _PER_CELL) / machine.slots
    wanted = min(_TASKS_PER_THREAD, max(1, int(_OPENING_SHARE * working / opening)))
    balanced = math.ceil(n_columns / (wanted * machine.slots))
    most = _MOST_RANKED if wanted == _TASKS_PER_THREAD else 2 * _MOST_RANKED
    enough = max(1, most // max(1, n_rows))
    blocks = even_blocks(0, n_columns, min(widest, max(8, balanced), max(16, enough)))
    if machine.slots < len(blocks) < n_columns:
        rounds = math.ceil(len(blocks) / machine.slots)
        return _cut(0, n_columns, min(rounds * machine.slots, n_columns))
    return blocks


def tile_grid(
    n_rows: int,
    complete: Sequence[int],
    incomplete: Sequence[int],
    functions: int,
    machine: Machine,
) -> Tiling:
    """The grid of one pass: few wide tiles split over rows for a tall table, many for a wide one.

    No block mixes complete and incomplete columns, so only tiles with an incomplete block pay for
    masked products. Nor does it mix columns of few functions with those of many, where there are
    enough for a block of their own.

    Parameters
    ----------
    n_rows
        Rows that the pass looks at.
    complete, incomplete
        Functions that each column needs, the fewest first.
    functions
        K, the most that one can need.
    machine
        The workers.

    Raises
    ------
    ResourceError
        When the smallest tile does not fit a task.
    """
    limits = machine.limits
    widest, chunk = _largest_tile(n_rows, functions, machine)
    # One task at a time needs no balance, and on a card every partial result crosses the bus.
    alone = machine.device is not None and machine.slots == 1
    wanted = 1 if alone else _TILES_PER_THREAD * machine.slots
    splits_possible = math.ceil(n_rows / min(chunk, limits.chunk(functions, on_card=False)))

    needed = [*complete, *incomplete]
    groups = [
        *_groups(complete, 0, limits.fewest_columns),
        *_groups(incomplete, len(complete), limits.fewest_columns),
    ]

    def blocks(width: int) -> list[tuple[int, int]]:
        return [block for group in groups for block in even_blocks(*group, width)]

    def full_blocks(cut: list[tuple[int, int]]) -> int:
        return _full_blocks([(stop - start) * needed[stop - 1] for start, stop in cut])

    width = min(widest, max([stop - start for start, stop in groups], default=1))
    while (
        width > limits.fewest_columns
        and _triangle(full_blocks(blocks(width))) * splits_possible < wanted
    ):
        width = max(limits.fewest_columns, width // 2)
    cut = blocks(width)
    split = _even_splits(full_blocks(cut), splits_possible, wanted, machine.slots)
    rows_per_split = max(1, math.ceil(n_rows / split))
    chunk = math.ceil(rows_per_split / math.ceil(rows_per_split / chunk))  # all of one length
    splits = tuple(
        (start, min(start + rows_per_split, n_rows))
        for start in range(0, max(n_rows, 1), rows_per_split)
    )
    return Tiling(functions, tuple(cut), splits, chunk)


def _groups(needed: Sequence[int], first: int, fewest: int) -> list[tuple[int, int]]:
    """Columns that need about as many functions, as (start, stop), `fewest` to a group or more.

    Examples
    --------
    >>> _groups([1, 1, 1, 2, 3, 9, 9], 0, 2)
    [(0, 3), (3, 5), (5, 7)]
    """
    found, start = [], 0
    for stop in range(1, len(needed) + 1):
        last = stop == len(needed)
        if last or (needed[stop] > needed[stop - 1] and stop - start >= fewest):
            found.append((first + start, first + stop))
            start = stop
    return found


def _full_blocks(sizes: Sequence[int]) -> int:
    """How many blocks of the largest size make up all.

    Examples
    --------
    >>> _full_blocks([100, 100, 99]), _full_blocks([100, 10, 10])
    (3, 2)
    """
    return math.ceil(sum(sizes) / max(sizes, default=1))


def _even_splits(blocks: int, possible: int, wanted: int, slots: int) -> int:
    """Row splits of a grid: enough of them, and up to twice as many where tasks then end together.

    A tile on the diagonal is half the work of another, and comes last.
    """
    apart = blocks * (blocks - 1) // 2

    def idle(splits: int) -> float:
        """The share of the threads' time that nobody uses, at best."""
        halves = splits * (2 * apart + blocks)
        longest = max(2 * math.ceil(splits * apart / slots), math.ceil(halves / slots))
        return 1 - halves / (slots * longest)

    enough = max(1, math.ceil(wanted / max(1, _triangle(blocks))))
    if not blocks or enough >= possible:
        return max(1, min(enough, possible))
    return min(range(enough, min(2 * enough, possible) + 1), key=idle)


def _triangle(blocks: int) -> int:
    return blocks * (blocks + 1) // 2


def _largest_tile(n_rows: int, functions: int, machine: Machine) -> tuple[int, int]:
    """Widest block, and rows of a chunk, whose task fits the budget."""
    limits, on_card = machine.limits, machine.device is not None
    chunk = min(limits.chunk(functions, on_card), max(n_rows, 1))
    width = limits.widest(functions, on_card)
    while True:
        need = max(
            memory.tile_bytes(width, functions, chunk),
            memory.merge_bytes(width, functions, FAN_IN),
        )
        device_need = memory.device_tile_bytes(width, functions, chunk) if on_card else 0
        if need <= machine.task_budget and device_need <= machine.device_budget:
            return width, chunk
        if chunk > _LONG_CHUNK:
            chunk = max(_LONG_CHUNK, chunk // 2)
        elif width > limits.fewest_columns:
            width = max(limits.fewest_columns, int(width * 0.8))
        elif chunk > limits.fewest_rows:
            chunk = max(limits.fewest_rows, chunk // 2)
        elif need > machine.task_budget:
            refuse("moments", need, machine, f"a tile of {counted(width, 'column')}")
        else:
            refuse_card("moments", device_need, machine, f"a tile of {counted(width, 'column')}")
