r"""Everything a run leaves on disk: written whole or not at all, and checked when read again.

Covers: the lock of a run folder, atomic files, the manifest of checksums, pass checkpoints, and
writers and readers of the results (decisions, selected columns, communities, matrices, run.json).
Does not cover: the rank store (see `dpipe.rankstore`), the reduced table (see `dpipe.table`), what
the report shows (see `dpipe.report`).
See also: `dpipe.model.Decision` and `dpipe.model.PassResult`, the records stored here.

Every write takes one road: a temporary file beside the target (``.NAME.*.partial``), fsync,
rename, fsync of the folder. A crash leaves the old file or the new one, and the next `lock`
removes the temporary file. Nothing here is pickled, and nothing that is read can execute code.

Lists of columns (``selected.txt``, ``*_columns.txt``) hold one name a line, in UTF-8. A backslash
in a name is written ``\\``, a line feed ``\n``, a carriage return ``\r``, and any other character
that some program takes for the end of a line ``\xNN`` or ``\uNNNN``; `escape_name` and
`unescape_name` are exact inverses.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import errno
import fcntl
import hashlib
import io
import json
import math
import os
import re
import shutil
import socket
import uuid
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import NoneType
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from dpipe.errors import InputError, ResourceError
from dpipe.model import Decision, Drop, PassResult
from dpipe.secrets import check_url

if TYPE_CHECKING:
    from numpy.typing import NDArray

SCHEMA_VERSION = 1
"""Version of the layout of a run folder."""

CHECKPOINT = "checkpoint"
MANIFEST = f"{CHECKPOINT}/manifest.json"
DECISIONS_PARQUET = "decisions.parquet"
DECISIONS_CSV = "decisions.csv"
SELECTED = "selected.txt"
TABLE = "table"
_TABLE_CLAIM = f"{CHECKPOINT}/table.json"
COMMUNITIES = "communities.json"
RUN = "run.json"
LOCK = ".dpipe.lock"

DECISIONS_SCHEMA = pa.schema(
    [
        pa.field("column", pa.string(), nullable=False),
        pa.field("dtype", pa.string(), nullable=False),
        pa.field("n_valid", pa.int64()),
        pa.field("n_missing", pa.int64()),
        pa.field("n_nan", pa.int64()),
        pa.field("n_inf", pa.int64()),
        pa.field("n_unique", pa.int64()),
        pa.field("decision", pa.string(), nullable=False),
        pa.field("pass", pa.int64()),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("measure", pa.string()),
        pa.field("value", pa.float64()),
        pa.field("threshold", pa.float64()),
        pa.field("representative", pa.string()),
        pa.field("community", pa.int64()),
    ]
)
"""Columns of the decision table; the field of `Decision` behind "pass" is ``pass_number``."""

_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")
_FULL = {errno.ENOSPC, errno.EFBIG, errno.EDQUOT}
_BROKEN = (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, zipfile.BadZipFile)


@dataclass(frozen=True)
class Stale:
    """A pass checkpoint that was made under other conditions; `fields` names what changed."""

    fields: tuple[str, ...]


@dataclass(frozen=True)
class Damaged:
    """A pass checkpoint that cannot be trusted; it counts as absent, and `reason` says why."""

    reason: str


@dataclass
class _Pending:
    """A file on its way to `target`; what it weighs is known once it is there."""

    target: Path
    file: IO[bytes]
    digest: str = field(default="", init=False)
    size: int = field(default=0, init=False)


class RunFolder:
    """The output folder of a run.

    Parameters
    ----------
    path
        A local folder; nothing is touched before `create`, `lock` or the first write.

    Raises
    ------
    InputError
        When `path` is a URL.

    Examples
    --------
    >>> import tempfile
    >>> folder = RunFolder(tempfile.mkdtemp())
    >>> with folder.lock():
    ...     folder.write_selected(["MolWt", "TPSA"])
    >>> folder.read_selected(), folder.verify_checksums()
    (('MolWt', 'TPSA'), ())
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        text = os.fspath(path)
        check_url(text)
        if "://" in text:
            raise InputError(
                f"the output folder {text} is a URL; give a folder of this machine to --output-dir."
            )
        self.path = Path(text).absolute()

    def create(self) -> RunFolder:
        """Make the folder where it does not exist and check that it can be written.

        Raises
        ------
        InputError
            When it is a file, or cannot be made or written.
        """
        if self.path.exists() and not self.path.is_dir():
            raise InputError(f"the output folder {self.path} is a file; choose another.")
        try:
            (self.path / CHECKPOINT).mkdir(parents=True, exist_ok=True)
            probe = self.path / f".{uuid.uuid4().hex}.partial"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise InputError(
                f"the output folder {self.path} cannot be written "
                f"({error.strerror}); choose another."
            ) from error
        return self

    @contextlib.contextmanager
    def lock(self) -> Iterator[RunFolder]:
        """Keep other runs out of the folder, and remove what a dead one left half written.

        Raises
        ------
        InputError
            When another run uses the folder.
        """
        self.create()
        descriptor = _take_lock(self.path / LOCK)
        try:
            self._remove_partial_files()
            yield self
        finally:
            _release_lock(self.path / LOCK, descriptor)

    def _remove_partial_files(self) -> None:
        for folder in (self.path, self.path / CHECKPOINT):
            for leftover in folder.glob(".*.partial"):
                if leftover.is_dir():
                    shutil.rmtree(leftover)
                else:
                    leftover.unlink(missing_ok=True)
        for replaced in self.path.glob(f".{TABLE}.*.replaced"):
            shutil.rmtree(replaced)

    # Writing

    def write_text(self, name: str, text: str) -> None:
        """Write a UTF-8 text file, line ends as they are."""
        with self._replacing(name) as pending:
            pending.file.write(text.encode())

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

    def write_parquet(self, name: str, table: pa.Table) -> None:
        """Write an Arrow table, with checksums of its pages."""
        buffer = pa.BufferOutputStream()
        pq.write_table(table, buffer, compression="zstd", write_page_checksum=True)
        with self._replacing(name) as pending:
            pending.file.write(buffer.getvalue())

    def write_npy(self, name: str, array: NDArray[Any]) -> None:
        """Write an array that holds no objects as ``.npy``, in C order."""
        array = np.ascontiguousarray(array)
        if array.dtype.hasobject:
            raise TypeError(f"{name} would need pickle: its array holds Python objects.")
        with self._replacing(name) as pending:
            header = np.lib.format.header_data_from_array_1_0(array)
            np.lib.format.write_array_header_2_0(pending.file, header)
            # Not ndarray.tofile: its errors do not say that the disk is full.
            pending.file.write(array.reshape(-1).view(np.uint8).data)

    @contextlib.contextmanager
    def array_file(self, name: str, shape: tuple[int, ...], dtype: Any) -> Iterator[NDArray[Any]]:
        """Yield a ``.npy`` file of zeros to fill in place; it is `name` once the block ends well.

        Its disk space is taken at once, because a full disk met later, while pages of the mapping
        are written back, would kill the process.
        """
        with self._pending(name) as pending:
            with _saying_which_file(pending.target):
                array: NDArray[Any] = np.lib.format.open_memmap(
                    pending.file.name, mode="w+", dtype=dtype, shape=shape
                )
                _take_space(pending.file)
            yield array
            with _saying_which_file(pending.target):
                array.flush()  # type: ignore[attr-defined]

    @contextlib.contextmanager
    def _replacing(self, name: str) -> Iterator[_Pending]:
        """A pending file whose block does nothing but write it."""
        with self._pending(name) as pending, _saying_which_file(pending.target):
            yield pending

    @contextlib.contextmanager
    def _pending(self, name: str) -> Iterator[_Pending]:
        """Open the one road to the disk: a file that takes the place of `name` if all goes well."""
        target = self._inside(name)
        temporary = target.parent / f".{target.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}.partial"
        with _saying_which_file(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            file = open(temporary, "xb+")  # noqa: SIM115  closed below, error or not
        try:
            pending = _Pending(target, file)
            yield pending
            with _saying_which_file(target):
                file.flush()
                os.fsync(file.fileno())
                file.seek(0)
                pending.digest = hashlib.file_digest(file, "sha256").hexdigest()
                pending.size = os.fstat(file.fileno()).st_size
                os.replace(temporary, target)
                _sync_folder(target.parent)
        finally:
            # After a failed write both fail again, and have nothing new to say.
            with contextlib.suppress(OSError):
                file.close()
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
        if not name.startswith(f"{CHECKPOINT}/"):
            self._record(name, pending)

    def _inside(self, name: str) -> Path:
        """The path of `name`, which must not leave the folder."""
        path = self.path / name
        if os.path.isabs(name) or ".." in Path(name).parts or not _is_below(path, self.path):
            raise InputError(f"{name!r} would leave the run folder {self.path}.")
        return path

    # The manifest

    def _record(self, name: str, written: _Pending) -> None:
        try:
            files = self._manifest()
        except InputError:
            files = {}
        files[name] = {"sha256": written.digest, "bytes": written.size}
        self._write_manifest(files)

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
            raise _unreadable(self.path / MANIFEST, "it lists no files")
        for name in files:
            self._inside(name)
        return files

    def verify_checksums(self) -> tuple[str, ...]:
        """Names of result files that are missing or differ from what the run wrote.

        Raises
        ------
        InputError
            When the manifest is missing, broken, or names a path outside the folder.
        """
        if not (self.path / MANIFEST).exists():
            raise _unreadable(self.path / MANIFEST, FileNotFoundError())
        return tuple(
            name
            for name, entry in self._manifest().items()
            if not _same(self.path / name, entry["sha256"], entry["bytes"])
        )

    def claim_table(self) -> Path:
        """The folder of the reduced table, which this run may from now on replace or remove.

        Raises
        ------
        InputError
            When there is such a folder and no run has made it.
        """
        path = self.path / TABLE
        if path.exists() and not self._has_claimed():
            raise InputError(
                f"{path} was not written by a run; move it, or choose another --output-dir."
            )
        self.write_json(_TABLE_CLAIM, {})
        return path

    def record_table(self, files: Iterable[str | os.PathLike[str]]) -> None:
        """Enter the finished files of the reduced table into the manifest, and no others of it."""
        entries = self._manifest_without_table()
        for file in files:
            path = Path(file)
            entries[str(path.relative_to(self.path))] = {
                "sha256": _digest(path),
                "bytes": path.stat().st_size,
            }
        self._write_manifest(entries)

    def remove_table(self) -> None:
        """Remove the reduced table of a run before; a folder of somebody else's stays."""
        if self._has_claimed():
            self._write_manifest(self._manifest_without_table())
            if (self.path / TABLE).exists():
                shutil.rmtree(self.path / TABLE)
            (self.path / _TABLE_CLAIM).unlink()

    def _manifest_without_table(self) -> dict[str, dict[str, Any]]:
        files = self._manifest()
        return {name: entry for name, entry in files.items() if Path(name).parts[0] != TABLE}

    def _has_claimed(self) -> bool:
        return (self.path / _TABLE_CLAIM).exists()

    def prune_results(self, names: Iterable[str]) -> None:
        """Remove results of an earlier run: what the manifest lists and `names` does not."""
        wanted = set(names)
        files = self._manifest()
        wanted |= {name for name in files if Path(name).parts[0] == TABLE}
        for name in files.keys() - wanted:
            self._inside(name).unlink(missing_ok=True)
        self._write_manifest({name: files[name] for name in files.keys() & wanted})

    # Results

    def write_decisions(self, decisions: Sequence[Decision]) -> None:
        """Write ``decisions.parquet``, the exact record, and ``decisions.csv`` for spreadsheets."""
        fields = [field.name for field in dataclasses.fields(Decision)]
        names = DECISIONS_SCHEMA.names
        columns = {
            name: [getattr(decision, field) for decision in decisions]
            for name, field in zip(names, fields, strict=True)
        }
        self.write_parquet(DECISIONS_PARQUET, pa.table(columns, schema=DECISIONS_SCHEMA))
        self.write_csv(DECISIONS_CSV, names, zip(*columns.values(), strict=True))

    def read_decisions(self) -> tuple[Decision, ...]:
        """Read the decisions of ``decisions.parquet``, in input order.

        Raises
        ------
        InputError
            When the file is missing, broken or not a decision table.
        """
        path = self.path / DECISIONS_PARQUET
        try:
            table = pq.read_table(path, page_checksum_verification=True)
            table = table.select(DECISIONS_SCHEMA.names).cast(DECISIONS_SCHEMA)
            rows = zip(*(column.to_pylist() for column in table.columns), strict=True)
            return tuple(Decision(*row) for row in rows)
        except (pa.ArrowException, *_BROKEN) as error:
            raise _unreadable(path, error) from error

    def write_columns(self, name: str, columns: Iterable[str]) -> None:
        """Write a list of columns, one a line, escaped as the module's text says."""
        self.write_text(name, "".join(f"{escape_name(column)}\n" for column in columns))

    def read_columns(self, name: str) -> tuple[str, ...]:
        """Read a list of columns as `write_columns` wrote it."""
        lines = self._read_bytes(name)
        try:
            text = lines.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise _unreadable(self.path / name, "it is not UTF-8 text") from error
        if text and not text.endswith("\n"):
            text += "\n"
        # An editor may have changed the line ends; a carriage return of a name is escaped.
        return tuple(unescape_name(line.removesuffix("\r")) for line in text.split("\n")[:-1])

    def write_selected(self, columns: Iterable[str]) -> None:
        """Write ``selected.txt``: the kept columns in input order."""
        self.write_columns(SELECTED, columns)

    def read_selected(self) -> tuple[str, ...]:
        """Read the kept columns in input order."""
        return self.read_columns(SELECTED)

    def write_communities(self, communities: Mapping[str, Any]) -> None:
        """Write ``communities.json``: what each kept column stands for."""
        self.write_json(COMMUNITIES, communities)

    def read_communities(self) -> dict[str, Any]:
        """Read ``communities.json``."""
        return self.read_json(COMMUNITIES)

    def write_run(self, sections: Mapping[str, Any]) -> None:
        """Write ``run.json``: versions, options, plan, ledger and what else the run knows."""
        self.write_json(RUN, {"schema": SCHEMA_VERSION, **sections})

    def read_run(self) -> dict[str, Any]:
        """Read ``run.json``."""
        return self.read_json(RUN)

    def read_json(self, name: str) -> dict[str, Any]:
        """Read a JSON object of the folder.

        Raises
        ------
        InputError
            When the file is missing or holds no JSON object.
        """
        data = self._read_bytes(name)
        try:
            value = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise _unreadable(self.path / name, "it is not JSON") from error
        if not isinstance(value, dict):
            raise _unreadable(self.path / name, "it holds no JSON object")
        return value

    def read_npy(self, name: str) -> NDArray[Any]:
        """Map a ``.npy`` file of the folder into memory, read-only; pickled ones are refused."""
        path = self._inside(name)
        try:
            array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
        except _BROKEN as error:
            raise _unreadable(path, error) from error
        return array

    def _read_bytes(self, name: str) -> bytes:
        path = self._inside(name)
        try:
            return path.read_bytes()
        except OSError as error:
            raise _unreadable(path, error) from error

    # Pass checkpoints

    def save_pass(
        self,
        number: int,
        depends: Mapping[str, Any],
        result: PassResult,
        arrays: Mapping[str, NDArray[Any]] | None = None,
    ) -> str:
        """Keep what a pass decided, for `load_pass` of a later run.

        Parameters
        ----------
        number
            The pass.
        depends
            A flat record of everything the result follows from: version, input fingerprint,
            options, the key of the pass before.
        result, arrays
            What the pass decided, and arrays a later pass needs.

        Returns
        -------
        str
            The key of this result, for the ``depends`` of the next pass.
        """
        named = dict(arrays or {})
        if any(array.dtype.hasobject for array in named.values()):
            raise TypeError(f"pass {number} would need pickle: an array holds Python objects.")
        # The arrays get a name of their own each time, so that the pass kept before stays whole
        # until the record below takes its place.
        file_name = f"pass-{number}-{uuid.uuid4().hex[:12]}.npz"
        with self._replacing(f"{CHECKPOINT}/{file_name}") as pending:
            _write_npz(pending.file, named)
        decided = {"depends": plain(depends), "result": plain(result)}
        key = _digest_of(decided)
        stored = {"file": file_name, "sha256": pending.digest, "bytes": pending.size}
        body = {**decided, "key": key, "arrays": stored}
        self.write_json(_pass_file(number), {"sha256": _digest_of(body), "body": body})
        # Only now is the checkpoint of an earlier run of this pass no longer needed.
        for old in (self.path / CHECKPOINT).glob(f"pass-{number}-*.npz"):
            if old.name != file_name:
                old.unlink(missing_ok=True)
        return key

    def load_pass(
        self, number: int, depends: Mapping[str, Any]
    ) -> PassResult | Stale | Damaged | None:
        """What the pass decided in an earlier run, if it still holds.

        Returns
        -------
        PassResult or Stale or Damaged or None
            `Stale` names every field of `depends` that differs; `Damaged` (treat it as absent)
            says what is wrong with the files; None when there is no checkpoint.
        """
        body = self._read_pass(number)
        if body is None or isinstance(body, Damaged):
            return body
        now, then = plain(depends), body["depends"]
        missing = object()
        changed = [k for k in [*now, *then] if now.get(k, missing) != then.get(k, missing)]
        if changed:
            return Stale(tuple(dict.fromkeys(changed)))
        try:
            return _pass_result(body["result"])
        except _BROKEN as error:
            return Damaged(f"{_pass_file(number)} holds no result of a pass ({error})")

    def pass_key(self, number: int) -> str | None:
        """The key of the stored result of a pass, None without a sound one."""
        body = self._read_pass(number)
        return str(body["key"]) if isinstance(body, dict) else None

    def load_arrays(self, number: int) -> dict[str, NDArray[Any]]:
        """Read the arrays kept with a pass that `load_pass` accepted.

        Raises
        ------
        InputError
            When they are missing or broken.
        """
        body = self._read_pass(number)
        if not isinstance(body, dict):
            reason = body.reason if body else "there is none"
            raise InputError(f"the checkpoint of pass {number} cannot be read: {reason}.")
        path = self.path / CHECKPOINT / body["arrays"]["file"]
        try:
            with np.load(path, allow_pickle=False) as stored:
                return {name: stored[name] for name in stored.files}
        except _BROKEN as error:
            raise _unreadable(path, error) from error

    def clear_checkpoints(self) -> None:
        """Forget every pass, so that a run starts from nothing."""
        for file in (self.path / CHECKPOINT).glob("pass-*"):
            file.unlink(missing_ok=True)

    def _read_pass(self, number: int) -> dict[str, Any] | Damaged | None:
        name = _pass_file(number)
        if not (self.path / name).exists():
            return None
        try:
            stored = self.read_json(name)
            body = stored["body"]
            if stored["sha256"] != _digest_of(body):
                return Damaged(f"{name} does not have the checksum it was written with")
            arrays = body["arrays"]
            if not re.fullmatch(rf"pass-{number}-[0-9a-f]+\.npz", arrays["file"]):
                return Damaged(f"{name} names a file that is not its own")
            if not _same(
                self.path / CHECKPOINT / arrays["file"], arrays["sha256"], arrays["bytes"]
            ):
                return Damaged(f"{arrays['file']} is missing or was altered")
        except (InputError, *_BROKEN) as error:
            return Damaged(f"{name} cannot be read ({error})")
        return dict(body)


def escape_name(name: str) -> str:
    r"""A column name as one line of text; `unescape_name` is the inverse.

    Examples
    --------
    >>> print(escape_name("two\nlines"), escape_name("C:\\x"))
    two\nlines C:\\x
    """
    return _UNSAFE.sub(_escape, name)


def unescape_name(line: str) -> str:
    r"""The column name that `escape_name` wrote; an unknown escape stands for itself.

    Examples
    --------
    >>> unescape_name("two\\nlines") == "two\nlines"
    True
    """
    return _ESCAPED.sub(_unescape, line)


# Everything str.splitlines breaks at, and the backslash itself.
_UNSAFE = re.compile("[\\\\\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029]")
_ESCAPED = re.compile(r"\\(\\|n|r|x[0-9a-f]{2}|u[0-9a-f]{4})")
_SHORT = {"\\": "\\\\", "\n": "\\n", "\r": "\\r"}


def _escape(match: re.Match[str]) -> str:
    character = match[0]
    code = ord(character)
    return _SHORT.get(character) or (f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}")


def _unescape(match: re.Match[str]) -> str:
    mark = match[1]
    return {"\\": "\\", "n": "\n", "r": "\r"}.get(mark) or chr(int(mark[1:], 16))


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


def _pass_file(number: int) -> str:
    return f"{CHECKPOINT}/pass-{number}.json"


def _pass_result(stored: Mapping[str, Any]) -> PassResult:
    return PassResult(
        number=int(stored["number"]),
        name=str(stored["name"]),
        kept=tuple(map(str, stored["kept"])),
        drops=tuple(_drop(drop) for drop in stored["drops"]),
        communities={str(k): int(v) for k, v in stored["communities"].items()},
        near_threshold=tuple((str(a), str(b), float(v)) for a, b, v in stored["near_threshold"]),
    )


def _drop(stored: Mapping[str, Any]) -> Drop:
    numbers = {k: None if stored[k] is None else float(stored[k]) for k in ("value", "threshold")}
    return Drop(**{**stored, **numbers})


def _harmless(cell: str | float | None) -> str | float | None:
    if isinstance(cell, str):
        return f"'{cell}" if cell.startswith(_FORMULA) else cell
    return cell


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest_of(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _same(path: Path, digest: str, size: int) -> bool:
    try:
        return path.stat().st_size == size and _digest(path) == digest
    except OSError:
        return False


def _is_below(path: Path, folder: Path) -> bool:
    """Whether `path` stays in `folder` after following links."""
    return path.resolve().is_relative_to(folder.resolve())


def _write_npz(file: IO[bytes], arrays: Mapping[str, NDArray[Any]]) -> None:
    """As ``numpy.savez`` does, with any name for an array and no way to pickle one."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asanyarray(array), allow_pickle=False)


def _take_space(file: IO[bytes]) -> None:
    """Turn the holes of a file into blocks on the disk, where the system can."""
    if not hasattr(os, "posix_fallocate"):
        return
    try:
        os.posix_fallocate(file.fileno(), 0, os.fstat(file.fileno()).st_size)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
            raise


def _sync_folder(folder: Path) -> None:
    """Make a rename last: a folder is a file of names, and wants its own fsync."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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


def _unreadable(path: Path, reason: object) -> InputError:
    if isinstance(reason, FileNotFoundError):
        return InputError(f"{path} does not exist; give the folder of a finished run.")
    if isinstance(reason, OSError) and reason.strerror:
        reason = reason.strerror
    lines = str(reason).strip().splitlines() or ["it is broken"]
    return InputError(f"{path} cannot be read: {lines[0].rstrip('.')}; run dpipe again.")


# The lock


def _take_lock(path: Path) -> int:
    """Return an open descriptor that holds the lock.

    Where the file system knows locks, a dead run holds none and its file means nothing. Elsewhere
    the process named in the file decides; two runs that start in the same instant may then both
    pass.
    """
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise InputError(
                f"the lock {path} cannot be opened ({error.strerror}); choose another --output-dir."
            ) from error
        try:
            held = _flock(descriptor)
            owner = _owner(descriptor)
            if held is False or (held is None and _may_run(owner)):
                raise _locked(path, owner)
            # The run before may have removed the file between our opening and our locking it.
            if held is None or _is_still(path, descriptor):
                mine = {"pid": os.getpid(), "host": socket.gethostname()}
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, json.dumps(mine).encode(), 0)
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _release_lock(path: Path, descriptor: int) -> None:
    """Remove the file first: whoever opens it meanwhile sees that it is gone, and tries again."""
    # Where the folder became read-only the file stays, and means nothing without the lock.
    with contextlib.suppress(OSError):
        path.unlink()
    os.close(descriptor)


def _flock(descriptor: int) -> bool | None:
    """Whether the lock is ours; None where the file system knows no locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _owner(descriptor: int) -> tuple[int, str] | None:
    """The process and host a lock file names."""
    try:
        stored = json.loads(os.pread(descriptor, 4096, 0))
        return int(stored["pid"]), str(stored["host"])
    except (ValueError, KeyError, TypeError):
        return None


def _may_run(owner: tuple[int, str] | None) -> bool:
    """Whether the owner can still be at work: a process of another host can, for all we know."""
    return owner is not None and (owner[1] != socket.gethostname() or psutil.pid_exists(owner[0]))


def _is_still(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _locked(path: Path, owner: tuple[int, str] | None) -> InputError:
    who = f"pid {owner[0]} on {owner[1]}" if owner else "its process is unknown"
    return InputError(
        f"another run ({who}) is using {path.parent}; wait for it or choose another "
        f"--output-dir, and if no such run exists, remove {path}."
    )
