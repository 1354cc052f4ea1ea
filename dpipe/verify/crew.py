"""Processes that share the work of a verification.

Covers: how many there may be within a bound of memory, handing out work, Ctrl-C, their death and
that of this process.
Does not cover: the work (`dpipe.verify.columns`, `pairs`, `dependence`, `screen`, `prediction`,
`relevance`).

Results come in the order of the work, whatever the number of processes, and how the work is cut
does not depend on it either: so the words of a verification are always the same.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.context import SpawnContext, SpawnProcess
from typing import Any, TypeVar

from threadpoolctl import threadpool_limits

from dpipe.common.environment import interrupts_blocked, worker_environment
from dpipe.common.spawn import GUARD, check_that_processes_can_start, lacks_guard
from dpipe.common.words import counted, sized, typed_size
from dpipe.errors import ResourceError

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
        self._context = _Recording()
        self._pool: ProcessPoolExecutor | None = None
        self._limits: threadpool_limits | None = None

    def __enter__(self) -> Crew:
        """The crew itself; processes start when there is something to do.

        Raises
        ------
        ResourceError
            When this process can start no others.
        """
        if self.workers == 1:
            # Threads of BLAS would wait for each other, busily: nearly all products are small.
            self._limits = threadpool_limits(1)
        else:
            check_that_processes_can_start(_ALONE)
            self._pool = ProcessPoolExecutor(
                self.workers, mp_context=self._context, initializer=_end_with_parent
            )
        return self

    def __exit__(self, *_: object) -> None:
        """End every process at once; what one was doing is of no use any more."""
        if self._pool is not None:
            for process in self._context.started:
                process.kill()
            self._pool.shutdown(cancel_futures=True)
            self._pool = None
        if self._limits is not None:
            self._limits.restore_original_limits()
            self._limits = None

    def each(self, function: Callable[..., T], tasks: Iterable[tuple[Any, ...]]) -> Iterator[T]:
        """``function(*task)`` of every task, in order; few are under way at a time.

        Raises
        ------
        ResourceError
            When a process was killed, or could not start.
        """
        if self._pool is None:
            for task in tasks:
                yield function(*task)
            return
        waiting: deque[Future[T]] = deque()
        try:
            for task in tasks:
                if len(waiting) >= 2 * self.workers:
                    yield waiting.popleft().result()
                with _inherited():
                    waiting.append(self._pool.submit(function, *task))
            while waiting:
                yield waiting.popleft().result()
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


def cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class _Recording(SpawnContext):
    """Starts processes and remembers them."""

    def __init__(self) -> None:
        self.started: list[SpawnProcess] = []

    def Process(self, *args: Any, **kwargs: Any) -> SpawnProcess:  # type: ignore[override]
        """A process that is about to start."""
        process = SpawnProcess(*args, **kwargs)
        self.started.append(process)
        return process


@contextlib.contextmanager
def _inherited() -> Iterator[None]:
    """What processes that start inside inherit: one thread each, and no ear for Ctrl-C."""
    with _environment(worker_environment()), interrupts_blocked():
        yield


@contextlib.contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _end_with_parent() -> None:
    """Have this process end when the one that started it is gone, however that died."""
    threading.Thread(target=_wait_for_the_end_of_the_parent, daemon=True).start()


def _wait_for_the_end_of_the_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


__all__ = ["Crew", "cores", "crew_for"]
