"""What a run will do, known before anything runs: tiles, tasks, bytes and projected peak memory.

Covers: pure arithmetic from the table's shape, the options and the workers.
Does not cover: running it (`dpipe.engine.submit`), or measuring it (the ledger).
See also: `dpipe.engine.memory`, the bytes of single tasks.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from dpipe.common.words import counted, sized, typed_size
from dpipe.engine import memory
from dpipe.errors import ResourceError
from dpipe.model.events import PlannedPass
from dpipe.model.registry import Pass, usual_passes

FAN_IN = 4
"""Partial moments added by one task of the tree-sum."""

_TASKS_PER_THREAD = 4  # enough to even out tasks of unequal length
_MOST_RANKED = 2**25  # cells of a ranking task; each task parses every footer, so not too few

# Seconds, as measured on one core: what a ranking task takes for every file, whatever it reads of
# it, and for each column of its footer; for a column of a file; for a cell.
_PER_FILE, _PER_ENTRY, _PER_CHUNK, _PER_CELL = 5e-4, 5e-6, 15e-6, 25e-9
_OPENING_SHARE = 0.1  # of a task's time, which opening files may take before tasks get wider
_LONG_CHUNK = 16384  # longer ones are halved before a tile is made narrower


@dataclass(frozen=True)
class Limits:
    """What bounds a tile and its chunks where memory would allow more.

    Ranks alone (K = 1) are float64 and cheap to read; K functions are expanded for every tile.

    Attributes
    ----------
    columns, device_columns
        Most columns of a block, on the CPU and on a card.
    functions, device_functions
        Most functions of a block's columns together. On a card more: the wider a tile, the less
        expanding beside the products.
    fewest_columns
        Width below which no tile is made for the sake of balance or memory.
    rank_rows, rows
        Rows of a chunk for K = 1 and for more. Splits are no shorter: adding partial moments
        would tell in the time.
    device_rank_rows, device_rows
        The same on a card, which for K = 1 waits for the disk: long reads.
    fewest_rows
        Rows below which no chunk is cut.
    """

    columns: int = 2048
    functions: int = 4150
    device_columns: int = 4096
    device_functions: int = 12288
    fewest_columns: int = 48
    rank_rows: int = 4096
    rows: int = 8192
    device_rank_rows: int = 65536
    device_rows: int = 8192
    fewest_rows: int = 1024

    def widest(self, functions: int, on_card: bool) -> int:
        """Columns of the widest block for K functions.

        Examples
        --------
        >>> Limits().widest(1, False), Limits().widest(12, False), Limits().widest(12, True)
        (2048, 345, 1024)
        """
        if on_card:
            return min(self.device_columns, max(1, self.device_functions // functions))
        return min(self.columns, max(1, self.functions // functions))

    def chunk(self, functions: int, on_card: bool) -> int:
        """Rows of a chunk for K functions."""
        if on_card:
            return self.device_rank_rows if functions == 1 else self.device_rows
        return self.rank_rows if functions == 1 else self.rows


LIMITS = Limits()
"""Those of every run; tests of small tables have smaller ones."""


@dataclass(frozen=True)
class Machine:
    """The workers a plan is made for.

    Attributes
    ----------
    workers
        Their number.
    threads
        Threads of each.
    memory
        Bytes each may use.
    device
        Bytes each can have of its card, None where tasks compute on the CPU.
    limits
        What bounds a tile beside memory.
    most_memory
        Most bytes that --memory-limit can give each: 0 where it has no say, None where nothing
        bounds it.
    """

    workers: int
    threads: int
    memory: int
    device: int | None = None
    limits: Limits = LIMITS
    most_memory: int | None = None

    @property
    def slots(self) -> int:
        """Tasks that run at the same time."""
        return self.workers * self.threads

    @property
    def task_budget(self) -> int:
        """Bytes one task may use."""
        return int((self.memory * memory.USABLE_SHARE - memory.WORKER_BASE) / self.threads)

    @property
    def device_budget(self) -> int:
        """Bytes one task may use on its card."""
        return int((self.device or 0) * memory.DEVICE_SHARE / self.threads)

    @property
    def kept_bytes(self) -> int:
        """Bytes of the rank store that a worker may keep on its card."""
        return int((self.device or 0) * memory.KEPT_SHARE)


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


@dataclass(frozen=True)
class TableShape:
    """The size of a table, as far as a plan needs it.

    Attributes
    ----------
    n_rows
        Rows that take part.
    n_columns
        Feature columns.
    row_group
        Rows of the largest row group.
    files
        Their number.
    """

    n_rows: int
    n_columns: int
    row_group: int
    files: int = 1


@dataclass(frozen=True)
class Plan:
    """A run: its passes on the workers of a machine.

    Attributes
    ----------
    n_rows
        Rows that take part.
    n_columns
        Feature columns.
    machine
        The workers it is made for.
    passes
        What each pass does at most.
    scratch_bytes
        Size of the rank store.
    client_bytes
        The largest thing the client may hold.
    """

    n_rows: int
    n_columns: int
    machine: Machine
    passes: tuple[PlannedPass, ...]
    scratch_bytes: int
    client_bytes: int


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
        _refuse("prepare", fixed + per_column, machine, "one column")
    if machine.device is not None and (
        (need := memory.device_ranking_bytes(n_rows)) > machine.device_budget
    ):
        _refuse_card("prepare", need, machine, "one column")
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
    wanted = 1 if alone else _TASKS_PER_THREAD * machine.slots
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
            _refuse("moments", need, machine, f"a tile of {width} columns")
        else:
            _refuse_card("moments", device_need, machine, f"a tile of {width} columns")


def _refuse_card(stage: str, need: int, machine: Machine, what: str) -> None:
    fewer = "take fewer --threads-per-worker, " if machine.threads > 1 else ""
    raise ResourceError(
        f"{stage}: {what} needs {sized(need)} on the card but a task there has "
        f"{sized(machine.device_budget)}; end what else uses the card (nvidia-smi shows it), "
        f"{fewer}choose --device cpu, or a draw with --sample-rows."
    )


class TaskTooLarge(ResourceError):
    """A task does not fit its worker; ``limit`` is the memory of a worker that it would fit."""

    def __init__(self, sentence: str, limit: int) -> None:
        super().__init__(sentence)
        self.limit = limit


def _refuse(stage: str, need: int, machine: Machine, what: str) -> None:
    limit = math.ceil((need * machine.threads + memory.WORKER_BASE) / memory.USABLE_SHARE)
    fewer = "fewer --threads-per-worker, " if machine.threads > 1 else ""
    if machine.most_memory is not None and limit > machine.most_memory:
        cure = f"it takes workers of {typed_size(limit)}, {fewer}or a draw with --sample-rows"
    else:
        cure = f"set --memory-limit to at least {typed_size(limit)}, or take {fewer}"
        cure += "fewer --workers on this machine or a draw with --sample-rows"
    raise TaskTooLarge(
        f"{stage}: {what} needs {sized(need)} but a task of these workers has "
        f"{sized(max(machine.task_budget, 0))}; {cure}.",
        limit,
    )


def check_disk(plan: Plan, free: int, folder: str) -> None:
    """Refuse a run whose rank store would not fit `free` bytes of disk.

    Raises
    ------
    ResourceError
        Naming both sizes and the option that moves the store.
    """
    if plan.scratch_bytes > free:
        raise ResourceError(
            f"the rank store needs {sized(plan.scratch_bytes)} but {folder} has {sized(free)} "
            "free; choose another --scratch-dir or --sample-rows."
        )


def check_client(of: Pass, n_columns: int, free: int) -> None:
    """Refuse a pass when its matrices of `n_columns` columns would not fit `free` bytes.

    Raises
    ------
    ResourceError
        Naming both sizes and the options that make it fit.
    """
    need = memory.prediction_bytes(n_columns)
    if need > free:
        others = ",".join(str(number) for number in usual_passes() if number != of.number)
        leave = f", or leave it out by --passes {others}" if of.asked_by is None else ""
        raise ResourceError(
            f"{of.name}: the matrices of {n_columns} columns need {sized(need)} on the client, "
            f"which has {sized(free)} free; lower --spearman-threshold so that fewer columns "
            f"reach pass {of.number}{leave}. What is finished is kept."
        )


def rank_store_bytes(n_rows: int, n_columns: int) -> int:
    """Size of the rank store: a rank in float32 for each cell, and a bit for its validity."""
    return n_columns * (n_rows * 4 + -(-n_rows // 8))


def plan_ranking(of: Pass, table: TableShape, machine: Machine) -> PlannedPass:
    """A pass that ranks every column.

    Raises
    ------
    ResourceError
        When not even one column fits a task.
    """
    n_rows, n_columns = table.n_rows, table.n_columns
    blocks = ranking_blocks(n_rows, n_columns, table.row_group, machine, table.files)
    widest = _width(blocks)
    return PlannedPass(
        number=of.number,
        name=of.name,
        columns=n_columns,
        tasks=len(blocks),
        worker_bytes=memory.WORKER_BASE
        + machine.threads * memory.ranking_bytes(n_rows, widest, table.row_group),
        bytes_read=n_rows * n_columns * 8,
        operations=n_rows * n_columns * math.log2(max(n_rows, 2)),
        shape=f"{counted(len(blocks), 'block')} of {widest} columns",
    )


def plan_grid(
    of: Pass,
    table: TableShape,
    machine: Machine,
    *,
    functions: int,
    n_rows: int | None = None,
    client_bytes: int = 0,
) -> PlannedPass:
    """A pass that computes one grid of tiles of all pairs of columns.

    Parameters
    ----------
    of
        The pass.
    table, machine
        The table it works on and the workers that do.
    functions
        Functions of a column.
    n_rows
        Rows it looks at; all when None.
    client_bytes
        The largest thing the client holds for it.

    Raises
    ------
    ResourceError
        When the smallest tile does not fit a task.
    """
    n_rows = table.n_rows if n_rows is None else min(n_rows, table.n_rows)
    tiling = tile_grid(n_rows, [functions] * table.n_columns, [], functions, machine)
    return PlannedPass(
        number=of.number,
        name=of.name,
        columns=table.n_columns,
        tasks=tiling.n_tasks,
        worker_bytes=memory.WORKER_BASE + machine.threads * tiling.task_bytes,
        bytes_read=n_rows * table.n_columns * 4 * (len(tiling.blocks) + 1),
        operations=float(n_rows) * (table.n_columns * functions) ** 2,
        shape=_shape(tiling),
        client_bytes=client_bytes,
    )


def _shape(tiling: Tiling) -> str:
    tiles = f"{counted(len(tiling.tiles), 'tile')} of {tiling.widest} columns"
    splits = len(tiling.splits)
    return tiles if splits == 1 else f"{tiles} x {splits} row splits"


def _width(blocks: Iterable[tuple[int, int]]) -> int:
    return max((stop - start for start, stop in blocks), default=0)
