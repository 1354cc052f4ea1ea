"""A store: named files in a folder, on this machine or at any fsspec URL.

Covers: whole files or none, arrays and JSON in them, reading a part of one, removing.
Does not cover: which files there are (the modules beside this one).
"""

from __future__ import annotations

import io
import json
import os
import uuid
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
from numpy.typing import NDArray

from dpipe.common.atomic import PARTIAL, replacing
from dpipe.common.credentials import Secrets, is_url, safe_reason
from dpipe.common.npy import read_npz
from dpipe.common.temporary import OwnedFolder
from dpipe.errors import InputError, ResourceError


class Store:
    """A folder of small named files, local or remote.

    Parameters
    ----------
    root
        Local path or fsspec URL.
    storage_options
        Passed to fsspec for a URL, and carried for the tasks that read the input; never written
        anywhere.
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
        live = {"use_listings_cache": False, **self.storage_options} if is_url(root) else {}
        try:
            self._fs, self._path = fsspec.core.url_to_fs(root, **live)
        except Exception as error:  # whatever the storage library of this URL raises
            reason = safe_reason(error, self.storage_options)
            raise InputError(f"cannot store ranks at {root} ({reason}).") from None
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
            paths = os.listdir(path) if self.local else self._fs.ls(path, detail=False)
        entries = [entry.rsplit("/", 1)[-1] for entry in paths]
        return {entry for entry in entries if not entry.endswith(PARTIAL)}

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
                f"{self.root} cannot be reached ({safe_reason(error, self.storage_options)}); "
                "run the same command again to continue."
            ) from None

    def write(self, name: str, *parts: Any, wait: bool = True) -> None:
        """Write buffers one after the other as the file `name`, whole or not at all.

        A reader that can tell whether the content is whole lets a durable store not `wait` for
        the disk.
        """
        target = self.path(name)
        try:
            self._fs.makedirs(os.path.dirname(target), exist_ok=True)
            if self.local:
                with replacing(target, wait=wait and self.durable) as file:
                    file.writelines(parts)
            else:
                self._write_remote(target, parts)
        except Exception as error:
            if self.local and not isinstance(error, OSError):
                raise
            reason = getattr(error, "strerror", None) or safe_reason(error, self.storage_options)
            raise ResourceError(
                f"could not write {target} ({reason}); make room or choose "
                "another --scratch-dir, then run the same command again to continue."
            ) from None

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
                return read_npz(file if self.local else io.BytesIO(file.read()))
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
            for leftover in Path(self._path).rglob(f"*{PARTIAL}"):
                leftover.unlink(missing_ok=True)

    def size(self, name: str) -> int:
        """Bytes of a finished file."""
        with self._reaching():
            return int(self._fs.size(self.path(name)))

    @contextmanager
    def reader(self, name: str) -> Iterator[Reader]:
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


class Reader:
    """A file of a store that is open for reading parts of it."""

    def fill(self, buffer: NDArray[Any], offset: int) -> None:
        """Fill a contiguous array with the bytes at `offset`."""
        raise NotImplementedError


class _LocalReader(Reader):
    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def fill(self, buffer: NDArray[Any], offset: int) -> None:
        view = bytes_of(buffer)
        while len(view):  # a single read stops at 2 GiB
            got = os.preadv(self._descriptor, [view], offset)
            if got == 0:
                raise ResourceError("a file of the rank store ends early; run again with --fresh.")
            view, offset = view[got:], offset + got


class _RemoteReader(Reader):
    def __init__(self, file: Any) -> None:
        self._file = file

    def fill(self, buffer: NDArray[Any], offset: int) -> None:
        self._file.seek(offset)
        view = bytes_of(buffer)
        view[:] = self._file.read(len(view))


def bytes_of(array: NDArray[Any]) -> memoryview:
    """The memory of a contiguous array as bytes, not copied."""
    return array.reshape(-1).view(np.uint8).data


@contextmanager
def temporary_store(parent: str | None, storage_options: Mapping[str, Any]) -> Iterator[Store]:
    """A store for the time of one call, in a folder of its own below `parent`."""
    if parent is None or not is_url(parent):
        with OwnedFolder("dpipe-ranks-", parent) as folder:
            yield Store(folder, storage_options, durable=False)
        return
    store = Store(f"{parent.rstrip('/')}/dpipe-{uuid.uuid4().hex}", storage_options)
    try:
        yield store
    finally:
        store.remove()
