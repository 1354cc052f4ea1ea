"""Run folders as finished runs leave them, written by hand, for pages to be made of.

Covers: runs with everything, with a target, pairs, matrices and samples of ranks, with nothing,
with names that are attacks, and as large as runs get.
Does not cover: a page itself (`pages`), what a run computes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from results import (
    LEDGER,
    NASTY,
    constant,
    correlations,
    decision,
    dropped,
    reading,
    record,
    write_run,
)

from dpipe.model.records import ColumnStatistics, Edges, Pairs
from dpipe.options import Options
from dpipe.runfolder import RunFolder


def full_run(path: Path, names: Sequence[str] = ("a", "b", "c", "d", "e")) -> Path:
    """Five and more columns with everything a run can leave: b and d for a, by two passes."""
    a, b, c, d, e, *more = names
    decisions = [
        decision(a, reason="representative of 2 columns"),
        dropped(b, a),
        dropped(d, b, value=-0.99),
        constant(c),
        decision(e, n_valid=80, n_missing=20, n_nan=15, n_inf=1),
        *(decision(name) for name in more),
        decision(
            "key",
            decision="id",
            reason="identifier, passed through",
            n_valid=None,
            n_missing=None,
            n_nan=None,
            n_inf=None,
            n_unique=None,
            dtype="string",
        ),
    ]
    named = [a, b, d, e, *more]
    total = len(decisions) - 1
    run = record(
        [(1, total, total - 1), (2, total - 1, total - 3)],
        near_threshold={"2": [[a, e, 0.9499], [b, e, -0.9501]]},
        ledger=[vars(entry) for entry in LEDGER],
        notes=[{"text": f"{a}: 3 rows were widened.", "level": "warning"}],
    )  # fmt: skip
    codes = np.random.default_rng(1).integers(0, 256, (len(named), 40)).astype(np.uint8)
    return write_run(
        path,
        decisions,
        run,
        {m: (named, correlations(len(named))) for m in ("spearman", "hsic", "rdc")},
        (named, codes),
    )


def targeted_run(
    path: Path, names: Sequence[str] = ("a", "b", "c", "d"), relevance: float = 0.425
) -> Path:
    """Four columns and a target: a and b were taken, b for the similar c; d is over the budget."""
    a, b, c, d, *more = names
    over = {"reason": "over budget", "measure": "r2", "threshold": None, "community": None}
    decisions = [
        decision(a, relevance=0.81),
        decision(b, relevance=0.405, reason="representative of 1 column"),
        dropped(c, b, relevance=relevance),
        dropped(d, a, 5, value=0.25, relevance=0.4, **over),
        *(dropped(name, a, 5, value=None, relevance=None, **over) for name in more),
        decision("y", decision="target", reason="what is to be predicted"),
    ]
    total = len(decisions) - 1
    chosen = [
        {"column": a, "table": 0.5, "target": 0.6},
        {"column": b, "table": 0.75, "target": 0.625},
    ]
    run = record([(1, total, total), (2, total, total - 1), (5, total - 1, 2)], chosen=chosen)
    return write_run(path, decisions, run)


def with_pairs(
    folder: Path, columns: Sequence[str], pairs: Sequence[tuple[int, int, float]], floor: float
) -> Path:
    """The folder of a run of passes 1 and 2 that left these pairs, by number of the columns."""
    run = RunFolder(folder)
    options = dataclasses.asdict(Options(passes=(1, 2)))
    run.write_run({**run.read_run(), "options": options})
    run.write_communities({})
    i, j = (np.array([pair[end] for pair in pairs], dtype=np.int64) for end in (0, 1))
    edges = Edges.sorted(i, j, np.array([pair[2] for pair in pairs]))
    exact = np.ones(len(pairs), dtype=np.bool_)
    run.write_pairs(2, columns, {"spearman": Pairs(edges, np.full(len(pairs), 100), exact, floor)})
    run.join_pairs([2])
    return folder


def run_with_pairs(path: Path, names: Sequence[str] = ("a", "b", "c", "d", "e")) -> Path:
    """A run that dropped b for a; at 0.9 it would drop d too, at 0.75 it would keep b, d and e."""
    decisions = [decision(names[0]), dropped(names[1], names[0]), *map(decision, names[2:])]
    folder = write_run(path, decisions, record([(1, 5, 5), (2, 5, 4)]))
    return with_pairs(folder, names, [(0, 1, 0.97), (1, 2, -0.8), (2, 3, 0.92)], 0.7)


EDGES: dict[str, Callable[[Path], Path]] = {
    "nothing dropped": lambda path: write_run(
        path, [decision("a"), decision("b")], record([(1, 2, 2), (2, 2, 2)])
    ),
    "all dropped but one": lambda path: write_run(
        path,
        [decision("a", reason="representative of 30 columns")]
        + [dropped(f"b{i}", "a") for i in range(30)],
        record([(1, 31, 31), (2, 31, 1)]),
        {"spearman": (["a", *(f"b{i}" for i in range(30))], np.ones((31, 31)))},
    ),
    "one column": lambda path: write_run(
        path, [decision("a")], record([(1, 1, 1)]), {"spearman": (["a"], np.ones((1, 1)))}
    ),
    "no feature": lambda path: write_run(
        path, [decision("id", decision="id", n_valid=None, n_missing=None)]
    ),
    "no column": lambda path: write_run(path, []),
    "pass 1 only": lambda path: write_run(
        path, [decision("a"), constant("b")], record([(1, 2, 1)])
    ),
    "everything constant": lambda path: write_run(
        path, [constant("a"), constant("b")], record([(1, 2, 0)])
    ),
    "all undefined": lambda path: write_run(
        path,
        [decision("a"), decision("b")],
        record([(1, 2, 2)]),
        {"spearman": (["a", "b"], np.full((2, 2), np.nan))},
    ),
    "pairs": run_with_pairs,
    "empty record": lambda path: write_run(path, [decision("a"), dropped("b", "a")], {}),
    "infinite values": lambda path: write_run(
        path,
        [decision("a"), dropped("b", "a", 3, reason="inflated variance", value=np.inf)],
        record([(3, 2, 1)]),
    ),
    "reused passes": lambda path: write_run(
        path,
        [decision("a")],
        {**record([(1, 1, 1)]), "plan": None},
    ),
    "one reading": lambda path: write_run(
        path, [decision("a")], record([(1, 1, 1)], ledger=[vars(LEDGER[0])])
    ),
    "a target and a budget": lambda path: targeted_run(path),
    "names of a target": lambda path: targeted_run(path, NASTY),
    "names": lambda path: full_run(path, NASTY),
    "everything": full_run,
}


def large_run(path: Path, size: int, name: Callable[[int], str]) -> Path:
    """As large as a run of `size` columns gets: dropped columns, matrices, pairs, ledger, ranks."""
    names = [name(i) for i in range(size)]
    decisions = [
        decision(names[i])
        if i % 4 == 0
        else dropped(
            names[i], names[i - i % 4], value=0.95 + i * 1e-7, community=i // 4, n_missing=i
        )
        for i in range(size)
    ]
    pairs = [[names[i], names[i + 1], 0.95 + i * 1e-6] for i in range(1000)]
    ledger = [
        vars(reading(moment, number, process, pid, seconds))
        for moment, number, seconds in (
            ("start", 0, 0.5), ("after", 1, 1000.25), ("recycled", 1, 1010.5),
            ("after", 2, 2000.75), ("after", 3, 2001.25), ("recycled", 3, 2010.5),
            ("after", 4, 9000.75),
        )
        for pid, process in enumerate(f"tcp://10.0.0.1:{port}" for port in range(32000, 32064))
    ]  # fmt: skip
    run = record(
        [(1, size, size), (2, size, size // 4)],
        near_threshold={"2": pairs, "4": pairs},
        ledger=ledger,
    )
    # More columns than this make no larger picture.
    shown = names[: min(size, 1040)]
    values = correlations(len(shown))
    rng = np.random.default_rng(3)
    folder = write_run(
        path,
        decisions,
        run,
        dict.fromkeys(("spearman", "hsic", "rdc"), (shown, values)),
        (names, rng.integers(0, 256, (size, 200), dtype=np.uint8)),
    )
    numbers = {"minimum": -12.3456789, "maximum": 1.23e5, "mean": 0.000123456}
    others = dict.fromkeys(("variance", "normalised_variance", "q025", "q975", "top_share"), 0.5)
    RunFolder(folder).write_statistics(
        ColumnStatistics(name, 9, 6, 3, 0, 0, 6, **numbers, **others, rank_hash="")
        for name in names
    )
    redundant = [(i - i % 4, i, 0.95 + i * 1e-6) for i in range(size) if i % 4]
    return with_pairs(folder, names, redundant, 0.94)
