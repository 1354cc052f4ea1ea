"""The card: what NVML and CuPy say, in one sentence where they say no; pieces kept on it.

Covers: fakes of what a driver and CuPy raise, the process that tries CuPy, products' precision,
a full card: smaller tiles with the same answer, or one sentence.
Does not cover: kernels on a device (`test_gpu`), choosing a device (`test_session_devices`).
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import standin

from dpipe.device import arrays, cache, card

GIB = 2**30


class NVMLError(Exception):
    """What pynvml raises."""


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """One card of 80 GiB under a driver for CUDA 12, as NVML tells of it."""

    def refuse(*_: Any) -> Any:
        raise NVMLError("Not Supported")

    found = SimpleNamespace(
        NVMLError=NVMLError,
        nvmlSystemGetCudaDriverVersion_v2=lambda: 12040,
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetHandleByUUID=lambda uuid: uuid,
        nvmlDeviceGetComputeRunningProcesses=lambda handle: [
            SimpleNamespace(pid=pid) for pid in {0: (7, 5), b"GPU-x": (9,)}.get(handle) or refuse()
        ],
    )
    monkeypatch.setattr(card.nvml, "pynvml", found)
    monkeypatch.setattr(card.nvml, "device_get_count", lambda: 4)
    monkeypatch.setattr(
        card.nvml, "one_time", lambda: {"name": "NVIDIA H100", "memory-total": 80 * GIB}
    )
    monkeypatch.setattr(card.nvml, "real_time", lambda: {"memory-used": 3 * GIB})
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return found


@pytest.mark.parametrize(("visible", "pids"), [(None, (5, 7)), ("GPU-x,1", (9,)), ("2", ())])
def test_holders__are_the_processes_on_the_first_visible_card(
    driver: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, visible: str | None, pids: Any
) -> None:
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert card.holders() == pids


def test_a_card_is_described(driver: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    assert card.describe() == "NVIDIA H100, 80.0 GiB"
    assert card.used_bytes() == 3 * GIB
    # A chip whose memory is the host's has none of its own to tell of.
    monkeypatch.setattr(card.nvml, "one_time", lambda: {"name": "Spark", "memory-total": None})
    monkeypatch.setattr(card.nvml, "real_time", lambda: {"memory-used": None})
    assert card.describe() == "Spark"
    assert card.used_bytes() is None


def test_a_driver_at_odds_with_itself_is_no_card(monkeypatch: pytest.MonkeyPatch) -> None:
    def mismatch() -> int:
        raise NVMLError("Driver/library version mismatch")

    monkeypatch.setattr(card.nvml, "device_get_count", mismatch)
    assert card.visible_cards() == 0
    assert card.describe() is None
    assert card.used_bytes() is None
    assert card.holders() == ()


# Trying CuPy


class FakeCuPy(ModuleType):
    """A CuPy whose card has `free` bytes, or whose first kernel raises."""

    def __init__(self, free: int = 60 * GIB, error: Exception | None = None) -> None:
        super().__init__("cupy")
        self._error = error
        self.cuda = SimpleNamespace(
            runtime=SimpleNamespace(
                memGetInfo=lambda: (free, 80 * GIB),
                getDeviceProperties=lambda device: {"uuid": b"\x01" * 16},
            )
        )
        self.get_default_memory_pool = lambda: SimpleNamespace(free_bytes=lambda: 4096)

    def arange(self, n: int) -> Any:
        if self._error:
            raise self._error
        return np.arange(n)


@pytest.mark.parametrize(
    ("resource", "room"),
    [
        (None, 2 * GIB + 4096),
        (SimpleNamespace(), 2 * GIB + 4096),
        (SimpleNamespace(pool_size=lambda: 70 * GIB), 72 * GIB + 4096),
    ],
    ids=["CuPy's pool", "asynchronous", "RMM's pool"],
)
def test_probe__finds_what_can_be_had(
    monkeypatch: pytest.MonkeyPatch, resource: Any, room: int
) -> None:
    monkeypatch.setitem(sys.modules, "cupy", FakeCuPy(free=2 * GIB))
    monkeypatch.delitem(sys.modules, "rmm", raising=False)
    if resource is not None:
        mr = SimpleNamespace(get_current_device_resource=lambda: resource)
        monkeypatch.setitem(sys.modules, "rmm", SimpleNamespace(mr=mr))
    assert card.probe() == card.Trial("01" * 16, room, None)


def insufficient() -> Exception:
    return RuntimeError("cudaErrorInsufficientDriver: CUDA driver version is insufficient")


@pytest.mark.parametrize(
    ("cupy", "made_for", "words"),
    [
        (FakeCuPy(error=insufficient()), 13, "made for CUDA 13 and the driver serves CUDA 12"),
        (FakeCuPy(error=insufficient()), 13, "install the extra gpu12 instead"),
        (FakeCuPy(error=ImportError("libnvrtc.so.11.2")), 11, "the extra gpu12 fits this driver"),
        (FakeCuPy(error=ValueError("")), None, "CuPy does not compute on the card (ValueError)"),
        (FakeCuPy(error=MemoryError("out")), 12, "the card is nearly full (0 B can be had)"),
        (FakeCuPy(free=GIB // 8), 12, "the card is nearly full (128 MiB can be had); nvidia-smi"),
        (FakeCuPy(free=GIB), 12, None),
    ],
)
def test_probe__says_in_one_sentence_what_is_wrong(
    driver: SimpleNamespace,
    monkeypatch: pytest.MonkeyPatch,
    cupy: ModuleType,
    made_for: int | None,
    words: str | None,
) -> None:
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.delitem(sys.modules, "rmm", raising=False)  # whose pool would count
    monkeypatch.setattr(card, "_cuda_of_cupy", lambda: made_for)
    trouble = card.probe().trouble
    if words is None:
        assert trouble is None
    else:
        assert trouble is not None
        assert words in trouble
        assert "\n" not in trouble
        assert not trouble.endswith(".")


def test_probe_elsewhere__asks_another_process() -> None:
    trial = card.probe_elsewhere()
    try:
        import cupy  # noqa: F401
    except ImportError:
        assert trial.room == 0
        assert "No module named 'cupy'" in str(trial.trouble)
    else:
        assert trial.trouble or trial.room > 0


@pytest.mark.parametrize(
    ("interpreter", "words"),
    [("/bin/false", "ends the process"), ("/no/such/python", "ends the process")],
)
def test_probe_elsewhere__survives_what_becomes_of_the_process(
    monkeypatch: pytest.MonkeyPatch, interpreter: str, words: str
) -> None:
    monkeypatch.setattr(card.sys, "executable", interpreter)
    assert words in str(card.probe_elsewhere().trouble)


def test_probe_elsewhere__does_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(card, "PROBE_SECONDS", 0.01)
    assert "does not answer" in str(card.probe_elsewhere().trouble)


# Products and memory


def test_set_precision__is_asked_for_either_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", standin.cupy)
    for precision, kind in (("tf32", 7), ("float32", 1)):
        arrays.set_precision("gpu", precision)
        assert standin.compute_types == {"float32": kind}
    arrays.set_precision("cpu", "tf32")
    assert standin.compute_types == {"float32": 1}


def test_staged__is_an_array_of_the_shape_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", standin.cupy)
    staged = arrays.staged((3, 5), np.float32)
    staged[:] = 2
    assert staged.shape == (3, 5)
    assert staged.dtype == np.float32
    assert staged.flags.c_contiguous


def test_pace__waits_for_what_lies_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[int] = []
    asked = iter(range(10))

    def record() -> Any:
        number = next(asked)
        return SimpleNamespace(synchronize=lambda: waited.append(number))

    monkeypatch.setitem(sys.modules, "cupy", standin.cupy)
    stream = SimpleNamespace(record=record)
    monkeypatch.setattr(standin.cupy.cuda, "get_current_stream", lambda: stream)
    pace = arrays.Pace("gpu", ahead=2)
    for _ in range(4):
        pace.step()
    assert waited == [0, 1]
    arrays.Pace("cpu").step()
    assert waited == [0, 1]


class CUBLASError(RuntimeError):
    """As CuPy's."""

    __module__ = "cupy_backends.cuda.libs.cublas"


class Held:
    """Stands for an array of a failed attempt."""


def raising(error: Exception, held: list[weakref.ref[Held]]) -> Callable[[], bool]:
    def attempt() -> bool:
        array = Held()
        held.append(weakref.ref(array))
        raise error

    return attempt


@pytest.mark.parametrize(
    "error", [MemoryError("bad_alloc"), CUBLASError("CUBLAS_STATUS_ALLOC_FAILED")]
)
def test_retried__takes_the_smaller_way_on_a_full_card(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.setitem(sys.modules, "cupy", standin.cupy)
    emptied = standin.pool.emptied
    held: list[weakref.ref[Held]] = []
    assert arrays.retried("gpu", raising(error, held), lambda: held[0]() is None)
    assert standin.pool.emptied == emptied + 2
    with pytest.raises(type(error)):
        arrays.retried("cpu", raising(error, held), lambda: True)


def test_retried__leaves_other_errors_alone() -> None:
    for error in (ValueError("ALLOC_FAILED"), CUBLASError("CUBLAS_STATUS_NOT_INITIALIZED")):
        with pytest.raises(type(error)):
            arrays.retried("gpu", raising(error, []), lambda: True)


def test_kept__the_longest_unused_leaves_first() -> None:
    pieces = cache.PieceCache()
    piece = (np.zeros(10, dtype=np.float32), np.zeros(10, dtype=bool))  # 50 bytes
    for key in "abc":
        pieces.put(key, piece, room=100)
        pieces.get("a")
    assert [key for key in "abc" if pieces.get(key) is not None] == ["a", "c"]
    pieces.put("d", (np.zeros(26, dtype=np.float32), None), room=100)
    assert pieces.get("d") is None
    assert len(pieces) == 2
    pieces.clear()
    pieces.put("e", (np.zeros(25, dtype=np.float32), None), room=100)
    assert len(pieces) == 1
