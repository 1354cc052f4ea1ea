"""One run from files to a selection: the passes in order, their checkpoints, what they leave.

Covers: opening table and session, running or reusing each pass, restarting workers between passes,
the results and the ledger; the plan of a run that is not started.
Does not cover: the passes (`dpipe.passes`), showing progress (`dpipe.watch.terminal`), the page
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
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from dpipe.choice.certificate import alternatives, decide
from dpipe.credentials import Secrets
from dpipe.engine.context import Context, Prepared
from dpipe.engine.plan import Machine, Plan, check_disk, make_plan
from dpipe.errors import InputError, ResourceError
from dpipe.model import (
    ColumnStatistics,
    Emit,
    MemoryRead,
    Note,
    PassDone,
    PassResult,
    PassStarted,
    PlannedPass,
    RunStarted,
)
from dpipe.options import PASS_NAMES, Options
from dpipe.passes import nonlinear, prepare, spearman, vif
from dpipe.rankstore import Store
from dpipe.runfolder import CHECKPOINT, LOCK, Damaged, RunFolder, Stale
from dpipe.selection import Selection, TemporaryFolder
from dpipe.session import use_session
from dpipe.session.device import own_machine
from dpipe.table import Table, as_sources, conflicting, copy_columns, open_table
from dpipe.table.sample import nonlinear_sample, sample
from dpipe.watch.board import Board, page
from dpipe.watch.journal import Journal, plain_fault
from dpipe.watch.scheduler import RECORDS, page_link, recorded, shown

_PASSES: Mapping[int, Callable[[Context, Prepared, Sequence[str]], PassResult]] = {
    2: spearman.run,
    3: vif.run,
    4: nonlinear.run,
}
_RESULTS = (
    "selected.txt",
    "decisions.parquet",
    "decisions.csv",
    "communities.json",
    "run.json",
    "report.html",
    *RECORDS,
    *(
        f"{name}{end}"
        for name in ("spearman", "hsic", "rdc", "rank_sample")
        for end in (".npy", "_columns.txt")
    ),
)


def run(
    sources: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    options: Options | None = None,
    *,
    output_dir: str | os.PathLike[str] | None = None,
    client: Any = None,
    observers: Sequence[Emit] = (),
    storage_options: Mapping[str, Any] | None = None,
    address: str | None = None,
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
    address
        Of what `output_dir` is the copy of this machine (see `dpipe.runfolder.mirror`);
        `output_dir` itself when None. Names the ranks in a scratch folder, so that a
        later run finds them.

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
    folder = RunFolder(output_dir)
    board = Board()
    journal = Journal(folder, (*observers, board))
    table = open_table(sources, options=options, storage_options=storage_options)
    with folder.lock():
        runner = _Run(
            table,
            options,
            folder,
            journal,
            board,
            client,
            Secrets(storage_options),
            address or str(folder.path),
            keeps_record=temporary is None,
        )
        selection = runner.select(sources)
        if temporary is None:
            _render_page(folder, journal)
    return dataclasses.replace(selection, _temporary=temporary)


class _Run:
    """The state of one run while it lasts."""

    def __init__(
        self,
        table: Table,
        options: Options,
        folder: RunFolder,
        journal: Journal,
        board: Board,
        client: Any,
        storage_options: Secrets,
        address: str,
        *,
        keeps_record: bool,
    ) -> None:
        self.table = table
        self.options = options
        self.folder = folder
        self.emit = journal
        self._keeps_record = keeps_record  # whether somebody will read what Dask recorded
        self._board = board
        self._client = client
        self._storage_options = storage_options
        self._address = address
        self._rows = sample(table, options)
        self.n_rows = table.n_rows if self._rows is None else len(self._rows)
        self._plan: dict[str, Any] | None = None  # of the run before while no session is open

    def select(self, sources: Sequence[str]) -> Selection:
        for note in self.table.notes:
            self.emit(Note(note, "notice"))
        for path, reason in self.table.skipped:
            self.emit(Note(f"left out {path}: {reason}", "warning"))
        if self.options.write_table:
            self.folder.claim_table()  # refused now rather than after hours
        if self.options.fresh:
            self.folder.checkpoints.clear()
        try:
            return self._finish(sources, self._passes())
        finally:
            if not self.options.checkpoint:
                with suppress(OSError):
                    self.folder.checkpoints.clear()

    # Passes

    def _passes(self) -> list[PassResult]:
        """Run or reuse each pass."""
        with ExitStack() as stack:
            context: Context | None = None
            prepared: Prepared | None = None
            results: list[PassResult] = []
            columns: tuple[str, ...] = self.table.features
            key = ""
            for number in sorted(self.options.passes):
                depends = self._depends(number, key)
                began = time.monotonic()
                reused = self._reusable(number, depends, len(columns))
                self.emit(PassStarted(number, PASS_NAMES[number], len(columns)))
                if reused is not None:
                    result = reused
                    cost = _kept_beside(self.folder, number, "cost")
                    self.emit.recall(cost)
                    self._plan = cost["plan"]
                    seconds = cost["seconds"]
                else:
                    if context is None:
                        context = stack.enter_context(self._context())
                    with self._failures_of(number):
                        if prepared is None:
                            prepared = prepare.prepare(
                                context, self.table, prepare.rules_of(self.options), self._rows
                            )
                        result = self._run_pass(context, number, prepared, columns)
                    seconds = time.monotonic() - began
                    self._save(number, depends, result, prepared, seconds)
                    context.store.remove(f"{PASS_NAMES[number]}-")
                key = self.folder.checkpoints.key(number) or ""
                self.emit(
                    PassDone(
                        number,
                        PASS_NAMES[number],
                        len(columns),
                        len(result.kept),
                        seconds,
                        reused is not None,
                    )
                )
                columns = result.kept
                results.append(result)
        return results

    def _depends(self, number: int, previous: str) -> dict[str, Any]:
        """All that the answer of a pass follows from."""
        shared = {"version": _version(), "input": self.table.fingerprint, "previous": previous}
        return shared | {
            f"options.{name}": value for name, value in self.options.affecting(number).items()
        }

    def _reusable(
        self, number: int, depends: Mapping[str, Any], n_columns: int
    ) -> PassResult | None:
        found = self.folder.checkpoints.load(number, depends)
        if isinstance(found, PassResult):
            if (reason := self._lack_of_matrices(number, n_columns)) is not None:
                self.emit(Note(f"pass {number} is done again, because {reason}.", "notice"))
                return None
            self.emit(Note(f"pass {number} is taken from the run before."))
            return found
        if isinstance(found, Stale):
            changed = ", ".join(
                _SAID.get(name, name.removeprefix("options.")) for name in found.fields
            )
            self.emit(Note(f"pass {number} is done again, because {changed} changed.", "notice"))
        elif isinstance(found, Damaged):
            self.emit(Note(f"pass {number} is done again: {found.reason}.", "warning"))
        return None

    def _lack_of_matrices(self, number: int, n_columns: int) -> str | None:
        """Which matrix a kept pass should have left and did not; None when all is there."""
        if not n_columns or 4 * n_columns**2 > self.options.matrix_budget:
            return None
        names = _MATRICES.get(number, ())
        left = _kept_beside(self.folder, number, "matrices")
        # By content: a run that was broken off may have put its own in their place.
        return next(
            (
                f"{name} is missing or of another run"
                for name in names
                if left.get(name) is None or left[name] != _digest(self.folder.path / name)
            ),
            None,
        )

    def _save(
        self,
        number: int,
        depends: Mapping[str, Any],
        result: PassResult,
        prepared: Prepared,
        seconds: float,
    ) -> None:
        """Keep a pass, with what the results need of it beside its decisions."""
        self._check_folder()
        beside: dict[str, Any] = {
            "matrices": {
                name: _digest(self.folder.path / name)
                for name in _MATRICES.get(number, ())
                if name in self.folder.written
            },
            "cost": self.emit.measured() | {"seconds": seconds, "plan": self._plan},
        }
        if number == 1:
            beside["statistics"] = [
                dataclasses.asdict(entry.statistics) for _, entry in prepared.values()
            ]
        arrays = {
            name: np.frombuffer(json.dumps(value).encode(), dtype=np.uint8)
            for name, value in beside.items()
        }
        self.folder.checkpoints.save(number, depends, result, arrays)

    @contextmanager
    def _failures_of(self, number: int) -> Iterator[None]:
        """Say which pass a failure belongs to, and that it can be continued."""
        name = f"pass {number} ({PASS_NAMES[number]})"
        try:
            yield
        except ResourceError as error:
            self._check_folder()
            raise ResourceError(f"{name}: {error}") from error
        except FileNotFoundError as error:
            self._check_folder()
            raise ResourceError(
                f"{name}: {error.filename or error} was removed while the run needed it; "
                "run the same command again to continue."
            ) from error

    def _check_folder(self) -> None:
        """Refuse to go on in a folder that somebody removed, though writing would make it anew."""
        if not (self.folder.path / LOCK).exists():
            raise ResourceError(
                f"the output folder {self.folder.path} was removed while the run went on; "
                "run the same command again to start anew."
            )

    def _run_pass(
        self, context: Context, number: int, prepared: Prepared, columns: Sequence[str]
    ) -> PassResult:
        if number == 1:
            result = prepare.decide(prepared, columns, self.options)
            names, codes = prepare.rank_sample(context.store, prepared)
            self.folder.write_npy("rank_sample.npy", codes)
            self.folder.write_columns("rank_sample_columns.txt", names)
        elif not columns:  # an earlier pass left nothing: there are no tiles to compute
            result = PassResult(number, PASS_NAMES[number], (), ())
        else:
            result = _PASSES[number](context, prepared, columns)
        self.emit(MemoryRead(context.session.read_memory("after", number)))
        if _restarts_after(number, self.options.passes):
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
                nonlinear_rows=nonlinear_sample(self.table, self._rows, self.options),
            )
            plan = self._checked_plan(context)
            self._plan = dataclasses.asdict(plan)
            stack.enter_context(shown(session, page(), self._board.state, self.emit))
            self.emit(
                RunStarted(
                    n_rows=self.n_rows,
                    n_features=len(self.table.features),
                    n_workers=session.n_workers,
                    device=session.device,
                    dashboard=session.dashboard,
                    page=page_link(session),
                    memory_limit=session.memory_limit,
                    scratch_bytes=plan.scratch_bytes,
                    passes=tuple(
                        PlannedPass(each.number, each.name, each.tasks, each.worker_bytes)
                        for each in plan.passes
                    ),
                )
            )
            self.emit(MemoryRead(session.read_memory("start", 0)))
            if self._keeps_record:
                stack.enter_context(recorded(session, self.folder.write_text, self.emit))
            try:
                yield context
            except BaseException:
                if not self.options.checkpoint:
                    with suppress(OSError, ResourceError):  # which would hide what went wrong
                        context.store.remove()
                raise
            if self.options.checkpoint:
                context.store.remove_partial()
            else:
                context.store.remove()

    def _store(self) -> Store:
        """The rank store of this input and these pass-1 options."""
        depends = json.dumps(self._depends(1, ""), sort_keys=True, default=str)
        # Runs may share a scratch folder, but never a store: each cleans up its own.
        stem = f"ranks-{hashlib.sha256(self._address.encode()).hexdigest()[:8]}"
        name = f"{stem}-{hashlib.sha256(depends.encode()).hexdigest()[:16]}"
        parent = self.options.scratch_dir or str(self.folder.path / CHECKPOINT)
        if "://" not in parent:
            for old in Path(parent).glob(
                "ranks-*" if self.options.scratch_dir is None else f"{stem}-*"
            ):
                if old.name != name:
                    shutil.rmtree(old, ignore_errors=True)
        store = Store(
            f"{parent}/{name}",
            self._storage_options if "://" in parent else None,
            durable=self.options.checkpoint,
        )
        if self.options.fresh:
            store.remove()
        store.remove_partial()
        return store

    def _checked_plan(self, context: Context) -> Plan:
        n_features = len(self.table.features)
        plan = make_plan(
            self.n_rows,
            n_features,
            self.options,
            context.machine,
            row_group=self.table.row_group,
        )
        root = context.store.root
        if "://" not in root and not context.store.names():
            parent = Path(root).parent
            parent.mkdir(parents=True, exist_ok=True)
            check_disk(plan, shutil.disk_usage(parent).free, str(parent))
        return plan

    # Results

    def _finish(self, sources: Sequence[str], results: Sequence[PassResult]) -> Selection:
        self._check_folder()
        selected = results[-1].kept
        stored = _kept_beside(self.folder, 1, "statistics")
        statistics = [ColumnStatistics(**entry) for entry in stored]
        decisions = decide(self.table.columns, statistics, results, self.options.keep)
        communities = alternatives(selected, results)
        self.folder.write_selected(selected)
        self.folder.write_decisions(decisions)
        self.folder.write_communities(communities)
        self.folder.write_json(_STATISTICS, {"columns": stored})
        self._write_table([d.column for d in decisions if d.decision != "dropped"])
        self.folder.write_run(self._record(sources, results))
        self._drop_old_results()
        return Selection(
            selected, decisions, communities, tuple(self.emit.readings), self.folder.path
        )

    def _write_table(self, columns: Sequence[str]) -> None:
        """Leave the reduced table when it is asked for, and none of an earlier run."""
        left_out: tuple[str, ...] = ()
        if self.options.write_table:
            left_out = conflicting(self.table, columns, self._storage_options)
        for name in left_out:
            self.emit(
                Note(
                    f"column {name!r} is not in the reduced table: its types in different files "
                    "do not meet.",
                    "warning",
                )
            )
        columns = [name for name in columns if name not in left_out]
        if self.options.write_table and columns:
            target = self.folder.claim_table()
            self.folder.record_table(
                copy_columns(self.table, columns, target, self._storage_options, overwrite=True)
            )
        else:
            self.folder.remove_table()

    def _drop_old_results(self) -> None:
        """Keep the matrices that a pass of this run left, now or before, and no others."""
        unwanted = {name for names in _MATRICES.values() for name in names}
        for number in self.options.passes:
            unwanted -= _kept_beside(self.folder, number, "matrices").keys()
        self.folder.prune_results({*_RESULTS, *self.emit.files} - unwanted)

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
            "plan": self._plan,
            "passes": [dataclasses.asdict(done) for done in self.emit.passes],
            "near_threshold": {
                str(result.number): [list(pair) for pair in result.near_threshold]
                for result in results
            },
            "ledger": [dataclasses.asdict(reading) for reading in self.emit.readings],
            "notes": [dataclasses.asdict(note) for note in self.emit.notes],
            "faults": [plain_fault(fault) for fault in self.emit.faults],
        }


def _restarts_after(number: int, passes: Sequence[int]) -> bool:
    """Whether the workers get fresh processes after a pass: before 2 and 4, whatever came before.

    Not between 2 and 3, which works on the client but for one Gram matrix.
    """
    later = [other for other in sorted(passes) if other > number]
    return bool(later) and (number == 1 or later[0] == 4)


def _render_page(folder: RunFolder, emit: Emit) -> None:
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


_STATISTICS = f"{CHECKPOINT}/statistics.json"
_SAID = {
    "version": "the version of dpipe",
    "input": "the input",
    "previous": "what the pass before it left",
}
"""How a reason to do a pass again is put, where it is no option."""
_MATRICES: Mapping[int, tuple[str, ...]] = {
    1: ("rank_sample.npy", "rank_sample_columns.txt"),
    2: ("spearman.npy", "spearman_columns.txt"),
    4: ("hsic.npy", "hsic_columns.txt", "rdc.npy", "rdc_columns.txt"),
}


def _digest(path: Path) -> str | None:
    """The checksum of a file, None without one."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        return None


def _kept_beside(folder: RunFolder, number: int, name: str) -> Any:
    """What `_Run._save` left beside the decisions of a pass."""
    return json.loads(folder.checkpoints.load_arrays(number)[name].tobytes())


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
    row_group = None
    if sources:
        table = open_table(sources, options=options, storage_options=storage_options)
        drawn = sample(table, options)
        rows = table.n_rows if drawn is None else len(drawn)
        columns = len(table.features)
        row_group = table.row_group
    if not rows or not columns:
        raise InputError("give Parquet files, or both --rows and --columns.")
    cores, memory = own_machine()
    workers = options.workers or max(1, cores // options.threads_per_worker)
    limit = options.memory_limit or memory // workers
    machine = Machine(workers, options.threads_per_worker, limit)
    return make_plan(rows, columns, options, machine, row_group=row_group)


def _version(name: str = "dpipe") -> str:
    """A package's version; a checkout that is on the path but not installed has none."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "from source"


def _versions() -> dict[str, str]:
    names = ("dpipe", "numpy", "pyarrow", "dask", "distributed", "igraph")
    return {"python": platform.python_version()} | {name: _version(name) for name in names}
