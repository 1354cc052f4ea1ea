"""Threads of this process instead of workers: when a session takes them, and what is left of them.

Covers: tables of few cells, calls from inside a task of such a cluster.
"""

from __future__ import annotations

import asyncio
import functools
import gc
import os
import subprocess
import sys
import weakref
from typing import Any

import distributed
import psutil
import pytest
from dask.system import CPU_COUNT
from distributed import get_client

from dpipe.device import card
from dpipe.errors import InputError
from dpipe.options import Options
from dpipe.session import FEW_CELLS, session_for, threads_here, use_session


def test_threads_in_this_process_leave_no_scheduler() -> None:
    with threads_here() as client:
        scheduler = weakref.ref(client.cluster.scheduler)
    del client
    gc.collect()
    assert scheduler() is None


def listening() -> set[tuple[str, int]]:
    """The addresses at which this process listens."""
    found = psutil.Process().net_connections()
    return {(each.laddr.ip, each.laddr.port) for each in found if each.status == "LISTEN"}


@pytest.mark.parametrize("heard", [False, True])
def test_threads_in_this_process_do_not_complain_of_their_end(
    heard: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    if heard:  # what Dask says of it
        monkeypatch.setattr("dpipe.session._tells_more_than_the_end", lambda _: True)

    async def no_answer(**_: Any) -> None:
        await asyncio.sleep(60)

    with threads_here(dashboard=False) as client:
        cluster: Any = client.cluster

        async def heartbeat() -> None:
            cluster.scheduler.handlers["heartbeat_worker"] = no_answer
            running.append(asyncio.ensure_future(cluster.workers[0].heartbeat()))
            await asyncio.sleep(0.2)  # until it waits for the answer

        running: list[Any] = []
        client.sync(heartbeat)
    assert ("during heartbeat" in caplog.text) == heard


def test_deadlines_that_the_end_of_threads_misses_are_no_news(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    heard: list[str] = []
    monkeypatch.setattr(
        asyncio.BaseEventLoop,
        "default_exception_handler",
        lambda _, told: heard.append(str(told["exception"])),
    )
    with threads_here(dashboard=False) as client:
        loop = client.loop.asyncio_loop
    for error in (TimeoutError("Timeout"), ValueError("which is news")):
        loop.call_exception_handler({"message": "never retrieved", "exception": error})
    assert heard == ["which is news"]


def test_few_cells_get_threads_of_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(card, "visible_cards", lambda: 0)
    told: list[Any] = []
    before = listening()
    with session_for(FEW_CELLS, Options(), None, told.append) as session:
        readings = session.read_memory("start", 0)
        assert {reading.pid for reading in readings} == {os.getpid()}
        assert session.threads == CPU_COUNT
        assert session.device == "cpu"
        (own,) = session.client.run(
            lambda dask_worker: set(dask_worker.periodic_callbacks)
        ).values()
        assert "heartbeat" in own
        assert "profile" not in own
        assert {address for address, _ in listening() - before} == {"127.0.0.1"}
    assert listening() <= before
    assert [note.text for note in told] == ["computing on the CPU: no NVIDIA card is visible."]


def test_threads_without_pages_import_no_bokeh() -> None:
    code = (
        "import sys\nfrom dpipe.options import Options\nfrom dpipe.session import session_for\n"
        "with session_for(1, Options(device='cpu'), None) as session:\n"
        "    assert session.client.submit(sum, [1, 2]).result() == 3\n"
        "print('bokeh' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("False\n", "")


@pytest.mark.parametrize(
    ("cells", "asked"),
    [
        (FEW_CELLS + 1, {}),
        (1, {"workers": 1}),
        (1, {"memory_limit": 2**30}),
        (1, {"threads_per_worker": 2}),
    ],
)
def test_more_cells_and_what_is_asked_for_get_processes(cells: int, asked: dict[str, Any]) -> None:
    options = Options(device="cpu", **({"workers": 1} if cells > 1 else {}), **asked)
    with session_for(cells, options, None) as session:
        assert session.owned
        assert os.getpid() not in {
            reading.pid
            for reading in session.read_memory("start", 0)
            if reading.process != "client"
        }


def test_few_cells_stay_on_the_cluster_that_is_named() -> None:
    with threads_here() as client:
        for given in (client, client.scheduler.address):
            with session_for(1, Options(device="cpu"), given) as session:
                assert session.client.scheduler.address == client.scheduler.address
        with client.as_current(), session_for(1, Options(device="cpu"), None) as session:
            assert session.client is client


# Inside a task


def attach_in_a_task(given: bool, secede: bool) -> int:
    """As `select` in a task; the first call made the client current in its worker."""
    client = get_client()
    if secede:
        distributed.secede()
    with use_session(Options(device="cpu"), client if given else None) as session:
        return session.n_workers


@pytest.mark.parametrize("given", [True, False])
def test_a_task_does_not_wait_for_its_own_thread(given: bool) -> None:
    with threads_here() as client:
        run_inside = functools.partial(client.submit, attach_in_a_task, given, pure=False)
        with pytest.raises(InputError, match="cannot run inside a task of the cluster that it"):
            run_inside(False).result()
        assert run_inside(True).result() == 1
