"""The benchmarks run from their command lines at tiny sizes. No figure is looked at."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.__main__ import QUICK

ROOT = Path(__file__).resolve().parent.parent
EXAMPLE = str(ROOT / "examples" / "nci" / "part-00000.parquet")
PEERS = "dpipe,dpipe command,scipy,pandas,polars"


@pytest.fixture
def benchmark_here(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[..., str]:
    """Run a script in this process, which has imported what it needs; returns what it prints."""

    def call(name: str, *arguments: str) -> str:
        monkeypatch.chdir(ROOT)
        monkeypatch.setenv("DPIPE_BENCHMARK_DATA", str(tmp_path / "data"))
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        importlib.import_module(f"benchmarks.{name}").main()
        return capsys.readouterr().out

    return call


def benchmark(name: str, *arguments: str, folder: Path) -> str:
    """Run a script in a process of its own, which those need that count what processes take."""
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
        ("limit", ["--rows=3000", "--columns=8", "--nonlinear-rows=1000", "--workers=1"]),
        ("scaling", ["--rows=600", "--columns=8", "--steps=1", "--workers=1"]),
        ("leak", ["--rows=600", "--columns=8", "--calls=1"]),
        ("target", ["--rows=600", "--columns=8"]),
        ("guest", ["--rows=10000", "--columns=8", "--calls=1"]),
        ("service", ["--rows=600", "--columns=8"]),
    ],
)
def test_benchmarks__run_small(
    name: str, more: list[str], benchmark_here: Callable[..., str], tmp_path: Path
) -> None:
    figures = tmp_path / "figures.json"
    out = benchmark_here(name, *QUICK[name], *more, f"--json={figures}")
    assert "| -- |" in out
    assert json.loads(figures.read_text())["machine"].count("dpipe") == 1


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("peers", ["--rows=500", "--columns=6", f"--peers={PEERS}"]),
        ("big", ["--rows=3000", "--columns=12", f"--other={ROOT}"]),
        ("text", ["--rows=600", "--columns=8"]),
        ("verification", ["--rows=3000", "--columns=8"]),
        ("nonlinear", ["--rows=600", "--columns=8", f"--other={ROOT}"]),
        ("files", ["--files=5", "--columns=6", f"--other={ROOT}"]),
        ("cluster", ["--memory=2GiB", "--rows=200000"]),
    ],
)
def test_benchmarks__run_small_in_processes_of_their_own(
    name: str, more: list[str], tmp_path: Path
) -> None:
    figures = tmp_path / "figures.json"
    out = benchmark(name, *QUICK[name], *more, f"--json={figures}", folder=tmp_path)
    assert "| -- |" in out
    assert json.loads(figures.read_text())["machine"].count("dpipe") == 1


@pytest.mark.parametrize("name", QUICK)
def test_benchmarks__are_programs(name: str) -> None:
    text = (ROOT / "benchmarks" / f"{name}.py").read_text(encoding="utf-8")
    assert text.endswith('\n\n\nif __name__ == "__main__":\n    main()\n')


def test_benchmarks__whatif_finds_the_answers_of_fresh_runs(
    benchmark_here: Callable[..., str], tmp_path: Path
) -> None:
    from benchmarks.common import table

    figures = tmp_path / "figures.json"
    small = str(table(tmp_path, 400, 24, missing=0.1, copies=0.4))
    benchmark_here(
        "whatif", small, "--thresholds=2", "--columns=50", "--pairs=300", f"--json={figures}",
    )  # fmt: skip
    answers = json.loads(figures.read_text())["answers"]
    assert [line[-1] for line in answers] == ["2 of 2"] * 3


def test_benchmarks__transfer_runs_small_and_agrees_with_pandas(
    benchmark_here: Callable[..., str], tmp_path: Path
) -> None:
    figures = tmp_path / "figures.json"
    benchmark_here(
        "transfer", "--rows=800", "--columns=24", "--repeats=1", f"--json={figures}",
    )  # fmt: skip
    assert json.loads(figures.read_text())["off pandas"] < 1e-9


def test_benchmarks__reach_runs_small_and_finds_what_was_planted(
    benchmark_here: Callable[..., str], tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    values = {f"c{place}": rng.normal(size=60) for place in range(8)}
    pq.write_table(pa.table({**values, "y": values["c1"] + values["c2"]}), tmp_path / "t.parquet")
    figures = tmp_path / "figures.json"
    benchmark_here(
        "reach", "--shapes=150x300", f"--table={tmp_path}/t.parquet", "--target=y", "--budget=2",
        "--repeats=1", "--folds=2", f"--json={figures}",
    )  # fmt: skip
    ((few,), (chosen,)) = json.loads(figures.read_text())["reach"]
    assert few["independent: dropped"] == 0
    assert few["planted: found of 20"] >= 19
    assert chosen["columns"] == chosen["folds"] == 2
    assert abs(float(chosen["change"])) < 0.01


def test_benchmarks__ranking_runs_small(tmp_path: Path) -> None:
    out = benchmark("ranking", "--rows=20,3000", "--repeats=1", f"--other={ROOT}", folder=tmp_path)
    assert out.count("one far outlier") == 2
    assert "other / " in out


OURS = ("dpipe", "dpipe command")


def test_benchmarks__downstream_runs_small(
    benchmark_here: Callable[..., str], tmp_path: Path
) -> None:
    figures = tmp_path / "figures.json"
    benchmark_here(
        "downstream", EXAMPLE, "--target=tpsa_reference", "--leave-out=id,smiles,[A-Z]*,rdkit_*",
        "--setting=passes: [1]", "--folds=2", "--repeats=1", "--trees=3", f"--json={figures}",
    )  # fmt: skip
    found = json.loads(figures.read_text())["folds"]
    for every, first, full, targeted in zip(
        *(found[name] for name in ("all columns", "passes: [1]", "defaults", "with the target")),
        strict=True,
    ):
        assert targeted["columns"] < full["columns"] < first["columns"] < every["columns"]
        assert full["score"] <= 1


def test_benchmarks__downstream_selects_by_rows_without_the_target_too(
    benchmark_here: Callable[..., str], tmp_path: Path
) -> None:
    figures = tmp_path / "figures.json"
    table = pq.read_table(EXAMPLE).to_pandas()
    table.loc[::3, "tpsa_reference"] = np.nan
    table.to_parquet(tmp_path / "part.parquet")
    out = benchmark_here(
        "downstream", str(tmp_path / "part.parquet"), "--target=tpsa_reference", "--all-rows",
        "--leave-out=id,smiles,[A-Z]*,rdkit_*", "--folds=2", "--repeats=1", "--trees=3",
        "--columns=5", f"--json={figures}",
    )  # fmt: skip
    assert f"{table['tpsa_reference'].notna().sum()} of {len(table)} rows" in out
    found = json.loads(figures.read_text())["folds"]
    assert {fold["columns"] for fold in found["with the target, 5 columns"]} == {5}


@pytest.mark.parametrize(
    "contender", ["pandas", *(pytest.param(name, marks=pytest.mark.slow) for name in OURS)]
)
def test_benchmarks__comparison_judges_every_answer(contender: str, tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    benchmark(
        "comparison", EXAMPLE, "--leave-out=id,smiles,[A-Zn]*", "--repeats=1",
        f"--contenders={contender}", f"--json={figures}", folder=tmp_path,
    )  # fmt: skip
    found = json.loads(figures.read_text())[contender]
    assert found.pop("seconds")
    assert 50 < found.pop("kept") < 200
    if contender in OURS:
        assert set(found.values()) == {0}
    else:  # the recipe goes by the order of the columns
        assert found["other columns in reverse"] > 0


def test_benchmarks__comparison_finds_what_is_wrong_with_an_answer() -> None:
    from benchmarks.comparison import first_of_each, judge

    names = list("abcd")
    rho = np.eye(4)
    for i, j in ((0, 1), (1, 2)):  # a chain: b is like a and c, which are not like each other
        rho[i, j] = rho[j, i] = 0.96
    assert first_of_each(rho, names) == ["a", "d"]
    found = judge({"kept": ["a", "d"], "reversed": ["c", "d"]}, names, rho)
    assert found == {
        "kept": 2,
        "redundant pairs": 0,
        "dropped without one": 1,
        "other columns in reverse": 2,
    }
    found = judge({"kept": ["a", "b", "d"], "reversed": ["a", "b", "d"]}, names, rho)
    assert list(found.values()) == [3, 1, 0, 0]


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
