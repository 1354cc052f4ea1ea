"""The one module that tells NumPy from CuPy.

Covers: which array namespace an array belongs to, moving arrays between host and device, the
precision of products there, and what to do when the device has no memory left.
Does not cover: which device a session uses (see `dpipe.session`).

Kernels begin with ``xp = namespace(array)`` and never ask again. CuPy is looked up among the
modules already imported, so a CPU-only machine never pays for it.
"""

from __future__ import annotations

import gc
import math
import sys
import traceback
from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

Array = Any
"""A NumPy or CuPy array; kernels accept either and return the kind they were given."""


def namespace(array: Array) -> Any:
    """The module (numpy or cupy) whose functions apply to `array`.

    Examples
    --------
    >>> namespace(np.zeros(2)).__name__
    'numpy'
    """
    cupy = sys.modules.get("cupy")
    if cupy is not None and isinstance(array, cupy.ndarray):
        return cupy
    return np


def to_host(array: Array) -> np.ndarray:
    """`array` as a NumPy array; copies only from a device."""
    return array if isinstance(array, np.ndarray) else np.asarray(array.get())


def to_device(array: np.ndarray, device: str) -> Array:
    """`array` where `device` ("cpu" or "gpu") computes; the CPU's own array comes back as it is.

    CuPy copies through pinned memory of its own and does not wait for the device. A loop that asks
    the device for nothing therefore reads its next chunk while the device computes on the last.
    """
    if device == "cpu":
        return array
    import cupy

    return cupy.asarray(array)


def staged(shape: tuple[int, ...], dtype: Any = float) -> np.ndarray:
    """A host array of any content in pinned memory, from which a copy to a device needs no other.

    `to_device` keeps it alive until the copy is done.
    """
    import cupy

    size = math.prod(shape)
    memory = cupy.cuda.alloc_pinned_memory(size * np.dtype(dtype).itemsize)
    return np.frombuffer(memory, dtype, size).reshape(shape)


class Pace:
    """Keeps a loop from asking for more than `ahead` steps that the device has not done.

    What waits holds pinned memory of the host, which no plan counts.
    """

    def __init__(self, device: str, ahead: int = 4) -> None:
        self._on_device = device != "cpu"
        self._asked: deque[Any] = deque()
        self._ahead = ahead

    def step(self) -> None:
        """Note the end of a step; wait for the one that is `ahead` steps back."""
        if not self._on_device:
            return
        import cupy

        self._asked.append(cupy.cuda.get_current_stream().record())
        if len(self._asked) > self._ahead:
            self._asked.popleft().synchronize()


def set_precision(device: str, precision: str) -> None:
    """Let the device form products of float32 arrays as "float32" or as "tf32".

    TF32 rounds the factors to 10 bits of mantissa and sums in float32. Float32 is asked for as
    well: the variable CUPY_TF32 would otherwise decide. Holds for the whole process.
    """
    if device == "cpu":
        return
    import cupy

    # The one switch CuPy has, the same in 13.3 and 14.2; 1 is its own default, 7 is TF32.
    cupy._core.set_compute_type(np.float32, {"float32": 1, "tf32": 7}[precision])


_T = TypeVar("_T")


def retried(device: str, first: Callable[[], _T], smaller: Callable[[], _T]) -> _T:
    """What `first` returns, or `smaller` where the device has no memory for it.

    Everything the failed attempt holds on the device hangs on its traceback, so that goes before
    the second one starts. Host memory is not retried: the planner answers for it.
    """
    try:
        return first()
    except Exception as error:
        if device == "cpu" or not out_of_device_memory(error):
            raise
        traceback.clear_frames(error.__traceback__)
    free_device_memory()
    return smaller()


def out_of_device_memory(error: BaseException) -> bool:
    """Whether an error of CuPy, RMM, cuBLAS or cuSOLVER means that the device is full.

    Examples
    --------
    >>> out_of_device_memory(MemoryError("std::bad_alloc: out_of_memory"))
    True
    >>> out_of_device_memory(ValueError("memory"))
    False
    """
    if isinstance(error, MemoryError):
        return True
    words = ("ALLOC_FAILED", "cudaErrorMemoryAllocation")
    return type(error).__module__.startswith("cupy") and any(word in str(error) for word in words)


def free_device_memory() -> None:
    """Give back what this process keeps on the device without using it."""
    cupy = sys.modules.get("cupy")
    if cupy is not None:
        gc.collect()
        cupy.get_default_memory_pool().free_all_blocks()
        cupy.get_default_pinned_memory_pool().free_all_blocks()
