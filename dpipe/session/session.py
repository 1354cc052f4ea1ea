"""A Dask cluster in use: its size, the memory of its processes, fresh ones between passes.

Covers: reading the memory of every process, restarting workers as one operation with a deadline and
a fallback, holding their BLAS to one thread a task.
Does not cover: opening a session (`dpipe.session`), starting and ending processes
(`dpipe.session.local`).
See also: `dpipe.model.MemoryReading`, the record of the ledger.
"""

# Most of distributed's public methods carry no annotations.
# mypy: allow-untyped-calls

from __future__ import annotations

import gc
import os
import sys
import time
import uuid
from collections.abc import Iterable
from typing import Any

import psutil
from distributed import Client, Future

from dpipe.device import card
from dpipe.errors import ResourceError
from dpipe.model import Emit, MemoryReading, Note, silent
from dpipe.options import Options
from dpipe.session.calls import CLUSTER_ERRORS, PROBE_SECONDS, scheduler_address, within
from dpipe.session.device import choose_attached_device
from dpipe.session.local import OwnCluster, impatience, kill
from dpipe.session.lost_workers import bring_back, kept_from_clock
from dpipe.session.worker import ThreadPin, WorkerFacts, give_memory_back, look, process_memory
from dpipe.words import counted, first_line, sized

RECYCLE_SECONDS = 60.0
"""How long the workers of an attached cluster may take to come back as new processes."""
SETTLE_SECONDS = 10.0
"""How long the last of them may take to answer once the scheduler has restarted them."""
REOPEN_SECONDS = 30.0
"""How long owned workers may take to come back before the whole cluster is opened anew."""
DEVICE_TOLERANCE = 1024**3
"""Bytes in use on a card after a restart, above those at the start, that are worth a warning."""
CARD_SECONDS = 10.0
"""How long the driver may take to get back what a worker that ended had on its card."""


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
        owned: OwnCluster | None = None,
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
        self._address = scheduler_address(client)
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
            self.device, self.device_memory = choose_attached_device(
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
        except (*CLUSTER_ERRORS, KeyError, AttributeError):
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
            "start" or "after".
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
            answers = within(self.client, seconds, "run", look, gpu=gpu, on_error="return")
        except CLUSTER_ERRORS as error:
            self._warn(f"the workers do not answer ({first_line(error)}).")
            return ()
        missing = next((a for a in answers.values() if isinstance(a, ModuleNotFoundError)), None)
        if missing is not None:
            raise ResourceError(
                f"the workers cannot import {missing.name!r}; "
                "install the same packages there as here."
            )
        return tuple(a for a in answers.values() if isinstance(a, WorkerFacts))

    def _try_cards(self) -> dict[str, Any]:
        """What came of trying CuPy on every worker: address -> `dpipe.device.card.Trial`."""
        try:
            answers: dict[str, Any] = within(
                self.client, card.PROBE_SECONDS, "run", card.probe, on_error="return"
            )
        except CLUSTER_ERRORS:
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
                    f"the card of worker {f.name} has {sized(more)} more in use than at "
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

    def _recycle_own(self, own: OwnCluster) -> tuple[WorkerFacts, ...]:
        deadline = time.monotonic() + REOPEN_SECONDS
        old = own.pids()
        try:
            with impatience(old):
                within(self.client, REOPEN_SECONDS, "restart", timeout=REOPEN_SECONDS * 0.8)
            facts = self._expect(own.n_workers, deadline, old)
            facts, left = self._await_free_cards(facts, old)
            if left:
                reason = f"process {min(left)} holds on to its card"
            elif len(facts) >= own.n_workers:
                return facts
            else:
                reason = f"{len(facts)} of {own.n_workers} workers came back"
        except CLUSTER_ERRORS as error:
            reason = first_line(error)
        self._warn(f"the restart of the workers failed ({reason}); opening a new cluster.")
        own.close()
        psutil.wait_procs(kill(old), timeout=5)
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
        addresses = [f.address for f in before]
        old = frozenset(f.pid for f in before)
        try:
            with kept_from_clock(self.client, addresses, 2 * RECYCLE_SECONDS):
                within(
                    self.client,
                    RECYCLE_SECONDS,
                    "restart_workers",
                    addresses,
                    timeout=RECYCLE_SECONDS * 0.8,
                    raise_for_error=False,
                )
        except (*CLUSTER_ERRORS, KeyError, ValueError) as error:
            self._warn(f"the restart of the workers failed ({first_line(error)}).")
        facts = self._expect(len(before), time.monotonic() + SETTLE_SECONDS, old)
        if len(facts) < len(before) and bring_back(self.client):
            facts = self._expect(len(before), time.monotonic() + RECYCLE_SECONDS, old)
        facts, _ = self._await_free_cards(facts, old)
        if 0 < len(facts) < len(before):
            self._warn(
                f"{len(facts)} of {len(before)} workers came back after the restart; "
                "start others, or the cluster stays smaller."
            )
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
                clients, tasks = within(self.client, PROBE_SECONDS, "run_on_scheduler", in_use)
            except Exception as error:  # a foreign scheduler may raise anything; doubt means no
                return f"the scheduler does not say who else uses it ({first_line(error)})"
            others = {c for c in clients if c not in (self.client.id, "fire-and-forget")}
            if others:
                return f"{counted(len(others), 'other client')} is connected"
            if not tasks:
                return None
            # Futures dpipe let go of a moment ago take a moment to be forgotten.
            if time.monotonic() > deadline:
                return f"the cluster holds {counted(tasks, 'result')} of other work"
            gc.collect()
            time.sleep(0.1)

    def _tidy(self, reason: str) -> tuple[WorkerFacts, ...]:
        """Give back what can be given back without a restart, and say why."""
        self._emit(Note(reason))
        try:
            within(self.client, PROBE_SECONDS, "run", give_memory_back, on_error="ignore")
        except CLUSTER_ERRORS as error:
            self._warn(f"the workers did not tidy up ({first_line(error)}).")
        return self._expect(1, time.monotonic() + PROBE_SECONDS)

    # Threads

    def pin_threads(self) -> None:
        """Hold the BLAS of every attached worker, now and after restarts, to one thread a task."""
        name = f"dpipe-threads-{uuid.uuid4().hex[:8]}"
        try:
            within(self.client, PROBE_SECONDS, "register_plugin", ThreadPin(), name=name)
        except Exception as error:  # whatever a worker raised: threads decide speed, not results
            self._warn(f"the BLAS threads of the workers are not limited ({first_line(error)}).")
        self._pin = name

    def _unpin_threads(self) -> None:
        if self._pin is None or self.client.status != "running":
            return
        try:
            within(self.client, PROBE_SECONDS, "unregister_worker_plugin", self._pin)
        except (*CLUSTER_ERRORS, ValueError) as error:
            self._warn(f"the BLAS threads of the workers stay at 1 ({first_line(error)}).")


def _smallest_limit(facts: Iterable[WorkerFacts]) -> int:
    """Bytes of the smallest worker; one without a limit counts its share of its host."""
    facts = tuple(facts)
    hosts: dict[str, int] = {}
    for f in facts:
        hosts[f.host] = hosts.get(f.host, 0) + 1
    return min(f.limit or f.host_memory // hosts[f.host] for f in facts)


def _natural(name: str) -> tuple[int, str]:
    return (int(name), "") if name.isdigit() else (sys.maxsize, name)
