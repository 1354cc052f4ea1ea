"""One run from files to a selection: the passes in order, their checkpoints, what they leave.

Covers: `run` and `plan_run`, the two things to do with a table. The driver of the passes is
`dpipe.pipeline.driver`, what a run takes over from the one before `dpipe.pipeline.resume`, what it
leaves `dpipe.pipeline.record`, the plan of a run that is not started `dpipe.pipeline.preview`.
Does not cover: the passes (`dpipe.passes`), showing progress (`dpipe.watch.terminal`), the page
(`dpipe.report`), checking a finished run (`dpipe.verify`).
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

from dpipe.model import Emit
from dpipe.options import Options
from dpipe.pipeline.driver import Run
from dpipe.pipeline.preview import plan_run
from dpipe.pipeline.record import render_page
from dpipe.runfolder import RunFolder
from dpipe.selection import Selection, TemporaryFolder
from dpipe.table import as_sources, open_table
from dpipe.watch.journal import Journal

__all__ = ["plan_run", "run"]


def run(
    sources: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    options: Options | None = None,
    *,
    output_dir: str | os.PathLike[str] | None = None,
    client: Any = None,
    observers: Sequence[Emit] = (),
    storage_options: Mapping[str, Any] | None = None,
    mirrors: str | None = None,
) -> Selection:
    """Select columns of a Parquet table.

    Parameters
    ----------
    sources
        Files, folders, globs or fsspec URLs.
    options
        See `dpipe.options.Options`; the defaults when None.
    output_dir
        Run folder; a temporary one, gone with the result and without a page, when None.
    client
        Dask client, cluster or address to run on; with None an own session, unless options name
        a scheduler.
    observers
        Called with every event (see `dpipe.model`).
    storage_options
        Passed to fsspec; never written anywhere.
    mirrors
        URL that `output_dir` is a local copy of (see `dpipe.runfolder.mirror`); names the rank
        store.

    Returns
    -------
    Selection

    Raises
    ------
    InputError
        For bad input or options.
    ResourceError
        When memory, disk or the cluster do not suffice; the run can then be continued.
    """
    options = options or Options()
    sources = as_sources(sources)
    temporary = None
    if output_dir is None:
        temporary = TemporaryFolder()
        output_dir = temporary.path
    folder = RunFolder(output_dir, mirrors=mirrors, temporary=temporary is not None)
    journal = Journal(folder, observers)
    table = open_table(sources, options=options, storage_options=storage_options)
    with folder.lock():
        selection = Run(table, options, folder, journal, client).select(sources)
        if not folder.temporary:
            render_page(folder, journal)
    return dataclasses.replace(selection, _temporary=temporary)
