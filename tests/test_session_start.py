"""How a session of dpipe's own starts, and what it says where it cannot.

Covers: workers and their memory by default, scripts and folders that keep processes from starting,
ports, signals and threads in the middle of a start.
"""

from __future__ import annotations

import contextlib
import copy
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dask
import pytest
from conftest import ROOT
from dask.system import CPU_COUNT
from distributed.system import MEMORY_LIMIT
from sessions import TWO, Heard

from dpipe.common import spawn
from dpipe.common.environment import interrupts_put_off
from dpipe.errors import InputError, ResourceError
from dpipe.model.events import silent
from dpipe.options import Options
from dpipe.session import device, local, open_session


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


def test_more_memory_than_there_is_is_warned_about(heard: Heard) -> None:
    total = local.MEMORY_LIMIT
    local.warn_when_overcommitted(Options(workers=2, memory_limit=total // 2), heard)
    local.warn_when_overcommitted(Options(workers=2), heard)
    assert heard == []
    local.warn_when_overcommitted(Options(workers=2, memory_limit=total), heard)
    assert "--memory-limit and --workers allow" in heard.warnings[0]


# What keeps it from starting


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
    script = "from dpipe.common import spawn; spawn.check_that_processes_can_start()"
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


# What happens beside it


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
