"""What tests of the run folder share: other processes, what a pass leaves, files half written."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

from conftest import ROOT

from dpipe.model.records import Drop, PassResult
from dpipe.model.registry import Reason
from dpipe.runfolder import RunFolder, Saved


def start(code: str, *arguments: object) -> subprocess.Popen[str]:
    """Another Python process that runs `code` with `sys.argv[1:]` = arguments."""
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def partial_files(folder: RunFolder) -> list[Path]:
    return list(folder.path.rglob("*.partial"))


RESULT = PassResult(
    number=3,
    name="prediction",
    kept=("MolWt", "two\nlines", "naïve"),
    drops=(
        Drop("TPSA", 3, Reason.INFLATED, "vif", float("inf"), 10.0, "MolWt"),
        Drop("LogP", 3, Reason.CONSTANT),
        Drop(
            "x",
            3,
            Reason.COMBINATION,
            "r2",
            0.1 + 0.2,
            1.0,
            None,
            "of MolWt (2)",
            1,
            (("MolWt", 2.0),),
        ),
    ),
    communities={"MolWt": 0, "two\nlines": 0},
    near_threshold=(("MolWt", "naïve", 0.9499999999999999),),
)
DEPENDS = {
    "version": "0.1.0",
    "input": "ab12",
    "options.vif_threshold": 10.0,
    "options.keep": ("MolWt",),
    "previous": None,
}


def load(folder: RunFolder, number: int, depends: dict[str, object]) -> Saved:
    found = folder.checkpoints.load(number, depends)
    assert isinstance(found, Saved), found
    return found
