"""What became of a selection on new data, as a record.

Covers: certificates measured again, kept columns that became redundant, the answer as text.
Does not cover: measuring (`dpipe.pipeline.transfer`), the page (`dpipe.report.transfer`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from dpipe.common.words import counted
from dpipe.model.registry import Reason

_SHOWN = 10  # of the lines of one kind


@dataclass(frozen=True)
class Certificate:
    """One dropped column and what stands for it, on the new data.

    Attributes
    ----------
    column, representative
        Their names.
    measure
        What compares them; "r2" where all kept columns stand for it: the adjusted R^2 with which
        they, or the few predictors that the run named, predict it.
    before, now
        Its value in the run, NaN where that noted none, and on the new data; of "r2" in the run
        that on the final selection, which is measured again, not the one that dropped the column.
    threshold
        What the run asked for.
    holds
        Whether `now` reaches it still, or the column says nothing any more.
    """

    column: str
    representative: str
    measure: str
    before: float
    now: float
    threshold: float
    holds: bool

    @property
    def comparison(self) -> str:
        """What its value is, in words."""
        if self.measure == "r2":
            return "the R^2 of its prediction by kept columns"
        return f"{self.measure} to {self.representative}"


@dataclass(frozen=True)
class Redundant:
    """Two kept columns that reach a threshold on the new data."""

    first: str
    second: str
    measure: str
    value: float
    threshold: float


@dataclass(frozen=True)
class Transfer:
    """What became of a selection on new data.

    Attributes
    ----------
    n_rows, n_kept
        Rows of the new data that took part; kept columns of the run.
    certificates
        Every dropped column that was compared with what stands for it.
    redundant
        Kept columns that became redundant, pair by pair.
    unfit
        Kept columns that pass 1 would drop now, each with the reason.
    absent
        Columns that the new data lacks, or has as something other than numbers; kept ones first.
    lost
        How many of `absent` are kept columns.
    outside
        Columns with values outside their range in the run, those farthest outside first, in widths
        of that range: name, then the old and the new range.
    uncompared
        Dropped columns that could not be compared, each with the reason: what stands for it is
        absent, the run promises nothing of it (``--vif-threshold``, ``--max-columns``), it or what
        stands for it has one value at most, or the rows are too few to tell.
    min_valid
        Fewest valid values of a column or pair: ``--min-valid``, by default that of the run.
    """

    n_rows: int
    n_kept: int
    certificates: tuple[Certificate, ...]
    redundant: tuple[Redundant, ...]
    unfit: tuple[tuple[str, str], ...]
    absent: tuple[str, ...]
    lost: int
    outside: tuple[tuple[str, float, float, float, float], ...]
    uncompared: tuple[tuple[str, str], ...]
    min_valid: int = 0

    def __repr__(self) -> str:
        """One line: certificates of thousands of columns would fill a terminal."""
        return f"<Transfer: {self._verdict.rstrip('.')}>"

    @property
    def unmeasured(self) -> int:
        """How many dropped columns could not be compared."""
        return len(self.uncompared)

    @property
    def broken(self) -> tuple[Certificate, ...]:
        """The certificates that do not hold."""
        return tuple(each for each in self.certificates if not each.holds)

    @property
    def holds(self) -> bool:
        """Whether the selection can be used on the new data as it is, and enough rows say so."""
        return not (self._too_few or self.broken or self.redundant or self.unfit or self.lost)

    @property
    def lines(self) -> tuple[str, ...]:
        """The answer as text, a sentence a line."""
        return (
            self._verdict,
            f"compared with what stands for them: {counted(len(self.certificates), 'column')}, "
            f"of which {len(self.broken):,} no longer reach the threshold",
            *_first(
                f"{c.column}: {c.comparison} was {c.before:.6g} and is {c.now:.6g}, below "
                f"{c.threshold:g}"
                for c in self.broken
            ),
            *_first(
                f"{r.first} and {r.second}, both kept: {r.measure} is {r.value:.6g}, at least "
                f"{r.threshold:g}"
                for r in self.redundant
            ),
            *_first(
                f"{name}, kept: {reason}"
                for name, reason in self.unfit
                if not (self._too_few and reason == Reason.TOO_FEW_VALUES)  # said of all at once
            ),
            *_first(f"{name} is absent, or no number" for name in self.absent),
            *self._wandered,
            *_first(
                f"{name} ranges from {low:.6g} to {high:.6g}, in the run from {least:.6g} to "
                f"{most:.6g}"
                for name, least, most, low, high in self.outside
            ),
            *self.why_uncompared,
        )

    @property
    def _wandered(self) -> tuple[str, ...]:
        n = len(self.outside)
        first = ", the farthest first" if n > 1 else ""
        return (f"outside of the range in the run: {counted(n, 'column')}{first}",) if n else ()

    @property
    def _too_few(self) -> bool:
        return self.n_rows < self.min_valid

    @property
    def _verdict(self) -> str:
        selection, rows = counted(self.n_kept, "column"), counted(self.n_rows, "row")
        if self._too_few:
            return (
                f"whether the selection of {selection} holds cannot be told from {rows}: a column "
                f"needs {counted(self.min_valid, 'valid value')} (--min-valid, that of the run "
                "unless given); give more rows, or a lower --min-valid."
            )
        verdict = "holds" if self.holds else "does not hold"
        return f"the selection of {selection} {verdict} on {rows}."

    @property
    def why_uncompared(self) -> tuple[str, ...]:
        """A sentence for each reason not to compare, with how many columns it holds for."""
        reasons = Counter(reason for _, reason in self.uncompared)
        return tuple(
            f"not compared: {counted(n, 'column')}, because {reason}"
            for reason, n in reasons.most_common()
        )


def _first(lines: Iterable[str]) -> list[str]:
    told = list(lines)
    more = [f"and {len(told) - _SHOWN:,} more like this"] if len(told) > _SHOWN else []
    return [f"  {line}" for line in [*told[:_SHOWN], *more]]
