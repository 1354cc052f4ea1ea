"""Temporary folders that a killed process leaves to the next one to remove.

Covers: making such a folder, removing it, removing those of the same kind whose owner is dead; the
lock by which the living are known.
Does not cover: what is written there, the lock of a run folder (see `dpipe.runfolder.lock`).

A folder holds a file that its owner keeps locked. The system lets go of the lock whatever ends the
process, so a lock that can be had tells a dead owner. That is believed of this machine alone: some
file systems that machines share keep locks from one another, and do not say so.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import tempfile
import weakref
from contextlib import suppress
from functools import cache
from pathlib import Path

_OWNER = ".owner"
_BOOT = Path("/proc/sys/kernel/random/boot_id")


class OwnedFolder:
    """A folder that lives as long as this object, or as the process where nobody removes it.

    Parameters
    ----------
    prefix
        How its name begins. What dead processes of this user and this machine left beside it, under
        a name that begins so, goes before it is made.
    parent
        Where; made too if need be, and then removed after the folder if nothing else lies there.
        The system's temporary folder when None.

    Raises
    ------
    OSError
        When it cannot be made.

    Examples
    --------
    >>> folder = OwnedFolder("dpipe-example-")
    >>> os.path.isdir(folder.path)
    True
    >>> folder.remove()
    >>> os.path.isdir(folder.path)
    False
    """

    def __init__(self, prefix: str, parent: str | None = None) -> None:
        _remove_abandoned(prefix, parent or tempfile.gettempdir())
        made = [] if parent is None else _missing(Path(parent).absolute())
        for each in reversed(made):
            each.mkdir(exist_ok=True)
        self.path = os.path.abspath(tempfile.mkdtemp(prefix=prefix, dir=parent))
        self._remove = weakref.finalize(self, _remove, self.path, _own(self.path), made)

    def remove(self) -> None:
        """Remove it, if it is there."""
        self._remove()

    def __enter__(self) -> str:
        return self.path

    def __exit__(self, *_: object) -> None:
        self.remove()


def try_lock(descriptor: int) -> bool | None:
    """Lock an open file; whether the lock is ours, None where the file system knows no locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _own(folder: str) -> int | None:
    """Mark a folder as that of this process; the descriptor that holds the lock.

    The mark gets its name when it is locked, so nobody finds one that is not. Where there are no
    locks there is none, and nobody but the owner will remove the folder.
    """
    path = os.path.join(folder, _OWNER)
    with suppress(OSError):
        descriptor = os.open(f"{path}.new", os.O_RDWR | os.O_CREAT, 0o600)
        if try_lock(descriptor):
            os.write(descriptor, _machine().encode())
            os.rename(f"{path}.new", path)
            return descriptor
        os.close(descriptor)
        os.unlink(f"{path}.new")
    return None


def _missing(folder: Path) -> list[Path]:
    """The folder and those above it that do not exist, the lowest first."""
    return [each for each in (folder, *folder.parents) if not os.path.lexists(each)]


def _remove(path: str, descriptor: int | None, made: list[Path]) -> None:
    if descriptor is not None:
        os.close(descriptor)  # first: NFS keeps the folder of a file that is open
    shutil.rmtree(path, ignore_errors=True)
    with suppress(OSError):  # something else lies there now
        for each in made:
            each.rmdir()


def _remove_abandoned(prefix: str, parent: str) -> None:
    with suppress(OSError), os.scandir(parent) as entries:
        for entry in entries:
            if entry.name.startswith(prefix) and _is_abandoned(entry):
                shutil.rmtree(entry.path, ignore_errors=True)


def _is_abandoned(folder: os.DirEntry[str]) -> bool:
    """Whether a process of this user and this machine made a folder and is dead."""
    try:
        if folder.stat(follow_symlinks=False).st_uid != os.getuid():
            return False
        descriptor = os.open(os.path.join(folder.path, _OWNER), os.O_RDWR | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        return os.read(descriptor, 256) == _machine().encode() and try_lock(descriptor) is True
    except OSError:
        return False
    finally:
        os.close(descriptor)


@cache
def _machine() -> str:
    """What tells this machine, since it was started, from others; at least by its name."""
    try:
        return _BOOT.read_text().strip()
    except OSError:
        return socket.gethostname()
