"""The command line as tests call it: in this process, or as the program in one of its own.

Covers: the call, a small table for it, the one sentence of an error.
Does not cover: programs that fail where a test says so (`trials`).
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from click.testing import CliRunner, Result
from conftest import ROOT

from dpipe.cli import main

SMALL = ("--workers", "1", "--device", "cpu")


def write_table(folder: Path) -> Path:
    """Two files of an identifier and twelve columns, four of which say nothing new."""
    rng = np.random.default_rng(1)
    data = {f"x{i}": rng.normal(size=300) for i in range(8)}
    data["twice x0"] = 2 * data["x0"]
    data["near x1"] = data["x1"] + 0.01 * rng.normal(size=300)
    data["square of x2"] = data["x2"] ** 2
    data["constant"] = np.ones(300)
    whole = pa.table({"mol_id": [f"m{i}" for i in range(300)], **data})
    folder.mkdir()
    pq.write_table(whole.slice(0, 200), folder / "part-0.parquet")
    pq.write_table(whole.slice(200), folder / "part-1.parquet")
    return folder


def write_part(folder: Path) -> None:
    """One small file of two columns."""
    pq.write_table(pa.table({"x": np.arange(5.0), "y": np.arange(5.0)}), folder / "a.parquet")


def invoke(*words: object) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words], prog_name="dpipe")


def program(
    *words: object, cwd: Path, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run the real program in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "dpipe", *map(str, words)],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | (env or {}),
        capture_output=True,
        text=True,
        timeout=300,
    )


def one_sentence(text: str) -> str:
    """The sentence of an error, after checking that it is all there is."""
    assert text.startswith("Error: ")
    assert text.endswith((".\n", "?\n"))
    assert text.count("\n") == 1
    return text.removeprefix("Error: ").rstrip()
