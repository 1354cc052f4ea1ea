"""The JSON schema of Dask's configuration under ``dpipe:`` and of the files of ``--config``.

Covers: that the schema says what the options say, and takes what dpipe takes.
Does not cover: the options themselves (see `test_cli`).

``python tests/test_schema.py`` writes the schema anew.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from dpipe.cli.request import settle
from dpipe.errors import InputError
from dpipe.options import BESIDE_OPTIONS, CHOICES, RANGES, SIZES, Options

ROOT = Path(__file__).resolve().parent.parent
FILE = ROOT / "dpipe" / "dpipe-schema.json"

NAMES = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}
SIZE = {"type": ["integer", "string"], "pattern": r"^\s*[0-9.]+([eE][0-9]+)?\s*[kKMGT]?i?B?\s*$"}
BESIDE: dict[str, dict[str, Any]] = {
    "parquet-glob": {"description": "another way to give the input", **NAMES},
    "storage-options": {"description": "for URLs, given to fsspec", "type": "object"},
    "prefer-gpu": {"description": "the same as device: auto", "type": "boolean"},
    "output-dir": {"description": "the run folder", "type": "string"},
    "verbose": {"description": "say more; add the traceback to an error", "type": "boolean"},
    "quiet": {"description": "say errors only", "type": "boolean"},
}


def schema_of(field: dataclasses.Field[Any]) -> dict[str, Any]:
    """What one option may be; null stands for its default."""
    low, high = RANGES.get(field.name, (None, None))
    limits = {"minimum": low, "maximum": high}
    bounds = {name: limit for name, limit in limits.items() if limit is not None}
    default = field.default
    kind: dict[str, Any]
    if field.name == "passes":
        kind = {"type": "array", "items": {"enum": [1, 2, 3, 4]}, "contains": {"const": 1}}
    elif field.name in CHOICES:
        kind = {"enum": list(CHOICES[field.name])}
    elif field.name in SIZES:
        kind = SIZE | bounds
    elif isinstance(default, tuple):
        kind = NAMES
    elif isinstance(default, bool):
        kind = {"type": "boolean"}
    elif isinstance(default, float):
        kind = {"type": "number", **bounds}
    else:
        kind = {"type": "integer", **bounds} if bounds else {"type": "string"}
    shown = list(default) if isinstance(default, tuple) else default
    return {
        "description": field.metadata["help"],
        "default": shown,
        "anyOf": [kind, {"type": "null"}],
    }


def expected() -> dict[str, Any]:
    """The schema, made from the options."""
    properties: dict[str, Any] = {}
    for field in dataclasses.fields(Options):
        properties[field.name.replace("_", "-")] = schema_of(field)
    properties |= BESIDE
    for name in list(properties):
        if "-" in name:
            same = {"$ref": f"#/$defs/options/properties/{name}"}
            properties[name.replace("-", "_")] = same
    return {
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
                "properties": properties,
            }
        },
    }


def test_schema_says_what_the_options_say() -> None:
    assert set(BESIDE) == {name.replace("_", "-") for name in BESIDE_OPTIONS}
    assert json.loads(FILE.read_text()) == expected(), "python tests/test_schema.py writes it anew"


def test_schema_is_a_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(expected())


GOOD = [
    "spearman-threshold: 0.9\nvif_threshold: 5\nkeep: [a, 'b, c']\nprefer: d, e\n",
    "memory-limit: 4GiB\nmatrix_budget: 1000000\npasses: [1, 2]\nseed: 3\n",
    "device: cpu\nrestart: never\ncheckpoint: false\nnonlinear-rows: null\n",
    "storage-options: {anon: true}\noutput-dir: out\nquiet: true\nparquet-glob: [a, b]\n",
    "tls: true\nworkers: 2\nscratch-dir: s3://bucket/x\nexclude: [y]\nid-columns: mol_id\n",
    "",
]
BAD = [
    "spearman-treshold: 0.9\n",
    "spearman-threshold: 1.5\n",
    "vif-threshold: 0.5\n",
    "device: tpu\n",
    "workers: 0\n",
    "workers: 2.5\n",
    "memory-limit: lots\n",
    "checkpoint: 3\n",
    "passes: [2, 3]\n",
    "passes: [1, 5]\n",
    "keep: {a: 1}\n",
    "keep: [true]\n",
    "quiet: 3\n",
    "storage-options: text\n",
    "scratch-dir: 3\n",
]


@pytest.mark.parametrize("text", [*GOOD, *BAD])
def test_schema_and_dpipe_agree(text: str, tmp_path: Path) -> None:
    import click

    file = tmp_path / "options.yaml"
    file.write_text(text)
    validator = jsonschema.Draft202012Validator(json.loads(FILE.read_text()))
    with click.Context(click.Command("run")):
        try:
            settle({}, config=str(file))
            taken = True
        except InputError:
            taken = False
    assert validator.is_valid({"dpipe": yaml.safe_load(text)}) == taken == (text in GOOD)


def test_schema_leaves_others_alone() -> None:
    validator = jsonschema.Draft202012Validator(json.loads(FILE.read_text()))
    assert validator.is_valid({"distributed": {"worker": {"memory": {"spill": False}}}})


if __name__ == "__main__":
    FILE.write_text(json.dumps(expected(), indent=2) + "\n")
