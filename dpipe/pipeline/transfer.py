"""Whether a finished selection holds on new data.

Covers: every dropped column measured against its representative again, kept columns that became
redundant or unfit, columns that are absent or out of their old range.
Does not cover: selecting anew (`dpipe.pipeline.run`); what pass 3 dropped, whose reason is all kept
columns together.

The measures are those of the run, with its options, from the same ranks and tiles. Of the dropped
columns only the pairs with their representatives are computed.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpipe.choice.rules import first_broken
from dpipe.common.words import counted
from dpipe.engine.context import Context, Prepared
from dpipe.engine.grid import measured_pairs, run_grid, settled_edges
from dpipe.engine.measures import fusion_of
from dpipe.errors import InputError
from dpipe.kernels.measures import MARGIN, Fusion, Settling
from dpipe.model.events import Emit, Event
from dpipe.model.records import MILLION, Decision, Role
from dpipe.model.registry import PASSES, Pass, Reason
from dpipe.options import DECLARED, Options, options_from
from dpipe.passes import prepare
from dpipe.rankstore import temporary_store
from dpipe.runfolder import RunFolder, mirror
from dpipe.session import use_session
from dpipe.table import Table, as_sources, open_table, tell_notes
from dpipe.table.sample import nonlinear_sample, sample

_SHOWN = 10  # of the lines of one kind


@dataclass(frozen=True)
class Certificate:
    """One dropped column and its representative, on the new data.

    Attributes
    ----------
    column, representative
        Their names.
    measure
        What compares them.
    before, now
        Its value in the run and on the new data, NaN where the pair has none.
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
        Every dropped column that was compared with its representative.
    redundant
        Kept columns that became redundant, pair by pair.
    unfit
        Kept columns that pass 1 would drop now, each with the reason.
    absent
        Columns that the new data lacks, or has as something other than numbers; kept ones first.
    lost
        How many of `absent` are kept columns.
    outside
        Columns with values outside their range in the run: name, then the old and the new range.
    unmeasured
        Dropped columns that have no representative to be compared with, as those of pass 3.
    """

    n_rows: int
    n_kept: int
    certificates: tuple[Certificate, ...]
    redundant: tuple[Redundant, ...]
    unfit: tuple[tuple[str, str], ...]
    absent: tuple[str, ...]
    lost: int
    outside: tuple[tuple[str, float, float, float, float], ...]
    unmeasured: int

    @property
    def broken(self) -> tuple[Certificate, ...]:
        """The certificates that do not hold."""
        return tuple(each for each in self.certificates if not each.holds)

    @property
    def holds(self) -> bool:
        """Whether the selection can be used on the new data as it is."""
        return not (self.broken or self.redundant or self.unfit or self.lost)

    @property
    def lines(self) -> tuple[str, ...]:
        """The answer as text, a sentence a line."""
        verdict = "holds" if self.holds else "does not hold"
        return (
            f"the selection of {counted(self.n_kept, 'column')} {verdict} on "
            f"{counted(self.n_rows, 'row')}.",
            f"compared with their representatives: {counted(len(self.certificates), 'column')}, "
            f"of which {len(self.broken):,} no longer reach the threshold",
            *_first(
                f"{c.column}: {c.measure} to {c.representative} was {c.before:.6g} and is "
                f"{c.now:.6g}, below {c.threshold:g}"
                for c in self.broken
            ),
            *_first(
                f"{r.first} and {r.second}, both kept: {r.measure} is {r.value:.6g}, at least "
                f"{r.threshold:g}"
                for r in self.redundant
            ),
            *_first(f"{name}, kept: {reason}" for name, reason in self.unfit),
            *_first(f"{name} is absent, or no number" for name in self.absent),
            *_first(
                f"{name} ranges from {low:.6g} to {high:.6g}, in the run from {least:.6g} to "
                f"{most:.6g}"
                for name, least, most, low, high in self.outside
            ),
            *(
                [f"not compared, for want of one partner: {counted(self.unmeasured, 'column')}"]
                if self.unmeasured
                else []
            ),
        )


def _first(lines: Any) -> list[str]:
    told = list(lines)
    more = [f"and {len(told) - _SHOWN:,} more like this"] if len(told) > _SHOWN else []
    return [f"  {line}" for line in [*told[:_SHOWN], *more]]


def transfer(
    folder: str | os.PathLike[str],
    sources: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    options: Options | None = None,
    *,
    client: Any = None,
    observers: Sequence[Emit] = (),
    storage_options: Mapping[str, Any] | None = None,
) -> Transfer:
    """Measure on new data what a finished run decided.

    Parameters
    ----------
    folder
        The run folder, or a URL of one.
    sources
        The new files, folders, globs or URLs.
    options
        Where to compute; what decides is taken from the run.
    client, observers, storage_options
        As in `run`.

    Raises
    ------
    InputError
        When there is no such run, or the new data has none of its columns or too few rows.
    ResourceError
        As in `run`.
    """
    with mirror.reading(folder, storage_options) as here:
        done = RunFolder(here)
        decisions = {each.column: each for each in done.read_decisions()}
        ranges = {each.name: (each.minimum, each.maximum) for each in done.read_statistics()}
        options = _options_of(done.read_run(), options or Options())

    def emit(event: Event) -> None:
        for observer in observers:
            observer(event)

    judged = [each for each in decisions.values() if each.decision in ("kept", "dropped")]
    opened = open_table(
        as_sources(sources),
        options=Options(coerce_strings=options.coerce_strings, scratch_dir=options.scratch_dir),
        storage_options=storage_options,
        analysed={each.column for each in judged},
    )
    with ExitStack() as stack:
        whole = stack.enter_context(opened)
        tell_notes(whole, emit)
        table, absent = _narrowed(whole, judged, os.fspath(folder))
        options = options.for_rows(table.n_rows)
        rows = sample(table, options)
        n_rows = table.n_rows if rows is None else len(rows)
        store = stack.enter_context(temporary_store(options.scratch_dir, table.storage_options))
        session = stack.enter_context(use_session(options, client, emit))
        chosen = nonlinear_sample(table, rows, options)
        context = Context(session, store, options, emit, n_rows, nonlinear_rows=chosen)
        prepared = prepare.prepare(context, table, rows)
        new = _New(context, prepared, options)
        kept = [each.column for each in judged if each.decision == "kept"]
        dropped = [each for each in judged if each.decision == "dropped"]
        compared = [each for each in dropped if _measure_of(each) is not None]
        return Transfer(
            n_rows=n_rows,
            n_kept=len(kept),
            certificates=tuple(new.certificates(compared)),
            redundant=tuple(new.redundant(kept)),
            unfit=tuple(new.unfit(kept)),
            absent=tuple(sorted(absent, key=lambda name: name not in kept)),
            lost=len(set(kept) & set(absent)),
            outside=tuple(new.outside(ranges)),
            unmeasured=sum(_measure_of(each) is None and each.pass_number != 1 for each in dropped),
        )


def _options_of(record: Mapping[str, Any], given: Options) -> Options:
    """What decides as the run had it, where to compute as the caller wants it."""
    stored = options_from(record.get("options") or {})
    here = {name: getattr(given, name) for name, each in DECLARED.items() if each.affects is None}
    return stored.replace(**here)


def _narrowed(table: Table, judged: Sequence[Decision], where: str) -> tuple[Table, list[str]]:
    """The table with the judged columns as its features, and the names it lacks."""
    names = {each.column for each in judged}
    columns = tuple(
        column
        if column.name in names or column.role is not Role.FEATURE
        else dataclasses.replace(column, role=Role.EXCLUDED)
        for column in table.columns
    )
    narrowed = dataclasses.replace(table, columns=columns)
    present = set(narrowed.features)
    if not present:
        raise InputError(f"the new data has none of the columns of the run in {where}.")
    return narrowed, [each.column for each in judged if each.column not in present]


def _measure_of(decision: Decision) -> Pass | None:
    """The pass whose measure compares a dropped column with its representative."""
    if decision.representative is None or decision.pass_number is None:
        return None
    if Reason.of(decision.reason) is Reason.DUPLICATE:
        return next(each for each in PASSES.values() if each.measures_pairs)
    this = PASSES[decision.pass_number]
    return this if this.measures_pairs else None


class _New:
    """The new data, ranked."""

    def __init__(self, context: Context, prepared: Prepared, options: Options) -> None:
        self._context = context
        self._prepared = prepared
        self._options = options

    def _rows(self, fusion: Fusion) -> NDArray[np.int64] | None:
        return None if fusion.settling is Settling.RERANKED else self._context.nonlinear_rows

    def unfit(self, names: Sequence[str]) -> list[tuple[str, str]]:
        """Columns that pass 1 would drop, with the reason."""
        found = []
        for name in names:
            if name in self._prepared and name not in self._options.keep:
                rule = first_broken(self._prepared[name].statistics, self._options)
                if rule is not None:
                    found.append((name, str(rule.reason)))
        return found

    def certificates(self, dropped: Sequence[Decision]) -> list[Certificate]:
        """Dropped columns beside their representatives, where the new data has both."""
        present = [
            each
            for each in dropped
            if each.column in self._prepared and each.representative in self._prepared
        ]
        found: dict[str, Certificate] = {}
        for this in dict.fromkeys(map(_measure_of, present)):
            if this is None:
                continue
            mine = [each for each in present if _measure_of(each) is this]
            fusion = fusion_of(this, self._options)
            values = measured_pairs(
                self._context,
                self._prepared,
                [(each.column, str(each.representative)) for each in mine],
                f"pairs-{this.name}",
                fusion,
                rows=self._rows(fusion),
                min_valid=self._options.required_rows,
            )
            for each, value in zip(mine, values.tolist(), strict=True):
                found[each.column] = self._certificate(each, fusion.name, value)
        return [found[each.column] for each in present]

    def _certificate(self, decision: Decision, measure: str, now: float) -> Certificate:
        duplicate = Reason.of(decision.reason) is Reason.DUPLICATE
        threshold = 1.0 if duplicate or decision.threshold is None else decision.threshold
        mute = first_broken(self._prepared[decision.column].statistics, self._options) is not None
        before = 1.0 if duplicate else decision.value
        return Certificate(
            column=decision.column,
            representative=str(decision.representative),
            measure=measure,
            before=math.nan if before is None else before,
            now=now,
            threshold=threshold,
            holds=mute or _reaches(now, threshold),
        )

    def redundant(self, names: Sequence[str]) -> list[Redundant]:
        """Pairs of kept columns that reach the threshold of a pass of the run."""
        unfit = {name for name, _ in self.unfit(names)}
        columns = [name for name in names if name in self._prepared and name not in unfit]
        asked = set(self._options.keep)
        found = []
        for number in self._options.passes:
            this = PASSES[number]
            if not this.measures_pairs or this.threshold is None or len(columns) < 2:
                continue
            threshold = float(getattr(self._options, this.threshold))
            fusion = fusion_of(this, self._options)
            grid = run_grid(
                self._context,
                self._prepared,
                columns,
                f"kept-{this.name}",
                fusion,
                rows=self._rows(fusion),
                threshold=threshold,
                margin=0.0 if fusion.settling is Settling.RERANKED else self._margin(),
                min_valid=self._options.required_rows,
                matrix=False,
            )
            edges = settled_edges(self._context, grid)
            for i, j, value in zip(edges.i, edges.j, edges.value.tolist(), strict=True):
                pair = sorted((grid.names[i], grid.names[j]))
                if _reaches(value, threshold) and not asked.issuperset(pair):
                    found.append(Redundant(pair[0], pair[1], fusion.name, value, threshold))
        return sorted(found, key=lambda each: (-abs(each.value), each.first, each.second))

    def _margin(self) -> float:
        return MARGIN[self._options.precision]

    def outside(
        self, ranges: Mapping[str, tuple[float, float]]
    ) -> list[tuple[str, float, float, float, float]]:
        """Columns with values that the run did not see."""
        found = []
        for name, column in self._prepared.items():
            least, most = ranges.get(name, (math.nan, math.nan))
            low, high = column.statistics.minimum, column.statistics.maximum
            if low < least or high > most:
                found.append((name, least, most, low, high))
        return found


def _reaches(value: float, threshold: float) -> bool:
    """Whether a similarity reaches a threshold, in whole millionths; NaN reaches none."""
    return value == value and round(abs(value) * MILLION) >= round(threshold * MILLION)
