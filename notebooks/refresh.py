"""Run the notebooks from top to bottom and store them with what they showed.

Covers: executing each notebook in its folder, taking out what differs from machine to machine.
Does not cover: whether what they show is true (the cells assert that themselves).
See also: ``tests/test_notebooks.py``, which runs them without storing.

    python notebooks/refresh.py             all of them
    python notebooks/refresh.py 01 03       those whose names begin like that
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).resolve().parent
NOTEBOOKS = sorted(FOLDER.glob("[0-9][0-9]_*.ipynb"))
CELL_SECONDS = 300

# What a stored output must not tell: where this machine keeps files, and ports drawn by chance.
_MACHINE = (
    (re.compile(re.escape(str(FOLDER.parent))), "dpipe"),
    (re.compile(r"(?<![\w/])/(?:home|root|tmp|Users|work|opt|usr|var)/[^\s'\"<>:]*"), "..."),
    (re.compile(r"(127\.0\.0\.1|localhost):\d+"), r"\1:8787"),
)


def execute(path: Path) -> Any:
    """The notebook with fresh outputs; an error in a cell is an error here."""
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook,
        timeout=CELL_SECONDS,
        kernel_name="python3",
        resources={"metadata": {"path": str(FOLDER)}},
    )
    return client.execute()


def cleaned(notebook: Any) -> Any:
    """The notebook without what changes from run to run, or from machine to machine."""
    notebook.metadata.pop("widgets", None)
    notebook.metadata["language_info"] = {"name": "python"}
    notebook.metadata["kernelspec"] = {
        "display_name": "Python 3",
        "language": "python",
        "name": "python3",
    }
    for number, cell in enumerate(notebook.cells, start=1):
        cell["id"] = f"cell-{number:02}"
        cell.metadata = {}
        if cell.cell_type == "code":
            cell.outputs = [_plain(output) for output in cell.outputs if not _passing(output)]
    return notebook


def _passing(output: Any) -> bool:
    """Whether an output is a live display, which is nothing once its kernel is gone."""
    return "application/vnd.jupyter.widget-view+json" in output.get("data", {})


def _plain(output: Any) -> Any:
    if output.output_type == "stream":
        output.text = without_machine(output.text)
    for kind, content in output.get("data", {}).items():
        if kind.startswith("text/"):
            output.data[kind] = without_machine(content)
    return output


def without_machine(text: str) -> str:
    """Text with the folders and ports of this machine replaced."""
    for pattern, instead in _MACHINE:
        text = pattern.sub(instead, text)
    return text


def main(wanted: list[str]) -> None:
    for path in NOTEBOOKS:
        if not wanted or path.name.startswith(tuple(wanted)):
            nbformat.write(cleaned(execute(path)), path)
            sys.stdout.write(f"{path.name}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
