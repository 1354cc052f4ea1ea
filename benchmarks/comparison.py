"""The same real table through dpipe and through what people use instead: seconds and results.

Each contender reads one Parquet file and ends with the columns it keeps at abs(rho) >= 0.95, in a
process of its own with every core; its imports, the start of a JVM or of dpipe's workers do not
count, except for "dpipe command", which is the whole process. Every answer is then judged by
pandas' pairwise Spearman over the columns that vary: which pairs of kept columns are still
redundant, which dropped columns have no kept one that says the same, and how many columns go or
come when the table's columns stand in reverse order. A contender that is not installed is left out;
Spark needs a Java runtime too.

Usage: ``python -m benchmarks.comparison [TABLE... --target COLUMN --leave-out NAMES]``; without a
table it takes examples/nci.
"""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks import common
from benchmarks.downstream import read

THRESHOLD = 0.95
MIN_VALID = 100
# What is not redundancy is not compared: other tools have no such rules.
ALONE = {"min_valid": MIN_VALID, "max_missing_ratio": 1.0, "variance_threshold": 0.0}
Once = Callable[[str], list[str]]


def varied(frame: pd.DataFrame) -> list[str]:
    """Columns with enough values, and not all the same: what the other tools can compare."""
    return [c for c in frame if frame[c].nunique() > 1 and frame[c].count() >= MIN_VALID]


def first_of_each(matrix: np.ndarray, columns: Sequence[str]) -> list[str]:
    """The usual recipe: drop a column that is similar to any column before it."""
    similar = np.triu(np.abs(np.nan_to_num(matrix)), 1) >= THRESHOLD
    return [name for name, gone in zip(columns, similar.any(axis=0), strict=True) if not gone]


def features(path: str, *, complete: bool = False) -> pd.DataFrame:
    """The varied columns of the file but its last one, the target."""
    frame = pd.read_parquet(path).iloc[:, :-1]
    return frame[[c for c in varied(frame) if not complete or frame[c].notna().all()]]


@contextmanager
def dpipe_session(passes: tuple[int, ...] = (1, 2)) -> Iterator[Once]:
    import dpipe
    from dpipe.options import Options
    from dpipe.session import open_session

    with open_session(Options(workers=os.cpu_count(), device="cpu")) as session:

        def once(path: str) -> list[str]:
            how: dict[str, Any] = {"client": session.client, "passes": passes, **ALONE}
            return list(dpipe.select(path, exclude=[target_of(path)], **how).selected)

        yield once


@contextmanager
def dpipe_command() -> Iterator[Once]:
    def once(path: str) -> list[str]:
        with tempfile.TemporaryDirectory() as folder:
            options = {**ALONE, "passes": "1,2", "workers": os.cpu_count(), "device": "cpu"}
            words = [f"--{k.replace('_', '-')}={v}" for k, v in options.items()]
            words += ["--exclude", target_of(path), "--output-dir", folder, "--quiet"]
            subprocess.run([sys.executable, "-m", "dpipe", "run", path, *words], check=True)
            return (Path(folder) / "selected.txt").read_text().splitlines()

    yield once


@contextmanager
def feature_engine() -> Iterator[Once]:
    from feature_engine.selection import SmartCorrelatedSelection

    def once(path: str) -> list[str]:
        smart = SmartCorrelatedSelection(method="spearman", threshold=THRESHOLD)
        return list(smart.fit_transform(features(path)).columns)

    yield once


@contextmanager
def pandas_recipe() -> Iterator[Once]:
    def once(path: str) -> list[str]:
        frame = features(path)
        matrix = frame.corr(method="spearman", min_periods=MIN_VALID)
        return first_of_each(matrix.to_numpy(), list(frame))

    yield once


@contextmanager
def scipy_recipe() -> Iterator[Once]:
    import scipy.stats

    def once(path: str) -> list[str]:
        frame = features(path, complete=True)
        return first_of_each(scipy.stats.spearmanr(frame.to_numpy()).statistic, list(frame))

    yield once


@contextmanager
def spark_recipe() -> Iterator[Once]:
    from pyspark.ml.linalg import DenseVector
    from pyspark.ml.stat import Correlation
    from pyspark.sql import SparkSession

    builder = SparkSession.builder.master(f"local[{os.cpu_count()}]")
    settings = {"spark.driver.memory": "8g", "spark.ui.enabled": "false"}
    spark = builder.config(map=settings).getOrCreate()

    def once(path: str) -> list[str]:
        frame = features(path, complete=True)
        rows = [(DenseVector(row),) for row in frame.to_numpy(dtype=float)]
        vectors = spark.createDataFrame(rows, ["v"])
        found = Correlation.corr(vectors, "v", "spearman").head()[0].toArray()
        return first_of_each(found, list(frame))

    yield once
    spark.stop()


@contextmanager
def hsic_lasso() -> Iterator[Once]:
    from pyHSICLasso import HSICLasso

    # Version 1.4.2 meets singular matrices by a name that NumPy 2 no longer has.
    np.linalg.__dict__.setdefault("linalg", np.linalg)

    def once(path: str) -> list[str]:
        frame = features(path, complete=True)
        lasso = HSICLasso()
        target = pd.read_parquet(path, columns=[target_of(path)]).iloc[:, 0]
        values = frame.to_numpy(dtype=float)
        lasso.input(values, target.to_numpy(dtype=float), featname=list(frame))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that the rows are no multiple of its blocks
            lasso.regression(num_feat=LASSO_COLUMNS, B=50, M=3)
        return list(lasso.get_features())

    yield once


LASSO_COLUMNS = 50
"""HSIC Lasso has no threshold: it is told how many columns to choose."""

CONTENDERS: dict[str, tuple[str, Callable[[], AbstractContextManager[Once]]]] = {
    "dpipe": ("dpipe", dpipe_session),
    "dpipe command": ("dpipe", dpipe_command),
    "feature-engine": ("feature_engine", feature_engine),
    "pandas": ("pandas", pandas_recipe),
    "SciPy": ("scipy", scipy_recipe),
    "Spark": ("pyspark", spark_recipe),
    "pyHSICLasso": ("pyHSICLasso", hsic_lasso),
}
"""Name -> the package it needs, and how to set it up."""


def target_of(path: str) -> str:
    """The last column of a table that `write` made."""
    import pyarrow.parquet as pq

    return str(pq.read_schema(path).names[-1])


def write(frame: pd.DataFrame, target: pd.Series, folder: Path) -> list[str]:
    """Three files, target last: the table, its columns in reverse order, a corner to warm up on."""
    corner = frame[[c for c in varied(frame) if frame[c].notna().all()][:5]]
    paths = []
    for name, part in (("table", frame), ("reverse", frame.iloc[:, ::-1]), ("corner", corner)):
        paths.append(str(folder / f"{name}.parquet"))
        part.assign(**{str(target.name): target}).to_parquet(paths[-1])
    return paths


def one(name: str, corner: str, table: str, reverse: str, repeats: str) -> dict[str, Any]:
    """Seconds of each run, and what is kept of the table either way, in this process."""
    with CONTENDERS[name][1]() as once:
        if name != "pyHSICLasso":  # it cannot choose more columns than there are
            once(corner)
        kept: list[str] = []
        spent = [common.seconds(lambda: kept.__setitem__(slice(None), once(table)))]
        spent += [common.seconds(lambda: once(table)) for _ in range(int(repeats) - 1)]
        return {"seconds": spent, "kept": kept, "reversed": once(reverse)}


def judge(found: dict[str, Any], names: list[str], rho: np.ndarray) -> dict[str, Any]:
    """What can be said about an answer from the matrix of absolute pairwise correlations."""
    kept = np.isin(names, found["kept"])
    redundant = np.triu(rho[np.ix_(kept, kept)], 1) > THRESHOLD + 1e-9
    stood_for = (rho[np.ix_(~kept, kept)] >= THRESHOLD - 1e-9).any(axis=1)
    return {
        "kept": int(kept.sum()),
        "redundant pairs": int(redundant.sum()),
        "dropped without one": int((~stood_for).sum()),
        "other columns in reverse": len(set(found["kept"]) ^ set(found["reversed"])),
    }


def main() -> None:
    """Measure, judge and print."""
    if sys.argv[1:2] == ["--one"]:
        print("\n" + json.dumps(one(*sys.argv[2:])))
        return
    parser = common.parser(__doc__)
    parser.add_argument("sources", nargs="*", default=["examples/nci/*.parquet"])
    parser.add_argument("--target", default="tpsa_reference", help="for pyHSICLasso alone")
    parser.add_argument("--leave-out", default="id,smiles", help="names and globs")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--contenders", default=",".join(CONTENDERS))
    arguments = parser.parse_args()
    print(common.machine(), time.strftime("%Y-%m-%d %H:%M"))
    frame, target = read(arguments.sources, arguments.target, arguments.leave_out)
    frame = frame.replace([np.inf, -np.inf], np.nan)  # dpipe would see to that itself
    names = varied(frame)
    rho = frame[names].corr(method="spearman", min_periods=MIN_VALID).abs().fillna(0).to_numpy()
    complete = int(frame[names].notna().all().sum())
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        table, reverse, corner = write(frame, target, Path(folder))
        for name in arguments.contenders.split(","):
            package = CONTENDERS[name][0]
            if importlib.util.find_spec(package) is None:
                print(f"{package} is not installed and is left out.")
                continue
            words = ("--one", name, corner, table, reverse, str(arguments.repeats))
            threads = {} if "dpipe" in name else common.all_threads()
            found = common.own_process("benchmarks.comparison", *words, environment=threads)
            figures[name] = {"seconds": found["seconds"], **judge(found, names, rho)}
            print(name, figures[name], flush=True)
    print(
        f"\n{len(frame)} rows, {frame.shape[1]} columns, {len(names)} of them vary, {complete} of "
        f"those without a missing cell; abs(rho) >= {THRESHOLD}\n"
    )
    head = ("seconds", "kept", "redundant pairs", "dropped without one", "other columns in reverse")
    common.show(
        ("contender", *head),
        [
            (name, common.median(row["seconds"]), *itertools.islice(row.values(), 1, None))
            for name, row in figures.items()
        ],
    )
    common.finish(arguments, figures)


if __name__ == "__main__":
    main()
