"""Runs of the real program under faults, and what must be true after each.

Covers: starting a run (`faulty.py`) in a process of its own, waiting for it and its workers to end,
counting its tasks, comparing what it left with an undisturbed run.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil
from tables import mixed_table, write_parts

from dpipe.model.records import Decision
from dpipe.runfolder import RunFolder

PROGRAM = Path(__file__).with_name("faulty.py")
OWN = ("--workers", "2", "--device", "cpu", "--restart", "never")
COMMON = ("--min-valid", "50", "--nonlinear-threshold", "0.6")
DEADLINE = 240.0
"""Seconds that anything here may take on the most loaded of machines."""

_MARK = "FAULTY_TRIAL"


def make_table(folder: Path) -> Path:
    """A small table whose columns fall in every pass."""
    return write_parts(mixed_table(900, families=5), folder, parts=2)


def wait_for(condition: Callable[[], Any], what: str, seconds: float = DEADLINE) -> Any:
    """Poll until a condition holds."""
    deadline = time.monotonic() + seconds
    while not (answer := condition()):
        assert time.monotonic() < deadline, f"{what} within {seconds:g} s"
        time.sleep(0.01)
    return answer


@dataclass
class Trial:
    """A run in a process of its own."""

    process: subprocess.Popen[str]
    mark: str
    folder: Path
    out: str = ""
    errors: str = ""

    def finish(self, seconds: float = DEADLINE) -> int:
        """Wait for the end of the run and of every process it started; its exit code."""
        try:
            self.out, self.errors = self.process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise AssertionError(f"no end in {seconds:g} s: {self.process.communicate()}") from None
        wait_for(lambda: not self.family(), "the end of every process", 30)
        return self.process.returncode

    def family(self) -> list[psutil.Process]:
        """All processes of this run that live, the client included."""
        found = []
        for process in psutil.process_iter():
            try:
                mine = process.environ().get(_MARK) == self.mark
                if mine and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except psutil.Error:
                continue  # gone, or another user's
        return found

    def workers(self) -> list[psutil.Process]:
        """The worker processes that a cluster of its own has now."""
        found = []
        for process in self.family():
            try:
                words = " ".join(process.cmdline())
                # A worker is started from nothing, or forked from the server that the client has.
                forked = "forkserver" in words and process.ppid() != self.process.pid
            except psutil.Error:
                continue
            if forked or "spawn_main" in words:
                found.append(process)
        return found

    def files(self, pattern: str) -> list[Path]:
        """What the run folder holds now."""
        return sorted(self.folder.rglob(pattern)) if self.folder.exists() else []

    def interrupt(self) -> None:
        self.process.send_signal(signal.SIGINT)

    @property
    def tasks(self) -> dict[str, int]:
        """Stage -> tasks it submitted."""
        found: dict[str, int] = {}
        for name, count in re.findall(r"^  (\S+): ([\d,]+) tasks?$", self.out, re.MULTILINE):
            found[name] = found.get(name, 0) + int(count.replace(",", ""))
        return found


def start(
    table: Path,
    folder: Path,
    *words: str,
    fault: str = "none -",
    seconds: float = 0.0,
    where: tuple[str, ...] = OWN,
    log: Path | None = None,
    verbose: bool = False,
    **settings: Any,
) -> Trial:
    """Start ``dpipe run`` with a fault (see `faulty`); its tasks are counted when it is verbose."""
    mark = uuid.uuid4().hex
    environment: dict[str, str] = {
        **os.environ,
        _MARK: mark,
        "FAULTY": fault,
        "FAULTY_SECONDS": str(seconds),
        "TMPDIR": str(folder.parent),  # where a killed client leaves its workers' folder
        "PYTHONWARNINGS": "ignore",  # of a resource tracker whose process was killed
    }
    if log is not None:
        environment["FAULTY_LOG"] = str(log)
    command = [sys.executable, str(PROGRAM), "run", str(table), "--output-dir", str(folder)]
    process = subprocess.Popen(
        [*command, *where, *COMMON, *words, *(["-v"] if verbose else [])],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **settings,
    )
    return Trial(process, mark, folder)


@dataclass(frozen=True)
class Reference:
    """What an undisturbed run left."""

    table: Path
    selected: str
    decisions: tuple[Decision, ...]
    tasks: Mapping[str, int] = field(default_factory=dict)

    def check(self, trial: Trial, *, rounding: float = 0.0) -> None:
        """A finished run left the same answer, values within `rounding`, and nothing else."""
        assert trial.process.returncode == 0, trial.errors
        assert (trial.folder / "selected.txt").read_text() == self.selected
        found = RunFolder(trial.folder).read_decisions()
        for mine, theirs in zip(self.decisions, found, strict=True):
            if rounding and mine.value is not None and theirs.value is not None:
                assert abs(mine.value - theirs.value) <= rounding, mine.column
                mine = replace(mine, value=theirs.value)
            assert repr(theirs) == repr(mine)  # NaN equals itself here
        assert RunFolder(trial.folder).verify_checksums() == ()
        assert trial.files("*.partial") == []
        assert not (trial.folder / ".dpipe.lock").exists()


def make_reference(table: Path, folder: Path, **settings: Any) -> Reference:
    """Run without faults."""
    trial = start(table, folder, verbose=True, **settings)
    assert trial.finish() == 0, trial.errors
    selected = (folder / "selected.txt").read_text()
    return Reference(table, selected, tuple(RunFolder(folder).read_decisions()), trial.tasks)
