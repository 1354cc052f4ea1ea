"""Run folders whose results were changed after the run, with checksums that fit."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dpipe.model.inventory import RUN
from dpipe.model.records import Decision
from dpipe.runfolder import RunFolder


def record_of(out: Path) -> dict[str, Any]:
    """What run.json holds."""
    record: dict[str, Any] = json.loads((out / RUN).read_text())
    return record


def bend_column(out: Path, column: str, **changes: Any) -> None:
    """Change the decision on a column, and what communities.json says of it."""
    decisions = RunFolder(out).read_decisions()
    leave(
        out,
        [dataclasses.replace(d, **changes) if d.column == column else d for d in decisions],
    )


def bend_entry(out: Path, column: str, **changes: Any) -> None:
    """Change what communities.json alone says of a dropped column."""
    folder = RunFolder(out)
    told = folder.read_communities()
    for entries in told.values():
        for entry in entries:
            if entry["column"] == column:
                entry.update(changes)
    folder.write_communities(told)


def leave(
    out: Path, decisions: Sequence[Decision], record: Mapping[str, Any] | None = None
) -> None:
    """Write changed results; communities.json tells the same as the decisions."""
    folder = RunFolder(out)
    rows = {d.column: d for d in decisions}
    told: dict[str, list[Any]] = {d.column: [] for d in decisions if d.decision == "kept"}
    for entry in (entry for group in folder.read_communities().values() for entry in group):
        row = rows[entry["column"]]
        entry["value"] = row.value
        chain = [row.column]
        while rows[chain[-1]].decision == "dropped":
            chain.append(str(rows[chain[-1]].representative))
        entry.pop("chain", None)
        if len(chain) > 2:
            entry["chain"] = chain
        told[chain[-1]].append(entry)
    folder.write_decisions(decisions)
    folder.write_communities(told)
    folder.write_selected(told)
    folder.write_run(record_of(out) if record is None else record)
