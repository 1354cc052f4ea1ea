"""Events: what a run says while it runs.

Covers: the start and the end of a run's parts, its plan, its memory, notes and faults.
Does not cover: who listens (`dpipe.watch`, and the observer that a Python caller may give).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from dpipe.model.records import MemoryReading


@dataclass(frozen=True)
class PlannedPass:
    """What the plan expects of a pass, for the columns it may at most receive.

    Attributes
    ----------
    number, name
        The pass.
    columns
        The columns it may at most receive.
    tasks
        Its tasks.
    worker_bytes
        Peak bytes of a worker.
    bytes_read
        Bytes its tasks read.
    operations
        Floating-point operations of its tasks.
    shape
        How its work is cut into tasks, in words.
    client_bytes
        The largest thing the client holds for it, in bytes.
    """

    number: int
    name: str
    columns: int
    tasks: int
    worker_bytes: int
    bytes_read: int
    operations: float
    shape: str
    client_bytes: int = 0


@dataclass(frozen=True)
class RunStarted:
    """The table is open, the session is up and the plan fits.

    Attributes
    ----------
    n_rows
        Rows that take part.
    n_features
        Columns that do.
    n_workers
        Workers of the session.
    device
        Where they compute, "cpu" or "gpu".
    dashboard
        The link to Dask's dashboard, None without one.
    memory_limit
        Bytes that each worker may use, 0 where unknown.
    scratch_bytes
        Bytes of the rank store, 0 where unknown.
    passes
        What the plan expects of each pass.
    page
        The link to dpipe's page beside Dask's dashboard, None without one.
    """

    n_rows: int
    n_features: int
    n_workers: int
    device: str
    dashboard: str | None
    memory_limit: int = 0
    scratch_bytes: int = 0
    passes: tuple[PlannedPass, ...] = ()
    page: str | None = None

    @property
    def n_tasks(self) -> int:
        """Tasks of all passes."""
        return sum(planned.tasks for planned in self.passes)

    @property
    def worker_bytes(self) -> int:
        """The most that the plan expects a worker to use."""
        return max((planned.worker_bytes for planned in self.passes), default=0)


@dataclass(frozen=True)
class PassStarted:
    """A pass begins.

    Attributes
    ----------
    number, name
        The pass.
    n_columns
        The columns it received.
    """

    number: int
    name: str
    n_columns: int


@dataclass(frozen=True)
class StageStarted:
    """A pass submits tasks.

    Attributes
    ----------
    name
        What they are called: ranking, moments, re-ranking ...
    tasks
        How many there are.
    """

    name: str
    tasks: int


@dataclass(frozen=True)
class TaskDone:
    """One task of the current stage has finished.

    Attributes
    ----------
    name
        The stage.
    """

    name: str


@dataclass(frozen=True)
class PassDone:
    """A pass ended.

    Attributes
    ----------
    number, name
        The pass.
    n_columns
        The columns it received.
    n_kept
        The columns it kept.
    seconds
        What computing it took, in whichever run that was.
    reused
        Whether a checkpoint answered for it.
    n_back
        Columns of a pass before that came back; some of them it may have dropped for good.
    """

    number: int
    name: str
    n_columns: int
    n_kept: int
    seconds: float
    reused: bool
    n_back: int = 0


@dataclass(frozen=True)
class MemoryRead:
    """The session looked at the memory of its processes.

    Attributes
    ----------
    readings
        What it saw, one for each process.
    """

    readings: tuple[MemoryReading, ...]


@dataclass(frozen=True)
class Note:
    """Something a user should know.

    Attributes
    ----------
    text
        One sentence.
    level
        "info" (shown to who asks for more by ``--verbose``), "notice" or "warning".
    """

    text: str
    level: str = "info"


@dataclass(frozen=True)
class Finding(Note):
    """A note on the answer of a pass, which a run that takes the pass over tells again."""


@dataclass(frozen=True)
class Fault:
    """Something failed, and the run goes on.

    Attributes
    ----------
    kind
        "worker lost", "task repeated" (it ran on such a worker, or its result went with it) or
        "stalled".
    stage
        The tasks of the time.
    count
        How often.
    details
        Text for whoever looks into it.
    """

    kind: str
    stage: str
    count: int = 1
    details: str = ""


Event = RunStarted | PassStarted | StageStarted | TaskDone | PassDone | MemoryRead | Note | Fault
Emit = Callable[[Event], None]


def silent(event: Event) -> None:
    """An observer that ignores every event."""
