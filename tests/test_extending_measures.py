"""What docs/extending.md says, done: something new is added in a test alone and goes everywhere.

Covers: a measure of one's own through a run, its page, its verification, both doors to its matrix
and the planner; a run that the verifier has no formula for.
Does not cover: the measures of dpipe (`test_kernels_measures`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from scipy.stats import spearmanr
from tables import mixed_table, write_parts

import dpipe
from dpipe.cli import main
from dpipe.device.arrays import Array, namespace
from dpipe.engine.machine import Machine
from dpipe.errors import VerificationError
from dpipe.kernels.contraction import Part, by_rows
from dpipe.kernels.marginals import Marginals
from dpipe.kernels.measure import Measure, Settling
from dpipe.kernels.measures import MEASURES
from dpipe.kernels.moments import Moments
from dpipe.options import options_from
from dpipe.passes import make_plan
from dpipe.runfolder import RunFolder
from dpipe.verify import verify
from dpipe.verify.dependence import FORMULAS, Column, Formula

OPTIONS: dict[str, Any] = {
    "passes": (1, 4),
    "weights": "size=1,hsic=1",
    "nonlinear_threshold": 0.8,
    "restart": "never",
}


def size_of_rho(
    moments: Moments, left: Marginals | None, right: Marginals | None, parameters: Mapping[str, Any]
) -> Array:
    """|rho|, from the first function alone; of a constant column it is undefined."""
    assert left is not None
    assert right is not None
    xp = namespace(moments.product)
    first, second = (
        xp.asarray(side.on_gram(side.loading[:, :1] / norms_of(side)[:, None, None]))
        for side in (left, right)
    )

    def contract(part: Part) -> Array:
        return part.project(first, second)[..., 0, 0]

    return xp.abs(by_rows(moments, left, right, contract))


def norms_of(side: Marginals) -> np.ndarray:
    norms = np.linalg.norm(side.loading[:, 0], axis=1)
    return np.where(norms > 0, norms, np.nan)


MEASURE = Measure(
    name="size",
    title="Size of rho",
    symbol="size",
    summary="absolute Spearman correlation",
    functions=2,
    contract=size_of_rho,
    settling=Settling.FLOAT64,
)


def unit_scores(argument: np.ndarray, options: Any) -> Column:
    mean, scale = argument.mean(), argument.std()
    return Column([lambda rows: ((rows - mean) / scale)[None]])


FORMULA = Formula(
    column=unit_scores,
    pair=lambda joint: abs(float(joint.covariances[0][0, 0])),
)


@pytest.fixture
def measure(monkeypatch: pytest.MonkeyPatch) -> None:
    """A measure that dpipe does not have."""
    monkeypatch.setitem(MEASURES, MEASURE.name, MEASURE)


@pytest.fixture(scope="module")
def workers() -> Iterator[Any]:
    """A client of a worker in this process, which sees what a test adds."""
    from distributed import Client, LocalCluster

    with (
        LocalCluster(
            n_workers=1,
            threads_per_worker=2,
            processes=False,
            protocol="tcp",
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",
            memory_limit="2GiB",
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    table = mixed_table(400, families=2, missing=False)
    return write_parts(table, tmp_path_factory.mktemp("table") / "parts")


@pytest.mark.usefixtures("measure")
def test_a_new_measure_decides_in_a_run_and_is_seen_on_its_page(
    folder: Path, workers: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    selection = dpipe.select(folder, client=workers, output_dir=out, **OPTIONS)
    dropped = [d for d in selection.decisions if d.pass_number == 4]
    assert {d.measure for d in dropped} == {"hsic+size"}
    run = RunFolder(out)
    columns = run.read_columns("size_columns.txt")
    ranked = mixed_table(400, families=2, missing=False)
    rho = spearmanr(np.stack([ranked[name] for name in columns], axis=1)).statistic
    np.testing.assert_allclose(run.read_npy("size.npy"), np.abs(rho), atol=1e-6)
    page = (out / "report.html").read_text()
    assert ">Size of rho</button>" in page
    assert json.dumps(["HSIC + Size of rho", "HSIC+size", False], separators=(",", ":")) in page
    assert "redundant (HSIC + Size of rho ≥ 0.8)" in page.replace("\N{NO-BREAK SPACE}", " ")
    with pytest.raises(
        VerificationError, match="the verifier has no formula of its own for 'size'"
    ):
        verify(out)
    monkeypatch.setitem(FORMULAS, "size", FORMULA)
    proof = verify(out)
    assert proof.compared["drops of pass 4"] == len(dropped) > 0
    assert proof.differences["hsic+size"] < 1e-5


@pytest.mark.usefixtures("measure")
def test_a_new_measure_has_a_matrix_by_either_door(
    folder: Path, workers: Any, tmp_path: Path
) -> None:
    here = dpipe.size(folder, client=workers)
    assert "absolute Spearman correlation" in dpipe.size.__doc__
    there = tmp_path / "size.npy"
    words = ["similarity", str(folder), "--measure", "size", "--output", str(there), "--quiet"]
    done = CliRunner().invoke(main, [*words, "--scheduler", workers.scheduler.address])
    assert done.exit_code == 0, done.output
    np.testing.assert_array_equal(np.load(there), here.values)
    assert (
        "spearman|hsic|rdc|dcor|size" in CliRunner().invoke(main, ["similarity", "--help"]).output
    )


@pytest.mark.usefixtures("measure")
def test_a_new_measure_is_planned_by_the_functions_it_needs() -> None:
    machine = Machine(4, 1, 2 * 2**30)

    def operations(weights: str) -> float:
        options = options_from({"passes": [1, 4], "weights": weights})
        return make_plan(10**5, 2000, options, machine).passes[-1].operations

    assert operations("size=1") == pytest.approx(operations("hsic=1") / 25)
    assert operations("size=1,hsic=1") == operations("hsic=1")


def test_a_measure_that_is_not_there_is_refused_in_one_sentence(folder: Path) -> None:
    for words in (["plan", "--rows", "9", "--columns", "9"], ["run", str(folder)]):
        more = ["--output-dir", "nowhere"] if words[0] == "run" else []
        done = CliRunner().invoke(main, [*words, *more, "--weights", "size=1"])
        assert done.exit_code == 2
        assert "--weights takes weights of hsic, rdc" in done.output
    assert not Path("nowhere").exists()
