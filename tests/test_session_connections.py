"""Connections to a scheduler: those that lead nowhere, and those that are lost.

Covers: addresses, scheduler files and clients of every wrong kind, clusters without workers, a
scheduler that dies, one that anybody can reach.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dask
import pytest
from conftest import ROOT
from distributed import Client
from sessions import Heard, foreign_cluster, pids

from dpipe.errors import InputError, ResourceError
from dpipe.options import Options
from dpipe.session import attach, attach_session, restart
from dpipe.session import session as module


@pytest.mark.parametrize(
    ("connection", "error", "text"),
    [
        ("tcp://127.0.0.1:1", ResourceError, "no Dask scheduler answers at tcp://127.0.0.1:1 "),
        ("127.0.0.1:1", ResourceError, "no Dask scheduler answers at 127.0.0.1:1 "),
        ("nonsense", InputError, "'nonsense' is not the address of a scheduler"),
        ("foo://host:1", InputError, "write it like tcp://host:8786"),
        ("/missing/file.json", InputError, "the scheduler file /missing/file.json cannot be read"),
        (Path("missing.json"), InputError, "the scheduler file missing.json cannot be read"),
    ],
)
def test_a_connection_that_leads_nowhere_is_explained(
    connection: str | Path, error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        attach_session(connection, Options(), connect_seconds=0.3)


@pytest.mark.parametrize("content", ["", "[]", "{}", '"text"', "{"])
def test_a_file_that_is_no_scheduler_file_is_explained(tmp_path: Path, content: str) -> None:
    file = tmp_path / "scheduler.json"
    file.write_text(content)
    with pytest.raises(InputError, match=r"scheduler\.json is not a scheduler file"):
        attach_session(file, Options())


def test_a_scheduler_file_of_a_dead_scheduler_is_named(tmp_path: Path) -> None:
    file = tmp_path / "scheduler.json"
    file.write_text('{"address": "tcp://127.0.0.1:1"}')
    with pytest.raises(ResourceError, match=r"tcp://127\.0\.0\.1:1 \(the address in .*r\.json\)"):
        attach_session(file, Options(), connect_seconds=0.3)


@pytest.mark.parametrize("connection", [5, {"address": "tcp://127.0.0.1:1"}, object()])
def test_what_is_no_connection_is_refused(connection: Any) -> None:
    with pytest.raises(InputError, match="a Dask client, a cluster or the address of a scheduler"):
        attach_session(connection, Options())


def test_an_asynchronous_client_is_refused() -> None:
    client = Client.__new__(Client)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Client, "asynchronous", True)
        patch.setattr(Client, "__del__", lambda self: None)
        with pytest.raises(InputError, match="needs a synchronous Dask client"):
            attach_session(client, Options())
        del client


def test_a_cluster_without_workers_is_explained() -> None:
    with foreign_cluster(n_workers=0) as cluster, Client(cluster) as client:
        with pytest.raises(ResourceError, match=r"scheduler at tcp://127.* has no worker after 0"):
            attach_session(client, Options(), workers_seconds=0.3)
        assert client.status == "running"


def test_an_adaptive_cluster_is_woken() -> None:
    with foreign_cluster(n_workers=0) as cluster:
        cluster.adapt(minimum=0, maximum=1, interval="100 ms")
        with attach_session(cluster, Options(device="cpu"), workers_seconds=30) as session:
            assert session.n_workers == 1
            time.sleep(1)  # several rounds of the cluster's own decisions
            assert len(session.recycle(1)) == 2
        assert not [key for key in cluster.scheduler.tasks if "dpipe" in key]


def test_a_dead_scheduler_ends_the_run_soon(
    tmp_path: Path, heard: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "scheduler.json"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    commands = [
        ["scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard"],
        ["worker", "--nthreads", "1", "--host", "127.0.0.1", "--no-dashboard"],
    ]
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "dask", *command, "--scheduler-file", str(file)],
            env=environment,
            cwd=tmp_path,
            stderr=subprocess.DEVNULL,
        )
        for command in commands
    ]
    try:
        while not file.exists():
            time.sleep(0.05)
        with dask.config.set({"distributed.comm.timeouts.connect": "1s"}):
            session = attach_session(file, Options(device="cpu"), emit=heard)
            try:
                assert len(pids(session.recycle(1))) == 1
                started[0].kill()
                started[0].wait()
                monkeypatch.setattr(module, "PROBE_SECONDS", 1.0)
                monkeypatch.setattr(restart, "RECYCLE_SECONDS", 3.0)  # it waits as long as a minute
                with pytest.raises(ResourceError, match=r"no worker of tcp://.* answers any more"):
                    session.recycle(2)
            finally:
                session.close()
    finally:
        for process in started:
            process.terminate()
        for process in started:
            process.wait()
    assert "the workers do not answer" in heard.texts


def test_a_public_scheduler_is_warned_about(heard: Heard) -> None:
    for address in (
        "tcp://127.0.0.1:1",
        "tls://10.0.0.1:1",
        "inproc://10.0.0.1/1",
        "tcp://[::1]:1",
    ):
        attach.warn_when_exposed(SimpleNamespace(scheduler=SimpleNamespace(address=address)), heard)
    assert heard == []
    exposed = SimpleNamespace(scheduler=SimpleNamespace(address="tcp://10.0.0.1:8786"))
    attach.warn_when_exposed(exposed, heard)
    assert "whoever reaches it can run code on its workers" in heard.warnings[0]
