"""Where the page goes: whole or not at all.

Covers: a page inside the run folder, listed in its manifest, and a page anywhere else.
Does not cover: what is in it (see `dpipe.report.page`).
"""

from __future__ import annotations

import os
import uuid
from pathlib import Path

from dpipe.errors import InputError, ResourceError
from dpipe.runfolder import RunFolder


def write_page(folder: str | os.PathLike[str], target: Path, html: str) -> Path:
    """Write the page to `target` and return its absolute path.

    Raises
    ------
    InputError
        When `target` is a folder, or lies in one that does not exist.
    ResourceError
        When the disk refuses.
    """
    target = target.absolute()
    if target.is_dir():
        raise InputError(f"--output {target} is a folder; name a file, such as report.html.")
    if not target.parent.is_dir():
        raise InputError(f"there is no folder {target.parent} to write {target.name} to.")
    run = RunFolder(folder)
    if target.parent.resolve() == run.path.resolve():
        run.write_text(target.name, html)
    else:
        _replace(target, html)
    return target


def _replace(target: Path, html: str) -> None:
    """A page outside the run folder has no manifest, but is never half written either."""
    partial = target.parent / f".{target.name}.{uuid.uuid4().hex[:8]}.partial"
    try:
        partial.write_text(html, encoding="utf-8")
        os.replace(partial, target)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise ResourceError(
            f"{target} cannot be written ({error.strerror or error}); choose another --output."
        ) from error
