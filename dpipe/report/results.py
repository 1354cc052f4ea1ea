"""What a run folder holds, read once for the page.

Covers: decisions, run.json, matrices, what other thresholds make of the pairs, the statistics of
pass 1 and the sample of ranks, the last four where the run left them.
Does not cover: the files themselves (see `dpipe.runfolder`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from dpipe.common.plain import restored
from dpipe.common.processes import Processes
from dpipe.errors import InputError
from dpipe.model.events import Note, PassDone, PlannedPass
from dpipe.model.inventory import PAIRS, RANK_SAMPLE, RUN, STATISTICS, matrix_files
from dpipe.model.records import ColumnStatistics, Decision, MemoryReading, Step
from dpipe.runfolder import RunFolder
from dpipe.runfolder.thresholds import FinishedPass, WhatIf, helpers, passes_of, table_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


_Part = TypeVar("_Part")

_BROKEN = (KeyError, TypeError, ValueError, AttributeError, IndexError)


@dataclass(frozen=True)
class Label:
    """How a reader knows a measure, or the mean of several by which a pass decides.

    Attributes
    ----------
    title
        What its matrix is called.
    symbol
        What stands before one of its values.
    signed
        Whether it tells falling from rising.
    pass_number
        The pass that computes it.
    """

    title: str
    symbol: str
    signed: bool
    pass_number: int


@dataclass(frozen=True)
class Matrix:
    """A similarity matrix of the run: ``values`` (p, p) mapped from disk, NaN where undefined."""

    measure: str
    columns: tuple[str, ...]
    values: NDArray[Any]


@dataclass(frozen=True)
class Sample:
    """Ranks on some rows: ``codes`` (p, m) uint8, 0 where missing, else 1 + 254 u, rounded."""

    columns: tuple[str, ...]
    codes: NDArray[np.uint8]


@dataclass(frozen=True)
class PassRecord:
    """One pass of a run: what it did, and what the plan expected (None where there was no plan)."""

    done: PassDone
    planned: PlannedPass | None = None


@dataclass(frozen=True)
class Curve:
    """What a pass would keep at other thresholds.

    Attributes
    ----------
    number, threshold
        The pass, and its threshold in the run.
    columns, kept
        The columns it received, and those of them that it kept.
    answers
        What it would keep, by rising threshold; that of the run is among them.
    """

    number: int
    threshold: float
    columns: tuple[str, ...]
    kept: tuple[str, ...]
    answers: tuple[WhatIf, ...]


@dataclass(frozen=True)
class Results:
    """All that the page is made of."""

    name: str
    decisions: tuple[Decision, ...]
    passes: tuple[PassRecord, ...]
    near: Mapping[int, tuple[tuple[str, str, float], ...]]
    ledger: tuple[MemoryReading, ...]
    notes: tuple[Note, ...]
    skipped: tuple[tuple[str, str], ...]
    options: Mapping[str, Any]
    versions: Mapping[str, str]
    input: Mapping[str, Any]
    plan: Mapping[str, Any] | None
    statistics: Mapping[str, ColumnStatistics]
    measures: Mapping[str, Label]
    matrices: tuple[Matrix, ...]
    curves: tuple[Curve, ...]
    sample: Sample | None
    chosen: tuple[Step, ...]
    troubles: tuple[str, ...]


def read_results(folder: str | os.PathLike[str]) -> Results:
    """Read a finished run.

    Raises
    ------
    InputError
        When decisions or ``run.json`` are missing or broken. A matrix that does not fit its list
        of columns is left out, and the page says so.
    """
    run = RunFolder(folder)
    decisions = run.read_decisions()
    record = run.read_run()
    troubles: list[str] = []
    try:
        return Results(
            name=run.path.name,
            decisions=decisions,
            passes=_passes(record),
            near=_near(record.get("near_threshold") or {}),
            ledger=tuple(restored(MemoryReading, entry) for entry in record.get("ledger") or ()),
            notes=tuple(restored(Note, entry) for entry in record.get("notes") or ()),
            skipped=tuple(
                (str(path), str(reason))
                for path, reason in (record.get("input") or {}).get("skipped") or ()
            ),
            options=dict(record.get("options") or {}),
            versions=dict(record.get("versions") or {}),
            input=dict(record.get("input") or {}),
            plan=record.get("plan"),
            statistics=_statistics(run, troubles),
            measures=_measures(record),
            matrices=tuple(_matrices(run, record, troubles)),
            curves=_curves(run, troubles),
            sample=_sample(run, troubles),
            chosen=tuple(restored(Step, step) for step in record.get("chosen") or ()),
            troubles=tuple(troubles),
        )
    except _BROKEN as error:
        raise InputError(
            f"{run.path / RUN} is not the record of a run ({error}); run dpipe again."
        ) from error


def _passes(record: Mapping[str, Any]) -> tuple[PassRecord, ...]:
    plan = record.get("plan") or {}
    planned = [restored(PlannedPass, entry) for entry in plan.get("passes") or ()]
    by_number = {each.number: each for each in planned}
    done = [restored(PassDone, entry) for entry in record.get("passes") or ()]
    return tuple(PassRecord(each, by_number.get(each.number)) for each in done)


def _near(
    stored: Mapping[str, Sequence[Sequence[Any]]],
) -> dict[int, tuple[tuple[str, str, float], ...]]:
    return {
        int(number): tuple((str(a), str(b), float(value)) for a, b, value in pairs)
        for number, pairs in stored.items()
        if pairs
    }


def _read(
    run: RunFolder, name: str, read: Callable[[], _Part], what: str, troubles: list[str]
) -> _Part | None:
    """What `read` makes of a file; None without one, or where it is broken, which is told."""
    if not (run.path / name).exists():
        return None
    try:
        return read()
    except InputError as error:
        troubles.append(f"{what} not shown: {error}")
        return None


def _statistics(run: RunFolder, troubles: list[str]) -> dict[str, ColumnStatistics]:
    read = _read(run, STATISTICS, run.read_statistics, "means and ranges are", troubles)
    return {entry.name: entry for entry in read or ()}


def _measures(record: Mapping[str, Any]) -> dict[str, Label]:
    return {
        str(name): Label(
            str(label["title"]), str(label["symbol"]), bool(label["signed"]), int(label["pass"])
        )
        for name, label in (record.get("measures") or {}).items()
    }


def _matrices(run: RunFolder, record: Mapping[str, Any], troubles: list[str]) -> list[Matrix]:
    matrices = []
    for measure in record.get("measures") or ():
        array, read = matrix_files(measure)[0], partial(run.read_matrix, measure)
        found = _read(run, array, read, f"the {measure} matrix is", troubles)
        if found is not None and found[0]:
            matrices.append(Matrix(measure, *found))
    return matrices


_PARTS = ((3_000, 100), (30_000, 50))
_FEWEST_PARTS = 20


def _curves(run: RunFolder, troubles: list[str]) -> tuple[Curve, ...]:
    """A curve for each pass that compared pairs, of fewer points where the pairs are many."""

    def read() -> tuple[Curve, ...]:
        passes = passes_of(run.path)
        try:
            with helpers(passes) as processes:
                return tuple(_curve(finished, processes) for finished in passes)
        except BrokenProcessPool:  # one was killed, most often for lack of memory
            return tuple(_curve(finished, None) for finished in passes)

    return _read(run, PAIRS, read, "other thresholds are", troubles) or ()


def _curve(finished: FinishedPass, processes: Processes | None) -> Curve:
    parts = next((parts for most, parts in _PARTS if finished.n_pairs <= most), _FEWEST_PARTS)
    return Curve(
        finished.number,
        finished.threshold,
        finished.columns,
        finished.kept,
        table_of(finished, parts, processes),
    )


def _sample(run: RunFolder, troubles: list[str]) -> Sample | None:
    array = matrix_files(RANK_SAMPLE)[0]
    read = _read(run, array, run.read_rank_sample, "the sample of ranks is", troubles)
    return None if read is None else Sample(*read)
