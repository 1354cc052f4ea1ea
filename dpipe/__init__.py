"""dpipe: which columns of a wide table can go, because another column already says the same.

Covers: the names of the Python interface. `select` runs the whole pipeline, `apply` reduces new
files, `spearman`, `hsic` and `rdc` give all-pairs similarities, `DescriptorSelector` is a
scikit-learn selector.
Does not cover: what they do (`dpipe.api`, `dpipe.estimator`), the command line (`dpipe.cli`).

Importing this module is cheap; Dask, Arrow and the rest load with the first call.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dpipe.api import apply, hsic, rdc, select, spearman
from dpipe.errors import DpipeError, InputError, ResourceError, VerificationError

if TYPE_CHECKING:
    from dpipe.estimator import DescriptorSelector

__all__ = [
    "DescriptorSelector",
    "DpipeError",
    "InputError",
    "ResourceError",
    "VerificationError",
    "apply",
    "hsic",
    "rdc",
    "select",
    "spearman",
]


def __getattr__(name: str) -> Any:
    """`DescriptorSelector`, which needs scikit-learn, when it is asked for."""
    if name == "DescriptorSelector":
        from dpipe.estimator import DescriptorSelector

        return DescriptorSelector
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
