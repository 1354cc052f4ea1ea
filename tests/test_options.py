"""An option is declared once, and everything else follows from that.

Covers: declarations and their kinds, the files that are generated from them, what ``dpipe plan``
lists, a new option from its declaration to the command line.
Does not cover: the words of a command and of a file (see `test_cli`, `test_schema`).
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import typing
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import ROOT, another_value

from docs import generate
from dpipe.cli import main
from dpipe.errors import DpipeError, InputError
from dpipe.options import DECLARED, DEFAULTS, Options, flag, options_from
from dpipe.options.kinds import (
    Choice,
    Flag,
    Names,
    Number,
    Passes,
    Place,
    Size,
    Text,
    Weights,
    Whole,
)
from dpipe.pipeline import plan_run

TYPES: dict[type, object] = {
    Whole: int,
    Size: int,
    Number: float,
    Text: str,
    Place: str,
    Choice: str,
    Flag: bool,
    Names: tuple[str, ...],
    Weights: str,
    Passes: tuple[int, ...],
}
each_option = pytest.mark.parametrize("name", DECLARED)


@each_option
def test_the_type_of_a_field_is_that_of_its_kind(name: str) -> None:
    declared = typing.get_type_hints(Options)[name]
    kind = TYPES[type(DECLARED[name].kind)]
    assert declared == (kind if DEFAULTS[name] is not None else kind | None)  # type: ignore[operator]


@each_option
def test_an_option_takes_values_of_its_kind_and_no_others(name: str) -> None:
    value = another_value(name)
    taken = getattr(options_from({name: value}), name)
    assert taken != DEFAULTS[name]
    assert options_from({name: taken}) == options_from({name.replace("_", "-"): value})
    assert options_from({name: None}) == Options()
    for wrong in ({"a": []}, [None]):
        with pytest.raises(InputError, match=f"^{flag(name)} cannot be "):
            options_from({name: wrong})


@pytest.mark.parametrize(
    ("file", "content"),
    [(generate.SCHEMA, generate.schema), (generate.REFERENCE, generate.reference)],
)
def test_generated_files_say_what_the_declarations_say(file: Path, content: Any) -> None:
    assert file.read_text() == content(), "make generated"


def test_help_of_plan_lists_what_changes_a_plan(tmp_path: Path) -> None:
    good, damaged = tmp_path / "good", tmp_path / "damaged"
    columns = {name: [float(i) for i in range(3000)] for name in "abcdefghx"}
    for folder in (good, damaged):
        folder.mkdir()
        pq.write_table(pa.table(columns | {"t": ["1"] * 3000}), folder / "a.parquet")
    (damaged / "b.parquet").write_bytes(b"no Parquet")

    def outcome(folder: Path, **options: Any) -> object:
        try:
            return plan_run([str(folder)], options_from(options))
        except DpipeError as error:
            return str(error)

    bases = ((good, {}), (damaged, {}), (good, {"passes": [1, 2]}))
    changing = {
        name
        for name in DECLARED
        for folder, base in bases
        if outcome(folder, **{**base, name: another_value(name)}) != outcome(folder, **base)
    }
    listed = {p.name for p in main.commands["plan"].params if not getattr(p, "hidden", False)}
    assert changing == listed & DECLARED.keys()


LAG = '    lag: int | None = _redundancy(None, Whole(low=1, high=9), "rows to lag", affects=2)\n'
WITH_LAG = """
from click.testing import CliRunner
from docs import generate
from dpipe.cli import main

print(generate.reference() + generate.schema())
plan = ["plan", "--rows", "100", "--columns", "5"]
for words in (["run", "--help"], [*plan, "--lag", "5"], [*plan, "--lag", "5.5"]):
    print(CliRunner().invoke(main, words).output)
print(CliRunner().invoke(main, [*plan, "--config", "options.yaml"]).output)
"""


def test_a_new_option_costs_one_declaration(tmp_path: Path) -> None:
    for name in ("dpipe", "docs"):
        shutil.copytree(ROOT / name, tmp_path / name)
    declarations = tmp_path / "dpipe" / "options" / "__init__.py"
    marker = "    keep: tuple[str, ...]"
    declarations.write_text(declarations.read_text().replace(marker, LAG + marker, 1))
    (tmp_path / "options.yaml").write_text("lag: 10\n")
    done = subprocess.run(
        [sys.executable, "-c", WITH_LAG], cwd=tmp_path, capture_output=True, text=True
    )
    for said in (
        "| `--lag` | `N` between 1 and 9 |  | rows to lag |",
        '"lag": {',
        "--lag N  ",
        "100 rows x 5 numeric columns",
        "Error: --lag cannot be '5.5'; it is a whole number between 1 and 9.",
        "Error: options.yaml: --lag must be between 1 and 9, not 10.",
    ):
        assert said in done.stdout, done.stderr
