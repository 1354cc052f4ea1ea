"""The answer of a run, as Python callers hold it.

Covers: the record of a selection, applying and saving it, rendering its page, explaining a column,
what a notebook shows of it.
Does not cover: making it (`dpipe.pipeline`).
"""

from __future__ import annotations

import html
import importlib
import os
import shutil
import tempfile
import weakref
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from dpipe.choice.certificate import explain
from dpipe.common.credentials import is_url
from dpipe.errors import InputError
from dpipe.model.inventory import REPORT, RUN
from dpipe.model.records import Decision, MemoryReading
from dpipe.model.registry import PASSES
from dpipe.runfolder import RunFolder
from dpipe.table.inputs import take_columns

if TYPE_CHECKING:
    from dpipe.runfolder.thresholds import WhatIf


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
        Where the result files lie; of a run folder at a URL a copy, which goes with this object.
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
            the columns of the table the selection was made on. For files see `dpipe.apply`.

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
        for name in RunFolder(self.folder).portable():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(self.folder / name, target / name)
        if not (self.folder / REPORT).exists():  # a temporary folder has none
            from dpipe.report import write_report

            write_report(target)
        return target

    def report(self, path: str | os.PathLike[str]) -> Path:
        """Render the page of this run to `path` and return it."""
        from dpipe.report import write_report

        return Path(write_report(self.folder, path))

    def explain(self, column: str) -> str:
        """What became of one column, in a sentence.

        Raises
        ------
        InputError
            When the table has no such column.
        """
        return explain(column, self.decisions)

    def pairs(self, kind: str = "arrow") -> Any:
        """Every similar pair of columns, the most similar first: content of ``pairs.parquet``.

        Parameters
        ----------
        kind
            "arrow", "pandas" or "polars": what the table comes as.

        Raises
        ------
        InputError
            For another kind, or when the run left no such table.
        """
        table = RunFolder(self.folder).read_pairs()
        if kind == "arrow":
            return table
        if kind == "pandas":
            return table.to_pandas()
        if kind == "polars":
            return importlib.import_module("polars").from_arrow(table)
        raise InputError(f'pairs come as "arrow", "pandas" or "polars", not as {kind!r}.')

    def what_if(self, threshold: float, number: int = 2) -> WhatIf:
        """What a pass would keep at another threshold, without another run.

        Parameters
        ----------
        threshold
            The threshold.
        number
            The pass: 2 for Spearman, 4 for the nonlinear measures.

        Raises
        ------
        InputError
            When the run did no such pass, or left no pairs down to there.

        Examples
        --------
        >>> len(selection.what_if(0.9).kept)  # doctest: +SKIP
        """
        from dpipe.runfolder.thresholds import FinishedPass

        return FinishedPass(self.folder, number).at(threshold)

    def __repr__(self) -> str:
        """One line: thousands of decisions would fill a terminal."""
        return f"<Selection: {self._headline()[0]}; {len(self.decisions):,} decisions>"

    def _headline(self) -> tuple[str, str, str]:
        from dpipe.report.words import headline

        return headline(self.decisions)

    def _repr_html_(self) -> str:
        """What a notebook shows: the headline, what each pass dropped, where the page lies."""
        title, why, untouched = self._headline()
        sentences = " ".join(html.escape(text) for text in (why, untouched) if text)
        return (
            f"<p><strong>{html.escape(title)}</strong></p><p>{sentences}</p>"
            f"{self._funnel()}<p>{self._where_the_page_is()}</p>"
        )

    def _funnel(self) -> str:
        """One row per pass: the columns it received and kept, and why it dropped the others."""
        from dpipe.report.words import reason_label

        dropped = Counter(
            (d.pass_number, reason_label(d))
            for d in self.decisions
            if d.decision == "dropped" and d.pass_number is not None
        )
        columns = len(self.selected) + dropped.total()
        # A pass that dropped nothing stands in the ledger alone.
        numbers = {number for number, _ in dropped} | {r.pass_number for r in self.ledger} - {0}
        rows = []
        for number in sorted(numbers):
            own = Counter({why: n for (of, why), n in dropped.items() if of == number})
            reasons = ", ".join(f"{n:,} {why}" for why, n in own.most_common())
            left = columns - own.total()
            cells = (f"{number} {PASSES[number].name}", f"{columns:,}", f"{left:,}", reasons)
            rows.append("".join(f"<td>{html.escape(cell)}</td>" for cell in cells))
            columns = left
        head = "<th>pass</th><th>columns in</th><th>kept</th><th>dropped because</th>"
        return f"<table><tr>{head}</tr>{''.join(f'<tr>{row}</tr>' for row in rows)}</table>"

    def _where_the_page_is(self) -> str:
        page = self.folder / REPORT
        if not page.exists():
            return "<code>.report(path)</code> writes the page with every decision."
        # Notebooks open what lies beside or below them; other files by their address, if at all.
        shown = os.path.relpath(page)
        target = page.resolve().as_uri() if shown.startswith("..") else quote(shown)
        return f'<a href="{html.escape(target)}">{html.escape(shown)}</a>'


def load(folder: str | os.PathLike[str]) -> Selection:
    """The answer of a finished run, from its folder.

    Raises
    ------
    InputError
        When the folder holds no finished run.
    """
    if is_url(os.fspath(folder)):
        raise InputError(f"{folder} is a URL: copy the run folder to this machine, and load that.")
    run = RunFolder(folder)
    record = run.read_run()
    try:
        ledger = tuple(MemoryReading(**reading) for reading in record["ledger"])
    except (KeyError, TypeError):
        raise InputError(f"{run.path / RUN} holds no ledger; run dpipe again.") from None
    return Selection(
        run.read_selected(), run.read_decisions(), run.read_communities(), ledger, run.path
    )
