"""What runs inside a worker process for a session.

Covers: what a worker says about itself, memory handed back, threads held to one a task, alarms that
a planned restart would raise.
Does not cover: tasks (`dpipe.engine.tiles`), asking the workers (`dpipe.session.Session`).
"""

from __future__ import annotations

import contextlib
import gc
import importlib.util
import logging
import os
import resource
import socket
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import dask
import psutil
from distributed import Worker, WorkerPlugin
from distributed.system import MEMORY_LIMIT

from dpipe.device import cache, card
from dpipe.device.arrays import free_device_memory

AWAKE = "dpipe-awake-"
"""How the key of the task begins that keeps a cluster from sending its last worker away."""


@dataclass(frozen=True)
class WorkerFacts:
    """What one worker process says about itself.

    Attributes
    ----------
    address, name, pid, host
        Which process it is, and where.
    rss, peak
        Resident bytes, now and at most since it began.
    device, device_peak
        Bytes in use on its card, now and at most; None without one.
    threads
        Tasks it runs at a time.
    limit
        Bytes it may use, None without a limit.
    nanny
        Whether something starts it again.
    host_memory
        Bytes of its machine.
    has_gpu
        Whether it can compute on a card.
    holders
        The processes that compute on its card, as far as the driver tells.
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


class PlainWorker(Worker):
    """A worker without pages of its own, and without what only pages show.

    Pages would import Bokeh; the profile behind them looks at every thread 100 times a second.
    """

    def __init__(self, *arguments: Any, dashboard: bool = False, **named: Any) -> None:
        with dask.config.set({"distributed.worker.profile.enabled": False}):
            super().__init__(*arguments, dashboard=False, **named)


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


def expect_restart() -> None:
    """Have this process, which is about to be restarted, not warn of what that cancels.

    The task that keeps the cluster awake is run anew wherever a worker is left, and that one is
    about to close as well.
    """
    logging.getLogger("distributed.worker.state_machine").addFilter(_is_not_about_waking)


def _is_not_about_waking(record: logging.LogRecord) -> bool:
    return AWAKE not in record.getMessage()


_WORTH_A_LOOK = 32 * 2**20  # bytes


def give_memory_back(baselines: Mapping[int, int] | None = None) -> int:
    """Collect garbage and hand free pages to the system; the bytes of resident memory saved.

    Parameters
    ----------
    baselines
        Process id -> resident bytes at first. A process that has hardly grown does no more than
        empty its caches: to look at every object of a large one takes longer than a small table.
    """
    before = process_memory()[0]
    cache.CACHE.clear()
    free_device_memory()
    if baselines is not None and before - baselines.get(os.getpid(), 0) < _WORTH_A_LOOK:
        return 0
    gc.collect()
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
