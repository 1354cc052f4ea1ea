"""The benchmarks run from their command lines at tiny sizes. No figure is looked at."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.__main__ import QUICK

ROOT = Path(__file__).resolve().parent.parent
PEERS = "dpipe,dpipe command,scipy,pandas,polars"


def benchmark(name: str, *arguments: str, folder: Path) -> str:
    command = [sys.executable, "-m", f"benchmarks.{name}", *arguments]
    environment = {**os.environ, "DPIPE_BENCHMARK_DATA": str(folder / "data")}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("peers", ["--rows=500", "--columns=6", f"--peers={PEERS}"]),
        ("limit", ["--rows=3000", "--columns=8", "--nonlinear-rows=1000"]),
        ("scaling", ["--rows=600", "--columns=8", "--steps=1", "--workers=1"]),
        ("big", ["--rows=3000", "--columns=12"]),
        ("leak", ["--rows=600", "--columns=8"]),
    ],
)
def test_benchmarks__run_small(name: str, more: list[str], tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    out = benchmark(name, *QUICK[name], *more, f"--json={figures}", folder=tmp_path)
    assert "| -- |" in out
    assert json.loads(figures.read_text())["machine"].count("dpipe") == 1


def test_benchmarks__ranking_runs_small(tmp_path: Path) -> None:
    assert "packed sort" in benchmark("ranking", "--rows=2000", "--repeats=1", folder=tmp_path)


EXAMPLE = str(ROOT / "examples" / "nci" / "part-00000.parquet")


def test_benchmarks__downstream_runs_small(tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    benchmark(
        "downstream", EXAMPLE, "--target=tpsa_reference", "--leave-out=id,smiles,[A-Z]*,rdkit_TPSA",
        "--setting=passes: [1]", "--folds=2", "--repeats=1", "--trees=3", f"--json={figures}",
        folder=tmp_path,
    )  # fmt: skip
    found = json.loads(figures.read_text())["folds"]
    for every, first, full in zip(
        found["all columns"], found["passes: [1]"], found["defaults"], strict=True
    ):
        assert full["columns"] < first["columns"] < every["columns"]
        assert full["score"] <= 1


def test_benchmarks__comparison_judges_every_answer(tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    benchmark(
        "comparison", EXAMPLE, "--leave-out=id,smiles,[A-Zn]*", "--repeats=1",
        "--contenders=dpipe,pandas", f"--json={figures}", folder=tmp_path,
    )  # fmt: skip
    found = json.loads(figures.read_text())
    assert 50 < found["dpipe"].pop("kept") < 200
    assert found["dpipe"].pop("seconds")
    assert set(found["dpipe"].values()) == {0}
    assert found["pandas"]["other columns in reverse"] > 0


def test_benchmarks__table_is_made_once_with_ties_and_holes(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    from benchmarks.common import table

    path = table(tmp_path, 1000, 8, missing=0.2, copies=0.5)
    stamp = path.stat().st_mtime_ns
    assert table(tmp_path, 1000, 8, missing=0.2, copies=0.5).stat().st_mtime_ns == stamp
    frame = pq.read_table(path).to_pandas()
    assert frame.shape == (1000, 8)
    assert frame["x00000"].nunique() < 200 < frame["x00002"].nunique()
    assert 100 < frame["x00001"].isna().sum() < 300
