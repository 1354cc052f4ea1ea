"""Running tasks on a session: bounded submission, tree-sums, one tile grid at a time.

Covers: submitting independent tasks and whole grids, yielding what they return as it comes,
emitting progress, turning a lost cluster into one clear sentence.
Does not cover: what a task computes (`dpipe.tiles`, `dpipe.passes`), the life of the cluster
(`dpipe.session`).

Only a few tasks per thread are in flight at any time: a worker then never holds the input of
tasks it cannot start, and the scheduler's memory does not grow with the grid. Results are small;
large ones are left in the rank store by the task that made them.
"""

# Most of distributed's public methods carry no annotations.
# mypy: allow-untyped-calls

from __future__ import annotations

import math
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass
from typing import Any

from distributed import Future, as_completed
from distributed.scheduler import KilledWorker

from dpipe import tiles
from dpipe.errors import ResourceError
from dpipe.model import Emit, StageStarted, TaskDone
from dpipe.plan import FAN_IN, gib
from dpipe.rankstore import Store
from dpipe.session import Session

_IN_FLIGHT = 3  # tasks a thread has submitted at any time: one runs, two wait


@dataclass(frozen=True)
class _Unit:
    """Tasks that end in one result: the futures to count as progress, the last one included."""

    index: int
    counted: tuple[Future[Any], ...]
    last: Future[Any]


def run_tasks(
    session: Session,
    name: str,
    function: Callable[..., Any],
    arguments: Sequence[tuple[Any, ...]],
    emit: Emit,
    *,
    need: int,
) -> Iterator[tuple[int, Any]]:
    """Run `function` once per entry of `arguments` and yield (position, result) as they finish.

    Parameters
    ----------
    session
        Where to run.
    name
        What the tasks are called in the task stream and the progress, as in ``rank-columns``.
    function
        Pure, module-level; receives one tuple's entries.
    arguments
        Paths and numbers, never arrays.
    emit
        Observer of progress.
    need
        Bytes one task is projected to use, for the message when it kills its worker.

    Raises
    ------
    ResourceError
        When the cluster is lost or a task keeps killing workers.
    """

    def submit(index: int) -> _Unit:
        future = _submit(session, name, function, *arguments[index])
        return _Unit(index, (future,), future)

    emit(StageStarted(name, len(arguments)))
    yield from _run(session, name, len(arguments), submit, 1, emit, need)


def run_grid(session: Session, job: tiles.Job, store: Store, name: str, emit: Emit) -> None:
    """Compute every tile of a job that the store does not hold yet.

    The tiles are left in the store (see `dpipe.tiles.tile_finish`).

    Raises
    ------
    ResourceError
        When the cluster is lost or a task keeps killing workers.
    """
    finished = store.names(job.folder)
    if job.needs_own:
        _run_own(session, job, store, finished, name, emit)
    todo = [(i, j) for i, j in job.tiling.tiles if _base(tiles.tile_name("", i, j)) not in finished]
    splits = len(job.tiling.splits)
    emit(StageStarted(f"moments-{name}", len(todo) * splits))

    def submit(index: int) -> _Unit:
        i, j = todo[index]
        if splits == 1:
            whole = _submit(session, f"moments-{name}", tiles.tile_whole, store, job.folder, i, j)
            return _Unit(index, (whole,), whole)
        partials = [
            _submit(session, f"moments-{name}", tiles.moments_partial, store, job.folder, i, j, s)
            for s in range(splits)
        ]
        total = _tree_sum(session, name, partials)
        last = _submit(
            session, f"contract-{name}", tiles.tile_finish, store, job.folder, i, j, total
        )
        return _Unit(index, tuple(partials), last)

    for _ in _run(
        session, f"moments-{name}", len(todo), submit, splits, emit, job.tiling.task_bytes
    ):
        pass


def _run_own(
    session: Session, job: tiles.Job, store: Store, finished: set[str], name: str, emit: Emit
) -> None:
    """Own moments of every column block that has none yet."""
    blocks = [
        block
        for block in range(len(job.tiling.blocks))
        if _base(tiles.own_name("", block)) not in finished
    ]
    splits = len(job.tiling.splits)
    emit(StageStarted(f"own-{name}", len(blocks) * splits))

    def submit(index: int) -> _Unit:
        block = blocks[index]
        partials = [
            _submit(session, f"own-{name}", tiles.own_partial, store, job.folder, block, s)
            for s in range(splits)
        ]
        last = _submit(
            session, f"whiten-{name}", tiles.own_finish, store, job.folder, block, partials
        )
        return _Unit(index, tuple(partials), last)

    for _ in _run(session, f"own-{name}", len(blocks), submit, splits, emit, job.tiling.task_bytes):
        pass


def _base(path: str) -> str:
    return path.rsplit("/", 1)[-1]


def _tree_sum(session: Session, name: str, partials: list[Future[Any]]) -> Future[Any]:
    """Sum moments on the workers, a few at a time, so that none ever holds many."""
    while len(partials) > 1:
        partials = [
            _submit(session, f"add-{name}", tiles.merge, partials[start : start + FAN_IN])
            for start in range(0, len(partials), FAN_IN)
        ]
    return partials[0]


def _submit(
    session: Session, name: str, function: Callable[..., Any], *arguments: Any
) -> Future[Any]:
    key = f"{name}-{uuid.uuid4().hex}"
    return session.client.submit(function, *arguments, key=key, pure=False)


def _run(
    session: Session,
    name: str,
    count: int,
    submit: Callable[[int], _Unit],
    tasks_per_unit: int,
    emit: Emit,
    need: int,
) -> Iterator[tuple[int, Any]]:
    """Keep a bounded number of units in flight and yield each one's result."""
    if count == 0:
        return
    window = max(2, math.ceil(session.threads * _IN_FLIGHT / tasks_per_unit))
    waiting = iter(range(count))
    completed = as_completed(loop=session.client.loop, raise_errors=False)
    units: dict[Any, _Unit] = {}  # by the key of the last future

    def refill() -> None:
        for index in waiting:
            unit = submit(index)
            units[unit.last.key] = unit
            completed.update({*unit.counted, unit.last})
            if len(units) >= window:
                return

    with _OneSentence(name, need, session):
        refill()
        for future in completed:
            if future.status == "error":
                raise future.exception()
            if future.cancelled():
                raise CancelledError(name)
            unit = units.pop(future.key, None)
            if unit is None or future in unit.counted:
                emit(TaskDone(name))
            if unit is not None:
                result = future.result()
                del future
                yield unit.index, result
                refill()


class _OneSentence:
    """Turn what a dying cluster raises into a `ResourceError` that says what to do."""

    def __init__(self, name: str, need: int, session: Session) -> None:
        self._name, self._need, self._session = name, need, session

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: Any
    ) -> None:
        if isinstance(error, KilledWorker):
            raise ResourceError(
                f"a {self._name} task, projected to need {gib(self._need)}, killed every worker "
                f"it ran on (limit {gib(self._session.memory_limit)} each); raise --memory-limit "
                "or lower --threads-per-worker, then run the same command again to continue."
            ) from error
        if isinstance(error, CancelledError | TimeoutError | ConnectionError) or (
            isinstance(error, OSError) and type(error).__module__.startswith("distributed")
        ):
            raise ResourceError(
                f"the cluster was lost during {self._name}; "
                "run the same command again to continue from what is finished."
            ) from error
        if isinstance(error, MemoryError):
            raise ResourceError(
                f"a {self._name} task ran out of memory ({gib(self._need)} projected); raise "
                "--memory-limit, then run the same command again to continue."
            ) from error


def iterate(items: Iterable[tuple[int, Any]]) -> list[Any]:
    """Results in the order of their arguments."""
    return [result for _, result in sorted(items, key=lambda item: item[0])]
