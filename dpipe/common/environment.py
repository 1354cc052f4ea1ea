"""What worker processes inherit: threads, allocator and instruction sets, as measured; no Ctrl-C.

Covers: variables that must be set before a worker loads NumPy, the signal that a worker ignores;
signals that wait until workers have started; whether the process that starts them is dpipe's own.
Does not cover: starting workers (`dpipe.session`, `dpipe.common.processes`).

Figures: 1e6 random float64 ranked on a Zen 4 core took 80 ms of CPU time with Dask's defaults,
67 ms with `KEEP_PAGES`, 36 ms without AVX-512 sorting, 25 ms with both; a matrix product is
unchanged (``benchmarks/ranking.py``).
"""

from __future__ import annotations

import contextlib
import functools
import signal
import threading
from collections.abc import Iterator
from multiprocessing import resource_tracker
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from types import FrameType

ONE_THREAD = dict.fromkeys(
    (
        "OMP_NUM_THREADS",  # also what Arrow's CPU pool obeys
        "OPENBLAS_NUM_THREADS",
        "MKL_NUM_THREADS",
        "BLIS_NUM_THREADS",
        "VECLIB_MAXIMUM_THREADS",
        "NUMEXPR_NUM_THREADS",
    ),
    "1",
)
"""Keeps a task on the one thread Dask gave it."""

KEEP_PAGES = {
    "MALLOC_TRIM_THRESHOLD_": str(256 * 2**20),
    "MALLOC_MMAP_THRESHOLD_": str(32 * 2**20),
}
"""Lets glibc reuse the pages of one array for the next.

Dask's workers hand free memory back after every 64 KiB, so that each temporary array is paged in
anew. dpipe's workers are restarted between passes and need not be so eager: they keep 256 MiB.
"""

_SLOW_SORT = {"NPY_DISABLE_CPU_FEATURES": "X86_V4 AVX512_ICL AVX512_SPR"}


_own_process = False


def own_this_process() -> None:
    """Say that nobody but dpipe runs in this process, whose settings it may then change."""
    global _own_process
    _own_process = True


def owns_this_process() -> bool:
    """Whether nobody but dpipe runs in this process."""
    return _own_process


def worker_environment() -> dict[str, str]:
    """Variables for the workers of a local session on this machine.

    Examples
    --------
    >>> worker_environment()["OPENBLAS_NUM_THREADS"]
    '1'
    """
    slow = _SLOW_SORT if _sorts_slowly_with_avx512() else {}
    return {**ONE_THREAD, **KEEP_PAGES, **slow}


@functools.cache
def _sorts_slowly_with_avx512() -> bool:
    """Whether this is a Zen 4 processor, whose compress-store makes NumPy's AVX-512 sort slow.

    NumPy's AVX2 sort is five times faster there (numpy issue 32690).
    """
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:  # not Linux: nothing to know, nothing to change
        return False
    first = text.split("\n\n", 1)[0]
    facts = {
        key.strip(): value.strip()
        for key, _, value in (line.partition(":") for line in first.splitlines())
    }
    return (
        facts.get("vendor_id") == "AuthenticAMD"
        and facts.get("cpu family") == "25"
        and "avx512f" in facts.get("flags", "").split()
    )


@contextlib.contextmanager
def interrupts_blocked() -> Iterator[None]:
    """Keep Ctrl-C from the processes started inside; it comes to this process afterwards.

    A terminal sends it to every process, and each worker would answer with a traceback while this
    process is about to end it properly. A thread that starts inside inherits the mask, and so do
    the processes that it starts later.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    # Whoever starts this helper of multiprocessing unblocks the signal in its own thread.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def interrupts_put_off() -> Iterator[None]:
    """Have what interrupts this process, Ctrl-C or a polite kill, do so when the block has ended.

    What is interrupted half started is known to nobody who could end it, and its libraries complain
    at the exit of the process. A second signal is not put off.
    """
    came: list[int] = []
    before: dict[int, Any] = {}

    def note(number: int, frame: FrameType | None) -> None:
        if came:
            before[number](number, frame)
        came.append(number)

    if threading.current_thread() is threading.main_thread():
        numbers = (getattr(signal, name, None) for name in ("SIGINT", "SIGTERM", "SIGHUP"))
        for number in filter(None, numbers):
            if callable(signal.getsignal(number)):
                before[number] = signal.signal(number, note)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if came:
        signal.raise_signal(came[0])
