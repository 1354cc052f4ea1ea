"""What a GPU does for dpipe, beside the floors of the same card and the CPU of the same machine.

- Gram: the tile product of pass 4 on data that lies on the card, as a share of the rate that the
  card's own cuBLAS reaches in the same run; float32, and TF32 in a process of its own.
- Ranks: values a second of `rank_column`, on the card and on one core.
- Agreement: largest difference between card and CPU of rho, nHSIC and RDC.
- End to end: 1e6 x 2,000 and 1e7 x 500, generated on the spot; seconds of each pass, CPU beside it.
- Memory: bytes in use on the card before a run, at most, after a restart, after the end.

Usage: ``python -m benchmarks.gpu [--scale 0.1] [--no-cpu]``; ``--device cpu`` runs the same code
without a GPU, to see that it works. The exit code is 1 when card and CPU do not agree.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import common
from dpipe.backend import Array, namespace, to_device
from dpipe.kernels.measures import BASIS
from dpipe.kernels.moments import Scratch, expand_whitened, tile_moments
from dpipe.kernels.own import Own, own_sums, whitened
from dpipe.kernels.ranks import rank_column
from dpipe.plan import Machine, tile_grid

TOLERANCES = {"spearman": 1e-6, "hsic": 1e-5, "rdc": 1e-4}
SIZES = ((1_000_000, 2000), (10_000_000, 500))
REACH = {"gram": ">= 0.7", "passes": ">= 20"}
_REPEATS = 5


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


def measure_gram(device: str, scale: float) -> dict[str, float]:
    """TFLOP/s of the library's matrix product and of a tile of pass 4, of the same shape."""
    tiling = tile_grid(1_000_000, 1000, 0, BASIS, Machine(1, 1, 16 * 2**30))
    width = max(24, int(tiling.widest * min(1.0, scale * 10)))
    rows = max(512, int(tiling.chunk_rows * min(1.0, scale * 10)))
    left, right = (_columns(width, rows, device, seed) for seed in (0, 1))
    work = 2.0 * rows * (width * BASIS) ** 2
    figures: dict[str, float] = {"columns": width, "rows": rows}
    flat = [expand_whitened(*side).functions.reshape(width * BASIS, rows) for side in (left, right)]
    xp = namespace(flat[0])
    out = xp.empty((width * BASIS, width * BASIS), dtype=xp.float32)
    library = best_seconds(lambda: xp.matmul(flat[0], flat[1].T, out=out))
    scratches = [Scratch() for _ in range(3)]

    def product() -> Array:
        pieces = [
            expand_whitened(*side, scratch=scratch)
            for side, scratch in zip((left, right), scratches[:2], strict=True)
        ]
        return tile_moments(pieces[0], pieces[1], scratches[2]).product

    figures["library TFLOP/s"] = work / library / 1e12
    figures["dpipe TFLOP/s"] = work / best_seconds(product) / 1e12
    figures["share"] = figures["dpipe TFLOP/s"] / figures["library TFLOP/s"]
    return figures


def _columns(width: int, rows: int, device: str, seed: int) -> tuple[Array, None, Own]:
    """Scores of complete columns without ties where the device computes, and their own moments."""
    rng = np.random.default_rng(seed)
    order = np.argsort(rng.random((width, rows)), axis=1)
    scores = ((order + 0.5) / rows - 0.5).astype(np.float32)
    own = whitened(own_sums(scores.astype(np.float64), BASIS, None))
    moved = {name: to_device(array, device) for name, array in own.arrays().items()}
    return to_device(scores, device), None, Own(**moved)


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


# Agreement


def measure_agreement(device: str, scale: float, folder: Path) -> dict[str, float]:
    """Largest difference of each measure between the device and the CPU."""
    from dpipe.allpairs import similarity
    from dpipe.config import options_from

    path = common.table(folder, scaled(200_000, scale), 48, missing=0.2, copies=0.2)

    def values(measure: str, where: str) -> np.ndarray:
        options = options_from({"device": where, "workers": 1, "min_valid": 100})
        return similarity([path], measure, options=options).values

    found = {}
    for measure in TOLERANCES:
        here, there = values(measure, "cpu"), values(measure, device)
        if not np.array_equal(np.isnan(here), np.isnan(there)):
            found[measure] = float("inf")
        else:
            found[measure] = float(np.nanmax(np.abs(here - there)))
    return found


# End to end


def measure_run(path: Path, device: str, passes: str) -> dict[str, Any]:
    """Seconds of each pass less the restart of the workers, the selection, and device bytes."""
    from dpipe.config import options_from
    from dpipe.model import Event, MemoryRead, PassDone, PassStarted, RunStarted
    from dpipe.pipeline import run

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
    selection = run([path], options_from({"device": device, "passes": passes}), observers=[watch])
    device_bytes: dict[str, int] = {}
    for reading in selection.ledger:
        if reading.device is not None:
            seen = device_bytes.get(reading.moment, 0)
            device_bytes[reading.moment] = max(seen, reading.device)
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


def parts(arguments: argparse.Namespace) -> dict[str, Any]:
    """Every figure, measured."""
    figures: dict[str, Any] = {"device": arguments.device}
    figures["gram"] = {"float32": own_part("gram", arguments)}
    if arguments.device == "gpu":
        tf32 = own_part("gram", arguments, {"CUPY_TF32": "1"})
        figures["gram"]["tf32"] = tf32
    figures["ranks"] = {arguments.device: own_part("ranks", arguments)}
    if arguments.cpu:
        figures["ranks"]["cpu, one core"] = own_part(
            "ranks", arguments, common.worker_env(), device="cpu"
        )
    figures["agreement"] = measure_agreement(arguments.device, arguments.scale, arguments.data)
    figures["runs"] = {}
    for rows, columns in SIZES:
        rows = scaled(rows, arguments.scale)
        columns = max(16, int(columns * min(1.0, arguments.scale * 20)))
        path = common.table(arguments.data, rows, columns, missing=0.1, copies=0.1)
        run = {"device": measure_run(path, arguments.device, arguments.passes)}
        if arguments.cpu:
            run["cpu"] = measure_run(path, "cpu", arguments.passes)
        figures["runs"][f"{rows} x {columns}"] = run
    return figures


def own_part(
    name: str,
    arguments: argparse.Namespace,
    environment: dict[str, str] | None = None,
    device: str | None = None,
) -> dict[str, float]:
    """One part in a process of its own, so that its memory and settings end with it."""
    found: dict[str, float] = common.own_process(
        "benchmarks.gpu",
        f"--part={name}",
        f"--device={device or arguments.device}",
        f"--scale={arguments.scale}",
        environment=environment,
    )
    return found


def rows_of(figures: dict[str, Any]) -> list[tuple[str, object, str]]:
    """The short table: (figure, value, what it should reach)."""
    rows: list[tuple[str, object, str]] = []
    library = "cuBLAS" if figures["device"] == "gpu" else "BLAS of the CPU"
    for precision, gram in figures["gram"].items():
        rows.append((f"{library}, {precision}, TFLOP/s", gram["library TFLOP/s"], ""))
        rows.append((f"Gram of pass 4, {precision}, TFLOP/s", gram["dpipe TFLOP/s"], ""))
        rows.append((f"Gram of pass 4 / {library}, {precision}", gram["share"], REACH["gram"]))
    for where, ranks in figures["ranks"].items():
        rows += [(f"ranks on {where}, {name}", value, "") for name, value in ranks.items()]
    for measure, difference in figures["agreement"].items():
        rows.append((f"largest difference, {measure}", difference, f"<= {TOLERANCES[measure]:g}"))
    for size, run in figures["runs"].items():
        seconds = run["device"]["seconds"]
        rows += [(f"{size}: pass {n}, s", spent, "") for n, spent in seconds.items()]
        if "cpu" in run:
            slow = run["cpu"]["seconds"]
            for n, spent in slow.items():
                reach = REACH["passes"] if n in ("2", "4") else ""
                rows.append((f"{size}: pass {n}, CPU / device", spent / seconds[n], reach))
            same = run["cpu"]["selected"] == run["device"]["selected"]
            rows.append((f"{size}: same selection", same, "True"))
        for moment, used in run["device"]["device"].items():
            if used is not None:
                rows.append((f"{size}: MiB on the card, {moment}", used >> 20, ""))
    return rows


def agrees(figures: dict[str, Any]) -> bool:
    """Whether device and CPU gave the same, within the tolerances."""
    return all(
        difference <= TOLERANCES[measure] for measure, difference in figures["agreement"].items()
    ) and all(
        run["cpu"]["selected"] == run["device"]["selected"]
        for run in figures["runs"].values()
        if "cpu" in run
    )


def main() -> int:
    """Measure one part as JSON, or all of them as a table."""
    parser = common.parser(__doc__)
    parser.add_argument("--device", choices=("gpu", "cpu"), default="gpu")
    parser.add_argument("--scale", type=float, default=1.0, help="of the numbers of rows")
    parser.add_argument("--passes", default="1,2,3,4")
    parser.add_argument("--no-cpu", dest="cpu", action="store_false", help="no CPU beside it")
    parser.add_argument("--part", choices=("gram", "ranks"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.part:
        measure = {"gram": measure_gram, "ranks": measure_ranks}[arguments.part]
        print(json.dumps(measure(arguments.device, arguments.scale)))
        return 0
    print(common.machine(), time.strftime("%Y-%m-%d %H:%M"), flush=True)
    if arguments.device == "cpu":
        print("No GPU takes part: these figures say that the code works, and nothing about a card.")
    figures = parts(arguments)
    common.show(("figure", "value", "reach"), rows_of(figures))
    common.finish(arguments, figures)
    return 0 if agrees(figures) else 1


if __name__ == "__main__":
    sys.exit(main())
