"""The lock of a run folder: one run at a time.

Covers: taking and releasing a lock file that a dead process does not hold on to.
Does not cover: what the folder holds (`dpipe.runfolder.RunFolder`).
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
from pathlib import Path

import psutil

from dpipe.common.temporary import try_lock
from dpipe.errors import InputError


def take_lock(path: Path) -> int:
    """Lock `path`; an open descriptor that holds the lock.

    Where the file system knows locks, a dead run holds none and its file means nothing. Elsewhere
    the process named in the file decides; two runs that start in the same instant may then both
    pass.

    Raises
    ------
    InputError
        When another process holds it, or the file cannot be opened.
    """
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise InputError(
                f"the lock {path} cannot be opened ({error.strerror}); choose another --output-dir."
            ) from error
        try:
            held = try_lock(descriptor)
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


def release_lock(path: Path, descriptor: int) -> None:
    """Remove the file first: whoever opens it meanwhile sees that it is gone, and tries again."""
    # Where the folder became read-only the file stays, and means nothing without the lock.
    with contextlib.suppress(OSError):
        path.unlink()
    os.close(descriptor)


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
