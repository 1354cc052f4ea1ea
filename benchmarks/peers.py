"""Spearman of all columns of one Parquet file, and HSIC of pairs: dpipe beside other software.

Each contender reads the file and ends with the matrix, in a process of its own, with every core.
Imports and the start of a JVM, or of dpipe's workers, do not count, except for "dpipe command",
which is the whole process; each warms up on a small table. One that is not installed is left out.

Usage: ``python -m benchmarks.peers [--rows 100000 --columns 500] [--peers scipy,pandas]``
"""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import common

NEEDS = {
    "dpipe": "dpipe",
    "dpipe command": "dpipe",
    "scipy": "scipy",
    "pandas": "pandas",
    "polars": "polars",
    "pynetcor": "pynetcor",
    "spark": "pyspark",
    "hyppo": "hyppo",
}
Once = Callable[[str], object]


@contextmanager
def dpipe_session(measure: str = "spearman") -> Iterator[Once]:
    from dpipe.options import Options
    from dpipe.pipeline.allpairs import similarity
    from dpipe.session import open_session

    options = Options(workers=os.cpu_count())
    with open_session(options) as session:
        yield lambda path: similarity([path], measure, options=options, client=session.client)


@contextmanager
def dpipe_command() -> Iterator[Once]:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "dpipe", "similarity", "--quiet", "--measure", "spearman"]
        command += ["--output", f"{folder}/rho.npy", "--workers", str(os.cpu_count())]
        yield lambda path: subprocess.run([*command, path], check=True, stdout=subprocess.DEVNULL)


@contextmanager
def scipy_spearmanr() -> Iterator[Once]:
    import pyarrow.parquet as pq
    import scipy.stats

    yield lambda path: scipy.stats.spearmanr(pq.read_table(path).to_pandas().to_numpy())


@contextmanager
def pandas_corr() -> Iterator[Once]:
    import pandas as pd

    yield lambda path: pd.read_parquet(path).corr(method="spearman")


@contextmanager
def polars_rank() -> Iterator[Once]:
    import polars as pl

    yield lambda path: np.corrcoef(pl.read_parquet(path).select(pl.all().rank()).to_numpy().T)


@contextmanager
def pynetcor_corrcoef() -> Iterator[Once]:
    import pyarrow.parquet as pq
    from pynetcor.cor import corrcoef

    def once(path: str) -> None:
        rows = np.stack([column.to_numpy() for column in pq.read_table(path).columns])
        corrcoef(rows, method="spearman", threads=os.cpu_count() or 1)

    yield once


@contextmanager
def spark_mllib() -> Iterator[Once]:
    from pyspark.ml.feature import VectorAssembler
    from pyspark.ml.stat import Correlation
    from pyspark.sql import SparkSession

    builder = SparkSession.builder.master(f"local[{os.cpu_count()}]")
    settings = {"spark.driver.memory": "8g", "spark.ui.enabled": "false"}
    spark = builder.config(map=settings).getOrCreate()

    def once(path: str) -> None:
        frame = spark.read.parquet(path)
        vectors = VectorAssembler(inputCols=frame.columns, outputCol="v").transform(frame)
        Correlation.corr(vectors.select("v"), "v", "spearman").head()[0].toArray()

    yield once
    spark.stop()


@contextmanager
def hyppo_hsic() -> Iterator[Once]:
    import pyarrow.parquet as pq
    from hyppo.independence import Hsic
    from scipy.stats import rankdata

    bandwidth = 1 - 2**-0.5
    test = Hsic(compute_kernel="gaussian", bias=True, gamma=1 / (2 * bandwidth**2))

    def once(path: str) -> None:
        columns = pq.read_table(path).columns[:2]
        x, y = (rankdata(column.to_numpy())[:, None] / len(column) for column in columns)
        test.statistic(x, y)

    yield once


Contender = Callable[[], AbstractContextManager[Once]]
SPEARMAN: dict[str, Contender] = {
    "dpipe": dpipe_session,
    "dpipe command": dpipe_command,
    "scipy": scipy_spearmanr,
    "pandas": pandas_corr,
    "polars": polars_rank,
    "pynetcor": pynetcor_corrcoef,
    "spark": spark_mllib,
}
HSIC: dict[str, Contender] = {
    "dpipe": functools.partial(dpipe_session, "hsic"),
    "hyppo": hyppo_hsic,
}
SLOW = {"spark": 1, "pandas": 1, "hyppo": 1}
"""Contenders that are not repeated more often than this: they take minutes."""


def measure(kind: str, name: str, path: Path, warm: Path, repeats: int) -> list[float]:
    """Seconds of one contender, in a process of its own; empty when it is not installed."""
    package = NEEDS[name]
    if importlib.util.find_spec(package) is None:
        print(f"{package} is not installed and is left out.")
        return []
    repeats = min(repeats, SLOW.get(name, repeats))
    threads = {} if "dpipe" in name else common.all_threads()
    spent: list[float] = common.own_process(
        "benchmarks.peers",
        *("--one", kind, name, str(warm), str(path), str(repeats)),
        environment=threads,
    )
    print(f"{kind} {name}: " + ", ".join(f"{value:.4g}" for value in spent), flush=True)
    return spent


def one(kind: str, name: str, warm: str, path: str, repeats: str) -> list[float]:
    """Seconds of one contender, in this process, after a small table to warm up."""
    with (SPEARMAN if kind == "spearman" else HSIC)[name]() as once:
        once(warm)
        return [common.seconds(lambda: once(path)) for _ in range(int(repeats))]


def main() -> None:
    """Measure and print."""
    if sys.argv[1:2] == ["--one"]:
        print(json.dumps(one(*sys.argv[2:])))
        return
    parser = common.parser(__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--columns", type=int, default=500)
    parser.add_argument("--pair-rows", type=int, default=10_000, help="rows for HSIC")
    parser.add_argument("--pair-columns", type=int, default=500, help="columns of dpipe's HSIC")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--peers",
        default="dpipe,dpipe command,scipy,pandas,polars,pynetcor,hyppo",
        help=f"out of {', '.join(NEEDS)}, hyppo; spark takes some ten minutes",
    )
    arguments = parser.parse_args()
    print(common.machine(), time.strftime("%Y-%m-%d %H:%M"))
    peers = arguments.peers.split(",")
    figures: dict[str, Any] = {}
    jobs = {
        "spearman": (SPEARMAN, arguments.rows, arguments.columns),
        "hsic": (HSIC, arguments.pair_rows, arguments.pair_columns),
    }
    for kind, (known, rows, columns) in jobs.items():
        chosen = [name for name in known if name in peers]
        if kind == "hsic" and "hyppo" not in peers:
            continue
        path = common.table(arguments.data, rows, columns)
        warm = common.table(arguments.data, 300, 5)
        figures[kind] = {
            name: measure(kind, name, path, warm, arguments.repeats) for name in chosen
        }
        if kind == "hsic":
            pairs = columns * (columns - 1) / 2
            figures[kind]["dpipe"] = [spent / pairs for spent in figures[kind].get("dpipe", [])]
        ours = common.median(figures[kind].get("dpipe", []))
        unit = "seconds" if kind == "spearman" else "seconds a pair"
        print(f"\n{kind}, {rows} x {columns}\n")
        common.show(
            ("contender", unit, "times dpipe"),
            [
                (name, common.median(spent), common.median(spent) / ours)
                for name, spent in figures[kind].items()
                if spent
            ],
        )
    common.finish(arguments, figures)


if __name__ == "__main__":
    main()
