"""Kinds of options: how a value of each is written, converted, checked and described.

Covers: one class a kind; each is a value that says everything the command line, YAML files, Python
callers and the JSON schema need to know.
Does not cover: which options there are (see `dpipe.options`).
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any

from dpipe.errors import InputError
from dpipe.model.registry import FIRST, usual_passes

_UNSET = "perhaps a variable of the shell is not set"
_UNITS = {"": 1, "b": 1} | {
    prefix + suffix: base**power
    for power, prefix in enumerate("kmgt", start=1)
    for suffix, base in (("b", 1000), ("ib", 1024), ("", 1000))
}


@dataclass(frozen=True)
class Kind:
    """What a value of an option may be."""

    metavar: str = ""

    def convert(self, value: Any) -> Any:
        """`value` as YAML, Python or the command line wrote it, in the type of this kind.

        Raises
        ------
        TypeError, ValueError or OverflowError
            When it is something else.
        """
        raise NotImplementedError

    @property
    def wanted(self) -> str:
        """What a value is, in words, for who wrote what cannot be converted."""
        raise NotImplementedError

    def fault(self, value: Any) -> str:
        """What is wrong with a converted value, as the rest of a sentence; nothing when it is fine.

        Examples
        --------
        >>> Whole(low=1).fault(0), Whole(low=1).fault(1)
        ('must be at least 1, not 0', '')
        """
        return ""

    def text(self, value: Any) -> str:
        """A value as a user would write it."""
        return str(value)

    def schema(self) -> dict[str, Any]:
        """The JSON schema of a value in a YAML file."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class Number(Kind):
    """A number from `low` to `high`, which is open when None."""

    metavar: str = "X"
    low: float
    high: float | None = None

    @property
    def wanted(self) -> str:
        return f"a number {self.span}, with a point for decimals"

    def convert(self, value: Any) -> float:
        return float(_no_flag(value))

    def fault(self, value: float) -> str:
        if self.low <= value <= (sys.float_info.max if self.high is None else self.high):
            return ""
        return f"must be {self.span}, not {value}"

    @property
    def span(self) -> str:
        """The smallest and the largest value in words."""
        high = self.high
        return f"at least {self.low}" if high is None else f"between {self.low} and {high}"

    def schema(self) -> dict[str, Any]:
        high = {} if self.high is None else {"maximum": self.high}
        return {"type": "number", "minimum": self.low, **high}


@dataclass(frozen=True, kw_only=True)
class Whole(Number):
    """A whole number; text such as ``1e6`` is one too.

    Examples
    --------
    >>> Whole(low=1).convert("1e6")
    1000000
    """

    metavar: str = "N"

    @property
    def wanted(self) -> str:
        return f"a whole number {self.span}"

    def convert(self, value: Any) -> int:
        if isinstance(_no_flag(value), int):
            return int(value)
        number = float(value)
        if number != int(number):
            raise ValueError
        return int(number)

    def schema(self) -> dict[str, Any]:
        return {**super().schema(), "type": "integer"}


@dataclass(frozen=True, kw_only=True)
class Size(Number):
    """A number of bytes, which may be written like ``2GiB``."""

    metavar: str = "SIZE"
    wanted = "a size like 2GiB or 500MB"

    def convert(self, value: Any) -> int:
        if not isinstance(_no_flag(value), str | int | float):
            raise TypeError
        return parse_size(value)

    def text(self, value: int) -> str:
        return f"{value / 2**30:g}GiB"

    def schema(self) -> dict[str, Any]:
        pattern = r"^\s*[0-9.]+([eE][0-9]+)?\s*[kKMGT]?i?B?\s*$"
        return {**super().schema(), "type": ["integer", "string"], "pattern": pattern}


@dataclass(frozen=True)
class Text(Kind):
    """Any text."""

    wanted = "text"

    def convert(self, value: Any) -> str:
        if not isinstance(value, str | os.PathLike):
            raise TypeError
        return _named(str(value))

    def schema(self) -> dict[str, Any]:
        return {"type": "string"}


@dataclass(frozen=True)
class Place(Text):
    """A path of this machine, where ``~`` is the home folder, or a URL."""

    def convert(self, value: Any) -> str:
        return expanded(super().convert(value))


@dataclass(frozen=True)
class Choice(Text):
    """One of a few words."""

    words: tuple[str, ...] = ()

    def convert(self, value: Any) -> str:
        if not isinstance(value, str):
            raise TypeError
        return value

    def fault(self, value: str) -> str:
        if value in self.words:
            return ""
        return f"is one of {', '.join(self.words)}, not {value!r}"

    def schema(self) -> dict[str, Any]:
        return {"enum": list(self.words)}


def choice(*words: str) -> Choice:
    """A `Choice` among `words`."""
    return Choice("|".join(words), words)


@dataclass(frozen=True)
class Flag(Kind):
    """On or off."""

    wanted = "true or false"

    def convert(self, value: Any) -> bool:
        if not isinstance(value, bool):
            raise TypeError
        return value

    def text(self, value: bool) -> str:
        return "on" if value else "off"

    def schema(self) -> dict[str, Any]:
        return {"type": "boolean"}


@dataclass(frozen=True)
class Names(Kind):
    """Column names: a list, or text with commas."""

    metavar: str = "NAMES"
    wanted = "a list of names, or text with commas between them"

    def convert(self, value: Any) -> tuple[str, ...]:
        names = tuple(map(str, _parts(value)))
        if isinstance(value, str) and not names:
            raise InputError(f"{value!r} names no column; {_UNSET}.")
        for name in names:
            name.encode()  # what is no text in any encoding is the name of no column
        return names

    def text(self, value: tuple[str, ...]) -> str:
        return ",".join(value)

    def schema(self) -> dict[str, Any]:
        text = {"type": "string", "pattern": r"[^,\s]"}
        return {"anyOf": [text, {"type": "array", "items": {"type": "string"}}]}


@dataclass(frozen=True)
class Weights(Text):
    """A weight for each of some names, as text; a mapping is one too.

    Examples
    --------
    >>> Weights().convert({"b": 1, "a": 0.5})
    'a=0.5,b=1'
    """

    metavar: str = "NAME=X,..."
    wanted = "text like hsic=0.5,rdc=0.5"

    def convert(self, value: Any) -> str:
        weights = value if isinstance(value, Mapping) else parse_weights(value)
        return ",".join(
            f"{name}={float(_no_flag(weights[name]))!r}".removesuffix(".0")
            for name in sorted(weights)
        )

    def fault(self, value: str) -> str:
        for name, weight in parse_weights(value).items():
            if not 0 <= weight <= sys.float_info.max:
                return f"must be at least 0, not {weight:g} as for {name}"
        if not any(parse_weights(value).values()):
            return "must give at least one measure more than 0"
        return ""

    def schema(self) -> dict[str, Any]:
        number = {"type": "number", "minimum": 0}
        return {"anyOf": [{"type": "string"}, {"type": "object", "additionalProperties": number}]}


def parse_weights(text: Any) -> dict[str, float]:
    """The weights in a text, by name.

    Examples
    --------
    >>> parse_weights("hsic=0.5, rdc=1")
    {'hsic': 0.5, 'rdc': 1.0}
    """
    if not isinstance(text, str):
        raise TypeError
    weights: dict[str, float] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, _, number = (piece.strip() for piece in part.partition("="))
        if name in weights:
            raise InputError(f"{name} has two weights.")
        weights[name] = float(number)
    return weights


@dataclass(frozen=True)
class Passes(Kind):
    """Numbers of passes, among them always the first: a list, or text with commas."""

    metavar: str = ",".join(map(str, usual_passes()))

    @property
    def wanted(self) -> str:
        return f"a list of numbers like {self.metavar}"

    def convert(self, value: Any) -> tuple[int, ...]:
        return tuple(map(int, _parts(value)))

    def fault(self, value: tuple[int, ...]) -> str:
        if FIRST in value and set(value) <= set(usual_passes()):
            return ""
        return f"takes a list out of {self.text(usual_passes())} that has {FIRST} in it"

    def text(self, value: tuple[int, ...]) -> str:
        return ",".join(map(str, value))

    def schema(self) -> dict[str, Any]:
        return {"type": "array", "items": {"enum": [*usual_passes()]}, "contains": {"const": FIRST}}


@dataclass(frozen=True)
class Globs(Names):
    """Paths and globs: a list, or one; a comma may be part of a path."""

    metavar: str = "GLOB"
    wanted = "a path or a list of them"

    def convert(self, value: Any) -> tuple[str, ...]:
        parts = [value] if isinstance(value, str) else value
        if not isinstance(parts, list | tuple) or not all(isinstance(part, str) for part in parts):
            raise TypeError
        return tuple(parts)


@dataclass(frozen=True)
class Settings(Kind):
    """Keys and values for another library."""

    metavar: str = "KEY=VALUE"
    wanted = "a mapping of keys to values"

    def convert(self, value: Any) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise TypeError
        return value

    def schema(self) -> dict[str, Any]:
        return {"type": "object"}


def expanded(path: str | os.PathLike[str]) -> str:
    """A path with the home folder for ``~``, whoever wrote it; a URL as it is.

    A shell expands ``~`` at the start of a word alone, so neither in ``--output-dir=~/out`` nor in
    a YAML file.

    Raises
    ------
    InputError
        When it is empty, which would be the current folder.

    Examples
    --------
    >>> expanded("~/out").startswith("~"), expanded("s3://bucket/~"), expanded("a~b")
    (False, 's3://bucket/~', 'a~b')
    """
    return os.path.expanduser(_named(os.fspath(path)))


def parse_size(text: str | int | float) -> int:
    """Bytes meant by a size such as ``"2GiB"``, ``"500 MB"`` or a plain number.

    Examples
    --------
    >>> parse_size("2GiB"), parse_size("1.5 kB"), parse_size(42)
    (2147483648, 1500, 42)
    """
    if isinstance(text, int | float):
        return int(text)
    match = re.fullmatch(r"\s*([0-9.]+(?:e[0-9]+)?)\s*([kmgt]?i?b?)\s*", text.lower())
    try:
        return int(float(match[1]) * _UNITS[match[2]])  # type: ignore[index]
    except (TypeError, KeyError, ValueError, OverflowError):
        raise InputError(f"{text!r} is not a size; write it like 2GiB or 500MB.") from None


def _named(text: str) -> str:
    """`text`, unless it is empty: a variable of the shell that is not set would go unnoticed."""
    if not text:
        raise InputError(f"the name of a file, folder or address is empty; {_UNSET}.")
    return text


def _no_flag(value: Any) -> Any:
    """`value`, unless it is a yes or no, which Python would take for 1 or 0."""
    if isinstance(value, bool):
        raise TypeError
    return value


def _parts(value: Any) -> tuple[Any, ...]:
    """The entries of a list, of text with commas, or a single entry."""
    if isinstance(value, str):
        value = [part.strip() for part in value.split(",") if part.strip()]
    if isinstance(value, Mapping):
        raise TypeError
    parts = tuple(value) if isinstance(value, Iterable) else (value,)
    # YAML reads an unquoted NO as false and an empty entry as null: no column is called that.
    if any(isinstance(part, bool) or not isinstance(part, str | Real) for part in parts):
        raise TypeError
    return parts
