"""All-pairs similarity of a table, without a selection.

Covers: one measure over all numeric columns, in memory or as a file; what columns tell of targets.
Does not cover: what is redundant (`dpipe.pipeline`).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from dpipe.common.npy import map_npy
from dpipe.engine.context import Context, Prepared
from dpipe.engine.grid import assemble, run_grid, settled_edges
from dpipe.engine.relevance import measure_relevance
from dpipe.errors import InputError
from dpipe.kernels.fusion import Fusion
from dpipe.kernels.measure import Settling
from dpipe.kernels.measures import public_measures
from dpipe.model.events import Emit, Event
from dpipe.model.records import Similarity, TargetRelevance
from dpipe.options import Options
from dpipe.options.kinds import expanded
from dpipe.passes import prepare
from dpipe.rankstore import temporary_store
from dpipe.runfolder import Files
from dpipe.session import use_session
from dpipe.table import as_sources, open_table, tell_notes


def similarity(
    sources: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    measure: str,
    *,
    options: Options | None = None,
    client: Any = None,
    observers: Sequence[Emit] = (),
    storage_options: Mapping[str, Any] | None = None,
    output: str | os.PathLike[str] | None = None,
) -> Similarity:
    """All-pairs similarity of a table's numeric columns.

    Parameters
    ----------
    sources
        Files, folders, globs or fsspec URLs.
    measure
        A public name in `dpipe.kernels.measures.MEASURES`.
    options
        ``min_valid``, ``missing``, ``precision``, what the measure reads, the session's options.
    client, observers, storage_options
        As in `run`.
    output
        A ``.npy`` file to assemble the matrix in, beside ``<stem>_columns.txt``; in memory when
        None.

    Returns
    -------
    Similarity
        (p, p) float32, NaN where a pair has no similarity; memory-mapped when `output` is given.

    Raises
    ------
    InputError, ResourceError
        As in `run`.
    """
    if measure not in public_measures():
        raise InputError(f"--measure is one of {', '.join(public_measures())}, not {measure!r}.")
    if output is not None and Path(output).suffix != ".npy":
        raise InputError(f"--output takes a file that ends in .npy, not {os.fspath(output)!r}.")
    with _ranked(sources, options or Options(min_valid=2), client, observers, storage_options) as (
        context,
        prepared,
        columns,
    ):
        options = context.options
        fusion = Fusion.single(measure)
        exact = fusion.settling is Settling.RERANKED and options.missing == "exact"
        grid = run_grid(
            context,
            prepared,
            columns,
            measure,
            fusion,
            threshold=np.inf if exact else None,  # pairs to be settled are edges, however weak
            exact=exact,
            min_valid=options.required_rows,
        )
        edges = settled_edges(context, grid) if exact else None
        if output is None:
            values = np.empty((len(columns), len(columns)), dtype=np.float32)
            assemble(context, grid, measure, columns, edges, values)
            return Similarity(values, columns)
        target = Path(expanded(output))
        folder = Files(target.parent.absolute(), manifest=False).create()
        with folder.write_matrix(target.stem, columns) as out:
            assemble(context, grid, measure, columns, edges, out)
        return Similarity(map_npy(target), columns)


def relevance(
    sources: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    options: Options,
    client: Any = None,
    observers: Sequence[Emit] = (),
    storage_options: Mapping[str, Any] | None = None,
) -> TargetRelevance:
    """How much every numeric column of a table tells of the targets that `options` names.

    Parameters
    ----------
    sources, client, observers, storage_options
        As in `run`.
    options
        ``target``, ``target_kind``, ``min_valid``, ``seed``, the session's options.

    Raises
    ------
    InputError, ResourceError
        As in `run`; and where no target is named.
    """
    if not options.target:
        raise InputError("no target was given; name the columns that are to be predicted.")
    with _ranked(sources, options, client, observers, storage_options) as ranked:
        return measure_relevance(*ranked)


@contextmanager
def _ranked(
    sources: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    options: Options,
    client: Any,
    observers: Sequence[Emit],
    storage_options: Mapping[str, Any] | None,
) -> Iterator[tuple[Context, Prepared, tuple[str, ...]]]:
    """An open session with the ranks of a table, and the numeric columns."""

    def emit(event: Event) -> None:
        for observer in observers:
            observer(event)

    opened = open_table(
        as_sources(sources), options=options, storage_options=storage_options, emit=emit
    )
    with ExitStack() as stack:
        table = stack.enter_context(opened)
        tell_notes(table, emit)
        options = options.resolved(table.n_rows)
        if table.n_rows < options.required_rows:
            raise InputError(
                f"the table has {table.n_rows:,} rows and a pair needs {options.required_rows:,} "
                "in common, so that no pair would have a similarity; lower --min-valid."
            )
        store = stack.enter_context(temporary_store(options.scratch_dir, table.storage_options))
        session = stack.enter_context(use_session(options, client, emit))
        context = Context(session, store, options, emit, table.n_rows)
        yield context, prepare.prepare(context, table, None), table.features
