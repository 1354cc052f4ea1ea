"""The page of a finished run: one HTML file, offline, that says what became of every column.

Covers: `write_report`, which renders ``report.html`` from a run folder and nothing else.
Does not cover: computing anything (see `dpipe.pipeline`) or checking it (see `dpipe.verify`): the
page shows what the run recorded, and where a run recorded nothing the page says so.
See also: `dpipe.report.results` (what is read), `dpipe.report.words` (what is said in words),
`dpipe.report.figures` (what is drawn), `dpipe.report.page` (how it is put together).

The page is untrusted-input safe twice over. Names and texts of the run reach it as escaped HTML or
as JSON that the page's script puts into text nodes; and a content security policy lets only the
page's own scripts run, named by their checksums, and forbids every request.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dpipe.common.credentials import is_url
from dpipe.model.inventory import REPORT
from dpipe.report.page import render
from dpipe.report.results import read_results
from dpipe.report.write import write_page
from dpipe.runfolder import mirror

__all__ = ["write_report"]


def write_report(
    folder: str | os.PathLike[str],
    path: str | os.PathLike[str] | None = None,
    *,
    storage_options: Mapping[str, Any] | None = None,
) -> Path | str:
    """Render the page of a finished run.

    Parameters
    ----------
    folder
        The run folder, or a URL of one.
    path
        The page to write; ``report.html`` of the run folder when None. A page inside the run folder
        is listed in its manifest, if it has one, with its checksum.
    storage_options
        Passed to fsspec for a URL.

    Returns
    -------
    Path or str
        Where the page lies, a URL as text.

    Raises
    ------
    InputError
        When the folder holds no finished run, or one of its results cannot be read.
    ResourceError
        When the page cannot be written.

    Examples
    --------
    >>> import tempfile
    >>> from dpipe.model.records import Decision
    >>> from dpipe.runfolder import RunFolder
    >>> run = RunFolder(tempfile.mkdtemp())
    >>> run.write_decisions([Decision("MolWt", "double", 9, 0, 0, 0, 9, "kept", None,
    ...     "no similar column", None, None, None, None, None)])
    >>> run.write_selected(["MolWt"])
    >>> run.write_run({})
    >>> write_report(run.path).name
    'report.html'
    """
    if path is not None:
        with mirror.reading(folder, storage_options) as local:
            return write_page(local, Path(path), render(read_results(local)))
    with mirror.working(folder, storage_options) as (local, _):
        written = write_page(local, Path(local) / REPORT, render(read_results(local)))
    return f"{os.fspath(folder).rstrip('/')}/{REPORT}" if is_url(folder) else written
