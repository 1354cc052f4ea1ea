"""Opening one Parquet file, local or through fsspec.

Covers: opening a file, reading its footer once, readers that notice a changed file.
Does not cover: which files a source means (see `dpipe.table.find`), what the schemas mean together
(see `dpipe.table.schema`).

The footer is read and hashed as bytes and parsed from them: whoever reads data from a file later
compares the hash, so a file that changed in between is found before its values are used.
"""

from __future__ import annotations

import hashlib
import os
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any

import pyarrow as pa
from pyarrow.parquet.core import ParquetReader

from dpipe.common.credentials import is_url, without_secrets
from dpipe.common.words import first_line
from dpipe.errors import InputError
from dpipe.table.formats import ending_of

STORAGE_ERRORS = (pa.ArrowException, OSError)
"""Everything pyarrow and file systems raise about a bad file (ArrowInvalid, OSError, ...)."""

_MAGIC = 4  # bytes that a Parquet file begins with
_TAIL = 64 * 1024
_STREAM = 256 * 1024
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
                raise OSError(first_line(error)) from error
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
    size = int(info["size"] or 0)  # a web server need not tell
    for key in ("mtime", "LastModified", "last_modified", "updated", "created"):
        moment = info.get(key)
        if isinstance(moment, datetime):
            return size, int(moment.timestamp() * 1e6) * 1000
        if isinstance(moment, int | float):
            return size, int(moment * 1e9)
    return size, 0


def fetch(url: str, target: str, storage_options: StorageOptions = None) -> None:
    """Copy a remote file to this machine.

    Raises
    ------
    OSError
        When it cannot be read, or the disk is full.
    """
    fs, inner = filesystem(url, storage_options)
    _patiently(fs.get_file, inner, target)


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
    # Never from the first byte, so that a server that sends whole files alone is found out here.
    source.seek(min(size, max(_MAGIC, size - _TAIL)))
    tail = source.read(_TAIL)
    magic = tail[-4:]
    if magic == b"PARE":
        raise BadFile(path, "is encrypted, which dpipe cannot read; decrypt it first")
    if size < 12 or magic != b"PAR1":
        source.seek(0)
        begins = source.read(4) == b"PAR1"
        raise BadFile(path, "is truncated" if begins else _not_parquet(path))
    length = int.from_bytes(tail[-8:-4], "little") + 8
    if length + 4 > size:
        raise BadFile(path, "is truncated or damaged (its footer is longer than the file)")
    if length > len(tail):
        source.seek(size - length)
        tail = source.read(length)
    return bytes(tail[-length:])


def _not_parquet(path: str) -> str:
    if ending_of(path) is not None:
        return "is not a Parquet file"
    return "is not a Parquet file; other formats go by the name, as .csv, .csv.gz, .tsv or .feather"


def _parse(path: str, raw: bytes) -> ParquetReader:
    """A reader that knows the footer and has no data."""
    try:
        reader = ParquetReader()
        reader.open(pa.BufferReader(b"PAR1" + raw), pre_buffer=False)
        return reader
    except NotImplementedError as error:
        raise of_unknown_type(path, error) from error
    except STORAGE_ERRORS as error:
        raise BadFile(
            path, f"is damaged: its footer cannot be read ({first_line(error)})"
        ) from error


def of_unknown_type(path: str, error: NotImplementedError) -> BadFile:
    """What to say of a file whose schema Arrow refuses: it is whole, and others read it."""
    return BadFile(
        path,
        f"has a column of a type that Arrow cannot read ({first_line(error)}); write the file "
        "again with that column cast, as by polars.col(...).cast(polars.Int64)",
    )


def reason_of(error: BaseException) -> str:
    """What follows a file's path in a sentence about why it cannot be used."""
    if isinstance(error, PermissionError):
        return "cannot be read (permission denied)"
    if isinstance(error, FileNotFoundError):
        return "does not exist"
    if "range requests" in str(error):
        return (
            "cannot be read in parts, because its server does not answer range requests; download "
            "it or use a server that does"
        )
    return f"cannot be read ({first_line(error)})"
