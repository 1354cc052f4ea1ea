"""A stand-in for CuPy that needs no GPU: NumPy's arithmetic behind CuPy's refusals.

Covers: what code for CuPy must not do and NumPy would let pass. An array of this module never
becomes a NumPy array by itself and never meets one in an operation; functions and methods that
CuPy 13.3 lacks are missing, and those it has take the arguments that they take there.
Does not cover: a GPU's arithmetic, its speed, streams or memory.

The functions and methods below were looked up in CuPy 13.3, the oldest version dpipe supports.
"""

from __future__ import annotations

import re
import types
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

FUNCTIONS = frozenset(
    re.findall(
        r"\w+",
        """
    abs absolute add all allclose any append arange arccos argmax argmin argsort array_equal
    bincount bitwise_and bitwise_or bitwise_xor broadcast_to ceil clip concatenate copysign cos
    count_nonzero cumsum diag diff divide dot einsum empty empty_like equal exp expand_dims eye
    flatnonzero floor floor_divide full full_like greater greater_equal invert isfinite isinf isnan
    left_shift less less_equal lexsort log log1p logical_and logical_not logical_or matmul max
    maximum mean median min minimum moveaxis multiply nan_to_num nanmax nanmin negative nonzero
    not_equal ones ones_like outer packbits power quantile ravel repeat reshape right_shift
    searchsorted sign sin sort sqrt square stack std subtract sum swapaxes take take_along_axis
    tensordot tile transpose tril triu true_divide unique unpackbits var where zeros zeros_like
""",
    )
)
LINALG = frozenset({"cholesky", "eigh", "eigvalsh", "inv", "norm", "qr", "solve", "svd"})
CONSTANTS = frozenset(
    re.findall(
        r"\w+",
        """
    bool_ complex64 dtype e finfo float16 float32 float64 iinfo inf int16 int32 int64 int8 intp nan
    newaxis pi result_type uint16 uint32 uint64 uint8
""",
    )
)


class ndarray(np.lib.mixins.NDArrayOperatorsMixin):
    """An array "on the device"."""

    __array_priority__ = 100
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, hidden: np.ndarray) -> None:
        self._hidden = hidden

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        raise TypeError("Implicit conversion to a NumPy array is not allowed; use .get().")

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **options: Any) -> Any:
        if method != "__call__":
            raise TypeError(f"CuPy has no {ufunc.__name__}.{method} for this")
        return device_call(ufunc)(*inputs, **options)

    def __array_function__(self, function: Any, kinds: Any, args: Any, options: Any) -> Any:
        here = cupy.linalg if function.__module__ == "numpy.linalg" else cupy
        return getattr(here, function.__name__)(*args, **options)

    # What CuPy answers about an array without moving it.

    shape = property(lambda self: self._hidden.shape)
    dtype = property(lambda self: self._hidden.dtype)
    size = property(lambda self: self._hidden.size)
    ndim = property(lambda self: self._hidden.ndim)
    nbytes = property(lambda self: self._hidden.nbytes)
    strides = property(lambda self: self._hidden.strides)
    T = property(lambda self: ndarray(self._hidden.T))

    def __len__(self) -> int:
        return len(self._hidden)

    def __iter__(self) -> Iterator[Any]:
        return (hide(item) for item in self._hidden)

    def __repr__(self) -> str:
        return f"device {self._hidden!r}"

    # What it moves when it is asked to.

    def get(self) -> np.ndarray:
        """A copy on the host."""
        return self._hidden.copy()

    def item(self) -> Any:
        return self._hidden.item()

    def tolist(self) -> Any:
        return self._hidden.tolist()

    def __bool__(self) -> bool:
        return bool(self._hidden)

    def __int__(self) -> int:
        return int(self._hidden)

    def __float__(self) -> float:
        return float(self._hidden)

    def __index__(self) -> int:
        return self._hidden.__index__()

    # What it computes.

    def __getitem__(self, key: Any) -> Any:
        return hide(self._hidden[reveal(key)])

    def __setitem__(self, key: Any, value: Any) -> None:
        self._hidden[reveal(key)] = reveal(value)

    def astype(
        self,
        dtype: Any,
        order: str = "K",
        casting: Any = None,
        subok: Any = None,
        copy: bool = True,
    ) -> ndarray:
        return ndarray(self._hidden.astype(dtype, order=order, copy=copy))  # type: ignore[call-overload]

    def take(self, indices: Any, axis: Any = None, out: Any = None) -> Any:
        return hide(self._hidden.take(reveal(indices), axis, reveal(out)))

    def searchsorted(self, v: Any, side: str = "left", sorter: Any = None) -> Any:
        return hide(self._hidden.searchsorted(reveal(v), side))  # type: ignore[call-overload]

    def argsort(self, axis: int = -1) -> Any:
        return hide(self._hidden.argsort(axis, kind="stable"))

    def sort(self, axis: int = -1) -> None:
        self._hidden.sort(axis, kind="stable")

    def copy(self, order: str = "C") -> ndarray:
        return ndarray(self._hidden.copy(order))  # type: ignore[arg-type]

    def reshape(self, *shape: Any, order: str = "C") -> ndarray:
        return ndarray(self._hidden.reshape(*shape, order=order))  # type: ignore[call-overload]

    def transpose(self, *axes: Any) -> ndarray:
        return ndarray(self._hidden.transpose(*axes))

    def ravel(self, order: str = "C") -> ndarray:
        return ndarray(self._hidden.ravel(order))  # type: ignore[arg-type]

    def view(self, dtype: Any = None) -> ndarray:
        return ndarray(self._hidden.view(dtype))

    def fill(self, value: Any) -> None:
        self._hidden.fill(reveal(value))


def _reduction(name: str, *, dtype: bool) -> Callable[..., Any]:
    def reduce(self: ndarray, axis: Any = None, **options: Any) -> Any:
        allowed = {"out", "keepdims"} | ({"dtype"} if dtype else set())
        if set(options) - allowed:
            raise TypeError(f"CuPy's ndarray.{name} takes no {set(options) - allowed}")
        return hide(getattr(self._hidden, name)(axis=axis, **reveal(options)))

    return reduce


for _name in ("min", "max", "any", "all"):
    setattr(ndarray, _name, _reduction(_name, dtype=False))
for _name in ("sum", "mean", "var", "std", "cumsum", "prod"):
    setattr(ndarray, _name, _reduction(_name, dtype=True))


def reveal(value: Any) -> Any:
    """What NumPy computes with, for device arrays and what cannot be an array; else a refusal."""
    if isinstance(value, ndarray):
        return value._hidden
    if isinstance(value, np.ndarray):
        raise TypeError("Unsupported type <class 'numpy.ndarray'>: move it with cupy.asarray")
    if isinstance(value, tuple | list):
        return type(value)(reveal(item) for item in value)
    if isinstance(value, dict):
        return {name: reveal(item) for name, item in value.items()}
    return value


def hide(value: Any) -> Any:
    """NumPy's result as CuPy would give it: reductions are arrays too."""
    if isinstance(value, np.ndarray | np.generic):
        return ndarray(np.asarray(value))
    if isinstance(value, tuple):
        return tuple(hide(item) for item in value)
    return value


def device_call(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of NumPy that takes and gives device arrays alone."""

    def call(*arguments: Any, **options: Any) -> Any:
        return hide(function(*reveal(arguments), **reveal(options)))

    return call


def asarray(a: Any, dtype: Any = None, order: Any = None, *, blocking: bool = False) -> ndarray:
    """The one way onto the device; copies what comes from the host, as a transfer does."""
    if isinstance(a, ndarray):
        return ndarray(np.asarray(a._hidden, dtype=dtype))
    return ndarray(np.array(a, dtype=dtype))


limit = {"bytes": float("inf")}
"""The largest array that `empty` has memory for."""


def _empty(shape: Any, dtype: Any = float, order: str = "C") -> ndarray:
    made = np.empty(shape, dtype, order)  # type: ignore[call-overload]
    if made.nbytes > limit["bytes"]:
        raise MemoryError(f"std::bad_alloc: out_of_memory: {made.nbytes} bytes")
    return ndarray(made)


class _Namespace(types.ModuleType):
    """The module itself: only what CuPy has can be taken from it."""

    def __getattr__(self, name: str) -> Any:
        if name in FUNCTIONS:
            return device_call(getattr(np, name))
        if name in CONSTANTS:
            return getattr(np, name)
        raise AttributeError(f"{name} is not among the names looked up in CuPy 13.3")


class _Linalg(types.ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name in LINALG:
            return device_call(getattr(np.linalg, name))
        raise AttributeError(f"linalg.{name} is not among the names looked up in CuPy 13.3")


def _take(a: Any, indices: Any, axis: Any = None, out: Any = None) -> Any:
    return a.take(indices, axis, out)


def _clip(a: Any, a_min: Any, a_max: Any, out: Any = None) -> Any:
    return hide(np.clip(reveal(a), reveal(a_min), reveal(a_max), out=reveal(out)))


class ElementwiseKernel:
    """A kernel of one statement that reads the same in C++ and in Python."""

    def __init__(self, in_params: str, out_params: str, operation: str, name: str) -> None:
        self._names = re.findall(r"T (\w+)", in_params)
        target, self._expression = operation.split(" = ")
        assert re.findall(r"T (\w+)", out_params) == [target], name

    def __call__(self, *arguments: Any) -> ndarray:
        *inputs, out = arguments
        values = dict(zip(self._names, reveal(inputs), strict=True))
        out[...] = hide(eval(self._expression, {}, values))  # noqa: S307
        return out


class Pool:
    """An allocator's pool that counts how often it was emptied."""

    def __init__(self) -> None:
        self.emptied = 0

    def free_all_blocks(self) -> None:
        self.emptied += 1


pool = Pool()
compute_types: dict[str, int] = {}
"""What was asked of products of each type, as `cupy._core.set_compute_type` keeps it."""


def _set_compute_type(dtype: Any, compute_type: int) -> None:
    compute_types[np.dtype(dtype).name] = compute_type


_stream = types.SimpleNamespace(
    record=lambda: types.SimpleNamespace(synchronize=lambda: None), synchronize=lambda: None
)
_cuda = types.SimpleNamespace(
    alloc_pinned_memory=bytearray, get_current_stream=lambda: _stream, set_allocator=lambda _: None
)


cupy = _Namespace("cupy")
vars(cupy).update(
    {
        "cuda": _cuda,
        "_core": types.SimpleNamespace(set_compute_type=_set_compute_type),
        "get_default_memory_pool": lambda: pool,
        "get_default_pinned_memory_pool": lambda: pool,
        "ElementwiseKernel": ElementwiseKernel,
        "ndarray": ndarray,
        "asarray": asarray,
        "array": asarray,
        "take": _take,
        "clip": _clip,
        "empty": _empty,
        "linalg": _Linalg("cupy.linalg"),
        "asnumpy": lambda array: array.get(),
    }
)
