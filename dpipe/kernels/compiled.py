"""What is compiled, where there was a compiler at installation.

Covers: the modules of C, or None where they are not there.
Does not cover: what they do, which NumPy does as well, to the same bits (`dpipe.kernels.ranks`,
`dpipe.kernels.basis`,
`dpipe.kernels.spectrum`).
"""

from __future__ import annotations

import importlib
from types import ModuleType


def load(name: str) -> ModuleType | None:
    """A compiled module of this package.

    Examples
    --------
    >>> load("not_there") is None
    True
    """
    try:
        return importlib.import_module(f"dpipe.kernels.{name}")
    except ImportError:
        return None
