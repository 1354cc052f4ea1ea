"""Restarting workers, as one operation with a deadline and a fallback.

Covers: the restart of a local cluster and of an attached one, proved by new process ids.
Does not cover: whether to restart (`dpipe.session.decision`), keeping a cluster object from giving
workers up meanwhile (`dpipe.session.lost_workers`).
"""

from __future__ import annotations

import time
from collections.abc import Callable

import psutil
from distributed import Client

from dpipe.common.words import first_line
from dpipe.model.events import Emit, Note
from dpipe.session.calls import CLUSTER_ERRORS, within
from dpipe.session.cards import CardMemory
from dpipe.session.local import StartedCluster, kill, killed_after_grace
from dpipe.session.lost_workers import bring_back, kept_from_clock
from dpipe.session.worker import WorkerFacts

RECYCLE_SECONDS = 60.0
"""How long the workers of an attached cluster may take to come back as new processes."""
SETTLE_SECONDS = 30.0
"""How long the last of them may take to answer once the scheduler has restarted them."""
_BRINGING_BACK = 2
"""Tries to start what a cluster object closed: its clock may run out after the first."""
REOPEN_SECONDS = 30.0
"""How long local workers may take to come back before the whole cluster is opened anew."""

Expect = Callable[[int, float, frozenset[int]], tuple[WorkerFacts, ...]]
"""Waits for a number of workers, until a moment, that are none of these processes."""
Look = Callable[[], tuple[WorkerFacts, ...]]
"""Asks every worker."""


def restart_local(
    client: Client, cluster: StartedCluster, expect: Expect, look: Look, cards: CardMemory
) -> tuple[tuple[WorkerFacts, ...], str | None]:
    """New processes for the workers dpipe started, and what went wrong, None when nothing did."""
    deadline = time.monotonic() + REOPEN_SECONDS
    old = cluster.pids()
    try:
        with killed_after_grace(old):
            within(client, REOPEN_SECONDS, "restart", timeout=REOPEN_SECONDS * 0.8)
    except CLUSTER_ERRORS as error:
        return (), first_line(error)
    facts = expect(cluster.n_workers, deadline, old)
    facts, left = cards.wait_until_released(facts, old, look)
    if left:
        return facts, f"process {min(left)} still has memory of its card"
    if len(facts) < cluster.n_workers:
        return facts, f"{len(facts)} of {cluster.n_workers} workers came back"
    return facts, None


def _restarted(client: Client, addresses: list[str]) -> str | None:
    """Restart workers; what went wrong, None when nothing did."""
    try:
        within(
            client,
            RECYCLE_SECONDS,
            "restart_workers",
            addresses,
            timeout=RECYCLE_SECONDS * 0.8,
            raise_for_error=False,
        )
    except (*CLUSTER_ERRORS, KeyError, ValueError) as error:
        return first_line(error)
    return None


def reopen(cluster: StartedCluster, old: frozenset[int]) -> Client:
    """Close a cluster that dpipe started, end what is left of its processes, open it again."""
    cluster.close()
    psutil.wait_procs(kill(old), timeout=5)
    return cluster.open()


def restart_attached(
    client: Client,
    before: tuple[WorkerFacts, ...],
    expect: Expect,
    look: Look,
    cards: CardMemory,
    emit: Emit,
) -> tuple[WorkerFacts, ...]:
    """New processes for the workers of somebody else's cluster, which keeps as many as it had."""
    addresses = [f.address for f in before]
    old = frozenset(f.pid for f in before)
    facts: tuple[WorkerFacts, ...] = ()
    try:
        with kept_from_clock(client, addresses, 3 * RECYCLE_SECONDS):
            failure = _restarted(client, addresses)
            # Inside: until the last worker is back, the cluster object must not hear that it left.
            facts = expect(len(before), time.monotonic() + SETTLE_SECONDS, old)
    except CLUSTER_ERRORS as error:
        failure = first_line(error)
    if failure is not None:
        emit(Note(f"the restart of the workers failed ({failure}).", "warning"))
    for _ in range(_BRINGING_BACK):
        if len(facts) < len(before) and bring_back(client):
            facts = expect(len(before), time.monotonic() + RECYCLE_SECONDS, old)
    facts, _ = cards.wait_until_released(facts, old, look)
    if 0 < len(facts) < len(before):
        text = (
            f"{len(facts)} of {len(before)} workers came back after the restart; "
            "start others, or the cluster stays smaller."
        )
        emit(Note(text, "warning"))
    return facts
