"""Whether a finished selection holds on new data.

Covers: every dropped column measured against its representative again, or predicted from the kept
columns again, kept columns that became redundant or unfit, columns that are absent or out of their
old range.
Does not cover: selecting anew (`dpipe.pipeline.run`); columns whose reason was no threshold on the
selection: those of a strict ``--vif-threshold`` and of ``--max-columns``.

The measures are those of the run, with its options, from the same ranks and tiles. Of the dropped
columns only the pairs with their representatives are computed. The new data needs no target.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import os
from bisect import bisect
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np

from dpipe.choice.rules import first_broken
from dpipe.engine.context import Context, Prepared
from dpipe.engine.gram import gram_of
from dpipe.engine.grid import measured_pairs
from dpipe.engine.measures import fusion_of
from dpipe.engine.screen import similar_pairs
from dpipe.errors import InputError
from dpipe.kernels.explained import explained
from dpipe.model.events import Emit, Event
from dpipe.model.records import Decision, Role, reaches
from dpipe.model.registry import PASSES, Pass, Reason
from dpipe.model.transfer import Certificate, Redundant, Transfer
from dpipe.options import DECLARED, Options, Section, options_from
from dpipe.passes import prepare
from dpipe.rankstore import temporary_store
from dpipe.runfolder import RunFolder, mirror
from dpipe.session import session_for
from dpipe.table import Table, as_sources, open_table, tell_notes
from dpipe.table.sample import nonlinear_sample, sample

_OF_A_RUN = 4
"""What a run costs for each cell, in what a cell costs here."""


def transfer(
    folder: str | os.PathLike[str],
    sources: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    options: Options | None = None,
    *,
    client: Any = None,
    observers: Sequence[Emit] = (),
    storage_options: Mapping[str, Any] | None = None,
    report: str | os.PathLike[str] | None = None,
) -> Transfer:
    """Measure on new data what a finished run decided.

    Parameters
    ----------
    folder
        The run folder, or a URL of one.
    sources
        The new files, folders, globs or URLs.
    options
        Where to compute, ``on_bad_file``, ``coerce_strings`` for text that the run had as numbers,
        and ``min_valid`` for fewer rows; what else decides is taken from the run.
    client, observers, storage_options
        As in `run`; but few cells get threads of this process (`dpipe.session.session_for`).
    report
        A page to write of the answer.

    Raises
    ------
    InputError
        When there is no such run, the new data has none of its columns or too few rows, or the
        page cannot go there.
    ResourceError
        As in `run`.
    """
    if report is not None:
        from dpipe.report.transfer import check_page

        check_page(report)  # rather than after all the work
    with mirror.reading(folder, storage_options) as here:
        finished = RunFolder(here)
        decisions = {each.column: each for each in finished.read_decisions()}
        ranges = {each.name: (each.minimum, each.maximum) for each in finished.read_statistics()}
        record = finished.read_run()
        options = _options_of(record, options or Options())

    def emit(event: Event) -> None:
        for observer in observers:
            observer(event)

    judged = [each for each in decisions.values() if each.decision in ("kept", "dropped")]
    opened = open_table(
        as_sources(sources),
        options=Options(
            coerce_strings=options.coerce_strings,
            on_bad_file=options.on_bad_file,
            scratch_dir=options.scratch_dir,
        ),
        storage_options=storage_options,
        analysed={each.column for each in judged},
        emit=emit,
    )
    with ExitStack() as stack:
        whole = stack.enter_context(opened)
        tell_notes(whole, emit)
        table, absent = _narrowed(whole, judged, os.fspath(folder))
        options = options.resolved(table.n_rows)
        rows = sample(table, options)
        n_rows = table.n_rows if rows is None else len(rows)
        store = stack.enter_context(temporary_store(options.scratch_dir, table.storage_options))
        cells = n_rows * len(table.features) // _OF_A_RUN
        session = stack.enter_context(session_for(cells, options, client, emit))
        chosen = nonlinear_sample(table, rows, options)
        context = Context(session, store, options, emit, n_rows, nonlinear_rows=chosen)
        prepared = prepare.prepare(context, table, rows)
        new = _New(context, prepared, options)
        kept = [each.column for each in judged if each.decision == "kept"]
        dropped = [each for each in judged if each.decision == "dropped"]
        predicted = _predicted(dropped, options, finished)
        certificates = (
            *new.certificates([each for each in dropped if _measure_of(each) is not None]),
            *new.predictions(kept, predicted, decisions, record.get("order") or ()),
        )
        answer = Transfer(
            n_rows=n_rows,
            n_kept=len(kept),
            certificates=certificates,
            redundant=tuple(new.redundant(kept)),
            unfit=tuple(new.unfit(kept, dropped)),
            absent=tuple(sorted(absent, key=lambda name: name not in kept)),
            lost=len(set(kept) & set(absent)),
            outside=tuple(new.outside(ranges)),
            uncompared=tuple(new.uncompared(kept, dropped, certificates, absent)),
            min_valid=options.required_rows,
        )
    if report is not None:
        from dpipe.report.transfer import write_transfer

        write_transfer(answer, report, folder, len(table.files))
    return answer


def _options_of(record: Mapping[str, Any], given: Options) -> Options:
    """What decides as the run had it, where to compute as the caller wants it."""
    stored = options_from(record.get("options") or {})
    workers = [name for name, each in DECLARED.items() if each.section is Section.WORKERS]
    here = {name: getattr(given, name) for name in workers}
    # New data seldom has as many rows as the run, or the target, which decides nothing here.
    min_valid = stored.min_valid if given.min_valid is None else given.min_valid
    return stored.replace(
        **here,
        target=(),
        min_valid=min_valid,
        on_bad_file=given.on_bad_file,
        coerce_strings=stored.coerce_strings or given.coerce_strings,
    )


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
        return next(each for each in PASSES.values() if each.drops_similar)
    this = PASSES[decision.pass_number]
    return this if this.drops_similar else None


@dataclass(frozen=True)
class _Predicted:
    """What a run says of a column that its selection predicts."""

    few: tuple[str, ...]
    """Its few predictors, if it has."""
    value: float
    """The adjusted R^2 on the final selection; the one that dropped it was on columns of then."""


def _predicted(
    dropped: Sequence[Decision], options: Options, finished: RunFolder
) -> dict[str, _Predicted]:
    """The columns that the run's selection predicts."""
    if options.vif_threshold is not None or options.max_columns is not None:
        return {}  # nothing was claimed of the columns that were kept in the end
    causes = (Reason.PREDICTED, Reason.COMBINATION)
    predicted = {each.column for each in dropped if each.cause in causes}
    entries = itertools.chain.from_iterable(finished.read_communities().values())
    told = {each["column"]: each for each in entries if each["column"] in predicted}
    return {
        name: _Predicted(tuple(each.get("predictors", ())), each.get("r2_final", math.nan))
        for name, each in told.items()
    }


class _New:
    """The new data, ranked."""

    def __init__(self, context: Context, prepared: Prepared, options: Options) -> None:
        self._context = context
        self._prepared = prepared
        self._options = options

    def unfit(self, kept: Sequence[str], dropped: Sequence[Decision]) -> list[tuple[str, str]]:
        """Kept columns that pass 1 would drop, with the reason.

        One that the user asked for stays, unless it stands for what nothing else tells any more.
        """
        speaking = {each.representative for each in dropped if self._varies(each.column)}
        asked = {each for each in self._options.keep if self._varies(each) or each not in speaking}
        found = []
        for name in kept:
            if name in self._prepared and name not in asked:
                rule = first_broken(self._prepared[name].statistics, self._options)
                if rule is not None:
                    found.append((name, str(rule.reason)))
        return found

    def certificates(self, dropped: Sequence[Decision]) -> list[Certificate]:
        """Dropped columns beside their representatives, where the new data can compare them."""
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
                rows=self._context.rows_of(fusion),
                min_valid=self._options.required_rows,
            )
            for each, value in zip(mine, values.tolist(), strict=True):
                before = 1.0 if each.cause is Reason.DUPLICATE else each.value
                found[each.column] = self._certificate(each, fusion.name, before, value)
        every = (found[each.column] for each in present)
        return [each for each in every if not math.isnan(each.now)]

    def predictions(
        self,
        kept: Sequence[str],
        predicted: Mapping[str, _Predicted],
        decisions: Mapping[str, Decision],
        order: Sequence[str],
    ) -> list[Certificate]:
        """Dropped columns beside what the kept ones predict of them, where the rows can tell.

        As `dpipe.kernels.explained.on_selection` does: on all kept ones, on those that come before
        the column in the order of the run, or on the few that the drop names.
        """
        place = {name: index for index, name in enumerate(order)}

        def rank(name: str) -> tuple[int, str]:
            return place.get(name, len(place)), name

        left = sorted(filter(self._varies, kept), key=rank)
        names = sorted(filter(self._varies, predicted), key=rank)
        if not left or not names:
            return []
        this = next(each for each in PASSES.values() if Reason.PREDICTED in each.reasons)
        gram = gram_of(this, self._context, self._prepared, [*left, *names])
        first = [  # runs have not always recorded an order
            bisect(left, rank(name), key=rank) if name in place else len(left) for name in names
        ]

        def r_squared(of: Sequence[str], by: Sequence[str], first: Sequence[int]) -> list[float]:
            by_places, places = gram.of(by), gram.of(of)
            values = explained(gram.values, by_places, places, gram.rows, np.array(first))
            return list(map(float, values))

        found = []
        for name, value in zip(names, r_squared(names, left, first), strict=True):
            few = predicted[name].few
            if few and set(left).issuperset(few):  # which cost fewer degrees of freedom than all
                value = max(value, *r_squared([name], few, [len(few)]))
            if math.isfinite(value):
                before = predicted[name].value
                found.append(self._certificate(decisions[name], "r2", before, max(value, 0.0)))
        return found

    def uncompared(
        self,
        kept: Sequence[str],
        dropped: Sequence[Decision],
        certificates: Sequence[Certificate],
        absent: Sequence[str],
    ) -> list[tuple[str, str]]:
        """The columns that something stands for and that were not compared with it, and why."""
        strict = self._options.vif_threshold is not None or self._options.max_columns is not None

        def why(decision: Decision) -> str:
            is_pair = _measure_of(decision) is not None
            stands = [str(decision.representative)] if is_pair else kept
            if not any(name in self._prepared for name in stands):
                return "what stands for them is absent"
            if strict and not is_pair:
                return "the run makes no promise about them"
            if not self._varies(decision.column):
                return "they have one value at most"
            if not any(map(self._varies, stands)):
                return "what stands for them has one value at most"
            if is_pair:
                return "the rows that have both values are too few, or all alike"
            return "so few rows cannot tell what predicts them"

        compared = {each.column for each in certificates}.union(absent)
        left = [each for each in dropped if each.representative and each.column not in compared]
        return [(each.column, why(each)) for each in left]

    def _varies(self, name: str) -> bool:
        return name in self._prepared and self._prepared[name].statistics.n_unique > 1

    def _certificate(
        self, decision: Decision, measure: str, before: float | None, now: float
    ) -> Certificate:
        duplicate = decision.cause is Reason.DUPLICATE
        threshold = 1.0 if duplicate or decision.threshold is None else decision.threshold
        mute = first_broken(self._prepared[decision.column].statistics, self._options) is not None
        return Certificate(
            column=decision.column,
            representative=str(decision.representative),
            measure=measure,
            before=math.nan if before is None else before,
            now=now,
            threshold=threshold,
            holds=mute or reaches(now, threshold),
        )

    def redundant(self, kept: Sequence[str]) -> list[Redundant]:
        """Pairs of kept columns that reach the threshold of a pass of the run."""
        unfit = {name for name, _ in self.unfit(kept, ())}
        columns = [name for name in kept if name in self._prepared and name not in unfit]
        asked = set(self._options.keep)
        found = []
        for number in self._options.passes:
            this = PASSES[number]
            if not this.drops_similar or this.threshold is None or len(columns) < 2:
                continue
            threshold = float(getattr(self._options, this.threshold))
            fusion = fusion_of(this, self._options)
            title = f"kept-{this.name}"
            similar = similar_pairs(
                self._context, self._prepared, columns, title, fusion, threshold
            )
            found += [
                Redundant(first, second, fusion.name, value, threshold)
                for first, second, value in similar
                if not asked.issuperset((first, second))
            ]
        return sorted(found, key=lambda each: (-abs(each.value), each.first, each.second))

    def outside(
        self, ranges: Mapping[str, tuple[float, float]]
    ) -> list[tuple[str, float, float, float, float]]:
        """Columns with values that the run did not see, the farthest from its range first."""
        found = []
        for name, column in self._prepared.items():
            least, most = ranges.get(name, (math.nan, math.nan))
            low, high = column.statistics.minimum, column.statistics.maximum
            if low < least or high > most:
                found.append((name, least, most, low, high))
        return sorted(found, key=lambda each: -_beyond(*each[1:]))


def _beyond(least: float, most: float, low: float, high: float) -> float:
    """How far new values lie outside a range, in widths of it."""
    return max(least - low, high - most) / (most - least) if most > least else math.inf
