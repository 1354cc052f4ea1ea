"""A few seconds of `fuzz`: enough to see that it works and that nothing is broken grossly.

Covers: some hundred damaged files, some dozen option sets, some hundred columns, and that a crash,
a hang and a traceback would be counted.
Does not cover: the long run (``python tests/fuzz.py``).
"""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

import fuzz
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dpipe.errors import InputError
from dpipe.options import Options, options_from
from dpipe.table import open_table, read_block

SECONDS = 20.0


def test_damaged_files_are_read_or_refused() -> None:
    report = fuzz.fuzz_parquet(random.randrange(10**6), 300, SECONDS)
    assert report.failures == []
    assert report.cases > 0


def test_options_are_taken_or_refused() -> None:
    report = fuzz.fuzz_options(random.randrange(10**6), 60, SECONDS)
    assert report.failures == []
    assert report.cases > 0


def test_columns_of_every_type_are_ranked_as_pandas_ranks_them() -> None:
    report = fuzz.fuzz_columns(random.randrange(10**6), 200, SECONDS)
    assert report.failures == []
    assert report.outcomes["exact"] > 0


def test_sound_files_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzz, "mutated", lambda files, seed: files[seed])
    files = fuzz.corpus()
    assert {fuzz.read_case(files, seed, tmp_path) for seed in range(len(files))} == {"read"}


def test_mutations_can_be_repeated() -> None:
    files = fuzz.corpus()
    several = [fuzz.mutated(files, seed) for seed in range(100)]
    assert several == [fuzz.mutated(files, seed) for seed in range(100)]
    assert len({*several, *files}) > 100


@pytest.mark.parametrize(
    ("code", "outcome"),
    [
        ("import os; os.abort()", "crash"),
        ('import time; print(\'[5, "read", ""]\', flush=True); time.sleep(100)', "hang"),
        ('print(\'[5, "traceback", "ValueError"]\', flush=True)', "traceback"),
    ],
)
def test_what_must_not_be_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, outcome: str
) -> None:
    script = tmp_path / "child.py"
    script.write_text(f"print('ready', flush=True)\n{code}\n")
    monkeypatch.setattr(fuzz, "__file__", os.fspath(script))
    monkeypatch.setattr(fuzz, "PATIENCE", 2.0)
    found = list(fuzz._guarded(5, 7, time.monotonic() + 60))
    assert found[0][0] == 5
    assert outcome in {each[1] for each in found}
    assert all(reason for _, each, reason in found if each != "read")


# What the long run found


@pytest.mark.parametrize("coerce", [False, True])
def test_text_that_is_no_utf8_is_text_all_the_same(tmp_path: Path, coerce: bool) -> None:
    """Some programs write bytes of other encodings into text columns."""
    cells = [b"1.5", b"\xff9", None, b" ", b" 2", *[b"3"] * 40]
    raw = pa.array(cells, pa.binary())
    text = pa.Array.from_buffers(pa.string(), len(cells), raw.buffers())
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"x": text, "y": range(len(cells))}), path)
    table = open_table([path], options=Options(coerce_strings=coerce))
    assert table.features == (("x", "y") if coerce else ("y",))
    if coerce:
        values = read_block(table, ["x"]).values[0]
        assert values[~np.isnan(values)].tolist() == [1.5, 2.0, *[3.0] * 40]


def test_an_option_under_two_spellings_is_refused(tmp_path: Path) -> None:
    both = {"vif_threshold": 5, "vif-threshold": 9}
    with pytest.raises(InputError, match="--vif-threshold is given twice"):
        options_from(both)
    file = tmp_path / "options.yaml"
    file.write_text("vif_threshold: 5\nvif-threshold: 9\n")
    words = ["plan", "--rows", "1000", "--columns", "20", "--config", str(file)]
    assert fuzz._invoke(words) == 2
