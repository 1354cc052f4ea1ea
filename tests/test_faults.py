"""Runs on clusters that fail: what dies, fills up or disappears costs time, never the answer."""

from __future__ import annotations

import ctypes
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from distributed import Client
from trials import DEADLINE, Reference, Trial, make_reference, make_table, start, wait_for

from dpipe import pipeline
from dpipe.engine import submit
from dpipe.errors import ResourceError
from dpipe.model.events import Event, Fault, Note
from dpipe.options import Options
from dpipe.session import attach_session


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    folder = tmp_path_factory.mktemp("faults")
    return make_reference(make_table(folder / "table"), folder / "run")


def faults_of(trial: Trial) -> dict[str, int]:
    """Kind of fault -> how many the run says it survived."""
    found: dict[str, int] = {}
    for fault in json.loads((trial.folder / "run.json").read_text())["faults"]:
        found[fault["kind"]] = found.get(fault["kind"], 0) + fault["count"]
    return found


def stop(process: psutil.Process, number: signal.Signals) -> bool:
    """Send a signal to a process that may have ended; whether it was there."""
    with suppress(psutil.NoSuchProcess):
        process.send_signal(number)
        return True
    return False


# Workers


def kill_at_random(trial: Trial, seed: int, every: float = 2.0) -> int:
    """Kill a worker at random every so often until the run ends; how many died."""
    draw = random.Random(seed)
    killed = 0
    deadline = time.monotonic() + DEADLINE * 2
    while trial.process.poll() is None:
        assert time.monotonic() < deadline, "the run goes on for ever"
        time.sleep(every)
        workers = trial.workers()
        if workers:
            killed += stop(draw.choice(workers), signal.SIGKILL)
    return killed


def check_random_kills(reference: Reference, folder: Path, seed: int) -> None:
    trial = start(reference.table, folder, "--restart", "auto", seconds=0.4)
    wait_for(lambda: trial.files("layout.json"), "the first tasks")
    killed = kill_at_random(trial, seed)
    trial.finish()
    reference.check(trial)
    assert killed >= 2
    survived = faults_of(trial)
    assert 1 <= survived["worker lost"] <= killed
    assert survived["task repeated"] >= 1


def test_workers_killed_every_two_seconds(reference: Reference, tmp_path: Path) -> None:
    check_random_kills(reference, tmp_path / "run", seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_workers_killed_every_two_seconds_again(
    reference: Reference, tmp_path: Path, seed: int
) -> None:
    check_random_kills(reference, tmp_path / "run", seed)


def test_a_worker_that_is_stopped_and_goes_on(reference: Reference, tmp_path: Path) -> None:
    trial = start(reference.table, tmp_path / "run", seconds=0.3)
    wait_for(lambda: trial.files("block-*.json"), "the first finished block")
    worker = trial.workers()[0]
    assert stop(worker, signal.SIGSTOP)
    time.sleep(5)
    assert stop(worker, signal.SIGCONT)
    trial.finish()
    reference.check(trial)
    assert faults_of(trial) == {}


def test_a_task_that_kills_its_workers_ends_in_one_sentence(
    reference: Reference, tmp_path: Path
) -> None:
    trial = start(reference.table, tmp_path / "run", fault="worker-dies */spearman-*/catalogue.npz")
    assert trial.finish() == 3
    assert re.fullmatch(
        r"Error: pass 2 \(spearman\): a moments-spearman task on \d+ columns \('\w+' to '\w+'\) x "
        r"\d+ columns \('\w+' to '\w+'\), projected to need [\d.]+ \w+, killed every worker it ran "
        r"on \(limit [\d.]+ GiB each\); raise --memory-limit or lower --threads-per-worker, then "
        r"run the same command again to continue\.\n",
        trial.errors,
    )
    again = start(reference.table, tmp_path / "run", verbose=True)
    again.finish()
    reference.check(again)
    assert again.tasks.get("rank-columns", 0) == 0


# A cluster of somebody else


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def foreign_cluster(n_workers: int = 2) -> Iterator[tuple[str, list[psutil.Process]]]:
    """A scheduler and nannies as ``dask scheduler`` and ``dask worker`` start them."""
    port = free_port()
    address = f"tcp://127.0.0.1:{port}"
    dask = [sys.executable, "-m", "dask"]
    words = [
        [*dask, "scheduler", "--host", "127.0.0.1", "--port", str(port), "--no-dashboard"],
        *[
            [*dask, "worker", address, "--nthreads", "1", "--host", "127.0.0.1", "--no-dashboard"]
            for _ in range(n_workers)
        ],
    ]
    folder = tempfile.mkdtemp(prefix="dpipe-test-")
    started: list[psutil.Process] = []
    try:
        for command in words:
            started.append(
                psutil.Popen(
                    command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
                )
            )
        wait_for(lambda: answers(port), "a scheduler")
        with Client(address, set_as_default=False) as client:
            client.wait_for_workers(n_workers, timeout=DEADLINE)
        yield address, started
    finally:
        family = [p for s in started if s.is_running() for p in s.children(recursive=True)]
        for process in [*started, *family]:
            stop(process, signal.SIGKILL)
        psutil.wait_procs([*started, *family], timeout=10)
        shutil.rmtree(folder, ignore_errors=True)


def test_a_nanny_that_is_gone_for_good(reference: Reference, tmp_path: Path) -> None:
    with foreign_cluster() as (address, (_, nanny, _)):
        trial = start(
            reference.table,
            tmp_path / "run",
            seconds=0.2,
            where=("--scheduler", address, "--device", "cpu"),
        )
        wait_for(lambda: trial.files("block-*.json"), "the first finished block")
        stop(nanny, signal.SIGKILL)
        trial.finish()
    # The memory of these workers means other column blocks, so sums differ in last bits.
    reference.check(trial, rounding=1e-5)


def test_a_scheduler_that_dies_ends_the_run_in_time(reference: Reference, tmp_path: Path) -> None:
    with foreign_cluster() as (address, (scheduler, *_)):
        trial = start(
            reference.table,
            tmp_path / "run",
            where=("--scheduler", address, "--device", "cpu"),
        )
        wait_for(lambda: trial.files("block-*.json"), "the first finished block")
        stop(scheduler, signal.SIGKILL)
        code = trial.finish(120)
    assert code == 3, trial.errors
    assert re.search(r"Error: pass \d \(\w+\): the cluster was lost|no worker of", trial.errors)
    assert "run the same command again" in trial.errors
    assert "Traceback" not in trial.errors, trial.errors
    again = start(reference.table, tmp_path / "run")
    again.finish()
    reference.check(again)


# Disks and folders


@pytest.mark.parametrize(
    "pattern",
    [
        pytest.param("*/checkpoint/.statistics.json.*", marks=pytest.mark.slow),
        pytest.param("*/.block-*.f32.*", marks=pytest.mark.slow),
        "*/spearman-*/.tile-*.npz.*",
        pytest.param("*/.spearman.npy.*", marks=pytest.mark.slow),
        "*/prediction-*/.marginals-*.npz.*",
        pytest.param("*/checkpoint/.pass-3.*", marks=pytest.mark.slow),
        pytest.param("*/.decisions.parquet.*", marks=pytest.mark.slow),
        "*/.run.json.*",
    ],
)
def test_a_disk_that_is_full(reference: Reference, tmp_path: Path, pattern: str) -> None:
    trial = start(reference.table, tmp_path / "run", fault=f"disk-full {pattern}")
    assert trial.finish() == 3, trial.errors
    sentences = trial.errors.splitlines()
    assert len(sentences) == 1
    assert re.search("could not write|no space left to write", sentences[0])
    name = re.sub(r"^\.", "", pattern.rpartition("/")[2])
    start_of_name = name.partition("*")[0].partition(".")[0]
    assert re.search(rf"{re.escape(str(tmp_path / 'run'))}/\S*{start_of_name}", sentences[0])
    assert trial.files("*.partial") == []
    again = start(reference.table, tmp_path / "run")
    again.finish()
    reference.check(again)


def test_an_output_folder_that_is_removed(reference: Reference, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    trial = start(reference.table, folder, seconds=0.3)
    wait_for(lambda: trial.files("spearman-*/tile-*.npz"), "the first finished tile")
    while folder.exists():
        shutil.rmtree(folder, ignore_errors=True)
    assert trial.finish() == 3, trial.errors
    assert re.search("the output folder .* was removed while the run went on", trial.errors)
    assert trial.errors.count("\n") == 1
    again = start(reference.table, folder)
    again.finish()
    reference.check(again)


def obey_modes() -> None:
    """Take from a process of root the right to write where modes forbid it."""
    if os.getuid() == 0:
        drop_from_bounding_set, dac_override = 24, 1
        assert ctypes.CDLL(None).prctl(drop_from_bounding_set, dac_override, 0, 0, 0) == 0


def test_an_output_folder_that_becomes_read_only(reference: Reference, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    trial = start(reference.table, folder, seconds=0.3, preexec_fn=obey_modes)
    wait_for(lambda: trial.files("block-*.json"), "the first finished block")
    closed = [folder, *(path for path in folder.rglob("*") if path.is_dir())]
    for path in closed:
        path.chmod(0o555)
    code = trial.finish()
    for path in closed:
        path.chmod(0o755)
    assert code == 3, trial.errors
    # Whoever writes next meets it: a worker, or the client.
    written = r"could not write \S+/run/\S+|\S+/run/\S+ cannot be written"
    assert re.search(rf"({written}) \(Permission denied\)", trial.errors)
    assert trial.errors.count("\n") == 1
    again = start(reference.table, folder)
    again.finish()
    reference.check(again)


# Standing still


def sleep_for(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


def test_a_stall_is_described_and_waited_for(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submit, "STALL_SECONDS", 0.5)
    events: list[Event] = []
    with attach_session(client, Options(device="cpu")) as session:
        results = submit.run_tasks(
            session,
            "take-naps",
            sleep_for,
            [(4.0,)],
            events.append,
            need=1,
            describe=str,
        )
        assert list(results) == [(0, 4.0)]
    notes = [event.text for event in events if isinstance(event, Note)]
    assert any(text.startswith("no take-naps task has finished for") for text in notes)
    details = "\n".join(event.details for event in events if isinstance(event, Fault))
    assert "waiting for take-naps" in details
    assert "sleep_for" in details
    assert len([e for e in events if isinstance(e, Fault)]) <= 4, "patience doubles"


def test_a_stall_is_left_in_the_run_folder(
    client: Any, reference: Reference, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(submit, "STALL_SECONDS", 0.001)
    events: list[Event] = []
    options = Options(min_valid=50, passes=(1, 2), restart="never", device="cpu")
    for _ in range(2):
        pipeline.run(
            reference.table,
            options.replace(fresh=True),
            output_dir=tmp_path / "run",
            client=client,
            observers=[events.append],
        )
        left = sorted((tmp_path / "run").glob("stall-*.txt"))
        record = json.loads((tmp_path / "run" / "run.json").read_text())
        assert left
        assert "waiting for rank-columns" in (tmp_path / "run" / "stall-1.txt").read_text()
        assert len(left) == sum(fault["kind"] == "stalled" for fault in record["faults"])
    assert any("stall-1.txt" in event.text for event in events if isinstance(event, Note))


# Errors of tasks


def raise_it(error: Exception) -> None:
    raise error


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (MemoryError(), "ran out of memory"),
        (FileNotFoundError(2, "No such file or directory", "/x/tile"), "/x/tile was removed while"),
        (OSError(5, "Input/output error", "/x/block"), r"could not read /x/block \(Input/output"),
        (TimeoutError(), "the cluster was lost during take-risks"),
        (ResourceError("disk full"), "^disk full$"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_a_task_raises_becomes_one_sentence(
    client: Any, error: Exception, sentence: str
) -> None:
    def ignore(event: Event) -> None:
        """Nobody listens."""

    with (
        attach_session(client, Options(device="cpu")) as session,
        pytest.raises(ResourceError, match=sentence),
    ):
        list(
            submit.run_tasks(
                session, "take-risks", raise_it, [(error,)], ignore, need=2**20, describe=str
            )
        )
