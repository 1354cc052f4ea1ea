"""The program as a process: where its workers come from, and how it ends when it is interrupted.

Covers: workers forked from one process, SIGINT and SIGTERM before, in and after a command, in this
process and in the real program.
Does not cover: runs that are killed (`test_resume`).
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from commands import SMALL, invoke, program, write_table
from conftest import ROOT

# Where workers come from


FROM_ELSEWHERE = "import sys; sys.path.remove(''); from dpipe.__main__ import program; program()"
"""The program as its console script runs it: not looking for modules in the current folder."""


@pytest.mark.skipif(sys.platform != "linux", reason="workers are forked on Linux alone")
@pytest.mark.parametrize("killed", [False, True])
def test_workers_are_forked_from_one_process_that_ends_with_the_program(
    killed: bool, tmp_path: Path
) -> None:
    write_table(tmp_path / "data")
    (tmp_path / "numpy.py").write_text("raise SystemExit('not the module that was meant')")
    words = [sys.executable, "-c", FROM_ELSEWHERE, "run", "data", "--output-dir", "out", *SMALL]
    process = subprocess.Popen(
        words,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline()  # the workers are up
    started = psutil.Process(process.pid).children(recursive=True)
    servers = [child for child in started if "forkserver" in " ".join(child.cmdline())]
    # A forked process has the command line of what it was forked from.
    assert [child.ppid() for child in servers] == [process.pid, servers[0].pid]
    if killed:
        process.kill()
    _, errors = process.communicate(timeout=60)
    if not killed:  # else a helper of multiprocessing tells of what was left behind
        assert (process.returncode, errors) == (0, "")
    assert psutil.wait_procs(started, timeout=10)[1] == []


# Interruption


def test_interruption_says_how_to_continue(monkeypatch: pytest.MonkeyPatch) -> None:
    from dpipe import pipeline

    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "run", interrupt)
    monkeypatch.setattr(pipeline, "plan_run", interrupt)
    result = invoke("run", "x", "--output-dir", "o")
    assert result.exit_code == 130
    assert result.stderr == "interrupted; run the same command again to continue\n"
    result = invoke("plan", "x")
    assert result.exit_code == 130
    assert result.stderr == "interrupted\n"


def test_a_polite_kill_interrupts_and_the_handler_goes_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from dpipe import pipeline

    def kill(*_: Any, **__: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)

    monkeypatch.setattr(pipeline, "run", kill)
    before = signal.getsignal(signal.SIGTERM)
    assert invoke("run", "x", "--output-dir", "o").exit_code == 130
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize(
    ("code", "status", "told"),
    [
        ("import builtins\nload = __import__\ndef stop(name, *rest):\n if name == 'dpipe.cli':\n"
         "  raise KeyboardInterrupt\n return load(name, *rest)\nbuiltins.__import__ = stop",
         130, "interrupted\n"),
        ("import atexit, os, signal\natexit.register(os.kill, os.getpid(), signal.SIGINT)",
         -signal.SIGINT, ""),
    ],
    ids=["while it loads", "when it is done"],
)  # fmt: skip
def test_an_interrupt_outside_of_a_command_shows_no_traceback(
    code: str, status: int, told: str
) -> None:
    words = [sys.executable, "-c", f"{code}\nfrom dpipe.__main__ import program; program()"]
    done = subprocess.run([*words, "--version"], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (status, told)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_continues(number: signal.Signals, tmp_path: Path) -> None:
    write_table(tmp_path / "data")
    words = [sys.executable, "-m", "dpipe", "run", "data", "--output-dir", "out", *SMALL]
    words += ["--passes", "1,2"]
    process = subprocess.Popen(
        words,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline()  # the workers are up
    os.killpg(process.pid, number)  # as a terminal does: the workers too
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    if number == signal.SIGINT:  # a worker that gets SIGTERM itself says so
        assert errors == "interrupted; run the same command again to continue\n"
    assert not (tmp_path / "out" / "selected.txt").exists()
    done = program(*words[3:], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "selected.txt").exists()
