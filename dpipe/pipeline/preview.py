"""The plan of a run that is not started.

Covers: planning for files, or for a shape alone, on an own session of this machine.
Does not cover: what a plan is (`dpipe.engine.plan`), printing it (`dpipe.cli`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dpipe.engine.machine import Machine
from dpipe.engine.plan import Plan
from dpipe.errors import InputError
from dpipe.model.events import Emit, silent
from dpipe.options import Options
from dpipe.passes import make_plan
from dpipe.session.device import local_machine, local_workers
from dpipe.table import open_table, tell_notes
from dpipe.table.sample import sample


def plan_run(
    sources: Sequence[str] | None,
    options: Options,
    *,
    rows: int | None = None,
    columns: int | None = None,
    storage_options: Mapping[str, Any] | None = None,
    emit: Emit = silent,
) -> Plan:
    """The plan of a run on an own session of this machine, without starting anything.

    `emit` is told what a run would tell of its input and of the workers it would start.

    Raises
    ------
    InputError
        When neither files nor a shape are given, or ``device="gpu"`` cannot be had here.
    ResourceError
        When the run cannot fit.
    """
    row_group, files = None, 1
    if sources:
        with open_table(sources, options=options, storage_options=storage_options) as table:
            tell_notes(table, emit)
            drawn = sample(table, options)
            rows = table.n_rows if drawn is None else len(drawn)
            columns = len(table.features)
            row_group, files = table.row_group, len(table.files)
    if not rows or not columns:
        raise InputError("give files, or both --rows and --columns.")
    workers = local_workers(options, emit)
    machine = Machine(
        workers.number,
        workers.threads,
        workers.memory,
        workers.room,
        most_memory=local_machine()[1],
    )
    return make_plan(rows, columns, options, machine, row_group=row_group, files=files)
