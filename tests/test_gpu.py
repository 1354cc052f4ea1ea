"""One body for both devices: kernels and whole runs on a GPU, and on a strict stand-in without one.

Covers: kernels on device arrays against NumPy, whole selections against the CPU, memory given back,
that no kernel makes a host copy by accident or uses what CuPy lacks, and the GPU benchmark's code.
Does not cover: speed (``benchmarks/gpu.py``).

Every test of kernels runs twice: with CuPy, marked gpu, and with `standin.cupy` everywhere.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import standin
from conftest import ROOT
from numpy.typing import NDArray
from tables import mixed_table, write_parts

import dpipe
from dpipe.device import cache
from dpipe.device.arrays import namespace, to_device, to_host
from dpipe.engine import memory, tiles
from dpipe.engine.machine import LIMITS, Limits
from dpipe.errors import ResourceError
from dpipe.kernels import contraction
from dpipe.kernels.basis import legendre
from dpipe.kernels.bound import leading
from dpipe.kernels.copula import BASIS
from dpipe.kernels.marginals import Marginals, marginal_sums, whitened
from dpipe.kernels.measure import MARGIN, Scale
from dpipe.kernels.measures import MEASURES
from dpipe.kernels.moments import (
    Moments,
    Piece,
    expand_ranks,
    expand_whitened,
    in_quarters,
    tile_moments,
)
from dpipe.kernels.ranks import RankedColumn, rank_column
from dpipe.kernels.rerank import joint_spearman
from dpipe.options import Options, options_from
from dpipe.pipeline import run
from dpipe.session import open_session, worker

TOLERANCE = {
    "spearman": 1e-6,
    "gram": 1e-12,
    "hsic": 1e-5,
    "rdc": 1e-4,
    "dcor": 1e-5,
    "hsic_bound": 1e-5,
}
ROWS = 700


@pytest.fixture(params=["stand-in", pytest.param("cupy", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The device "gpu": CuPy's where there is one, the stand-in's everywhere."""
    if request.param == "stand-in":
        monkeypatch.setitem(sys.modules, "cupy", standin.cupy)
    return "gpu"


def columns(missing: bool) -> dict[str, NDArray[np.float64]]:
    """Columns with and without ties; with `missing`, half of them lack cells."""
    table = mixed_table(ROWS, seed=3, families=2, missing=missing)
    table = {name: values for name, values in table.items() if name not in ("empty", "constant")}
    return {name: np.where(np.isfinite(values), values, np.nan) for name, values in table.items()}


def assert_on_device(array: Any) -> None:
    assert namespace(array) is sys.modules["cupy"]


# Ranks


@pytest.mark.parametrize("name", ["base0", "count0", "holes0", "tail0", "flag"])
def test_rank_column__equals_the_host(device: str, name: str) -> None:
    values = columns(missing=True)[name]
    here, there = rank_column(values), rank_column(to_device(values, device))
    assert_on_device(there.scores)
    assert_same_ranking(here, there)


@pytest.mark.parametrize("values", [[np.nan] * 3, [1.0], [2.0, 2.0, 2.0], []], ids=str)
def test_rank_column__equals_the_host_on_little(device: str, values: list[float]) -> None:
    column = np.array(values)
    assert_same_ranking(rank_column(column), rank_column(to_device(column, device)))


def assert_same_ranking(here: RankedColumn, there: RankedColumn) -> None:
    np.testing.assert_array_equal(to_host(there.scores), here.scores)
    assert (here.valid is None) == (there.valid is None)
    if here.valid is not None:
        np.testing.assert_array_equal(to_host(there.valid), here.valid)
    for name in ("n_valid", "n_unique", "minimum", "maximum", "q025", "q975", "top_share"):
        assert getattr(there, name) == pytest.approx(getattr(here, name), nan_ok=True, rel=0), name
    for name in ("mean", "variance", "normalised_variance"):
        assert getattr(there, name) == pytest.approx(getattr(here, name), nan_ok=True, rel=1e-12)
    assert there.rank_hash == here.rank_hash


# Functions, moments, measures


def stacked(missing: bool) -> tuple[NDArray[np.float32], NDArray[np.bool_] | None]:
    ranked = [rank_column(values) for values in columns(missing).values()]
    scores = np.stack([column.scores for column in ranked])
    if not missing:
        return scores, None
    full = np.ones(ROWS, dtype=bool)
    return scores, np.stack([full if c.valid is None else c.valid for c in ranked])


def moved(array: Any, device: str) -> Any:
    return None if array is None else to_device(array, device)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_legendre__equals_the_host(device: str, dtype: str) -> None:
    scores = stacked(missing=False)[0].astype(dtype)
    there = legendre(to_device(scores, device), BASIS)
    assert_on_device(there)
    tolerance = 1e-5 if dtype == "float32" else 1e-12
    np.testing.assert_allclose(to_host(there), legendre(scores, BASIS), atol=tolerance)


@pytest.mark.parametrize("missing", [False, True])
def test_marginal_sums__equal_the_host(device: str, missing: bool) -> None:
    scores, valid = stacked(missing)
    scores = scores.astype(np.float64)
    here = marginal_sums(scores, BASIS, valid)
    there = marginal_sums(to_device(scores, device), BASIS, moved(valid, device))
    assert_on_device(there.total)
    np.testing.assert_array_equal(to_host(there.count), here.count)
    np.testing.assert_allclose(to_host(there.total), here.total, atol=1e-9)


def pieces(
    functions: int, missing: bool, device: str, scale: Scale = Scale.RANKS
) -> tuple[list[Piece], list[Marginals]]:
    """Two overlapping column blocks on a device, and their marginal moments on the host."""
    scores, valid = stacked(missing)
    blocks, changes = [], []
    for part in (slice(0, 9), slice(5, None)):
        mask = None if valid is None else valid[part]
        known = max(BASIS, functions)
        sums = marginal_sums(scores[part].astype(np.float64), known, mask, distances=True)
        marginals = whitened(sums, spanned=None if scale is Scale.LEADING else functions)
        if scale is Scale.LEADING:
            marginals = leading(marginals, functions)
        changes.append(marginals)
        there, there_mask = to_device(scores[part], device), moved(mask, device)
        if functions == 1:
            blocks.append(expand_ranks(there, there_mask))
        else:
            blocks.append(expand_whitened(there, there_mask, marginals.on_device(device)))
    return blocks, changes


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("functions", [1, BASIS])
@pytest.mark.parametrize("diagonal", [False, True])
def test_tile_moments__equal_the_host(
    device: str, functions: int, missing: bool, diagonal: bool
) -> None:
    found = []
    for where in ("cpu", device):
        (left, right), _ = pieces(functions, missing, where)
        total = tile_moments(left, None if diagonal else right).total()
        total += tile_moments(left, None if diagonal else right)
        found.append(total)
    assert_on_device(found[1].product)
    here, there = found[0], found[1].to_host()
    for name, array in vars(here).items():
        scale = 1e-12 if functions == 1 else 2e-6
        np.testing.assert_allclose(getattr(there, name), array, atol=scale * 2 * ROWS, err_msg=name)


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("name", sorted(MEASURES))
@pytest.mark.parametrize("contracted", ["on the host", "on the device"])
def test_measures__equal_the_host(device: str, name: str, missing: bool, contracted: str) -> None:
    measure = MEASURES[name]

    def values(where: str) -> NDArray[np.float64]:
        (left, right), changes = pieces(measure.functions, missing, where, measure.scale)
        moments: Moments = tile_moments(left, right).total()
        if contracted == "on the host":
            moments = moments.to_host()
        found = measure.contract(moments, changes[0], changes[1], {})
        if where == device and contracted == "on the device":
            assert_on_device(found)
        return to_host(found)

    here, there = values("cpu"), values(device)
    assert np.isfinite(here).all()
    np.testing.assert_allclose(there, here, atol=TOLERANCE[name], rtol=0)


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("name", ["hsic", "rdc"])
def test_measures__of_a_diagonal_tile_are_contracted_once(
    device: str, name: str, missing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contraction, "_PAIRS_ON_CARD", 20)  # a few rows at a time
    (left, _), (marginals, _) = pieces(BASIS, missing, device)
    moments = tile_moments(left, None).total()
    same = dataclasses.replace(marginals)  # equal, but not the one object
    whole = to_host(MEASURES[name].contract(moments, marginals, same, {}))
    half = to_host(MEASURES[name].contract(moments, marginals, marginals, {}))
    np.testing.assert_allclose(half, half.T, atol=1e-6, rtol=0)
    np.testing.assert_allclose(half, whole, atol=1e-6, rtol=0)


def test_joint_spearman__equals_the_host(device: str) -> None:
    scores, _ = stacked(missing=False)
    here = joint_spearman(scores[:5], scores[5:])
    there = joint_spearman(to_device(scores[:5], device), to_device(scores[5:], device))
    assert_on_device(there)
    np.testing.assert_allclose(to_host(there), here, atol=1e-6)


# Whole runs


@contextmanager
def workers_here(monkeypatch: pytest.MonkeyPatch, threads: int = 2) -> Iterator[Any]:
    """A client of a worker in this process that counts as a GPU worker."""
    from distributed import Client, LocalCluster

    monkeypatch.setattr("dpipe.session.session.choose_attached_device", lambda *_: ("gpu", 8 << 30))
    with (
        LocalCluster(
            n_workers=1,
            threads_per_worker=threads,
            processes=False,
            protocol="tcp",
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",
            memory_limit="4GiB",
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The same, where CuPy is the stand-in."""
    monkeypatch.setitem(sys.modules, "cupy", standin.cupy)
    with workers_here(monkeypatch) as client:
        yield client


def test_select__on_the_stand_in_equals_the_cpu(
    client: Any, threads: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_parts(mixed_table(600, families=3), tmp_path / "table")
    options: dict[str, Any] = {
        "min_valid": 50,
        "nonlinear_threshold": 0.6,
        "missing": "exact",
        "restart": "never",
    }
    there = dpipe.select(folder, client=threads, **options)
    monkeypatch.undo()
    here = dpipe.select(folder, client=client, device="cpu", **options)
    assert there.selected == here.selected
    assert [d.reason for d in there.decisions] == [d.reason for d in here.decisions]


def small(folder: Path, client: Any, limits: Limits = LIMITS, **options: Any) -> Any:
    settings: dict[str, Any] = {"min_valid": 50, "nonlinear_threshold": 0.6, "restart": "never"}
    return run(folder, options_from(settings | options), client=client, limits=limits)


def test_select__computes_smaller_tiles_on_a_card_that_is_full(
    client: Any, threads: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_parts(mixed_table(600, families=3), tmp_path / "table")
    quartered = []

    def counted(*arguments: Any) -> Moments:
        quartered.append(1)
        return in_quarters(*arguments)

    monkeypatch.setattr(tiles.moments, "in_quarters", counted)
    monkeypatch.setitem(standin.limit, "bytes", 200_000)
    there = small(folder, threads)
    assert quartered
    monkeypatch.setitem(standin.limit, "bytes", 1000)
    with pytest.raises(ResourceError, match=r"the card has no memory for .*, nor for smaller"):
        small(folder, threads, fresh=True)
    monkeypatch.undo()
    here = small(folder, client, device="cpu")
    assert there.selected == here.selected
    assert [d.reason for d in there.decisions] == [d.reason for d in here.decisions]


def test_select__reads_a_piece_once_while_it_is_kept(
    threads: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_parts(mixed_table(600, families=3), tmp_path / "table")
    # Tiles so narrow that every block is part of several.
    narrow = Limits(device_columns=8, device_functions=8 * BASIS, fewest_columns=8)
    reads: Counter[Any] = Counter()
    read_piece = tiles.moments.read_piece

    def counted(
        store: Any, catalogue: Any, columns: Any, start: int, stop: int, **more: Any
    ) -> Any:
        if isinstance(columns, range):  # a block; single columns are read to settle pairs
            reads[id(catalogue), columns, start, stop] += 1
        return read_piece(store, catalogue, columns, start, stop, **more)

    monkeypatch.setattr(tiles.moments, "read_piece", counted)
    cache.CACHE.clear()
    small(folder, threads, narrow)
    assert len(reads) >= 8
    assert 0 < len(cache.CACHE) < len(reads)  # those of earlier passes went with them
    assert max(reads.values()) <= 2  # two threads may miss the same piece at a time
    with_room = sum(reads.values())
    threads.run(worker.give_memory_back)
    assert len(cache.CACHE) == 0
    reads.clear()
    monkeypatch.setattr(memory, "KEPT_SHARE", 0)
    small(folder, threads, narrow, fresh=True)
    assert len(cache.CACHE) == 0
    assert sum(reads.values()) > 1.5 * with_room


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("functions", [1, BASIS])
@pytest.mark.parametrize("diagonal", [False, True])
def test_in_quarters__equals_the_whole(functions: int, missing: bool, diagonal: bool) -> None:
    (left, right), _ = pieces(functions, missing, "cpu")
    if diagonal:
        right = left

    def half(piece: Piece, which: int) -> Piece:
        middle = (len(piece.functions) + 1) // 2
        part = slice(0, middle) if which == 0 else slice(middle, None)
        valid = None if piece.valid is None else piece.valid[part]
        return Piece(piece.functions[part], valid)

    def quarter(a: int, b: int) -> Moments:
        same = diagonal and a == b
        return tile_moments(half(left, a), None if same else half(right, b)).total()

    whole = tile_moments(left, None if diagonal else right).total()
    found = in_quarters(quarter, diagonal, (missing, missing))
    for name, array in vars(whole).items():
        assert getattr(found, name).shape == array.shape, name
        np.testing.assert_allclose(getattr(found, name), array, atol=1e-3, err_msg=name)


# TF32, emulated


def as_tf32(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rounded to 10 bits of mantissa, ties to even, as cuBLAS rounds the factors of a product."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    half = np.uint32(0xFFF) + ((bits >> np.uint32(13)) & np.uint32(1))
    return ((bits + half) & np.uint32(0xFFFFE000)).view(np.float32)


def test_as_tf32__keeps_ten_bits() -> None:
    values = np.array([1, 1 + 2**-10, 1 + 2**-11, 1 + 3 * 2**-11, -3, 0], dtype=np.float32)
    expected = np.array([1, 1 + 2**-10, 1, 1 + 2**-9, -3, 0], dtype=np.float32)
    np.testing.assert_array_equal(as_tf32(values), expected)


@pytest.mark.parametrize("missing", [False, True])
def test_tf32__stays_within_the_margin_that_is_settled_again(missing: bool) -> None:
    """A bound of the error, found by rounding on the CPU what cuBLAS would round."""
    (left, right), changes = pieces(BASIS, missing, "cpu")
    exact = tile_moments(left, right).total()
    rounded = [Piece(as_tf32(side.functions), side.valid) for side in (left, right)]
    coarse = tile_moments(*rounded).total()
    errors = {}
    for name in ("hsic", "rdc"):
        values = [MEASURES[name].contract(m, *changes, {}) for m in (exact, coarse)]
        errors[name] = float(np.max(np.abs(values[0] - values[1])))
        assert 1e-6 < errors[name] < 3e-3, name
    assert sum(errors.values()) / 2 < MARGIN["tf32"] / 3


def test_select__asks_for_the_precision_it_was_given(
    threads: Any, tmp_path: Path, client: Any
) -> None:
    folder = write_parts(mixed_table(600, families=2), tmp_path / "table")
    there = small(folder, threads, precision="tf32")
    assert standin.compute_types == {"float32": 7}
    again = small(folder, threads, fresh=True)
    assert standin.compute_types == {"float32": 1}
    assert there.selected == again.selected


@pytest.mark.gpu
def test_select__on_the_gpu_equals_the_cpu(example_table: Path) -> None:
    there, here = (dpipe.select(example_table, device=device) for device in ("gpu", "cpu"))
    assert there.selected == here.selected
    for ours, theirs in zip(there.decisions, here.decisions, strict=True):
        assert (ours.decision, ours.pass_number) == (theirs.decision, theirs.pass_number)
        assert ours.representative == theirs.representative


@pytest.mark.gpu
@pytest.mark.slow
def test_select__on_the_gpu_equals_the_cpu_on_large_tables(shared_data: Path) -> None:
    for folder in sorted(path for path in shared_data.iterdir() if path.is_dir()):
        there, here = (dpipe.select(folder, device=device) for device in ("gpu", "cpu"))
        assert there.selected == here.selected, folder.name


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("measure", "tolerance"), [("spearman", 1e-6), ("hsic", 1e-5), ("rdc", 1e-4)]
)
def test_similarity__on_the_gpu_equals_the_cpu(
    tmp_path: Path, measure: str, tolerance: float
) -> None:
    folder = write_parts(mixed_table(20_000, families=4), tmp_path / "table")
    function = getattr(dpipe, measure)
    there, here = (function(folder, device=device).values for device in ("gpu", "cpu"))
    np.testing.assert_array_equal(np.isnan(there), np.isnan(here))
    np.testing.assert_allclose(there, here, atol=tolerance, rtol=0)


@pytest.mark.gpu
def test_similarity__on_a_card_that_is_full_equals_the_cpu(
    client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import cupy

    table = mixed_table(8000, families=8, missing=False)
    folder = write_parts(table, tmp_path / "table")
    here = dpipe.hsic(folder, client=client, device="cpu")
    quartered = []

    def counted(*arguments: Any) -> Moments:
        quartered.append(1)
        return in_quarters(*arguments)

    pool = cupy.get_default_memory_pool()
    allocator = cupy.cuda.get_allocator()
    cupy.cuda.set_allocator(pool.malloc)
    monkeypatch.setattr(tiles.moments, "in_quarters", counted)
    monkeypatch.setattr(memory, "KEPT_SHARE", 0)
    try:
        with workers_here(monkeypatch, threads=1) as worker:
            pool.free_all_blocks()
            # The functions of the tile fit, what whitening them takes beside does not.
            functions = len(here.columns) * BASIS * 8000 * 4
            pool.set_limit(size=pool.total_bytes() + int(1.6 * functions))
            there = dpipe.hsic(folder, client=worker, device="gpu")
    finally:
        pool.set_limit(size=0)
        cupy.cuda.set_allocator(allocator)
    assert quartered
    np.testing.assert_allclose(there.values, here.values, atol=1e-5, rtol=0)


@pytest.mark.gpu
def test_precision__is_what_was_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_parts(mixed_table(20_000, families=4), tmp_path / "table")
    here = dpipe.hsic(folder, device="cpu").values
    monkeypatch.setenv("CUPY_TF32", "1")  # decides nothing
    errors = {
        precision: np.nanmax(
            np.abs(dpipe.hsic(folder, device="gpu", precision=precision).values - here)
        )
        for precision in ("float32", "tf32")
    }
    assert errors["float32"] <= 1e-5
    assert 2e-5 < errors["tf32"] < 3e-3


@pytest.mark.gpu
def test_recycle__gives_the_card_back() -> None:
    def fill() -> int:
        import cupy

        return int(cupy.ones(2**28, dtype=cupy.uint8).sum())

    notes: list[Any] = []
    with open_session(Options(device="gpu", workers=1), emit=notes.append) as session:
        start = used(session.read_memory("start", 0))
        assert session.client.submit(fill).result() == 2**28
        after = session.read_memory("after", 1)
        assert used(after) > start
        assert max(reading.device_peak or 0 for reading in after) >= used(after)
        # A new process with its own context and nothing else: as at the start, give or take one.
        assert used(session.recycle(1)) <= start + 2**29
    assert not any("left-over process" in str(note) for note in notes)


def used(readings: Any) -> int:
    return max(reading.device or 0 for reading in readings)


# The stand-in itself


def test_the_stand_in_refuses_what_cupy_refuses() -> None:
    there, here = standin.asarray(np.arange(3.0)), np.arange(3.0)
    refused = [
        lambda: there + here,
        lambda: here * there,
        lambda: np.asarray(there),
        lambda: np.add.reduce(there),
        lambda: standin.cupy.maximum(there, here),
        lambda: there[here > 1],
        lambda: there.take(there, mode="clip"),
        lambda: memoryview(there),
    ]
    for operation in refused:
        with pytest.raises(TypeError):
            operation()
    with pytest.raises(AttributeError, match=r"CuPy 13\.3"):
        standin.cupy.put_along_axis  # noqa: B018
    assert isinstance(there.sum(), standin.ndarray)
    assert isinstance(np.any(there), standin.ndarray)
    assert float(2 * there[1] + np.float64(1)) == 3


# The benchmark


@pytest.mark.slow
def test_gpu_check__runs_on_the_cpu(tmp_path: Path) -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "benchmarks.gpu",
            "--device=cpu",
            "--scale=0.001",
            f"--data={tmp_path}",
            f"--json={tmp_path / 'figures.json'}",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert set(figures["agreement"].values()) == {0.0}
    assert "| Gram of pass 4 / BLAS of the CPU, float32 |" in done.stdout
    assert "cuBLAS" not in done.stdout
