"""What a scheduler shows of a run, and what it remembers.

Covers: the span that groups the tasks of a stage, schedulers that know no spans, the page
``/dpipe`` and its state on owned and attached schedulers, the record left in the run folder.
Does not cover: Dask's pages, the progress in a terminal (see ``tests/test_progress.py``).
"""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask
import distributed
import pytest
from distributed import Client, LocalCluster
from distributed.scheduler import DEFAULT_EXTENSIONS
from pages import Browser, needs_browser

from dpipe.engine.submit import run_tasks
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
    silent,
)
from dpipe.model.inventory import MEMORY_SAMPLES, PERFORMANCE_REPORT
from dpipe.model.records import MemoryReading
from dpipe.options import Options, options_from
from dpipe.pipeline import run
from dpipe.session import Session, attach_session
from dpipe.watch.board import Board, page
from dpipe.watch.scheduler import page_link, recorded, shown
from tests.tables import mixed_table, write_parts


def run_stage(client: Client, name: str) -> list[Any]:
    with attach_session(client, Options()) as session:
        results = run_tasks(
            session, name, abs, [(-i,) for i in range(5)], silent, need=1, describe=str
        )
        return [result for _, result in sorted(results)]


def test_the_tasks_of_a_stage_are_one_span(cluster: LocalCluster, client: Client) -> None:
    assert run_stage(client, "rank-spans") == [0, 1, 2, 3, 4]
    known = cluster.scheduler.extensions["spans"].spans_search_by_name
    (found,) = known["dpipe", "rank-spans"]
    assert [group.name for group in found.groups] == ["rank-spans"]
    assert dask.get_annotations() == {}


def test_a_scheduler_that_serves_many_runs_gets_no_new_spans(
    cluster: LocalCluster, client: Client
) -> None:
    # Dask keeps each span for good, and the workers the metrics they note under its name.
    known = cluster.scheduler.extensions["spans"].spans

    def settled() -> set[str]:
        while cluster.scheduler.tasks:  # the tasks of the next run would else join these
            time.sleep(0.01)
        return set(known)

    run_stage(client, "rank-again")
    before = settled()
    for _ in range(3):
        run_stage(client, "rank-again")
        assert settled() == before


def test_a_stage_within_a_callers_span_is_a_part_of_it(
    cluster: LocalCluster, client: Client
) -> None:
    with distributed.span("theirs") as identity:
        run_stage(client, "rank-theirs")
    spans = cluster.scheduler.extensions["spans"]
    (found,) = spans.spans_search_by_name["theirs", "dpipe", "rank-theirs"]
    assert found.parent.parent is spans.spans[identity]


def test_a_scheduler_without_spans_does_as_well() -> None:
    without = {name: made for name, made in DEFAULT_EXTENSIONS.items() if name != "spans"}
    with (
        LocalCluster(
            n_workers=1,
            threads_per_worker=1,
            processes=False,
            dashboard_address="127.0.0.1:0",
            scheduler_kwargs={"extensions": without},
        ) as cluster,
        Client(cluster) as client,
    ):
        assert "spans" not in cluster.scheduler.extensions
        assert run_stage(client, "rank-columns") == [0, 1, 2, 3, 4]


# The page


def reading(moment: str, number: int, process: str, pid: int, rss: int) -> MemoryReading:
    return MemoryReading(moment, number, process, pid, rss, rss + 5, None, 1.0)


def planned(number: int, name: str, tasks: int, worker_bytes: int) -> PlannedPass:
    return PlannedPass(number, name, 40, tasks, worker_bytes, 10**6, 1e9, "a block")


def events_of_a_run() -> list[Event]:
    """Up to the middle of pass 2."""
    passes = (planned(1, "prepare", 3, 300 << 20), planned(2, "spearman", 8, 400 << 20))
    before = [reading("after", 1, name, pid, 200 << 20) for name, pid in (("worker 0", 11),)]
    after = [reading("recycled", 1, name, pid, 90 << 20) for name, pid in (("worker 0", 12),)]
    return [
        PassStarted(1, "prepare", 40),
        RunStarted(1000, 40, 1, "cpu", None, 2 << 30, 0, passes),
        StageStarted("rank-columns", 3),
        *(TaskDone("rank-columns") for _ in range(3)),
        MemoryRead(tuple(before)),
        MemoryRead(tuple(after)),
        PassDone(1, "prepare", 40, 30, 2.5, reused=False),
        PassStarted(2, "spearman", 30),
        StageStarted("moments-spearman", 8),
        TaskDone("moments-spearman"),
        Note("<b>a card</b> is nearly full.", "warning"),
        Note("nobody need know this."),
    ]


def board_of(events: list[Event]) -> Board:
    board = Board()
    for event in events:
        board(event)
    return board


def test_board_holds_plan_progress_and_restarts() -> None:
    state = json.loads(board_of(events_of_a_run()).state())
    first, second = state["passes"]
    assert (first["state"], first["kept"], first["done_tasks"]) == ("done", 30, 3)
    assert (first["planned_bytes"], first["peak"]) == (300 << 20, (200 << 20) + 5)
    assert (second["state"], second["planned_tasks"], second["done_tasks"]) == ("running", 8, 1)
    assert (state["stage"]["name"], state["stage"]["done"]) == ("moments-spearman", 1)
    (restart,) = state["restarts"]
    (process,) = restart["processes"]
    assert (process["before"]["pid"], process["after"]["pid"]) == (11, 12)
    assert (process["before"]["rss"], process["after"]["rss"]) == (200 << 20, 90 << 20)
    assert state["warnings"] == ["<b>a card</b> is nearly full."]


def fetched(url: str) -> str:
    with urllib.request.urlopen(url, timeout=20) as answer:  # noqa: S310 our own page
        text: str = answer.read().decode()
        return text


def eventually(look: Callable[[], Any]) -> Any:
    """What `look` says once it says something; the page is refreshed every second."""
    import time

    for _ in range(200):
        if (found := look()) is not None:
            return found
        time.sleep(0.1)
    raise AssertionError("it never came")


@pytest.mark.usefixtures("dask_report")
def test_page_shows_a_run_while_it_runs(tmp_path: Path) -> None:
    write_parts(mixed_table(400), tmp_path / "table")
    seen: dict[str, Any] = {}
    where: list[str] = []

    def watch(event: Event) -> None:
        if isinstance(event, RunStarted):
            assert event.page is not None
            where.append(event.page)
            assert fetched(event.page) == page(), "it is there when it is told of"
        if isinstance(event, StageStarted) and event.name == "moments-spearman":

            def in_pass_2() -> Any:
                state = json.loads(fetched(where[0] + "/state.json"))
                _, second = state["run"]["passes"]  # restarts are told of a moment before
                return state if second["state"] == "running" else None

            seen["state"] = eventually(in_pass_2)

    options = options_from({"workers": 1, "passes": (1, 2)})
    run([tmp_path / "table"], options, output_dir=tmp_path / "out", observers=[watch])
    first, second = seen["state"]["run"]["passes"]
    assert (first["state"], second["state"]) == ("done", "running")
    assert 0 < first["peak"] <= first["planned_bytes"]
    worker = next(
        each
        for each in seen["state"]["run"]["restarts"][0]["processes"]
        if each["process"] != "client"
    )
    assert worker["before"]["pid"] != worker["after"]["pid"]
    assert seen["state"]["memory"]
    assert len(seen["state"]["workers"]) == 1

    samples = (tmp_path / "out" / MEMORY_SAMPLES).read_text().splitlines()
    assert samples[0] == "seconds,bytes"
    assert max(int(line.split(",")[1]) for line in samples[1:]) > 2**20
    assert "rank-columns" in (tmp_path / "out" / PERFORMANCE_REPORT).read_text()


def test_attached_scheduler_is_left_without_the_page(client: Client) -> None:
    with attach_session(client, Options()) as session:
        link = page_link(session)
        assert link is not None
        with shown(session, "the page", Board().state, silent):
            assert fetched(link) == "the page"
        with pytest.raises(urllib.error.HTTPError, match="404") as error:
            fetched(link)
        error.value.close()


def test_run_ends_well_on_a_scheduler_that_records_nothing(tmp_path: Path) -> None:
    write_parts(mixed_table(200), tmp_path / "table")
    notes: list[Event] = []
    without = {n: made for n, made in DEFAULT_EXTENSIONS.items() if n != "memory_sampler"}
    with (
        LocalCluster(
            n_workers=1,
            threads_per_worker=1,
            processes=False,
            dashboard_address="127.0.0.1:0",
            scheduler_kwargs={"extensions": without},
        ) as cluster,
        Client(cluster) as client,
    ):
        found = run(
            [tmp_path / "table"],
            options_from({"passes": (1, 2)}),
            output_dir=tmp_path / "out",
            client=client,
            observers=[notes.append],
        )
    assert found.selected
    texts = [n.text for n in notes if isinstance(n, Note)]
    assert any("record of the run is not kept" in text for text in texts), texts
    assert not any(
        (tmp_path / "out" / name).exists() for name in (MEMORY_SAMPLES, PERFORMANCE_REPORT)
    )


def test_what_cannot_be_served_or_saved_ends_no_run(client: Client) -> None:
    notes: list[str] = []

    def emit(event: Event) -> None:
        if isinstance(event, Note):
            notes.append(event.text)

    def fail(*_: Any) -> Any:
        raise OSError("the disk is full")

    with attach_session(client, Options()) as session:
        broken = BrokenScheduler(session)
        with shown(broken, "the page", Board().state, emit):  # type: ignore[arg-type]
            eventually(lambda: notes or None)
        with recorded(session, fail, emit):
            pass
    assert "the page /dpipe is not shown" in notes[0]
    assert notes[1:] == [
        f"{name} is not kept (OSError: the disk is full)."
        for name in (MEMORY_SAMPLES, PERFORMANCE_REPORT)
    ]


class BrokenScheduler:
    """A session whose scheduler answers nothing."""

    owned = True

    def __init__(self, session: Session) -> None:
        self._client = session.client

    @property
    def client(self) -> Client:
        raise RuntimeError("closed")


@needs_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_in_a_browser(browser: Browser, client: Client, scheme: str) -> None:
    board = board_of(events_of_a_run())
    browser.scheme(scheme)
    with (
        attach_session(client, Options()) as session,
        recorded(session, lambda *_: None, silent),
        shown(session, page(), board.state, silent),
    ):
        link = page_link(session)
        assert link is not None
        browser.complaints()
        browser.driver.get(link)
        browser.wait("return document.querySelectorAll('#passes tr').length == 2")
        browser.wait("return document.querySelector('#chart path') != null")
        assert browser.texts("#passes td:first-child") == ["1 prepare", "2 spearman"]
        assert browser.texts("#passes td:last-child") == ["200 MiB", ""]
        memory = "#restarts td:nth-child(n + 5):nth-child(-n + 6)"
        assert browser.texts(memory) == ["200 MiB", "90 MiB"]
        assert browser.texts("#warnings p") == ["warning: <b>a card</b> is nearly full."]
        assert browser.one("#dask").get_attribute("href").endswith("/status")
        board(PassDone(2, "spearman", 30, 20, 1.5, reused=False))
        browser.wait("return document.querySelectorAll('#passes td')[12].textContent == '20'")
        assert browser.complaints() == []
