"""Finding Parquet files and opening them: paths, folders, globs and fsspec URLs.

Covers: which files a source means, opening one file, reading its footer once.
Does not cover: what the schemas mean together (see `dpipe.table.schema`).

A path that exists is never taken for a glob, so names with ``*``, ``[``, ``#`` or spaces work. The
footer is read and hashed as bytes and parsed from them: whoever reads data from a file later
compares the hash, so a file that changed in between is found before its values are used.
"""

from __future__ import annotations

import glob
import hashlib
import os
import re
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any

import pyarrow as pa
from pyarrow.parquet.core import ParquetReader

from dpipe.credentials import check_url, without_secrets
from dpipe.errors import InputError
from dpipe.table.words import listed, nearest

SUFFIXES = (".parquet", ".parq", ".pq")
RUN_MARK = "checkpoint/manifest.json"
"""The file that tells a run folder (see `dpipe.runfolder`)."""
RUN_RESULTS = ("decisions.parquet", "table")
"""What is Parquet in a run folder: a file and a folder."""
STORAGE_ERRORS = (pa.ArrowException, OSError)
"""Everything pyarrow and file systems raise about a bad file (ArrowInvalid, OSError, ...)."""

_TAIL = 64 * 1024
_STREAM = 256 * 1024
_GLOB = re.compile(r"[*?\[]")
_PAUSES = (0.2, 1.0)
"""Seconds between the tries of a remote read."""

StorageOptions = Mapping[str, Any] | None


class BadFile(InputError):
    """One file that cannot be used; ``path`` and ``reason`` (what follows the path)."""

    def __init__(self, path: str, reason: str, advice: str = "") -> None:
        shown = path if path.isprintable() else repr(path)
        super().__init__(f"{shown} {reason}{advice}.")
        self.path = path
        self.reason = reason


@dataclass(frozen=True)
class Footer:
    """What the footer of one file says, and what identifies the file.

    pyarrow's own record of a footer is not kept: it takes some kB a column.
    """

    schema: pa.Schema
    n_leaves: int
    n_rows: int
    row_groups: tuple[int, ...]
    size: int
    mtime: int
    digest: str


# Which files


@dataclass(frozen=True)
class Found:
    """The files that the sources mean, sorted by path, and what a user should know about them."""

    paths: tuple[str, ...]
    notes: tuple[str, ...]


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
        When a source does not exist, matches nothing, or is a folder without Parquet files.
    """
    paths: dict[str, str] = {}
    hidden: list[str] = []
    linked: list[str] = []
    results: list[str] = []
    for source in [sources] if isinstance(sources, str | os.PathLike) else sources:
        for path in _expand(os.fspath(source), storage_options, hidden, results):
            identity = path if is_url(path) else os.path.realpath(path)
            known = paths.setdefault(identity, path)
            if known != path:
                linked.append(max(known, path))
                paths[identity] = min(known, path)
    if not paths:
        raise InputError("no input was given; name Parquet files, folders or globs.")
    return Found(tuple(sorted(paths.values())), tuple(_path_notes(paths, hidden, linked, results)))


def _path_notes(
    paths: Mapping[str, str],
    hidden: Sequence[str],
    linked: Sequence[str],
    results: Sequence[str],
) -> Iterator[str]:
    if hidden:
        yield (
            "files whose name or folder begins with . or _ are left out: "
            f"{listed(sorted(set(hidden)))}."
        )
    if results:
        yield f"results of runs of dpipe are left out: {listed(sorted(set(results)))}."
    if linked:
        yield f"links to files that are read anyway are left out: {listed(linked)}."
    keyed = {part for path in paths.values() for part in path.split("/")[:-1] if "=" in part}
    if keyed:
        yield (
            f"folder names that look like values are not read as columns: {listed(sorted(keyed))}."
        )


def is_url(path: str) -> bool:
    """Whether a path goes through fsspec."""
    return "://" in path


def _expand(
    source: str, storage_options: StorageOptions, hidden: list[str], results: list[str]
) -> list[str]:
    """The files one source means; what exists is taken as it is, never as a pattern."""
    if source.startswith("file://"):
        source = _local_of_url(source)
    elif is_url(source):
        return _expand_url(source, storage_options, hidden)
    if not os.path.lexists(source):
        source = os.path.expanduser(source)
    source = os.path.abspath(source)
    if os.path.isdir(source):
        found = _walk(source, _local_walk, hidden)
        return _require(_without_results(found, source, results), source)
    if os.path.lexists(source):
        return [source]
    if not _GLOB.search(source):
        raise InputError(f"{source} does not exist{_neighbour(source)}.")
    matches = sorted(glob.glob(_with_literal_start(source, os.path.lexists), recursive=True))
    found = _expand_matches(matches, os.path.isdir, _local_walk, hidden)
    top = os.path.dirname(_GLOB.split(source)[0])
    return _require(_without_results(found, top, results), source)


def _without_results(paths: Sequence[str], top: str, results: list[str]) -> list[str]:
    """The paths without what runs left below `top`: often the run folder lies beside its input."""
    inputs: list[str] = []
    for path in paths:
        (results if _is_result(path, top) else inputs).append(path)
    return inputs


def _is_result(path: str, top: str) -> bool:
    """Whether a file was left by a run whose folder is `top` or lies below it."""
    folder, name = os.path.split(path)
    folders = [folder] if name == RUN_RESULTS[0] else []
    while len(folder) > len(top):
        folder, name = os.path.split(folder)
        folders += [folder] if name == RUN_RESULTS[1] else []
    return any(os.path.exists(os.path.join(each, RUN_MARK)) for each in folders)


def _with_literal_start(pattern: str, exists: Callable[[str], bool]) -> str:
    """The pattern with ``*?[`` escaped in the folders that exist by that very name."""
    parts = pattern.split("/")
    literal = 1
    while literal < len(parts) and exists("/".join(parts[: literal + 1])):
        literal += 1
    return "/".join([*map(glob.escape, parts[:literal]), *parts[literal:]])


def _local_walk(top: str) -> Iterator[tuple[str, Any, Any]]:
    """`os.walk` that follows links, each folder once, and does not hide what it cannot list.

    Folders whose name begins with . or _ hold what programs keep for themselves (snapshots,
    half-written output) and are not entered.
    """

    def fail(error: OSError) -> None:
        raise InputError(f"the folder {error.filename} {reason_of(error)}.") from error

    seen: set[str] = set()
    for folder, inner, names in os.walk(top, followlinks=True, onerror=fail):
        inner[:] = [
            each
            for each in inner
            if not each.startswith((".", "_")) and _first_visit(os.path.join(folder, each), seen)
        ]
        yield folder, inner, names


def _first_visit(folder: str, seen: set[str]) -> bool:
    real = os.path.realpath(folder)
    first = real not in seen
    seen.add(real)
    return first


def _expand_matches(
    matches: Sequence[str],
    is_folder: Callable[[str], bool],
    walk: Callable[[str], Iterable[tuple[str, Any, Any]]],
    hidden: list[str],
) -> list[str]:
    """Matches of a glob; a folder among them stands for the Parquet files in it."""
    paths: list[str] = []
    for match in matches:
        paths += _walk(match.rstrip("/"), walk, hidden) if is_folder(match) else [match]
    return paths


def _expand_url(url: str, storage_options: StorageOptions, hidden: list[str]) -> list[str]:
    if "::" in url:
        raise InputError(f"{url} chains file systems, which is not supported; name one URL.")
    check_url(url)
    try:
        fs, path = filesystem(url, storage_options)
        walk = partial(fs.walk, on_error="raise")
        if fs.isdir(path):
            found = _require(_walk(path, walk, hidden), url)
        elif fs.exists(path):
            found = [path]
        elif _GLOB.search(path):
            matches = sorted(fs.glob(_with_literal_start(path, fs.exists)))
            found = _require(_expand_matches(matches, fs.isdir, walk, hidden), url)
        else:
            raise InputError(f"{url} does not exist.")
        return [fs.unstrip_protocol(each) for each in found]
    except InputError:
        raise
    except Exception as error:  # whatever the storage library of this URL raises
        reason = without_secrets(brief(error), storage_options)
        raise InputError(f"{url} cannot be reached ({reason}).") from error


def _local_of_url(url: str) -> str:
    """The path of a file:// URL; taken literally first, as fsspec does, then percent-decoded."""
    from urllib.parse import unquote

    path = "/" + url.removeprefix("file://").lstrip("/")
    return path if os.path.lexists(path) or "%" not in path else unquote(path)


def _walk(
    top: str, walk: Callable[[str], Iterable[tuple[str, Any, Any]]], hidden: list[str]
) -> list[str]:
    paths: list[str] = []
    for folder, _, names in walk(top):
        inner = folder[len(top) :].split("/")
        for name in names:
            if not name.lower().endswith(SUFFIXES):
                continue
            path = f"{folder.rstrip('/')}/{name}"
            private = any(part.startswith((".", "_")) for part in [*inner, name])
            (hidden if private else paths).append(path)
    return paths


def _require(paths: list[str], source: str) -> list[str]:
    if paths:
        return paths
    if _GLOB.search(source) and not os.path.isdir(source):
        raise InputError(f"no file matches {source}.")
    raise InputError(
        f"the folder {source} holds no Parquet file (a name that ends in {', '.join(SUFFIXES)})."
    )


def _neighbour(path: str) -> str:
    folder, name = os.path.split(path)
    try:
        return nearest(name, os.listdir(folder))
    except OSError:
        return ""


# One file


def filesystem(url: str, storage_options: StorageOptions) -> tuple[Any, str]:
    """The fsspec file system of a URL and the path within it."""
    from fsspec.core import url_to_fs

    fs, path = url_to_fs(url, **dict(storage_options or {}))
    return fs, path


@contextmanager
def open_file(path: str, storage_options: StorageOptions = None) -> Iterator[pa.NativeFile]:
    """An open file as pyarrow reads it; local files without memory mapping.

    A mapped file would count as memory of the process and would end it by a signal when someone
    truncates the file meanwhile.
    """
    if not is_url(path):
        with pa.OSFile(os.fsencode(path), "rb") as source:
            yield source
        return
    fs, inner = filesystem(path, storage_options)
    # Column chunks are read whole and in known ranges: a read-ahead cache would only read too much.
    opening = partial(fs.open, inner, "rb", cache_type="none")
    with _patiently(opening) as handle:
        yield pa.PythonFile(_Patient(handle), mode="r")


def _patiently(action: Callable[..., Any], *arguments: Any) -> Any:
    """Do something remote; after a failure wait and try again, three times in all.

    Raises
    ------
    OSError
        After the last failure, whatever the storage library raised.
    """
    pauses = iter(_PAUSES)
    while True:
        try:
            return action(*arguments)
        except (FileNotFoundError, PermissionError, ImportError):
            raise
        except Exception as error:
            pause = next(pauses, None)
            if pause is None:
                raise OSError(brief(error)) from error
            time.sleep(pause)


class _Patient:
    """A remote file whose reads are tried again when they fail, because throttling passes."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle
        self.closed = False

    def read(self, count: int = -1) -> bytes:
        position = self._handle.tell()
        return bytes(_patiently(self._read_at, position, count))

    def _read_at(self, position: int, count: int) -> bytes:
        self._handle.seek(position)
        return bytes(self._handle.read(count))

    def seek(self, offset: int, whence: int = 0) -> int:
        return int(self._handle.seek(offset, whence))

    def tell(self) -> int:
        return int(self._handle.tell())

    def close(self) -> None:
        self.closed = True


def modified(path: str, storage_options: StorageOptions = None) -> tuple[int, int]:
    """Size in bytes and time of change in nanoseconds (0 where the file system tells none).

    Raises
    ------
    BadFile
        When the path is no regular file; a pipe would be waited for without end.
    """
    if not is_url(path):
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise BadFile(path, "is not a file")
        return status.st_size, status.st_mtime_ns
    fs, inner = filesystem(path, storage_options)
    info = _patiently(fs.info, inner)
    for key in ("mtime", "LastModified", "last_modified", "updated", "created"):
        moment = info.get(key)
        if isinstance(moment, datetime):
            return int(info["size"]), int(moment.timestamp() * 1e6) * 1000
        if isinstance(moment, int | float):
            return int(info["size"]), int(moment * 1e9)
    return int(info["size"]), 0


def read_footer(path: str, storage_options: StorageOptions = None) -> Footer:
    """The footer of one file, read once.

    Raises
    ------
    BadFile
        When the file is missing, unreadable, empty, truncated, encrypted or not Parquet.
    """
    try:
        size, mtime = modified(path, storage_options)
        with open_file(path, storage_options) as source:
            raw = _footer_bytes(path, source, size)
        reader = _parse(path, raw)
        metadata = reader.metadata  # its `schema` would make a reference cycle
        return Footer(
            schema=reader.schema_arrow,
            n_leaves=metadata.num_columns,
            n_rows=metadata.num_rows,
            row_groups=tuple(
                metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)
            ),
            size=size,
            mtime=mtime,
            digest=hashlib.sha256(raw).hexdigest(),
        )
    except STORAGE_ERRORS as error:
        raise BadFile(path, without_secrets(reason_of(error), storage_options)) from error


def open_part(
    path: str, source: pa.NativeFile, digest: str, *, streamed: bool = False
) -> ParquetReader:
    """The Parquet reader of an open file whose footer must still have the hash `digest`.

    The reader below `pyarrow.parquet.ParquetFile` is used, because that class spends longer on a
    table of names than the reader on the footer, and because it selects columns by position.
    With `streamed` a local file is read a little at a time instead of whole column chunks.

    Raises
    ------
    InputError
        When the footer is no longer the one the table was opened with.
    """
    raw = _footer_bytes(path, source, source.size())
    if hashlib.sha256(raw).hexdigest() != digest:
        raise changed(path)
    local = isinstance(source, pa.OSFile)
    reader = ParquetReader()
    reader.open(
        source,
        metadata=_parse(path, raw).metadata,
        page_checksum_verification=True,
        pre_buffer=not local,
        buffer_size=_STREAM if streamed and local else 0,
    )
    return reader


def changed(path: str) -> InputError:
    """The error for a file that is not what it was when the table was opened."""
    return InputError(f"{path} changed after the table was opened; run again on what it is now.")


def _footer_bytes(path: str, source: pa.NativeFile, size: int) -> bytes:
    """Footer and trailer of a Parquet file, without the data before them."""
    if size == 0:
        raise BadFile(path, "is empty (0 bytes)")
    source.seek(max(0, size - _TAIL))
    tail = source.read(min(size, _TAIL))
    magic = tail[-4:]
    if magic == b"PARE":
        raise BadFile(path, "is encrypted, which dpipe cannot read; decrypt it first")
    if size < 12 or magic != b"PAR1":
        source.seek(0)
        begins = source.read(4) == b"PAR1"
        raise BadFile(path, "is truncated" if begins else "is not a Parquet file")
    length = int.from_bytes(tail[-8:-4], "little") + 8
    if length + 4 > size:
        raise BadFile(path, "is truncated or damaged (its footer is longer than the file)")
    if length > len(tail):
        source.seek(size - length)
        tail = source.read(length)
    return bytes(tail[-length:])


def _parse(path: str, raw: bytes) -> ParquetReader:
    """A reader that knows the footer and has no data."""
    try:
        reader = ParquetReader()
        reader.open(pa.BufferReader(b"PAR1" + raw), pre_buffer=False)
        return reader
    except STORAGE_ERRORS as error:
        raise BadFile(path, f"is damaged: its footer cannot be read ({brief(error)})") from error


def reason_of(error: BaseException) -> str:
    """What follows a file's path in a sentence about why it cannot be used."""
    if isinstance(error, PermissionError):
        return "cannot be read (permission denied)"
    if isinstance(error, FileNotFoundError):
        return "does not exist"
    return f"cannot be read ({brief(error)})"


def brief(error: BaseException) -> str:
    """The first line of an error's text, short enough for a sentence."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return "".join(c if c.isprintable() else "?" for c in lines[0].rstrip(". ")[:200])
