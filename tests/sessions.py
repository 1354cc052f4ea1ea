"""What tests of sessions share: a listener, somebody else's cluster, tasks, facts of workers.

A worker imports a task by the name of its module: this one is imported in no time.
"""

from __future__ import annotations

import os
from typing import Any

from distributed import LocalCluster

from dpipe.model.events import Note
from dpipe.model.records import MemoryReading
from dpipe.options import Options
from dpipe.session import worker

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


def pids(readings: tuple[MemoryReading, ...]) -> set[int]:
    return {reading.pid for reading in readings if reading.process != "client"}


def add_one(number: int) -> int:
    return number + 1


def hold_memory(size: int) -> int:
    """Allocate and keep it, as a library that leaks does."""
    import numpy

    import dpipe.session

    dpipe.session.leaked = numpy.ones(size, numpy.uint8)  # type: ignore[attr-defined]
    return os.getpid()


def thread_pools() -> list[int]:
    import numpy  # noqa: F401
    from threadpoolctl import threadpool_info

    return [pool["num_threads"] for pool in threadpool_info()]


def worker_facts(name: str, has_gpu: bool = True, **other: Any) -> worker.WorkerFacts:
    plain = dict.fromkeys(("pid", "rss", "peak", "device", "threads", "limit", "host_memory"), 1)
    kind = {"nanny": True, "host": "h", "has_gpu": has_gpu}
    return worker.WorkerFacts(**({"address": name, "name": name} | plain | kind | other))  # type: ignore[arg-type]
