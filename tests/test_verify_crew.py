"""The processes of verify: how many, with how much memory, and that none outlives its work.

Covers: limits of memory, processes that are killed, interrupted or left alone.
Does not cover: what they find (`test_verify`).
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from multiprocessing import popen_spawn_posix
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from conftest import ROOT

from dpipe.errors import ResourceError
from dpipe.options import parse_size
from dpipe.verify.crew import Crew, cores, crew_for


def test_memory_that_is_too_little_is_refused_with_a_size_that_is_enough_when_typed() -> None:
    for rows, columns in ((10**3, 5), (10**7, 60), (10**6, 2000)):
        with pytest.raises(ResourceError, match="verifying") as refused:
            crew_for(rows, columns, 4, 2**27)
        (named,) = re.findall("--memory-limit to at least ([^ ]+)[.]$", str(refused.value))
        assert crew_for(rows, columns, 4, parse_size(named)).workers == 1


def test_processes_are_as_many_as_memory_cores_and_columns_allow() -> None:
    assert crew_for(1000, 60, None, 2**40).workers == 1  # it would take longer to start them
    assert crew_for(1000, 60, 3, 2**40).workers == 3
    assert crew_for(10**7, 60, None, 2**40).workers == cores()
    assert crew_for(10**7, 2, 64, 2**40).workers == 2
    assert crew_for(10**7, 60, 64, 3 * 2**30).workers == 2


def test_a_process_that_is_killed_ends_in_one_sentence() -> None:
    before = set(multiprocessing.active_children())  # workers of the cluster of other tests
    with (
        pytest.raises(ResourceError, match=r"one of the 2 processes .* was killed"),
        Crew(2) as crew,
    ):
        list(crew.each(kill_itself, [()]))
    assert set(multiprocessing.active_children()) <= before


def kill_itself() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_an_interrupt_ends_the_processes_at_once() -> None:
    def sleeping() -> Iterator[tuple[float]]:
        yield (1000.0,)
        raise KeyboardInterrupt

    before = set(multiprocessing.active_children())
    with pytest.raises(KeyboardInterrupt), Crew(2) as crew:
        list(crew.each(time.sleep, sleeping()))
    assert set(multiprocessing.active_children()) <= before


def test_an_interrupt_while_a_process_starts_waits_until_it_has(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupted(self: object, process: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        launch(self, process)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    launch = popen_spawn_posix.Popen._launch
    monkeypatch.setattr(popen_spawn_posix.Popen, "_launch", interrupted)
    before = set(multiprocessing.active_children())
    usual = signal.signal(signal.SIGTERM, interrupt)  # as the program does
    try:
        with pytest.raises(KeyboardInterrupt), Crew(2) as crew:
            list(crew.each(time.sleep, [(1000.0,)]))
    finally:
        signal.signal(signal.SIGTERM, usual)
    assert set(multiprocessing.active_children()) <= before


def test_processes_end_with_the_one_that_started_them_and_hear_no_ctrl_c(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import os, signal, time\n"
        "from dpipe.verify.crew import Crew\n"
        "if __name__ == '__main__':\n"
        "    with Crew(2) as crew:\n"
        "        pids = list(crew.each(os.getpid, [()] * 4))\n"
        "        for pid in set(pids): os.kill(pid, signal.SIGINT)\n"
        "        assert list(crew.each(abs, [(-1,)] * 8)) == [1] * 8\n"
        "        print(*set(pids), flush=True)\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run(
        [sys.executable, script], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL, done.stderr
    pids = [int(pid) for pid in done.stdout.split()]
    assert pids
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):
            psutil.Process(pid).wait(60)
        assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == "zombie"


def test_a_process_that_may_start_no_others_is_told_what_it_can_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    daemon = SimpleNamespace(daemon=True)
    monkeypatch.setattr("multiprocessing.current_process", lambda: daemon)
    with (
        pytest.raises(ResourceError, match=r"is a daemon.* or with one process \(workers=1 "),
        Crew(2),
    ):
        pass
    with Crew() as crew:
        assert list(crew.each(abs, [(-1,)])) == [1]


def test_a_script_without_a_guard_is_told_of_it(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(
        "from dpipe.verify.crew import Crew\n"
        "with Crew(2) as crew:\n"
        "    print(list(crew.each(abs, [(-1,)])))\n"
    )
    done = subprocess.run(
        [sys.executable, tmp_path / "script.py"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    told = "the processes of the verification could not be started: a script must call dpipe under"
    assert told in done.stderr.splitlines()[-1]


def test_linear_algebra_takes_one_thread_here_too_while_there_is_one_process() -> None:
    code = (
        "import numpy, threadpoolctl\n"
        "from dpipe.verify.crew import Crew\n"
        "def threads():\n"
        "    print({each['num_threads'] for each in threadpoolctl.threadpool_info()})\n"
        "threads()\n"
        "with Crew():\n"
        "    threads()\n"
        "threads()\n"
    )
    many = {**os.environ, "OPENBLAS_NUM_THREADS": "2", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=many, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["{2}", "{1}", "{2}"]
