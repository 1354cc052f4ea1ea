"""dpipe: which columns of a wide table can go, because another column already says the same.

Covers: the names of the Python interface. `select` runs the whole pipeline, `load` opens a
finished run, `apply` reduces new files, `transfer` asks whether a selection holds on them,
`similarity` gives the matrix of one measure, and every measure is a function too: `spearman`,
`hsic`, `rdc` and what else `dpipe.kernels.measures` holds. `relevance` tells what columns say of a
target.
`DescriptorSelector` is a scikit-learn selector.
Does not cover: what they do (`dpipe.api`, `dpipe.estimator`), the command line (`dpipe.cli`).

Importing this module is cheap; Dask, Arrow and the rest load with the first call.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dpipe.api import apply, load, measure_function, relevance, select, similarity, transfer
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
    "load",
    "relevance",
    "select",
    "similarity",
    "transfer",
]


def __getattr__(name: str) -> Any:
    """What is made when it is asked for: the selector, which needs scikit-learn, and measures."""
    if name == "DescriptorSelector":
        from dpipe.estimator import DescriptorSelector

        return DescriptorSelector
    if name.startswith("_"):  # Python's own questions, which must not load the kernels
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return measure_function(name)


def __dir__() -> list[str]:
    """The names above and the measures."""
    from dpipe.kernels.measures import public_measures

    return sorted([*__all__, *public_measures()])
