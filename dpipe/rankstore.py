"""The rank store: the prepared table on disk, addressable by column block and row chunk.

Covers: writing prepared column blocks, the catalogue of the columns a pass works on, reading
(columns, rows) pieces, and the small arrays tasks leave for each other.
Does not cover: ranking (`dpipe.kernels.ranks`), which columns are kept (`dpipe.passes`).

A folder, local or any fsspec URL:

    block-00003.f32    float32 (columns, rows) centred ranks u - 1/2, 0 where missing
    block-00003.bits   packed validity, a row per incomplete column of the block
    block-00003.json   statistics and checksum of every column of the block; written last, it marks
                       it done

A column is contiguous, so a row chunk of it is one read, and a block is read as it is computed on.
Files appear under their name only when complete (temporary name, then rename): a worker that dies
leaves nothing that looks finished, and a task that runs twice writes the same bytes. Nobody waits
until the blocks are on the disk (``docs/performance.md`` has the cost): whether they survived a
crash of the machine is found out by their checksums when a run goes on.
"""

from __future__ import annotations

import io
import json
import os
import uuid
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from functools import lru_cache, partial, reduce
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
from numpy.typing import NDArray

from dpipe.errors import InputError, ResourceError
from dpipe.model import ColumnStatistics
from dpipe.secrets import Secrets, without_secrets


class Store:
    """A folder of small named files, local or remote.

    Parameters
    ----------
    root
        Local path or fsspec URL.
    storage_options
        Passed to fsspec for a URL; never written anywhere.
    durable
        Whether a small finished file must outlive a crash of the machine. It costs the wait for
        the disk, which a store that nobody will resume from is spared.

    Attributes
    ----------
    local
        Whether it is a folder of this machine's file system rather than objects behind a URL.
    """

    def __init__(
        self,
        root: str,
        storage_options: Mapping[str, Any] | None = None,
        *,
        durable: bool = True,
    ) -> None:
        self.root = root
        self.durable = durable
        self.storage_options = Secrets(storage_options)
        # A listing that is kept does not know what another process has written since.
        live = {"use_listings_cache": False} if "://" in root else {}
        try:
            self._fs, self._path = fsspec.core.url_to_fs(root, **live, **self.storage_options)
        except Exception as error:  # whatever the storage library of this URL raises
            raise InputError(f"{root} is no place for the ranks ({self._why(error)}).") from None
        self.local = isinstance(self._fs, fsspec.implementations.local.LocalFileSystem)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Store) and other.root == self.root

    def __hash__(self) -> int:
        return hash(self.root)

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(Store, durable=self.durable), (self.root, self.storage_options)

    def path(self, name: str) -> str:
        """Full path of `name` inside the folder."""
        return f"{self._path}/{name}"

    def names(self, folder: str = "") -> set[str]:
        """Names of the finished files in the store or one of its folders."""
        path = self.path(folder).rstrip("/")
        with self._reaching():
            if not self._fs.exists(path):
                return set()
            # fsspec may look at every file it lists, and what is half written may be gone by then.
            found = os.listdir(path) if self.local else self._fs.ls(path, detail=False)
        entries = [entry.rsplit("/", 1)[-1] for entry in found]
        return {entry for entry in entries if not entry.endswith(".partial")}

    def has(self, name: str) -> bool:
        """Whether a file is there."""
        with self._reaching():
            return bool(self._fs.exists(self.path(name)))

    @contextmanager
    def _reaching(self) -> Iterator[None]:
        """Say in one sentence what a remote file system has to say in many ways."""
        try:
            yield
        except (FileNotFoundError, ResourceError):
            raise
        except Exception as error:
            if self.local:
                raise
            raise ResourceError(
                f"{self.root} cannot be reached ({self._why(error)}); "
                "run the same command again to continue."
            ) from None

    def _why(self, error: Exception) -> str:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        return without_secrets(lines[0].rstrip(". ")[:200], self.storage_options)

    def write(self, name: str, *parts: Any, wait: bool = True) -> None:
        """Write buffers one after the other as the file `name`, whole or not at all.

        A reader that can tell whether the content is whole lets a durable store not `wait` for
        the disk.
        """
        target = self.path(name)
        try:
            self._fs.makedirs(os.path.dirname(target), exist_ok=True)
            if self.local:
                self._write_local(target, parts, wait and self.durable)
            else:
                self._write_remote(target, parts)
        except Exception as error:
            if self.local and not isinstance(error, OSError):
                raise
            reason = getattr(error, "strerror", None) or self._why(error)
            raise ResourceError(
                f"could not write {target} ({reason}); make room or choose "
                "another --scratch-dir, then run the same command again to continue."
            ) from None

    def _write_local(self, target: str, parts: Sequence[Any], wait: bool) -> None:
        temporary = f"{target}.{uuid.uuid4().hex}.partial"
        try:
            with open(temporary, "wb") as file:
                for part in parts:
                    file.write(part)
                file.flush()
                if wait:
                    os.fsync(file.fileno())
            os.replace(temporary, target)
        except OSError:
            with suppress(OSError):  # as full or as gone as it was a moment ago
                os.unlink(temporary)
            raise

    def _write_remote(self, target: str, parts: Sequence[Any]) -> None:
        # An object appears when it is closed, so one that fails must not be closed.
        file = self._fs.open(target, "wb")
        try:
            for part in parts:
                file.write(part)
        except BaseException:
            file.discard()
            file.closed = True
            raise
        file.close()

    def write_json(self, name: str, content: Any) -> None:
        """Write plain data as JSON."""
        self.write(name, json.dumps(content).encode())

    def read_text(self, name: str) -> str:
        """Read a small text file."""
        with self._reaching():
            return bytes(self._fs.cat_file(self.path(name))).decode()

    def read_json(self, name: str) -> Any:
        """Read what `write_json` wrote."""
        try:
            return json.loads(self.read_text(name))
        except ValueError:
            raise self._damaged(name) from None

    def _damaged(self, name: str) -> ResourceError:
        return ResourceError(
            f"{self.path(name)} is not what dpipe wrote there; "
            "run the same command with --fresh to write it anew."
        )

    def write_arrays(self, name: str, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Write named arrays as an uncompressed npz."""
        buffer = io.BytesIO()
        # As numpy.savez, which cannot be told before NumPy 2.1 that nothing may be pickled.
        with zipfile.ZipFile(buffer, "w") as archive:
            for key, array in arrays.items():
                with archive.open(f"{key}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, np.asanyarray(array), allow_pickle=False)
        with buffer.getbuffer() as content:
            self.write(name, content)

    def read_arrays(self, name: str) -> dict[str, NDArray[Any]]:
        """Read what `write_arrays` wrote; refuses pickled objects."""
        with self._reaching(), self._fs.open(self.path(name), "rb") as file:
            try:
                with np.load(file, allow_pickle=False) as data:
                    return {key: data[key] for key in data.files}
            except (ValueError, TypeError, EOFError, zipfile.BadZipFile):
                raise self._damaged(name) from None

    def remove(self, prefix: str = "") -> None:
        """Delete what begins with `prefix`; by default the folder and all in it."""
        doomed = [self.path(name) for name in self.names() if name.startswith(prefix)]
        with self._reaching():
            for path in doomed if prefix else [self._path]:
                if self._fs.exists(path):
                    self._fs.rm(path, recursive=True)

    def remove_partial(self) -> None:
        """Delete what dead workers left half written; nobody may be writing to the store."""
        if self.local:
            for leftover in Path(self._path).rglob("*.partial"):
                leftover.unlink(missing_ok=True)

    def size(self, name: str) -> int:
        """Bytes of a finished file."""
        with self._reaching():
            return int(self._fs.size(self.path(name)))

    @contextmanager
    def reader(self, name: str) -> Iterator[_Reader]:
        """Read pieces of a file at given offsets."""
        if self.local:
            descriptor = os.open(self.path(name), os.O_RDONLY)
            try:
                yield _LocalReader(descriptor)
            finally:
                os.close(descriptor)
        else:
            with (
                self._reaching(),
                self._fs.open(self.path(name), "rb", cache_type="none") as file,
            ):
                yield _RemoteReader(file)


class _Reader:
    def fill(self, buffer: NDArray[Any], offset: int) -> None:
        """Fill a contiguous array with the bytes at `offset`."""
        raise NotImplementedError


class _LocalReader(_Reader):
    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def fill(self, buffer: NDArray[Any], offset: int) -> None:
        view = _bytes(buffer)
        while len(view):  # a single read stops at 2 GiB
            got = os.preadv(self._descriptor, [view], offset)
            if got == 0:
                raise ResourceError("a file of the rank store ends early; run again with --fresh.")
            view, offset = view[got:], offset + got


class _RemoteReader(_Reader):
    def __init__(self, file: Any) -> None:
        self._file = file

    def fill(self, buffer: NDArray[Any], offset: int) -> None:
        self._file.seek(offset)
        view = _bytes(buffer)
        view[:] = self._file.read(len(view))


def _bytes(array: NDArray[Any]) -> memoryview:
    """The memory of a contiguous array as bytes, not copied."""
    return array.reshape(-1).view(np.uint8).data


@dataclass(frozen=True)
class StoredColumn:
    """Where a prepared column lies: `slot` in its block, `valid_slot` of its mask (-1: complete).

    ``slot`` is -1 for a column that pass 1 dropped and did not store. ``pattern`` is equal for
    columns of the same valid rows, "" for complete ones. ``checksum`` is the CRC-32 of what is
    stored, set by `write_block`.
    """

    statistics: ColumnStatistics
    reason: str | None
    slot: int
    valid_slot: int
    pattern: str
    checksum: int = 0


def write_block(
    store: Store,
    number: int,
    columns: Sequence[StoredColumn],
    scores: Sequence[NDArray[np.float32]],
    masks: Sequence[NDArray[np.uint8]],
) -> None:
    """Write a prepared column block; its JSON, written last, marks it as done.

    ``scores`` and packed ``masks`` are in the order of their slots.
    """
    name = f"block-{number:05d}"
    store.write(f"{name}.f32", *(_bytes(column) for column in scores), wait=False)
    store.write(f"{name}.bits", *(_bytes(mask) for mask in masks), wait=False)
    sealed = []
    for column in columns:
        parts: list[NDArray[Any]] = [scores[column.slot]] if column.slot >= 0 else []
        parts += [masks[column.valid_slot]] if column.valid_slot >= 0 else []
        sealed.append(replace(column, checksum=_checksum(parts)))
    store.write_json(f"{name}.json", [asdict(column) for column in sealed])


def _checksum(parts: Sequence[NDArray[Any]]) -> int:
    return reduce(lambda crc, part: zlib.crc32(_bytes(part), crc), parts, 0)


def is_intact(store: Store, number: int, n_rows: int) -> bool:
    """Whether a finished block still holds what was written, by its checksums."""
    name = f"block-{number:05d}"
    scores = np.empty(n_rows, dtype=np.float32)
    mask = np.empty(packed_length(n_rows), dtype=np.uint8)
    with store.reader(f"{name}.f32") as ranks, store.reader(f"{name}.bits") as bits:
        for column in read_block_columns(store, number):
            parts: list[NDArray[Any]] = []
            for reader, part, slot in (
                (ranks, scores, column.slot),
                (bits, mask, column.valid_slot),
            ):
                if slot >= 0:
                    reader.fill(part, slot * part.nbytes)
                    parts.append(part)
            if _checksum(parts) != column.checksum:
                return False
    return True


def finished_blocks(store: Store, n_rows: int) -> set[int]:
    """Numbers of the blocks that look whole: marked done, with files of the right size."""
    names = store.names()
    return {
        int(name[6:11])
        for name in names
        if name.startswith("block-") and name.endswith(".json") and _is_whole(store, name, n_rows)
    }


def _is_whole(store: Store, marker: str, n_rows: int) -> bool:
    columns = read_block_columns(store, int(marker[6:11]))
    stored = sum(column.slot >= 0 for column in columns)
    masked = sum(column.valid_slot >= 0 for column in columns)
    stem = marker.removesuffix(".json")
    try:
        return store.size(f"{stem}.f32") == stored * n_rows * 4 and (
            store.size(f"{stem}.bits") == masked * packed_length(n_rows)
        )
    except FileNotFoundError:
        return False


def read_block_columns(store: Store, number: int) -> list[StoredColumn]:
    """The columns of a block, in the order they were prepared."""
    return [
        StoredColumn(**{**entry, "statistics": ColumnStatistics(**entry["statistics"])})
        for entry in store.read_json(f"block-{number:05d}.json")
    ]


def packed_length(n_rows: int) -> int:
    """Bytes of one packed mask."""
    return -(-n_rows // 8)


@dataclass(frozen=True)
class Catalogue:
    """The columns a pass works on, in the order its tiles address them: complete ones first.

    Arrays of one entry per column: ``block``, ``slot`` and ``valid_slot`` say where it lies,
    ``pattern`` numbers its set of valid rows (0: complete), ``n_valid`` counts them. ``rows``
    (sorted) restricts the pass to a draw of rows; empty means all.
    """

    n_stored: int
    block: NDArray[np.int64]
    slot: NDArray[np.int64]
    valid_slot: NDArray[np.int64]
    pattern: NDArray[np.int64]
    n_valid: NDArray[np.int64]
    rows: NDArray[np.int64]

    @property
    def n_rows(self) -> int:
        """Rows a pass over this catalogue sees."""
        return len(self.rows) or self.n_stored

    @property
    def n_complete(self) -> int:
        """Columns without a missing cell; they come first."""
        return int(np.count_nonzero(self.valid_slot < 0))

    def __len__(self) -> int:
        return len(self.block)

    def save(self, store: Store, name: str) -> None:
        """Write the catalogue where the tasks of a pass find it."""
        arrays = {key: np.asarray(value) for key, value in vars(self).items()}
        store.write_arrays(name, arrays)


def build_catalogue(
    columns: Mapping[str, tuple[int, StoredColumn]],
    n_rows: int,
    rows: NDArray[np.int64] | None = None,
) -> tuple[Catalogue, tuple[str, ...]]:
    """The catalogue of some stored columns and their names in its order.

    Parameters
    ----------
    columns
        Name -> (block number, where it lies in the block).
    n_rows
        Rows of the store.
    rows
        Sorted draw of rows to restrict the pass to.
    """
    order = sorted(
        columns,
        key=lambda name: (
            columns[name][1].valid_slot >= 0,
            columns[name][0],
            columns[name][1].slot,
        ),
    )
    stored = [columns[name] for name in order]
    patterns = {"": 0}
    for _, column in stored:
        patterns.setdefault(column.pattern, len(patterns))
    catalogue = Catalogue(
        n_stored=n_rows,
        block=np.array([block for block, _ in stored], dtype=np.int64),
        slot=np.array([column.slot for _, column in stored], dtype=np.int64),
        valid_slot=np.array([column.valid_slot for _, column in stored], dtype=np.int64),
        pattern=np.array([patterns[column.pattern] for _, column in stored], dtype=np.int64),
        n_valid=np.array([column.statistics.n_valid for _, column in stored], dtype=np.int64),
        rows=np.empty(0, dtype=np.int64) if rows is None else rows,
    )
    return catalogue, tuple(order)


@lru_cache(maxsize=4)
def load_catalogue(store: Store, name: str) -> Catalogue:
    """Read a catalogue (kept for the next task of the same pass)."""
    arrays = store.read_arrays(name)
    return Catalogue(n_stored=int(arrays.pop("n_stored")), **arrays)


def read_piece(
    store: Store, catalogue: Catalogue, columns: Sequence[int] | range, start: int, stop: int
) -> tuple[NDArray[np.float32], NDArray[np.bool_] | None]:
    """Scores and validity of some columns on the pass's rows `start` to `stop`.

    Returns
    -------
    scores
        (len(columns), stop - start) float32 centred ranks, 0 where missing.
    valid
        The same shape, bool; None when all of these columns are complete.
    """
    if len(catalogue.rows):
        wanted = catalogue.rows[start:stop]
        first, last = int(wanted[0]), int(wanted[-1]) + 1
        scores, valid = _read_rows(store, catalogue, columns, first, last)
        chosen = wanted - first
        return scores[:, chosen], None if valid is None else valid[:, chosen]
    return _read_rows(store, catalogue, columns, start, stop)


def _read_rows(
    store: Store, catalogue: Catalogue, columns: Sequence[int] | range, start: int, stop: int
) -> tuple[NDArray[np.float32], NDArray[np.bool_] | None]:
    index = np.asarray(columns, dtype=np.int64)
    scores = np.empty((len(index), stop - start), dtype=np.float32)
    incomplete = bool(np.any(catalogue.valid_slot[index] >= 0))
    first_byte, last_byte = start // 8, packed_length(stop)
    bits = np.full((len(index) if incomplete else 0, last_byte - first_byte), 255, dtype=np.uint8)
    for block in np.unique(catalogue.block[index]):
        places = np.flatnonzero(catalogue.block[index] == block)
        with store.reader(f"block-{block:05d}.f32") as reader:
            _fill_scores(reader, scores, places, catalogue.slot[index], start, catalogue.n_stored)
        masked = [place for place in places if catalogue.valid_slot[index[place]] >= 0]
        if masked:
            with store.reader(f"block-{block:05d}.bits") as reader:
                for place in masked:
                    slot = int(catalogue.valid_slot[index[place]])
                    reader.fill(bits[place], slot * packed_length(catalogue.n_stored) + first_byte)
    if not incomplete:
        return scores, None
    valid = np.unpackbits(bits, axis=1, count=None)[:, start - first_byte * 8 :]
    return scores, valid[:, : stop - start].astype(bool)


def _fill_scores(
    reader: _Reader,
    scores: NDArray[np.float32],
    places: NDArray[np.int64],
    slots: NDArray[np.int64],
    start: int,
    n_stored: int,
) -> None:
    """Fill rows `places` of `scores`; neighbours on disk over all rows come in one read."""
    whole = scores.shape[1] == n_stored
    cuts = np.flatnonzero((np.diff(places) != 1) | (np.diff(slots[places]) != 1)) + 1
    for run in np.split(places, cuts):
        if whole:
            reader.fill(scores[run[0] : run[-1] + 1], int(slots[run[0]]) * n_stored * 4)
        else:
            for place in run:
                reader.fill(scores[place], (int(slots[place]) * n_stored + start) * 4)
