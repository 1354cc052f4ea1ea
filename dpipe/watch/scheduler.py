"""What Dask's scheduler shows and remembers of a run: the page ``/dpipe``, memory, task stream.

Covers: serving a page on the scheduler's own server and keeping its state fresh, sampling the
memory of all workers, Dask's performance report.
Does not cover: what the page says (see `dpipe.watch.board`), the ledger (see `dpipe.session`).

Nothing here may end a run: whatever a scheduler answers, or does not, is at most a Note.
"""

from __future__ import annotations

import contextlib
import csv
import io
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from dpipe.model.events import Emit, Note
from dpipe.model.inventory import MEMORY_SAMPLES, PERFORMANCE_REPORT
from dpipe.session import Session

PATH = "/dpipe"
"""Where the page is, beside Dask's own ``/status``."""
SAMPLE_SECONDS = 0.5
"""Time between two samples of the workers' memory, as Dask's MemorySampler has it."""
_REFRESH_SECONDS = 1.0
_ANSWER_SECONDS = 10.0  # how long a scheduler may take over any of this
_REPORT_SECONDS = 60.0
_POINTS_SHOWN = 600  # of the memory curve on the page

Save = Callable[[str, str], None]
"""Writes a text into the run folder: (file name, text)."""


def page_link(session: Session) -> str | None:
    """Where the page of this session is, None without a dashboard."""
    link = session.dashboard
    return None if link is None else link.rsplit("/", 1)[0] + PATH


@contextlib.contextmanager
def shown(session: Session, page: str, state: Callable[[], str], emit: Emit) -> Iterator[None]:
    """Serve `page` and the newest `state` on the scheduler while the block runs.

    Parameters
    ----------
    session
        Its scheduler serves; one that dpipe only attached to is left as it was.
    page
        HTML, served at `PATH`.
    state
        Called about once a second; its JSON is served at ``PATH/state.json``, with the memory of
        the workers beside it.
    emit
        Told, once, when the scheduler does not take the page.
    """
    ended = threading.Event()

    def refresh(sent: str | None = None) -> str | None:
        """Send what is new; None when the scheduler does not take it."""
        text = state()
        try:
            # A cluster that had to be opened anew has no page yet.
            if text != sent and not _on_scheduler(session, _update(text)):
                _on_scheduler(session, _serve(page, text))
        except Exception as error:  # a foreign scheduler may raise anything
            emit(Note(f"the page {PATH} is not shown ({type(error).__name__}: {error})."))
            return None
        return text

    def keep_fresh(sent: str | None) -> None:
        while sent is not None and not ended.wait(_REFRESH_SECONDS):
            sent = refresh(sent)

    # The first time here, so that the page is there before anybody is told of it.
    thread = threading.Thread(target=keep_fresh, args=(refresh(),), name="dpipe-page", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(_ANSWER_SECONDS)
        if not session.owned:
            with contextlib.suppress(Exception):  # it may be gone, and the page with it
                _on_scheduler(session, _withdraw())


def _on_scheduler(session: Session, function: Callable[..., Any]) -> Any:
    client = session.client
    return client.sync(client.run_on_scheduler, function, callback_timeout=_ANSWER_SECONDS)


# What runs on the scheduler. Nested, so that it travels by value: the scheduler need not have
# dpipe installed.


def _update(text: str) -> Callable[..., bool]:
    def update(dask_scheduler: Any) -> bool:
        for application in dask_scheduler.http_application.applications:
            if "dpipe" in getattr(application, "settings", {}):
                application.settings["dpipe"] = text
                return True
        return False

    return update


def _serve(page: str, text: str) -> Callable[..., None]:
    most = _POINTS_SHOWN

    def serve(dask_scheduler: Any) -> None:
        import json

        from tornado.web import Application, RequestHandler

        class Page(RequestHandler):
            def get(self) -> None:
                self.set_header(
                    "Content-Security-Policy",
                    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
                    "connect-src 'self'; img-src data:",
                )
                self.finish(page)

        class State(RequestHandler):
            def get(self) -> None:
                sampler = dask_scheduler.extensions.get("memory_sampler")
                series = list(sampler.samples.values()) if sampler is not None else []
                memory: list[Any] = max(series, key=len, default=[])
                memory = memory[:: -(-len(memory) // most) or 1]
                workers = [
                    {"name": str(worker.name), "memory": worker.metrics.get("memory", 0)}
                    for worker in dask_scheduler.workers.values()
                ]
                run = json.loads(self.application.settings["dpipe"])
                self.set_header("Cache-Control", "no-store")
                self.finish({"run": run, "memory": memory, "workers": workers})

        # Any prefix, for behind a proxy there may be one.
        routes = [(r".*/dpipe", Page), (r".*/dpipe/state\.json", State)]
        dask_scheduler.http_application.add_application(Application(routes, dpipe=text))

    return serve


def _withdraw() -> Callable[..., None]:
    def withdraw(dask_scheduler: Any) -> None:
        applications = dask_scheduler.http_application.applications
        applications[:] = [a for a in applications if "dpipe" not in getattr(a, "settings", {})]

    return withdraw


# What stays in the run folder.


@contextlib.contextmanager
def recorded(session: Session, save: Save, emit: Emit) -> Iterator[None]:
    """Keep Dask's own record of the block: the memory of all workers, and what they did when.

    Leaves ``memory_samples.csv`` (seconds since the beginning, bytes of all workers together) and
    Dask's ``performance_report.html``, unless the block fails or the cluster became another one.

    Parameters
    ----------
    session
        Whose cluster to look at.
    save
        Writes a text under a name.
    emit
        Told what could not be kept.
    """
    client, began = session.client, time.time()
    scheduler: Any = client.scheduler

    def ask(function: Any, *arguments: Any, seconds: float = _ANSWER_SECONDS, **named: Any) -> Any:
        return client.sync(function, *arguments, callback_timeout=seconds, **named)

    def keep(name: str, text: Callable[[], str]) -> None:
        try:
            save(name, text())
        except Exception as error:  # a full disk is told of by what has to be written
            emit(Note(f"{name} is not kept ({type(error).__name__}: {error})."))

    key = count = None
    try:
        # The calls of MemorySampler and performance_report, which know no deadline.
        key = ask(
            scheduler.memory_sampler_start,
            client=client.id,
            measure="process",
            interval=SAMPLE_SECONDS,
        )
        if key is None:
            raise LookupError("its scheduler has no sampler of memory")
        count = ask(client.run_on_scheduler, _monitor_count())
        ask(client.get_task_stream, start=0, stop=0)  # from now on the scheduler records it
    except Exception as error:  # an older or a foreign scheduler may not know any of it
        emit(Note(f"Dask's record of the run is not kept ({type(error).__name__}: {error})."))
    samples: list[tuple[float, int]] = []
    try:
        yield
    finally:
        if key is not None and session.client is client:
            with contextlib.suppress(Exception):  # a scheduler that is gone has stopped, too
                samples = ask(scheduler.memory_sampler_stop, key=key)
    if samples and count is not None:  # not of a cluster that had to be opened anew
        keep(MEMORY_SAMPLES, lambda: _as_csv(samples, began))
        keep(
            PERFORMANCE_REPORT,
            lambda: ask(
                scheduler.performance_report,
                start=began,
                last_count=count,
                code="",
                mode="inline",
                seconds=_REPORT_SECONDS,
            ),
        )


def _monitor_count() -> Callable[..., int]:
    def count(dask_scheduler: Any) -> int:
        return int(dask_scheduler.monitor.count)

    return count


def _as_csv(samples: list[tuple[float, int]], began: float) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("seconds", "bytes"))
    writer.writerows((f"{moment - began:.2f}", size) for moment, size in samples)
    return text.getvalue()
