"""Whether workers get fresh processes between two passes: a decision from facts, nothing else.

Covers: what stands against a restart, in words for the user.
Does not cover: finding the facts (`dpipe.session.session`), restarting (`dpipe.session.restart`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from dpipe.common.words import counted
from dpipe.session.worker import WorkerFacts


@dataclass(frozen=True)
class Others:
    """Who else uses a cluster, as its scheduler says."""

    clients: int = 0
    """Clients connected beside the one of this session."""
    results: int = 0
    """Results that are held for somebody: a restart would lose or repeat them."""
    unknown: str | None = None
    """Why the scheduler does not say; None when it does."""


@dataclass(frozen=True)
class Restart:
    """End every worker process and wait for new ones."""


@dataclass(frozen=True)
class Tidy:
    """Keep the processes; have them collect garbage and hand free pages back."""

    reason: str
    """Why, as the end of the sentence "the workers keep their processes, because ..."."""


def decide_restart(
    workers: Iterable[WorkerFacts], policy: str, others: Others | None
) -> Restart | Tidy:
    """Restart the workers, or tidy them up and say why.

    Parameters
    ----------
    workers
        Those of the cluster.
    policy
        The option ``restart``: "auto", "always" or "never".
    others
        Who else uses the cluster; None when nobody can, as on a local one that dpipe started.

    Examples
    --------
    >>> decide_restart([], "auto", Others(clients=2)).reason
    '2 other clients are connected; --restart always restarts them all the same'
    """
    if policy == "never":
        return Tidy("--restart is never")
    without_nanny = sorted(worker.name for worker in workers if not worker.nanny)
    if without_nanny:
        return Tidy(f"worker {without_nanny[0]} runs without a nanny that could restart it")
    objection = _objection(others) if others is not None and policy == "auto" else None
    if objection is not None:
        return Tidy(f"{objection}; --restart always restarts them all the same")
    return Restart()


def _objection(others: Others) -> str | None:
    """Why a restart would hurt somebody else, or None."""
    if others.unknown is not None:
        return f"the scheduler does not say who else uses it ({others.unknown})"
    if others.clients:
        verb = "is" if others.clients == 1 else "are"
        return f"{counted(others.clients, 'other client')} {verb} connected"
    if others.results:
        return f"the cluster holds {counted(others.results, 'result')} of other work"
    return None
