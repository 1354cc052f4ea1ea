"""A Dask cluster in use: its size, the memory of its processes, fresh ones between passes.

Covers: asking every process for its memory, finding the facts of a restart and acting on the
decision, the BLAS threads of attached workers.
Does not cover: opening a session (`dpipe.session`), the decision (`dpipe.session.decision`), how
workers restart (`dpipe.session.restart`), starting and ending processes (`dpipe.session.local`).
See also: `dpipe.model.records.MemoryReading`, the record of the ledger.
"""

from __future__ import annotations

import gc
import os
import sys
import time
import uuid
from collections.abc import Iterable
from typing import Any

from distributed import Client, Future

from dpipe.common.words import first_line
from dpipe.device import card
from dpipe.errors import ResourceError
from dpipe.model.events import Emit, Note, silent
from dpipe.model.records import MemoryReading
from dpipe.options import Options
from dpipe.session import restart
from dpipe.session.calls import CLUSTER_ERRORS, PROBE_SECONDS, scheduler_address, within
from dpipe.session.cards import CardMemory
from dpipe.session.decision import Others, Tidy, decide_restart
from dpipe.session.device import choose_attached_device
from dpipe.session.local import StartedCluster
from dpipe.session.restart import reopen, restart_attached, restart_local
from dpipe.session.worker import (
    ThreadPin,
    WorkerFacts,
    give_memory_back,
    look,
    process_memory,
)


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
        owned: StartedCluster | None = None,
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
        self._local = owned
        self._opened_client = opened_client
        self._wake = wake
        self._thread_limit: str | None = None  # the name of the plugin that holds them
        self._began = time.monotonic()
        self._baselines: dict[int, int] = {}  # resident bytes of each process when first seen
        self._closed = False
        self.device, self.device_memory = device or "unknown", room
        self._address = scheduler_address(client)
        facts = self._expect(owned.n_workers if owned else 1, time.monotonic() + PROBE_SECONDS)
        if not facts:
            raise ResourceError(
                f"no worker of {self._address} answers within {PROBE_SECONDS:g} s; "
                "look at its log, or start workers anew."
            )
        # Before anybody tries CuPy, whose context takes memory as well.
        self._cards = CardMemory(facts)
        if device is None:
            self.device, self.device_memory = choose_attached_device(
                options.device, facts, self._try_cards, emit
            )

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
        if self._local is not None:
            self._local.close()
            return
        if self._wake is not None:
            self._wake.release()
        self._restore_threads()
        if self._opened_client:
            self.client.close()

    def deserted(self) -> bool:
        """Whether a cluster that dpipe started has no worker process left.

        Its nannies bring back a worker that dies, but not one that gave the scheduler up, as after
        this process was stopped for minutes.
        """
        return self._local is not None and self._local.is_deserted()

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
        facts = sorted(facts, key=lambda f: _natural(f.name))
        for f in facts:
            self._baselines.setdefault(f.pid, f.rss)
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
            for f in facts
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

        Hold no future and no scattered data over this call: they are lost. A local cluster whose
        workers do not come back in time is closed and opened again. An attached one is restarted
        only as far as ``--restart`` and its other users allow; otherwise its workers collect
        garbage and hand free pages back, where they have grown.

        Returns
        -------
        tuple of MemoryReading
            The readings after it, of moment "recycled".

        Raises
        ------
        ResourceError
            When no worker is left.
        """
        if self._local is not None:
            before: tuple[WorkerFacts, ...] = ()
            choice = decide_restart(before, self._restart, None)
        else:
            before = self.workers()
            choice = decide_restart(before, self._restart, self._others())
            if not before:
                choice = Tidy("none of them answered in time")
        if isinstance(choice, Tidy):
            facts = self._tidy(choice.reason)
        elif self._local is not None:
            facts = self._restart_local(self._local)
        else:
            facts = restart_attached(
                self.client, before, self._expect, self.workers, self._cards, self._emit
            )
        facts = facts or self._expect(1, time.monotonic() + restart.RECYCLE_SECONDS)
        if not facts:
            raise ResourceError(
                f"no worker of {self._address} answers any more; "
                "start workers and run the same command again to resume."
            )
        for text in self._cards.warnings(facts):
            self._warn(text)
        return self._readings("recycled", pass_number, facts)

    def _restart_local(self, cluster: StartedCluster) -> tuple[WorkerFacts, ...]:
        """Fresh workers, in a new cluster when the one there is does not come back."""
        old = cluster.pids()
        facts, failure = restart_local(
            self.client, cluster, self._expect, self.workers, self._cards
        )
        if failure is None:
            return facts
        self._warn(f"the restart of the workers failed ({failure}); opening a new cluster.")
        self.client = reopen(cluster, old)
        facts = self._expect(cluster.n_workers, time.monotonic() + restart.REOPEN_SECONDS, old)
        return self._cards.wait_until_released(facts, old, self.workers)[0]

    def _others(self) -> Others | None:
        """Who else uses an attached cluster; None when that would not count."""
        if self._restart != "auto":
            return None
        own = {self._wake.key} if self._wake is not None else set()

        # Nested, so that it travels by value: the scheduler need not have dpipe installed.
        def in_use(dask_scheduler: Any) -> tuple[list[str], int]:
            return list(dask_scheduler.clients), len(dask_scheduler.tasks.keys() - own)

        deadline = time.monotonic() + 3.0
        while True:
            try:
                clients, results = within(self.client, PROBE_SECONDS, "run_on_scheduler", in_use)
            except Exception as error:  # a foreign scheduler may raise anything; doubt means no
                return Others(unknown=first_line(error))
            others = {c for c in clients if c not in (self.client.id, "fire-and-forget")}
            # Futures dpipe let go of a moment ago take a moment to be forgotten.
            if others or not results or time.monotonic() > deadline:
                return Others(len(others), results)
            gc.collect()
            time.sleep(0.1)

    def _tidy(self, reason: str) -> tuple[WorkerFacts, ...]:
        """Give back what can be given back without a restart, and say why."""
        self._emit(Note(f"the workers keep their processes, because {reason}."))
        try:
            within(
                self.client,
                PROBE_SECONDS,
                "run",
                give_memory_back,
                self._baselines,
                on_error="ignore",
            )
        except CLUSTER_ERRORS as error:
            self._warn(f"the workers did not tidy up ({first_line(error)}).")
        return self._expect(1, time.monotonic() + PROBE_SECONDS)

    def limit_threads(self) -> None:
        """Hold the BLAS of attached workers to one thread a task until the session closes."""
        self._thread_limit = f"dpipe-threads-{uuid.uuid4().hex[:8]}"
        try:
            within(
                self.client,
                PROBE_SECONDS,
                "register_plugin",
                ThreadPin(),
                name=self._thread_limit,
            )
        except Exception as error:  # whatever a worker raised: threads decide speed, not results
            self._warn(f"the BLAS threads of the workers are not limited ({first_line(error)}).")

    def _restore_threads(self) -> None:
        if self._thread_limit is None or self.client.status != "running":
            return
        try:
            within(self.client, PROBE_SECONDS, "unregister_worker_plugin", self._thread_limit)
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
