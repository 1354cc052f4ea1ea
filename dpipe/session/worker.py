"""What runs inside a worker process for a session.

Covers: what a worker says about itself, memory handed back, threads held to one a task.
Does not cover: tasks (`dpipe.engine.tiles`), asking the workers (`dpipe.session.Session`).
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import resource
import socket
import sys
import threading
from dataclasses import dataclass
from typing import Any

import psutil
from distributed import WorkerPlugin
from distributed.system import MEMORY_LIMIT

from dpipe.device import cache, card
from dpipe.device.arrays import free_device_memory


@dataclass(frozen=True)
class WorkerFacts:
    """What one worker process says about itself; sizes in bytes, ``limit`` None without a limit.

    ``holders`` are the processes that compute on its card, as far as the driver tells.
    """

    address: str
    name: str
    pid: int
    rss: int
    peak: int
    device: int | None
    threads: int
    limit: int | None
    nanny: bool
    host: str
    host_memory: int
    has_gpu: bool
    device_peak: int | None = None
    holders: tuple[int, ...] = ()


class ThreadPin(WorkerPlugin):
    """Holds the BLAS and OpenMP of a worker process to one thread while any session wants it."""

    def setup(self, worker: Any) -> None:
        """Limit the thread pools of this process."""
        with _pin_lock:
            _pins.append(self)
            if len(_pins) == 1:
                import numpy  # noqa: F401  its BLAS must be loaded before it can be limited

                threadpoolctl = importlib.import_module("threadpoolctl")
                _limits.append(threadpoolctl.threadpool_limits(1))

    def teardown(self, worker: Any) -> None:
        """Undo it when the last session that asked for it is gone."""
        with _pin_lock:
            if _pins:
                _pins.pop()
            if not _pins and _limits:
                _limits.pop().restore_original_limits()


class QuietShutdown(WorkerPlugin):
    """Lets a worker of a local cluster log nothing once it closes.

    A heartbeat on its way then would be reported with a traceback, as if the run had failed.
    """

    name = "dpipe-quiet-shutdown"

    def teardown(self, worker: Any) -> None:
        """Log nothing more in this process, which ends with its worker."""
        logging.disable()


_pin_lock = threading.Lock()
_pins: list[ThreadPin] = []
_limits: list[Any] = []


def look(dask_worker: Any, gpu: bool) -> WorkerFacts:
    """What the worker this runs on says about itself; `gpu` asks its card as well."""
    rss, peak = process_memory()
    has_card = gpu and card.visible_cards() > 0
    used = card.used_bytes() if has_card else None
    seen = dask_worker.monitor.quantities.get("gpu_memory_used", ())
    limit = dask_worker.memory_manager.memory_limit
    return WorkerFacts(
        address=dask_worker.address,
        name=str(dask_worker.name),
        pid=os.getpid(),
        rss=rss,
        peak=peak,
        device=used,
        threads=dask_worker.state.nthreads,
        limit=int(limit) if limit else None,
        nanny=dask_worker.nanny is not None,
        host=socket.gethostname(),
        host_memory=int(MEMORY_LIMIT),
        has_gpu=has_card and importlib.util.find_spec("cupy") is not None,
        device_peak=None if used is None else max([used, *(int(n) for n in seen if n)]),
        holders=card.holders() if has_card else (),
    )


def give_memory_back() -> int:
    """Collect garbage and hand free pages to the system; the bytes of resident memory saved."""
    before = process_memory()[0]
    cache.CACHE.clear()
    free_device_memory()
    arrow = sys.modules.get("pyarrow")
    if arrow is not None:
        arrow.default_memory_pool().release_unused()
    if sys.platform == "linux":
        import ctypes

        # Only glibc has it; other libraries decide for themselves what they give back.
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL("libc.so.6").malloc_trim(0)
    return before - process_memory()[0]


def process_memory() -> tuple[int, int]:
    """Resident bytes of this process, now and at most since it began.

    Examples
    --------
    >>> rss, peak = process_memory()
    >>> 0 < rss and 0 < peak
    True
    """
    rss = int(psutil.Process().memory_info().rss)
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as status:
            kilobytes = next(line.split()[1] for line in status if line.startswith("VmHWM:"))
        return rss, max(rss, int(kilobytes) * 1024)
    except (OSError, StopIteration, ValueError):
        return rss, max(rss, _peak_elsewhere())


def _peak_elsewhere() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
