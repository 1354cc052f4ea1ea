"""Whether a session computes on cards, and what it says where it does not.

Covers: own and attached workers with what NVML and CuPy would say of them, the plan of a run, cards
whose memory an old worker keeps.
Does not cover: what NVML and CuPy say (`test_card`), kernels on a device (`test_gpu`).
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from distributed import LocalCluster
from distributed.system import MEMORY_LIMIT
from sessions import Heard, worker_facts

from dpipe.device import card
from dpipe.engine.machine import Machine
from dpipe.errors import InputError
from dpipe.model.events import Note, silent
from dpipe.options import Options
from dpipe.pipeline import plan_run
from dpipe.session import cards, device, local, open_session
from dpipe.session.cards import CardMemory

# Devices


@contextlib.contextmanager
def machine(
    monkeypatch: pytest.MonkeyPatch, cards: int, *packages: str, trouble: str | None = None
) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setattr(card, "visible_cards", lambda: cards)
        trial = card.Trial("uuid", 0 if trouble else 60 << 30, trouble)
        patch.setattr(card, "probe_elsewhere", lambda: trial)
        patch.setattr("importlib.util.find_spec", lambda name: name in packages or None)
        yield


@pytest.mark.parametrize(
    ("cards", "packages", "reason"),
    [
        (0, ("dask_cuda", "cupy", "rmm"), "no NVIDIA card is visible"),
        (1, ("cupy", "rmm"), "the package dask_cuda is not installed"),
        (1, ("dask_cuda", "rmm"), "the package cupy is not installed"),
        (1, ("dask_cuda", "cupy"), "the package rmm is not installed"),
    ],
)
def test_a_gpu_session_says_what_is_missing(
    cards: int,
    packages: tuple[str, ...],
    reason: str,
    heard: Heard,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with machine(monkeypatch, cards, *packages):
        with pytest.raises(InputError, match=f"--device gpu cannot be used here: .*{reason}"):
            open_session(Options(device="gpu"))
        assert device.choose_local_device(Options(device="auto"), heard) == ("cpu", None)
    assert [note.level for note in heard] == ["info"]
    assert heard.texts.startswith("computing on the CPU: ")
    assert reason in heard.texts


def test_auto_takes_the_gpu_when_all_is_there(
    heard: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    with machine(monkeypatch, 2, "dask_cuda", "cupy", "rmm"):
        assert device.choose_local_device(Options(), heard) == ("gpu", 60 << 30)
        assert device.choose_local_device(Options(device="gpu"), heard) == ("gpu", 60 << 30)
        assert device.choose_local_device(Options(device="cpu"), heard) == ("cpu", None)
    assert heard == [Note("computing on 2 GPUs: a card is visible.")]


@pytest.mark.parametrize("trouble", ["CuPy was made for CUDA 13", "the card is nearly full"])
def test_a_card_that_cupy_cannot_use_is_no_gpu(
    trouble: str, heard: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    with machine(monkeypatch, 1, "dask_cuda", "cupy", "rmm", trouble=trouble):
        with pytest.raises(InputError, match=f"--device gpu cannot be used here: {trouble}"):
            open_session(Options(device="gpu"))
        assert device.choose_local_device(Options(), heard) == ("cpu", None)
    assert heard == [Note(f"computing on the CPU: {trouble}.")]


FINE = card.Trial("a", 40 << 30, None)


@pytest.mark.parametrize(
    ("has_gpu", "trials", "lack"),
    [
        ((True, False), {}, "worker 1 has no visible card or no CuPy"),
        ((True, True), {"0": FINE}, "worker 1 does not answer when it is to try CuPy"),
        ((True, True), {"0": FINE, "1": OSError()}, "worker 1 does not answer"),
        (
            (True, True),
            {"0": FINE, "1": card.Trial("", 0, "CuPy was made for CUDA 13")},
            "on worker 1, CuPy was made for CUDA 13",
        ),
    ],
)
def test_attached_workers_that_cannot_all_use_a_card(
    has_gpu: tuple[bool, bool], trials: dict[str, Any], lack: str, heard: Heard
) -> None:
    facts = [worker_facts(str(n), has) for n, has in enumerate(has_gpu)]
    choose = device.choose_attached_device
    with pytest.raises(InputError, match=f"--device gpu cannot be used on this cluster: {lack}"):
        choose("gpu", facts, lambda: trials, heard)
    assert heard == []
    assert choose("auto", facts, lambda: trials, heard) == ("cpu", None)
    assert heard.texts.startswith(f"computing on the CPU: {lack}")


@pytest.mark.parametrize(
    ("other", "room"),
    [(card.Trial("b", 30 << 30, None), 30 << 30), (FINE, 20 << 30)],
    ids=["two cards", "one card for both"],
)
def test_attached_workers_share_the_card_they_share(
    other: card.Trial, room: int, heard: Heard
) -> None:
    facts = [worker_facts("0"), worker_facts("1")]
    found = device.choose_attached_device("auto", facts, lambda: {"0": FINE, "1": other}, heard)
    assert found == ("gpu", room)
    assert heard == [Note("computing on the GPU: every worker has a card and CuPy.")]


def test_a_gpu_cluster_has_one_worker_a_card_and_one_allocator() -> None:
    workers = device.LocalWorkers("gpu", number=4, threads=1, memory=2**30, room=60 << 30)
    options = local.gpu_options(Options(), workers, "/scratch")
    assert options["n_workers"] == 4
    assert options["memory_limit"] == 2**30
    assert options["threads_per_worker"] == 1
    assert options["host"] == "127.0.0.1"
    assert options["local_directory"] == "/scratch"
    assert options["rmm_async"] is True
    assert 0 < options["rmm_release_threshold"] < 1
    assert options["rmm_allocator_external_lib_list"] == ["cupy"]
    assert not {"rmm_pool_size", "jit_unspill", "env", "processes"} & options.keys()


def test_a_gpu_session_gets_one_worker_a_card_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    with machine(monkeypatch, 4, "dask_cuda", "cupy", "rmm"):
        assert device.local_workers(Options(), silent).number == 4
        assert device.local_workers(Options(workers=2), silent).number == 2
        with pytest.raises(InputError, match="--workers 5 exceeds the 4 visible GPUs"):
            device.local_workers(Options(workers=5), silent)


def test_a_plan_is_made_for_the_cards_a_run_would_take(monkeypatch: pytest.MonkeyPatch) -> None:
    def planned(**options: Any) -> Machine:
        return plan_run(None, Options(**options), rows=1000, columns=10).machine

    with machine(monkeypatch, 3, "dask_cuda", "cupy", "rmm"):
        found = planned()
        assert (found.workers, found.device) == (3, 60 << 30)
        assert found.memory == MEMORY_LIMIT // 3
        assert planned(device="gpu") == found
        assert planned(device="cpu").device is None
    with machine(monkeypatch, 0), pytest.raises(InputError, match="--device gpu cannot be used"):
        planned(device="gpu")


def test_a_gpu_cluster_is_started_by_dask_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[dict[str, Any]] = []

    class LocalCUDACluster(LocalCluster):
        def __init__(self, **options: Any) -> None:
            started.append(options)

    monkeypatch.setitem(
        sys.modules, "dask_cuda", SimpleNamespace(LocalCUDACluster=LocalCUDACluster)
    )
    workers = device.LocalWorkers("gpu", number=3, threads=1, memory=2**30, room=60 << 30)
    monkeypatch.setattr(LocalCUDACluster, "__del__", lambda self: None, raising=False)
    cluster = local._start_gpu_cluster(Options(), workers, "/scratch")
    assert isinstance(cluster, local.NoLostWorkerTimeout)
    assert started == [local.gpu_options(Options(), workers, "/scratch")]


@pytest.mark.parametrize(
    ("installed", "visible", "cards"),
    [(4, None, 4), (4, "0,2", 2), (4, "", 0), (4, "-1", 0), (0, "0", 0), (1, "GPU-a,GPU-b", 1)],
)
def test_visible_cards_are_counted(
    installed: int, visible: str | None, cards: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(card.nvml, "device_get_count", lambda: installed)
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert card.visible_cards() == cards


# Memory of a card


def test_a_card_that_stays_full_is_warned_about() -> None:
    for baseline, now in [(None, 5 << 30), (1 << 30, 1 << 30), (None, None)]:
        memory = CardMemory([worker_facts("0", device=baseline)])
        assert memory.warnings([worker_facts("0", device=now)]) == []
    memory = CardMemory([worker_facts("0", device=1 << 30)])
    (text,) = memory.warnings([worker_facts("0", device=5 << 30, pid=7, holders=(7, 4711))])
    assert "the card of worker 0 has 4.0 GiB more in use" in text
    assert text.endswith("other processes on it: 4711.")
    (text,) = memory.warnings([worker_facts("0", device=5 << 30, pid=7)])
    assert text.endswith("nvidia-smi may know which.")


def test_a_card_that_an_old_worker_holds_on_to_is_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cards, "CARD_SECONDS", 0.5)
    memory = CardMemory([worker_facts("0", device=1 << 30)])
    full = (worker_facts("0", device=5 << 30, pid=7, holders=(7, 99)),)
    wait_on = memory.wait_until_released
    assert wait_on(full, frozenset({99}), lambda: full) == (full, frozenset({99}))
    assert wait_on(full, frozenset({98}), lambda: full) == (full, frozenset())
    free = (worker_facts("0", device=1 << 30, pid=7),)
    assert wait_on(full, frozenset({99}), lambda: free) == (free, frozenset())


def test_a_cluster_whose_old_worker_keeps_the_card_is_opened_anew(
    monkeypatch: pytest.MonkeyPatch, heard: Heard
) -> None:
    with open_session(Options(workers=1, device="cpu"), emit=heard) as session:
        first = session._local.pids()  # type: ignore[union-attr]
        answers = iter([frozenset({4711}), frozenset()])
        monkeypatch.setattr(
            session._cards, "wait_until_released", lambda facts, old, look: (facts, next(answers))
        )
        address = session.client.scheduler.address
        session.recycle(1)
        assert session.client.scheduler.address != address
        assert not first & session._local.pids()  # type: ignore[union-attr]
    assert "process 4711 still has memory of its card" in heard.warnings[0]
