"""How many processes share a verification, and what is said when one of them dies.

Covers: how many there may be within a bound of memory, one that does all in this process.
Does not cover: the processes (`dpipe.common.processes`), the work (`dpipe.verify.columns`,
`pairs`, `dependence`, `screen`, `prediction`, `relevance`).

Results come in the order of the work, whatever the number of processes, and how the work is cut
does not depend on it either: so the words of a verification are always the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from typing import Any, TypeVar

from threadpoolctl import threadpool_limits

from dpipe.common.processes import Processes, cores
from dpipe.common.spawn import GUARD, check_that_processes_can_start, lacks_guard
from dpipe.common.words import counted, sized, typed_size
from dpipe.errors import ResourceError

__all__ = ["Crew", "cores", "crew_for"]

T = TypeVar("T")

BASE = 176 * 2**20
"""Bytes of a process that has imported what it needs, measured as about 130 MiB, and what it holds
whatever the table."""
PIECES = 128 * 2**20
"""Bytes of the pieces of columns that a process works on at a time."""
ROW_BYTES = 80
"""Most bytes a row that ranking a column takes, or a pair of columns with missing cells."""
READ_BYTES = 24
"""Bytes a row of each column that is read at a time."""

_ALONE = "or with one process (workers=1 in Python, --workers 1 on the command line)"
_SMALL_CELLS = 2**24  # takes less time than starting processes


class Crew:
    """Does what it is given, in several processes or, with one, in this one.

    Parameters
    ----------
    workers
        Number of processes.
    room
        Bytes that each may use beyond what it has from the start.
    """

    def __init__(self, workers: int = 1, room: int = 2**30) -> None:
        self.workers = workers
        self.room = room
        self._processes: Processes | None = None
        self._held = ExitStack()

    def __enter__(self) -> Crew:
        """The crew itself; processes start when there is something to do.

        Raises
        ------
        ResourceError
            When this process can start no others.
        """
        if self.workers == 1:
            # Threads of BLAS would wait for each other, busily: nearly all products are small.
            self._held.enter_context(threadpool_limits(1))
        else:
            check_that_processes_can_start(_ALONE)
            self._processes = self._held.enter_context(Processes(self.workers))
        return self

    def __exit__(self, *_: object) -> None:
        """End every process at once; what one was doing is of no use any more."""
        self._processes = None
        self._held.close()

    def each(self, function: Callable[..., T], tasks: Iterable[tuple[Any, ...]]) -> Iterator[T]:
        """``function(*task)`` of every task, in order; few are under way at a time.

        Raises
        ------
        ResourceError
            When a process was killed, or could not start.
        """
        if self._processes is None:
            for task in tasks:
                yield function(*task)
            return
        try:
            yield from self._processes.each(function, tasks)
        except BrokenProcessPool:
            if lacks_guard():
                raise ResourceError(
                    f"the processes of the verification could not be started: {GUARD}."
                ) from None
            raise ResourceError(
                f"one of the {self.workers} processes of the verification was "
                "killed, most often for lack of memory; take fewer --workers or a smaller "
                "--memory-limit, or look at some decisions alone by --sample."
            ) from None


def crew_for(n_rows: int, n_columns: int, workers: int | None, limit: int) -> Crew:
    """As many processes as the cores, the table and `limit` bytes in all have work and room for.

    Raises
    ------
    ResourceError
        When one process does not fit, naming what would do.
    """
    wanted = workers or cores()
    if n_rows * n_columns <= _SMALL_CELLS and workers is None:
        wanted = 1
    matrices = 5 * 8 * n_columns**2  # of pass 3, and sums of blocks of columns
    row_by_row = (ROW_BYTES + READ_BYTES) * n_rows
    least = BASE + matrices + PIECES + row_by_row
    if limit < least:
        raise ResourceError(
            f"verifying {counted(n_rows, 'row')} of {counted(n_columns, 'column')} takes "
            f"{sized(least)}, more than {sized(limit)}; set --memory-limit to at least "
            f"{typed_size(least)}."
        )
    each = BASE + PIECES + row_by_row
    fitting = (limit - BASE - matrices) // each
    number = int(min(wanted, fitting, n_columns))
    if number < 2:
        return Crew(1, limit - least + READ_BYTES * n_rows)
    return Crew(number, (limit - BASE - matrices) // number - each + READ_BYTES * n_rows)
