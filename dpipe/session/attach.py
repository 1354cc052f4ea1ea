"""Attaching to a cluster that runs already.

Covers: a client from whatever a caller hands over, waiting for workers, versions that do not fit
together, schedulers that talk without encryption.
Does not cover: using the cluster (`dpipe.session.Session`).
"""

from __future__ import annotations

import asyncio
import json
import os
import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from distributed import Client, Future, get_worker, threadpoolexecutor
from distributed.comm.core import connect
from distributed.deploy.cluster import Cluster
from distributed.security import Security

from dpipe.common.credentials import is_url
from dpipe.common.words import first_line
from dpipe.errors import InputError, ResourceError
from dpipe.model.events import Emit, Note
from dpipe.session.calls import CLUSTER_ERRORS, PROBE_SECONDS, scheduler_address, within
from dpipe.session.spans import span
from dpipe.session.worker import AWAKE


def connect_client(connection: Any, seconds: float) -> tuple[Client, bool]:
    """A synchronous client, and whether it was opened here."""
    client, is_own = _connect(connection, seconds)
    if _waits_for_itself(client):
        if is_own:
            client.close()
        raise InputError(
            "dpipe cannot run inside a task of the cluster that it computes on, because it would "
            "wait for the thread it stands in: call it where the client is, outside of any task, "
            "or inside a task between distributed.secede() and distributed.rejoin()."
        )
    return client, is_own


def _waits_for_itself(client: Client) -> bool:
    """Whether this thread runs a task of the client's cluster and has not left its pool."""
    return within_task() and bool(get_worker().scheduler.address == scheduler_address(client))


def within_task() -> bool:
    """Whether this thread runs a task of a Dask worker and has not left its pool.

    Examples
    --------
    >>> within_task()
    False
    """
    try:
        get_worker()
    except ValueError:
        return False
    return bool(getattr(threadpoolexecutor.thread_state, "proceed", True))


def _connect(connection: Any, seconds: float) -> tuple[Client, bool]:
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
            f"{address!r} is not the address of a scheduler ({first_line(error)}); "
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

    A client that could not connect keeps trying, and logging, until the interpreter ends. The
    detour through a thread is for callers that run in an event loop, as notebooks do.
    """

    async def knock() -> None:
        comm = await connect(address, timeout=seconds, **Security().get_connection_args("client"))
        await comm.close()

    with ThreadPoolExecutor(1) as thread:
        thread.submit(asyncio.run, knock()).result()


def _address(text: str) -> str:
    """The scheduler's address meant by an address or by the path of a scheduler file."""
    if is_url(text) or not (os.sep in text or text.endswith(".json") or os.path.exists(text)):
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


def wait_for_first_worker(client: Client, seconds: float) -> Future[int]:
    """Wait for a worker, and hold a result of a few bytes there.

    A task in the queue is what makes an adaptive cluster ask for its first worker, and a result
    is what keeps it from sending the last one away between passes.
    """
    address = scheduler_address(client)
    with span("dpipe", "awake"):
        wake: Future[int] = client.submit(int, key=f"{AWAKE}{uuid.uuid4().hex}")
    try:
        within(client, seconds + 5, "wait_for_workers", 1, timeout=seconds)
    except CLUSTER_ERRORS as error:
        raise ResourceError(
            f"the scheduler at {address} has no worker after {seconds:g} s; "
            "start workers there and run the same command again."
        ) from error
    return wake


def warn_when_exposed(client: Client, emit: Emit) -> None:
    """Say when others can reach the scheduler and it asks for no password."""
    address = scheduler_address(client)
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
        versions = within(client, PROBE_SECONDS, "get_versions", packages=list(names))
    except CLUSTER_ERRORS as error:
        return (f"the versions on the cluster are unknown ({first_line(error)}).",)
    client_versions = versions["client"]["packages"]
    # A scheduler runs Dask alone; what else is installed there does not matter.
    places: list[tuple[str, Any, tuple[str, ...]]] = [
        ("the scheduler", versions["scheduler"], ("python", "dask", "distributed")),
        *(
            (f"worker {w}", installed, ("python", *names))
            for w, installed in versions["workers"].items()
        ),
    ]
    sentences = []
    for name in ("python", *names):
        for place, installed, wanted in places:
            theirs = (installed or {}).get("packages", {}).get(name)
            if name not in wanted or theirs == client_versions[name]:
                continue
            ours = client_versions[name]
            text = f"{name} is {_version(ours)} here and {_version(theirs)} on {place}"
            fatal = name in ("python", "distributed", "dpipe")
            if fatal and _release(theirs) != _release(ours):
                raise ResourceError(f"{text}: install the same version on both sides.")
            sentences.append(f"{text}.")
            break
    return tuple(sentences)


def _version(text: str | None) -> str:
    return "not installed" if text is None else text.removesuffix(".final.0")


def _release(text: str | None) -> tuple[str, ...]:
    return tuple((text or "").split(".")[:2])
