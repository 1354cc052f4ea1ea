"""The answer of a run, as Python callers hold it.

Covers: the record of a selection, applying and saving it, rendering its page, explaining a column.
Does not cover: making it (`dpipe.pipeline`).
"""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dpipe.certificate import explain
from dpipe.inputs import take_columns
from dpipe.model import Decision, MemoryReading
from dpipe.runfolder import RunFolder


class TemporaryFolder:
    """A folder that lives as long as the selection whose files it holds."""

    def __init__(self) -> None:
        self.path = tempfile.mkdtemp(prefix="dpipe-")
        weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)


@dataclass(frozen=True)
class Selection:
    """The answer of a run.

    Attributes
    ----------
    selected
        Kept columns in input order.
    decisions
        One record per input column.
    communities
        Kept column -> its alternatives, with pass, measure, value and chain.
    ledger
        Memory of every process around every pass and restart.
    folder
        Where the result files lie.
    """

    selected: tuple[str, ...]
    decisions: tuple[Decision, ...]
    communities: Mapping[str, Any]
    ledger: tuple[MemoryReading, ...]
    folder: Path
    _temporary: Any = field(default=None, repr=False, compare=False)

    def apply(self, data: Any) -> Any:
        """The kept columns of some data, as data of the same kind.

        Parameters
        ----------
        data
            A pandas, polars or pyarrow table, a Dask DataFrame, or an array (NumPy or Dask) with
            the columns of the table the selection was made on. For files see ``dpipe apply``.

        Raises
        ------
        InputError
            When a kept column is missing, or an array has another number of columns.

        Examples
        --------
        >>> reduced = selection.apply(frame)  # doctest: +SKIP
        """
        every = [decision.column for decision in self.decisions]
        return take_columns(data, self.selected, every)

    def save(self, directory: str | os.PathLike[str]) -> Path:
        """Copy the result files and the page into `directory`, made if need be, and return it."""
        target = RunFolder(directory).create().path
        for path in sorted(self.folder.rglob("*")):
            relative = path.relative_to(self.folder)
            if path.is_file() and not path.name.startswith(".") and "ranks" not in str(relative):
                (target / relative).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(path, target / relative)
        if not (self.folder / "report.html").exists():  # a temporary folder has none
            from dpipe.report import write_report

            write_report(target)
        return target

    def report(self, path: str | os.PathLike[str]) -> Path:
        """Render the page of this run to `path` and return it."""
        from dpipe.report import write_report

        return write_report(self.folder, path)

    def explain(self, column: str) -> str:
        """What became of one column, in a sentence.

        Raises
        ------
        InputError
            When the table has no such column.
        """
        return explain(column, self.decisions)
