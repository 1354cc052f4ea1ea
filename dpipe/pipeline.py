"""One run from files to a selection: the passes in order, their checkpoints, what they leave.

Covers: opening table and session, running or reusing each pass, restarting workers between passes,
the results and the ledger; the plan of a run that is not started.
Does not cover: the passes (`dpipe.passes`), showing progress (`dpipe.progress`), the page
(`dpipe.report`), checking a finished run (`dpipe.verify`).
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from dpipe.certificate import alternatives, decide
from dpipe.config import PASS_NAMES, Options
from dpipe.errors import InputError
from dpipe.model import (
    ColumnStatistics,
    Emit,
    Event,
    MemoryRead,
    MemoryReading,
    Note,
    PassDone,
    PassResult,
    PassStarted,
    RunStarted,
)
from dpipe.passes import nonlinear, prepare, spearman, vif
from dpipe.passes.context import Context, Prepared
from dpipe.passes.sample import sample
from dpipe.plan import Machine, Plan, check_disk, make_plan
from dpipe.rankstore import Store
from dpipe.runfolder import CHECKPOINT, Damaged, RunFolder, Stale
from dpipe.selection import Selection, TemporaryFolder
from dpipe.session import use_session
from dpipe.table import Table, as_sources, open_table

_PASSES: Mapping[int, Callable[[Context, Prepared, Sequence[str]], PassResult]] = {
    2: spearman.run,
    3: vif.run,
    4: nonlinear.run,
}
_RESTART_AFTER = (1, 3)  # what pass 1 leaves in the allocator, and pass 2 in the workers' caches
_RESULTS = (
    "selected.txt",
    "decisions.parquet",
    "decisions.csv",
    "communities.json",
    "run.json",
    "report.html",
    *(f"{name}{end}" for name in ("spearman", "hsic", "rdc") for end in (".npy", "_columns.txt")),
)


class _Journal:
    """Collects what a run says, for run.json."""

    def __init__(self, observers: Sequence[Emit]) -> None:
        self._observers = tuple(observers)
        self.notes: list[Note] = []
        self.readings: list[MemoryReading] = []
        self.passes: list[PassDone] = []

    def __call__(self, event: Event) -> None:
        if isinstance(event, Note):
            self.notes.append(event)
        elif isinstance(event, MemoryRead):
            self.readings.extend(event.readings)
        elif isinstance(event, PassDone):
            self.passes.append(event)
        for observer in self._observers:
            observer(event)


def run(
    sources: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    options: Options | None = None,
    *,
    output_dir: str | os.PathLike[str] | None = None,
    client: Any = None,
    observers: Sequence[Emit] = (),
    storage_options: Mapping[str, Any] | None = None,
) -> Selection:
    """Select columns of a Parquet table.

    Parameters
    ----------
    sources
        Files, folders, globs or fsspec URLs.
    options
        See `dpipe.config.Options`; the defaults when None.
    output_dir
        Run folder; a temporary one, gone with the result, when None.
    client
        Dask client, cluster or address to run on; with None an own session, unless options name
        a scheduler.
    observers
        Called with every event (see `dpipe.model`).
    storage_options
        Passed to fsspec; never written anywhere.

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
    journal = _Journal(observers)
    table = open_table(sources, options=options, storage_options=storage_options)
    folder = RunFolder(output_dir)
    with folder.lock():
        runner = _Run(table, options, folder, journal, client, dict(storage_options or {}))
        selection = runner.select(sources)
    return dataclasses.replace(selection, _temporary=temporary)


class _Run:
    """The state of one run while it lasts."""

    def __init__(
        self,
        table: Table,
        options: Options,
        folder: RunFolder,
        journal: _Journal,
        client: Any,
        storage_options: dict[str, Any],
    ) -> None:
        self.table = table
        self.options = options
        self.folder = folder
        self.emit = journal
        self._client = client
        self._storage_options = storage_options
        self._rows = sample(table, options)
        self.n_rows = table.n_rows if self._rows is None else len(self._rows)
        self._plan: Plan | None = None
        self._worked = False  # whether the workers hold something of an earlier pass

    def select(self, sources: Sequence[str]) -> Selection:
        for note in self.table.notes:
            self.emit(Note(note))
        for path, reason in self.table.skipped:
            self.emit(Note(f"left out {path}: {reason}", "warning"))
        if self.options.fresh:
            self.folder.clear_checkpoints()
        with ExitStack() as stack:
            context: Context | None = None
            prepared: Prepared | None = None
            results: list[PassResult] = []
            columns: tuple[str, ...] = self.table.features
            key = ""
            for number in sorted(self.options.passes):
                depends = self._depends(number, key)
                began = time.monotonic()
                reused = self._reusable(number, depends)
                self.emit(PassStarted(number, PASS_NAMES[number], len(columns)))
                if reused is not None:
                    result = reused
                else:
                    if context is None:
                        context = stack.enter_context(self._context())
                    if prepared is None:
                        prepared = self._prepare(context)
                    result = self._run_pass(context, number, prepared, columns)
                    self.folder.save_pass(number, depends, result)
                    context.store.remove(f"{PASS_NAMES[number]}-")
                key = self.folder.pass_key(number) or ""
                self.emit(
                    PassDone(
                        number,
                        PASS_NAMES[number],
                        len(columns),
                        len(result.kept),
                        time.monotonic() - began,
                        reused is not None,
                    )
                )
                columns = result.kept
                results.append(result)
        return self._finish(sources, results)

    # Passes

    def _depends(self, number: int, previous: str) -> dict[str, Any]:
        """All that the answer of a pass follows from."""
        shared = {"version": _version(), "input": self.table.fingerprint, "previous": previous}
        return shared | {
            f"options.{name}": value for name, value in self.options.affecting(number).items()
        }

    def _reusable(self, number: int, depends: Mapping[str, Any]) -> PassResult | None:
        found = self.folder.load_pass(number, depends)
        if isinstance(found, PassResult):
            matrices = _MATRICES.get(number, ())
            expected = 4 * len(found.kept) ** 2 <= self.options.matrix_budget
            if expected and not all((self.folder.path / name).exists() for name in matrices):
                return None
            self.emit(Note(f"pass {number} is taken from the run before."))
            return found
        if isinstance(found, Stale):
            changed = ", ".join(name.removeprefix("options.") for name in found.fields)
            self.emit(Note(f"pass {number} is done again, because {changed} changed."))
        elif isinstance(found, Damaged):
            self.emit(Note(f"pass {number} is done again: {found.reason}.", "warning"))
        return None

    def _prepare(self, context: Context) -> Prepared:
        rules = prepare.rules_of(self.options)
        prepared = prepare.prepare(context, self.table, rules, self._rows)
        statistics = [dataclasses.asdict(entry.statistics) for _, entry in prepared.values()]
        self.folder.write_json(_STATISTICS, {"columns": statistics})
        return prepared

    def _run_pass(
        self, context: Context, number: int, prepared: Prepared, columns: Sequence[str]
    ) -> PassResult:
        if number == 1:
            result = prepare.decide(prepared, columns, self.options)
        elif not columns:  # an earlier pass left nothing: there are no tiles to compute
            result = PassResult(number, PASS_NAMES[number], (), ())
        else:
            result = _PASSES[number](context, prepared, columns)
        self.emit(MemoryRead(context.session.read_memory("after", number)))
        later = [other for other in self.options.passes if other > number]
        if number in _RESTART_AFTER and later:
            self.emit(MemoryRead(context.session.recycle(number)))
        return result

    # Session and scratch

    @contextmanager
    def _context(self) -> Iterator[Context]:
        with ExitStack() as stack:
            session = stack.enter_context(use_session(self.options, self._client, self.emit))
            context = Context(
                session=session,
                store=self._store(),
                options=self.options,
                emit=self.emit,
                n_rows=self.n_rows,
                folder=self.folder,
                storage_options=self._storage_options,
            )
            self._plan = self._checked_plan(context)
            self.emit(
                RunStarted(
                    n_rows=self.n_rows,
                    n_features=len(self.table.features),
                    n_workers=session.n_workers,
                    device=session.device,
                    dashboard=session.dashboard,
                    memory_limit=session.memory_limit,
                    n_tasks=sum(planned.tasks for planned in self._plan.passes),
                    worker_bytes=max(planned.worker_bytes for planned in self._plan.passes),
                    scratch_bytes=self._plan.scratch_bytes,
                )
            )
            self.emit(MemoryRead(session.read_memory("start", 0)))
            yield context
            if not self.options.checkpoint:
                context.store.remove()

    def _store(self) -> Store:
        """The rank store of this input and these pass-1 options."""
        depends = json.dumps(self._depends(1, ""), sort_keys=True, default=str)
        name = f"ranks-{hashlib.sha256(depends.encode()).hexdigest()[:16]}"
        parent = self.options.scratch_dir or str(self.folder.path / CHECKPOINT)
        if not self.options.scratch_dir:
            for old in (self.folder.path / CHECKPOINT).glob("ranks-*"):
                if old.name != name:
                    shutil.rmtree(old, ignore_errors=True)
        store = Store(f"{parent}/{name}", self._storage_options if "://" in parent else None)
        if self.options.fresh:
            store.remove()
        return store

    def _checked_plan(self, context: Context) -> Plan:
        n_features = len(self.table.features)
        plan = make_plan(self.n_rows, n_features, self.options, context.machine)
        root = context.store.root
        if "://" not in root and not context.store.names():
            parent = Path(root).parent
            parent.mkdir(parents=True, exist_ok=True)
            check_disk(plan, shutil.disk_usage(parent).free, str(parent))
        return plan

    # Results

    def _finish(self, sources: Sequence[str], results: Sequence[PassResult]) -> Selection:
        selected = results[-1].kept
        stored = self.folder.read_json(_STATISTICS)["columns"]
        statistics = [ColumnStatistics(**entry) for entry in stored]
        decisions = decide(self.table.columns, statistics, results, self.options.keep)
        communities = alternatives(selected, results)
        self.folder.write_selected(selected)
        self.folder.write_decisions(decisions)
        self.folder.write_communities(communities)
        self.folder.write_run(self._record(sources, results))
        self._drop_old_results()
        self._render_page()
        return Selection(
            selected, decisions, communities, tuple(self.emit.readings), self.folder.path
        )

    def _render_page(self) -> None:
        """Render the report; a page that fails to render must not cost a finished run."""
        from dpipe.report import write_report

        try:
            write_report(self.folder.path)
        except Exception as error:
            self.emit(
                Note(
                    f"the page could not be rendered ({error}); the results are complete, and "
                    f"`dpipe report {self.folder.path}` tries again.",
                    "warning",
                )
            )

    def _drop_old_results(self) -> None:
        """Matrices of a pass that this run did not ask for are not of this run."""
        unwanted = {
            name
            for number, names in _MATRICES.items()
            if number not in self.options.passes
            for name in names
        }
        self.folder.prune_results(name for name in _RESULTS if name not in unwanted)

    def _record(self, sources: Sequence[str], results: Sequence[PassResult]) -> dict[str, Any]:
        return {
            "versions": _versions(),
            "options": dataclasses.asdict(self.options),
            "input": {
                # Absolute, so that `dpipe verify` finds them from any folder.
                "sources": [s if "://" in s else os.path.abspath(s) for s in sources],
                "fingerprint": self.table.fingerprint,
                "files": [file.path for file in self.table.files],
                "rows": self.table.n_rows,
                "rows_used": self.n_rows,
                "features": len(self.table.features),
                "columns": len(self.table.columns),
                "skipped": [list(entry) for entry in self.table.skipped],
            },
            "seeds": {"seed": self.options.seed, "rdc_seeds": self.options.rdc_seeds},
            "plan": None if self._plan is None else dataclasses.asdict(self._plan),
            "passes": [dataclasses.asdict(done) for done in self.emit.passes],
            "near_threshold": {
                str(result.number): [list(pair) for pair in result.near_threshold]
                for result in results
            },
            "ledger": [dataclasses.asdict(reading) for reading in self.emit.readings],
            "notes": [dataclasses.asdict(note) for note in self.emit.notes],
        }


_STATISTICS = f"{CHECKPOINT}/statistics.json"
_MATRICES: Mapping[int, tuple[str, ...]] = {
    2: ("spearman.npy", "spearman_columns.txt"),
    4: ("hsic.npy", "hsic_columns.txt", "rdc.npy", "rdc_columns.txt"),
}


def plan_run(
    sources: Sequence[str] | None,
    options: Options,
    *,
    rows: int | None = None,
    columns: int | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> Plan:
    """The plan of a run on an own session of this machine, without starting anything.

    Raises
    ------
    InputError
        When neither files nor a shape are given.
    ResourceError
        When the run cannot fit.
    """
    if sources:
        table = open_table(sources, options=options, storage_options=storage_options)
        drawn = sample(table, options)
        rows = table.n_rows if drawn is None else len(drawn)
        columns = len(table.features)
    if not rows or not columns:
        raise InputError("give Parquet files, or both --rows and --columns.")
    workers = options.workers or os.cpu_count() or 1
    limit = options.memory_limit or _own_memory() // workers
    return make_plan(rows, columns, options, Machine(workers, options.threads_per_worker, limit))


def _own_memory() -> int:
    import psutil

    return int(psutil.virtual_memory().total)


def _version() -> str:
    return importlib.metadata.version("dpipe")


def _versions() -> dict[str, str]:
    names = ("dpipe", "numpy", "pyarrow", "dask", "distributed", "igraph")
    return {"python": platform.python_version()} | {
        name: importlib.metadata.version(name) for name in names
    }
