"""What a run takes over from the one before: finished passes, and the ranks of its input.

Covers: what the answer of a pass follows from, whether the one a run before left still holds, what
is kept beside it, the name and the life of the rank store.
Does not cover: how a checkpoint is written and judged (`dpipe.runfolder.checkpoints`), running what
has to be done again (`dpipe.pipeline.driver`).
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpipe.common.credentials import is_url
from dpipe.engine.measures import arrays_of
from dpipe.model.events import Note
from dpipe.model.inventory import CHECKPOINT, STATISTICS, matrix_files, pairs_file
from dpipe.model.records import PassResult
from dpipe.model.registry import FIRST, PASSES
from dpipe.options import Options
from dpipe.passes.prepare import ranks_key
from dpipe.rankstore import Store
from dpipe.runfolder import Damaged, RunFolder, Saved, Stale
from dpipe.table import Table
from dpipe.watch.journal import Journal

_SAID = {
    "version": "the version of dpipe",
    "input": "the input",
    "previous": "what the pass before it left",
    "schema": "the layout of a run folder",
}
"""How a reason to do a pass again is put, where it is no option."""


class Resume:
    """What the run before left in a folder, and what this one leaves for the next.

    Parameters
    ----------
    table, options, folder, journal
        As a run has them.
    """

    def __init__(self, table: Table, options: Options, folder: RunFolder, journal: Journal) -> None:
        self._table = table
        self._options = options
        self._folder = folder
        self._journal = journal

    def depends(self, number: int, previous: str) -> dict[str, Any]:
        """All that the answer of a pass follows from."""
        shared = {"version": version(), "input": self._table.fingerprint, "previous": previous}
        return shared | {
            f"options.{name}": value for name, value in self._options.affecting(number).items()
        }

    def reusable(self, number: int, depends: Mapping[str, Any], n_columns: int) -> Saved | None:
        """A pass of the run before, if it still holds; notes say why not."""
        checkpoint = self._folder.checkpoints.load(number, depends)
        if isinstance(checkpoint, Saved):
            if (missing := self._missing_file(number, n_columns, checkpoint)) is not None:
                why = f"{missing} is missing or of another run"
                self._journal(Note(f"pass {number} runs again because {why}.", "notice"))
                return None
            self._journal(Note(f"pass {number} is taken from the run before."))
            return checkpoint
        if isinstance(checkpoint, Stale):
            changed = ", ".join(
                _SAID.get(name, name.removeprefix("options.")) for name in checkpoint.fields
            )
            self._journal(Note(f"pass {number} runs again because {changed} changed.", "notice"))
        elif isinstance(checkpoint, Damaged):
            self._journal(Note(f"pass {number} runs again: {checkpoint.reason}.", "warning"))
        return None

    def _missing_file(self, number: int, n_columns: int, saved: Saved) -> str | None:
        """The first file of a reused pass that is absent or changed; None when all is there."""
        digests = saved.extra["files"]
        # By content: a run that was broken off may have put its own in their place.
        return next(
            (
                name
                for name in self._files_of(number, n_columns)
                if name not in digests or digests[name] != self._folder.digest_of(name)
            ),
            None,
        )

    def _files_of(self, number: int, n_columns: int) -> tuple[str, ...]:
        """What a pass that receives so many columns leaves in the run folder."""
        names = arrays_of(PASSES[number], self._options)
        arrays = tuple(file for name in names for file in matrix_files(name))
        if number == FIRST:
            return STATISTICS, *arrays
        if not n_columns:
            return ()
        pairs = (pairs_file(number),) if PASSES[number].pairwise else ()
        return pairs + (arrays if 4 * n_columns**2 <= self._options.matrix_budget else ())

    def save(
        self, depends: Mapping[str, Any], result: PassResult, seconds: float, plan: Any
    ) -> Saved:
        """Keep a pass, with what the results need of it beside its decisions."""
        files = self._files_of(result.number, len(result.kept) + len(result.drops))
        extra = {
            "files": {name: self._folder.digest_of(name) for name in files},
            "cost": self._journal.measured() | {"seconds": seconds, "plan": plan},
        }
        return self._folder.checkpoints.save(result.number, depends, result, extra)

    def rank_store(self, rows: NDArray[np.int64] | None) -> Store:
        """The rank store of these rows of this input, whatever is decided about its columns."""
        # Runs may share a scratch folder, but never a store: each cleans up its own.
        stem = f"ranks-{hashlib.sha256(self._folder.address.encode()).hexdigest()[:8]}"
        name = f"{stem}-{ranks_key(self._table, rows, version())}"
        parent = self._options.scratch_dir or str(self._folder.path / CHECKPOINT)
        if not is_url(parent):
            for old in Path(parent).glob(
                "ranks-*" if self._options.scratch_dir is None else f"{stem}-*"
            ):
                if old.name != name:
                    shutil.rmtree(old, ignore_errors=True)
        store = Store(
            f"{parent}/{name}",
            self._table.storage_options,
            durable=self._options.checkpoint,
        )
        if self._options.fresh:
            store.remove()
        store.remove_partial()
        return store


def version(name: str = "dpipe") -> str:
    """A package's version; a checkout that is on the path but not installed has none."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "from source"
