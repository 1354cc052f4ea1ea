"""Results of a run as tests write them: decisions, records, readings, and the folder for them.

Does not cover: whole runs of these (`written_runs`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dpipe.model.records import Decision, MemoryReading
from dpipe.report.results import Label
from dpipe.runfolder import RunFolder

RHO = "\N{GREEK SMALL LETTER RHO}"
MEASURES: dict[str, dict[str, Any]] = {
    "spearman": {"title": f"Spearman {RHO}", "symbol": RHO, "signed": True, "pass": 2},
    "hsic": {"title": "HSIC", "symbol": "HSIC", "signed": False, "pass": 4},
    "rdc": {"title": "RDC", "symbol": "RDC", "signed": False, "pass": 4},
    "hsic+rdc": {"title": "HSIC + RDC", "symbol": "HSIC+RDC", "signed": False, "pass": 4},
}
LABELS = {
    name: Label(each["title"], each["symbol"], each["signed"], each["pass"])
    for name, each in MEASURES.items()
}
NASTY = (
    "<img src=x onerror=alert(1)>",
    "</script><script>alert(2)</script>",
    "<!--<script>",
    "$$\\alpha$$",
    "$title ${data}",
    "\"quoted' & &amp;",
    "two\nlines\tand a tab",
    "  spaces  ",
    "",
    "\u202eright to left",
    "__proto__",
    "x" * 300,
    "名前🧪",
)


def decision(name: str, **changes: Any) -> Decision:
    """A kept column of 100 rows; `changes` make it another."""
    fields: dict[str, Any] = {
        "column": name,
        "dtype": "double",
        "n_valid": 100,
        "n_missing": 0,
        "n_nan": 0,
        "n_inf": 0,
        "n_unique": 90,
        "decision": "kept",
        "pass_number": None,
        "reason": "no similar column",
        "measure": None,
        "value": None,
        "threshold": None,
        "representative": None,
        "community": None,
    }
    return Decision(**{**fields, **changes})


def dropped(name: str, representative: str, number: int = 2, **changes: Any) -> Decision:
    """A column another one stands for."""
    fields = {
        "decision": "dropped",
        "pass_number": number,
        "reason": "redundant",
        "measure": "hsic+rdc" if number == 4 else "spearman",
        "value": 0.97,
        "threshold": 0.95,
        "representative": representative,
        "community": 0,
    }
    return decision(name, **{**fields, **changes})


def constant(name: str) -> Decision:
    return decision(name, decision="dropped", pass_number=1, reason="constant", n_unique=1)


def reading(moment: str, number: int, process: str, pid: int, seconds: float) -> MemoryReading:
    return MemoryReading(moment, number, process, pid, 10**8 + pid, 2 * 10**8, None, seconds)


LEDGER = tuple(
    reading(moment, number, process, pid + 10 * (seconds > 3), seconds)
    for moment, number, seconds in (
        ("start", 0, 0.5),
        ("after", 1, 3.0),
        ("recycled", 1, 4.0),
        ("after", 2, 9.0),
    )
    for process, pid in (("client", 1), ("worker 0", 2), ("worker 1", 3))
)


def record(passes: Sequence[tuple[int, int, int]] = (), **sections: Any) -> dict[str, Any]:
    """What run.json says of passes (number, columns in, columns kept)."""
    names = {1: "prepare", 2: "spearman", 3: "prediction", 4: "nonlinear", 5: "budget"}
    return {
        "versions": {"dpipe": "0.1.0"},
        "options": {"spearman_threshold": 0.95, "nonlinear_threshold": 0.9, "seed": 7},
        "input": {"rows": 100, "rows_used": 100, "files": ["a.parquet"], "skipped": []},
        "measures": MEASURES,
        "plan": {
            "machine": {"workers": 2, "threads": 1, "memory": 2**30},
            "passes": [
                {
                    "number": number,
                    "name": names[number],
                    "columns": before,
                    "shape": "3 tiles of 100 columns",
                    "tasks": 3,
                    "worker_bytes": 2**28,
                    "bytes_read": 10**6,
                    "operations": 1e9,
                }
                for number, before, _ in passes
            ],
        },
        "passes": [
            {
                "number": number,
                "name": names[number],
                "n_columns": before,
                "n_kept": after,
                "seconds": 1.5 * number,
                "reused": False,
            }
            for number, before, after in passes
        ],
        "near_threshold": {},
        "ledger": [],
        "notes": [],
        **sections,
    }


def write_run(
    path: Path,
    decisions: Sequence[Decision],
    run: Mapping[str, Any] | None = None,
    matrices: Mapping[str, tuple[Sequence[str], np.ndarray]] | None = None,
    sample: tuple[Sequence[str], np.ndarray] | None = None,
) -> Path:
    """A run folder as a finished run leaves it."""
    folder = RunFolder(path).create()
    folder.write_decisions(decisions)
    folder.write_selected(d.column for d in decisions if d.decision == "kept")
    folder.write_run(record() if run is None else run)
    for measure, (columns, values) in (matrices or {}).items():
        folder.write_npy(f"{measure}.npy", values.astype(np.float32))
        folder.write_columns(f"{measure}_columns.txt", columns)
    if sample is not None:
        folder.write_npy("rank_sample.npy", sample[1])
        folder.write_columns("rank_sample_columns.txt", sample[0])
    return folder.path


def correlations(size: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    values = rng.uniform(-1, 1, (size, size)).astype(np.float32)
    values = np.triu(values, 1)
    return values + values.T + np.eye(size, dtype=np.float32)
