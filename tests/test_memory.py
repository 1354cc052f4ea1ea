"""Measured memory of every worker stays under the plan, and the plan under the limit."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dpipe.engine import memory
from dpipe.options import Options
from dpipe.pipeline import run

MIB = 2**20


def holey_table(folder: Path, rows: int, columns: int) -> Path:
    """Related columns, a third of them with missing cells, in files of several row groups."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    for part, n in enumerate((rows - rows // 2, rows // 2)):
        factors = rng.standard_normal((5, n))
        table = {}
        for j in range(columns):
            values = factors[j % 5] + rng.standard_normal(n) * (0.15 if j % 7 == 0 else 1.0)
            if j % 3 == 0:
                values = np.where(rng.random(n) < 0.1, np.nan, values)
            table[f"x{j}"] = np.round(values, 1) if j % 4 == 0 else values
        pq.write_table(pa.table(table), folder / f"part-{part}.parquet", row_group_size=40_000)
    return folder


@pytest.mark.parametrize(
    ("rows", "columns", "limit", "nonlinear_rows"),
    [
        (20_000, 30, 512 * MIB, None),
        pytest.param(200_000, 200, 1024 * MIB, None, marks=pytest.mark.slow),
        pytest.param(2_000_000, 40, 1024 * MIB, 3000, marks=pytest.mark.slow),
    ],
)
def test_peak__of_every_worker_is_within_the_plan_and_the_plan_within_the_limit(
    tmp_path: Path, rows: int, columns: int, limit: int, nonlinear_rows: int | None
) -> None:
    source = holey_table(tmp_path / "table", rows, columns)
    options = Options(workers=2, memory_limit=limit, nonlinear_rows=nonlinear_rows)
    selection = run([source], options, output_dir=tmp_path / "out")
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    planned = {entry["number"]: entry["worker_bytes"] for entry in record["plan"]["passes"]}
    assert set(planned) == {1, 2, 3, 4}
    assert max(planned.values()) <= limit
    projected: dict[int, int] = {}  # of each process: the hungriest pass it has seen
    seen = set()
    for reading in selection.ledger:
        if reading.process == "client" or reading.moment != "after":
            continue
        most = max(planned[reading.pass_number], projected.get(reading.pid, 0))
        projected[reading.pid] = most
        seen.add(reading.pass_number)
        assert reading.peak <= most, (reading, planned)
    assert seen == {1, 2, 3, 4}


def test_baseline__of_a_fresh_worker_is_what_every_projection_starts_from(tmp_path: Path) -> None:
    source = holey_table(tmp_path / "table", 2000, 8)
    selection = run([source], Options(workers=1, passes=(1, 2)), output_dir=tmp_path / "out")
    fresh = [r for r in selection.ledger if r.moment == "recycled" and r.process != "client"]
    assert len(fresh) == 1
    assert fresh[0].peak <= memory.WORKER_BASE


@pytest.mark.parametrize("functions", [1, 12])
def test_bytes__grow_with_every_size(functions: int) -> None:
    small = memory.tile_bytes(50, functions, 1000)
    assert small < memory.tile_bytes(51, functions, 1000)
    assert small < memory.tile_bytes(50, functions, 1001)
    assert memory.merge_bytes(50, functions, 4) < memory.merge_bytes(51, functions, 4)
    assert memory.ranking_bytes(1000, 5, 100) < memory.ranking_bytes(1001, 5, 100)
    assert memory.ranking_bytes(1000, 5, 100) < memory.ranking_bytes(1000, 6, 100)
