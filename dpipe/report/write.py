"""Where the page goes: whole or not at all.

Covers: a page inside the run folder, listed in its manifest, and a page anywhere else.
Does not cover: what is in it (see `dpipe.report.page`).
"""

from __future__ import annotations

import os
from pathlib import Path

from dpipe.common.atomic import replacing
from dpipe.errors import InputError, ResourceError
from dpipe.options.kinds import expanded
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
    target = Path(expanded(target)).absolute()
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
    try:
        with replacing(target, wait=False) as file:
            file.write(html.encode())
    except OSError as error:
        raise ResourceError(
            f"{target} cannot be written ({error.strerror or error}); choose another --output."
        ) from error
