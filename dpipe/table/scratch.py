"""A temporary folder for what is not in Parquet files and has to be.

Covers: making it where there is room, and removing it.
Does not cover: what is written there (see `dpipe.table.inputs` and `dpipe.table.foreign`).
"""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from contextlib import suppress

from dpipe.errors import ResourceError
from dpipe.options.kinds import expanded


class Scratch:
    """A folder that is made when it is asked for and lives as long as this object.

    Parameters
    ----------
    parent
        Where to make it, made too if need be; the system's temporary folder when None, or a URL.
    """

    def __init__(self, parent: str | os.PathLike[str] | None) -> None:
        is_here = parent is not None and "://" not in os.fspath(parent)
        self._parent = expanded(os.fspath(parent)) if is_here and parent is not None else None
        self._path: str | None = None
        self._remove: weakref.finalize[..., Scratch] | None = None

    @property
    def path(self) -> str:
        """The folder.

        Raises
        ------
        ResourceError
            When it cannot be made.
        """
        if self._path is None:
            parent = self._parent
            made = parent if parent is not None and not os.path.exists(parent) else None
            try:
                if parent is not None:
                    os.makedirs(parent, exist_ok=True)
                self._path = os.path.abspath(tempfile.mkdtemp(prefix=".dpipe-input-", dir=parent))
            except OSError as error:
                raise ResourceError(
                    f"{parent or tempfile.gettempdir()} cannot be written ({error.strerror}); "
                    "--scratch-dir names another place."
                ) from error
            self._remove = weakref.finalize(self, _remove, self._path, made)
        return self._path

    def remove(self) -> None:
        """Remove the folder, if it was made."""
        if self._remove is not None:
            self._remove()


def part_of(folder: str, number: int) -> str:
    """The path of a Parquet file in such a folder."""
    return os.path.join(folder, f"part-{number:08d}.parquet")


def _remove(path: str, parent: str | None) -> None:
    shutil.rmtree(path, ignore_errors=True)
    if parent is not None:  # it was made for this folder alone, unless something lies there now
        with suppress(OSError):
            os.rmdir(parent)
