"""Keeping the cluster object of an attached cluster from giving up workers that restart.

Covers: what the scheduler tells a cluster object while workers are away, warnings that a planned
restart would leave, starting again what was closed for good.
Does not cover: when workers are restarted (`dpipe.session.session`), the clusters dpipe starts
itself (`dpipe.session.local`, `NoLostWorkerTimeout`).

Whenever a worker leaves, a ``SpecCluster`` (LocalCluster, LocalCUDACluster, SSHCluster,
SLURMCluster, ...) starts a clock, ``distributed.deploy.lost-worker-timeout`` (15 s). As it runs
out, the cluster closes the nanny or the job of that name for good when no worker of the name is
there at that instant. Restarts in a row therefore cost a cluster its workers: the clock of one
runs out in the middle of another.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from distributed import Client, SpecCluster
from distributed.core import Status

from dpipe.session.calls import CLUSTER_ERRORS, PROBE_SECONDS, scheduler_address, within
from dpipe.session.worker import AWAKE, expect_restart


@contextlib.contextmanager
def kept_from_clock(client: Client, addresses: Sequence[str], seconds: float) -> Iterator[None]:
    """Restart workers inside: whichever cluster object watches them starts no clock for it.

    It works on the scheduler, so that it holds wherever the cluster object lives: the message that
    a worker has left waits until one of its name is back. Clocks that others have started find the
    worker present. A client that ends inside leaves nothing: after `seconds` all is as before.
    A worker that has not come back by the end is reported as lost, as it would have been.

    Raises
    ------
    OSError, TimeoutError, RuntimeError
        When the scheduler does not answer.
    """
    with contextlib.suppress(Exception):  # whatever a worker raised: it would warn, no more
        within(client, PROBE_SECONDS, "run", expect_restart, workers=list(addresses))
    within(client, PROBE_SECONDS, "run_on_scheduler", _hold(list(addresses), seconds))
    try:
        yield
    finally:
        with contextlib.suppress(*CLUSTER_ERRORS):  # the scheduler lets go by itself
            within(client, PROBE_SECONDS, "run_on_scheduler", _let_go())


def bring_back(client: Client) -> bool:
    """Have the cluster object of this client start what it closed; whether there is one here."""
    address = scheduler_address(client)
    cluster = next((c for c in list(SpecCluster._instances) if _runs(c, address)), None)
    if cluster is None:
        return False

    def start_missing() -> None:
        for name, worker in list(cluster.workers.items()):
            if getattr(worker, "status", None) in (Status.closed, Status.failed):
                del cluster.workers[name]
        cluster.scale(len(cluster.worker_spec))  # no change of size: it starts what is missing

    loop: Any = cluster.loop
    loop.add_callback(start_missing)
    return True


def _runs(cluster: SpecCluster, address: str) -> bool:
    return cluster.status == Status.running and cluster.scheduler_address == address


# What runs on the scheduler. Nested, so that it travels by value: the scheduler need not have
# dpipe installed.


def _hold(addresses: list[str], seconds: float) -> Callable[..., None]:
    waking = AWAKE

    def hold(dask_scheduler: Any) -> None:
        import asyncio
        import logging

        watcher = dask_scheduler.plugins.get("worker-status")  # of the cluster object, if any
        workers = dask_scheduler.workers
        away = {a: workers[a].identity() for a in addresses if a in workers}
        absent: dict[Any, str] = {}  # name of a worker -> its former address

        def is_news(record: logging.LogRecord) -> bool:
            text = record.getMessage()
            if "already computed task(s)" in text:
                return waking not in text
            return not text.startswith(("Restarting worker (", "Worker process still alive"))

        loggers = [logging.getLogger(f"distributed.{name}") for name in ("scheduler", "nanny")]

        def remove_worker(scheduler: Any, worker: str, **details: Any) -> None:
            if worker in away:
                absent[away[worker]["name"]] = worker
            else:
                type(watcher).remove_worker(watcher, scheduler, worker, **details)

        def add_worker(scheduler: Any, worker: str) -> None:
            type(watcher).add_worker(watcher, scheduler, worker)
            former = absent.pop(scheduler.workers[worker].name, None)
            if former is not None:
                # A clock runs for a name. This one is no worker's.
                record = {**away[former], "name": f"restarted {former}"}
                for fact in ("metrics", "last_seen"):
                    record.pop(fact, None)
                watcher.bcomm.send(["add", {"workers": {former: record}}])
                watcher.bcomm.send(["remove", former])

        def let_go() -> None:
            timer.cancel()
            if getattr(dask_scheduler, "dpipe_let_go", None) is let_go:
                del dask_scheduler.dpipe_let_go
            for logger in loggers:
                logger.removeFilter(is_news)
            if watcher is not None and watcher.__dict__.get("add_worker") is add_worker:
                del watcher.add_worker, watcher.remove_worker
                for former in absent.values():
                    watcher.remove_worker(dask_scheduler, former)

        if hasattr(dask_scheduler, "dpipe_let_go"):
            dask_scheduler.dpipe_let_go()
        dask_scheduler.dpipe_let_go = let_go
        for logger in loggers:
            logger.addFilter(is_news)
        if watcher is not None:
            watcher.add_worker, watcher.remove_worker = add_worker, remove_worker
        timer = asyncio.get_running_loop().call_later(seconds, let_go)

    return hold


def _let_go() -> Callable[..., None]:
    def let_go(dask_scheduler: Any) -> None:
        if hasattr(dask_scheduler, "dpipe_let_go"):
            dask_scheduler.dpipe_let_go()

    return let_go
