"""What the documentation names exists, and its examples run.

Covers: options, commands, defaults, paths, links, Python names and YAML in every Markdown page,
and the two commands of the README.
Does not cover: whether a sentence is true.
"""

from __future__ import annotations

import configparser
import importlib
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import numpy as np
import pyarrow.parquet
import pytest
import yaml

from dpipe.model.inventory import INVENTORY, entry_of
from dpipe.options import DECLARED, flag, options_from
from dpipe.runfolder import DECISIONS_SCHEMA

ROOT = Path(__file__).resolve().parent.parent
WITH_PAGES = ("benchmarks", "cluster", "docs", "examples", "notebooks")
PAGES = sorted(
    path
    for pattern in ("*.md", *(f"{top}/**/*.md" for top in WITH_PAGES))
    for path in ROOT.glob(pattern)
)
IDS = [str(page.relative_to(ROOT)) for page in PAGES]
TOP = {"benchmarks", "cluster", "docs", "dpipe", "examples", "notebooks", "tests", ".ci"}
REFERENCE = (ROOT / "docs" / "reference.md").read_text()

each_page = pytest.mark.parametrize("page", PAGES, ids=IDS)


def fences(text: str, *languages: str) -> list[str]:
    """Contents of the fenced blocks in one of the languages."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    return [content for language, content in blocks if language in languages]


def spans(text: str) -> list[str]:
    """Contents of the inline code spans."""
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    return re.findall(r"`([^`\n]+)`", prose)


def commands() -> dict[str, click.Command]:
    from dpipe.cli import main

    assert isinstance(main, click.Group)
    return main.commands


def option_names(command: click.Command) -> set[str]:
    names = {
        name
        for parameter in command.params
        if isinstance(parameter, click.Option) and not parameter.hidden
        for name in (*parameter.opts, *parameter.secondary_opts)
    }
    return names | {"--help", "-h"}


def every_option() -> set[str]:
    from dpipe.cli import main

    return option_names(main).union(*map(option_names, commands().values()))


def command_lines(text: str) -> list[list[str]]:
    """Every command line that starts dpipe, in fences and spans, as its words after `dpipe`."""
    shell = "\n".join(fences(text, "bash", "console", "sh", "")).replace("\\\n", " ")
    lines = [*shell.splitlines(), *(span for span in spans(text) if span.startswith("dpipe "))]
    found = []
    for line in lines:
        for part in re.split(r"&&|\|\||[|;]", line.split(" #")[0]):
            match = re.match(r"\s*(?:\$ )?(?:dask |python -m |srun )?dpipe (.+)", part)
            if match:
                found.append(match[1].split())
    return found


def test_there_are_pages() -> None:
    assert {"README.md", "docs/design.md", "docs/reference.md"} <= set(IDS)


@each_page
def test_every_command_line_exists(page: Path) -> None:
    for words in command_lines(page.read_text()):
        if words[0] in ("--help", "--version", "..."):
            continue
        assert words[0] in commands(), " ".join(words)
        used = {word.partition("=")[0] for word in words if re.match(r"--?[a-z]", word)}
        assert used <= option_names(commands()[words[0]]), " ".join(words)


@each_page
def test_every_option_exists(page: Path) -> None:
    known = every_option()
    foreign = {"--runslow", "--dry-run"} if page.name == "CONTRIBUTING.md" else set()
    if ROOT / "cluster" in page.parents:  # what its recipes take, and what Dask takes
        files = (path for path in page.parent.rglob("*") if path.suffix in RECIPES)
        recipes = "\n".join(path.read_text() for path in files)
        foreign = {*re.findall(r"--[a-z][a-z-]+", recipes), *dask_options()}
    for span in spans(page.read_text()):
        if re.match(r"--[a-z]", span):
            assert span.split()[0].partition("=")[0] in known | foreign, span


RECIPES = {".py", ".sh", ".sbatch", ".yaml"}


def dask_options() -> set[str]:
    from distributed.cli import dask_scheduler, dask_worker

    return option_names(dask_scheduler.main) | option_names(dask_worker.main)


def test_every_option_is_in_the_reference() -> None:
    rows = re.findall(r"^\| (`--.+?) \|", REFERENCE, flags=re.MULTILINE)
    assert every_option() == {
        name for row in rows for name in re.findall(r"`(--?[a-z0-9-]+)`", row)
    }


def test_every_field_of_options_is_an_option_of_run() -> None:
    assert {flag(name) for name in DECLARED} <= option_names(commands()["run"])


def test_every_command_is_in_the_reference() -> None:
    listed = re.findall(r"^\| `dpipe ([a-z]+)", REFERENCE, flags=re.MULTILINE)
    assert set(listed) == set(commands())


def test_decision_table_in_the_reference_is_the_one_that_is_written() -> None:
    section = REFERENCE.partition("### Columns of the decision table")[2].partition("\n## ")[0]
    listed = re.findall(r"^\| `([a-z_]+)` \|", section, flags=re.MULTILINE)
    entry = entry_of("decisions.parquet")
    assert entry is not None
    assert list(entry.columns) == listed == DECISIONS_SCHEMA.names


def test_files_in_the_reference_are_those_of_the_inventory() -> None:
    section = REFERENCE.partition("## Run folder")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (`.*?) \| (.*) \|$", section.partition("###")[0], flags=re.MULTILINE)
    listed = []
    for names, holds in rows:
        entries = {entry_of(name) for name in re.findall(r"`([^`]+)`", names)}
        assert [entry and entry.holds for entry in entries] == [holds], names
        listed += entries
    assert listed == list(INVENTORY)


@each_page
def test_every_path_exists(page: Path) -> None:
    for span in spans(page.read_text()):
        path = span.partition("::")[0]
        if re.fullmatch(r"[\w./-]+", path) and path.split("/")[0] in TOP and "/" in path:
            assert (ROOT / path).exists(), span


@each_page
def test_every_link_within_the_project_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), target
        if anchor:
            assert anchor in anchors(linked.read_text()), target


def anchors(text: str) -> set[str]:
    """Anchors that a renderer of Markdown gives to the headings."""
    headings = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@each_page
def test_every_python_name_exists(page: Path) -> None:
    for span in spans(page.read_text()):
        match = re.match(r"dpipe(?:\.\w+)+", span)
        if match and not re.search(r"\.(?:yaml|json|toml|png|svg)$", match[0]):
            resolve(match[0])


def resolve(dotted: str) -> object:
    """The module or attribute with this name, or an error that names what is missing."""
    found: object = importlib.import_module("dpipe")
    name = "dpipe"
    for part in dotted.split(".")[1:]:
        name = f"{name}.{part}"
        found = getattr(found, part) if hasattr(found, part) else importlib.import_module(name)
    return found


def test_the_layers_of_the_design_are_those_of_the_contract() -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    contract = config["importlinter:contract:layers"]["layers"].split("\n")
    layers = [{f"dpipe.{name.strip()}" for name in row.split("|")} for row in contract if row]
    rows = re.findall(r"^\| (`dpipe\..+?) \|", (ROOT / "docs" / "design.md").read_text(), re.M)
    assert [set(re.findall(r"`(.+?)`", row)) for row in rows] == layers


def test_every_test_that_the_field_notes_name_is_there() -> None:
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "docs" / "field.md").read_text()))
    code = "\n".join(path.read_text() for path in (ROOT / "tests").glob("test_*.py"))
    assert named
    assert named <= set(re.findall(r"^def (test_\w+)\(", code, re.M))


@each_page
def test_every_yaml_block_is_understood(page: Path) -> None:
    for block in fences(page.read_text(), "yaml"):
        values = yaml.safe_load(block)
        if block.startswith("# options.yaml"):
            options_from(values)


@each_page
def test_every_python_block_compiles(page: Path) -> None:
    for block in fences(page.read_text(), "python"):
        compile(block, str(page), "exec")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["README.md", "docs/howto.md"])
def test_python_blocks_run(name: str, tmp_path: Path) -> None:
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    blocks = fences((ROOT / name).read_text(), "python")
    assert blocks
    for number, block in enumerate(blocks):
        script = tmp_path / f"block_{number}.py"
        script.write_text(block)
        done = subprocess.run(
            [sys.executable, str(script)],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_the_tutorial_tells_what_a_run_gives(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "tutorial.md").read_text()
    (tmp_path / "examples").symlink_to(ROOT / "examples")

    def lines_of(*words: str) -> list[str]:
        done = subprocess.run(
            [sys.executable, "-m", "dpipe", *words],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "400"},
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, done.stderr
        return [_timeless(line) for line in (done.stdout + done.stderr).splitlines()]

    example = "examples/nci/*.parquet"
    told = lines_of("run", example, "--target", "tpsa_reference", "--output-dir", "out")
    told += lines_of("verify", "out")
    told += lines_of("apply", "out", example, "--output", "reduced.parquet")
    shown = [_timeless(line) for block in fences(page, "text") for line in block.splitlines()]
    passes = [line for line in shown if line.startswith(("pass ", "warning: ", "624 rows for "))]
    assert len(passes) == 6
    assert set(passes) <= set(told)
    assert {"360 of 1,833 columns kept, 624 rows: the certificate holds."} <= {*shown} & {*told}
    assert {"reduced.parquet: 624 rows, 363 columns"} <= {*shown} & {*told}
    assert "has the 360 kept columns" in page
    _check_table(page, tmp_path / "out" / "decisions.parquet")


def _timeless(line: str) -> str:
    """A line of output without the seconds that something took."""
    return re.sub(r" +[\d.]+ (s|ms)( |$)", r"\2", line)


def _check_table(page: str, decisions: Path) -> None:
    """Each cell of the tutorial's excerpt from the decision table is what the run decided."""
    found = {row["column"]: row for row in pyarrow.parquet.read_table(decisions).to_pylist()}
    excerpt = re.search(r"^\| column \|.*\n\| -- .*\n((?:\|.*\n)+)", page, flags=re.MULTILINE)
    assert excerpt
    rows = [[cell.strip(" `") for cell in row.split("|")[1:-1]] for row in excerpt[1].splitlines()]
    assert len(rows) == 8
    for name, *cells in rows:
        row = found[name]
        keys = ("decision", "pass", "reason", "measure", "value", "representative", "relevance")
        for key, cell in zip(keys, cells, strict=True):
            value = row[key]
            if isinstance(value, float):
                digits = len(cell.partition(".")[2])
                assert f"{value:.{digits}f}" == cell, (name, key)
            else:
                assert ("" if value is None else str(value)) == cell, (name, key)


def test_every_verb_of_the_makefile_is_explained_and_has_something_to_run() -> None:
    makefile = (ROOT / "Makefile").read_text()
    verbs = set(re.findall(r"^([a-z]+):", makefile, flags=re.MULTILINE))
    told = set(re.findall(r"`make ([a-z]+)`", (ROOT / "CONTRIBUTING.md").read_text()))
    assert told <= verbs
    assert "python -m benchmarks" in makefile
    assert (ROOT / "benchmarks" / "__main__.py").exists()


def test_the_two_commands_of_the_readme() -> None:
    text = (ROOT / "README.md").read_text().partition("<!-- ci: the two commands -->")[2]
    run, test = fences(text, "bash")[0].splitlines()
    assert run == (
        'python -m pip install . && dpipe run "examples/nci/*.parquet" '
        "--target tpsa_reference --output-dir out"
    )
    assert test == 'python -m pip install ".[test]" && python -m pytest -n 3 --dist worksteal'
    assert list((ROOT / "examples" / "nci").glob("*.parquet"))


# The preference list for chemistry

PREFER = ROOT / "examples" / "chemistry" / "prefer.txt"


def test_preferred_descriptors_exist_and_are_counted() -> None:
    import pyarrow.parquet as pq

    names = PREFER.read_text().splitlines()
    assert len(names) == len(set(names))
    assert f"{len(names)} names" in (PREFER.parent / "README.md").read_text()
    table = next((ROOT / "examples" / "nci").glob("*.parquet"))
    known = set(pq.read_schema(table).names)
    assert [name for name in names if not {name, f"rdkit_{name}"} & known] == []


def test_preferred_descriptors_stand_for_others(example_table: Path) -> None:
    import dpipe
    from dpipe.session import threads_here

    names = PREFER.read_text().splitlines()
    place = {name: position for position, name in enumerate(names)}
    options: dict[str, Any] = {"passes": (1, 2), "exclude": ["tpsa_reference"], "restart": "never"}
    with threads_here() as client:
        plain = dpipe.select(example_table, client=client, **options)
        ours = dpipe.select(example_table, client=client, prefer=names, **options)
    assert {"rdkit_MolWt", "rdkit_MolLogP", "rdkit_TPSA", "rdkit_NumHDonors"} <= set(ours.selected)
    assert len(set(ours.selected) & place.keys()) > len(set(plain.selected) & place.keys())
    columns = (ours.folder / "spearman_columns.txt").read_text().splitlines()
    rho = np.abs(np.load(ours.folder / "spearman.npy"))
    best = {n: i for i, n in enumerate(columns) if n in ours.selected and n in place}
    dropped = [n for n in columns if n in place and n not in ours.selected]
    assert dropped
    for name in dropped:  # a preferred column goes only for one further up the list
        similar = rho[columns.index(name)] > 0.949
        assert any(place[other] < place[name] for other, i in best.items() if similar[i]), name
