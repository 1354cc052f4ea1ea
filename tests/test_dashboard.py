"""What Dask's own dashboard can show of a run.

Covers: the span that groups the tasks of a stage, schedulers that know no spans.
Does not cover: Dask's pages, the progress in a terminal (see ``tests/test_progress.py``).
"""

from __future__ import annotations

from typing import Any

import dask
from distributed import Client, LocalCluster
from distributed.scheduler import DEFAULT_EXTENSIONS

from dpipe.config import Options
from dpipe.execute import iterate, run_tasks
from dpipe.model import silent
from dpipe.session import attach_session


def run_stage(client: Client, name: str) -> list[Any]:
    with attach_session(client, Options()) as session:
        return iterate(
            run_tasks(session, name, abs, [(-i,) for i in range(5)], silent, need=1, describe=str)
        )


def test_the_tasks_of_a_stage_are_one_span(cluster: LocalCluster, client: Client) -> None:
    assert run_stage(client, "rank-spans") == [0, 1, 2, 3, 4]
    known = cluster.scheduler.extensions["spans"].spans_search_by_name
    (found,) = known["dpipe", "rank-spans"]
    assert [group.name for group in found.groups] == ["rank-spans"]
    assert dask.get_annotations() == {}


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
