"""Asking a cluster that may be losing workers, and saying what it answered.

Covers: calls with a deadline, what may go wrong in them, words for messages.
Does not cover: what is asked (the other modules of this package).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from distributed import Client

PROBE_SECONDS = 20.0
"""How long a look at every worker may take."""

# What goes wrong between a client and a cluster that is losing workers: timeouts and broken
# connections (both OSError) and a client or loop that has been closed (RuntimeError).
CLUSTER_ERRORS = (OSError, TimeoutError, RuntimeError)


def scheduler_address(client: Client) -> str:
    """Where the scheduler of a client is."""
    return str(client.scheduler.address) if client.scheduler is not None else "nowhere"


def within(client: Client, seconds: float, method: str, *args: Any, **kwargs: Any) -> Any:
    """Call a method of the client, giving up after `seconds` whatever the cluster does."""
    if client.scheduler is None:
        raise ConnectionError("the connection to the scheduler is lost")
    call: Callable[..., Any] = getattr(client, method)
    return client.sync(call, *args, callback_timeout=seconds, **kwargs)
