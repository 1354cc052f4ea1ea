"""Running tasks on a session: bounded submission, tree-sums, one tile grid at a time.

Covers: submitting independent tasks and whole grids, yielding what they return as it comes,
emitting progress and the faults survived, turning a lost cluster into one clear sentence.
Does not cover: what a task computes (`dpipe.engine.tiles`, `dpipe.passes`), the life of the cluster
(`dpipe.session`).

Only a few tasks per thread are in flight at any time: a worker then never holds the input of
tasks it cannot start, and the scheduler's memory does not grow with the grid. Results are small;
large ones are left in the rank store by the task that made them.
"""

# Most of distributed's public methods carry no annotations.
# mypy: allow-untyped-calls

from __future__ import annotations

import math
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass
from itertools import repeat
from typing import Any

from distributed import Future, as_completed
from distributed.client import ClosedClientError
from distributed.comm.core import CommClosedError
from distributed.scheduler import KilledWorker

from dpipe.common.words import counted, sized
from dpipe.engine import tiles
from dpipe.engine.tiling import FAN_IN
from dpipe.errors import ResourceError
from dpipe.model.events import Emit, Fault, Note, StageStarted, TaskDone
from dpipe.rankstore import Store
from dpipe.session import Session
from dpipe.session.spans import span

STALL_SECONDS = 300.0
"""How long no task may finish before the run says what its workers are doing."""
DESERTED_SECONDS = 60.0
"""How long a cluster of dpipe's own may have no worker process before it counts as lost."""
LOOK_SECONDS = 5.0
"""How often it is asked, while nothing finishes."""
ANSWER_SECONDS = 20.0
"""How long a scheduler may take to answer a question about faults."""

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
    describe: Callable[[int], str],
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
    describe
        What the task at a position works on, for the same message.

    Raises
    ------
    ResourceError
        When the cluster is lost or a task keeps killing workers.
    """

    def submit(index: int) -> _Unit:
        future = _submit(session, name, function, *arguments[index])
        return _Unit(index, (future,), future)

    stage = _Stage(session, name, emit, need, describe)
    emit(StageStarted(name, len(arguments)))
    yield from stage.run(len(arguments), submit, 1)


def run_grid(
    session: Session,
    job: tiles.Job,
    store: Store,
    name: str,
    emit: Emit,
    columns: Sequence[str],
) -> None:
    """Compute every tile of a job that the store does not hold yet.

    The tiles are left in the store (see `dpipe.engine.tiles.tile_finish`). ``columns`` are the
    names of the columns the job's blocks count.

    Raises
    ------
    ResourceError
        When the cluster is lost or a task keeps killing workers.
    """
    finished = store.names(job.folder)
    run_marginals(session, job, store, name, emit, columns)
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

    def describe(index: int) -> str:
        i, j = (job.tiling.blocks[block] for block in todo[index])
        return f"{_words(columns, *i)} x {_words(columns, *j)}"

    stage = _Stage(session, f"moments-{name}", emit, job.tiling.task_bytes, describe)
    for _ in stage.run(len(todo), submit, splits):
        pass


def _words(columns: Sequence[str], start: int, stop: int) -> str:
    """A column block in words."""
    if stop - start == 1:
        return f"column {columns[start]!r}"
    return f"{counted(stop - start, 'column')} ({columns[start]!r} to {columns[stop - 1]!r})"


def run_marginals(
    session: Session,
    job: tiles.Job,
    store: Store,
    name: str,
    emit: Emit,
    columns: Sequence[str],
) -> None:
    """Marginal moments of every column block that has none yet, where the measures need any."""
    if not job.fusion.needs_marginals:
        return
    finished = store.names(job.folder)
    blocks = [
        block
        for block in range(len(job.tiling.blocks))
        if _base(tiles.marginals_name("", block)) not in finished
    ]
    splits = len(job.tiling.splits)
    emit(StageStarted(f"marginals-{name}", len(blocks) * splits))

    def submit(index: int) -> _Unit:
        block = blocks[index]
        partials = [
            _submit(
                session, f"marginals-{name}", tiles.marginals_partial, store, job.folder, block, s
            )
            for s in range(splits)
        ]
        last = _submit(
            session, f"whiten-{name}", tiles.marginals_finish, store, job.folder, block, partials
        )
        return _Unit(index, tuple(partials), last)

    def describe(index: int) -> str:
        return _words(columns, *job.tiling.blocks[blocks[index]])

    stage = _Stage(session, f"marginals-{name}", emit, job.tiling.task_bytes, describe)
    for _ in stage.run(len(blocks), submit, splits):
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


@dataclass(frozen=True)
class _Stage:
    """Tasks of one name: run, watched, and spoken of in one sentence when they fail."""

    session: Session
    name: str
    emit: Emit
    need: int
    describe: Callable[[int], str]

    def run(
        self, count: int, submit: Callable[[int], _Unit], tasks_per_unit: int
    ) -> Iterator[tuple[int, Any]]:
        """Keep a bounded number of units in flight and yield each one's result."""
        if count == 0:
            return
        # While the last tasks of a unit sum up what its others found, the threads need a next one.
        window = 1 + math.ceil(self.session.threads * _IN_FLIGHT / tasks_per_unit)
        waiting = iter(range(count))
        completed = as_completed(loop=self.session.client.loop, raise_errors=False)
        units: dict[Any, _Unit] = {}  # by the key of the last future
        began, _, _ = self._losses(math.inf)

        def refill() -> None:
            with span("dpipe", self.name):
                for index in waiting:
                    unit = submit(index)
                    units[unit.last.key] = unit
                    completed.update({*unit.counted, unit.last})
                    if len(units) >= window:
                        return

        try:
            refill()
            while finished := self._next(completed):
                ended = [unit for unit in map(self._noted, finished, repeat(units)) if unit]
                # Together: asking for a result is a way to the scheduler, a worker and back.
                results = self.session.client.gather([unit.last for unit in ended])
                indices = [units.pop(unit.last.key).index for unit in ended]
                del finished, ended  # lets the workers forget what they hold
                refill()
                yield from zip(indices, results, strict=True)
        except _FAILURES as error:
            raise self._sentence(error, units.values()) from error
        self._count_faults(began)

    def _noted(self, future: Future[Any], units: Mapping[Any, _Unit]) -> _Unit | None:
        """Count a future that has finished as progress; the unit that ends with it, if one does."""
        if future.status == "error":
            raise future.exception()
        if future.cancelled():
            raise CancelledError(self.name)
        unit = units.get(future.key)
        if unit is None or future in unit.counted:
            self.emit(TaskDone(self.name))
        return unit

    def _next(self, completed: as_completed) -> list[Future[Any]]:
        """All futures that have finished since, none when none is left; speaks up when slow."""
        began, patience = time.monotonic(), STALL_SECONDS
        looked = inhabited = began
        while not completed.has_ready():
            if completed.is_empty():
                return []
            if self.session.client.status == "closed":
                raise CancelledError(self.name)
            with completed.thread_condition:
                # Asked again, now that nothing can finish unheard: `is_empty` waits for the thread
                # that reports futures, so that its call often came just before this one listened.
                if not completed.has_ready():
                    completed.thread_condition.wait(timeout=0.1)
            now = time.monotonic()
            if now - looked > LOOK_SECONDS:
                looked = now
                if not self.session.deserted():
                    inhabited = now
                elif now - inhabited > DESERTED_SECONDS:
                    raise CancelledError(self.name)
            if now - began > patience:
                patience *= 2
                self._say_stalled(now - began)
        return list(completed.next_batch())

    # Faults

    def _say_stalled(self, seconds: float) -> None:
        self.emit(
            Note(
                f"no {self.name} task has finished for {seconds / 60:.0f} minutes; "
                "dpipe goes on waiting.",
                "warning",
            )
        )
        self.emit(Fault("stalled", self.name, details=self._work_in_progress()))

    def _work_in_progress(self) -> str:
        """What the scheduler and each worker say they are doing; silence is an answer too."""
        client = self.session.client
        lines = [f"{time.strftime('%Y-%m-%d %H:%M:%S %z')}: waiting for {self.name}"]
        scheduler: Any = client.scheduler
        identity = self._ask(lambda: scheduler.identity(n_workers=-1), {})
        processing = self._ask(client.processing, {})
        for address, facts in identity.get("workers", {}).items():
            seen = time.time() - facts.get("last_seen", 0)
            memory = sized(facts.get("metrics", {}).get("memory", 0))
            lines += ["", f"worker {facts.get('name')} at {address}, status {facts.get('status')}"]
            lines += [f"  {memory} in use, last heard of {seen:.0f} s ago"]
            keys = [str(key) for key in processing.get(address, ())]
            lines += [f"  has {key}" for key in keys]
            stacks = self._ask(client.call_stack, None, keys=keys) if keys else {}
            if stacks is None:
                lines += ["  does not say where it is"]
            for key, frames in (stacks or {}).get(address, {}).items():
                lines += [
                    f"  runs {key}",
                    *(f"    {line}" for f in frames for line in f.split("\n")),
                ]
        return "\n".join(lines) + "\n"

    def _count_faults(self, since: float) -> None:
        _, lost, repeated = self._losses(since)
        if lost:
            self.emit(Fault("worker lost", self.name, lost))
        if repeated:
            self.emit(Fault("task repeated", self.name, repeated))

    def _losses(self, since: float) -> tuple[float, int, int]:
        """The scheduler's clock; workers lost and tasks of this stage they had, since a moment."""
        family = "-" + self.name.partition("-")[2] + "-"

        # Nested, so that it travels by value: the scheduler need not have dpipe installed.
        def look(dask_scheduler: Any) -> tuple[float, int, int]:
            lost = [
                message
                for moment, message in dask_scheduler.get_events("all")
                if moment >= since
                and isinstance(message, dict)
                and message.get("action") == "remove-worker"
                and not message.get("expected")
            ]
            keys = [
                key
                for message in lost
                for key in {*message["processing-tasks"], *message["lost-computed-tasks"]}
            ]
            return time.time(), len(lost), sum(family in str(key) for key in keys)

        answer: tuple[float, int, int] = self._ask(
            self.session.client.run_on_scheduler, (math.inf, 0, 0), look
        )
        return answer

    def _ask(self, call: Callable[..., Any], otherwise: Any, *arguments: Any, **named: Any) -> Any:
        """What the cluster answers in time, else `otherwise`: looking must never end a run."""
        try:
            return self.session.client.sync(
                call, *arguments, callback_timeout=ANSWER_SECONDS, **named
            )
        except Exception as error:  # a foreign scheduler may raise anything
            self.emit(Note(f"the scheduler does not say what became of its workers ({error})."))
            return otherwise

    # The end

    def _sentence(self, error: BaseException, units: Iterable[_Unit]) -> ResourceError:
        """What a failing cluster raised, as the error that says what to do."""
        where = self._where(units)
        if isinstance(error, KilledWorker):
            return ResourceError(
                f"a {self.name} task{where}, projected to need {sized(self.need)}, killed every "
                f"worker it ran on (limit {sized(self.session.memory_limit)} each); raise "
                "--memory-limit or lower --threads-per-worker, then run the same command again "
                "to continue."
            )
        if isinstance(error, MemoryError):
            return ResourceError(
                f"a {self.name} task{where} ran out of memory ({sized(self.need)} projected); "
                "raise --memory-limit, then run the same command again to continue."
            )
        if isinstance(error, FileNotFoundError):
            return ResourceError(
                f"{error.filename} was removed while {self.name} needed it; "
                "run the same command again to continue."
            )
        if isinstance(error, OSError) and not isinstance(error, _LOST):
            return ResourceError(
                f"a {self.name} task{where} could not read {error.filename or 'its input'} "
                f"({error.strerror or error}); run the same command again to continue."
            )
        return ResourceError(
            f"the cluster was lost during {self.name}; "
            "run the same command again to continue from what is finished."
        )

    def _where(self, units: Iterable[_Unit]) -> str:
        """The columns of the first unit that failed."""
        for unit in units:
            if any(future.status == "error" for future in (*unit.counted, unit.last)):
                return f" on {self.describe(unit.index)}"
        return ""


_LOST = (CancelledError, ClosedClientError, CommClosedError, ConnectionError, TimeoutError)
"""What is raised when the scheduler is gone."""
_FAILURES = (KilledWorker, MemoryError, OSError, *_LOST)
"""What a failing cluster raises; errors that say what to do already are not among them."""
