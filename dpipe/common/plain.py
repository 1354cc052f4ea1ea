"""Values in the types of JSON and back, and what tells two of them apart.

Covers: records, arrays, sets and numbers of NumPy as JSON has them; records made of that again; a
digest.
Does not cover: files (`dpipe.runfolder.files`).
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping
from types import NoneType, UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import numpy as np

_Record = TypeVar("_Record")


def plain(value: Any) -> Any:
    """`value` in the types of JSON: records as objects, arrays and sets as lists.

    Infinite and NaN floats become "inf", "-inf" and "nan", which JSON has no numbers for.

    Examples
    --------
    >>> plain({"limits": (1, float("inf")), "name": np.str_("MolWt")})
    {'limits': [1, 'inf'], 'name': 'MolWt'}
    """
    if type(value) in (bool, int, str, NoneType):
        return value
    if isinstance(value, int | str):
        # An enumeration member, or a NumPy string, which is a str as well.
        return str(value) if isinstance(value, str) else int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else str(float(value))
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, set | frozenset):
        return sorted(plain(item) for item in value)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Iterable):
        return [plain(item) for item in value]
    raise TypeError(f"{type(value).__name__} has no form in JSON.")


def restored(kind: Callable[..., _Record], value: Any) -> _Record:
    """The record that `plain` made `value` of, by what is declared of its fields.

    Raises
    ------
    AttributeError, KeyError, TypeError, ValueError
        When it was made of something else.

    Examples
    --------
    >>> from dpipe.model.events import Fault
    >>> restored(Fault, plain(Fault("stalled", "ranking", count=2)))
    Fault(kind='stalled', stage='ranking', count=2, details='')
    """
    record: _Record = _reader(kind)(value)
    return record


@functools.cache
def _reader(kind: Any) -> Callable[[Any], Any]:
    """What makes a value of a type of a plain one."""
    make: Callable[..., Any] = kind
    inner = [_reader(each) for each in get_args(kind) if each not in (Ellipsis, NoneType)]
    origin = get_origin(kind)
    if dataclasses.is_dataclass(kind):
        fields = {name: _reader(hint) for name, hint in get_type_hints(kind).items()}
        return lambda value: make(**{name: fields[name](item) for name, item in value.items()})
    if origin is UnionType:  # something or None
        return lambda value: None if value is None else inner[0](value)
    if origin is Mapping:
        return lambda value: {inner[0](key): inner[1](item) for key, item in value.items()}
    if origin is tuple and Ellipsis in get_args(kind):
        return lambda value: tuple(map(inner[0], value))
    if origin is tuple:
        return lambda value: tuple(read(item) for read, item in zip(inner, value, strict=True))
    return make  # a number, a text or a member of an enumeration


def digest_of(value: Any) -> str:
    """SHA-256 of a plain value, whatever the order of its keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
