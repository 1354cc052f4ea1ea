"""A temporary folder for what is not in Parquet files and has to be.

Covers: making it where there is room, and removing it.
Does not cover: what is written there (see `dpipe.table.inputs` and `dpipe.table.foreign`).
"""

from __future__ import annotations

import os
import tempfile

from dpipe.common.credentials import is_url
from dpipe.common.temporary import OwnedFolder
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
        self._parent = None if parent is None or is_url(parent) else expanded(parent)
        self._folder: OwnedFolder | None = None

    @property
    def path(self) -> str:
        """The folder.

        Raises
        ------
        ResourceError
            When it cannot be made.
        """
        if self._folder is None:
            try:
                self._folder = OwnedFolder(".dpipe-input-", self._parent)
            except OSError as error:
                where = self._parent or tempfile.gettempdir()
                raise ResourceError(
                    f"{where} cannot be written ({error.strerror}); "
                    "--scratch-dir names another place."
                ) from error
        return self._folder.path

    def remove(self) -> None:
        """Remove the folder, if it was made."""
        if self._folder is not None:
            self._folder.remove()


def part_of(folder: str, number: int) -> str:
    """The path of a Parquet file in such a folder."""
    return os.path.join(folder, f"part-{number:08d}.parquet")
