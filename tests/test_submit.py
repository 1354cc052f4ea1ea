"""Submitting tasks: how the client hears of what has finished, and asks for it."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
from distributed import Client

from dpipe.engine import submit
from dpipe.errors import ResourceError
from dpipe.model.events import silent
from dpipe.options import Options
from dpipe.session import attach_session, open_session, threads_here

GATE = threading.Event()


def first_of_all(index: int) -> int:
    """Task: the first returns at once, the others when they may."""
    assert index == 0 or GATE.wait(60)
    return 10 * index


def test_results_of_tasks_that_finished_together_are_fetched_together() -> None:
    GATE.clear()
    fetched: list[int] = []
    gather = Client.gather

    def counted(client: Client, futures: Any, **how: Any) -> Any:
        fetched.append(len(futures))
        return gather(client, futures, **how)

    with threads_here() as client, attach_session(client, Options(device="cpu")) as session:
        tasks = [(index,) for index in range(4)]  # all of them are submitted at once
        with patch.object(Client, "gather", counted):
            results = submit.run_tasks(
                session, "pass-gate", first_of_all, tasks, silent, need=1, describe=str
            )
            found = [next(results)]
            GATE.set()
            while any(state.status != "finished" for state in client.futures.values()):
                time.sleep(0.01)
            time.sleep(0.2)  # until the client's loop has told its listener
            found += results
    assert sorted(found) == [(index, 10 * index) for index in range(4)]
    assert fetched == [1, 3]


def test_a_task_that_finishes_just_before_the_client_listens_is_heard() -> None:
    heard: list[Any] = []

    class Deaf(threading.Condition):
        def wait(self, timeout: float | None = None) -> bool:
            raise AssertionError("nobody will call a second time")

    def is_empty() -> bool:
        heard.append("a future")
        return False

    completed: Any = SimpleNamespace(
        has_ready=lambda: bool(heard),
        is_empty=is_empty,
        thread_condition=Deaf(),
        next_batch=lambda: heard,
    )
    session: Any = SimpleNamespace(client=SimpleNamespace(status="running"))
    stage = submit._Stage(session, "take-naps", silent, 1, str)
    assert stage._next(completed) == heard


def test_a_cluster_of_its_own_without_any_worker_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # As when the client was stopped for minutes: the workers gave up, and no nanny starts others.
    monkeypatch.setattr(submit, "DESERTED_SECONDS", 0.5)
    monkeypatch.setattr(submit, "LOOK_SECONDS", 0.1)
    with open_session(Options(workers=1, device="cpu")) as session:
        cluster: Any = session.client.cluster
        assert not session.deserted()
        cluster.scale(0)
        while not session.deserted():
            time.sleep(0.05)
        results = submit.run_tasks(session, "take-naps", abs, [(-1,)], silent, need=1, describe=str)
        with pytest.raises(ResourceError, match="the cluster was lost during take-naps; run the"):
            list(results)
