"""Sessions on real local clusters: what they promise about processes, memory and other people."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import functools
import gc
import json
import logging
import os
import signal
import socket
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
import distributed
import psutil
import pytest
from dask.system import CPU_COUNT
from distributed import Client, LocalCluster, Scheduler, get_client, wait
from distributed.batched import BatchedSend
from distributed.system import MEMORY_LIMIT
from tornado.ioloop import IOLoop
from trials import wait_for

from dpipe.common.environment import interrupts_put_off
from dpipe.device import card
from dpipe.engine.machine import Machine
from dpipe.errors import InputError, ResourceError
from dpipe.model.events import Note, silent
from dpipe.model.records import MemoryReading
from dpipe.options import Options
from dpipe.pipeline import plan_run
from dpipe.session import (
    FEW_CELLS,
    Session,
    attach,
    attach_session,
    cards,
    current_client,
    device,
    local,
    lost_workers,
    open_session,
    restart,
    session_for,
    spawn,
    threads_here,
    use_session,
    worker,
)
from dpipe.session import session as module
from dpipe.session.cards import CardMemory
from dpipe.session.decision import Others, Restart, Tidy, decide_restart
from dpipe.session.worker import AWAKE, expect_restart, give_memory_back, process_memory

ROOT = Path(__file__).resolve().parent.parent
MIB = 1024**2
TWO = Options(device="cpu", workers=2, memory_limit=2 * 1024**3)


class Heard(list[Note]):
    """Collects what a session tells."""

    def __call__(self, event: object) -> None:
        assert isinstance(event, Note)
        self.append(event)

    @property
    def warnings(self) -> list[str]:
        return [note.text for note in self if note.level == "warning"]

    @property
    def texts(self) -> str:
        return "\n".join(note.text for note in self)


@pytest.fixture
def heard() -> Heard:
    return Heard()


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


def foreign_cluster(**changes: Any) -> LocalCluster:
    """A cluster as a user starts it: dpipe is only a guest there."""
    settings: dict[str, Any] = {
        "n_workers": 2,
        "threads_per_worker": 1,
        "memory_limit": "2GiB",
        "host": "127.0.0.1",
        "dashboard_address": "127.0.0.1:0",
        "silence_logs": 40,
    }
    return LocalCluster(**settings | changes)


@pytest.fixture(scope="module")
def foreign() -> Iterator[LocalCluster]:
    with foreign_cluster() as cluster:
        yield cluster


def pids(readings: tuple[MemoryReading, ...]) -> set[int]:
    return {reading.pid for reading in readings if reading.process != "client"}


def worker_memory(readings: tuple[MemoryReading, ...]) -> list[int]:
    return [reading.rss for reading in readings if reading.process != "client"]


def add_one(number: int) -> int:
    return number + 1


def hold_memory(size: int) -> int:
    """Allocate and keep it, as a library that leaks does."""
    import numpy

    import dpipe.session

    dpipe.session.leaked = numpy.ones(size, numpy.uint8)  # type: ignore[attr-defined]
    return os.getpid()


def sleep_long() -> None:
    time.sleep(1000)


def thread_pools() -> list[int]:
    import numpy  # noqa: F401
    from threadpoolctl import threadpool_info

    return [pool["num_threads"] for pool in threadpool_info()]


def worker_environment(name: str) -> str | None:
    return os.environ.get(name)


def arrow_threads() -> int:
    import pyarrow

    return pyarrow.cpu_count()


# An own session


def test_an_own_session_says_what_it_is(own: Session) -> None:
    assert (own.owned, own.device) == (True, "cpu")
    assert (own.n_workers, own.threads, own.threads_per_worker) == (2, 2, 1)
    assert own.memory_limit == TWO.memory_limit
    assert str(own.dashboard).startswith("http://127.0.0.1:")
    assert own.client.submit(add_one, 1).result() == 2


def test_by_default_every_cpu_gets_a_worker() -> None:
    workers = device.local_workers(Options(device="cpu"), silent)
    options = local._local_options(Options(), workers, "/scratch")
    assert options["n_workers"] == CPU_COUNT
    assert options["memory_limit"] == MEMORY_LIMIT // CPU_COUNT
    assert device.local_workers(Options(device="cpu", threads_per_worker=64), silent).number == 1


def test_workers_share_the_memory_of_the_machine_and_no_more() -> None:
    def memory(**asked: Any) -> int:
        return device.local_workers(Options(device="cpu", **asked), silent).memory

    assert memory(workers=1) == MEMORY_LIMIT
    assert memory(workers=3 * CPU_COUNT) == MEMORY_LIMIT // (3 * CPU_COUNT)
    assert memory(workers=2, memory_limit=2**30) == 2**30
    assert memory(memory_limit=4 * MEMORY_LIMIT) == MEMORY_LIMIT


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


def test_never_keeps_the_processes_of_an_own_session(heard: Heard) -> None:
    options = TWO.replace(workers=1, restart="never")
    with open_session(options, emit=heard) as session:
        before = pids(session.read_memory("before", 1))
        assert pids(session.recycle(1)) == before
    assert "because --restart is never" in heard.texts


def test_a_folder_that_cannot_be_written_is_an_input_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"file.* is not writable .*--scratch-dir"):
        open_session(TWO, local_directory=str(tmp_path / "file"))


def test_workers_that_do_not_start_are_a_resource_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("Nanny failed to start.")

    monkeypatch.setattr(local, "_start_cpu_cluster", fail)
    script = tmp_path / "script.py"
    for text, advice in [
        ("dpipe.select(table)", "a script must call dpipe under if __name__"),
        ('if __name__ == "__main__":', "try fewer --workers"),
    ]:
        script.write_text(text)
        monkeypatch.setitem(sys.modules, "__main__", SimpleNamespace(__file__=str(script)))
        with pytest.raises(ResourceError, match=rf"Nanny failed to start\): .*{advice}"):
            open_session(TWO, local_directory=str(tmp_path))
    assert list(tmp_path.iterdir()) == [script]


def test_processes_that_cannot_start_others_say_why(monkeypatch: pytest.MonkeyPatch) -> None:
    spawn.check_that_processes_can_start()
    for process, reason in [
        (SimpleNamespace(daemon=True), "because this process is a daemon"),
        (SimpleNamespace(daemon=False, _inheriting=True), "under if __name__ == "),
    ]:
        with monkeypatch.context() as patch:
            patch.setattr("multiprocessing.current_process", lambda process=process: process)
            with pytest.raises(ResourceError, match=reason):
                open_session(TWO)


@pytest.mark.parametrize("arguments", [["-"], ["-c"]])
def test_a_script_from_standard_input_is_told_apart(arguments: list[str]) -> None:
    """Workers read a script again; one that `python -c` was given they do without."""
    script = "from dpipe.session import spawn; spawn.check_that_processes_can_start()"
    done = subprocess.run(
        [sys.executable, *arguments, *([script] if arguments == ["-c"] else [])],
        input=script if arguments == ["-"] else None,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode == 0) == (arguments == ["-c"]), done.stderr
    if arguments == ["-"]:
        assert "there is no file <stdin>: save it in a file and run that" in done.stderr


def test_sessions_opened_in_threads_leave_the_configuration_of_dask_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object) -> None:
        os.environ["OMP_NUM_THREADS"] = "1"  # as a nanny does
        time.sleep(0.1)
        raise RuntimeError("no")

    def start() -> None:
        with contextlib.suppress(ResourceError):
            open_session(TWO)

    monkeypatch.setattr(local, "_start_cpu_cluster", fail)
    monkeypatch.setattr(local, "_open", set())  # what others opened counts
    monkeypatch.setattr(local, "_environment", {})
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    before = copy.deepcopy(dask.config.config)
    threads = [threading.Thread(target=start) for _ in range(3)]
    for number, thread in enumerate(threads):
        thread.start()
        time.sleep(0.04 * number)
    for thread in threads:
        thread.join()
    assert dask.config.config == before
    assert os.environ["OMP_NUM_THREADS"] == "7"


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


def test_the_dashboard_takes_its_usual_port_when_it_is_free(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setattr(local, "DASHBOARD_PORT", port)
    assert local._free_dashboard_address() == f"127.0.0.1:{port}"
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen()
        assert local._free_dashboard_address() == "127.0.0.1:0"


# Tornado leaves the socket to the collector whose port it did not get.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_port_that_is_taken_in_the_last_moment_is_no_matter(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As where two runs start at the same time; a warning would be an error here."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        monkeypatch.setattr(local, "_free_dashboard_address", lambda: address)
        with open_session(Options(workers=1)) as session:
            assert session.dashboard is not None
            assert address not in session.dashboard


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


# Devices


@contextlib.contextmanager
def machine(
    monkeypatch: pytest.MonkeyPatch, cards: int, *packages: str, trouble: str | None = None
) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setattr(card, "visible_cards", lambda: cards)
        trial = card.Trial("uuid", 0 if trouble else 60 << 30, trouble)
        patch.setattr(card, "probe_elsewhere", lambda: trial)
        patch.setattr("importlib.util.find_spec", lambda name: name in packages or None)
        yield


@pytest.mark.parametrize(
    ("cards", "packages", "reason"),
    [
        (0, ("dask_cuda", "cupy", "rmm"), "no NVIDIA card is visible"),
        (1, ("cupy", "rmm"), "the package dask_cuda is not installed"),
        (1, ("dask_cuda", "rmm"), "the package cupy is not installed"),
        (1, ("dask_cuda", "cupy"), "the package rmm is not installed"),
    ],
)
def test_a_gpu_session_says_what_is_missing(
    cards: int,
    packages: tuple[str, ...],
    reason: str,
    heard: Heard,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with machine(monkeypatch, cards, *packages):
        with pytest.raises(InputError, match=f"--device gpu cannot be used here: .*{reason}"):
            open_session(Options(device="gpu"))
        assert device.choose_local_device(Options(device="auto"), heard) == ("cpu", None)
    assert [note.level for note in heard] == ["info"]
    assert heard.texts.startswith("computing on the CPU: ")
    assert reason in heard.texts


def test_auto_takes_the_gpu_when_all_is_there(
    heard: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    with machine(monkeypatch, 2, "dask_cuda", "cupy", "rmm"):
        assert device.choose_local_device(Options(), heard) == ("gpu", 60 << 30)
        assert device.choose_local_device(Options(device="gpu"), heard) == ("gpu", 60 << 30)
        assert device.choose_local_device(Options(device="cpu"), heard) == ("cpu", None)
    assert heard == [Note("computing on 2 GPUs: a card is visible.")]


@pytest.mark.parametrize("trouble", ["CuPy was made for CUDA 13", "the card is nearly full"])
def test_a_card_that_cupy_cannot_use_is_no_gpu(
    trouble: str, heard: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    with machine(monkeypatch, 1, "dask_cuda", "cupy", "rmm", trouble=trouble):
        with pytest.raises(InputError, match=f"--device gpu cannot be used here: {trouble}"):
            open_session(Options(device="gpu"))
        assert device.choose_local_device(Options(), heard) == ("cpu", None)
    assert heard == [Note(f"computing on the CPU: {trouble}.")]


def worker_facts(name: str, has_gpu: bool = True, **other: Any) -> worker.WorkerFacts:
    plain = dict.fromkeys(("pid", "rss", "peak", "device", "threads", "limit", "host_memory"), 1)
    kind = {"nanny": True, "host": "h", "has_gpu": has_gpu}
    return worker.WorkerFacts(**({"address": name, "name": name} | plain | kind | other))  # type: ignore[arg-type]


FINE = card.Trial("a", 40 << 30, None)


@pytest.mark.parametrize(
    ("has_gpu", "trials", "lack"),
    [
        ((True, False), {}, "worker 1 has no visible card or no CuPy"),
        ((True, True), {"0": FINE}, "worker 1 does not answer when it is to try CuPy"),
        ((True, True), {"0": FINE, "1": OSError()}, "worker 1 does not answer"),
        (
            (True, True),
            {"0": FINE, "1": card.Trial("", 0, "CuPy was made for CUDA 13")},
            "on worker 1, CuPy was made for CUDA 13",
        ),
    ],
)
def test_attached_workers_that_cannot_all_use_a_card(
    has_gpu: tuple[bool, bool], trials: dict[str, Any], lack: str, heard: Heard
) -> None:
    facts = [worker_facts(str(n), has) for n, has in enumerate(has_gpu)]
    choose = device.choose_attached_device
    with pytest.raises(InputError, match=f"--device gpu cannot be used on this cluster: {lack}"):
        choose("gpu", facts, lambda: trials, heard)
    assert heard == []
    assert choose("auto", facts, lambda: trials, heard) == ("cpu", None)
    assert heard.texts.startswith(f"computing on the CPU: {lack}")


@pytest.mark.parametrize(
    ("other", "room"),
    [(card.Trial("b", 30 << 30, None), 30 << 30), (FINE, 20 << 30)],
    ids=["two cards", "one card for both"],
)
def test_attached_workers_share_the_card_they_share(
    other: card.Trial, room: int, heard: Heard
) -> None:
    facts = [worker_facts("0"), worker_facts("1")]
    found = device.choose_attached_device("auto", facts, lambda: {"0": FINE, "1": other}, heard)
    assert found == ("gpu", room)
    assert heard == [Note("computing on the GPU: every worker has a card and CuPy.")]


def test_a_gpu_cluster_has_one_worker_a_card_and_one_allocator() -> None:
    workers = device.LocalWorkers("gpu", number=4, threads=1, memory=2**30, room=60 << 30)
    options = local.gpu_options(Options(), workers, "/scratch")
    assert options["n_workers"] == 4
    assert options["memory_limit"] == 2**30
    assert options["threads_per_worker"] == 1
    assert options["host"] == "127.0.0.1"
    assert options["local_directory"] == "/scratch"
    assert options["rmm_async"] is True
    assert 0 < options["rmm_release_threshold"] < 1
    assert options["rmm_allocator_external_lib_list"] == ["cupy"]
    assert not {"rmm_pool_size", "jit_unspill", "env", "processes"} & options.keys()


def test_a_gpu_session_gets_one_worker_a_card_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    with machine(monkeypatch, 4, "dask_cuda", "cupy", "rmm"):
        assert device.local_workers(Options(), silent).number == 4
        assert device.local_workers(Options(workers=2), silent).number == 2
        with pytest.raises(InputError, match="--workers 5 exceeds the 4 visible GPUs"):
            device.local_workers(Options(workers=5), silent)


def test_a_plan_is_made_for_the_cards_a_run_would_take(monkeypatch: pytest.MonkeyPatch) -> None:
    def planned(**options: Any) -> Machine:
        return plan_run(None, Options(**options), rows=1000, columns=10).machine

    with machine(monkeypatch, 3, "dask_cuda", "cupy", "rmm"):
        found = planned()
        assert (found.workers, found.device) == (3, 60 << 30)
        assert found.memory == MEMORY_LIMIT // 3
        assert planned(device="gpu") == found
        assert planned(device="cpu").device is None
    with machine(monkeypatch, 0), pytest.raises(InputError, match="--device gpu cannot be used"):
        planned(device="gpu")


def test_a_gpu_cluster_is_started_by_dask_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[dict[str, Any]] = []

    class LocalCUDACluster(LocalCluster):
        def __init__(self, **options: Any) -> None:
            started.append(options)

    monkeypatch.setitem(
        sys.modules, "dask_cuda", SimpleNamespace(LocalCUDACluster=LocalCUDACluster)
    )
    workers = device.LocalWorkers("gpu", number=3, threads=1, memory=2**30, room=60 << 30)
    monkeypatch.setattr(LocalCUDACluster, "__del__", lambda self: None, raising=False)
    cluster = local._start_gpu_cluster(Options(), workers, "/scratch")
    assert isinstance(cluster, local.NoLostWorkerTimeout)
    assert started == [local.gpu_options(Options(), workers, "/scratch")]


@pytest.mark.parametrize(
    ("installed", "visible", "cards"),
    [(4, None, 4), (4, "0,2", 2), (4, "", 0), (4, "-1", 0), (0, "0", 0), (1, "GPU-a,GPU-b", 1)],
)
def test_visible_cards_are_counted(
    installed: int, visible: str | None, cards: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(card.nvml, "device_get_count", lambda: installed)
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert card.visible_cards() == cards


# Attached sessions


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


# Connections that do not work


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


def test_a_closed_client_is_refused(foreign: LocalCluster) -> None:
    client = Client(foreign, set_as_default=False)
    client.close()
    with pytest.raises(InputError, match="the given Dask client is closed"):
        attach_session(client, Options())


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


# Small things


def test_more_memory_than_there_is_is_warned_about(heard: Heard) -> None:
    total = local.MEMORY_LIMIT
    local.warn_when_overcommitted(Options(workers=2, memory_limit=total // 2), heard)
    local.warn_when_overcommitted(Options(workers=2), heard)
    assert heard == []
    local.warn_when_overcommitted(Options(workers=2, memory_limit=total), heard)
    assert "--memory-limit and --workers allow" in heard.warnings[0]


def test_a_card_that_stays_full_is_warned_about() -> None:
    for baseline, now in [(None, 5 << 30), (1 << 30, 1 << 30), (None, None)]:
        memory = CardMemory([worker_facts("0", device=baseline)])
        assert memory.warnings([worker_facts("0", device=now)]) == []
    memory = CardMemory([worker_facts("0", device=1 << 30)])
    (text,) = memory.warnings([worker_facts("0", device=5 << 30, pid=7, holders=(7, 4711))])
    assert "the card of worker 0 has 4.0 GiB more in use" in text
    assert text.endswith("other processes on it: 4711.")
    (text,) = memory.warnings([worker_facts("0", device=5 << 30, pid=7)])
    assert text.endswith("nvidia-smi may know which.")


def test_a_card_that_an_old_worker_holds_on_to_is_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cards, "CARD_SECONDS", 0.5)
    memory = CardMemory([worker_facts("0", device=1 << 30)])
    full = (worker_facts("0", device=5 << 30, pid=7, holders=(7, 99)),)
    wait_on = memory.wait_until_released
    assert wait_on(full, frozenset({99}), lambda: full) == (full, frozenset({99}))
    assert wait_on(full, frozenset({98}), lambda: full) == (full, frozenset())
    free = (worker_facts("0", device=1 << 30, pid=7),)
    assert wait_on(full, frozenset({99}), lambda: free) == (free, frozenset())


def test_a_cluster_whose_old_worker_keeps_the_card_is_opened_anew(
    monkeypatch: pytest.MonkeyPatch, heard: Heard
) -> None:
    with open_session(Options(workers=1, device="cpu"), emit=heard) as session:
        first = session._local.pids()  # type: ignore[union-attr]
        answers = iter([frozenset({4711}), frozenset()])
        monkeypatch.setattr(
            session._cards, "wait_until_released", lambda facts, old, look: (facts, next(answers))
        )
        address = session.client.scheduler.address
        session.recycle(1)
        assert session.client.scheduler.address != address
        assert not first & session._local.pids()  # type: ignore[union-attr]
    assert "process 4711 still has memory of its card" in heard.warnings[0]


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


def test_a_worker_without_a_limit_counts_its_share_of_its_host() -> None:
    def facts(limit: int | None, host: str) -> Any:
        return SimpleNamespace(limit=limit, host=host, host_memory=1000)

    smallest = module._smallest_limit
    assert smallest([facts(None, "a"), facts(None, "a"), facts(700, "b")]) == 500
    assert smallest([facts(None, "a"), facts(300, "b")]) == 300
    assert smallest([facts(None, "a")]) == 1000


def test_the_peak_of_a_process_outlives_its_memory() -> None:
    code = """
        from dpipe.session.worker import AWAKE, expect_restart, process_memory
        block = b"x" * 300_000_000
        del block
        rss, peak = process_memory()
        print(peak - rss > 250_000_000)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.stdout == "True\n", done.stderr


def test_memory_is_known_without_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_proc(*_: object, **__: object) -> None:
        raise FileNotFoundError

    with monkeypatch.context() as patch:
        patch.setattr("builtins.open", no_proc)
        peak = worker._peak_elsewhere()
    assert peak >= 20 * MIB
    assert process_memory()[0] <= process_memory()[1]


def test_only_a_process_that_has_grown_looks_at_every_object() -> None:
    class Circle:
        def __init__(self) -> None:
            self.itself = self

    def is_collected(baselines: dict[int, int] | None) -> bool:
        seen = weakref.ref(Circle())
        give_memory_back(baselines)
        return seen() is None

    now = process_memory()[0]
    gc.collect()
    gc.disable()
    try:
        assert not is_collected({os.getpid(): now})
        assert is_collected({os.getpid(): now - 2**26})
        assert is_collected({})  # of a process that came later nothing is known
        assert is_collected(None)
    finally:
        gc.enable()


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_what_interrupts_a_start_waits_for_its_end(name: str) -> None:
    number = getattr(signal, name)
    reached = []

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    def start(signals: int) -> None:
        with interrupts_put_off():
            for count in range(signals):
                signal.raise_signal(number)
                reached.append(count)

    before = signal.signal(number, interrupt)
    try:
        start(0)
        for signals in (1, 3):  # of which the second is not put off
            with pytest.raises(KeyboardInterrupt):
                start(signals)
            assert signal.getsignal(number) is interrupt
    finally:
        signal.signal(number, before)
    assert reached == [0, 0]
