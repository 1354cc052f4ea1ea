"""The Dask cluster as dpipe sees it: opened or attached, recycled between passes, closed.

Covers: starting local workers (CPU or one per GPU), attaching to a running cluster, restarting
workers as one operation with a deadline and a fallback, reading the memory of every process.
Does not cover: submitting tasks (see `dpipe.execute`) or choosing tile sizes (see `dpipe.plan`).
See also: `dpipe.model.MemoryReading`, the record of the ledger.

Two kinds of session behave differently on purpose. An *owned* one is dpipe's to restart, rebuild
and close. An *attached* one belongs to somebody else: dpipe never calls ``Client.restart`` on it
(that cancels the futures of every connected client), restarts its workers only when nobody else
uses them, and leaves it running.

After `Session.recycle` the cluster may be a new one, so ask for ``session.client`` each time
instead of keeping it.
"""

# Most of distributed's public methods carry no annotations.
# mypy: allow-untyped-calls

from __future__ import annotations

import asyncio
import contextlib
import gc
import importlib.util
import json
import logging
import os
import resource
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import resource_tracker
from typing import Any

import dask
import psutil
from dask.system import CPU_COUNT
from dask.utils import parse_timedelta
from distributed import Client, Future, LocalCluster, SpecCluster, WorkerPlugin
from distributed.comm.core import connect
from distributed.deploy.cluster import Cluster
from distributed.security import Security
from distributed.system import MEMORY_LIMIT

from dpipe import card, kept
from dpipe.backend import free_device_memory
from dpipe.card import visible_cards
from dpipe.config import Options
from dpipe.environment import worker_environment
from dpipe.errors import InputError, ResourceError
from dpipe.model import Emit, MemoryReading, Note, silent

CONNECT_SECONDS = 20.0
"""How long an address may take to answer."""
WORKERS_SECONDS = 60.0
"""How long a scheduler may take to show its first worker."""
RECYCLE_SECONDS = 60.0
"""How long the workers of an attached cluster may take to come back as new processes."""
REOPEN_SECONDS = 30.0
"""How long owned workers may take to come back before the whole cluster is opened anew."""
PROBE_SECONDS = 20.0
"""How long a look at every worker may take."""
GRACE_SECONDS = 2.0
"""How long an owned worker may take to stop what it is doing before it is killed."""
DEVICE_TOLERANCE = 1024**3
"""Bytes in use on a card after a restart, above those at the start, that are worth a warning."""
CARD_SECONDS = 10.0
"""How long the driver may take to get back what a worker that ended had on its card."""
DASHBOARD_PORT = 8787
"""Where people look for the dashboard; another one is taken when it is not free."""
DEATHS = 10
"""How many workers may die under a task of an owned cluster before the task is given up.

Dask's 3 count every task that waits on a worker as it dies: where something keeps killing workers
at random, innocent tasks reach 3 soon. A task that kills its workers itself is found out later.
"""
CLOSE_SECONDS = 15.0
"""How long an owned cluster may take to end before its processes are killed."""

# What goes wrong between a client and a cluster that is losing workers: timeouts and broken
# connections (both OSError) and a client or loop that has been closed (RuntimeError).
_CLUSTER_ERRORS = (OSError, TimeoutError, RuntimeError)

_Connection = Client | Cluster | str | os.PathLike[str]


@dataclass(frozen=True)
class WorkerFacts:
    """What one worker process says about itself; sizes in bytes, ``limit`` None without a limit.

    ``holders`` are the processes that compute on its card, as far as the driver tells.
    """

    address: str
    name: str
    pid: int
    rss: int
    peak: int
    device: int | None
    threads: int
    limit: int | None
    nanny: bool
    host: str
    host_memory: int
    has_gpu: bool
    device_peak: int | None = None
    holders: tuple[int, ...] = ()


def current_client() -> Client | None:
    """The Dask client in use here (of ``as_current``, else the latest one), or None.

    Examples
    --------
    >>> current_client() is None
    True
    """
    try:
        client = Client.current()
    except ValueError:
        return None
    return client if client.status == "running" else None


def configured_options() -> dict[str, Any]:
    """Options set in Dask's configuration under ``dpipe:``, as they were written there.

    Examples
    --------
    >>> with dask.config.set({"dpipe.vif-threshold": 5}):
    ...     configured_options()
    {'vif-threshold': 5}

    Raises
    ------
    InputError
        When ``dpipe:`` holds something else than options.
    """
    found = dask.config.get("dpipe", default=None) or {}
    if not isinstance(found, dict):
        raise InputError(f"Dask's configuration holds {found!r} under dpipe: instead of options.")
    return dict(found)


def open_session(
    options: Options, *, local_directory: str | None = None, emit: Emit = silent
) -> Session:
    """Start a cluster of dpipe's own on this machine, listening on 127.0.0.1 only.

    Parameters
    ----------
    options
        ``device``, ``workers``, ``threads_per_worker``, ``memory_limit`` and ``restart`` count.
    local_directory
        Where workers keep temporary files; a folder made there is removed at the end. By
        default Dask's ``temporary-directory``, else the system's.
    emit
        Told what a user should know, as `dpipe.model.Note`.

    Raises
    ------
    InputError
        When ``device="gpu"`` and there is no card, or a package it needs is missing.
    ResourceError
        When the workers do not start.

    Examples
    --------
    >>> with open_session(Options(workers=1)) as session:  # doctest: +SKIP
    ...     session.client.submit(sum, [1, 2]).result()
    3
    """
    device, room = _choose_own_device(options, emit)
    _warn_when_overcommitted(options, emit)
    owned = _OwnCluster(options, device, local_directory)
    try:
        client = owned.open()
        return Session(client, options, emit=emit, owned=owned, device=device, room=room)
    except BaseException:
        owned.close()
        raise


def attach_session(
    connection: _Connection,
    options: Options,
    *,
    emit: Emit = silent,
    workers_seconds: float = WORKERS_SECONDS,
    connect_seconds: float = CONNECT_SECONDS,
) -> Session:
    """Use a running cluster, which stays as it is when the session closes.

    Parameters
    ----------
    connection
        A Dask client (left open afterwards), a cluster object, the address of a scheduler
        (``tcp://host:8786``) or the path of a scheduler file.
    options
        ``device`` and ``restart`` count; the size of the cluster is its owner's business.
    emit
        Told what a user should know, as `dpipe.model.Note`.
    workers_seconds, connect_seconds
        Patience for the first worker and for the scheduler.

    Raises
    ------
    InputError
        For a malformed address, an unreadable scheduler file or an asynchronous client.
    ResourceError
        When nothing answers, no worker comes, or versions do not fit together.

    Examples
    --------
    >>> with attach_session("tcp://10.0.0.1:8786", Options()) as session:  # doctest: +SKIP
    ...     session.n_workers
    16
    """
    client, opened = _connect(connection, connect_seconds)
    try:
        wake = _wait_for_first_worker(client, workers_seconds)
        for text in check_versions(client):
            emit(Note(text, "warning"))
        _warn_when_exposed(client, emit)
        session = Session(client, options, emit=emit, opened_client=opened, wake=wake)
        session.pin_threads()
        return session
    except BaseException:
        if opened:
            client.close()
        raise


def use_session(options: Options, connection: Any, emit: Emit = silent) -> Session:
    """The session a run works on: the caller's, the one options name, the current, or an own.

    Parameters
    ----------
    options
        ``scheduler`` and ``scheduler_file`` name a running cluster.
    connection
        What the caller handed over: a client, a cluster, an address, or None.
    emit
        Told what a user should know.
    """
    target = connection or options.scheduler or options.scheduler_file or current_client()
    if target is not None:
        return attach_session(target, options, emit=emit)
    return open_session(options, emit=emit)


@contextlib.contextmanager
def client_for(connection: Any) -> Iterator[Client | None]:
    """A connection as a client, for what is computed before a session begins; None stays None.

    Parameters
    ----------
    connection
        As in `attach_session`. A client stays open; one that is opened here is closed at the end.

    Raises
    ------
    InputError, ResourceError
        As in `attach_session`.

    Examples
    --------
    >>> with client_for(None) as client:
    ...     client is None
    True
    """
    if connection is None:
        yield None
        return
    client, opened = _connect(connection, CONNECT_SECONDS)
    try:
        yield client
    finally:
        if opened:
            client.close()


@contextlib.contextmanager
def threads_here() -> Iterator[Client]:
    """A Dask client whose only worker is a pool of threads in this process.

    It is there within a fraction of a second and needs no ``if __name__ == "__main__"``: for work
    that is done before processes would have started. It has no memory limit, because the memory
    of this process is mostly not its own.

    Examples
    --------
    >>> with threads_here() as client:
    ...     client.submit(sum, [1, 2]).result()
    3
    """
    with (
        LocalCluster(
            n_workers=1,
            threads_per_worker=CPU_COUNT,
            processes=False,
            memory_limit=0,
            dashboard_address="127.0.0.1:0",
            worker_dashboard_address="127.0.0.1:0",
            silence_logs=max(logging.ERROR, logging.getLogger("distributed").level),
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client


class Session:
    """A cluster in use; open one with `open_session` or `attach_session`, close it with ``with``.

    Attributes
    ----------
    client : distributed.Client
        The connection; replaced when `recycle` had to rebuild the cluster.
    owned : bool
        Whether dpipe started the cluster.
    device : str
        "cpu" or "gpu": where tasks compute.
    device_memory : int or None
        Bytes each worker can have of its card, as found at opening; None on the CPU.
    n_workers : int
        Worker processes seen at opening or at the last `recycle`.
    threads : int
        Task threads of all workers together.
    threads_per_worker : int
        Tasks that share the memory of one worker (the largest number of any worker).
    memory_limit : int
        Bytes the smallest worker may use.
    dashboard : str or None
        Link to the dashboard.
    """

    def __init__(
        self,
        client: Client,
        options: Options,
        *,
        emit: Emit = silent,
        owned: _OwnCluster | None = None,
        device: str | None = None,
        room: int | None = None,
        opened_client: bool = False,
        wake: Future[int] | None = None,
    ) -> None:
        self.client = client
        self.owned = owned is not None
        self.n_workers = self.threads = self.threads_per_worker = self.memory_limit = 0
        self._restart = options.restart
        self._emit = emit
        self._own = owned
        self._opened_client = opened_client
        self._wake = wake
        self._pin: str | None = None
        self._began = time.monotonic()
        self._closed = False
        self.device = device or "unknown"
        self._address = _scheduler_address(client)
        facts = self._expect(owned.n_workers if owned else 1, time.monotonic() + PROBE_SECONDS)
        if not facts:
            raise ResourceError(
                f"no worker of {self._address} answers within {PROBE_SECONDS:g} s; "
                "look at its log, or start workers anew."
            )
        # Before anybody tries CuPy, whose context takes memory as well.
        self._device_baseline = {f.name: f.device for f in facts if f.device is not None}
        self.device_memory = room
        if device is None:
            self.device, self.device_memory = _choose_attached_device(
                options.device, facts, self._try_cards, emit
            )
        else:
            self.device = device

    def __enter__(self) -> Session:
        """The session itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close what dpipe opened."""
        self.close()

    @property
    def dashboard(self) -> str | None:
        """Link to the dashboard, None without one."""
        try:
            link = self.client.dashboard_link
        except (*_CLUSTER_ERRORS, KeyError, AttributeError):
            return None
        return str(link) if link else None

    def close(self) -> None:
        """Close what dpipe opened, and only that; calling it again does nothing."""
        if self._closed:
            return
        self._closed = True
        if self._own is not None:
            self._own.close()
            return
        if self._wake is not None:
            self._wake.release()
        self._unpin_threads()
        if self._opened_client:
            self.client.close()

    # Memory

    def read_memory(self, moment: str, pass_number: int) -> tuple[MemoryReading, ...]:
        """Memory of the client and of every worker that answers, client first.

        A worker that does not answer in time is left out, with a Note: a reading must never
        end a run.

        Parameters
        ----------
        moment
            "start", "before", "after" or "recycled".
        pass_number
            The pass the reading belongs to.
        """
        return self._readings(moment, pass_number, self.workers())

    def _readings(
        self, moment: str, pass_number: int, facts: Iterable[WorkerFacts]
    ) -> tuple[MemoryReading, ...]:
        seconds = time.monotonic() - self._began
        rss, peak = process_memory()
        client = MemoryReading(moment, pass_number, "client", os.getpid(), rss, peak, None, seconds)
        workers = (
            MemoryReading(
                moment,
                pass_number,
                f"worker {f.name}",
                f.pid,
                f.rss,
                f.peak,
                f.device,
                seconds,
                f.device_peak,
            )
            for f in sorted(facts, key=lambda f: _natural(f.name))
        )
        return (client, *workers)

    def workers(self, seconds: float | None = None) -> tuple[WorkerFacts, ...]:
        """What every worker says about itself that answers in time (`PROBE_SECONDS`).

        Raises
        ------
        ResourceError
            When a worker cannot import dpipe.
        """
        gpu = self.device != "cpu"
        seconds = PROBE_SECONDS if seconds is None else seconds
        try:
            answers = _within(self.client, seconds, "run", _look, gpu=gpu, on_error="return")
        except _CLUSTER_ERRORS as error:
            self._warn(f"the workers do not answer ({_first_line(error)}).")
            return ()
        missing = next((a for a in answers.values() if isinstance(a, ModuleNotFoundError)), None)
        if missing is not None:
            raise ResourceError(
                f"the workers cannot import {missing.name!r}; "
                "install the same packages there as here."
            )
        return tuple(a for a in answers.values() if isinstance(a, WorkerFacts))

    def _try_cards(self) -> dict[str, Any]:
        """What came of trying CuPy on every worker: address -> `dpipe.card.Trial`."""
        try:
            answers: dict[str, Any] = _within(
                self.client, card.PROBE_SECONDS, "run", card.probe, on_error="return"
            )
        except _CLUSTER_ERRORS:
            return {}
        return answers

    def _expect(
        self, n_workers: int, deadline: float, old: frozenset[int] = frozenset()
    ) -> tuple[WorkerFacts, ...]:
        """Wait until `n_workers` processes other than `old` answer, and take note of them.

        Returns what there is at the deadline, possibly fewer.
        """
        while True:
            left = max(deadline - time.monotonic(), 1.0)
            facts = tuple(f for f in self.workers(left) if f.pid not in old)
            if len(facts) >= n_workers or time.monotonic() > deadline:
                break
            time.sleep(0.1)
        if facts:
            self.n_workers = len(facts)
            self.threads = sum(f.threads for f in facts)
            self.threads_per_worker = max(f.threads for f in facts)
            self.memory_limit = _smallest_limit(facts)
        return facts

    def _warn(self, text: str) -> None:
        self._emit(Note(text, "warning"))

    # Restarting

    def recycle(self, pass_number: int) -> tuple[MemoryReading, ...]:
        """Give every worker a fresh process, so that the next pass starts at the baseline.

        Hold no future and no scattered data over this call: they are lost. An owned cluster
        whose workers do not come back within `REOPEN_SECONDS` is closed and opened again. An
        attached one is restarted only as far as ``--restart`` and its other users allow;
        otherwise its workers collect garbage and hand free pages back.

        Returns
        -------
        tuple of MemoryReading
            The readings after it, of moment "recycled".

        Raises
        ------
        ResourceError
            When no worker is left.
        """
        if self._restart == "never":
            facts = self._tidy("the workers keep their memory, because --restart is never.")
        elif self._own is not None:
            facts = self._recycle_own(self._own)
        else:
            facts = self._recycle_attached()
        if not facts:
            raise ResourceError(
                f"no worker of {self._address} answers any more; "
                "start workers and run the same command again to resume."
            )
        self._watch_for_zombies(facts)
        return self._readings("recycled", pass_number, facts)

    def _watch_for_zombies(self, facts: Iterable[WorkerFacts]) -> None:
        """Say when a process that should be gone seems to hold on to the memory of its card."""
        for f in facts:
            if (more := self._excess(f)) > DEVICE_TOLERANCE:
                others = [pid for pid in f.holders if pid != f.pid]
                named = ", ".join(map(str, others[:5])) or "nvidia-smi may know which"
                self._warn(
                    f"the card of worker {f.name} has {more / 1024**3:.1f} GiB more in use than at "
                    f"the start, though the worker is new; other processes on it: {named}."
                )

    def _excess(self, f: WorkerFacts) -> int:
        """Bytes in use on a worker's card above those at the start."""
        return (f.device or 0) - self._device_baseline.get(f.name, f.device or 0)

    def _await_free_cards(
        self, facts: tuple[WorkerFacts, ...], old: frozenset[int]
    ) -> tuple[tuple[WorkerFacts, ...], frozenset[int]]:
        """Wait until the cards are as free as at the start; the processes of `old` that are not.

        A process is gone before the driver has taken back all it had.
        """
        deadline = time.monotonic() + CARD_SECONDS
        while True:
            full = [f for f in facts if self._excess(f) > DEVICE_TOLERANCE]
            if not full or time.monotonic() > deadline:
                return facts, old & {pid for f in full for pid in f.holders}
            time.sleep(0.2)
            facts = self.workers() or facts

    def _recycle_own(self, own: _OwnCluster) -> tuple[WorkerFacts, ...]:
        deadline = time.monotonic() + REOPEN_SECONDS
        old = own.pids()
        try:
            with _impatience(old):
                _within(self.client, REOPEN_SECONDS, "restart", timeout=REOPEN_SECONDS * 0.8)
            facts = self._expect(own.n_workers, deadline, old)
            facts, left = self._await_free_cards(facts, old)
            if left:
                reason = f"process {min(left)} holds on to its card"
            elif len(facts) >= own.n_workers:
                return facts
            else:
                reason = f"{len(facts)} of {own.n_workers} workers came back"
        except _CLUSTER_ERRORS as error:
            reason = _first_line(error)
        self._warn(f"the restart of the workers failed ({reason}); opening a new cluster.")
        own.close()
        psutil.wait_procs(_kill(old), timeout=5)
        self.client = own.open()
        facts = self._expect(own.n_workers, time.monotonic() + REOPEN_SECONDS, old)
        return self._await_free_cards(facts, old)[0]

    def _recycle_attached(self) -> tuple[WorkerFacts, ...]:
        before = self.workers()
        if not before:
            return before
        without = [f.name for f in before if not f.nanny]
        if without:
            return self._tidy(
                f"the workers keep their processes, because worker {without[0]} runs without "
                "a nanny that could restart it."
            )
        if self._restart == "auto" and (reason := self._others()):
            return self._tidy(
                f"the workers keep their processes, because {reason}; "
                "--restart always restarts them all the same."
            )
        _wait_for_a_quiet_moment(self.client)
        began = time.monotonic()
        deadline = began + RECYCLE_SECONDS
        try:
            _within(
                self.client,
                RECYCLE_SECONDS,
                "restart_workers",
                [f.address for f in before],
                timeout=RECYCLE_SECONDS * 0.8,
                raise_for_error=False,
            )
        except (*_CLUSTER_ERRORS, KeyError, ValueError) as error:
            self._warn(f"the restart of the workers failed ({_first_line(error)}).")
        old = frozenset(f.pid for f in before)
        facts, _ = self._await_free_cards(self._expect(len(before), deadline, old), old)
        _restarts.setdefault(_scheduler_address(self.client), []).append((began, time.monotonic()))
        if 0 < len(facts) < len(before):
            self._warn(f"{len(facts)} of {len(before)} workers came back after the restart.")
        return facts

    def _others(self) -> str | None:
        """Why restarting would hurt somebody else, or None."""
        mine = {self._wake.key} if self._wake is not None else set()

        # Nested, so that it travels by value: the scheduler need not have dpipe installed.
        def in_use(dask_scheduler: Any) -> tuple[list[str], int]:
            return list(dask_scheduler.clients), len(dask_scheduler.tasks.keys() - mine)

        deadline = time.monotonic() + 3.0
        while True:
            try:
                clients, tasks = _within(self.client, PROBE_SECONDS, "run_on_scheduler", in_use)
            except Exception as error:  # a foreign scheduler may say anything; doubt means no
                return f"the scheduler does not say who else uses it ({_first_line(error)})"
            others = {c for c in clients if c not in (self.client.id, "fire-and-forget")}
            if others:
                return f"{_count(others, 'other client')} is connected"
            if not tasks:
                return None
            # Futures dpipe let go of a moment ago take a moment to be forgotten.
            if time.monotonic() > deadline:
                return f"the cluster holds {_count(range(tasks), 'result')} of other work"
            gc.collect()
            time.sleep(0.1)

    def _tidy(self, reason: str) -> tuple[WorkerFacts, ...]:
        """Give back what can be given back without a restart, and say why."""
        self._emit(Note(reason))
        try:
            _within(self.client, PROBE_SECONDS, "run", give_memory_back, on_error="ignore")
        except _CLUSTER_ERRORS as error:
            self._warn(f"the workers did not tidy up ({_first_line(error)}).")
        return self._expect(1, time.monotonic() + PROBE_SECONDS)

    # Threads

    def pin_threads(self) -> None:
        """Hold the BLAS of every attached worker, now and after restarts, to one thread a task."""
        name = f"dpipe-threads-{uuid.uuid4().hex[:8]}"
        try:
            _within(self.client, PROBE_SECONDS, "register_plugin", ThreadPin(), name=name)
        except Exception as error:  # whatever a worker raised: threads decide speed, not results
            self._warn(f"the BLAS threads of the workers are not limited ({_first_line(error)}).")
        self._pin = name

    def _unpin_threads(self) -> None:
        if self._pin is None or self.client.status != "running":
            return
        try:
            _within(self.client, PROBE_SECONDS, "unregister_worker_plugin", self._pin)
        except (*_CLUSTER_ERRORS, ValueError) as error:
            self._warn(f"the BLAS threads of the workers stay at 1 ({_first_line(error)}).")


_restarts: dict[str, list[tuple[float, float]]] = {}


def _wait_for_a_quiet_moment(client: Client) -> None:
    """Let the checks for lost workers pass that earlier restarts on this cluster set off.

    See `_KeepsNannies`, which an attached cluster is not: there a worker that happens to be away
    at such a check loses its nanny, or its job on a batch system.
    """
    address = _scheduler_address(client)
    delay = parse_timedelta(dask.config.get("distributed.deploy.lost-worker-timeout"))
    now = time.monotonic()
    recent = [(began, ended) for began, ended in _restarts.get(address, []) if ended + delay > now]
    _restarts[address] = recent
    away = 1.0 + max((ended - began for began, ended in recent), default=0.0)
    for began, ended in recent:
        if began + delay < time.monotonic() + away:
            time.sleep(max(0.0, ended + delay + 0.5 - time.monotonic()))


# What runs inside workers


class ThreadPin(WorkerPlugin):
    """Holds the BLAS and OpenMP of a worker process to one thread while any session wants it."""

    def setup(self, worker: Any) -> None:
        """Limit the thread pools of this process."""
        with _pin_lock:
            _pins.append(self)
            if len(_pins) == 1:
                import numpy  # noqa: F401  its BLAS must be loaded before it can be limited

                threadpoolctl = importlib.import_module("threadpoolctl")
                _limits.append(threadpoolctl.threadpool_limits(1))

    def teardown(self, worker: Any) -> None:
        """Undo it when the last session that asked for it is gone."""
        with _pin_lock:
            if _pins:
                _pins.pop()
            if not _pins and _limits:
                _limits.pop().restore_original_limits()


_pin_lock = threading.Lock()
_pins: list[ThreadPin] = []
_limits: list[Any] = []


def _look(dask_worker: Any, gpu: bool) -> WorkerFacts:
    """What the worker this runs on says about itself; `gpu` asks its card as well."""
    rss, peak = process_memory()
    has_card = gpu and visible_cards() > 0
    used = card.used_bytes() if has_card else None
    seen = dask_worker.monitor.quantities.get("gpu_memory_used", ())
    limit = dask_worker.memory_manager.memory_limit
    return WorkerFacts(
        address=dask_worker.address,
        name=str(dask_worker.name),
        pid=os.getpid(),
        rss=rss,
        peak=peak,
        device=used,
        threads=dask_worker.state.nthreads,
        limit=int(limit) if limit else None,
        nanny=dask_worker.nanny is not None,
        host=socket.gethostname(),
        host_memory=int(MEMORY_LIMIT),
        has_gpu=has_card and importlib.util.find_spec("cupy") is not None,
        device_peak=None if used is None else max([used, *(int(n) for n in seen if n)]),
        holders=card.holders() if has_card else (),
    )


def give_memory_back() -> int:
    """Collect garbage and hand free pages to the system; the bytes of resident memory saved."""
    before = process_memory()[0]
    kept.pieces.clear()
    free_device_memory()
    arrow = sys.modules.get("pyarrow")
    if arrow is not None:
        arrow.default_memory_pool().release_unused()
    if sys.platform == "linux":
        import ctypes

        # Only glibc has it; musl and others keep their own counsel.
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL("libc.so.6").malloc_trim(0)
    return before - process_memory()[0]


def process_memory() -> tuple[int, int]:
    """Resident bytes of this process, now and at most since it began.

    Examples
    --------
    >>> rss, peak = process_memory()
    >>> 0 < rss and 0 < peak
    True
    """
    rss = int(psutil.Process().memory_info().rss)
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as status:
            kilobytes = next(line.split()[1] for line in status if line.startswith("VmHWM:"))
        return rss, max(rss, int(kilobytes) * 1024)
    except (OSError, StopIteration, ValueError):
        return rss, max(rss, _peak_elsewhere())


def _peak_elsewhere() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


# A cluster of dpipe's own


@dataclass
class _OwnCluster:
    """How to open, and open again, the cluster an owned session runs on."""

    options: Options
    device: str
    local_directory: str | None
    n_workers: int = 0
    _cluster: LocalCluster | None = None
    _client: Client | None = None
    _folder: str | None = None
    _environment: dict[str, str | None] = field(default_factory=dict)

    def open(self) -> Client:
        self._folder = _worker_folder(self.local_directory)
        start = _start_gpu_cluster if self.device == "gpu" else _start_cpu_cluster
        before = dict(os.environ)
        try:
            with (
                dask.config.set(
                    {
                        "distributed.nanny.pre-spawn-environ": _spawn_environment(),
                        "distributed.scheduler.allowed-failures": DEATHS,
                    }
                ),
                _deaf_to_interrupts(),
            ):
                self._cluster = start(self.options, self._folder)
            # Not the default client: what the user computes meanwhile stays where it was.
            self._client = Client(self._cluster, set_as_default=False)
        except (OSError, TimeoutError, RuntimeError, ValueError) as error:
            self.close()
            raise ResourceError(
                f"the workers could not be started ({_first_line(error)}): a script must call "
                'dpipe under if __name__ == "__main__"; otherwise try fewer --workers.'
            ) from error
        finally:
            # A nanny writes what its workers shall find into this process and leaves it there.
            self._environment = {
                name: before.get(name)
                for name, value in os.environ.items()
                if before.get(name) != value
            }
        self.n_workers = len(self._cluster.worker_spec)
        return self._client

    def pids(self) -> frozenset[int]:
        """The worker processes now."""
        if self._cluster is None:
            return frozenset()
        return frozenset(n.pid for n in self._cluster.workers.values() if n.pid is not None)

    def close(self) -> None:
        """End every process, remove the folder, put the environment back."""
        pids = self.pids()
        with _impatience(pids):
            for part in (self._client, self._cluster):
                if part is not None:
                    # Whatever a dying cluster has to say, its processes end below.
                    with contextlib.suppress(Exception):
                        part.close(timeout=CLOSE_SECONDS)
        self._client = self._cluster = None
        psutil.wait_procs(_kill(pids), timeout=5)
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None
        for name, value in self._environment.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        self._environment = {}


class _KeepsNannies(SpecCluster):
    """Leaves a worker that is away to its nanny.

    A cluster otherwise looks, some time after a worker left (``lost-worker-timeout``, 15 s),
    whether one of that name is there, and closes its nanny for good if not. When the look falls
    into the second in which a later restart has just taken the worker away, the nanny dies and
    the restart never ends (distributed issue 7312).
    """

    def _update_worker_status(self, op: str, msg: Any) -> None:
        super(SpecCluster, self)._update_worker_status(op, msg)


class _LocalCluster(_KeepsNannies, LocalCluster):
    pass


def _start_cpu_cluster(options: Options, folder: str) -> LocalCluster:
    return _LocalCluster(**_local_options(options, folder, CPU_COUNT // options.threads_per_worker))


def _start_gpu_cluster(options: Options, folder: str) -> LocalCluster:
    dask_cuda = importlib.import_module("dask_cuda")
    kind = type("_LocalCUDACluster", (_KeepsNannies, dask_cuda.LocalCUDACluster), {})
    cluster: LocalCluster = kind(**gpu_options(options, folder, visible_cards()))
    return cluster


def _local_options(options: Options, folder: str, n_workers: int) -> dict[str, Any]:
    chosen: dict[str, Any] = {
        "n_workers": options.workers or max(1, n_workers),
        "threads_per_worker": options.threads_per_worker,
        "processes": True,
        "host": "127.0.0.1",
        "dashboard_address": _free_dashboard_address(),
        "local_directory": folder,
        "silence_logs": max(logging.ERROR, logging.getLogger("distributed").level),
        "env": {"TMPDIR": folder},
    }
    if options.memory_limit is not None:
        chosen["memory_limit"] = options.memory_limit
    if options.tls:
        chosen["security"] = _own_certificates()
    return chosen


def _own_certificates() -> Security:
    """A key and certificate that nobody else has, kept in memory until the cluster ends."""
    try:
        made: Security = Security.temporary()
        return made
    except ImportError:
        raise InputError(
            "--tls needs the package cryptography: pip install cryptography."
        ) from None


def gpu_options(options: Options, folder: str, n_cards: int) -> dict[str, Any]:
    """Arguments of ``dask_cuda.LocalCUDACluster``: one worker a card, one allocator a worker.

    The stream-ordered allocator does not fragment as a pool does and shares the card with
    others; CuPy must use the same one, or two allocators starve each other. Above the release
    threshold, freed memory goes back to the card.
    """
    chosen = _local_options(options, folder, n_cards)
    if chosen["n_workers"] > n_cards:
        raise InputError(
            f"--workers {chosen['n_workers']} exceeds the {n_cards} visible GPUs: "
            "a GPU session runs one worker on each."
        )
    # LocalCUDACluster fills these in itself, one value a worker.
    del chosen["env"], chosen["processes"]
    return chosen | {
        "rmm_async": True,
        "rmm_release_threshold": 0.5,
        "rmm_allocator_external_lib_list": ["cupy"],
    }


def _warn_when_overcommitted(options: Options, emit: Emit) -> None:
    asked = (options.memory_limit or 0) * (options.workers or 1)
    if asked > MEMORY_LIMIT:
        emit(
            Note(
                f"--memory-limit and --workers allow {asked / 1024**3:.1f} GiB, more than the "
                f"{MEMORY_LIMIT / 1024**3:.1f} GiB of this machine.",
                "warning",
            )
        )


def _spawn_environment() -> dict[str, Any]:
    configured = dask.config.get("distributed.nanny.pre-spawn-environ", default={})
    # Where this process wants no word of distributed, its workers keep silent to their end.
    silent = logging.getLogger("distributed").level >= logging.CRITICAL
    quiet = {"DASK_LOGGING__DISTRIBUTED": "critical"} if silent else {}
    return {**configured, **worker_environment(), **quiet}


@contextlib.contextmanager
def _deaf_to_interrupts() -> Iterator[None]:
    """Keep Ctrl-C from the processes started inside; it comes to this process afterwards.

    A terminal sends it to every process, and each worker would answer with a traceback while
    dpipe is about to end it properly. The thread of the event loop starts inside and inherits the
    mask; the workers, and those that replace them later, inherit it from that thread.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    # Whoever starts this helper of multiprocessing unblocks the signal in its own thread.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _worker_folder(local_directory: str | None) -> str:
    parent = local_directory or dask.config.get("temporary-directory", default=None)
    try:
        if parent is not None:
            os.makedirs(parent, exist_ok=True)
        return tempfile.mkdtemp(prefix="dpipe-workers-", dir=parent)
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
def _impatience(pids: Iterable[int]) -> Iterator[None]:
    """Kill these workers if the block takes longer than a worker may need to stop.

    A nanny waits four seconds for a worker that is deep in a task; nothing is lost with it, since
    the results of tasks are on disk or gone anyway.
    """
    timer = threading.Timer(GRACE_SECONDS, _kill, [frozenset(pids)])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _kill(pids: Iterable[int]) -> list[psutil.Process]:
    """Kill those of the processes that this one started and that still run."""
    running = [child for child in psutil.Process().children() if child.pid in set(pids)]
    for child in running:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()
    return running


# Devices


def own_machine() -> tuple[int, int]:
    """Cores and bytes of memory that this process may use, control groups respected.

    Examples
    --------
    >>> cores, memory = own_machine()
    >>> cores >= 1 and memory > 0
    True
    """
    return int(CPU_COUNT), int(MEMORY_LIMIT)


def _choose_own_device(options: Options, emit: Emit) -> tuple[str, int | None]:
    """The device of an own session, and the bytes a worker can have of its card."""
    if options.device == "cpu":
        return "cpu", None
    lack, room = _lack_of_gpu()
    if lack is None:
        if options.device == "auto":
            emit(Note(f"computing on {_count(range(visible_cards()), 'GPU')}: a card is visible."))
        return "gpu", room
    if options.device == "gpu":
        raise InputError(f"--device gpu cannot be used here: {lack}.")
    emit(Note(f"computing on the CPU: {lack}."))
    return "cpu", None


def _lack_of_gpu() -> tuple[str | None, int]:
    """What keeps this machine from a GPU session, or None; what a process can have of the card."""
    if visible_cards() == 0:
        return "no NVIDIA card is visible", 0
    missing = [name for name in ("dask_cuda", "cupy", "rmm") if not importlib.util.find_spec(name)]
    if missing:
        return f"a card is visible, but the package {missing[0]} is not installed", 0
    trial = card.probe_elsewhere()
    return trial.trouble, trial.room


def _choose_attached_device(
    wanted: str, facts: Iterable[WorkerFacts], trials: Callable[[], Mapping[str, Any]], emit: Emit
) -> tuple[str, int | None]:
    """The device of an attached session, and the bytes each worker can have of its card.

    ``trials`` has every worker try CuPy: address -> `dpipe.card.Trial`.
    """
    if wanted == "cpu":
        return "cpu", None
    facts = tuple(facts)
    without = [f.name for f in facts if not f.has_gpu]
    lack = f"worker {without[0]} has no visible card or no CuPy" if without else None
    if lack is None:
        lack, room = _judge(facts, trials())
        if lack is None:
            if wanted == "auto":
                emit(Note("computing on the GPU: every worker has a card and CuPy."))
            return "gpu", room
    if wanted == "gpu":
        raise InputError(f"--device gpu cannot be used on this cluster: {lack}.")
    emit(Note(f"computing on the CPU: {lack}."))
    return "cpu", None


def _judge(
    facts: Iterable[WorkerFacts], trials: Mapping[str, Any]
) -> tuple[str | None, int | None]:
    """What is wrong with the cards of some workers, or None; what the poorest one can have.

    Workers that share a card share what it gives.
    """
    rooms = []
    sharing = Counter(t.uuid for t in trials.values() if isinstance(t, card.Trial))
    for f in facts:
        trial = trials.get(f.address)
        if not isinstance(trial, card.Trial):
            return f"worker {f.name} does not answer when it is to try CuPy", None
        if trial.trouble is not None:
            return f"on worker {f.name}, {trial.trouble}", None
        rooms.append(trial.room // sharing[trial.uuid])
    return None, min(rooms)


# Attaching


def _connect(connection: Any, seconds: float) -> tuple[Client, bool]:
    """A synchronous client, and whether it was opened here."""
    if isinstance(connection, Client):
        if connection.asynchronous:
            raise InputError("dpipe needs a synchronous Dask client, not an asynchronous one.")
        if connection.status != "running":
            raise InputError(f"the given Dask client is {connection.status}; give a running one.")
        return connection, False
    if isinstance(connection, Cluster):
        return Client(connection, set_as_default=False), True
    if callable(getattr(connection, "get_client", None)):  # of dask-gateway, which is no `Cluster`
        return connection.get_client(set_as_default=False), True
    if not isinstance(connection, str | os.PathLike):
        raise InputError(
            "a run takes a Dask client, a cluster or the address of a scheduler, not data of the "
            f"type {type(connection).__name__}."
        )
    address = _address(os.fspath(connection))
    try:
        _knock(address, seconds)
        return Client(address, timeout=seconds, set_as_default=False), True
    except ValueError as error:
        raise InputError(
            f"{address!r} is not the address of a scheduler ({_first_line(error)}); "
            "write it like tcp://host:8786."
        ) from error
    except TypeError as error:  # what Dask raises for a tls:// address without certificates
        raise InputError(
            f"the scheduler at {address} wants certificates, and Dask's configuration names none: "
            "set distributed.comm.tls, as cluster/tls/make_certificates.sh shows."
        ) from error
    except (OSError, TimeoutError) as error:
        source = "" if address == connection else f" (the address in {connection})"
        raise ResourceError(
            f"no Dask scheduler answers at {address}{source} within {seconds:g} s; "
            "check the address and that it runs."
        ) from error


def _knock(address: str, seconds: float) -> None:
    """Raise what is wrong with an address before a client is made for it.

    A client that could not connect is a nuisance until the interpreter ends. The detour through a
    thread is for callers that run in an event loop, as notebooks do.
    """

    async def knock() -> None:
        comm = await connect(address, timeout=seconds, **Security().get_connection_args("client"))
        await comm.close()

    with ThreadPoolExecutor(1) as thread:
        thread.submit(asyncio.run, knock()).result()


def _address(text: str) -> str:
    """The scheduler's address meant by an address or by the path of a scheduler file."""
    if "://" in text or not (os.sep in text or text.endswith(".json") or os.path.exists(text)):
        return text
    try:
        with open(text, encoding="utf-8") as file:
            address = json.load(file)["address"]
    except OSError as error:
        raise InputError(f"the scheduler file {text} cannot be read ({error.strerror}).") from error
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{text} is not a scheduler file: it holds no JSON with an address."
        ) from error
    return str(address)


def _wait_for_first_worker(client: Client, seconds: float) -> Future[int]:
    """Wait for a worker, and hold a result there so small that nobody minds.

    A task in the queue is what makes an adaptive cluster ask for its first worker, and a result
    is what keeps it from sending the last one away between passes.
    """
    address = _scheduler_address(client)
    wake: Future[int] = client.submit(int, key=f"dpipe-awake-{uuid.uuid4().hex}")
    try:
        _within(client, seconds + 5, "wait_for_workers", 1, timeout=seconds)
    except _CLUSTER_ERRORS as error:
        raise ResourceError(
            f"the scheduler at {address} has no worker after {seconds:g} s; "
            "start workers there and run the same command again."
        ) from error
    return wake


def _scheduler_address(client: Client) -> str:
    return str(client.scheduler.address) if client.scheduler is not None else "nowhere"


def _warn_when_exposed(client: Client, emit: Emit) -> None:
    address = _scheduler_address(client)
    protocol, _, host = address.partition("://")
    if protocol in ("tcp", "ws", "ucx") and not host.startswith(("127.", "[::1]")):
        emit(
            Note(
                f"the scheduler at {address} talks without encryption or password: whoever "
                "reaches it can run code on its workers, so keep it on a trusted network.",
                "warning",
            )
        )


def check_versions(client: Client) -> tuple[str, ...]:
    """Sentences about versions that differ between here, the scheduler and the workers.

    Raises
    ------
    ResourceError
        When python, distributed or dpipe differ in their first two numbers, or a worker
        lacks dpipe.
    """
    names = ("dask", "distributed", "numpy", "pyarrow", "dpipe")
    try:
        found = _within(client, PROBE_SECONDS, "get_versions", packages=list(names))
    except _CLUSTER_ERRORS as error:
        return (f"the versions on the cluster are unknown ({_first_line(error)}).",)
    here = found["client"]["packages"]
    # A scheduler runs Dask alone; what else is installed there does not matter.
    places: list[tuple[str, Any, tuple[str, ...]]] = [
        ("the scheduler", found["scheduler"], ("python", "dask", "distributed")),
        *((f"worker {w}", there, ("python", *names)) for w, there in found["workers"].items()),
    ]
    sentences = []
    for name in ("python", *names):
        for place, there, wanted in places:
            theirs = (there or {}).get("packages", {}).get(name)
            if name not in wanted or theirs == here[name]:
                continue
            text = f"{name} is {_version(here[name])} here and {_version(theirs)} on {place}"
            fatal = name in ("python", "distributed", "dpipe")
            if fatal and _release(theirs) != _release(here[name]):
                raise ResourceError(f"{text}: install the same version on both sides.")
            sentences.append(f"{text}.")
            break
    return tuple(sentences)


def _version(text: str | None) -> str:
    return "not installed" if text is None else text.removesuffix(".final.0")


def _release(text: str | None) -> tuple[str, ...]:
    return tuple((text or "").split(".")[:2])


# Small change


def _within(client: Client, seconds: float, method: str, *args: Any, **kwargs: Any) -> Any:
    """Call a method of the client, giving up after `seconds` whatever the cluster does."""
    if client.scheduler is None:
        raise ConnectionError("the connection to the scheduler is lost")
    call: Callable[..., Any] = getattr(client, method)
    return client.sync(call, *args, callback_timeout=seconds, **kwargs)


def _smallest_limit(facts: Iterable[WorkerFacts]) -> int:
    """Bytes of the smallest worker; one without a limit counts its share of its host."""
    facts = tuple(facts)
    hosts: dict[str, int] = {}
    for f in facts:
        hosts[f.host] = hosts.get(f.host, 0) + 1
    return min(f.limit or f.host_memory // hosts[f.host] for f in facts)


def _natural(name: str) -> tuple[int, str]:
    return (int(name), "") if name.isdigit() else (sys.maxsize, name)


def _count(things: Any, noun: str) -> str:
    n = len(things)
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def _first_line(error: BaseException) -> str:
    lines: list[str] = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
