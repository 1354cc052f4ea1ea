"""Spearman of all columns of one Parquet file, and HSIC of pairs: dpipe beside other software.

Each contender reads the file and ends with the matrix, in a process of its own, with every core.
Imports and the start of a JVM, or of dpipe's workers, do not count, except for "dpipe command",
which is the whole process; each warms up on a small table. One that is not installed is left out.

The contenders take turns, so that what else the machine does meets all of them, and each is
compared with the dpipe of its own turn: the medians and quartiles are of these ratios. One that
goes from pair to pair gets a tenth of the columns, and its time is multiplied by how many times
more pairs there are. ``--other`` adds the session of another checkout of dpipe.

Usage: ``python -m benchmarks.peers [--rows 100000 --columns 500] [--peers scipy,pandas]
[--other CHECKOUT]``
"""

from __future__ import annotations

import functools
import importlib.util
import itertools
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import common

ROOT = Path(__file__).resolve().parent.parent
NEEDS = {
    "dpipe": "dpipe",
    "dpipe command": "dpipe",
    "scipy": "scipy",
    "pandas": "pandas",
    "polars": "polars",
    "pynetcor": "pynetcor",
    "hyper-corr": "hyper_corr",
    "ggca": "ggca",
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
def hyper_corr_ties() -> Iterator[Once]:
    import pyarrow.parquet as pq
    from hyper_corr import spearmanr_ties

    def once(path: str) -> None:
        rows = [column.to_numpy() for column in pq.read_table(path).columns]
        matrix = np.eye(len(rows))

        def beside(i: int) -> None:
            """One column with all that follow; its kernel wants the first one sorted."""
            order = np.argsort(rows[i])
            first = rows[i][order]
            for j in range(i + 1, len(rows)):
                rho, _ = spearmanr_ties(first, rows[j][order], len(first), pvals=False)
                matrix[i, j] = matrix[j, i] = rho

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(beside, range(len(rows))))

    yield once


@contextmanager
def ggca_correlate() -> Iterator[Once]:
    import ggca

    def once(path: str) -> None:
        found, _, _ = ggca.correlate(
            path,
            path,
            correlation_method=ggca.CorrelationMethod.Spearman,
            correlation_threshold=0.0,
            sort_buf_size=2_000_000,
            adjustment_method=ggca.AdjustmentMethod.BenjaminiHochberg,
            is_all_vs_all=True,
            gem_contains_cpg=False,
            collect_gem_dataset=True,
        )
        place = {name: k for k, name in enumerate(sorted({pair.gene for pair in found}))}
        matrix = np.eye(len(place))
        for pair in found:
            matrix[place[pair.gene], place[pair.gem]] = pair.correlation

    yield once


def as_text(path: Path) -> Path:
    """The same table with a column on each line, as ggca reads it; made once."""
    import pyarrow.parquet as pq

    text = path.with_suffix(".tsv")
    if not text.exists():
        table = pq.read_table(path)
        partial = text.with_suffix(".partial")
        with partial.open("w") as file:
            print("name", *range(table.num_rows), sep="\t", file=file)
            for name, column in zip(table.column_names, table.columns, strict=True):
                print(name, *column.to_pylist(), sep="\t", file=file)
        partial.rename(text)
    return text


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
    "hyper-corr": hyper_corr_ties,
    "ggca": ggca_correlate,
    "spark": spark_mllib,
}
HSIC: dict[str, Contender] = {
    "dpipe": functools.partial(dpipe_session, "hsic"),
    "hyppo": hyppo_hsic,
}
SLOW = ("spark", "pandas", "hyppo")
"""Contenders that have one turn only: they take minutes."""
PAIR_BY_PAIR = ("hyper-corr", "ggca")
"""Contenders that would take hours: a tenth of the columns has a hundredth of the pairs."""
OTHER = "other dpipe"

SERVE = """
import sys, time
from benchmarks import peers
kind, name, warm = sys.argv[1:]
with getattr(peers, kind)[name]() as once:
    once(warm)
    print("seconds", 0, flush=True)
    for line in sys.stdin:
        start = time.perf_counter()
        once(line.strip())
        print("seconds", time.perf_counter() - start, flush=True)
"""
"""What the process of a contender runs, in the folder of the checkout whose benchmarks it takes."""


@dataclass(frozen=True)
class Entry:
    """A contender that is ready.

    Attributes
    ----------
    process
        Reads paths and answers with seconds.
    path
        The table it gets.
    factor
        What its seconds are multiplied by.
    turns
        How many it has.
    """

    process: subprocess.Popen[str]
    path: Path
    factor: float
    turns: int

    def seconds(self) -> float:
        """Of one turn."""
        assert self.process.stdin is not None
        print(self.path, file=self.process.stdin, flush=True)
        return self.factor * self.answer()

    def answer(self) -> float:
        """The next number it says, whatever else it prints before."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("seconds "):
                return float(line.split()[1])
        raise SystemExit(f"{' '.join(self.process.args[3:])} ended early.")  # type: ignore[index]


def started(
    kind: str, name: str, given: Any, rows: int, columns: int, other: Path | None
) -> tuple[subprocess.Popen[str], Entry]:
    """The process of one contender, warm after its first answer, and what it is to do."""
    few = max(2, columns // 10) if name in PAIR_BY_PAIR else columns
    factor = columns * (columns - 1) / (few * (few - 1))
    if kind == "HSIC" and name == "dpipe":
        factor = 2 / (columns * (columns - 1))
    path, warm = (common.table(given.data, n, p) for n, p in ((rows, few), (300, 5)))
    if name == "ggca":
        path, warm = as_text(path), as_text(warm)
    words = [sys.executable, "-c", SERVE, kind, "dpipe" if name == OTHER else name, str(warm)]
    process = subprocess.Popen(
        words,
        cwd=other if name == OTHER else ROOT,
        env={**os.environ, **({} if "dpipe" in name else common.all_threads())},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    return process, Entry(process, path, factor, 1 if name in SLOW else given.repeats)


def in_turns(entries: dict[str, Entry], repeats: int) -> dict[str, list[float]]:
    """Seconds of every contender, who begin one after the other, another one first each time."""
    found: dict[str, list[float]] = {name: [] for name in entries}
    for turn in range(repeats):
        order = list(entries)
        for name in itertools.islice(itertools.cycle(order), turn, turn + len(order)):
            if turn < entries[name].turns:
                found[name].append(entries[name].seconds())
        print(
            f"turn {turn + 1}: "
            + ", ".join(
                f"{name} {spent[turn]:.4g}" for name, spent in found.items() if spent[turn:]
            ),
            flush=True,
        )
    return found


def measure(
    kind: str, names: Sequence[str], given: Any, rows: int, columns: int
) -> dict[str, list[float]]:
    """Seconds of the contenders that are installed, by turns."""
    with ExitStack() as stack:
        entries: dict[str, Entry] = {}
        for name in names:
            package = NEEDS.get(name, "dpipe")
            if importlib.util.find_spec(package) is None:
                print(f"{package} is not installed and is left out.")
                continue
            process, entries[name] = started(kind, name, given, rows, columns, given.other)
            stack.enter_context(process)  # waits for it, after its input has ended
            entries[name].answer()
        return in_turns(entries, given.repeats)


def compared(found: dict[str, list[float]]) -> list[tuple[str, float, float | str, str]]:
    """Name, median of seconds, median and quartiles of the ratios to the dpipe of the same turn."""
    ours = found.get("dpipe", [])
    rows: list[tuple[str, float, float | str, str]] = []
    for name, spent in found.items():
        ratios = [one / own for one, own in zip(spent, ours, strict=False)]
        if not ratios:
            rows.append((name, common.median(spent), "", ""))
            continue
        first, middle, third = np.percentile(ratios, (25, 50, 75))
        rows.append((name, common.median(spent), float(middle), f"{first:.3g} to {third:.3g}"))
    return rows


def main() -> None:
    """Measure and print."""
    parser = common.parser(__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--columns", type=int, default=500)
    parser.add_argument("--pair-rows", type=int, default=10_000, help="rows for HSIC")
    parser.add_argument("--pair-columns", type=int, default=500, help="columns of dpipe's HSIC")
    parser.add_argument("--repeats", type=int, default=5, help="turns")
    parser.add_argument("--other", type=Path, help="a checkout of dpipe to compare with")
    parser.add_argument(
        "--peers",
        default="dpipe,dpipe command,scipy,pandas,polars,pynetcor,hyper-corr,ggca,hyppo",
        help=f"out of {', '.join(NEEDS)}; spark takes some ten minutes",
    )
    given = parser.parse_args()
    print(common.machine(), time.strftime("%Y-%m-%d %H:%M"))
    peers = given.peers.split(",")
    figures: dict[str, Any] = {}
    jobs = {
        "SPEARMAN": (SPEARMAN, given.rows, given.columns),
        "HSIC": (HSIC, given.pair_rows, given.pair_columns),
    }
    for kind, (known, rows, columns) in jobs.items():
        names = [name for name in known if name in peers]
        if kind == "SPEARMAN" and given.other:
            names.insert(1, OTHER)
        if kind == "HSIC" and "hyppo" not in peers:
            continue
        print(f"\n{kind}, {rows} x {columns}\n")
        figures[kind] = measure(kind, names, given, rows, columns)
        unit = "seconds" if kind == "SPEARMAN" else "seconds a pair"
        print()
        common.show(("contender", unit, "times dpipe", "quartiles"), compared(figures[kind]))
    common.finish(given, figures)


if __name__ == "__main__":
    main()
