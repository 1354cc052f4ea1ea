"""The BLAS threads of attached workers: limited to one a task while a session lasts.

Covers: registering the limit, taking it back.
Does not cover: what it does in a worker (`dpipe.session.worker.ThreadPin`), workers that dpipe
starts (`dpipe.common.environment`).
"""

from __future__ import annotations

import uuid

from distributed import Client

from dpipe.common.words import first_line
from dpipe.model.events import Emit, Note
from dpipe.session.calls import CLUSTER_ERRORS, PROBE_SECONDS, within
from dpipe.session.worker import ThreadPin


def limit_threads(client: Client, emit: Emit) -> str:
    """Hold the BLAS of every worker, now and after restarts, to one thread; the plugin's name."""
    name = f"dpipe-threads-{uuid.uuid4().hex[:8]}"
    try:
        within(client, PROBE_SECONDS, "register_plugin", ThreadPin(), name=name)
    except Exception as error:  # whatever a worker raised: threads decide speed, not results
        text = f"the BLAS threads of the workers are not limited ({first_line(error)})."
        emit(Note(text, "warning"))
    return name


def restore_threads(client: Client, name: str, emit: Emit) -> None:
    """Undo `limit_threads`."""
    if client.status != "running":
        return
    try:
        within(client, PROBE_SECONDS, "unregister_worker_plugin", name)
    except (*CLUSTER_ERRORS, ValueError) as error:
        text = f"the BLAS threads of the workers stay at 1 ({first_line(error)})."
        emit(Note(text, "warning"))
