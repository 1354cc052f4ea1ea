"""Writes what follows from the declarations of options: JSON schema, tables of the reference.

Covers: ``dpipe/dpipe-schema.json``; the tables between the marks in ``docs/reference.md``.
Does not cover: the declarations (see `dpipe.options`); a test compares both files with them.

``python -m docs.generate``, at the root of the project, writes both.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from dpipe.cli import main
from dpipe.cli.headings import HeadedOption
from dpipe.options import DECLARED, DEFAULTS, EXTRA_KEYS, SINGLE_WEIGHTS, Section
from dpipe.options.kinds import Number, Size

ROOT = Path(__file__).resolve().parent.parent
SCHEMA = ROOT / "dpipe" / "dpipe-schema.json"
REFERENCE = ROOT / "docs" / "reference.md"

_MARKS = re.compile(r"(<!-- generated: options -->\n).*?(<!-- end -->\n)", re.DOTALL)


def schema() -> str:
    """The schema of Dask's configuration under ``dpipe:`` and of the files of ``--config``."""
    properties: dict[str, Any] = {}
    for name, declared in DECLARED.items():
        properties[name.replace("_", "-")] = {
            "description": declared.help,
            "default": DEFAULTS[name],
            "anyOf": [declared.kind.schema(), {"type": "null"}],  # null stands for the default
        }
    for name, declared in {**EXTRA_KEYS, **SINGLE_WEIGHTS}.items():
        described = {"description": declared.help, **declared.kind.schema()}
        properties[name.replace("_", "-")] = described
    same = {
        name.replace("-", "_"): {"$ref": f"#/$defs/options/properties/{name}"}
        for name in properties
        if "-" in name
    }
    whole = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "dpipe in Dask's configuration",
        "description": "A file of --config holds what stands here under dpipe, see $defs.options.",
        "type": "object",
        "properties": {"dpipe": {"$ref": "#/$defs/options"}},
        "$defs": {
            "options": {
                "description": "Options of dpipe run; a name may be written with _ instead of -.",
                "type": ["object", "null"],
                "additionalProperties": False,
                "properties": properties | same,
            }
        },
    }
    return json.dumps(whole, indent=2) + "\n"


def reference() -> str:
    """The reference, as it is between the marks and anew within them."""
    tables = "\n".join(_tables())
    return _MARKS.sub(lambda marks: f"{marks[1]}\n{tables}\n{marks[2]}", REFERENCE.read_text())


def _tables() -> Iterator[str]:
    run = main.commands["run"]
    assert isinstance(run, click.Command)
    for section in Section:
        yield f"### {section}\n\n| option | value | default | meaning |\n| -- | -- | -- | -- |"
        for option in _options(run):
            if option.section == section:
                default = f"`{option.shown_default}`" if option.shown_default else ""
                yield f"| {_names(option)} | {_value(option)} | {default} | {_meaning(option)} |"
        yield ""
    yield (
        "### Options of the other commands\n\n"
        "| option | command | value | meaning |\n| -- | -- | -- | -- |"
    )
    common = {name for option in _options(run) for name in option.opts}
    for command in main.commands.values():
        for option in _options(command):
            if not common & set(option.opts):
                name = f"`{command.name}`"
                yield f"| {_names(option)} | {name} | {_value(option)} | {_meaning(option)} |"
    yield "| `--version` |  |  | the version of dpipe |"
    yield "| `--help`, `-h` | every one |  | what a command does, and its options |\n"


def _options(command: click.Command) -> list[HeadedOption]:
    return [option for option in command.params if isinstance(option, HeadedOption)]


def _names(option: HeadedOption) -> str:
    names = sorted(
        [*option.opts, *option.secondary_opts], key=lambda name: not name.startswith("--")
    )
    return ", ".join(f"`{name}`" for name in names)


def _value(option: HeadedOption) -> str:
    """What stands behind the name: one of a few words, or a placeholder and its bounds."""
    if option.is_flag or option.metavar is None:
        return ""
    words = ", ".join(f"`{word}`" for word in option.metavar.split("|"))
    kind = option.declared.kind if option.declared else None
    bounded = isinstance(kind, Number) and not isinstance(kind, Size)
    return f"{words} {kind.span}" if bounded else words


def _meaning(option: HeadedOption) -> str:
    more = option.declared.more if option.declared else ""
    text = "; ".join(filter(None, (option.help, more)))
    return re.sub(r"(?<!`)(--[a-z-]+( auto)?)(?!`)", r"`\1`", text).replace("|", "\\|")


if __name__ == "__main__":
    SCHEMA.write_text(schema())
    REFERENCE.write_text(reference())
