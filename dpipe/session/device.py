"""CPU or GPU: what a session computes on, and why.

Covers: the choice for a local and for an attached session, what a worker can have of its card, how
many workers a local session gets and the memory of each.
Does not cover: the trial of CuPy itself (`dpipe.device.card`).
"""

from __future__ import annotations

import importlib.util
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from dask.system import CPU_COUNT
from distributed.system import MEMORY_LIMIT

from dpipe.common.words import counted
from dpipe.device import card
from dpipe.errors import InputError
from dpipe.model.events import Emit, Note
from dpipe.options import Options
from dpipe.session.worker import WorkerFacts


def local_machine() -> tuple[int, int]:
    """Cores and bytes of memory that this process may use, control groups respected.

    Examples
    --------
    >>> cores, memory = local_machine()
    >>> cores >= 1 and memory > 0
    True
    """
    return int(CPU_COUNT), int(MEMORY_LIMIT)


@dataclass(frozen=True)
class LocalWorkers:
    """The workers of a local session, whether it is opened or only planned for.

    Attributes
    ----------
    device
        "cpu" or "gpu".
    number
        How many.
    threads
        Task threads of each.
    memory
        Bytes each may use.
    room
        Bytes each can have of its card; None on the CPU.
    """

    device: str
    number: int
    threads: int
    memory: int
    room: int | None


def local_workers(options: Options, emit: Emit) -> LocalWorkers:
    """The workers that a local session has on this machine.

    One for each card, or as many as the cores have room for; they share the memory of the machine.

    Raises
    ------
    InputError
        When ``device="gpu"`` and it cannot be had, or ``workers`` exceeds the cards.
    """
    device, room = choose_local_device(options, emit)
    cores, memory = local_machine()
    threads = options.threads_per_worker
    most = card.visible_cards() if device == "gpu" else cores // threads
    number = options.workers or max(1, most)
    if device == "gpu" and number > most:
        raise InputError(
            f"--workers {number} exceeds the {most} visible GPUs: "
            "a GPU session runs one worker on each."
        )
    limit = min(memory, options.memory_limit or memory // number)
    return LocalWorkers(device, number, threads, limit, room)


def choose_local_device(options: Options, emit: Emit) -> tuple[str, int | None]:
    """The device of a local session, and the bytes a worker can have of its card."""
    if options.device == "cpu":
        return "cpu", None
    lack, room = _lack_of_gpu()
    if lack is None:
        if options.device == "auto":
            cards = counted(card.visible_cards(), "GPU")
            emit(Note(f"computing on {cards}: a card is visible."))
        return "gpu", room
    if options.device == "gpu":
        raise InputError(f"--device gpu cannot be used here: {lack}.")
    emit(Note(f"computing on the CPU: {lack}."))
    return "cpu", None


def _lack_of_gpu() -> tuple[str | None, int]:
    """What keeps this machine from a GPU session, or None; what a process can have of the card."""
    if card.visible_cards() == 0:
        return "no NVIDIA card is visible", 0
    missing = [name for name in ("dask_cuda", "cupy", "rmm") if not importlib.util.find_spec(name)]
    if missing:
        return f"a card is visible, but the package {missing[0]} is not installed", 0
    trial = card.probe_elsewhere()
    return trial.trouble, trial.room


def choose_attached_device(
    wanted: str, facts: Iterable[WorkerFacts], trials: Callable[[], Mapping[str, Any]], emit: Emit
) -> tuple[str, int | None]:
    """The device of an attached session, and the bytes each worker can have of its card.

    ``trials`` has every worker try CuPy: address -> `dpipe.device.card.Trial`.
    """
    if wanted == "cpu":
        return "cpu", None
    facts = tuple(facts)
    without = [f.name for f in facts if not f.has_gpu]
    lack = f"worker {without[0]} has no visible card or no CuPy" if without else None
    if lack is None:
        lack, room = _judge(facts, trials())
        if lack is None:
            if wanted == "auto":
                emit(Note("computing on the GPU: every worker has a card and CuPy."))
            return "gpu", room
    if wanted == "gpu":
        raise InputError(f"--device gpu cannot be used on this cluster: {lack}.")
    emit(Note(f"computing on the CPU: {lack}."))
    return "cpu", None


def _judge(
    facts: Iterable[WorkerFacts], trials: Mapping[str, Any]
) -> tuple[str | None, int | None]:
    """What is wrong with the cards of some workers, or None; what the poorest one can have.

    Workers that share a card share what it gives.
    """
    rooms = []
    sharing = Counter(t.uuid for t in trials.values() if isinstance(t, card.Trial))
    for f in facts:
        trial = trials.get(f.address)
        if not isinstance(trial, card.Trial):
            return f"worker {f.name} does not answer when it is to try CuPy", None
        if trial.trouble is not None:
            return f"on worker {f.name}, {trial.trouble}", None
        rooms.append(trial.room // sharing[trial.uuid])
    return None, min(rooms)
