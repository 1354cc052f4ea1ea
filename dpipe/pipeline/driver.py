"""The driver of a run: session and rank store opened, each pass run or reused, workers restarted.

Covers: the passes in order, one session for those that have to run, what failures say.
Does not cover: which results of a run before still hold (`dpipe.pipeline.resume`), the files that
a finished run leaves (`dpipe.pipeline.record`).
"""

from __future__ import annotations

import dataclasses
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from dpipe.choice.priority import Priority, in_millionths
from dpipe.common.credentials import is_url
from dpipe.engine.context import Context, Prepared
from dpipe.engine.grid import remove_grids
from dpipe.engine.machine import Limits
from dpipe.engine.plan import Plan, check_disk
from dpipe.errors import ResourceError
from dpipe.model.events import MemoryRead, PassDone, PassStarted, RunStarted
from dpipe.model.records import PassResult
from dpipe.model.registry import FIRST, PASSES, Pass
from dpipe.options import Options
from dpipe.passes import make_plan, module_of, prepare, reviewed, reviews
from dpipe.pipeline.record import Finished, write_results
from dpipe.pipeline.resume import Resume
from dpipe.rankstore import Store
from dpipe.runfolder import RunFolder
from dpipe.selection import Selection
from dpipe.session import use_session
from dpipe.table import Table, tell_notes
from dpipe.table.sample import nonlinear_sample, sample
from dpipe.watch.board import page
from dpipe.watch.journal import Journal
from dpipe.watch.scheduler import page_link, recorded, shown


class Run:
    """The state of one run while it lasts."""

    def __init__(
        self,
        table: Table,
        options: Options,
        folder: RunFolder,
        journal: Journal,
        client: Any,
        limits: Limits,
    ) -> None:
        self.table = table
        self.folder = folder
        self.journal = journal
        self._client = client
        self._limits = limits
        self._rows = sample(table, options)
        self.n_rows = table.n_rows if self._rows is None else len(self._rows)
        self.options = options.resolved(self.n_rows)
        self._resume = Resume(table, self.options, folder, journal)
        self._relevance: dict[str, int] = {}
        self._plan: dict[str, Any] | None = None  # of the run before while no session is open
        self._files: list[str] = []  # that the passes left, beside what every run leaves

    def select(self, sources: Sequence[str]) -> Selection:
        """Run the passes, or take them over, and write the results."""
        tell_notes(self.table, self.journal)
        if self.options.write_table:
            self.folder.claim_table()  # refused now rather than after hours
        if self.options.fresh:
            self.folder.checkpoints.clear()
        try:
            results = self._passes()
            self.folder.check_present()
            return write_results(
                Finished(
                    self.table,
                    self.options,
                    self.folder,
                    self.journal,
                    tuple(sources),
                    tuple(results),
                    tuple(self._files),
                    self.n_rows,
                    self._plan,
                )
            )
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
            for number in self.options.pass_numbers:
                depends = self._resume.depends(number, key)
                began = time.monotonic()
                reused = self._resume.reusable(number, depends, len(columns))
                this = PASSES[number]
                self.journal(PassStarted(number, this.name, len(columns)))
                if reused is not None:
                    saved = reused
                    self.journal.recall(saved.extra["cost"])
                    self._plan = saved.extra["cost"]["plan"]
                    seconds = saved.extra["cost"]["seconds"]
                else:
                    if context is None:
                        context = stack.enter_context(self._context())
                    with self._failures_of(this):
                        if prepared is None:
                            prepared = prepare.prepare(context, self.table, self._rows)
                        result = self._run_pass(context, this, prepared, columns, results)
                    seconds = time.monotonic() - began
                    self.folder.check_present()
                    saved = self._resume.save(depends, result, seconds, self._plan)
                    if not reviews(this):
                        remove_grids(context.store, this.name)
                key = saved.key
                self._files += saved.extra["files"]
                self.journal(
                    PassDone(
                        number,
                        this.name,
                        len(columns),
                        len(saved.result.kept),
                        seconds,
                        reused is not None,
                        len(saved.result.returned),
                    )
                )
                columns = saved.result.kept
                results.append(saved.result)
                if number == FIRST:
                    self._relevance = in_millionths(saved.result.relevance)
                    if context is not None:
                        context = dataclasses.replace(context, priority=self._priority())
            if context is not None:
                for number in self.options.pass_numbers:
                    if reviews(PASSES[number]):
                        remove_grids(context.store, PASSES[number].name)
        return results

    def _priority(self) -> Priority:
        """The order of columns, as far as the run knows it."""
        return Priority(self.options.keep, self.options.prefer, self._relevance)

    @contextmanager
    def _failures_of(self, this: Pass) -> Iterator[None]:
        """Say which pass a failure belongs to, and that it can be continued."""
        name = f"pass {this.number} ({this.name})"
        try:
            yield
        except ResourceError as error:
            self.folder.check_present()
            raise ResourceError(f"{name}: {error}") from error
        except FileNotFoundError as error:
            self.folder.check_present()
            raise ResourceError(
                f"{name}: {error.filename or error} was removed while the run needed it; "
                "run the same command again to continue."
            ) from error

    def _run_pass(
        self,
        context: Context,
        this: Pass,
        prepared: Prepared,
        columns: Sequence[str],
        earlier: Sequence[PassResult],
    ) -> PassResult:
        if columns:
            result = module_of(this).run(this, context, prepared, columns)
            result = reviewed(context, prepared, earlier, result)
        else:  # an earlier pass left nothing
            result = PassResult(this.number, this.name, (), ())
        self.journal(MemoryRead(context.session.read_memory("after", this.number)))
        if restarts_after(this.number, self.options.pass_numbers):
            self.journal(MemoryRead(context.session.recycle(this.number)))
        return result

    # Session and scratch

    @contextmanager
    def _context(self) -> Iterator[Context]:
        with ExitStack() as stack:
            ended = stack.enter_context(ExitStack())  # what is done when the session has ended
            session = stack.enter_context(use_session(self.options, self._client, self.journal))
            context = Context(
                session=session,
                store=self._resume.rank_store(self._rows),
                options=self.options,
                emit=self.journal,
                n_rows=self.n_rows,
                folder=self.folder,
                nonlinear_rows=nonlinear_sample(self.table, self._rows, self.options),
                limits=self._limits,
                priority=self._priority(),
            )
            if session.owned:  # its workers may be killed in the middle of a write
                ended.callback(_remove_partial, context.store)
            plan = self._checked_plan(context)
            self._plan = dataclasses.asdict(plan)
            stack.enter_context(shown(session, page(), self.journal.board.state, self.journal))
            self.journal(
                RunStarted(
                    n_rows=self.n_rows,
                    n_features=len(self.table.features),
                    n_workers=session.n_workers,
                    device=session.device,
                    dashboard=session.dashboard,
                    page=page_link(session),
                    memory_limit=session.memory_limit,
                    scratch_bytes=plan.scratch_bytes,
                    passes=plan.passes,
                )
            )
            self.journal(MemoryRead(session.read_memory("start", 0)))
            if not self.folder.temporary:  # somebody will read what Dask recorded
                stack.enter_context(recorded(session, self.folder.write_text, self.journal))
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

    def _checked_plan(self, context: Context) -> Plan:
        n_features = len(self.table.features)
        plan = make_plan(
            self.n_rows,
            n_features,
            self.options,
            context.machine,
            row_group=self.table.row_group,
            files=len(self.table.files),
        )
        root = context.store.root
        if not is_url(root) and not context.store.names():
            parent = Path(root).parent
            parent.mkdir(parents=True, exist_ok=True)
            check_disk(plan, shutil.disk_usage(parent).free, str(parent))
        return plan


def _remove_partial(store: Store) -> None:
    with suppress(OSError, ResourceError):  # which would hide what went wrong
        store.remove_partial()


def restarts_after(number: int, passes: Sequence[int]) -> bool:
    """Whether the workers get fresh processes after a pass.

    They do after the ranking, and before each pass that asks for it.
    """
    later = [other for other in sorted(passes) if other > number]
    return bool(later) and (number == FIRST or PASSES[later[0]].fresh_workers)
