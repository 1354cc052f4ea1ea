"""The passes of a run: table state in, decisions out.

Covers: the module of a pass, found by its entry in `dpipe.model.registry`; the plan of a whole run.
Does not cover: their order, checkpoints and restarts (`dpipe.pipeline`).
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Protocol, cast

from dpipe.engine.context import Context, Prepared
from dpipe.engine.machine import Machine, TaskTooLarge
from dpipe.engine.plan import Plan, TableShape, rank_store_bytes
from dpipe.model.events import PlannedPass
from dpipe.model.records import PassResult
from dpipe.model.registry import PASSES, Pass
from dpipe.options import Options

_USUAL_ROW_GROUP = 2**17


class PassModule(Protocol):
    """What the module of a pass offers."""

    def run(
        self, this: Pass, context: Context, prepared: Prepared, columns: Sequence[str]
    ) -> PassResult:
        """Decide on `columns`, of which there is at least one, in input order."""

    def plan(
        self, this: Pass, table: TableShape, options: Options, machine: Machine
    ) -> PlannedPass:
        """What `run` does at most.

        Raises
        ------
        ResourceError
            When it cannot fit the workers.
        """


def module_of(entry: Pass) -> PassModule:
    """The module of a pass, imported when it is first asked for."""
    return cast(PassModule, import_module(entry.module))


def reviews(entry: Pass) -> bool:
    """Whether a pass looks at what later ones do to its answer."""
    return hasattr(module_of(entry), "review")


def reviewed(
    context: Context, prepared: Prepared, earlier: Sequence[PassResult], result: PassResult
) -> PassResult:
    """The answer of a pass, after the passes before it have looked at it."""
    for place, before in enumerate(earlier):
        entry = PASSES[before.number]
        if reviews(entry):
            review = module_of(entry).review  # type: ignore[attr-defined]
            result = review(entry, context, prepared, before, earlier[place + 1 :], result)
    return result


def make_plan(
    n_rows: int,
    n_columns: int,
    options: Options,
    machine: Machine,
    *,
    row_group: int | None = None,
    files: int = 1,
) -> Plan:
    """The plan of a run, before the columns that later passes receive are known.

    ``row_group`` is the number of rows of the largest one; a usual size when None;
    ``files`` is how many there are.

    Raises
    ------
    ResourceError
        When a pass cannot fit the workers.
    """
    if row_group is None:
        row_group = min(_USUAL_ROW_GROUP, n_rows)
    table = TableShape(n_rows, n_columns, row_group, files)
    entries = [PASSES[number] for number in options.pass_numbers]
    passes = []
    too_large: list[TaskTooLarge] = []
    for entry in entries:
        try:
            passes.append(module_of(entry).plan(entry, table, options, machine))
        except TaskTooLarge as refusal:
            too_large.append(refusal)
    if too_large:  # what the hungriest needs is enough for the others
        raise max(too_large, key=lambda refusal: refusal.limit)
    matrix = min(n_columns * n_columns * 4, options.matrix_budget)
    return Plan(
        n_rows=n_rows,
        n_columns=n_columns,
        machine=machine,
        passes=tuple(passes),
        scratch_bytes=rank_store_bytes(n_rows, n_columns),
        client_bytes=max([matrix, *(planned.client_bytes for planned in passes)]),
    )
