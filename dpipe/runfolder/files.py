"""Files of a folder: written whole or not at all, and checked when read again.

Covers: the one way every file is written, the manifest of checksums, readers that run no code.
Does not cover: which files there are (`dpipe.runfolder.RunFolder`, `dpipe.runfolder.checkpoints`).

A write waits for the disk, and a crash leaves the old file or the new one (see
`dpipe.common.atomic`); the next lock of the folder removes the temporary file. Nothing here is
pickled, and nothing that is read can execute code.
"""

from __future__ import annotations

import contextlib
import csv
import errno
import hashlib
import io
import json
import os
import uuid
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from io import BufferedRandom, BufferedReader
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dpipe.common.atomic import replacing
from dpipe.common.npy import map_npy
from dpipe.common.plain import plain
from dpipe.common.words import first_line
from dpipe.errors import InputError, ResourceError
from dpipe.model.inventory import CHECKPOINT, MANIFEST, RUN, is_listed, matrix_files
from dpipe.runfolder.names import escape_name, unescape_name

if TYPE_CHECKING:
    from numpy.typing import NDArray

SCHEMA_VERSION = 2
"""Version of the layout of a run folder."""

BROKEN = (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, zipfile.BadZipFile)
"""What reading a file that somebody altered may raise."""

_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")
_FULL = {errno.ENOSPC, errno.EFBIG, errno.EDQUOT}


class Files:
    """The files of one folder on this machine.

    Parameters
    ----------
    path
        The folder; nothing is touched before `create` or the first write.
    manifest
        Whether to keep one; without it nothing but the files asked for is left.
    """

    def __init__(self, path: Path, *, manifest: bool = True) -> None:
        self.path = path
        self._keeps_manifest = manifest

    def create(self) -> Self:
        """Make the folder where it does not exist and check that it can be written.

        Raises
        ------
        InputError
            When it is a file, or cannot be made or written.
        """
        self.check_place()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            probe = self.path / f".{uuid.uuid4().hex}.partial"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise InputError(
                f"the output folder {self.path} cannot be written "
                f"({error.strerror}); choose another."
            ) from error
        return self

    def check_place(self) -> None:
        """Refuse a folder that cannot be made or written, as far as can be told without trying.

        Raises
        ------
        InputError
            When it is a file, or lies in one or in a folder of somebody else.
        """
        place = self.path
        while not os.path.lexists(place):
            place = place.parent
        if not place.is_dir():
            where = "is" if place == self.path else f"lies in {place}, which is"
            raise InputError(f"the output folder {self.path} {where} a file; choose another.")
        if not os.access(place, os.W_OK | os.X_OK):
            raise InputError(
                f"the output folder {self.path} cannot be written "
                f"({os.strerror(errno.EACCES)}: {place}); choose another."
            )

    # Writing

    def write_text(self, name: str, text: str) -> None:
        """Write a UTF-8 text file, line ends as they are."""
        with self.replacing(name) as file:
            file.write(text.encode())

    def write_json(self, name: str, value: Any) -> None:
        """Write `value` as JSON: records become objects, infinite and NaN floats become text."""
        self.write_text(name, json.dumps(plain(value), indent=2, ensure_ascii=False) + "\n")

    def write_csv(
        self, name: str, header: Sequence[str], rows: Iterable[Sequence[str | float | None]]
    ) -> None:
        """Write a CSV file after RFC 4180, None as an empty cell.

        Text that a spreadsheet would run as a formula gets an apostrophe in front: a column name
        may come from anywhere.
        """
        buffer = io.StringIO(newline="")
        writer = csv.writer(buffer, lineterminator="\r\n")
        writer.writerow([_harmless(cell) for cell in header])
        writer.writerows([_harmless(cell) for cell in row] for row in rows)
        self.write_text(name, buffer.getvalue())

    def write_columns(self, name: str, columns: Iterable[str]) -> None:
        """Write a list of columns, one a line, escaped as `dpipe.runfolder.names` says."""
        self.write_text(name, "".join(f"{escape_name(column)}\n" for column in columns))

    def write_parquet(self, name: str, table: pa.Table) -> None:
        """Write an Arrow table, with checksums of its pages."""
        buffer = pa.BufferOutputStream()
        pq.write_table(table, buffer, compression="zstd", write_page_checksum=True)
        with self.replacing(name) as file:
            file.write(buffer.getvalue())

    def write_npy(self, name: str, array: NDArray[Any]) -> None:
        """Write an array that holds no objects as ``.npy``, in C order."""
        array = np.asarray(array, order="C")
        if array.dtype.hasobject:
            raise TypeError(f"{name} would need pickle: its array holds Python objects.")
        with self.replacing(name) as file:
            header = np.lib.format.header_data_from_array_1_0(array)
            np.lib.format.write_array_header_2_0(file, header)
            # Not ndarray.tofile: its errors do not say that the disk is full.
            file.write(array.reshape(-1).view(np.uint8).data)

    @contextlib.contextmanager
    def array_file(self, name: str, shape: tuple[int, ...], dtype: Any) -> Iterator[NDArray[Any]]:
        """Yield a ``.npy`` file of zeros to fill in place; it is `name` once the block ends well.

        Its disk space is taken at once, because a full disk met later, while pages of the mapping
        are written back, would kill the process.
        """
        target = self.inside(name)
        with self._pending_file(target, name) as file:
            with _saying_which_file(target):
                array: NDArray[Any] = np.lib.format.open_memmap(
                    file.name, mode="w+", dtype=dtype, shape=shape
                )
                _take_space(file)
            yield array
            with _saying_which_file(target):
                array.flush()  # type: ignore[attr-defined]

    @contextlib.contextmanager
    def write_matrix(self, name: str, columns: Sequence[str]) -> Iterator[NDArray[np.float32]]:
        """Yield ``NAME.npy`` (p, p) to fill in place; its list of columns is written after it."""
        array_name, columns_name = matrix_files(name)
        with self.array_file(array_name, (len(columns), len(columns)), np.float32) as array:
            yield array
        self.write_columns(columns_name, columns)

    @contextlib.contextmanager
    def replacing(self, name: str) -> Iterator[BufferedRandom]:
        """A file that takes the place of `name`, whose block does nothing but write it."""
        target = self.inside(name)
        with self._pending_file(target, name) as file, _saying_which_file(target):
            yield file

    @contextlib.contextmanager
    def _pending_file(self, target: Path, name: str) -> Iterator[BufferedRandom]:
        """Open a file that takes the place of `name` if all goes well; every write comes here."""
        with contextlib.ExitStack() as stack:
            with _saying_which_file(target):
                target.parent.mkdir(parents=True, exist_ok=True)
                file = stack.enter_context(replacing(target, wait=True))
            yield file
            with _saying_which_file(target):
                file.flush()
                entry = listing_of(file)
                stack.close()
        if self._keeps_manifest and is_listed(name):
            self._write_manifest({**self._listed(), name: entry})

    def inside(self, name: str) -> Path:
        """The path of `name`, which must not leave the folder."""
        path = self.path / name
        if os.path.isabs(name) or ".." in Path(name).parts or not _is_below(path, self.path):
            raise InputError(f"{name!r} would leave the run folder {self.path}.")
        return path

    # The manifest

    def _write_manifest(self, files: Mapping[str, Mapping[str, Any]]) -> None:
        self.write_json(MANIFEST, {"schema": SCHEMA_VERSION, "files": dict(sorted(files.items()))})

    def _manifest(self) -> dict[str, dict[str, Any]]:
        if not (self.path / MANIFEST).exists():
            return {}
        files = self.read_json(MANIFEST).get("files")
        if not isinstance(files, dict) or not all(
            isinstance(entry, dict) and {"sha256", "bytes"} <= entry.keys()
            for entry in files.values()
        ):
            raise unreadable(self.path / MANIFEST, "it lists no files")
        for name in files:
            self.inside(name)
        return files

    def _listed(self) -> dict[str, dict[str, Any]]:
        """What the manifest lists; nothing where it is broken, and the next write mends it."""
        try:
            return self._manifest()
        except InputError:
            return {}

    def has_manifest(self) -> bool:
        """Whether there is a manifest that can be read."""
        return bool(self._listed())

    def digest_of(self, name: str) -> str | None:
        """SHA-256 of a file, None without one; the manifest's where nobody touched it since."""
        path = self.inside(name)
        try:
            facts = path.stat()
            entry = self._listed().get(name, {})
            if (entry.get("bytes"), entry.get("mtime")) == (facts.st_size, facts.st_mtime_ns):
                return str(entry["sha256"])
            return digest(path)
        except OSError:
            return None

    def verify_checksums(self) -> tuple[str, ...]:
        """Names of result files that are missing or differ from what the run wrote.

        Raises
        ------
        InputError
            When the manifest is missing, broken, or names a path outside the folder.
        """
        if not (self.path / MANIFEST).exists():
            raise unreadable(self.path / MANIFEST, FileNotFoundError())
        return tuple(
            name
            for name, entry in self._manifest().items()
            if not same(self.path / name, entry["sha256"], entry["bytes"])
        )

    # Reading

    def read_json(self, name: str) -> dict[str, Any]:
        """Read a JSON object of the folder.

        Raises
        ------
        InputError
            When the file is missing or holds no JSON object.
        """
        data = self.read_bytes(name)
        try:
            value = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise unreadable(self.path / name, "it is not JSON") from error
        if not isinstance(value, dict):
            raise unreadable(self.path / name, "it holds no JSON object")
        return value

    def read_columns(self, name: str) -> tuple[str, ...]:
        """Read a list of columns as `write_columns` wrote it."""
        lines = self.read_bytes(name)
        try:
            text = lines.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise unreadable(self.path / name, "it is not UTF-8 text") from error
        if text and not text.endswith("\n"):
            text += "\n"
        # An editor may have changed the line ends; a carriage return of a name is escaped.
        return tuple(unescape_name(line.removesuffix("\r")) for line in text.split("\n")[:-1])

    def read_npy(self, name: str) -> NDArray[Any]:
        """Map a ``.npy`` file of the folder into memory, read-only; pickled ones are refused."""
        path = self.inside(name)
        try:
            return map_npy(path)
        except BROKEN as error:
            raise unreadable(path, error) from error

    def read_matrix(self, name: str) -> tuple[tuple[str, ...], NDArray[np.float32]]:
        """The columns of a matrix and its values, mapped into memory.

        Raises
        ------
        InputError
            When one of the two files is missing or broken, or they do not fit each other.
        """
        array_name, columns_name = matrix_files(name)
        columns, values = self.read_columns(columns_name), self.read_npy(array_name)
        if values.shape != (len(columns), len(columns)) or values.dtype.kind != "f":
            raise unreadable(self.path / array_name, f"it does not fit {columns_name}")
        return columns, values

    def read_bytes(self, name: str) -> bytes:
        """Read a file of the folder.

        Raises
        ------
        InputError
            When it is missing or cannot be read.
        """
        path = self.inside(name)
        try:
            return path.read_bytes()
        except OSError as error:
            raise unreadable(path, error) from error


def _harmless(cell: str | float | None) -> str | float | None:
    if isinstance(cell, str):
        return f"'{cell}" if cell.startswith(_FORMULA) else cell
    return cell


def listing_of(file: BufferedReader | BufferedRandom) -> dict[str, Any]:
    """What the manifest says of an open file."""
    file.seek(0)
    sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    facts = os.fstat(file.fileno())
    return {"sha256": sha256, "bytes": facts.st_size, "mtime": facts.st_mtime_ns}


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def same(path: Path, sha256: str, size: int) -> bool:
    """Whether a file has this digest and this size; one that cannot be read has not."""
    try:
        return path.stat().st_size == size and digest(path) == sha256
    except OSError:
        return False


def _is_below(path: Path, folder: Path) -> bool:
    """Whether `path` stays in `folder` after following links."""
    return path.resolve().is_relative_to(folder.resolve())


def _take_space(file: IO[bytes]) -> None:
    """Turn the holes of a file into blocks on the disk, where the system can."""
    if not hasattr(os, "posix_fallocate"):
        return
    try:
        os.posix_fallocate(file.fileno(), 0, os.fstat(file.fileno()).st_size)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
            raise


@contextlib.contextmanager
def _saying_which_file(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _not_written(path, error) from error


def _not_written(path: Path, error: OSError) -> ResourceError:
    if error.errno in _FULL:
        return ResourceError(
            f"there is no space left to write {path}; make room and run the same command again "
            "to resume, or choose another --output-dir."
        )
    return ResourceError(f"{path} cannot be written ({error.strerror or error}).")


def unreadable(path: Path, reason: object) -> InputError:
    """What to say about a file that cannot be read: `reason` is an error, or half a sentence."""
    if isinstance(reason, FileNotFoundError | NotADirectoryError):
        if path.parent.name == CHECKPOINT and (path.parent.parent / RUN).exists():
            return InputError(
                f"{path} is missing: `dpipe transfer` needs the folder {CHECKPOINT} of the run; "
                "bring it back, or run dpipe again."
            )
        return InputError(f"{path} does not exist; give the folder of a finished run.")
    if isinstance(reason, OSError) and reason.strerror:
        reason = reason.strerror
    line = first_line(reason) if str(reason).strip() else "it is broken"
    return InputError(f"{path} cannot be read: {line}; run dpipe again.")
