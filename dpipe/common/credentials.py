"""Credentials: carried to the workers, and kept out of everything that is written or shown.

Covers: storage options that do not print themselves, texts without their secrets, what is a URL,
and which would write a password or a signature into results.
Does not cover: the file systems that the options are for (see `dpipe.table`, `dpipe.rankstore`).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

from dpipe.common.words import first_line
from dpipe.errors import InputError

HIDDEN = "<hidden>"
"""What stands in a text where a secret stood."""

_LEAST = 4  # a shorter value would be found within words
_SECRET = re.compile(
    r"key|secret|token|pass|pwd|sas|sig|cred|auth|connection|user|cookie|account", re.IGNORECASE
)
_WITH_PASSWORD = re.compile(r"://[^/@]*:[^/@]*@")
_SIGNED = re.compile(
    r"[?&][^=&]*(sig|secret|token|pass|pwd|cred|auth|key)[^=&]*=[^&]", re.IGNORECASE
)


class Secrets(Mapping[str, Any]):
    """Storage options that do not print themselves.

    They are arguments of tasks, and what is printed of those, in the logs of workers and in
    tracebacks that show variables, is not up to dpipe.

    Examples
    --------
    >>> options = Secrets({"key": "AKIA..."})
    >>> options["key"], options
    ('AKIA...', Secrets(<hidden>))
    """

    def __init__(self, values: Mapping[str, Any] | None = None) -> None:
        self._values = dict(values or {})

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"Secrets({HIDDEN})"


def without_secrets(text: str, storage_options: Mapping[str, Any] | None) -> str:
    """`text` without the values of `storage_options` whose names say that they are secret.

    Examples
    --------
    >>> without_secrets("no key hunter2 in eu-1", {"key": "hunter2", "region": "eu-1"})
    'no key <hidden> in eu-1'
    """
    for value in sorted(_values(storage_options or {}, secret=False), key=len, reverse=True):
        text = text.replace(value, HIDDEN)
    return text


def safe_reason(error: BaseException, storage_options: Mapping[str, Any] | None) -> str:
    """What an error says, as the end of a sentence, without the secrets in it.

    Examples
    --------
    >>> safe_reason(OSError("hunter2 is no key."), {"key": "hunter2"})
    '<hidden> is no key'
    """
    return without_secrets(first_line(error), storage_options)


def _values(value: Any, *, secret: bool) -> Iterator[str]:
    """Every secret text in nested options."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _values(inner, secret=secret or bool(_SECRET.search(str(name))))
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _values(inner, secret=secret)
    elif secret and isinstance(value, str) and len(value) >= _LEAST:
        yield value


def is_url(path: str | os.PathLike[str]) -> bool:
    """Whether a path is a URL, which goes through fsspec.

    Examples
    --------
    >>> is_url("s3://bucket/out"), is_url("out")
    (True, False)
    """
    return "://" in os.fspath(path)


def check_url(url: str) -> None:
    """Refuse a URL that carries a password, a token or a signature.

    Raises
    ------
    InputError
        Without repeating the URL.

    Examples
    --------
    >>> check_url("s3://bucket/data/*.parquet")
    """
    if not is_url(url):
        return
    for pattern, what in ((_WITH_PASSWORD, "password"), (_SIGNED, "signature or token")):
        if pattern.search(url):
            raise InputError(
                f"a URL must not hold a {what}, because paths are written into results; "
                "give credentials by the environment or storage_options."
            )
