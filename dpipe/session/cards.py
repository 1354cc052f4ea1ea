"""The memory of cards over restarts: what was in use at the start, and what an old process keeps.

Covers: waiting until the driver has taken back what a worker had, naming who holds on to it.
Does not cover: reading a card (`dpipe.device.card`), choosing it (`dpipe.session.device`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from dpipe.common.words import sized
from dpipe.session.worker import WorkerFacts

DEVICE_TOLERANCE = 1024**3
"""Bytes in use on a card after a restart, above those at the start, that are worth a warning."""
CARD_SECONDS = 10.0
"""How long the driver may take to get back what a worker that ended had on its card."""


class CardMemory:
    """What the cards of a cluster had in use when its session began, worker by worker."""

    def __init__(self, facts: Iterable[WorkerFacts]) -> None:
        self._baseline = {f.name: f.device for f in facts if f.device is not None}

    def excess(self, f: WorkerFacts) -> int:
        """Bytes in use on a worker's card above those at the start."""
        return (f.device or 0) - self._baseline.get(f.name, f.device or 0)

    def wait_until_released(
        self,
        facts: tuple[WorkerFacts, ...],
        old: frozenset[int],
        look: Callable[[], tuple[WorkerFacts, ...]],
    ) -> tuple[tuple[WorkerFacts, ...], frozenset[int]]:
        """Wait until the cards are as free as at the start; the processes of `old` that are not.

        A process has ended before the driver has taken back all it had. ``look`` asks the workers
        again.
        """
        deadline = time.monotonic() + CARD_SECONDS
        while True:
            full = [f for f in facts if self.excess(f) > DEVICE_TOLERANCE]
            if not full or time.monotonic() > deadline:
                return facts, old & {pid for f in full for pid in f.holders}
            time.sleep(0.2)
            facts = look() or facts

    def warnings(self, facts: Iterable[WorkerFacts]) -> list[str]:
        """A sentence for each new worker whose card an ended process seems to hold memory of."""
        sentences = []
        for f in facts:
            if (more := self.excess(f)) > DEVICE_TOLERANCE:
                others = [pid for pid in f.holders if pid != f.pid]
                named = ", ".join(map(str, others[:5])) or "nvidia-smi may know which"
                sentences.append(
                    f"the card of worker {f.name} has {sized(more)} more in use than at "
                    f"the start, though the worker is new; other processes on it: {named}."
                )
        return sentences
