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

    A page in the run folder joins the manifest where there is one; a manifest of the page alone
    would say of the other files that the run did not write them.

    Raises
    ------
    InputError
        When `target` is a folder, or lies in one that does not exist.
    ResourceError
        When the disk refuses.
    """
    target = check_target(target, "--output")
    run = RunFolder(folder)
    if target.parent.resolve() == run.path.resolve() and run.has_manifest():
        run.write_text(target.name, html)
    else:
        replace(target, html, "--output")
    return target


def check_target(target: str | os.PathLike[str], option: str) -> Path:
    """The absolute path of a page to write, which an option names.

    Raises
    ------
    InputError
        When it is a folder, or lies in one that does not exist.
    """
    path = Path(expanded(target)).absolute()
    if path.is_dir():
        raise InputError(f"{option} {path} is a folder; name a file, such as report.html.")
    if not path.parent.is_dir():
        raise InputError(f"there is no folder {path.parent} to write {path.name} to.")
    return path


def replace(target: Path, html: str, option: str) -> None:
    """A page that no manifest lists is never half written either."""
    try:
        with replacing(target, wait=False) as file:
            file.write(html.encode())
    except OSError as error:
        raise ResourceError(
            f"{target} cannot be written ({error.strerror or error}); choose another {option}."
        ) from error
