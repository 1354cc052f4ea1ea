"""The page ``/dpipe`` beside Dask's own dashboard: how a run stands, while it runs.

Covers: an observer of `dpipe.model.events` that keeps what the page shows, and the page.
Does not cover: serving it (see `dpipe.watch.scheduler`), the page that stays (see `dpipe.report`),
the terminal (see `dpipe.watch.terminal`).
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterable
from importlib.resources import files
from typing import Any

from dpipe.model.events import (
    Event,
    MemoryRead,
    Note,
    PassDone,
    PassStarted,
    RunStarted,
    StageStarted,
    TaskDone,
)
from dpipe.model.records import MemoryReading

_WARNINGS_SHOWN = 8


def page() -> str:
    """The page: one HTML text, which asks for ``dpipe/state.json`` beside it every second."""
    return files("dpipe.watch").joinpath("page.html").read_text(encoding="utf-8")


class Board:
    """What the page shows of a run; call it with each event, from any thread.

    Examples
    --------
    >>> board = Board()
    >>> board(PassStarted(1, "prepare", 1830))
    >>> [(each["name"], each["state"]) for each in json.loads(board.state())["passes"]]
    [('prepare', 'running')]
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._passes: dict[int, dict[str, Any]] = {}
        self._run: dict[str, Any] = {"began": time.time()}
        self._stage: dict[str, Any] | None = None
        self._restarts: list[dict[str, Any]] = []
        self._warnings: list[str] = []
        self._last: tuple[MemoryReading, ...] = ()

    def __call__(self, event: Event) -> None:
        """Take note of one event."""
        with self._lock:
            match event:
                case RunStarted():
                    self._run_started(event)
                case PassStarted():
                    self._pass(event.number).update(
                        name=event.name, state="running", columns=event.n_columns, began=time.time()
                    )
                case StageStarted():
                    now = time.time()
                    self._stage = {
                        "name": event.name,
                        "tasks": event.tasks,
                        "done": 0,
                        "began": now,
                    }
                case TaskDone():
                    self._task_done()
                case PassDone():
                    self._stage = None
                    self._pass(event.number).update(
                        state="reused" if event.reused else "done",
                        kept=event.n_kept,
                        seconds=event.seconds,
                        ended=time.time(),
                    )
                case MemoryRead():
                    self._memory_read(event.readings)
                case Note(level="warning"):
                    self._warnings = [*self._warnings, event.text][-_WARNINGS_SHOWN:]

    def state(self) -> str:
        """All of it as JSON; times are seconds since 1970, sizes bytes."""
        with self._lock:
            return json.dumps(
                {
                    **self._run,
                    "passes": [self._passes[number] for number in sorted(self._passes)],
                    "stage": self._stage,
                    "restarts": self._restarts,
                    "warnings": self._warnings,
                }
            )

    def _pass(self, number: int) -> dict[str, Any]:
        waiting = {"number": number, "state": "waiting", "done_tasks": 0}
        return self._passes.setdefault(number, waiting)

    def _run_started(self, event: RunStarted) -> None:
        self._run |= {
            "rows": event.n_rows,
            "columns": event.n_features,
            "device": event.device,
            "workers": event.n_workers,
            "limit": event.memory_limit,
        }
        for planned in event.passes:
            self._pass(planned.number).update(
                name=planned.name, planned_tasks=planned.tasks, planned_bytes=planned.worker_bytes
            )

    def _task_done(self) -> None:
        if self._stage is not None:
            self._stage["done"] += 1
        for each in self._passes.values():
            if each["state"] == "running":
                each["done_tasks"] += 1

    def _memory_read(self, readings: tuple[MemoryReading, ...]) -> None:
        if not readings:
            return
        moment, number = readings[0].moment, readings[0].pass_number
        if moment == "after":
            workers = [r.peak for r in readings if r.process != "client"]
            self._pass(number)["peak"] = max(workers, default=0)
        elif moment == "recycled":
            self._restarts.append(
                {
                    "time": time.time(),
                    "after_pass": number,
                    "processes": _before_and_after(self._last, readings),
                }
            )
        self._last = readings


def _before_and_after(
    before: Iterable[MemoryReading], after: Iterable[MemoryReading]
) -> list[dict[str, Any]]:
    """Each process of either reading, with its number and its bytes then and now."""
    processes: dict[str, dict[str, Any]] = {}
    for when, readings in (("before", before), ("after", after)):
        for reading in readings:
            processes.setdefault(reading.process, {"process": reading.process})[when] = {
                "pid": reading.pid,
                "rss": reading.rss,
                "device": reading.device,
            }
    return list(processes.values())
