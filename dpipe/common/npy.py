"""Reading NumPy's files, one at a time.

Covers: the arrays of an npz, a npy mapped into memory; neither unpickles.
Does not cover: writing them, what is in them.

NumPy reads the header of an array as a literal of Python. In Python 3.11 two threads that do so at
the same moment may get a `SystemError` about recursion (python/cpython#106905), and the threads of
a worker read all the time.
"""

from __future__ import annotations

import os
import threading
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

_READING = threading.Lock()


def read_npz(file: IO[bytes]) -> dict[str, NDArray[Any]]:
    """The arrays of an open npz, by name.

    Raises
    ------
    ValueError, TypeError, EOFError, zipfile.BadZipFile
        When it is none, or holds pickled objects.

    Examples
    --------
    >>> import io
    >>> file = io.BytesIO()
    >>> np.savez(file, a=np.arange(3))
    >>> read_npz(io.BytesIO(file.getvalue()))
    {'a': array([0, 1, 2])}
    """
    with _READING, np.load(file, allow_pickle=False) as data:
        return {name: data[name] for name in data.files}


def map_npy(path: str | os.PathLike[str]) -> NDArray[Any]:
    """The array of a npy file, mapped into memory, read-only.

    Raises
    ------
    ValueError, EOFError
        When it is none, or holds pickled objects.
    """
    with _READING:
        array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    return array
