"""What `dpipe doctor` finds.

Covers: a look at a real cluster, and what is called a problem.
Does not cover: how findings are printed (`test_cli_runs`), refusals of a session
(`test_session_start`, `test_session_connections`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dpipe.options import Options
from dpipe.session.doctor import Facts, Finding, Probe, examine, look
from dpipe.session.doctor import _client_findings as client_findings
from dpipe.session.doctor import _worker_findings as worker_findings


@pytest.fixture(scope="module")
def here() -> Facts:
    return dataclasses.replace(look(Probe(None, None, (), None)), disk="ext4", card=None)


@pytest.fixture
def worker(here: Facts) -> Callable[..., Facts]:
    """A worker as healthy as this process, but for what a test changes."""
    healthy = dataclasses.replace(here, name="0", limit=2**31, nanny=True, threads=1)

    def change(**facts: Any) -> Facts:
        return dataclasses.replace(healthy, **facts)

    return change


def problems(findings: Any) -> list[Finding]:
    return [finding for finding in findings if finding.problem]


def test_it_looks_at_a_running_cluster(cluster: Any, tmp_path: Path) -> None:
    pq.write_table(pa.table({"x": [1.0, 2.0]}), tmp_path / "a.parquet")
    options = Options(scheduler=cluster.scheduler_address, scratch_dir=str(tmp_path))
    findings = list(examine(options, [str(tmp_path / "a.parquet")]))
    text = {(finding.place, finding.subject): finding.text for finding in findings}
    assert text["session", "workers"] == "2 workers on 1 host"
    assert text["workers 0, 1", "limits"] == "2.0 GiB of memory, 1 task thread"
    assert text["workers 0, 1", "nanny"] == "yes"
    assert text["workers 0, 1", "versions"] == "as on the client"
    assert str(tmp_path) in text["workers 0, 1", "scratch"]
    assert not [f for f in problems(findings) if f.subject in ("scratch", "input", "versions")]
    assert [path.name for path in tmp_path.iterdir()] == ["a.parquet"]


def test_healthy_workers_are_no_problem(here: Facts, worker: Callable[..., Facts]) -> None:
    assert problems(worker_findings(here, [worker(), worker(name="1")], shared=True)) == []


@pytest.mark.parametrize(
    ("change", "subject", "says"),
    [
        ({"limit": None}, "limits", "no memory limit"),
        ({"nanny": False}, "nanny", "cannot be restarted"),
        ({"python": "3.10.1"}, "versions", "python 3.10.1 instead of"),
        ({"versions": {}}, "versions", "dask missing instead of"),
        ({"sees_token": False}, "scratch", "that all workers share"),
        ({"disk": "tmpfs"}, "scratch", "lies in memory"),
        ({"writable": False}, "scratch", "cannot be written"),
        ({"unreadable": ("a.parquet is cut short.",)}, "input", "a.parquet is cut short."),
        ({"card": "NVIDIA H100, 80 GiB"}, "GPU", "is not installed"),
    ],
)
def test_what_is_a_problem_of_a_worker(
    change: dict[str, Any],
    subject: str,
    says: str,
    here: Facts,
    worker: Callable[..., Facts],
) -> None:
    versions = {name: "1" for name in here.versions if name not in ("cupy", "dask-cuda", "rmm")}
    ordinary = dataclasses.replace(here, versions=versions)
    odd = worker(**{"versions": versions, **change})
    found = problems(worker_findings(ordinary, [odd], shared=True))
    assert [finding.subject for finding in found] == [subject]
    assert says in found[0].text


def test_missing_packages_and_few_files_are_problems_here(here: Facts) -> None:
    poor = dataclasses.replace(here, versions={"dpipe": "1"}, open_files=256)
    assert [f.subject for f in problems(client_findings(poor))] == ["packages", "open files"]


def test_workers_that_differ_are_told_apart(here: Facts, worker: Callable[..., Facts]) -> None:
    crowd = [*(worker(name=str(i)) for i in range(6)), worker(name="6", threads=2)]
    places = {finding.place for finding in worker_findings(here, crowd, shared=False)}
    assert places == {"workers 0, 1, 2, 3 and 2 more", "worker 6"}
