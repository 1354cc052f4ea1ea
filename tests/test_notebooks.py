"""The notebooks run from top to bottom, and what is stored of them can be read anywhere.

Covers: every cell of every notebook, the outputs they are stored with.
Does not cover: numbers in their outputs (the cells assert what must hold).
"""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

pytest.importorskip("nbclient", reason="notebooks are run by nbclient")
pytest.importorskip("ipykernel", reason="notebooks need a kernel")

import nbformat

from dpipe.common.environment import ONE_THREAD
from notebooks import refresh

NEEDS = {"03_model.ipynb": ("rdkit", "sklearn"), "02_memory.ipynb": ("matplotlib",)}

each_notebook = pytest.mark.parametrize("path", refresh.NOTEBOOKS, ids=lambda path: path.name)


def test_there_are_four() -> None:
    assert [path.name[:2] for path in refresh.NOTEBOOKS] == ["01", "02", "03", "04"]


@each_notebook
# The client of Jupyter warns of its own ways; what a cell does wrong is an error all the same.
@pytest.mark.filterwarnings("default:::jupyter_client", "default:::zmq", "default:::nbclient")
def test_it_runs(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in NEEDS.get(path.name, ()):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    for variable, value in ONE_THREAD.items():  # more would only wait for each other
        monkeypatch.setenv(variable, value)
    refresh.execute(path)


@each_notebook
def test_stored_outputs_are_those_of_one_run(path: Path) -> None:
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert any(cell.outputs for cell in cells)
    for output in (output for cell in cells for output in cell.outputs):
        assert output.output_type != "error"
        assert output.get("name") != "stderr", output.text


@each_notebook
def test_what_is_stored_is_small_and_names_no_machine(path: Path) -> None:
    assert path.stat().st_size < 500_000
    for cell in nbformat.read(path, as_version=4).cells:
        for output in cell.get("outputs", ()):
            texts = [v for kind, v in output.get("data", {}).items() if kind.startswith("text/")]
            for text in [output.get("text", ""), *texts]:
                assert refresh.without_machine(text) == text
                assert not re.search(r"widget-view|file://", text)


def test_folders_and_ports_of_a_machine_are_taken_out() -> None:
    folder = "/ho" + "me/somebody/x.py"
    assert refresh.without_machine(f"in {folder}:3") == "in ...:3"
    assert refresh.without_machine(f"{refresh.FOLDER}/01.ipynb") == "dpipe/notebooks/01.ipynb"
    assert (
        refresh.without_machine("http://127.0.0.1:41234/status") == "http://127.0.0.1:8787/status"
    )
    assert refresh.without_machine("kept 1/2 of notebooks/01") == "kept 1/2 of notebooks/01"
