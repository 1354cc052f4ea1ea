"""Files and folders that are whole or not there, whatever ends the process that writes them.

Covers: temporary names, the rename at the end, what is waited for.
Does not cover: what is said when a disk refuses (the callers know what for and which option helps),
files at a URL.

A file is written beside its target as ``.NAME.*.partial`` and renamed when it is complete. A crash
leaves the old file or the new one, and a temporary file that nobody takes for a result.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BufferedRandom
from pathlib import Path

PARTIAL = ".partial"
"""End of the names of what is not complete."""


@contextmanager
def replacing(target: str | os.PathLike[str], *, wait: bool) -> Iterator[BufferedRandom]:
    """A new binary file, which takes the place of `target` once the block ends well.

    Parameters
    ----------
    target
        In a folder that exists.
    wait
        Whether to wait until the file and its name are on the disk.

    Examples
    --------
    >>> import tempfile
    >>> target = Path(tempfile.mkdtemp()) / "a.txt"
    >>> with replacing(target, wait=False) as file:
    ...     _ = file.write(b"whole")
    >>> target.read_text(), len(list(target.parent.iterdir()))
    ('whole', 1)
    """
    path = Path(target)
    temporary = path.with_name(partial_name(path.name))
    file = open(temporary, "xb+")  # noqa: SIM115  closed below, error or not
    try:
        yield file
        file.flush()
        if wait:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        if wait:
            sync(path.parent)
    finally:
        # After a failed write both fail again, and have nothing new to say.
        with suppress(OSError):
            file.close()
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def partial_name(name: str) -> str:
    """A name that nobody else has for what will be called `name`."""
    return f".{name}.{uuid.uuid4().hex[:12]}{PARTIAL}"


def put_in_place(temporary: Path, target: Path) -> None:
    """Rename a complete file or folder; a folder that is there goes only after that worked."""
    aside = temporary.with_suffix(".replaced")
    if target.is_dir():
        target.rename(aside)
    try:
        os.replace(temporary, target)
    except OSError:
        if aside.exists():
            aside.rename(target)
        raise
    sync(target.parent)
    if aside.exists():
        shutil.rmtree(aside)


def sync(path: Path) -> None:
    """Wait until a file, or the list of names that a folder is, has reached the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
