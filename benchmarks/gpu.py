"""What a GPU does for dpipe, beside the floors of the same card and the CPU of the same machine.

- Gram: the tile product of pass 4 on data that lies on the card, as a share of the rate that the
  card's own cuBLAS reaches in the same run; float32 and TF32.
- Pairs: HSIC and RDC of all pairs from a rank store that is ready, over the time the products alone
  would take at cuBLAS's rate.
- Ranks: values a second of `rank_column`, on the card and on one core.
- Agreement: largest difference between card and CPU of rho, nHSIC and RDC; of nHSIC and RDC with
  TF32; selections of the example table.
- End to end: 1e6 x 2,000 and 1e7 x 500, generated on the spot; seconds of each pass, CPU beside it.
- Two workers on one card: the same table, and whether the selection is the same.
- Memory: bytes in use on the card before a run, at most, after a restart, after the end.

Usage: ``python -m benchmarks.gpu [--quick] [--parts gram,pairs,...] [--no-cpu]``. ``--quick`` takes
tables that fit ten minutes on 16 cores; ``--scale 0.1`` a tenth of the rows of whatever is taken.
``--device cpu`` runs the same code without a GPU, to see that it works. Each part is printed, and
written to ``--json``, as soon as it is measured. The exit code is 1 when card and CPU do not agree.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shutil
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from distributed import LocalCluster

from benchmarks import common
from dpipe.device.arrays import Array, namespace, set_precision, to_device, to_host
from dpipe.engine.context import Context
from dpipe.engine.grid import run_grid
from dpipe.engine.machine import Machine
from dpipe.engine.tiling import even_blocks, tile_grid
from dpipe.kernels.copula import BASIS, PAIR_BASIS
from dpipe.kernels.fusion import Fusion
from dpipe.kernels.marginals import Marginals, marginal_sums, whitened
from dpipe.kernels.measures import MEASURES
from dpipe.kernels.moments import Moments, Scratch, expand_whitened, tile_moments
from dpipe.kernels.ranks import rank_column
from dpipe.model.events import Event, MemoryRead, PassDone, PassStarted, RunStarted, silent
from dpipe.model.records import ColumnStatistics
from dpipe.options import options_from
from dpipe.pipeline import run
from dpipe.pipeline.allpairs import similarity
from dpipe.rankstore import Store, StoredColumn, write_block
from dpipe.session import Session, open_session

Figures = dict[str, Any]
Row = tuple[str, object, str]

TOLERANCES = {"spearman": 1e-6, "hsic": 1e-5, "rdc": 1e-4}
SIZES = ((1_000_000, 2000), (10_000_000, 500))
QUICK_SIZES = ((200_000, 800), (1_000_000, 100))
REACH = {"gram": ">= 0.7", "pairs": "<= 1.5", "passes": ">= 20"}
_REPEATS = 5
_PAIRS = (1_000_000, 1000)
_QUICK_PAIRS = (500_000, 1000)


def scaled(rows: int, scale: float) -> int:
    """The rows of a table at this scale; never too few to compute with."""
    return max(1000, int(rows * scale))


def wait_for(array: Array) -> None:
    """Wait until what was asked of the card is done; NumPy is done when it returns."""
    xp = namespace(array)
    if xp is not np:
        xp.cuda.get_current_stream().synchronize()


def best_seconds(function: Callable[[], Array]) -> float:
    """The shortest of a few calls after one to warm up, to their end on the card."""
    wait_for(function())
    spent = []
    for _ in range(_REPEATS):
        start = time.perf_counter()
        wait_for(function())
        spent.append(time.perf_counter() - start)
    return min(spent)


# Gram


def measure_gram(device: str, scale: float, precision: str) -> dict[str, float]:
    """TFLOP/s of the library's matrix product and of a tile of pass 4, of the same shape."""
    card = 32 * 2**30 if device == "gpu" else None
    tiling = tile_grid(
        1_000_000, [PAIR_BASIS] * 1000, [], PAIR_BASIS, Machine(1, 1, 64 * 2**30, card)
    )
    width = max(24, int(tiling.widest * min(1.0, scale * 10)))
    rows = max(512, int(tiling.chunk_rows * min(1.0, scale * 10)))
    set_precision(device, precision)
    left, right = (_columns(width, rows, device, seed) for seed in (0, 1))
    work = 2.0 * rows * (width * PAIR_BASIS) ** 2
    figures: dict[str, float] = {"columns": width, "rows": rows}
    flat = [
        expand_whitened(*side).functions.reshape(width * PAIR_BASIS, rows) for side in (left, right)
    ]
    xp = namespace(flat[0])
    out = xp.empty((width * PAIR_BASIS, width * PAIR_BASIS), dtype=xp.float32)
    library = best_seconds(lambda: xp.matmul(flat[0], flat[1].T, out=out))
    scratches = [Scratch() for _ in range(3)]

    def pieces(*sides: Any) -> list[Any]:
        return [
            expand_whitened(*side, scratch=scratch)
            for side, scratch in zip(sides, scratches, strict=False)
        ]

    def apart() -> Array:
        return tile_moments(*pieces(left, right), scratches[2]).product

    def diagonal() -> Array:
        return tile_moments(pieces(left)[0], None, scratches[2]).product

    figures["library TFLOP/s"] = work / library / 1e12
    figures["dpipe TFLOP/s"] = work / best_seconds(apart) / 1e12
    figures["share"] = figures["dpipe TFLOP/s"] / figures["library TFLOP/s"]
    # A symmetric product is half the work.
    figures["diagonal share"] = work / 2 / best_seconds(diagonal) / 1e12
    figures["diagonal share"] /= figures["library TFLOP/s"]
    moments = tile_moments(pieces(left)[0], None, scratches[2]).total()
    for name in ("hsic", "rdc"):
        figures[f"contract {name}, us a pair"] = _contraction(name, moments, *left) * 1e6
    return figures


def _contraction(name: str, moments: Moments, scores: Array, _: None, there: Marginals) -> float:
    """Seconds a pair to make one measure of a diagonal tile's moments."""
    marginals = Marginals(**{field: to_host(array) for field, array in there.arrays().items()})

    def contract() -> Array:
        return MEASURES[name].contract(moments, marginals, marginals, {})

    wait_for(contract())
    start = time.perf_counter()
    wait_for(contract())
    return (time.perf_counter() - start) / (len(scores) * (len(scores) + 1) / 2)


def _columns(width: int, rows: int, device: str, seed: int) -> tuple[Array, None, Marginals]:
    """Scores of complete columns without ties where the device computes, and their marginals."""
    rng = np.random.default_rng(seed)
    order = np.argsort(rng.random((width, rows)), axis=1)
    scores = ((order + 0.5) / rows - 0.5).astype(np.float32)
    sums = marginal_sums(scores.astype(np.float64), BASIS, None)
    marginals = whitened(sums, spanned=PAIR_BASIS)
    return to_device(scores, device), None, marginals.on_device(device)


# Ranks


def measure_ranks(device: str, scale: float) -> dict[str, float]:
    """Million values a second that `rank_column` ranks."""
    rng = np.random.default_rng(0)
    values = rng.standard_normal(scaled(1_000_000, scale))
    kinds = {
        "random": values,
        "counts": np.floor(np.abs(values) * 5),
        "half missing": np.where(rng.random(len(values)) < 0.5, np.nan, values),
    }
    figures = {}
    for name, column in kinds.items():
        there = to_device(column, device)
        spent = best_seconds(partial(_scores, there))
        figures[f"{name}, 1e6 values/s"] = len(column) / spent / 1e6
    return figures


def _scores(values: Array) -> Array:
    return rank_column(values).scores


# Pairs


def measure_pairs(
    device: str, scale: float, precision: str, size: tuple[int, int], folder: Path
) -> dict[str, float]:
    """Seconds of HSIC and RDC of all pairs from a rank store, and the products' own at best."""
    rows, columns = scaled(size[0], scale), max(24, int(size[1] * min(1.0, scale * 10)))
    # In another process: what CuPy's pool keeps in this one, workers could not have.
    shared = (f"--device={device}", f"--scale={scale}", f"--precision={precision}")
    gram = common.own_process("benchmarks.gpu", "--part=gram", *shared)
    options = options_from(
        {"device": device, "workers": 1, "precision": precision, "restart": "never"}
    )
    store = Store(str(folder / "pairs"))
    try:
        prepared = _ready_store(store, rows, columns)
        with open_session(options) as session:
            context = Context(session, store, options, silent, rows)
            spent = [_seconds_of_pairs(context, prepared, number) for number in range(3)]
    finally:
        store.remove()
    floor = rows * (columns * PAIR_BASIS) ** 2 / gram["library TFLOP/s"] / 1e12
    return {"rows": rows, "columns": columns, "seconds": min(spent[1:]), "floor": floor}


def _seconds_of_pairs(context: Context, prepared: Any, number: int) -> float:
    """One grid of both measures; the number makes its tiles differ from those of the last."""
    start = time.perf_counter()
    grid = run_grid(
        context,
        prepared,
        sorted(prepared),
        "pairs",
        Fusion.of({"hsic": 0.5, "rdc": 0.5}),
        threshold=0.9 + number / 1000,
    )
    context.store.remove(grid.job.folder)
    return time.perf_counter() - start


def _ready_store(store: Store, rows: int, columns: int) -> dict[str, StoredColumn]:
    """A rank store of columns without ties, in an order of their own each."""
    rng = np.random.default_rng(0)
    nothing = {f.name: 0.0 for f in dataclasses.fields(ColumnStatistics)}
    prepared = {}
    for number, (first, last) in enumerate(even_blocks(0, columns, 64)):
        stored, scores = [], []
        for slot in range(last - first):
            name = f"x{first + slot:05d}"
            counts = {"n_rows": rows, "n_valid": rows, "n_unique": rows, "rank_hash": name}
            statistics = ColumnStatistics(**(nothing | {"name": name} | counts))  # type: ignore[arg-type]
            stored.append(StoredColumn(statistics, number, slot, -1, ""))
            order = rng.permutation(rows)
            scores.append(((order + 0.5) / rows - 0.5).astype(np.float32))
        write_block(store, number, stored, scores, [])
        prepared |= {column.statistics.name: column for column in stored}
    return prepared


# Agreement


def measure_agreement(device: str, scale: float, folder: Path) -> dict[str, float]:
    """Largest difference of each measure between the device and the CPU, and with TF32."""
    path = common.table(folder, scaled(200_000, scale), 48, missing=0.2, copies=0.2)

    def session(where: str) -> Session:
        return open_session(options_from({"device": where, "workers": 1}))

    found = {}
    with session("cpu") as cpu, session(device) as other:

        def values(measure: str, there: Session, precision: str = "float32") -> np.ndarray:
            asked = {"device": there.device, "min_valid": 100, "precision": precision}
            options = options_from(asked)
            return similarity([path], measure, options=options, client=there.client).values

        for measure in TOLERANCES:
            here = values(measure, cpu)
            found[measure] = _difference(here, values(measure, other))
            if measure != "spearman":  # which is float64 throughout
                found[f"{measure}, tf32"] = _difference(here, values(measure, other, "tf32"))
    return found


def _difference(here: np.ndarray, there: np.ndarray) -> float:
    if not np.array_equal(np.isnan(here), np.isnan(there)):
        return float("inf")
    return float(np.nanmax(np.abs(here - there)))


def measure_selections(device: str, tables: Sequence[Path]) -> dict[str, bool]:
    """Whether device, TF32 and CPU select the same columns of each table."""
    found = {}
    for path in tables:
        here = measure_run(path, "cpu", "1,2,3,4")["selected"]
        for precision in ("float32", "tf32"):
            there = measure_run(path, device, "1,2,3,4", precision=precision)["selected"]
            found[f"{path.name}, {precision}"] = here == there
    return found


# Two workers on one card


def measure_two_workers(path: Path, device: str, passes: str) -> dict[str, Any]:
    """A run on one worker and on two that share the card (or, on the CPU, the machine)."""
    found: dict[str, Any] = {}
    for workers in (1, 2):
        with LocalCluster(
            n_workers=0, host="127.0.0.1", dashboard_address="127.0.0.1:0", silence_logs=50
        ) as cluster:
            kind = ["cuda", "worker"] if device == "gpu" else ["worker"]
            more = (
                ["--rmm-async", "--set-rmm-allocator-for-libs", "cupy"] if device == "gpu" else []
            )
            command = [sys.executable, "-m", "dask", *kind, cluster.scheduler_address]
            command += ["--nthreads", "1", "--no-dashboard", *more]
            environment = {**os.environ, **common.worker_env()}
            if device == "gpu":
                environment["CUDA_VISIBLE_DEVICES"] = "0"
            with open(path.with_suffix(".workers.log"), "w") as log:  # says why none came
                started = [
                    subprocess.Popen(command, env=environment, stderr=log) for _ in range(workers)
                ]
            try:
                cluster.wait_for_workers(workers, timeout=120)
                run = measure_run(path, device, passes, scheduler=cluster.scheduler_address)
            finally:
                for process in started:
                    process.terminate()
                for process in started:
                    process.wait(60)
        found[str(workers)] = {"seconds": sum(run["seconds"].values()), "selected": run["selected"]}
    return found


# End to end


def measure_run(path: Path, device: str, passes: str, **options: str) -> dict[str, Any]:
    """Seconds of each pass less the restart of the workers, the selection, and device bytes."""

    began: dict[int, float] = {}
    ended: dict[int, float] = {}

    def watch(event: Event) -> None:
        now = time.perf_counter()
        match event:
            case RunStarted():
                began[1] = now
            case PassStarted(number=number):
                began[number] = now
            case MemoryRead(readings=(first, *_)) if first.moment == "after":
                ended[first.pass_number] = now
            case PassDone(number=number):
                ended.setdefault(number, now)

    before = card_bytes()
    asked = options_from({"device": device, "passes": passes} | options)
    selection = run([path], asked, observers=[watch])
    device_bytes: dict[str, int] = {}
    for reading in selection.ledger:
        if reading.device is not None:
            seen = device_bytes.get(reading.moment, 0)
            device_bytes[reading.moment] = max(seen, reading.device)
            peak = max(device_bytes.get("peak", 0), reading.device_peak or 0)
            device_bytes["peak"] = peak
    return {
        "seconds": {str(number): end - began[number] for number, end in ended.items()},
        "selected": list(selection.selected),
        "device": {"before": before, **device_bytes, "closed": card_bytes()},
    }


def card_bytes() -> int | None:
    """Bytes in use on the first card as the driver counts them; None without a card."""
    if not shutil.which("nvidia-smi"):
        return None
    asked = subprocess.run(
        ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits", "--id=0"],
        capture_output=True,
        text=True,
        check=False,
    )
    return int(asked.stdout) << 20 if asked.returncode == 0 else None


# Together


def tables(arguments: argparse.Namespace) -> Iterator[tuple[str, Path]]:
    """The generated tables, by their size in words."""
    for rows, columns in QUICK_SIZES if arguments.quick else SIZES:
        rows = scaled(rows, arguments.scale)
        columns = max(16, int(columns * min(1.0, arguments.scale * 20)))
        path = common.table(arguments.data, rows, columns, missing=0.1, copies=0.1)
        yield f"{rows} x {columns}", path


def gram_part(arguments: argparse.Namespace) -> Figures:
    """Shares of cuBLAS's rate, each precision in a process of its own."""
    return {kind: own_part("gram", arguments, precision=kind) for kind in precisions(arguments)}


def pairs_part(arguments: argparse.Namespace) -> Figures:
    """All pairs over the floor of the products."""
    return {kind: own_part("pairs", arguments, precision=kind) for kind in precisions(arguments)}


def ranks_part(arguments: argparse.Namespace) -> Figures:
    """Ranking rates on the card and on one core."""
    figures = {arguments.device: own_part("ranks", arguments)}
    if arguments.cpu:
        figures["cpu, one core"] = own_part("ranks", arguments, common.worker_env(), device="cpu")
    return figures


def agreement_part(arguments: argparse.Namespace) -> Figures:
    """Differences between card and CPU."""
    return measure_agreement(arguments.device, arguments.scale, arguments.data)


def selections_part(arguments: argparse.Namespace) -> Figures:
    """Whether selections are the same; the example, and what else is named."""
    example = Path(__file__).resolve().parent.parent / "examples" / "nci"
    return measure_selections(arguments.device, [example, *arguments.tables])


def runs_part(arguments: argparse.Namespace) -> Figures:
    """Whole runs."""
    figures = {}
    for size, path in tables(arguments):
        figures[size] = {"device": measure_run(path, arguments.device, arguments.passes)}
        if arguments.cpu:
            figures[size]["cpu"] = measure_run(path, "cpu", arguments.passes)
    return figures


def workers_part(arguments: argparse.Namespace) -> Figures:
    """Two workers on one card."""
    _, path = next(tables(arguments))
    return measure_two_workers(path, arguments.device, arguments.passes)


def precisions(arguments: argparse.Namespace) -> tuple[str, ...]:
    """What there is to compare: a CPU knows float32 alone."""
    return ("float32", "tf32") if arguments.device == "gpu" else ("float32",)


PARTS = {  # what matters most first, for machines that are lent for minutes
    "gram": gram_part,
    "pairs": pairs_part,
    "agreement": agreement_part,
    "runs": runs_part,
    "selections": selections_part,
    "workers": workers_part,
    "ranks": ranks_part,
}


def own_part(
    name: str,
    arguments: argparse.Namespace,
    environment: dict[str, str] | None = None,
    device: str | None = None,
    precision: str = "float32",
) -> dict[str, float]:
    """One part in a process of its own, so that its memory and settings end with it."""
    found: dict[str, float] = common.own_process(
        "benchmarks.gpu",
        f"--part={name}",
        f"--device={device or arguments.device}",
        f"--scale={arguments.scale}",
        f"--precision={precision}",
        f"--data={arguments.data}",
        *(["--quick"] if arguments.quick else []),
        environment=environment,
    )
    return found


def rows_of(part: str, figures: Figures, device: str) -> list[Row]:
    """A part's rows of the short table: (figure, value, what it should reach)."""
    library = "cuBLAS" if device == "gpu" else "BLAS of the CPU"
    rows: list[Row] = []
    match part:
        case "gram":
            for kind, gram in figures.items():
                rows += [
                    (f"{library}, {kind}, TFLOP/s", gram["library TFLOP/s"], ""),
                    (f"Gram of pass 4, {kind}, TFLOP/s", gram["dpipe TFLOP/s"], ""),
                    (f"Gram of pass 4 / {library}, {kind}", gram["share"], REACH["gram"]),
                    (f"the same on the diagonal, {kind}", gram["diagonal share"], REACH["gram"]),
                ]
                rows += [(f"{name}, {kind}", v, "") for name, v in gram.items() if "us a" in name]
        case "pairs":
            for kind, pairs in figures.items():
                size = f"{pairs['rows']} x {pairs['columns']}, {kind}"
                over = pairs["seconds"] / pairs["floor"]
                rows.append((f"HSIC + RDC of all pairs, {size}, s", pairs["seconds"], ""))
                rows.append((f"the same / products at the rate of {library}", over, REACH["pairs"]))
        case "ranks":
            for where, ranks in figures.items():
                rows += [(f"ranks on {where}, {name}", value, "") for name, value in ranks.items()]
        case "agreement":
            for name, difference in figures.items():
                reach = f"<= {TOLERANCES[name]:g}" if name in TOLERANCES else ""
                rows.append((f"largest difference, {name}", difference, reach))
        case "selections":
            rows += [(f"same selection, {name}", same, "True") for name, same in figures.items()]
        case "runs":
            for size, run in figures.items():
                rows += _rows_of_run(size, run)
        case "workers":
            for workers, run in figures.items():
                rows.append((f"{workers} workers on one card, s", run["seconds"], ""))
            same = figures["1"]["selected"] == figures["2"]["selected"]
            rows.append(("same selection, 1 and 2 workers", same, "True"))
    return rows


def _rows_of_run(size: str, run: dict[str, Any]) -> list[Row]:
    seconds = run["device"]["seconds"]
    rows: list[Row] = [(f"{size}: pass {n}, s", spent, "") for n, spent in seconds.items()]
    if "cpu" in run:
        for n, spent in run["cpu"]["seconds"].items():
            reach = REACH["passes"] if n in ("2", "4") else ""
            rows.append((f"{size}: pass {n}, CPU / device", spent / seconds[n], reach))
        same = run["cpu"]["selected"] == run["device"]["selected"]
        rows.append((f"{size}: same selection", same, "True"))
    for moment, used in run["device"]["device"].items():
        if used is not None:
            rows.append((f"{size}: MiB on the card, {moment}", used >> 20, ""))
    return rows


def agrees(part: str, figures: Figures) -> bool:
    """Whether device and CPU gave the same, within the tolerances, as far as this part tells."""
    match part:
        case "agreement":
            return all(figures[measure] <= bound for measure, bound in TOLERANCES.items())
        case "selections":
            return all(figures.values())
        case "runs":
            compared = [run for run in figures.values() if "cpu" in run]
            return all(run["cpu"]["selected"] == run["device"]["selected"] for run in compared)
        case "workers":
            return bool(figures["1"]["selected"] == figures["2"]["selected"])
    return True


def measure_one(arguments: argparse.Namespace) -> dict[str, float]:
    """A part that has this process to itself."""
    device, scale, precision = arguments.device, arguments.scale, arguments.precision
    match arguments.part:
        case "gram":
            return measure_gram(device, scale, precision)
        case "pairs":
            size = _QUICK_PAIRS if arguments.quick else _PAIRS
            return measure_pairs(device, scale, precision, size, arguments.data)
    return measure_ranks(device, scale)


def main() -> int:
    """Measure one part as JSON, or all of them as a table."""
    parser = common.parser(__doc__)
    parser.add_argument("--device", choices=("gpu", "cpu"), default="gpu")
    parser.add_argument("--quick", action="store_true", help="tables that fit ten minutes")
    parser.add_argument("--scale", type=float, default=1.0, help="of the numbers of rows")
    parser.add_argument("--passes", default="1,2,3,4")
    parser.add_argument("--parts", default=",".join(PARTS), help="what to measure, in this order")
    parser.add_argument(
        "--tables", type=Path, nargs="*", default=[], help="folders to compare selections of, too"
    )
    parser.add_argument("--no-cpu", dest="cpu", action="store_false", help="no CPU beside it")
    parser.add_argument("--part", choices=("gram", "pairs", "ranks"), help=argparse.SUPPRESS)
    parser.add_argument("--precision", default="float32", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.part:
        print(json.dumps(measure_one(arguments)))
        return 0
    print(common.machine(), time.strftime("%Y-%m-%d %H:%M"), flush=True)
    if arguments.device == "cpu":
        print("No GPU takes part: these figures say that the code works, and nothing about a card.")
    figures: dict[str, Any] = {"device": arguments.device}
    agreed = True
    print("| figure | value | reach |\n| -- | -- | -- |")
    for part in arguments.parts.split(","):
        start = time.perf_counter()
        try:
            figures[part] = PARTS[part](arguments)
            rows = rows_of(part, figures[part], arguments.device)
            agreed &= agrees(part, figures[part])
        except Exception as error:  # the others' figures must not be lost with it
            traceback.print_exc()
            figures[part] = {"failed": repr(error)}
            rows, agreed = [(f"{part} failed, {type(error).__name__}", "", "")], False
        spent = time.perf_counter() - start
        common.show_rows([*rows, (f"seconds that measuring took, {part}", spent, "")])
        common.finish(arguments, figures)
    return 0 if agreed else 1


if __name__ == "__main__":
    sys.exit(main())
