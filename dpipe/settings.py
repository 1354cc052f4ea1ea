"""Options that stand elsewhere: in Dask's configuration, and lists of columns in files.

Covers: what Dask's configuration under ``dpipe:`` adds to the options of a Python caller; ``@file``
in a list of columns; errors that say where an option stands.
Does not cover: the command line and its YAML file (`dpipe.cli.request`), the checks of values
(`dpipe.options`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dpipe.errors import InputError
from dpipe.options import DECLARED, EXTRA_KEYS, check_apart, flag, options_from
from dpipe.options.kinds import Names, expanded

IN_DASK = "Dask's configuration, under dpipe: "
"""How an error begins whose cause stands there."""


def with_configured(given: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a Python caller, and below them those of Dask's configuration.

    What only the command line knows, such as ``output-dir``, is passed over.

    Parameters
    ----------
    given
        Options as the caller wrote them; each of them wins.

    Raises
    ------
    InputError
        For what stands in the configuration and is no option.

    Examples
    --------
    >>> import dask
    >>> with dask.config.set({"dpipe.vif-threshold": 5, "dpipe.seed": 1}):
    ...     with_configured({"seed": 2})
    {'vif_threshold': 5, 'seed': 2}
    """
    from dpipe.session import configured_options  # it imports Dask

    passed_over = EXTRA_KEYS.keys() | map(_python_name, given)
    below = {k: v for k, v in configured_options().items() if _python_name(k) not in passed_over}
    return {**checked(below, IN_DASK), **given}


def checked(values: Mapping[Any, Any], where: str) -> dict[str, Any]:
    """`values` under their Python names, each one checked by itself so that errors say `where`."""
    found: dict[str, Any] = {}
    for raw, value in values.items():
        name = _python_name(raw)
        try:
            if name in found:
                raise InputError(f"{flag(name)} is given twice, as {raw!r} too.")
            if name in EXTRA_KEYS:
                found[name] = _extra_value(name, value)
            else:
                found[name] = with_names_of_files(name, value)
                check_apart({str(raw): found[name]})
        except InputError as error:
            raise InputError(f"{where}{error}") from None
    return found


def _python_name(raw: Any) -> str:
    return str(raw).replace("-", "_")


def _extra_value(name: str, value: Any) -> Any:
    """The value of something that is no field of `Options`, in its type."""
    try:
        return EXTRA_KEYS[name].kind.convert(value)
    except TypeError:  # the value may be a secret, so it is not shown
        raise InputError(f"{flag(name)} cannot hold what stands there.") from None
    except InputError as error:
        raise InputError(f"{flag(name)}: {error}") from None


def split(name: str, text: str) -> list[str]:
    """Parts of a comma list; a part that begins with @ names a file and is kept whole.

    Raises
    ------
    InputError
        When there is none, most likely because a variable of the shell is not set.

    Examples
    --------
    >>> split("keep", "a, b"), split("keep", "@names, and more.txt")
    (['a', 'b'], ['@names, and more.txt'])
    """
    if text.startswith("@"):
        return [text]
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts:
        options_from({name: text})  # says so
    return parts


def with_names_of_files(name: str, value: Any) -> Any:
    """A list of columns in which each ``@file`` is replaced by the names the file holds.

    Parameters
    ----------
    name
        The option; the value of one that is no list of columns is handed back.
    value
        Text with commas, or a list.

    Raises
    ------
    InputError
        When a file cannot be read.

    Examples
    --------
    >>> with_names_of_files("keep", "a,b"), with_names_of_files("seed", 3)
    (('a', 'b'), 3)
    """
    if name not in DECLARED or not isinstance(DECLARED[name].kind, Names):
        return value
    parts = split(name, value) if isinstance(value, str) else value
    if not isinstance(parts, list | tuple):
        return value
    expanded: list[Any] = []
    for part in parts:
        if isinstance(part, str) and part.startswith("@"):
            expanded.extend(_names_in(part[1:]))
        else:
            expanded.append(part)
    return tuple(expanded)


def _names_in(path: str) -> list[str]:
    """Column names of a file, one a line, written as in ``selected.txt``."""
    from dpipe.runfolder import unescape_name  # it imports Arrow

    try:
        text = read_text(path)
    except InputError as error:
        hint = "@ stands for a file of names, where a name that begins with @ can be given too"
        raise InputError(f"{str(error).rstrip('.')}; {hint}.") from None
    return [unescape_name(line) for line in text.split("\n") if line]


def read_text(path: str) -> str:
    """The text of a file in UTF-8.

    Raises
    ------
    InputError
        When it cannot be read.

    Examples
    --------
    >>> read_text("none/such.txt")
    Traceback (most recent call last):
    dpipe.errors.InputError: none/such.txt cannot be read (No such file or directory).
    """
    try:
        with open(expanded(path), encoding="utf-8-sig") as file:
            return file.read()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}).") from None
    except UnicodeDecodeError:
        raise InputError(f"{path} is not a text file in UTF-8.") from None
