"""One run from files to a selection: the passes in order, their checkpoints, what they leave.

Covers: `run`, `plan_run`, `apply` and `transfer`. The driver of the passes is
`dpipe.pipeline.driver`, what a run takes over from the one before `dpipe.pipeline.resume`, what it
leaves `dpipe.pipeline.record`, the plan of a run that is not started `dpipe.pipeline.preview`, new
data reduced by a finished run `dpipe.pipeline.apply`, and judged `dpipe.pipeline.transfer`.
Does not cover: the passes (`dpipe.passes`), showing progress (`dpipe.watch.terminal`), the page
(`dpipe.report`), checking a finished run (`dpipe.verify`).
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

from dpipe.choice.communities import check_library
from dpipe.common.credentials import is_url
from dpipe.engine.machine import LIMITS, Limits
from dpipe.engine.measures import fusion_of
from dpipe.model.events import Emit
from dpipe.model.inventory import CHECKPOINT
from dpipe.model.registry import PASSES
from dpipe.options import Options
from dpipe.pipeline.apply import apply
from dpipe.pipeline.driver import Run
from dpipe.pipeline.preview import plan_run
from dpipe.pipeline.record import render_page
from dpipe.pipeline.transfer import transfer
from dpipe.runfolder import RunFolder, mirror
from dpipe.selection import Selection, TemporaryFolder
from dpipe.session import current_client
from dpipe.table import as_sources, open_table
from dpipe.watch.journal import Journal

__all__ = ["apply", "plan_run", "run", "transfer"]


def run(
    sources: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    options: Options | None = None,
    *,
    output_dir: str | os.PathLike[str] | None = None,
    client: Any = None,
    observers: Sequence[Emit] = (),
    storage_options: Mapping[str, Any] | None = None,
    limits: Limits = LIMITS,
) -> Selection:
    """Select columns of a table.

    Parameters
    ----------
    sources
        Files, folders, globs or fsspec URLs.
    options
        See `dpipe.options.Options`; the defaults when None.
    output_dir
        Run folder, or a URL for it, which is worked on in a copy that goes with the result; a
        temporary folder, without a page, when None.
    client
        Dask client, cluster or address to run on; with None an own session, unless options name
        a scheduler.
    observers
        Called with every event (see `dpipe.model.records`).
    storage_options
        Passed to fsspec; never written anywhere.
    limits
        Bounds of tiles, for a test of many small ones.

    Returns
    -------
    Selection

    Raises
    ------
    InputError
        For bad input or options.
    ResourceError
        When the cluster is lost, or memory or disk is not enough; the run can then be continued.
    """
    options = options or Options()
    for entry in PASSES.values():
        if entry.weights:
            fusion_of(entry, options)  # what cannot be fused is refused before anything is read
    check_library(options.leiden)
    sources = as_sources(sources)
    target = "" if output_dir is None else os.fspath(output_dir)
    mirrors = target if is_url(target) else None
    # What is read from the folder of the result lives as long as the result.
    temporary = TemporaryFolder() if output_dir is None or mirrors else None
    into = None if temporary is None else temporary.path
    if mirrors and options.scratch_dir is None and _are_elsewhere(mirrors, options, client):
        options = options.replace(scratch_dir=f"{mirrors.rstrip('/')}/{CHECKPOINT}")
    where = target if into is None else target or into
    with mirror.working(where, storage_options, into=into) as (local, send):
        folder = RunFolder(local, mirrors=mirrors, temporary=output_dir is None)
        folder.check_place()  # before text is made into Parquet, which may take long
        journal = Journal(folder, (*observers, send))
        table = open_table(
            sources,
            options=options,
            storage_options=storage_options,
            scratch=local,
            emit=journal,
        )
        with folder.lock():
            selection = Run(table, options, folder, journal, client, limits).select(sources)
            if not folder.temporary:
                render_page(folder, journal)
    return dataclasses.replace(selection, _temporary=temporary)


def _are_elsewhere(url: str, options: Options, client: Any) -> bool:
    """Whether workers may be on machines that do not see the copy of a run folder at a URL."""
    attached = client or options.scheduler or options.scheduler_file or current_client()
    # What lies at memory:// is of this process alone, so that workers see the copy if anything.
    return attached is not None and not url.startswith("memory://")
