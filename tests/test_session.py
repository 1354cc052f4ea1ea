"""A session of dpipe's own: what it promises about processes, memory, addresses and its end.

Covers: its workers on a real local cluster, their restarts, what is left after it has closed.
Does not cover: what keeps it from starting (`test_session_start`), threads instead of processes
(`test_session_threads`), clusters of others (`test_session_attached`).
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import subprocess
import sys
import textwrap
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dask
import psutil
import pytest
from conftest import ROOT
from distributed import Client, Scheduler
from distributed.batched import BatchedSend
from sessions import MIB, TWO, Heard, add_one, hold_memory, pids, thread_pools
from tornado.ioloop import IOLoop

from dpipe.model.records import MemoryReading
from dpipe.session import Session, current_client, local, open_session, restart


@pytest.fixture(scope="module")
def own_notes() -> Heard:
    """What the shared session below has told."""
    return Heard()


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory, own_notes: Heard) -> Iterator[Session]:
    """One session of dpipe's own for all tests that leave it as fresh as they found it."""
    folder = tmp_path_factory.mktemp("scratch")
    with open_session(TWO, local_directory=str(folder), emit=own_notes) as session:
        yield session


def worker_memory(readings: tuple[MemoryReading, ...]) -> list[int]:
    return [reading.rss for reading in readings if reading.process != "client"]


def sleep_long() -> None:
    time.sleep(1000)


def worker_environment(name: str) -> str | None:
    return os.environ.get(name)


def arrow_threads() -> int:
    import pyarrow

    return pyarrow.cpu_count()


def test_an_own_session_says_what_it_is(own: Session) -> None:
    assert (own.owned, own.device) == (True, "cpu")
    assert (own.n_workers, own.threads, own.threads_per_worker) == (2, 2, 1)
    assert own.memory_limit == TWO.memory_limit
    assert str(own.dashboard).startswith("http://127.0.0.1:")
    assert own.client.submit(add_one, 1).result() == 2


def test_an_own_session_leaves_the_default_client_alone(own: Session) -> None:
    assert own.client.status == "running"
    assert current_client() is not own.client


def test_everything_listens_on_the_loopback_only(own: Session) -> None:
    family = [psutil.Process(), *psutil.Process().children(recursive=True)]
    listening = [
        connection.laddr.ip
        for process in family
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert len(listening) > own.n_workers
    assert set(listening) <= {"127.0.0.1", "::1"}


def test_a_task_has_one_thread(own: Session) -> None:
    # As many tasks as workers, at the same time: each worker answers.
    pools = own.client.run(thread_pools)
    assert len(pools) == 2
    assert all(counts and set(counts) == {1} for counts in pools.values())
    assert set(own.client.run(arrow_threads).values()) == {1}


def test_temporary_files_of_workers_stay_in_the_folder_given(own: Session) -> None:
    assert own._local is not None
    folders = own.client.run(lambda dask_worker: dask_worker.local_directory).values()
    folders = [*folders, *own.client.run(worker_environment, "TMPDIR").values()]
    assert all(str(folder).startswith(str(own._local._folder.path)) for folder in folders)
    assert str(own._local._folder.path).startswith(str(own._local.local_directory))


def test_memory_is_read_from_every_process(own: Session) -> None:
    readings = own.read_memory("before", 2)
    assert [reading.process for reading in readings] == ["client", "worker 0", "worker 1"]
    assert readings[0].pid == os.getpid()
    assert pids(readings) == set(own.client.run(os.getpid).values())
    for reading in readings:
        assert (reading.moment, reading.pass_number, reading.device) == ("before", 2, None)
        assert 20 * MIB < reading.rss <= reading.peak
        assert reading.seconds > 0


# Restarts


def test_recycling_gives_new_processes_at_the_baseline(own: Session) -> None:
    before = own.read_memory("before", 1)
    futures = own.client.map(hold_memory, [200 * MIB] * 8, pure=False)
    assert set(own.client.gather(futures)) == pids(before)
    del futures
    full = own.read_memory("after", 1)
    assert min(worker_memory(full)) > max(worker_memory(before)) + 150 * MIB
    after = own.recycle(1)
    assert {reading.moment for reading in after} == {"recycled"}
    assert len(pids(after)) == 2
    assert not pids(after) & pids(before)
    assert not any(psutil.pid_exists(pid) for pid in pids(before))
    assert max(worker_memory(after)) < max(worker_memory(before)) + 30 * MIB
    assert all(reading.peak < full[1].peak for reading in after[1:])
    assert own.client.submit(add_one, 1).result() == 2


def test_recycling_ten_times_in_a_row_never_needs_the_fallback(
    own: Session, own_notes: Heard
) -> None:
    """Also while Dask believes that a worker away for a moment is lost for good."""
    seen = pids(own.read_memory("before", 1))
    client = own.client
    with dask.config.set({"distributed.deploy.lost-worker-timeout": "200 ms"}):
        for _ in range(10):
            now = pids(own.recycle(1))
            assert len(now) == 2
            assert not now & seen
            seen |= now
    assert own.client is client
    assert own_notes.warnings == []


def test_recycling_gets_rid_of_a_worker_that_hangs(own: Session, own_notes: Heard) -> None:
    before = pids(own.read_memory("before", 1))
    hung = own.client.submit(sleep_long, pure=False)
    while hung.key not in str(own.client.processing()):
        time.sleep(0.05)
    after = pids(own.recycle(1))
    assert len(after) == 2
    assert not after & before
    assert not any(psutil.pid_exists(pid) for pid in before)
    assert own_notes.warnings == []


def test_recycling_counts_a_worker_that_was_just_killed(own: Session) -> None:
    before = pids(own.read_memory("before", 1))
    os.kill(min(before), 9)
    after = pids(own.recycle(1))
    assert len(after) == 2
    assert not after & before
    assert own.n_workers == 2


@pytest.mark.parametrize("fault", ["hangs", "does nothing"])
def test_a_failed_restart_opens_a_new_cluster(
    own: Session, own_notes: Heard, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def never(self: Client, **_: object) -> None:
        if fault == "hangs":
            await asyncio.sleep(1000)

    before = pids(own.read_memory("before", 1))
    own_notes.clear()
    monkeypatch.setattr(Client, "restart", never)
    monkeypatch.setattr(restart, "REOPEN_SECONDS", 3.0)
    after = pids(own.recycle(1))
    monkeypatch.undo()
    assert len(after) == 2
    assert not after & before
    assert not any(psutil.pid_exists(pid) for pid in before)
    assert own.client.submit(add_one, 1).result() == 2
    assert len(own_notes) == 1
    assert "the restart of the workers failed" in own_notes[0].text
    assert "opening a new cluster" in own_notes[0].text
    own_notes.clear()
    # And the new cluster recycles like the first.
    assert not pids(own.recycle(1)) & after
    assert own_notes == []


def test_never_keeps_the_processes_of_an_own_session(heard: Heard) -> None:
    options = TWO.replace(workers=1, restart="never")
    with open_session(options, emit=heard) as session:
        before = pids(session.read_memory("before", 1))
        assert pids(session.recycle(1)) == before
    assert "because --restart is never" in heard.texts


# The end


def test_closing_leaves_nothing_behind(tmp_path: Path) -> None:
    children = set(psutil.Process().children(recursive=True))
    environment = dict(os.environ)
    with open_session(TWO, local_directory=str(tmp_path)) as session:
        started = pids(session.read_memory("start", 0))
        session.recycle(1)
        started |= pids(session.read_memory("start", 0))
        scheduler = weakref.ref(session._local._cluster.scheduler)  # type: ignore[union-attr]
    session.close()
    assert session.client.status == "closed"
    assert not any(psutil.pid_exists(pid) for pid in started)
    new = set(psutil.Process().children(recursive=True)) - children
    assert [p for p in new if "resource_tracker" not in " ".join(p.cmdline())] == []
    assert list(tmp_path.iterdir()) == []
    assert dict(os.environ) == environment
    del session
    gc.collect()
    assert scheduler() is None  # distributed's caches would keep it


def test_closing_does_not_wait_for_a_task(tmp_path: Path) -> None:
    session = open_session(TWO.replace(workers=1), local_directory=str(tmp_path))
    session.client.submit(sleep_long, pure=False)
    (pid,) = pids(session.read_memory("start", 0))
    session.close()
    assert not psutil.pid_exists(pid)


def test_workers_that_close_do_not_report_their_last_heartbeat(
    capfd: pytest.CaptureFixture[str],
) -> None:
    def never_rest(dask_worker: Any) -> None:
        async def beat() -> None:
            with contextlib.suppress(RuntimeError):  # at last, of the closed connection
                while True:
                    await dask_worker.heartbeat()

        dask_worker.loop.add_callback(beat)

    with open_session(TWO) as session:
        for end in (lambda: session.recycle(1), session.close):
            session.client.run(never_rest)
            time.sleep(0.2)
            end()
    assert capfd.readouterr().err == ""


@pytest.mark.slow
def test_many_sessions_in_one_process_leak_nothing() -> None:
    def open_and_close() -> tuple[int, int, int]:
        with open_session(TWO.replace(workers=1)) as session:
            session.recycle(1)
        gc.collect()
        schedulers = sum(isinstance(thing, Scheduler) for thing in gc.get_objects())
        return psutil.Process().num_fds(), threading.active_count(), schedulers

    baseline = open_and_close()
    assert [open_and_close() for _ in range(10)] == [baseline] * 10


def test_a_message_to_a_closed_scheduler_is_not_reported(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Batched messages that are still on their way fail after the cluster has closed."""
    cluster = SimpleNamespace(scheduler_address="tcp://127.0.0.1:1")
    local._say_nothing_of(cluster)  # type: ignore[arg-type]
    with caplog.at_level("INFO", logger="distributed.batched"):
        for address in ("tcp://127.0.0.1:1", "tcp://127.0.0.1:2"):
            comm = SimpleNamespace(local_address="tcp://127.0.0.1:3", peer_address=address)
            logging.getLogger("distributed.batched").info("Batched Comm Closed %r", comm)
    assert len(caplog.records) == 1
    assert "127.0.0.1:2" in caplog.text


@pytest.mark.parametrize("quiet", [False, True])
def test_a_deadline_in_the_last_turn_of_a_loop_is_not_reported(
    caplog: pytest.LogCaptureFixture, quiet: bool
) -> None:
    """As batched messages have it that wait for their next moment when the loop is stopped."""

    async def write(*_: object, **__: object) -> int:
        return 1

    async def start() -> BatchedSend:
        sender = BatchedSend(interval="50ms")
        sender.start(SimpleNamespace(write=write, closed=lambda: False, abort=lambda: None))
        sender.send("message")
        await asyncio.sleep(0.01)
        if quiet:
            local.say_nothing_of_missed_deadlines(IOLoop.current())
        turns = asyncio.get_running_loop()
        turns.call_later(0.06, turns.stop)
        turns.call_soon(time.sleep, 0.1)  # so that deadline and stop fall into one turn
        return sender

    loop = asyncio.new_event_loop()
    sender = loop.run_until_complete(start())
    loop.run_forever()
    news = loop.create_future()
    news.set_exception(ValueError("which is news"))
    del sender, news
    gc.collect()
    loop.close()
    gc.collect()
    told = [record.getMessage() for record in caplog.records if record.name == "asyncio"]
    assert sum("TimeoutError" in text for text in told) == (0 if quiet else 1)
    assert sum("which is news" in text for text in told) == 1


def test_an_interrupted_script_ends_at_once_without_noise(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(
            """
            import os, signal, time
            from dpipe.options import Options
            from dpipe.session import open_session
            if __name__ == "__main__":
                try:
                    with open_session(Options(device="cpu", workers=1)) as session:
                        future = session.client.submit(time.sleep, 1000)
                        time.sleep(0.5)
                        os.kill(os.getpid(), signal.SIGINT)
                        future.result()
                except KeyboardInterrupt:
                    print("interrupted")
            """
        )
    )
    done = subprocess.run(
        [sys.executable, str(script)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "interrupted\n", "")
