"""Which files the sources of a run mean: paths, folders, globs and fsspec URLs.

Covers: searching folders, matching globs, and saying what was seen there and is not read.
Does not cover: opening a file (see `dpipe.table.files`), what tells a lake table
(`dpipe.table.lake`).

A path that exists is never taken for a glob, so names with ``*``, ``[``, ``#`` or spaces work.
Names that begin with ``.`` or ``_`` belong to the programs that wrote them (snapshots, half-written
output) and are left out, as Spark, Hive and Arrow do; ``_key=value`` is a partition nevertheless.
The rules are the same for a folder and a glob, here and at a URL. Files of several formats in one
are refused: they may hold the same table twice.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from dpipe.common.credentials import check_url, is_url, safe_reason
from dpipe.common.words import counted, listed, nearest
from dpipe.errors import InputError
from dpipe.model.inventory import (
    CHECKPOINT,
    DECISIONS,
    DECISIONS_CSV,
    MEMORY_SAMPLES,
    PAIRS,
    TABLE,
    is_run,
)
from dpipe.options.kinds import expanded
from dpipe.table.files import StorageOptions, filesystem
from dpipe.table.formats import ENDINGS, codec_of, ending_of, format_of
from dpipe.table.lake import refuse_lakes

_RESULTS = (DECISIONS, DECISIONS_CSV, PAIRS, MEMORY_SAMPLES)
_GLOB = re.compile(r"[*?\[]")


@dataclass(frozen=True)
class Found:
    """The files that the sources mean, sorted by path, and what a user should know about them."""

    paths: tuple[str, ...]
    notes: tuple[str, ...]


@dataclass
class _LeftOut:
    """What was seen and is not read."""

    hidden: set[str] = field(default_factory=set)
    results: set[str] = field(default_factory=set)
    links: set[str] = field(default_factory=set)

    def notes(self) -> Iterator[str]:
        if self.hidden:
            yield (
                "files whose name or folder begins with . or _ are left out: "
                f"{listed(sorted(self.hidden))}."
            )
        if self.results:
            yield f"results of runs of dpipe are left out: {listed(sorted(self.results))}."
        if self.links:
            yield f"links to files that are read anyway are left out: {listed(sorted(self.links))}."


def as_sources(sources: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> list[str]:
    """One source or several as a list of text."""
    if isinstance(sources, str | os.PathLike):
        sources = [sources]
    return [os.fspath(source) for source in sources]


def find_files(
    sources: Iterable[str | os.PathLike[str]], storage_options: StorageOptions = None
) -> Found:
    """Files that `sources` mean: sorted by path, each once.

    Raises
    ------
    InputError
        When a source does not exist, matches nothing, is a folder without files of a known format
        or with files of several, or lies in a lake table.
    """
    paths: dict[str, str] = {}
    left_out = _LeftOut()
    for source in as_sources(sources):
        for path in _expand(source, storage_options, left_out):
            identity = path if is_url(path) else os.path.realpath(path)
            known = paths.setdefault(identity, path)
            if known != path:
                left_out.links.add(max(known, path))
                paths[identity] = min(known, path)
    if not paths:
        raise InputError("no input was given; name files, folders or globs.")
    files = sorted(paths.values())
    return Found(tuple(files), (*left_out.notes(), *_partition_notes(files)))


def _partition_notes(paths: Sequence[str]) -> Iterator[str]:
    keyed = {part for path in paths for part in path.split("/")[:-1] if "=" in part}
    if keyed:
        yield (
            f"folder names that look like values are not read as columns: {listed(sorted(keyed))}."
        )


def _expand(source: str, storage_options: StorageOptions, left_out: _LeftOut) -> list[str]:
    """The files one source means; what exists is taken as it is, never as a pattern."""
    if source.startswith("file://"):
        source = _local_of_url(source)
    elif is_url(source):
        return _expand_url(source, storage_options, left_out)
    if not os.path.lexists(source):
        source = expanded(source)
    return _files_of(os.path.abspath(source), source, _LOCAL, left_out)


def _expand_url(url: str, storage_options: StorageOptions, left_out: _LeftOut) -> list[str]:
    if "::" in url:
        raise InputError(f"{url} chains file systems, which is not supported; name one URL.")
    check_url(url)
    try:
        fs, path = filesystem(url, storage_options)
        return [fs.unstrip_protocol(each) for each in _files_of(path, url, _Remote(fs), left_out)]
    except InputError:
        raise
    except Exception as error:  # whatever the storage library of this URL raises
        reason = safe_reason(error, storage_options)
        raise InputError(f"{url} cannot be reached ({reason}).") from error


def _files_of(path: str, source: str, place: _Place, left_out: _LeftOut) -> list[str]:
    """The files that `path` means in one place; `source` is what the user wrote."""
    shown = source if is_url(source) else path
    if place.is_folder(path):
        matches, top = _search(path, place), path
        nothing = f"the folder {shown} holds no file of a known format ({_KNOWN})"
    elif place.exists(path):
        refuse_lakes([path], place.entries, place.address)
        return [path]
    elif _GLOB.search(path):
        matches, top = _match(path, place), os.path.dirname(_GLOB.split(path)[0])
        nothing = f"no file matches {shown}"
    else:
        near = "" if is_url(shown) else _neighbour(path)
        raise InputError(f"{shown} does not exist{near}.")
    refuse_lakes(matches, place.entries, place.address)
    asked = any(map(_is_private, path[len(top) :].split("/")))
    files, hidden = (matches, []) if asked else _without_private(matches, top)
    if not files:
        but = f" but files whose name or folder begins with . or _ ({listed(hidden)})"
        raise InputError(f"{nothing}{but if hidden else ''}.")
    left_out.hidden.update(hidden)
    results = {each for each in files if place is _LOCAL and _is_result(each, top)}
    left_out.results |= results
    if len(results) == len(files):
        raise InputError(f"{nothing} but results of runs of dpipe.")
    files = [each for each in files if each not in results]
    _refuse_several_formats(shown, files)
    return files


def _refuse_several_formats(shown: str, files: Iterable[str]) -> None:
    by_format: dict[str, list[str]] = {}
    for file in files:
        kind = f"{format_of(file)}"
        packed = (ending_of(file) or "").rpartition(".")[2]
        kind += f" ({packed})" if codec_of(file) else ""
        by_format.setdefault(kind, []).append(file)
    if len(by_format) > 1:
        told = ", ".join(
            f"{counted(len(some), f'{kind} file')} ({listed(some, 1)})"
            for kind, some in sorted(by_format.items())
        )
        raise InputError(
            f"{shown} holds files of several formats: {told}; name those to read, as by a glob."
        )


_KNOWN = "Parquet, CSV, TSV or Feather, by a name that ends in .parquet, .csv, .csv.gz, ..."


def _search(top: str, place: _Place) -> list[str]:
    """The files of known formats below a folder."""
    return [
        f"{folder.rstrip('/')}/{name}"
        for folder, _, names in place.walk(top)
        for name in names
        if name.lower().endswith(ENDINGS)
    ]


def _match(pattern: str, place: _Place) -> list[str]:
    """Matches of a glob; a folder among them stands for the files in it."""
    pattern = _with_literal_start(pattern, place.exists)
    paths: dict[str, None] = {}
    for match in (each.rstrip("/") for each in place.glob(pattern)):
        paths |= dict.fromkeys(_search(match, place) if place.is_folder(match) else [match])
    return list(paths)


def _without_private(paths: Iterable[str], top: str) -> tuple[list[str], list[str]]:
    """The paths without private ones below `top`; and one file of each private folder."""
    files: list[str] = []
    hidden: dict[str, str] = {}
    for path in sorted(paths):
        private = _private_part(path[len(top) :])
        if private is None:
            files.append(path)
        elif path.lower().endswith(ENDINGS):
            hidden.setdefault(private, path)
    return files, list(hidden.values())


def _is_private(name: str) -> bool:
    """Whether a name is one that programs keep for themselves; a partition is none."""
    return name.startswith(".") or (name.startswith("_") and "=" not in name)


def _private_part(relative: str) -> str | None:
    """A relative path as far as its first private part; None where it has none."""
    parts = relative.split("/")
    private = [place for place, part in enumerate(parts) if _is_private(part)]
    return "/".join(parts[: private[0] + 1]) if private else None


def _with_literal_start(pattern: str, exists: Callable[[str], bool]) -> str:
    """The pattern with ``*?[`` escaped in the folders that exist by that very name."""
    parts = pattern.split("/")
    literal = 1
    while literal < len(parts) and exists("/".join(parts[: literal + 1])):
        literal += 1
    return "/".join([*map(glob.escape, parts[:literal]), *parts[literal:]])


def _is_result(path: str, top: str) -> bool:
    """Whether a file was left by a run whose folder is `top` or lies below it."""
    folder, name = os.path.split(path)
    folders = [folder] if name in _RESULTS else []
    while len(folder) > len(top):
        folder, name = os.path.split(folder)
        folders += [folder] if name in (TABLE, CHECKPOINT) else []
    return any(map(is_run, folders))


def _local_of_url(url: str) -> str:
    """The path of a file:// URL; taken literally first, as fsspec does, then percent-decoded."""
    from urllib.parse import unquote

    path = "/" + url.removeprefix("file://").lstrip("/")
    return path if os.path.lexists(path) or "%" not in path else unquote(path)


def _neighbour(path: str) -> str:
    folder, name = os.path.split(path)
    try:
        return nearest(name, os.listdir(folder))
    except OSError:
        return ""


# Places


class _Local:
    """The file system of this machine."""

    def exists(self, path: str) -> bool:
        return os.path.lexists(path)

    def is_folder(self, path: str) -> bool:
        return os.path.isdir(path)

    def glob(self, pattern: str) -> list[str]:
        return glob.glob(pattern, recursive=True)

    def entries(self, folder: str) -> Collection[str]:
        try:
            return set(os.listdir(folder))
        except OSError:  # a folder above the input that only its owner may list
            return ()

    def address(self, path: str) -> str:
        return path

    def walk(self, top: str) -> Iterator[tuple[str, Any, Any]]:
        """`os.walk` that follows links, each folder once, and does not hide what it cannot list.

        A private folder is entered as far as its first file of a known format, so that what is left
        out can be told; one that cannot be listed, or a snapshot of the whole disk, costs no more.
        """

        def fail(error: OSError) -> None:
            if _private_part(str(error.filename)[len(top) :]) is None:
                raise InputError(
                    f"the folder {error.filename} cannot be read ({error.strerror})."
                ) from error

        seen: set[str] = set()
        for folder, inner, names in os.walk(top, followlinks=True, onerror=fail):
            is_known = _private_part(folder[len(top) :]) is not None and any(
                name.lower().endswith(ENDINGS) for name in names
            )
            inner[:] = [
                each
                for each in sorted(inner)
                if not is_known and _first_visit(os.path.join(folder, each), seen)
            ]
            yield folder, inner, names


_LOCAL = _Local()


def _first_visit(folder: str, seen: set[str]) -> bool:
    real = os.path.realpath(folder)
    first = real not in seen
    seen.add(real)
    return first


class _Remote:
    """An fsspec file system."""

    def __init__(self, fs: Any) -> None:
        self._fs = fs

    def exists(self, path: str) -> bool:
        there = bool(self._fs.exists(path))
        if not there and self._is_web:
            self._refuse_unreached(path)
        return there

    def _refuse_unreached(self, path: str) -> None:
        """Raise what a web server was not reached for: to fsspec no file exists there."""
        try:
            self._fs.info(path)
        except FileNotFoundError as error:
            if isinstance(error.__cause__, OSError):  # of the network: no server answered
                raise error.__cause__ from error

    @property
    def _is_web(self) -> bool:
        return "http" in _as_tuple(self._fs.protocol)

    def is_folder(self, path: str) -> bool:
        # A web server has no folders: fsspec reads the whole file, and takes text for one where
        # there is a link in it.
        if self._is_web and ending_of(path):
            return False
        return bool(self._fs.isdir(path))

    def glob(self, pattern: str) -> list[str]:
        return list(self._fs.glob(pattern))

    def entries(self, folder: str) -> Collection[str]:
        try:
            return {str(each).rstrip("/").rpartition("/")[2] for each in self._fs.ls(folder, False)}
        except Exception:
            return ()

    def address(self, path: str) -> str:
        return str(self._fs.unstrip_protocol(path))

    def walk(self, top: str) -> Iterator[tuple[str, Any, Any]]:
        yield from self._fs.walk(top, on_error="raise")


def _as_tuple(protocol: str | tuple[str, ...]) -> tuple[str, ...]:
    return (protocol,) if isinstance(protocol, str) else protocol


_Place = _Local | _Remote
