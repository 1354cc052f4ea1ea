"""The NVIDIA card of this process: what it is, who uses it, whether CuPy computes on it.

Covers: counting visible cards, bytes and processes on the first one (NVML, no CUDA context), trying
CuPy once (`probe`).
Does not cover: choosing a device or opening workers on it (`dpipe.session`), arrays
(`dpipe.device.arrays`).

Nothing here but `probe` imports CuPy, because a CUDA context that exists before the workers do
would keep memory on their card.
"""

# Distributed's view of NVML carries no annotations.
# mypy: allow-untyped-calls

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass
from typing import Any

from distributed.diagnostics import nvml

from dpipe.common.words import first_line, sized

PROBE_SECONDS = 120.0
"""How long another process may take to try CuPy; the first time, CuPy compiles."""
LEAST_ROOM = 512 * 2**20
"""Bytes a card must have free to be worth a session: less is a card that others fill."""


@dataclass(frozen=True)
class Trial:
    """What came of trying CuPy: the card's ``uuid``, the bytes to be had, what is wrong (or None).

    ``trouble`` is half a sentence that says what to do.
    """

    uuid: str
    room: int
    trouble: str | None


def visible_cards() -> int:
    """How many NVIDIA cards this process may use (0 without a driver).

    Examples
    --------
    >>> visible_cards() >= 0
    True
    """
    allowed = os.environ.get("CUDA_VISIBLE_DEVICES")
    try:
        installed = int(nvml.device_get_count())
    except Exception:  # NVML raises much, as about a driver that was just updated
        return 0
    if allowed is None:
        return installed
    named = [d for d in allowed.split(",") if d.strip() not in ("", "-1", "NoDevFiles")]
    return min(installed, len(named)) if installed else 0


def describe() -> str | None:
    """Name and memory of the first visible card, None without one.

    Examples
    --------
    >>> describe() is None or visible_cards() > 0
    True
    """
    if visible_cards() == 0:
        return None
    attributes = nvml.one_time()
    total = attributes["memory-total"]  # None on a chip without memory of its own
    name = str(attributes["name"])
    return name if total is None else f"{name}, {sized(total)}"


def used_bytes() -> int | None:
    """Bytes in use on the first visible card, by whomever; None without a card of own memory.

    Examples
    --------
    >>> used_bytes() is None or visible_cards() > 0
    True
    """
    if visible_cards() == 0:
        return None
    try:
        used = nvml.real_time()["memory-used"]
    except Exception:  # whatever NVML raises: a reading must never end a run
        return None
    return None if used is None else int(used)


def holders() -> tuple[int, ...]:
    """Processes that compute on the first visible card; empty where the driver does not tell.

    A container sees only its own processes, or numbers that mean nothing inside it.

    Examples
    --------
    >>> holders() == () or visible_cards() > 0
    True
    """
    if visible_cards() == 0:
        return ()
    pynvml: Any = vars(nvml)["pynvml"]  # imported there if it is installed
    visible = os.environ.get("CUDA_VISIBLE_DEVICES") or "0"
    first = visible.split(",")[0].strip()
    try:
        handle = (
            pynvml.nvmlDeviceGetHandleByIndex(int(first))
            if first.isdigit()
            else pynvml.nvmlDeviceGetHandleByUUID(first.encode())
        )
        running = pynvml.nvmlDeviceGetComputeRunningProcesses(handle)
    except pynvml.NVMLError:  # not supported, as under WSL and for parts of a card
        return ()
    return tuple(sorted({int(process.pid) for process in running}))


def probe() -> Trial:
    """Compute something with CuPy in this process, and find out how much memory it can have.

    Creates a CUDA context, as the first task on a device does.
    """
    try:
        import cupy

        # Compiles a kernel, which needs the libraries of the CUDA version CuPy was made for.
        assert int((cupy.arange(4) * 2).sum()) == 12
        uuid = bytes(cupy.cuda.runtime.getDeviceProperties(0)["uuid"]).hex()
        room = _room(cupy)
    except Exception as error:  # a broken installation may raise anything
        return Trial("", 0, _trouble(error))
    if room < LEAST_ROOM:
        return Trial(uuid, room, _full(room))
    return Trial(uuid, room, None)


def probe_elsewhere() -> Trial:
    """`probe` in a process of its own, which leaves no CUDA context in this one."""
    command = [sys.executable, "-W", "ignore", "-m", "dpipe.device.card"]
    try:
        process = subprocess.run(
            command, capture_output=True, text=True, timeout=PROBE_SECONDS, check=False
        )
        return Trial(**json.loads(process.stdout.splitlines()[-1]))
    except subprocess.TimeoutExpired:
        return Trial("", 0, f"CuPy does not answer within {PROBE_SECONDS:g} s")
    except (OSError, ValueError, IndexError, TypeError):
        return Trial("", 0, "CuPy ends the process that tries it")


def _room(cupy: Any) -> int:
    """Bytes this process can have: what is free on the card, and what its pools hold already.

    Nothing is allocated to find out: an asynchronous pool might never give it back, to the
    disadvantage of other workers on the card.
    """
    free, _ = cupy.cuda.runtime.memGetInfo()
    room = int(free) + int(cupy.get_default_memory_pool().free_bytes())
    rmm = sys.modules.get("rmm")
    if rmm is not None:
        pool_size = getattr(rmm.mr.get_current_device_resource(), "pool_size", None)
        room += 0 if pool_size is None else int(pool_size())
    return room


def _trouble(error: Exception) -> str:
    """What keeps CuPy from computing, in half a sentence that says what to do."""
    kind = type(error).__name__
    text = kind if (line := first_line(error)) == kind else f"{kind}: {line}"
    if isinstance(error, MemoryError) or "out of memory" in text or "MemoryAllocation" in text:
        return _full(0)
    made_for, driver = _cuda_of_cupy(), _cuda_of_driver()
    if made_for and driver and made_for > driver:
        return (
            f"CuPy was made for CUDA {made_for} and the driver serves CUDA {driver} at most; "
            f"install the extra gpu{driver} instead, or a newer driver ({text})"
        )
    fit = f"the extra gpu{driver} fits this driver" if driver in (12, 13) else "install it anew"
    return f"CuPy does not compute on the card ({text}); {fit}"


def _full(room: int) -> str:
    return (
        f"the card is nearly full ({sized(room)} can be had); "
        "nvidia-smi shows which processes hold it"
    )


def _cuda_of_cupy() -> int | None:
    """The major version of CUDA that the installed CuPy was made for."""
    for major in (13, 12, 11):
        try:
            importlib.metadata.version(f"cupy-cuda{major}x")
        except importlib.metadata.PackageNotFoundError:
            continue
        return major
    return None


def _cuda_of_driver() -> int | None:
    """The newest major version of CUDA that the driver serves."""
    if visible_cards() == 0:
        return None
    pynvml: Any = vars(nvml)["pynvml"]  # imported there if it is installed
    try:
        return int(pynvml.nvmlSystemGetCudaDriverVersion_v2()) // 1000
    except pynvml.NVMLError:
        return None


if __name__ == "__main__":
    print(json.dumps(asdict(probe())))
