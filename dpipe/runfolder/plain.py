"""Values in the types of JSON, and what tells two of them apart.

Covers: records, arrays, sets and numbers of NumPy as JSON has them; a digest of the result.
Does not cover: files (`dpipe.runfolder.files`).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping
from types import NoneType
from typing import Any

import numpy as np


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


def digest_of(value: Any) -> str:
    """SHA-256 of a plain value, whatever the order of its keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
