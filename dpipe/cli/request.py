"""From words to options: command line, YAML file and Dask's configuration made into one request.

Covers: merging the sources of options, storage options.
Does not cover: the checks of values (see `dpipe.options`), files of names (see
`dpipe.settings`).
"""

from __future__ import annotations

import functools
import json
import logging
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import click

from dpipe.cli.failures import SECRETS
from dpipe.errors import InputError
from dpipe.options import DECLARED, EXTRA_KEYS, Options, check_apart, options_from
from dpipe.options.kinds import Names, Whole
from dpipe.settings import IN_DASK, checked, read_text, split


@dataclass(frozen=True)
class Request:
    """What a command was asked for, from all sources of options."""

    options: Options
    sources: tuple[str, ...]
    storage_options: Mapping[str, Any] | None
    output_dir: str | None
    verbosity: int


def settle(
    given: Mapping[str, Any], sources: Sequence[str] = (), config: str | None = None
) -> Request:
    """Merge Dask's configuration, the YAML file and the command line; the last one wins."""
    line = checked(_from_line(given), "")
    check_apart({name: value for name, value in line.items() if name not in EXTRA_KEYS})
    file = checked(_read_yaml(config), f"{config}: ") if config is not None else {}
    from dpipe import session  # after the cheap checks: it imports Dask

    base = checked(session.configured_options(), IN_DASK)
    merged = {**base, **file, **line}
    extra = {name: merged.pop(name, None) for name in EXTRA_KEYS}
    _remember_secrets(extra["storage_options"])
    if extra["prefer_gpu"]:
        if merged.get("device", "auto") != "auto":
            raise InputError("give --prefer-gpu or --device, not both.")
        merged["device"] = "auto"
    if extra["verbose"] and extra["quiet"]:
        raise InputError("give --verbose or --quiet, not both.")
    named = (*sources, *line.get("parquet_glob", ()))
    if not extra["verbose"]:
        silence_libraries()
    return Request(
        options=options_from(merged),
        sources=named or tuple(extra["parquet_glob"] or ()),
        storage_options=extra["storage_options"],
        output_dir=extra["output_dir"],
        verbosity=1 if extra["verbose"] else -1 if extra["quiet"] else 0,
    )


def _from_line(given: Mapping[str, Any]) -> dict[str, Any]:
    """Values of the command line: lists joined, everything else as it is."""
    values = dict(given)
    for name, value in given.items():
        if name == "storage_options":
            values[name] = storage_options_from(value)
        elif name in DECLARED and isinstance(value, tuple):
            names = isinstance(DECLARED[name].kind, Names)
            parts = (p for text in value for p in split(name, text))
            values[name] = [*parts] if names else ",".join(value)
    return values


def _read_yaml(path: str) -> dict[Any, Any]:
    import yaml

    try:
        values = yaml.safe_load(read_text(path))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f" in line {mark.line + 1}" if mark is not None else ""
        problem = getattr(error, "problem", None) or "it cannot be parsed"
        raise InputError(f"{path} is not valid YAML{place}: {problem}.") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise InputError(f"{path} must hold options as `name: value`, one a line.")
    return values


_LITERALS = {"true": True, "false": False, "null": None, "none": None}


def storage_options_from(texts: Sequence[str]) -> dict[str, Any]:
    """Storage options from JSON objects and key=value pairs; values of pairs stay text."""
    options: dict[str, Any] = {}
    for text in texts:
        if text.lstrip().startswith("{"):
            try:
                options |= json.loads(text)
            except ValueError as error:
                # Not the text itself: it may hold a secret.
                raise InputError(f"--storage-options is not valid JSON ({error}).") from None
            continue
        key, equals, value = text.partition("=")
        if not (key and equals):
            raise InputError("--storage-options takes key=value or a JSON object.")
        options[key] = _LITERALS.get(value.lower(), value)
    _remember_secrets(options)
    return options


def _remember_secrets(options: Mapping[str, Any] | None) -> None:
    """Have the storage options of this command hidden in the texts of its errors."""
    ctx = click.get_current_context(silent=True)
    if ctx is not None and options:
        ctx.meta[SECRETS] = options


def whole_number(text: str | None, option: str) -> int | None:
    """A count such as 120000, 120e6 or 120_000."""
    if text is None:
        return None
    count = Whole(low=1)
    try:
        value = count.convert(text)
    except (ValueError, OverflowError):
        raise InputError(
            f"{option} takes a whole number such as 5000 or 120e6, not {text!r}."
        ) from None
    if fault := count.fault(value):
        raise InputError(f"{option} {fault}.")
    return value


def need_sources(sources: tuple[str, ...]) -> tuple[str, ...]:
    """The sources of a command that cannot do without.

    Raises
    ------
    InputError
        When there are none.
    """
    if not sources:
        raise InputError("no input was given; name files, folders, globs or URLs.")
    return sources


def silence_libraries() -> None:
    """Keep libraries from writing between the lines of the progress, until the command ends."""
    # distributed gives its client's logger a level of its own.
    names = ("distributed", "distributed.client", "tornado", "asyncio", "bokeh")
    loggers = [logging.getLogger(name) for name in names]
    ctx = click.get_current_context()
    for logger in loggers:
        ctx.call_on_close(functools.partial(logger.setLevel, logger.level))
        logger.setLevel(logging.CRITICAL)
    if not sys.warnoptions:
        ctx.with_resource(warnings.catch_warnings())
        warnings.simplefilter("ignore")
