"""A local cluster that dpipe starts: started, found again after a restart, ended.

Covers: the options of Dask's local clusters, the environment and the end of their processes.
Does not cover: when it is restarted (`dpipe.session.decision`), how many workers it gets and on
which device (`dpipe.session.device`).
"""

# Most of distributed's public methods carry no annotations.
# mypy: allow-untyped-calls

from __future__ import annotations

import asyncio
import contextlib
import importlib
import logging
import os
import socket
import sys
import tempfile
import threading
import time
import warnings
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import dask
import psutil
from distributed import Client, LocalCluster, SpecCluster, core
from distributed.security import Security
from distributed.system import MEMORY_LIMIT

from dpipe.common.environment import interrupts_blocked, interrupts_put_off, worker_environment
from dpipe.common.spawn import advice, check_that_processes_can_start
from dpipe.common.temporary import OwnedFolder
from dpipe.common.words import first_line, sized
from dpipe.errors import InputError, ResourceError
from dpipe.model.events import Emit, Note
from dpipe.options import Options
from dpipe.session.device import LocalWorkers
from dpipe.session.forkserver import serve_workers
from dpipe.session.worker import QuietShutdown, give_memory_back

GRACE_SECONDS = 2.0
"""How long an owned worker may take, at a restart, to stop what it is doing before it is killed."""
CLOSE_SECONDS = 15.0
"""How long the scheduler of an owned cluster may take to end."""
DASHBOARD_PORT = 8787
"""Where people look for the dashboard; another one is taken when it is not free."""
DEATHS = 10
"""How many workers may die under a task of an owned cluster before the task is given up.

Dask's 3 count every task that waits on a worker as it dies: where something keeps killing workers
at random, innocent tasks reach 3 soon. A task that kills its workers itself is found out later.
"""


@dataclass
class StartedCluster:
    """How to open, and open again, the cluster an owned session runs on."""

    options: Options
    workers: LocalWorkers
    local_directory: str | None
    n_workers: int = 0
    _cluster: LocalCluster | None = None
    _client: Client | None = None
    _folder: OwnedFolder | None = None

    def open(self) -> Client:
        """Start the processes; a client that is nobody's default."""
        check_that_processes_can_start()
        self._folder = _worker_folder(self.local_directory)
        start = _start_gpu_cluster if self.workers.device == "gpu" else _start_cpu_cluster
        # One after the other: what is set for a start is put back as it was found.
        with _starting:
            _open.add(id(self))
            settings = {
                "distributed.nanny.pre-spawn-environ": _spawn_environment(),
                "distributed.scheduler.allowed-failures": DEATHS,
            }
            try:
                with (
                    interrupts_put_off(),
                    _environment_noted(),
                    dask.config.set(settings),
                    interrupts_blocked(),
                    _taken_port_unsaid(),
                ):
                    if self.workers.device == "cpu":
                        serve_workers(_spawn_environment())
                    self._cluster = start(self.options, self.workers, self._folder.path)
                # Not the default client: what the user computes meanwhile stays where it was.
                self._client = Client(self._cluster, set_as_default=False)
                self._client.register_plugin(QuietShutdown())
            except (OSError, TimeoutError, RuntimeError, ValueError) as error:
                self.close()
                raise ResourceError(
                    f"the workers could not be started ({first_line(error)}): {advice()}."
                ) from error
        self.n_workers = len(self._cluster.worker_spec)
        return self._client

    def pids(self) -> frozenset[int]:
        """The worker processes now."""
        if self._cluster is None:
            return frozenset()
        return frozenset(n.pid for n in self._cluster.workers.values() if n.pid is not None)

    def is_deserted(self) -> bool:
        """Whether none of them lives."""
        return not _running(self.pids())

    def close(self) -> None:
        """End every process, remove the folder, put the environment back.

        The workers are killed. Nothing is lost with them, since the results of tasks are on disk or
        gone anyway; asked to close, one that is deep in a task would take seconds, and one that is
        just starting would end in a traceback.
        """
        # Whatever a dying cluster raises, its processes are gone.
        if self._client is not None:
            with contextlib.suppress(Exception):
                self._client.close(timeout=CLOSE_SECONDS)
        if self._cluster is not None:
            _say_nothing_of(self._cluster)
            say_nothing_of_missed_deadlines(self._cluster.loop)
            _kill_workers(self._cluster)
            with contextlib.suppress(Exception):
                self._cluster.close(timeout=CLOSE_SECONDS)
        self._client = self._cluster = None
        forget_closed_schedulers()
        give_memory_back()  # a process that opens one after the other would grow by what they leave
        if self._folder is not None:
            self._folder.remove()
            self._folder = None
        with _starting:
            _open.discard(id(self))
            if not _open:
                _restore_environment()


_starting = threading.RLock()
_open: set[int] = set()
_environment: dict[str, str | None] = {}  # what variables were before clusters changed them


@contextlib.contextmanager
def _environment_noted() -> Iterator[None]:
    """Note what changes: a nanny writes what its workers shall find into this process."""
    before = dict(os.environ)
    try:
        yield
    finally:
        for name, value in os.environ.items():
            if before.get(name) != value:
                _environment.setdefault(name, before.get(name))


def _restore_environment() -> None:
    for name, value in _environment.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    _environment.clear()


_closed: deque[str] = deque(maxlen=8)  # addresses of schedulers


def _say_nothing_of(cluster: LocalCluster) -> None:
    """Keep messages to a scheduler that is about to end from being reported as they fail.

    One that is on its way under load fails after the cluster has closed, when distributed logs as
    it did before the cluster.
    """
    _closed.append(str(cluster.scheduler_address))
    logging.getLogger("distributed.batched").addFilter(_is_news)


def say_nothing_of_missed_deadlines(loop: Any) -> None:
    """Keep deadlines that strike in the last turn of an event loop from being reported.

    Batched messages wait for the next moment to send with a deadline. Where it strikes in the turn
    in which the loop is stopped, who waits is never told, and the collector reports an exception
    that was never retrieved, as if the run had failed. Nobody can wait for anything any more.
    """
    turns: asyncio.AbstractEventLoop = loop.asyncio_loop
    report = turns.get_exception_handler() or type(turns).default_exception_handler

    def unless_missed(here: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if here.is_running() or not isinstance(context.get("exception"), TimeoutError):
            report(here, context)

    turns.set_exception_handler(unless_missed)


def _is_news(record: logging.LogRecord) -> bool:
    """Whether a record is of another connection than one to a closed scheduler."""
    comm = record.args[0] if isinstance(record.args, tuple) and record.args else None
    ends = (getattr(comm, "local_address", None), getattr(comm, "peer_address", None))
    return not any(address in ends for address in _closed)


def forget_closed_schedulers() -> None:
    """Empty the caches of distributed that keep every scheduler of this process reachable.

    A scheduler holds some megabytes, with a dashboard its pages too. One cache is of its handlers,
    the other of what its pages have in common, which is asked for once a scheduler anyway.
    """
    clear = getattr(getattr(core, "_expects_comm", None), "cache_clear", None)
    if clear is not None:
        clear()
    dashboard: Any = sys.modules.get("distributed.dashboard.scheduler")
    plain = getattr(getattr(dashboard, "template_variables", None), "__wrapped__", None)
    if plain is not None:
        dashboard.template_variables = plain


def _kill_workers(cluster: LocalCluster) -> None:
    """End the workers at once, and keep their nannies from starting others."""
    nannies = list(cluster.workers.values())
    for nanny in nannies:
        nanny.close_gracefully()
    deadline = time.monotonic() + CLOSE_SECONDS
    # A nanny that is about to start a worker does not know its number yet: ask again.
    while any(nanny.process is not None for nanny in nannies) and time.monotonic() < deadline:
        kill(nanny.pid for nanny in nannies)
        time.sleep(0.02)


class NoLostWorkerTimeout(SpecCluster):
    """Leaves a worker that is away to its nanny.

    A cluster otherwise looks, some time after a worker left (``lost-worker-timeout``, 15 s),
    whether one of that name is there, and closes its nanny for good if not. When the look falls
    into the second in which a later restart has just taken the worker away, the nanny dies and
    the restart never ends (distributed issue 7312).
    """

    def _update_worker_status(self, op: str, msg: Any) -> None:
        super(SpecCluster, self)._update_worker_status(op, msg)


class _LocalCluster(NoLostWorkerTimeout, LocalCluster):
    pass


def _start_cpu_cluster(options: Options, workers: LocalWorkers, folder: str) -> LocalCluster:
    return _LocalCluster(**_local_options(options, workers, folder))


def _start_gpu_cluster(options: Options, workers: LocalWorkers, folder: str) -> LocalCluster:
    dask_cuda = importlib.import_module("dask_cuda")
    kind = type("_LocalCUDACluster", (NoLostWorkerTimeout, dask_cuda.LocalCUDACluster), {})
    cluster: LocalCluster = kind(**gpu_options(options, workers, folder))
    return cluster


def _local_options(options: Options, workers: LocalWorkers, folder: str) -> dict[str, Any]:
    chosen: dict[str, Any] = {
        "n_workers": workers.number,
        "threads_per_worker": workers.threads,
        "memory_limit": workers.memory,
        "processes": True,
        "host": "127.0.0.1",
        "dashboard_address": _free_dashboard_address(),
        "local_directory": folder,
        "silence_logs": max(logging.ERROR, logging.getLogger("distributed").level),
        "env": {"TMPDIR": folder},
    }
    if options.tls:
        chosen["security"] = _temporary_certificates()
    return chosen


def _temporary_certificates() -> Security:
    """A key and certificate that nobody else has, kept in memory until the cluster ends."""
    try:
        made: Security = Security.temporary()
        return made
    except ImportError:
        raise InputError(
            "--tls needs the package cryptography: pip install cryptography."
        ) from None


def gpu_options(options: Options, workers: LocalWorkers, folder: str) -> dict[str, Any]:
    """Arguments of ``dask_cuda.LocalCUDACluster``: one worker a card, one allocator a worker.

    The stream-ordered allocator does not fragment as a pool does and shares the card with
    others; CuPy must use the same one, or two allocators starve each other. Above the release
    threshold, freed memory goes back to the card.
    """
    chosen = _local_options(options, workers, folder)
    # LocalCUDACluster fills these in itself, one value a worker.
    del chosen["env"], chosen["processes"]
    return chosen | {
        "rmm_async": True,
        "rmm_release_threshold": 0.5,
        "rmm_allocator_external_lib_list": ["cupy"],
    }


def warn_when_overcommitted(options: Options, emit: Emit) -> None:
    """Say when the workers may together use more memory than there is."""
    asked = (options.memory_limit or 0) * (options.workers or 1)
    if asked > MEMORY_LIMIT:
        emit(
            Note(
                f"--memory-limit and --workers allow {sized(asked)}, more than the "
                f"{sized(MEMORY_LIMIT)} of this machine.",
                "warning",
            )
        )


def _spawn_environment() -> dict[str, Any]:
    configured = dask.config.get("distributed.nanny.pre-spawn-environ", default={})
    # Where this process wants no word of distributed, its workers keep silent to their end.
    silent = logging.getLogger("distributed").level >= logging.CRITICAL
    quiet = {"DASK_LOGGING__DISTRIBUTED": "critical"} if silent else {}
    return {**configured, **worker_environment(), **quiet}


def _worker_folder(local_directory: str | None) -> OwnedFolder:
    parent = local_directory or dask.config.get("temporary-directory", default=None)
    try:
        return OwnedFolder("dpipe-workers-", parent)
    except OSError as error:
        raise InputError(
            f"the workers' folder {parent or tempfile.gettempdir()} is not writable "
            f"({error.strerror}); choose another with --scratch-dir."
        ) from error


def _free_dashboard_address() -> str:
    """The usual port, or any other when it is taken."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", DASHBOARD_PORT))
        except OSError:
            return "127.0.0.1:0"
    return f"127.0.0.1:{DASHBOARD_PORT}"


@contextlib.contextmanager
def _taken_port_unsaid() -> Iterator[None]:
    """Another program may take the dashboard's port meanwhile; Dask then takes any other."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Port [0-9]+ is already in use", UserWarning)
        yield


@contextlib.contextmanager
def killed_after_grace(pids: Iterable[int]) -> Iterator[None]:
    """Kill these workers if the block takes longer than a worker may need to stop.

    A nanny waits four seconds for a worker that is deep in a task; nothing is lost with it, since
    the results of tasks are on disk or gone anyway.
    """
    timer = threading.Timer(GRACE_SECONDS, kill, [frozenset(pids)])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def kill(pids: Iterable[int]) -> list[psutil.Process]:
    """Kill those of the processes that this one started and that still run."""
    running = _running(frozenset(pids))
    for child in running:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()
    return running


def _running(pids: frozenset[int]) -> list[psutil.Process]:
    return [child for child in psutil.Process().children(recursive=True) if child.pid in pids]
