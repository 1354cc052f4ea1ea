"""The one module that tells NumPy from CuPy.

Covers: which array namespace an array belongs to, and moving arrays between host and device.
Does not cover: which device a session uses (see `dpipe.session`).

Kernels begin with ``xp = namespace(array)`` and never ask again. CuPy is looked up among the
modules already imported, so a CPU-only machine never pays for it.
"""

from __future__ import annotations

import sys
from typing import Any

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
    """`array` where `device` ("cpu" or "gpu") computes; the CPU's own array comes back as it is."""
    if device == "cpu":
        return array
    import cupy

    return cupy.asarray(array)
