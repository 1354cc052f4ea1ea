"""What a run says about itself, collected for run.json.

Covers: notes, the ledger, finished passes and faults as they are told; what a pass found and
cost, for the run that takes it over from a checkpoint.
Does not cover: showing any of it while the run lasts (`dpipe.watch.terminal`, `dpipe.watch.board`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from dpipe.model.events import Emit, Event, Fault, Finding, MemoryRead, Note, PassDone
from dpipe.model.inventory import stall_file
from dpipe.model.records import MemoryReading
from dpipe.runfolder import RunFolder
from dpipe.watch.board import Board


class Journal:
    """Collects what a run says, and passes it on: to its observers and to the page ``/dpipe``.

    Parameters
    ----------
    folder
        Where the details of a fault are left.
    observers
        Called with every event.
    """

    def __init__(self, folder: RunFolder, observers: Sequence[Emit]) -> None:
        self._folder = folder
        self.board = Board()
        self._observers: tuple[Emit, ...] = (*observers, self.board)
        self.notes: list[Note] = []
        self.readings: list[MemoryReading] = []
        self.passes: list[PassDone] = []
        self.faults: list[Fault] = []
        self.files: list[str] = []
        self._shift = 0.0  # of this session's clock, behind the readings of a run before
        self._findings: list[Finding] = []
        self._counts = (0, 0, 0, 0)

    def __call__(self, event: Event) -> None:
        """Collect an event and tell every observer."""
        if isinstance(event, Finding):
            if event in self._findings:  # of a pass taken over, and of one that looks again
                return
            self._findings.append(event)
        if isinstance(event, Note):
            self.notes.append(event)
        elif isinstance(event, MemoryRead):
            self._shift = self._read(event.readings, self._shift)
        elif isinstance(event, PassDone):
            self.passes.append(event)
        elif isinstance(event, Fault):
            self.faults.append(event)
        for observer in self._observers:
            observer(event)
        if isinstance(event, Fault) and event.details:
            self._keep(event)

    def _read(self, readings: Sequence[MemoryReading], shift: float) -> float:
        """Add readings of one clock, moved so that none lies before what is there."""
        if readings and self.readings:
            shift = max(shift, self.readings[-1].seconds - readings[0].seconds)
        self.readings += [dataclasses.replace(r, seconds=r.seconds + shift) for r in readings]
        return shift

    def measured(self) -> dict[str, Any]:
        """What was collected since this was last asked: what a pass found and cost."""
        ledger, faults, files, findings = self._counts
        self._counts = (
            len(self.readings),
            len(self.faults),
            len(self.files),
            len(self._findings),
        )
        return {
            "ledger": self.readings[ledger:],
            "faults": [plain_fault(fault) for fault in self.faults[faults:]],
            "files": self.files[files:],
            "findings": self._findings[findings:],
        }

    def recall(self, measured: Mapping[str, Any]) -> None:
        """Take over what `measured` said of a pass of the run before."""
        self._read([MemoryReading(**entry) for entry in measured["ledger"]], 0.0)
        self.faults += [Fault(**entry) for entry in measured["faults"]]
        self.files += [name for name in measured["files"] if (self._folder.path / name).exists()]
        for entry in measured.get("findings", ()):  # an older checkpoint has none
            self(Finding(**entry))
        self.measured()  # of that pass already, and so of no other

    def _keep(self, fault: Fault) -> None:
        """Leave the details of a fault where whoever looks into it finds them."""
        name = stall_file(len(self.files) + 1)
        self._folder.write_text(name, fault.details)
        self.files.append(name)
        self(Note(f"what the workers were doing is in {self._folder.path / name}."))


def plain_fault(fault: Fault) -> dict[str, Any]:
    """A fault without its details, which have a file of their own."""
    return {"kind": fault.kind, "stage": fault.stage, "count": fault.count}
