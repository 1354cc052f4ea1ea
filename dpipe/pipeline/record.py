"""What a finished run leaves: decisions, communities, the reduced table, run.json, the page.

Covers: writing the results of a run, removing those of a run before, rendering the page.
Does not cover: how a file is written (`dpipe.runfolder`), what the page shows (`dpipe.report`).
"""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dpipe.choice.certificate import alternatives, decide
from dpipe.common.credentials import is_url
from dpipe.engine.measures import fusion_of
from dpipe.kernels.fusion import Fusion
from dpipe.kernels.measure import Measure
from dpipe.kernels.ranks import implementation
from dpipe.model.events import Emit, Note
from dpipe.model.inventory import SINGLE_RESULTS
from dpipe.model.records import PassResult
from dpipe.model.registry import PASSES
from dpipe.options import Options
from dpipe.pipeline.resume import version
from dpipe.runfolder import RunFolder
from dpipe.selection import Selection
from dpipe.table import Table, conflicting, copy_columns
from dpipe.watch.journal import Journal, plain_fault


@dataclass(frozen=True)
class Finished:
    """A run whose passes are done.

    Attributes
    ----------
    table, options, folder, journal
        As the run had them.
    sources
        What the caller named as input.
    results
        Of every pass, in order.
    files
        Names of what the passes left, now or in a run before: matrices, statistics.
    n_rows
        Rows that took part.
    plan
        The plan of the newest pass that was computed, None when none ever was.
    """

    table: Table
    options: Options
    folder: RunFolder
    journal: Journal
    sources: tuple[str, ...]
    results: tuple[PassResult, ...]
    files: tuple[str, ...]
    n_rows: int
    plan: dict[str, Any] | None


def write_results(run: Finished) -> Selection:
    """Write all results but the page, and remove those of a run before."""
    folder = run.folder
    selected = run.results[-1].kept
    statistics = folder.read_statistics()
    decisions = decide(run.table.columns, statistics, run.results, run.options.keep)
    communities = alternatives(selected, run.results)
    folder.write_selected(selected)
    folder.write_decisions(decisions)
    folder.write_communities(communities)
    folder.join_pairs(result.number for result in run.results if result.kept or result.drops)
    _write_table(run, [d.column for d in decisions if d.decision != "dropped"])
    folder.write_run(_record(run))
    folder.prune_results({*SINGLE_RESULTS, *run.files, *run.journal.files})
    readings = tuple(run.journal.readings)
    return Selection(selected, decisions, communities, readings, folder.path)


def _write_table(run: Finished, columns: Sequence[str]) -> None:
    """Leave the reduced table when it is asked for, and none of an earlier run."""
    left_out: tuple[str, ...] = ()
    if run.options.write_table:
        left_out = conflicting(run.table, columns)
    for name in left_out:
        run.journal(
            Note(
                f"column {name!r} is not in the reduced table: its types conflict between files.",
                "warning",
            )
        )
    columns = [name for name in columns if name not in left_out]
    if run.options.write_table and columns:
        target = run.folder.claim_table()
        run.folder.record_table(copy_columns(run.table, columns, target, overwrite=True))
    else:
        run.folder.remove_table()


def _record(run: Finished) -> dict[str, Any]:
    """What ``run.json`` holds, in records and lists that `dpipe.common.plain` knows."""
    table, options, journal = run.table, run.options, run.journal
    return {
        "versions": _versions(options),
        "ranking": implementation(),
        "options": options,
        "input": {
            # Absolute, so that `dpipe verify` finds them from any folder.
            "sources": [s if is_url(s) else os.path.abspath(s) for s in run.sources],
            "fingerprint": table.fingerprint,
            "files": [file.named for file in table.files],
            "rows": table.n_rows,
            "rows_used": run.n_rows,
            "features": len(table.features),
            "columns": len(table.columns),
            "skipped": table.skipped,
        },
        "seeds": {"seed": options.seed, "rdc_seeds": options.rdc_seeds},
        "measures": _measures(options),
        "plan": run.plan,
        "passes": journal.passes,
        "near_threshold": {done.number: done.near_threshold for done in run.results},
        "order": [name for done in run.results for name in done.order],
        "returned": [name for done in run.results for name in done.returned],
        "chosen": [step for done in run.results for step in done.chosen],
        "ledger": journal.readings,
        "notes": journal.notes,
        "faults": [plain_fault(fault) for fault in journal.faults],
    }


def _measures(options: Options) -> dict[str, dict[str, Any]]:
    """How a reader knows the measures of the run and the mean that decides: title, symbol, sign."""
    labelled: dict[str, dict[str, Any]] = {}
    for number, entry in PASSES.items():
        if not entry.measures_pairs:
            continue
        fusion = fusion_of(entry, options)
        known: tuple[Fusion | Measure, ...] = (fusion, *fusion.measures)
        for each in known:
            labels = {name: getattr(each, name) for name in ("title", "symbol", "signed")}
            labelled.setdefault(each.name, {**labels, "pass": number})
    return labelled


def render_page(folder: RunFolder, emit: Emit) -> None:
    """Render the report; a page that fails to render must not cost a finished run."""
    from dpipe.report import write_report

    try:
        write_report(folder.path)
    except Exception as error:
        emit(
            Note(
                f"the page could not be rendered ({error}); the results are complete, and "
                f"`dpipe report {folder.path}` tries again.",
                "warning",
            )
        )


def _versions(options: Options) -> dict[str, str]:
    names = dict.fromkeys(
        ("dpipe", "numpy", "pyarrow", "dask", "distributed", "igraph", options.leiden)
    )
    return {"python": platform.python_version()} | {name: version(name) for name in names}
