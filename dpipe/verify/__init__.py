"""Check that a finished run proves what it claims.

Covers: `verify`, which recomputes the certificate of a run from its input: every reason, every
similarity of a dropped column to its representative, that nothing kept is redundant, and what
columns tell of the targets.
Does not cover: running (see `dpipe.pipeline`). Which of several valid selections a run should have
made is not asked: communities and priorities only say which column of a group stays.

The computations are plain NumPy of their own (`dpipe.verify.columns`, `dpipe.verify.dependence`
and its neighbours); nothing comes from the engine, its kernels or the rank store, but for the
seeded draws of rows and of RDC's random features, which are conventions.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil

from dpipe.common.temporary import OwnedFolder
from dpipe.common.words import counted
from dpipe.errors import InputError, VerificationError
from dpipe.model.inventory import CHECKPOINT, COMMUNITIES, DECISIONS, MANIFEST, RUN, SELECTED
from dpipe.options import Options, options_from
from dpipe.runfolder import RunFolder, mirror
from dpipe.table import Table, open_table
from dpipe.table.sample import sample
from dpipe.verify.checks import (
    CHECKS,
    Claims,
    check_chains,
    check_relevance,
    check_rows,
    check_words,
)
from dpipe.verify.columns import rank_columns
from dpipe.verify.crew import crew_for
from dpipe.verify.dependence import FORMULAS

if TYPE_CHECKING:
    from numpy.typing import NDArray

_MOST_TOLD = 5
_SAID = {
    "rows": "rows of the decision table",  # and not of the input
    "VIF of columns that pass 3 kept": "inflation factors of columns that pass 3 kept",
}
_NO_CHECKSUMS = (
    f"the folder {CHECKPOINT} of the run is gone, and its checksums with it: what the files claim "
    "was recomputed; that they are as the run wrote them was not checked."
)
_SHARE = 0.8  # of the free memory, where nobody says how much to take


@dataclass(frozen=True)
class VerifyReport:
    """What was checked and held.

    Attributes
    ----------
    n_rows, n_columns, n_selected
        Rows that took part, columns of the input, and kept ones.
    compared
        How many claims of each kind were recomputed.
    differences
        Largest difference between recorded and recomputed values, per measure (relative for vif).
    n_drawn, seed
        How many decisions were drawn, by which seed, to be recomputed; None when all were.
    has_checksums
        Whether the files were compared with the checksums that the run wrote.
    """

    n_rows: int
    n_columns: int
    n_selected: int
    compared: Mapping[str, int]
    differences: Mapping[str, float]
    n_drawn: int | None = None
    seed: int | None = None
    has_checksums: bool = True

    @property
    def lines(self) -> tuple[str, ...]:
        """The report as text, a sentence a line."""
        verdict = "the certificate holds."
        drawn: tuple[str, ...] = ()
        if self.n_drawn is not None:
            verdict = "what was drawn of the certificate holds."
            were = "was" if self.n_drawn == 1 else "were"
            drawn = (
                f"a sample: {counted(self.n_drawn, 'decision')}, drawn by seed {self.seed}, "
                f"{were} recomputed with the columns named there; the others, and predictions by "
                "the whole selection, were not.",
            )
        return (
            f"{self.n_selected:,} of {counted(self.n_columns, 'column')} kept, "
            f"{counted(self.n_rows, 'row')}: {verdict}",
            *drawn,
            *([] if self.has_checksums else [_NO_CHECKSUMS]),
            *(f"checked: {_told(count, kind)}" for kind, count in self.compared.items()),
            *(
                f"largest difference: {value:.1e} ({measure})"
                for measure, value in self.differences.items()
            ),
        )


def _told(count: int, kind: str) -> str:
    """A number of claims with their kind, which is called by its plural."""
    words = _SAID.get(kind, kind)
    if count == 1:
        words = re.sub(r"s\b", "", words, count=1)
    return f"{count:,} {words}"


def verify(
    run_dir: str | os.PathLike[str],
    sources: Sequence[str | os.PathLike[str]] | None = None,
    storage_options: Mapping[str, Any] | None = None,
    *,
    n_drawn: int | None = None,
    workers: int | None = None,
    memory_limit: int | None = None,
) -> VerifyReport:
    """Recompute from the input what a finished run claims.

    Parameters
    ----------
    run_dir
        The run folder, or a URL of one.
    sources
        The input, where it is not where the run found it.
    storage_options
        Passed to fsspec for an input named by URLs.
    n_drawn
        Recompute so many decisions alone, drawn by the seed of the run; all when None.
    workers
        Number of processes; as many as cores when None, of a small table this one alone.
    memory_limit
        Bytes of all processes together; when None as many as the workers of the run had, and no
        more than are free.

    Raises
    ------
    VerificationError
        When a result file was altered, the input changed, or a claim does not hold; the first few
        are named.
    InputError
        When the folder holds no finished run, or the input cannot be read.
    ResourceError
        When `memory_limit` is too small, or a process is killed.

    Notes
    -----
    Tolerances: 1e-6 for Spearman; 2e-5 for the fused HSIC and RDC and for relevance; relative 1e-6
    for VIF (more where it is so large that rounding decides its digits). The ranks, 4 bytes a cell
    of the feature columns, lie in the system's temporary folder meanwhile.
    """
    with mirror.reading(run_dir, storage_options) as local:
        folder, where = RunFolder(local), os.fspath(run_dir)
        run = folder.read_run()
        has_checksums = (folder.path / MANIFEST).exists()
        _refuse(where, _altered(folder) if has_checksums else [])
        options = _options(run)
        _refuse_unknown(where, options)
        given = _sources(run, sources)
        with open_table(given, options=options, storage_options=storage_options) as table:
            _refuse(where, _changed(table, run))
            claims = _claims(folder, run, table, options, n_drawn)
            limit = memory_limit or _usual_limit(run)
            found = _recomputed(where, claims, workers, limit)
    return dataclasses.replace(found, has_checksums=has_checksums)


def _claims(
    folder: RunFolder, run: Mapping[str, Any], table: Table, options: Options, n_drawn: int | None
) -> Claims:
    """What the run claims, and which of it is looked at."""
    drawn = None
    if n_drawn is not None and n_drawn < len(table.features):
        names = np.random.default_rng(options.seed).choice(
            sorted(table.features), n_drawn, replace=False
        )
        drawn = frozenset(str(name) for name in names)
    return Claims(
        table=table,
        options=options,
        selected=folder.read_selected(),
        decisions=folder.read_decisions(),
        communities=folder.read_communities(),
        chosen=run.get("chosen", ()),
        order=run.get("order", ()),
        returned=run.get("returned", ()),
        drawn=drawn,
    )


def _recomputed(run_dir: str, claims: Claims, workers: int | None, limit: int) -> VerifyReport:
    """What was compared, if all of it holds."""
    # Each group of checks relies on the one before.
    _refuse(run_dir, [*check_rows(claims)] or [*check_words(claims)] or [*check_chains(claims)])
    rows = sample(claims.table, claims.options)
    n_rows = claims.table.n_rows if rows is None else len(rows)
    with (
        crew_for(n_rows, len(claims.named), workers, limit) as claims.crew,
        OwnedFolder("dpipe-verify-") as scratch,
    ):
        _refuse(run_dir, _broken(claims, rows, scratch))
    return VerifyReport(
        n_rows=n_rows,
        n_columns=len(claims.table.columns),
        n_selected=len(claims.selected),
        compared=dict(claims.compared),
        differences=claims.differences,
        n_drawn=None if claims.drawn is None else len(claims.drawn),
        seed=None if claims.drawn is None else claims.options.seed,
    )


def _broken(claims: Claims, rows: NDArray[np.int64] | None, scratch: str) -> list[str]:
    """A sentence for each claim about values that does not hold."""
    columns = rank_columns(claims.table, claims.named, rows, scratch, claims.crew)
    checks = [
        check_relevance,
        *(CHECKS[number].check for number in claims.options.pass_numbers),
    ]
    return [failure for check in checks for failure in check(claims, columns, rows)]


def _usual_limit(run: Mapping[str, Any]) -> int:
    """Bytes that the workers of the run had in all, or what is free here where that is less."""
    machine = (run.get("plan") or {}).get("machine", {})
    had = machine.get("workers", 0) * machine.get("memory", 0)
    free = int(psutil.virtual_memory().available * _SHARE)
    return min(had, free) if had else free


def _refuse(run_dir: str, failures: Sequence[str]) -> None:
    """Raise when a check failed, naming the first few failures."""
    if failures:
        more = len(failures) - _MOST_TOLD
        sentences = [*failures[:_MOST_TOLD], *([f"and {more} more"] if more > 0 else [])]
        raise VerificationError(f"{run_dir} does not hold: {'; '.join(sentences)}.")


def _refuse_unknown(run_dir: str | os.PathLike[str], options: Options) -> None:
    """Refuse a run whose pass 4 used a measure that cannot be computed again."""
    used = {name for name, weight in options.shares.items() if weight > 0}
    unknown = sorted(used - FORMULAS.keys()) if 4 in options.passes else []
    if unknown:
        raise VerificationError(
            f"{os.fspath(run_dir)} cannot be proved: the verifier has no formula of its own for "
            f"{unknown[0]!r}."
        )


def _altered(folder: RunFolder) -> list[str]:
    """Result files that differ from what the run wrote, or of which it left no checksum."""
    listed = folder.read_json(MANIFEST).get("files", {})
    proofs = {SELECTED, DECISIONS, COMMUNITIES, RUN}
    return [
        *(f"{name} has no checksum in the manifest" for name in sorted(proofs - set(listed))),
        *(f"{name} is not the file the run wrote" for name in folder.verify_checksums()),
    ]


def _options(run: Mapping[str, Any]) -> Options:
    stored = run.get("options")
    if not isinstance(stored, Mapping):
        raise InputError(f"{RUN} holds no options: the run did not finish, or is of another dpipe.")
    return options_from(stored)


def _sources(
    run: Mapping[str, Any], sources: Sequence[str | os.PathLike[str]] | None
) -> Sequence[str | os.PathLike[str]]:
    described = run.get("input", {})
    # The files' full paths are as good from any folder, and leave out files added since.
    stored = sources or described.get("files") or described.get("sources")
    if not stored:
        raise InputError(f"{RUN} does not say where its input lies; name the files.")
    return list(stored)


def _changed(table: Table, run: Mapping[str, Any]) -> list[str]:
    if table.fingerprint == run.get("input", {}).get("fingerprint"):
        return []
    return ["the input is not the one of the run: names, sizes, times or footers differ"]


__all__ = ["VerifyReport", "verify"]
