"""The workers as the planner sees them, and what it says when a task does not fit one.

Covers: the sizes a plan keeps to, the memory of a task, refusals with what to set.
Does not cover: finding out about workers (`dpipe.session`), what a task needs
(`dpipe.engine.memory`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from dpipe.common.words import sized, typed_size
from dpipe.engine import memory
from dpipe.errors import ResourceError


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


class TaskTooLarge(ResourceError):
    """A task does not fit its worker; ``limit`` is the memory of a worker that it would fit."""

    def __init__(self, sentence: str, limit: int) -> None:
        super().__init__(sentence)
        self.limit = limit


def refuse(stage: str, need: int, machine: Machine, what: str) -> None:
    """Say that a task does not fit a worker, and what to set."""
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


def refuse_card(stage: str, need: int, machine: Machine, what: str) -> None:
    """Say that a task does not fit the card of a worker, and what to set."""
    fewer = "take fewer --threads-per-worker, " if machine.threads > 1 else ""
    raise ResourceError(
        f"{stage}: {what} needs {sized(need)} on the card but a task there has "
        f"{sized(machine.device_budget)}; end what else uses the card (nvidia-smi shows it), "
        f"{fewer}choose --device cpu, or a draw with --sample-rows."
    )
