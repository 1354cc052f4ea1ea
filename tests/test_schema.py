"""The JSON schema of Dask's configuration under ``dpipe:`` and of the files of ``--config``.

Covers: that the schema takes what dpipe takes.
Does not cover: that it is made anew where the options change (see `test_options`).
"""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
import yaml

from dpipe.cli.request import settle
from dpipe.errors import InputError

ROOT = Path(__file__).resolve().parent.parent
FILE = ROOT / "dpipe" / "dpipe-schema.json"


def test_schema_is_a_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(json.loads(FILE.read_text()))


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
