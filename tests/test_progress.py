"""What a run shows while it goes on.

Covers: plain lines where output is piped, live lines on a (recorded) terminal, the three levels of
verbosity, the summary, and that names cannot steer the terminal.
Does not cover: which events a run emits (see `test_pipeline`), or the words after it
(`test_cli_runs`).
"""

from __future__ import annotations

import io
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from dpipe.common.words import printable
from dpipe.model.events import (
    Event,
    MemoryRead,
    Note,
    PassDone,
    PassStarted,
    PlannedPass,
    RunStarted,
    StageStarted,
    TaskDone,
)
from dpipe.model.records import Decision, MemoryReading
from dpipe.watch.terminal import LineConsole, Progress, make_console

HOSTILE = "[bold]\x1b[31mred\x1b[0m\r\nline\u202e"

READINGS = (
    MemoryReading("after", 1, "client", 10, 200 * 2**20, 250 * 2**20, None, 1.0),
    MemoryReading("after", 1, "worker 0", 11, 312 * 2**20, 400 * 2**20, None, 1.0),
)


def planned(number: int, name: str, tasks: int, worker_bytes: int) -> PlannedPass:
    return PlannedPass(number, name, 40, tasks, worker_bytes, 10**6, 1e9, "a block")


EVENTS: tuple[Event, ...] = (
    RunStarted(
        *(624, 1830, 2, "cpu", "http://127.0.0.1:8787/status", 2**31, 2**22),
        (planned(1, "prepare", 30, 2**28), planned(2, "spearman", 100, 3 * 2**28)),
    ),
    Note("columns 'a' and 'b' are text."),
    Note("left out broken.parquet: it is cut short", "warning"),
    PassStarted(1, "prepare", 1830),
    StageStarted("rank-columns", 3),
    TaskDone("rank-columns"),
    TaskDone("rank-columns"),
    TaskDone("rank-columns"),
    MemoryRead(READINGS),
    PassDone(1, "prepare", 1830, 1204, 2.34, reused=False),
    PassStarted(2, "spearman", 1204),
    PassDone(2, "spearman", 1204, 611, 0.01, reused=True),
)


def decision(column: str, verdict: str, number: int | None, reason: str) -> Decision:
    return Decision(
        column=column,
        dtype="double",
        n_valid=1,
        n_missing=0,
        n_nan=0,
        n_inf=0,
        n_unique=1,
        decision=verdict,
        pass_number=number,
        reason=reason,
        measure=None,
        value=None,
        threshold=None,
        representative=None,
        community=None,
    )


DECISIONS = (
    decision("a", "dropped", 1, "constant"),
    decision("b", "dropped", 1, "monotone duplicate"),
    decision("c", "dropped", 1, "monotone duplicate"),
    decision("d", "dropped", 3, "linear combination of a, b"),
    decision("e", "dropped", 3, "linear combination of x"),
    decision("f", "dropped", 3, "linear combination of x of y"),
    decision("g", "kept", None, "no similar column"),
)


class Terminal(io.StringIO):
    """A file that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def shown(verbosity: int = 0, *, live: bool = False, events: tuple[Event, ...] = EVENTS) -> str:
    file = Terminal() if live else io.StringIO()
    console = Console(
        file=file, width=100, force_terminal=live, markup=False, emoji=False, highlight=False
    )
    with Progress(verbosity, console) as progress:
        for event in events:
            progress(event)
    progress.summary(DECISIONS)
    return file.getvalue()


def without_escapes(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


def test_a_pipe_gets_one_plain_line_a_pass() -> None:
    assert shown().splitlines() == [
        "624 rows x 1,830 numeric columns; 2 workers on the CPU, 2.0 GiB each",
        "plan: 130 tasks, at most 768 MiB a worker, 4.0 MiB of scratch disk",
        "Dask's dashboard: http://127.0.0.1:8787/status",
        "warning: left out broken.parquet: it is cut short",
        "pass 1 prepare     1,830 ->   1,204 columns     2.3 s",
        "pass 2 spearman    1,204 ->     611 columns  from the checkpoint",
        "dropped: 3 linear combination, 2 monotone duplicate, 1 constant",
    ]


def test_one_column_is_not_many() -> None:
    lines = shown(events=(PassDone(2, "spearman", 30, 1, 0.4, False),)).splitlines()
    assert lines[0] == "pass 2 spearman       30 ->       1 column      0.4 s"


def test_a_pass_that_keeps_more_than_it_received_says_why() -> None:
    done = PassDone(4, "nonlinear", 2978, 2992, 1.2, reused=False, n_back=30)
    line = "pass 4 nonlinear   2,978 ->   2,992 columns     1.2 s  (30 came back)"
    assert shown(events=(done,)).splitlines()[0] == line
    assert "(30 came back)" in shown(live=True, events=(done,))


def test_quiet_says_nothing() -> None:
    assert shown(-1) == ""
    assert shown(-1, live=True) == ""


def test_verbose_adds_notes_stages_and_memory() -> None:
    more = set(shown(1).splitlines()) - set(shown().splitlines())
    assert more == {
        "columns 'a' and 'b' are text.",
        "  rank-columns: 3 tasks",
        "  memory (after): client 200 MiB, worker 0 312 MiB",
    }


def test_a_terminal_gets_a_table_with_the_reasons_at_the_end() -> None:
    text = without_escapes(shown(live=True))
    table = text[text.index("columns in") :]
    assert re.search(r"1 prepare +1,830 +1,204 +2\.3 +2 monotone duplicate, 1 constant", table)
    assert re.search(r"2 spearman +1,204 +611 +reused", table)


def test_a_failed_run_leaves_its_lines_on_the_terminal() -> None:
    file = Terminal()
    console = Console(file=file, width=100, force_terminal=True, markup=False)

    def interrupted() -> None:
        with Progress(0, console) as progress:
            for event in EVENTS[:6]:
                progress(event)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert without_escapes(file.getvalue()).rstrip().endswith("stopped")


def test_colours_forced_on_a_pipe_do_not_make_it_live(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    file = io.StringIO()
    with Progress(0, Console(file=file, markup=False)) as progress:
        progress(EVENTS[3])
        progress(EVENTS[-3])
    assert file.getvalue().count("\n") == 1


def test_a_terminal_that_cannot_draw_gets_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    file = Terminal()
    with Progress(0, Console(file=file, markup=False)) as progress:
        for event in EVENTS:
            progress(event)
    assert "\x1b" not in file.getvalue()
    assert "pass 1 prepare" in file.getvalue()


@pytest.mark.parametrize("live", [False, True])
def test_names_cannot_steer_the_terminal(live: bool) -> None:
    events = (
        *EVENTS[:3],
        PassStarted(1, "prepare", 3),
        StageStarted(HOSTILE, 1),
        Note(f"column {HOSTILE} is odd", "warning"),
        PassDone(1, "prepare", 3, 2, 1.0, reused=False),
    )
    text = shown(1, live=live, events=events)
    assert "[bold]\\x1b[31mred\\x1b[0m\\r\\nline\\u202e" in text.replace("\n", "")
    assert "\x1b[31m" not in text
    assert "\u202e" not in text


@given(st.text())
def test_printable_text_stays_on_one_line_and_can_be_read(text: str) -> None:
    escaped = printable(text)
    assert escaped.isprintable()
    escaped.encode("utf-8")
    if text.isprintable():
        assert escaped == text


def test_a_reader_who_leaves_does_not_end_the_run() -> None:
    class Closed(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    with Progress(0, LineConsole(file=Closed())) as progress:
        for event in EVENTS:
            progress(event)
    progress.summary(DECISIONS)


def test_lines_in_a_log_are_not_folded() -> None:
    file = io.StringIO()
    console = make_console()
    console.file = file
    Progress(0, console).line("word " * 100)
    assert file.getvalue().count("\n") == 1
