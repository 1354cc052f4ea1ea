"""Processes that share work and end with whoever started them.

Covers: handing out work and taking its results in order, Ctrl-C, the end of this process.
Does not cover: what they do and how many there may be (`dpipe.verify.crew`,
`dpipe.runfolder.thresholds`), Dask's workers (`dpipe.session`).
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing.context import ForkServerContext, SpawnContext
from multiprocessing.process import BaseProcess
from typing import Any, Self, TypeVar

from dpipe.common.environment import (
    interrupts_blocked,
    interrupts_put_off,
    worker_environment,
)
from dpipe.common.spared import spare_imports

T = TypeVar("T")


class Processes:
    """Some processes, which start when there is something to do and end when the block does.

    Parameters
    ----------
    number
        How many.
    forked
        Whether from the server of this process (see `serves`), rather than from nothing.
    """

    def __init__(self, number: int, *, forked: bool = False) -> None:
        self._number = number
        self._context = _Forking() if forked else _Spawning()
        self._begin = _begin_forked if forked else _end_with_parent

    def __enter__(self) -> Self:
        """The processes, none of which has started."""
        self._pool = ProcessPoolExecutor(
            self._number, mp_context=self._context, initializer=self._begin
        )
        return self

    def __exit__(self, *_: object) -> None:
        """End every process at once; what one was doing is of no use any more."""
        for process in self._context.started:
            process.kill()
        self._pool.shutdown(cancel_futures=True)

    def each(self, function: Callable[..., T], tasks: Iterable[tuple[Any, ...]]) -> Iterator[T]:
        """``function(*task)`` of every task, in order; few are under way at a time.

        Raises
        ------
        BrokenProcessPool
            When a process was killed, or could not start.
        """
        waiting: deque[Future[T]] = deque()
        for task in tasks:
            if len(waiting) >= 2 * self._number:
                yield waiting.popleft().result()
            with _inherited():
                waiting.append(self._pool.submit(function, *task))
        while waiting:
            yield waiting.popleft().result()


_serves = False


def say_that_it_serves() -> None:
    """Say that this process has a server, of which processes of dpipe can be forked."""
    global _serves
    _serves = True


def serves() -> bool:
    """Whether this process has such a server (`dpipe.session.forkserver`)."""
    return _serves


def cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class _Remembering:
    """What makes a context of multiprocessing remember the processes that it starts."""

    def __init__(self) -> None:
        self.started: list[BaseProcess] = []

    def Process(self, *args: Any, **kwargs: Any) -> BaseProcess:
        """A process that is about to start."""
        process: BaseProcess = super().Process(*args, **kwargs)  # type: ignore[misc]
        self.started.append(process)
        return process


class _Spawning(_Remembering, SpawnContext):  # type: ignore[misc]
    pass


class _Forking(_Remembering, ForkServerContext):  # type: ignore[misc]
    pass


@contextlib.contextmanager
def _inherited() -> Iterator[None]:
    """What processes that start inside inherit: one thread each, and no ear for Ctrl-C.

    None is left half started, which could not be ended.
    """
    with interrupts_put_off(), _environment(worker_environment()), interrupts_blocked():
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


def _begin_forked() -> None:
    spare_imports()  # nobody but dpipe runs in the process that has a server
    _end_with_parent()


def _end_with_parent() -> None:
    """Have this process end when the one that started it is gone, however that died."""
    threading.Thread(target=_wait_for_the_end_of_the_parent, daemon=True).start()


def _wait_for_the_end_of_the_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
