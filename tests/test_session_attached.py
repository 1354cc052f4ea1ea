"""Sessions on a cluster that somebody else started: what is used, restarted and left alone there.

Covers: real local clusters with other clients, with and without nannies, in a hurry to give workers
up; who is restarted; versions that do not fit.
Does not cover: addresses that lead nowhere (`test_session_connections`).
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask
import pytest
from distributed import Client, LocalCluster, wait
from sessions import (
    MIB,
    Heard,
    add_one,
    foreign_cluster,
    hold_memory,
    pids,
    thread_pools,
    worker_facts,
)
from trials import wait_for

from dpipe.errors import InputError, ResourceError
from dpipe.options import Options
from dpipe.session import attach_session, current_client, lost_workers, restart
from dpipe.session import session as module
from dpipe.session.decision import Others, Restart, Tidy, decide_restart
from dpipe.session.worker import AWAKE, expect_restart


@pytest.fixture(scope="module")
def foreign() -> Iterator[LocalCluster]:
    with foreign_cluster() as cluster:
        yield cluster


def test_a_given_client_stays_open(foreign: LocalCluster, heard: Heard) -> None:
    with Client(foreign) as client:
        with attach_session(client, Options(), emit=heard) as session:
            assert session.client is client
            assert (session.owned, session.device, session.n_workers) == (False, "cpu", 2)
            assert session.memory_limit == 2 * 1024**3
        assert client.submit(add_one, 1).result() == 2
        assert current_client() is client
        assert dict(foreign.scheduler.plugins).keys().isdisjoint({"dpipe"})
        assert not [n for n in foreign.scheduler.worker_plugins if n.startswith("dpipe")]
    assert heard.warnings == []
    assert "computing on the CPU: worker" in heard.texts
    assert current_client() is None


@pytest.mark.parametrize("kind", ["address", "scheduler file", "cluster"])
def test_an_own_connection_is_closed_and_the_cluster_runs_on(
    foreign: LocalCluster, kind: str, tmp_path: Path
) -> None:
    file = tmp_path / "scheduler.json"
    file.write_text(json.dumps({"address": foreign.scheduler_address}))
    connection = {"address": foreign.scheduler_address, "scheduler file": file, "cluster": foreign}
    with attach_session(connection[kind], Options(device="cpu")) as session:
        assert session.client.submit(add_one, 1).result() == 2
        assert current_client() is None
    assert session.client.status == "closed"
    assert foreign.status.name == "running"
    assert len(foreign.scheduler.workers) == 2


def test_a_closed_client_is_refused(foreign: LocalCluster) -> None:
    client = Client(foreign, set_as_default=False)
    client.close()
    with pytest.raises(InputError, match="the given Dask client is closed"):
        attach_session(client, Options())


def test_attached_workers_are_held_to_one_thread_and_let_go() -> None:
    threads = {"OMP_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "2", "MKL_NUM_THREADS": "2"}
    with (
        dask.config.set({"distributed.nanny.pre-spawn-environ": threads}),
        pytest.MonkeyPatch.context() as patch,
    ):
        for name in threads:  # the nanny writes them into this process
            patch.setenv(name, "2")
        with foreign_cluster(n_workers=1) as cluster, Client(cluster) as client:
            (before,) = client.run(thread_pools).values()
            assert set(before) == {2}
            with attach_session(client, Options(device="cpu")) as first:
                assert set(*client.run(thread_pools).values()) == {1}
                with attach_session(client, Options(device="cpu")):
                    assert set(*client.run(thread_pools).values()) == {1}
                assert set(*client.run(thread_pools).values()) == {1}
                first.recycle(1)
                assert set(*client.run(thread_pools).values()) == {1}
            assert set(*client.run(thread_pools).values()) == {2}


def test_workers_that_cannot_be_pinned_are_used_all_the_same(
    foreign: LocalCluster, heard: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def register_plugin(*_: object, **__: object) -> None:
        raise ModuleNotFoundError("No module named 'threadpoolctl'")

    monkeypatch.setattr(Client, "register_plugin", register_plugin)
    attach_session(foreign, Options(device="cpu"), emit=heard).close()
    assert "the BLAS threads of the workers are not limited (No module" in heard.warnings[0]


# Restarts


@pytest.mark.parametrize("others", [None, Others(), Others(clients=1, results=2)])
@pytest.mark.parametrize("nannies", [(), (True, True), (True, False)])
def test_never_is_never(others: Others | None, nannies: tuple[bool, ...]) -> None:
    workers = [worker_facts(str(n), nanny=nanny) for n, nanny in enumerate(nannies)]
    assert decide_restart(workers, "never", others) == Tidy("--restart is never")


@pytest.mark.parametrize("policy", ["auto", "always"])
@pytest.mark.parametrize("others", [None, Others(), Others(clients=1)])
def test_a_worker_without_a_nanny_is_never_restarted(policy: str, others: Others | None) -> None:
    workers = [worker_facts("0"), worker_facts("1", nanny=False)]
    assert decide_restart(workers, policy, others) == Tidy(
        "worker 1 runs without a nanny that could restart it"
    )


@pytest.mark.parametrize(
    ("others", "reason"),
    [
        (None, None),
        (Others(), None),
        (Others(clients=1), "1 other client is connected"),
        (Others(clients=2, results=3), "2 other clients are connected"),
        (Others(results=1), "the cluster holds 1 result of other work"),
        (Others(results=7), "the cluster holds 7 results of other work"),
        (Others(unknown="no"), "the scheduler does not say who else uses it (no)"),
    ],
)
def test_auto_restarts_only_what_nobody_else_uses(
    others: Others | None, reason: str | None
) -> None:
    workers = [worker_facts("0"), worker_facts("1")]
    hint = "; --restart always restarts them all the same"
    wanted = Restart() if reason is None else Tidy(reason + hint)
    assert decide_restart(workers, "auto", others) == wanted
    assert decide_restart(workers, "always", others) == Restart()


def test_auto_restarts_the_workers_of_a_cluster_nobody_else_uses(
    foreign: LocalCluster, heard: Heard
) -> None:
    with Client(foreign) as client, attach_session(client, Options(device="cpu"), emit=heard) as s:
        before = pids(s.read_memory("before", 1))
        client.submit(hold_memory, 50 * MIB, pure=False).result()
        after = s.recycle(1)
        assert len(pids(after)) == 2
        assert not pids(after) & before
        assert s.client is client
    assert heard == []


def test_auto_spares_the_results_of_another_client(foreign: LocalCluster, heard: Heard) -> None:
    with Client(foreign) as other, Client(foreign, set_as_default=False) as client:
        future = other.submit(add_one, 41)
        scattered = other.scatter([1, 2, 3])
        wait([future])
        with attach_session(client, Options(device="cpu"), emit=heard) as session:
            before = pids(session.read_memory("before", 1))
            assert pids(session.recycle(1)) == before
        assert future.result() == 42
        assert other.gather(scattered) == [1, 2, 3]
    assert "1 other client is connected" in heard.texts


def test_auto_spares_what_the_user_holds_on_the_same_client(
    foreign: LocalCluster, heard: Heard
) -> None:
    with Client(foreign) as client:
        (scattered,) = client.scatter([[1, 2, 3]])
        with attach_session(client, Options(device="cpu"), emit=heard) as session:
            before = pids(session.read_memory("before", 1))
            assert pids(session.recycle(1)) == before
        assert scattered.result() == [1, 2, 3]
    assert "the cluster holds 1 result of other work" in heard.texts


def test_always_restarts_and_another_client_gets_its_result_again(
    foreign: LocalCluster, heard: Heard
) -> None:
    with Client(foreign) as other, Client(foreign, set_as_default=False) as client:
        future = other.submit(add_one, 41)
        wait([future])
        options = Options(device="cpu", restart="always")
        with attach_session(client, options, emit=heard) as session:
            before = pids(session.read_memory("before", 1))
            after = pids(session.recycle(1))
            assert len(after) == 2
            assert not after & before
        assert future.result() == 42
    assert heard == []


def test_never_restarts_nobody(foreign: LocalCluster, heard: Heard) -> None:
    options = Options(device="cpu", restart="never")
    with Client(foreign) as client, attach_session(client, options, emit=heard) as session:
        before = pids(session.read_memory("before", 1))
        assert pids(session.recycle(1)) == before
    assert "--restart is never" in heard.texts


@pytest.mark.parametrize("restart", ["auto", "always"])
def test_workers_without_nannies_keep_their_processes(restart: str, heard: Heard) -> None:
    options = Options(device="cpu", restart=restart)
    with (
        foreign_cluster(processes=False, protocol="tcp", n_workers=1) as cluster,
        attach_session(cluster, options, emit=heard) as session,
    ):
        assert pids(session.recycle(1)) == {os.getpid()}
        assert session.client.submit(add_one, 1).result() == 2
    assert "worker 0 runs without a nanny that could restart it" in heard.texts
    assert heard.warnings == []


@pytest.fixture
def impatient(capfd: pytest.CaptureFixture[str]) -> Iterator[LocalCluster]:
    """A cluster that gives up a worker it has not seen for less time than a restart takes."""
    with (
        dask.config.set({"distributed.deploy.lost-worker-timeout": "300 ms"}),
        foreign_cluster(silence_logs=30) as cluster,
    ):
        yield cluster
        time.sleep(0.6)  # the last clocks run out
        wait_for(
            lambda: (
                len(cluster.workers) == len(cluster.scheduler_info["workers"]) == 2
                and cluster.scheduler_info["workers"].keys() == cluster.scheduler.workers.keys()
            ),
            "the cluster object to know of its two workers",
        )
        assert not hasattr(cluster.scheduler, "dpipe_let_go")
        assert capfd.readouterr().err == ""


def test_restarts_in_a_row_cost_a_cluster_no_worker_and_alarm_nobody(
    impatient: LocalCluster, heard: Heard
) -> None:
    """The cluster object is not even reachable from the client."""
    with attach_session(impatient.scheduler_address, Options(device="cpu"), emit=heard) as session:
        seen = pids(session.read_memory("before", 1))
        for _ in range(5):
            now = pids(session.recycle(1))
            assert len(now) == 2
            assert not now & seen
            seen |= now
    assert heard == []


def test_a_worker_about_to_be_restarted_does_not_warn_of_the_task_that_kept_it_awake(
    caplog: pytest.LogCaptureFixture,
) -> None:
    log = logging.getLogger("distributed.worker.state_machine")
    before = list(log.filters)
    expect_restart()
    try:
        for key in (f"{AWAKE}1", "a task of somebody else"):
            log.warning("Async instruction for <Task cancelled name=\"execute('%s')\"> ended", key)
    finally:
        log.filters[:] = before
    assert [record.args for record in caplog.records] == [("a task of somebody else",)]


def test_a_clock_that_somebody_else_started_does_no_harm(
    impatient: LocalCluster, heard: Heard
) -> None:
    with Client(impatient) as client, attach_session(client, Options(), emit=heard) as session:
        clocks = []

        async def start_clocks() -> None:  # as of workers of these names that were lost before
            for worker in list(impatient.workers.values()):
                former = {"name": worker.name}
                impatient.scheduler_info["workers"][f"tcp://{worker.name}"] = former
                impatient._update_worker_status("remove", f"tcp://{worker.name}")
                clocks.append(worker.name)

        client.sync(start_clocks)
        assert len(pids(session.recycle(1))) == len(clocks) == 2
    assert heard.warnings == []


def test_workers_that_their_cluster_closed_in_a_restart_are_started_again(
    heard: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def restart_workers(self: Client, addresses: list[str], **_: object) -> None:
        await self.scheduler.restart_workers(workers=addresses, stimulus_id="test")
        await cluster.workers[0].close()  # as in distributed issue 7312

    with foreign_cluster() as cluster, Client(cluster) as client:
        monkeypatch.setattr(Client, "restart_workers", restart_workers)
        monkeypatch.setattr(restart, "SETTLE_SECONDS", 0.5)
        with attach_session(client, Options(device="cpu"), emit=heard) as session:
            assert len(pids(session.recycle(1))) == 2
        while len(cluster.workers) < 2:  # it notes a worker down after the worker has started
            time.sleep(0.05)
    assert heard.warnings == []


def test_a_client_that_ends_in_a_restart_leaves_the_scheduler_as_it_was(
    foreign: LocalCluster,
) -> None:
    watcher = foreign.scheduler.plugins["worker-status"]
    filters = list(logging.getLogger("distributed.nanny").filters)
    before = dict(vars(watcher))
    with Client(foreign) as client:
        addresses = list(foreign.scheduler.workers)
        client.run_on_scheduler(lost_workers._hold(addresses, 0.3))
        assert vars(watcher) != before
        while hasattr(foreign.scheduler, "dpipe_let_go"):
            time.sleep(0.05)
    assert vars(watcher) == before
    assert logging.getLogger("distributed.nanny").filters == filters


# Versions


def versions(**changes: str | None) -> dict[str, Any]:
    here = {"python": "3.11.7.final.0", "dask": "2026.8.0", "distributed": "2026.8.0"}
    here |= {"numpy": "2.4.6", "pyarrow": "26.0.1", "dpipe": "0.1.0"}
    scheduler = {**here, "distributed": changes.pop("scheduler", here["distributed"])}
    del scheduler["dpipe"], scheduler["pyarrow"]
    return {
        "client": {"packages": here},
        "scheduler": {"packages": scheduler},
        "workers": {"w": {"packages": {**here, **changes}}},
    }


@pytest.mark.parametrize(
    ("there", "warning", "error"),
    [
        ({}, None, None),
        ({"numpy": "2.3.0"}, "numpy is 2.4.6 here and 2.3.0 on worker w.", None),
        ({"python": "3.11.9.final.0"}, "python is 3.11.7 here and 3.11.9 on worker w.", None),
        ({"distributed": "2026.8.1"}, "distributed is 2026.8.0 here and 2026.8.1", None),
        ({"pyarrow": None}, "pyarrow is 26.0.1 here and not installed on worker w.", None),
        ({"python": "3.12.1.final.0"}, None, "python is 3.11.7 here and 3.12.1 on worker w: inst"),
        ({"distributed": "2026.7.0"}, None, "distributed is 2026.8.0 here and 2026.7.0"),
        ({"scheduler": "2025.1.0"}, None, "2026.8.0 here and 2025.1.0 on the scheduler: install"),
        ({"dpipe": "0.2.0"}, None, "dpipe is 0.1.0 here and 0.2.0 on worker w: install the same"),
        ({"dpipe": None}, None, "dpipe is 0.1.0 here and not installed on worker w: install"),
    ],
)
def test_versions_that_do_not_fit_are_named(
    there: dict[str, str | None],
    warning: str | None,
    error: str | None,
    foreign: LocalCluster,
    monkeypatch: pytest.MonkeyPatch,
    heard: Heard,
) -> None:
    async def get_versions(self: Client, **_: object) -> dict[str, Any]:
        return versions(**there)

    monkeypatch.setattr(Client, "get_versions", get_versions)
    with Client(foreign) as client:
        if error:
            with pytest.raises(ResourceError, match=error):
                attach_session(client, Options(device="cpu"), emit=heard)
        else:
            attach_session(client, Options(device="cpu"), emit=heard).close()
    assert len(heard) == (1 if warning else 0)
    assert (warning or "") in heard.texts


def test_workers_without_dpipe_are_explained(
    foreign: LocalCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    def look(dask_worker: object, gpu: bool) -> None:
        raise ModuleNotFoundError("No module named 'dpipe'", name="dpipe")

    monkeypatch.setattr(module, "look", look)
    with Client(foreign) as client, pytest.raises(ResourceError, match="cannot import 'dpipe'"):
        attach_session(client, Options())
