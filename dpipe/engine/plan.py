"""What a run will do, known before anything runs: tiles, tasks, bytes and projected peak memory.

Covers: pure arithmetic from the table's shape, the options and the workers.
Does not cover: running it (`dpipe.engine.submit`), or measuring it (the ledger).
See also: `dpipe.engine.memory`, the bytes of single tasks.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from dataclasses import dataclass

from dpipe.common.words import counted, sized
from dpipe.engine import memory
from dpipe.engine.machine import Machine
from dpipe.engine.tiling import Tiling, ranking_blocks, tile_grid
from dpipe.errors import ResourceError
from dpipe.model.events import PlannedPass
from dpipe.model.registry import Pass, usual_passes


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


def check_client(of: Pass, n_columns: int, free: int, also: int = 0) -> None:
    """Refuse a pass when its matrices of `n_columns` columns would not fit `free` bytes.

    `also` are more matrices than the usual ones (see `dpipe.engine.memory.prediction_bytes`).

    Raises
    ------
    ResourceError
        Naming both sizes and the options that make it fit.
    """
    need = memory.prediction_bytes(n_columns, also)
    if need > free:
        others = ",".join(str(number) for number in usual_passes() if number != of.number)
        leave = f", or leave it out by --passes {others}" if of.asked_by is None else ""
        raise ResourceError(
            f"{of.name}: the matrices of {counted(n_columns, 'column')} need {sized(need)} on the "
            f"client, which has {sized(free)} free; lower --spearman-threshold so that fewer "
            f"columns reach pass {of.number}{leave}. What is finished is kept."
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
        shape=f"{counted(len(blocks), 'block')} of {counted(widest, 'column')}",
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


def with_grids_of_some_rows(
    of: Pass, planned: PlannedPass, table: TableShape, machine: Machine, grids: int
) -> PlannedPass:
    """The plan of a grid, and of so many more for which its columns are ranked anew.

    Each of those is of some of the rows, so it takes no more than the first.
    """
    if not grids:
        return planned
    stored = dataclasses.replace(table, row_group=0, files=1)
    ranking = plan_ranking(of, stored, machine)
    return dataclasses.replace(
        planned,
        tasks=planned.tasks + grids * (ranking.tasks + planned.tasks),
        worker_bytes=max(planned.worker_bytes, ranking.worker_bytes),
        bytes_read=planned.bytes_read + grids * (ranking.bytes_read + planned.bytes_read),
        operations=planned.operations + grids * (ranking.operations + planned.operations),
    )


def _shape(tiling: Tiling) -> str:
    tiles = f"{counted(len(tiling.tiles), 'tile')} of {counted(tiling.widest, 'column')}"
    splits = len(tiling.splits)
    return tiles if splits == 1 else f"{tiles} x {splits} row splits"


def _width(blocks: Iterable[tuple[int, int]]) -> int:
    return max((stop - start for start, stop in blocks), default=0)
