"""The Dask cluster as dpipe sees it: opened or attached, recycled between passes, closed.

Covers: opening a session on local workers (CPU or one per GPU) or on a running cluster, the client
that is current here, a pool of threads in this process.
Does not cover: what a session does (`dpipe.session.session`), submitting tasks
(`dpipe.engine.submit`), choosing tile sizes (`dpipe.engine.tiling`).

Two kinds of session behave differently on purpose. An *owned* one is dpipe's to restart, rebuild
and close. An *attached* one belongs to somebody else: dpipe never calls ``Client.restart`` on it
(that cancels the futures of every connected client), restarts its workers only when nobody else
uses them, and leaves it running.

After `Session.recycle` the cluster may be a new one, so ask for ``session.client`` each time
instead of keeping it.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from typing import Any

import dask
from dask.system import CPU_COUNT
from distributed import Client, LocalCluster, Worker
from distributed.comm.core import CommClosedError
from distributed.deploy.cluster import Cluster

from dpipe.common.spawn import within_joblib
from dpipe.device import card
from dpipe.errors import InputError
from dpipe.model.events import Emit, Note, silent
from dpipe.options import Options
from dpipe.session.attach import (
    check_versions,
    connect_client,
    wait_for_first_worker,
    warn_when_exposed,
    within_task,
)
from dpipe.session.device import choose_local_device, local_workers
from dpipe.session.local import (
    StartedCluster,
    forget_closed_schedulers,
    say_nothing_of_missed_deadlines,
    warn_when_overcommitted,
)
from dpipe.session.session import Session
from dpipe.session.worker import PlainWorker

__all__ = [
    "FEW_CELLS",
    "Session",
    "attach_session",
    "client_for",
    "configured_options",
    "current_client",
    "open_session",
    "session_for",
    "threads_here",
    "use_session",
    "within_joblib",
    "within_task",
]

CONNECT_SECONDS = 20.0
"""How long an address may take to answer."""
WORKERS_SECONDS = 60.0
"""How long a scheduler may take to show its first worker."""
FEW_CELLS = 2**24
"""Cells up to which threads of this process are done with a run before processes would pay."""

_Connection = Client | Cluster | str | os.PathLike[str]


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
    values = dask.config.get("dpipe", default=None) or {}
    if not isinstance(values, dict):
        raise InputError(f"Dask's configuration holds {values!r} under dpipe: instead of options.")
    return dict(values)


def open_session(
    options: Options, *, local_directory: str | None = None, emit: Emit = silent
) -> Session:
    """Start a local cluster on this machine, listening on 127.0.0.1 only.

    Parameters
    ----------
    options
        ``device``, ``workers``, ``threads_per_worker``, ``memory_limit`` and ``restart`` count.
    local_directory
        Where workers keep temporary files; a folder made there is removed at the end. By
        default Dask's ``temporary-directory``, else the system's.
    emit
        Told what a user should know, as `dpipe.model.events.Note`.

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
    workers = local_workers(options, emit)
    warn_when_overcommitted(options, emit)
    owned = StartedCluster(options, workers, local_directory)
    try:
        client = owned.open()
        return Session(
            client, options, emit=emit, owned=owned, device=workers.device, room=workers.room
        )
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
        Told what a user should know, as `dpipe.model.events.Note`.
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
    client, is_own = connect_client(connection, connect_seconds)
    try:
        wake = wait_for_first_worker(client, workers_seconds)
        for text in check_versions(client):
            emit(Note(text, "warning"))
        warn_when_exposed(client, emit)
        session = Session(client, options, emit=emit, opened_client=is_own, wake=wake)
        session.limit_threads()
        return session
    except BaseException:
        if is_own:
            client.close()
        raise


def use_session(options: Options, connection: Any, emit: Emit = silent) -> Session:
    """The session a run works on: the caller's, the one options name, the current, or a local one.

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
def session_for(
    cells: int, options: Options, connection: Any, emit: Emit = silent
) -> Iterator[Session]:
    """As `use_session`, but few cells get threads of this process where nothing else is asked for.

    Parameters
    ----------
    cells
        Of the table, as many as cost what a whole run of `FEW_CELLS` does.
    options, connection, emit
        As in `use_session`.

    Examples
    --------
    >>> with session_for(1000, Options(device="cpu"), None) as session:
    ...     session.n_workers, session.owned
    (1, False)
    """
    asked = (
        connection or options.scheduler or options.scheduler_file or current_client(),
        options.workers or options.memory_limit or options.threads_per_worker > 1 or options.tls,
        options.device == "gpu" or (options.device == "auto" and card.visible_cards()),
    )
    if any(asked) or cells > FEW_CELLS:
        with use_session(options, connection, emit) as session:
            yield session
        return
    here = options.replace(device=choose_local_device(options, emit)[0])
    with (
        threads_here(dashboard=False) as client,
        attach_session(client, here, emit=emit) as session,
    ):
        yield session


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
    client, is_own = connect_client(connection, CONNECT_SECONDS)
    try:
        yield client
    finally:
        if is_own:
            client.close()


@contextlib.contextmanager
def threads_here(*, dashboard: bool = True) -> Iterator[Client]:
    """A Dask client whose only worker is a pool of threads in this process.

    It is there within a fraction of a second and needs no ``if __name__ == "__main__"``: for work
    that is done before processes would have started. It has no memory limit, because the memory
    of this process is mostly not its own.

    Parameters
    ----------
    dashboard
        Whether there are pages to look at, for which Bokeh is imported and the work is profiled.

    Examples
    --------
    >>> with threads_here() as client:
    ...     client.submit(sum, [1, 2]).result()
    3
    """
    plain = {} if dashboard else {"scheduler_kwargs": {"dashboard": False}}
    log = logging.getLogger("distributed.worker")
    try:
        with (
            LocalCluster(
                **plain,
                worker_class=Worker if dashboard else PlainWorker,
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
            say_nothing_of_missed_deadlines(client.loop)
            try:
                yield client
            finally:
                log.addFilter(_tells_more_than_the_end)
    finally:
        log.removeFilter(_tells_more_than_the_end)
        forget_closed_schedulers()


def _tells_more_than_the_end(record: logging.LogRecord) -> bool:
    """False of a worker's complaint that the end of its cluster cut a heartbeat off."""
    return not (record.exc_info and isinstance(record.exc_info[1], CommClosedError))
