"""What a person sees while a run goes on: one live line a pass, or plain lines when piped.

Covers: an observer of `dpipe.model.events`, the summary after a run, escaping of names.
Does not cover: what is done (see `dpipe.pipeline`), or the final words of a command (`dpipe.cli`).
See also: `dpipe.report`, the page that stays.

On a terminal (and in a notebook) every pass has a bar while it runs, and a table takes its place at
the end. Anywhere else each pass is one plain line, so that a log stays readable. Text is printed
as data: never as markup of the terminal library, and without control characters.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

from rich.console import Console
from rich.progress import BarColumn, ProgressColumn, Task, TaskID, TextColumn
from rich.progress import Progress as Bars
from rich.table import Column, Table
from rich.text import Text

from dpipe.common.words import counted, printable, sized, timed
from dpipe.model.events import (
    Event,
    MemoryRead,
    Note,
    PassDone,
    PassStarted,
    RunStarted,
    StageStarted,
    TaskDone,
)
from dpipe.model.records import Decision

_WAITING = "opening the input"
_REASONS_SHOWN = 4
_PIPED_WIDTH = 200  # a table in a log is not folded to the 80 columns nobody looks at it in


class LineConsole(Console):
    """A console that takes text as it is and outlives whoever reads along."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **settings)

    def on_broken_pipe(self) -> None:
        """Fall silent: that the reader has gone is no reason to end a long run."""
        self.quiet = True


def make_console() -> Console:
    """A console on standard output."""
    console = LineConsole()
    if not (is_live(console) or console.is_terminal):
        console.width = _PIPED_WIDTH
    return console


def is_live(console: Console) -> bool:
    """Whether lines of `console` can be drawn anew: on a terminal that can, and in a notebook."""
    if console.is_jupyter:
        return True
    # Not console.is_terminal: colours forced on a pipe do not make it one.
    return console.file.isatty() and not console.is_dumb_terminal


def table_of_passes(*numbers: str, last: str) -> Table:
    """A table without lines: a pass, some numbers of it, and what is said of it."""
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column("pass", no_wrap=True)
    for name in numbers:
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column(last)
    return table


class Progress:
    """An observer that shows a run; use it as a context manager around the run.

    Parameters
    ----------
    verbosity : int
        -1 shows nothing, 0 passes and warnings, 1 also notes, stages and the memory ledger.
    console : rich.console.Console or None
        Where to write, by default standard output.

    Examples
    --------
    >>> import io
    >>> console = Console(file=io.StringIO(), width=100)
    >>> with Progress(console=console) as progress:
    ...     progress(PassDone(1, "prepare", 1830, 1204, 2.3, reused=False))
    >>> print(console.file.getvalue().strip())
    pass 1 prepare     1,830 ->   1,204 columns     2.3 s
    """

    def __init__(self, verbosity: int = 0, console: Console | None = None) -> None:
        self.console = console if console is not None else make_console()
        self._verbosity = verbosity
        self._done: list[PassDone] = []
        self._bars: Bars | None = None
        self._task: TaskID | None = None
        self._pass_name = ""
        self._memory = 0
        self._deaf = verbosity < 0

    def __enter__(self) -> Self:
        """Start drawing where lines can be drawn anew."""
        if is_live(self.console) and not self._deaf:
            self._bars = Bars(
                TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True)),
                BarColumn(bar_width=24 if self.console.width >= 100 else 12),
                _Status(table_column=Column(no_wrap=True, overflow="ellipsis")),
                console=self.console,
                refresh_per_second=5,
            )
            self._task = self._bars.add_task(_WAITING, total=None)
            self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop drawing; after a failure the lines stay, else the summary takes their place."""
        if self._bars is None:
            return
        if error is None:
            self._bars.live.transient = True
        elif self._task is not None:
            self._bars.update(self._task, status="stopped")
        self._bars.stop()
        self._bars = None

    def __call__(self, event: Event) -> None:
        """Show one event."""
        if self._deaf:
            return
        match event:
            case RunStarted():
                self._run_started(event)
            case PassStarted():
                self._pass_started(event)
            case StageStarted():
                self._stage_started(event)
            case TaskDone():
                if self._bars is not None and self._task is not None:
                    self._bars.advance(self._task)
            case PassDone():
                self._pass_done(event)
            case MemoryRead():
                self._memory_read(event)
            case Note():
                if event.level == "warning":
                    self.line(f"warning: {event.text}", style="yellow")
                elif self._verbosity > (-1 if event.level == "notice" else 0):
                    self.line(event.text, style="dim")

    def line(self, text: str, style: str = "") -> None:
        """Print one line above whatever is drawn; it is never cut."""
        self.console.print(Text(printable(text), style=style), soft_wrap=True)

    def _run_started(self, event: RunStarted) -> None:
        where = "GPU" if event.device == "gpu" else "CPU"
        workers = counted(event.n_workers, "worker")
        self.line(
            f"{counted(event.n_rows, 'row')} x {counted(event.n_features, 'numeric column')}; "
            f"{workers} on the {where}"
            + (f", {sized(event.memory_limit)} each" if event.memory_limit else "")
        )
        if event.n_tasks:
            self.line(
                f"plan: {counted(event.n_tasks, 'task')}, at most {sized(event.worker_bytes)} "
                f"a worker, {sized(event.scratch_bytes)} of scratch disk"
            )
        for line in _links(event):
            self.line(line, style="dim")

    def _pass_started(self, event: PassStarted) -> None:
        self._pass_name = event.name
        if self._bars is not None:
            self._begin(self._bars, _title(event))

    def _begin(self, bars: Bars, title: str) -> TaskID:
        """Begin a line; the one that only said to wait becomes it."""
        if self._task is None:
            self._task = bars.add_task(title, total=None)
        bars.update(self._task, description=title, memory=self._memory)
        return self._task

    def _stage_started(self, event: StageStarted) -> None:
        if self._bars is not None:
            # Tasks of a stage are called after their pass, which the line names already.
            stage = printable(event.name).removesuffix(f"-{self._pass_name}")
            # A matrix without a selection has stages, but no pass.
            task = self._task if self._pass_name else self._begin(self._bars, "computing")
            if task is not None:
                self._bars.reset(task, total=event.tasks, stage=stage, memory=self._memory)
        if self._verbosity > 0:
            self.line(f"  {event.name}: {counted(event.tasks, 'task')}", style="dim")

    def _pass_done(self, event: PassDone) -> None:
        self._done.append(event)
        if self._bars is None:
            self.line(f"{_title(event)} {_outcome(event)}")
            return
        task = self._begin(self._bars, _title(event))
        self._bars.update(task, total=1, completed=1, status=_outcome(event))
        self._task = None

    def _memory_read(self, event: MemoryRead) -> None:
        if not event.readings:
            return
        workers = [r.rss for r in event.readings if r.process != "client"]
        self._memory = max(workers, default=0)
        if self._bars is not None and self._task is not None:
            self._bars.update(self._task, memory=self._memory)
        if self._verbosity > 0:
            moment = event.readings[0].moment
            readings = ", ".join(f"{r.process} {sized(r.rss)}" for r in event.readings)
            self.line(f"  memory ({moment}): {readings}", style="dim")

    def summary(self, decisions: Iterable[Decision]) -> None:
        """Print what each pass did and why: a table on a terminal, one line elsewhere."""
        if self._deaf:
            return
        reasons = Counter(
            (d.pass_number, d.reason if d.cause is None else d.cause.value)
            for d in decisions
            if d.decision == "dropped"
        )
        if is_live(self.console):
            self.console.print(self._table(reasons))
        elif reasons:
            total: Counter[str] = Counter()
            for (_, reason), count in reasons.items():
                total[reason] += count
            self.line(f"dropped: {_most_common(total)}")

    def _table(self, reasons: Counter[tuple[int | None, str]]) -> Table:
        table = table_of_passes("columns in", "kept", "seconds", last="dropped because")
        for done in self._done:
            own = Counter({why: n for (number, why), n in reasons.items() if number == done.number})
            table.add_row(
                f"{done.number} {done.name}",
                f"{done.n_columns:,}",
                f"{done.n_kept:,}",
                "reused" if done.reused else f"{done.seconds:,.1f}",
                Text(f"{_most_common(own, _REASONS_SHOWN)} {_back(done)}".strip()),
            )
        return table


class _Status(ProgressColumn):
    """Beside the bar: what the pass did, or where it stands, most important first."""

    def render(self, task: Task) -> Text:
        if "status" in task.fields:
            return Text(task.fields["status"])
        parts = [task.fields.get("stage", "")]
        if task.total is not None:
            parts[0] += f" {int(task.completed):,}/{int(task.total):,}"
            if task.time_remaining:
                parts.append(f"{timed(task.time_remaining)} left")
            if task.speed:
                parts.append(f"{task.speed:.2g}/s" if task.speed < 10 else f"{task.speed:,.0f}/s")
        if task.start_time is not None and len(parts) == 1:
            parts.append(timed(time.monotonic() - task.start_time))
        if task.fields.get("memory"):
            parts.append(f"{sized(task.fields['memory'])} a worker")
        return Text(", ".join(part.strip() for part in parts if part))


def _links(event: RunStarted) -> Iterator[str]:
    """Where to watch the run, from here and from the machine of somebody who came by SSH."""
    if not event.dashboard:
        return
    if event.page:
        yield f"watch the run: {event.page}"
    yield f"Dask's dashboard: {event.dashboard}"
    address = urlsplit(event.dashboard)
    if "SSH_CONNECTION" in os.environ and address.hostname == "127.0.0.1":
        host = os.environ["SSH_CONNECTION"].split()[2]
        tunnel = f"{address.port}:127.0.0.1:{address.port}"
        yield f"from your own machine, first: ssh -N -L {tunnel} {host}"


def _title(event: PassStarted | PassDone) -> str:
    return f"pass {event.number} {printable(event.name):<9}"


def _outcome(event: PassDone) -> str:
    how = "from the checkpoint" if event.reused else f"{event.seconds:.1f} s"
    noun = "column" if event.n_kept == 1 else "columns"
    outcome = f"{event.n_columns:>7,} -> {event.n_kept:>7,} {noun:<7}  {how:>8}"
    return f"{outcome}  {_back(event)}".rstrip()


def _back(event: PassDone) -> str:
    """Why a pass can keep more columns than its drops leave, or nothing."""
    return f"({event.n_back:,} came back)" if event.n_back else ""


def _most_common(reasons: Counter[str], limit: int | None = None) -> str:
    # Equal counts in the order of their words, so that the same run prints the same line.
    ordered = sorted(reasons.items(), key=lambda item: (-item[1], item[0]))
    limit = len(ordered) if limit is None else limit
    shown = [f"{n:,} {printable(why)}" for why, n in ordered[:limit]]
    rest = sum(n for _, n in ordered[limit:])
    return ", ".join([*shown, f"{rest:,} for other reasons"] if rest else shown)
