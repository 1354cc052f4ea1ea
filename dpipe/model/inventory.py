"""The files of a run folder: what each is called, what it holds, which columns it has.

Covers: the names, in the order of docs/reference.md, whose table of files is this one; which of
them the manifest lists; by which a run folder is known.
Does not cover: writing and reading them (`dpipe.runfolder`), the rank store (`dpipe.rankstore`).
"""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from fnmatch import fnmatchcase

from dpipe.model.records import Decision

SELECTED = "selected.txt"
DECISIONS = "decisions.parquet"
DECISIONS_CSV = "decisions.csv"
COMMUNITIES = "communities.json"
RANK_SAMPLE = "rank_sample"
RUN = "run.json"
REPORT = "report.html"
PAIRS = "pairs.parquet"
MEMORY_SAMPLES = "memory_samples.csv"
PERFORMANCE_REPORT = "performance_report.html"
TABLE = "table"
CHECKPOINT = "checkpoint"

LOCK = ".dpipe.lock"
MANIFEST = f"{CHECKPOINT}/manifest.json"
STATISTICS = f"{CHECKPOINT}/statistics.json"
_PAIRS = f"{CHECKPOINT}/pairs-*.parquet"
TABLE_CLAIM = f"{CHECKPOINT}/table.json"
RANKS = f"{CHECKPOINT}/ranks-"
"""How the folder of a rank store begins, where it has no place of its own."""

PAIR_COLUMNS = ("pass", "measure", "column_a", "column_b", "value", "rows", "exact")
DECISION_COLUMNS = tuple(
    {"pass_number": "pass"}.get(field.name, field.name) for field in dataclasses.fields(Decision)
)


@dataclass(frozen=True)
class Entry:
    """One file of a run folder, or several that belong together.

    Attributes
    ----------
    names
        Names relative to the folder; in one of many files a ``*`` stands for any text.
    holds
        What is in it, as the reference says it.
    columns
        The columns of a table.
    """

    names: tuple[str, ...]
    holds: str
    columns: tuple[str, ...] = ()


def matrix_files(name: str) -> tuple[str, str]:
    """The array called `name` and the list of its columns.

    Examples
    --------
    >>> matrix_files("spearman")
    ('spearman.npy', 'spearman_columns.txt')
    """
    return f"{name}.npy", f"{name}_columns.txt"


def stall_file(number: int) -> str:
    """Where the details of the n-th fault lie."""
    return f"stall-{number}.txt"


def pairs_file(number: int) -> str:
    """Where the similar pairs of a pass lie, for a later run."""
    return _PAIRS.replace("*", str(number))


def pass_file(number: int) -> str:
    """Where what a pass decided lies, for a later run."""
    return f"{CHECKPOINT}/pass-{number}.json"


INVENTORY = (
    Entry((SELECTED,), "kept columns, one a line, in input order"),
    Entry(
        (DECISIONS, DECISIONS_CSV),
        "one row for each input column, see below",
        columns=DECISION_COLUMNS,
    ),
    Entry(
        (COMMUNITIES,),
        "for each kept column its alternatives with pass, measure and value, and the chain where "
        "a representative was itself dropped later; of a column that others predict "
        "`n_predictors`, where few or exact `predictors` (names and coefficients), and `r2_final`, "
        "the adjusted R^2 on the final selection, or on a part of it where that is larger "
        "(docs/statistics.md); "
        "`relevance` where the run has a target; `came_back` of a column that a later pass "
        "dropped after pass 3 had",
    ),
    Entry(
        (PAIRS,),
        "every pair of columns whose similarity reaches `--pairs-from`, by pass and measure, the "
        "most similar first: by its size rounded to 1e-6, then by name",
        columns=PAIR_COLUMNS,
    ),
    Entry(
        ("*.npy",),
        "float32 matrix (p, p) of pass 2, and of each measure that `--weights` names in pass 4, "
        "where it fits `--matrix-budget`; NaN where a pair has no similarity",
    ),
    Entry(("*_columns.txt",), "the columns of the matrix, one a line"),
    Entry(
        matrix_files(RANK_SAMPLE),
        "ranks of at most 200 rows in a byte each, for the scatter plots of the report",
    ),
    Entry(
        (RUN,),
        "schema version, versions, what ranked here (C or NumPy), resolved options, "
        "fingerprint of the input, seeds, measures "
        "(title and symbol, their pass), plan, seconds and memory of each pass (of the run that "
        "computed it), faults survived; `order`, in which pass 3 went through the columns, where "
        "it dropped any; `returned`, the columns that came back, in the order they "
        "did; with `--max-columns` `chosen`: the columns in the order "
        "they were taken, each with the share of the variance of the table, and of the target in "
        "the rows where it is known, that it and those before it explain",
    ),
    Entry((REPORT,), "the report: one page that works offline"),
    Entry(
        (MEMORY_SAMPLES, PERFORMANCE_REPORT),
        "what Dask recorded of the run: seconds and bytes of all workers together; task stream, "
        "profile and versions. Left out, with a note, where the scheduler keeps no such record",
    ),
    Entry((f"{TABLE}/",), "with `--write-table` the reduced table, a part for each input file"),
    Entry(
        ("stall-*.txt",),
        "what the workers were doing when no task had finished for five minutes",
    ),
    Entry(
        (f"{CHECKPOINT}/",),
        "manifest of checksums, by which `dpipe verify` knows the files of the run, statistics, "
        "which `dpipe transfer` needs, and pass results for a later run; nothing in it can execute "
        "code",
    ),
)
"""Every file of a run folder; a name that stands here as it is goes before a pattern."""

SINGLE_RESULTS = (
    STATISTICS,
    *(name for entry in INVENTORY for name in entry.names if "*" not in name and "/" not in name),
)
"""Results that every run leaves under the same name, whatever it measures."""


def entry_of(name: str) -> Entry | None:
    """What the inventory says of a file, None where no run writes such a file.

    Examples
    --------
    >>> entry_of("hsic_columns.txt").holds
    'the columns of the matrix, one a line'
    """
    for known in (str.__eq__, _is_inside, fnmatchcase):
        for entry in INVENTORY:
            if any(known(name, each) for each in entry.names):
                return entry
    return None


def _is_inside(name: str, folder: str) -> bool:
    return folder.endswith("/") and name.startswith(folder)


def is_listed(name: str) -> bool:
    """Whether the manifest has the checksum of a file: of all but those that carry their own.

    Examples
    --------
    >>> is_listed("run.json"), is_listed("checkpoint/pass-1.json")
    (True, False)
    """
    return name == STATISTICS or fnmatchcase(name, _PAIRS) or not name.startswith(f"{CHECKPOINT}/")


def is_run(folder: str | os.PathLike[str]) -> bool:
    """Whether a folder of this machine is that of a run, finished or not.

    A finished one is known without its checkpoints too, which somebody may have removed.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> (folder / RUN).touch()
    >>> is_run(folder)
    False
    >>> (folder / DECISIONS).touch()
    >>> is_run(folder)
    True
    """
    marks = ((MANIFEST,), (RUN, DECISIONS))
    return any(all(os.path.exists(os.path.join(folder, n)) for n in names) for names in marks)


def is_portable(name: str) -> bool:
    """Whether a file of a run folder is worth having in a copy of the folder.

    The lock, the ranks and what is half written are not.

    Examples
    --------
    >>> is_portable("table/ranks_2024.parquet"), is_portable("checkpoint/ranks-1-2/layout.json")
    (True, False)
    """
    return not name.startswith((LOCK, RANKS)) and not name.endswith(".partial")
