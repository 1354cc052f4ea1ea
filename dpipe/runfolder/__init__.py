"""Everything a run leaves on disk: written whole or not at all, and checked when read again.

Covers: the lock of a run folder, its results (decisions, selected columns, communities, matrices,
run.json), the reduced table's entry in the manifest, results of earlier runs removed.
Does not cover: how a file is written (`dpipe.runfolder.files`), what passes keep for a run that
goes on (`dpipe.runfolder.checkpoints`), the rank store (`dpipe.rankstore`), writing the reduced
table (`dpipe.table`), what the report shows (`dpipe.report`).
See also: `dpipe.model.records.Decision`, the record stored here.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dpipe.common.credentials import check_url, is_url
from dpipe.common.plain import plain, restored
from dpipe.errors import InputError, ResourceError
from dpipe.model.inventory import (
    CHECKPOINT,
    COMMUNITIES,
    DECISIONS,
    DECISIONS_CSV,
    LOCK,
    RANK_SAMPLE,
    RUN,
    SELECTED,
    STATISTICS,
    TABLE,
    TABLE_CLAIM,
    is_portable,
    matrix_files,
)
from dpipe.model.records import ColumnStatistics, Decision
from dpipe.options.kinds import expanded
from dpipe.runfolder.checkpoints import Checkpoints, Damaged, Saved, Stale
from dpipe.runfolder.files import BROKEN, SCHEMA_VERSION, Files, listing_of, unreadable
from dpipe.runfolder.lock import release_lock, take_lock
from dpipe.runfolder.names import escape_name, unescape_name
from dpipe.runfolder.pairs import PairFiles

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "DECISIONS_SCHEMA",
    "SCHEMA_VERSION",
    "Damaged",
    "Files",
    "RunFolder",
    "Saved",
    "Stale",
    "escape_name",
    "plain",
    "unescape_name",
]

DECISIONS_SCHEMA = pa.schema(
    [
        pa.field("column", pa.string(), nullable=False),
        pa.field("dtype", pa.string(), nullable=False),
        pa.field("n_valid", pa.int64()),
        pa.field("n_missing", pa.int64()),
        pa.field("n_nan", pa.int64()),
        pa.field("n_inf", pa.int64()),
        pa.field("n_unique", pa.int64()),
        pa.field("decision", pa.string(), nullable=False),
        pa.field("pass", pa.int64()),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("measure", pa.string()),
        pa.field("value", pa.float64()),
        pa.field("threshold", pa.float64()),
        pa.field("representative", pa.string()),
        pa.field("community", pa.int64()),
        pa.field("relevance", pa.float64()),
    ]
)
"""Columns of the decision table; the field of `Decision` behind "pass" is ``pass_number``."""


class RunFolder(PairFiles):
    """The output folder of a run.

    Parameters
    ----------
    path
        A local folder; nothing is touched before `create`, `lock` or the first write.
    mirrors
        URL that it is a local copy of (see `dpipe.runfolder.mirror`).
    temporary
        Whether it goes with the answer, so that nobody will read what only files tell.

    Raises
    ------
    InputError
        When `path` is a URL.

    Examples
    --------
    >>> import tempfile
    >>> folder = RunFolder(tempfile.mkdtemp())
    >>> with folder.lock():
    ...     folder.write_selected(["MolWt", "TPSA"])
    >>> folder.read_selected(), folder.verify_checksums()
    (('MolWt', 'TPSA'), ())
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        mirrors: str | None = None,
        temporary: bool = False,
    ) -> None:
        text = os.fspath(path)
        check_url(text)
        if is_url(text):
            raise InputError(
                f"the output folder {text} is a URL; give a folder of this machine to --output-dir."
            )
        super().__init__(Path(expanded(text)).absolute())
        self.checkpoints = Checkpoints(self)
        self.temporary = temporary
        self.address = mirrors or str(self.path)
        """Where the folder is for its user, which a copy of a later run shares."""

    def create(self) -> Self:
        """Make the folder, and that of the checkpoints in it, and check that it can be written.

        Raises
        ------
        InputError
            When it is a file, or cannot be made or written.
        """
        super().create()
        (self.path / CHECKPOINT).mkdir(exist_ok=True)
        return self

    @contextlib.contextmanager
    def lock(self) -> Iterator[RunFolder]:
        """Keep other runs out of the folder, and remove what a dead one left half written.

        Raises
        ------
        InputError
            When another run uses the folder.
        """
        self.create()
        descriptor = take_lock(self.path / LOCK)
        try:
            self._remove_partial_files()
            yield self
        finally:
            release_lock(self.path / LOCK, descriptor)

    def check_present(self) -> None:
        """Refuse to go on in a folder that somebody removed, though writing would make it anew.

        Raises
        ------
        ResourceError
            When the lock is gone.
        """
        if not (self.path / LOCK).exists():
            raise ResourceError(
                f"the output folder {self.path} was removed while the run went on; "
                "run the same command again to start anew."
            )

    def _remove_partial_files(self) -> None:
        for folder in (self.path, self.path / CHECKPOINT):
            for leftover in folder.glob(".*.partial"):
                if leftover.is_dir():
                    shutil.rmtree(leftover)
                else:
                    leftover.unlink(missing_ok=True)
        for replaced in self.path.glob(f".{TABLE}.*.replaced"):
            shutil.rmtree(replaced)

    # The reduced table

    def claim_table(self) -> Path:
        """The folder of the reduced table, which this run may from now on replace or remove.

        Raises
        ------
        InputError
            When there is such a folder and no run has made it.
        """
        path = self.path / TABLE
        if path.exists() and not self._has_claimed():
            raise InputError(
                f"{path} was not written by a run; move it, or choose another --output-dir."
            )
        self.write_json(TABLE_CLAIM, {})
        return path

    def record_table(self, files: Iterable[str | os.PathLike[str]]) -> None:
        """Enter the finished files of the reduced table into the manifest, and no others of it."""
        entries = self._manifest_without_table()
        for file in files:
            with open(file, "rb") as written:
                entries[str(Path(file).relative_to(self.path))] = listing_of(written)
        self._write_manifest(entries)

    def remove_table(self) -> None:
        """Remove the reduced table of a run before; a folder of somebody else's stays."""
        if self._has_claimed():
            self._write_manifest(self._manifest_without_table())
            if (self.path / TABLE).exists():
                shutil.rmtree(self.path / TABLE)
            (self.path / TABLE_CLAIM).unlink()

    def _manifest_without_table(self) -> dict[str, dict[str, Any]]:
        files = self._manifest()
        return {name: entry for name, entry in files.items() if Path(name).parts[0] != TABLE}

    def _has_claimed(self) -> bool:
        return (self.path / TABLE_CLAIM).exists()

    # Results

    def prune_results(self, names: Iterable[str]) -> None:
        """Remove results of an earlier run: what the manifest lists and `names` does not."""
        wanted = set(names)
        files = self._manifest()
        wanted |= {name for name in files if Path(name).parts[0] == TABLE}
        for name in files.keys() - wanted:
            self.inside(name).unlink(missing_ok=True)
        self._write_manifest({name: files[name] for name in files.keys() & wanted})

    def write_decisions(self, decisions: Sequence[Decision]) -> None:
        """Write ``decisions.parquet``, the exact record, and ``decisions.csv`` for spreadsheets."""
        fields = [field.name for field in dataclasses.fields(Decision)]
        names = DECISIONS_SCHEMA.names
        columns = {
            name: [getattr(decision, field) for decision in decisions]
            for name, field in zip(names, fields, strict=True)
        }
        self.write_parquet(DECISIONS, pa.table(columns, schema=DECISIONS_SCHEMA))
        self.write_csv(DECISIONS_CSV, names, zip(*columns.values(), strict=True))

    def read_decisions(self) -> tuple[Decision, ...]:
        """Read the decisions of ``decisions.parquet``, in input order.

        Raises
        ------
        InputError
            When the file is missing, broken or not a decision table.
        """
        path = self.path / DECISIONS
        try:
            # `pyarrow.parquet.read_table` would import pandas, which takes longer than reading.
            with pq.ParquetFile(path, page_checksum_verification=True) as file:
                table = file.read()
            table = table.select(DECISIONS_SCHEMA.names).cast(DECISIONS_SCHEMA)
            rows = zip(*(column.to_pylist() for column in table.columns), strict=True)
            return tuple(Decision(*row) for row in rows)
        except (pa.ArrowException, *BROKEN) as error:
            raise unreadable(path, error) from error

    def write_selected(self, columns: Iterable[str]) -> None:
        """Write ``selected.txt``: the kept columns in input order."""
        self.write_columns(SELECTED, columns)

    def read_selected(self) -> tuple[str, ...]:
        """Read the kept columns in input order."""
        return self.read_columns(SELECTED)

    def write_communities(self, communities: Mapping[str, Any]) -> None:
        """Write ``communities.json``: what each kept column stands for."""
        self.write_json(COMMUNITIES, communities)

    def read_communities(self) -> dict[str, Any]:
        """Read ``communities.json``."""
        return self.read_json(COMMUNITIES)

    def write_run(self, sections: Mapping[str, Any]) -> None:
        """Write ``run.json``: versions, options, plan, ledger and what else the run knows."""
        self.write_json(RUN, {"schema": SCHEMA_VERSION, **sections})

    def read_run(self) -> dict[str, Any]:
        """Read ``run.json``.

        Raises
        ------
        InputError
            When it is missing, broken or of another version's layout.
        """
        record = self.read_json(RUN)
        if (schema := record.get("schema")) != SCHEMA_VERSION:
            reason = f"it has schema {schema}, and this version of dpipe reads {SCHEMA_VERSION}"
            raise unreadable(self.path / RUN, reason)
        return record

    def write_statistics(self, statistics: Iterable[ColumnStatistics]) -> None:
        """Write ``checkpoint/statistics.json``: the statistics of every analysed column."""
        self.write_json(STATISTICS, {"columns": list(statistics)})

    def read_statistics(self) -> tuple[ColumnStatistics, ...]:
        """Read the statistics of every analysed column.

        Raises
        ------
        InputError
            When the file is missing or broken.
        """
        stored = self.read_json(STATISTICS)
        try:
            return tuple(restored(ColumnStatistics, entry) for entry in stored["columns"])
        except BROKEN as error:
            raise unreadable(self.path / STATISTICS, error) from error

    def write_rank_sample(self, columns: Sequence[str], codes: NDArray[np.uint8]) -> None:
        """Write the ranks (p, m) of a few rows, a byte each, with their columns."""
        array_name, columns_name = matrix_files(RANK_SAMPLE)
        self.write_npy(array_name, codes)
        self.write_columns(columns_name, columns)

    def read_rank_sample(self) -> tuple[tuple[str, ...], NDArray[np.uint8]]:
        """The columns of the sample of ranks, and its codes.

        Raises
        ------
        InputError
            When one of the two files is missing or broken, or they do not fit each other.
        """
        array_name, columns_name = matrix_files(RANK_SAMPLE)
        columns, codes = self.read_columns(columns_name), self.read_npy(array_name)
        if codes.dtype != np.uint8 or codes.ndim != 2 or len(codes) != len(columns):
            raise unreadable(self.path / array_name, f"it does not fit {columns_name}")
        return columns, codes

    def portable(self) -> Iterator[str]:
        """Names of the files that are worth having in a copy of the folder."""
        for path in sorted(self.path.rglob("*")):
            name = path.relative_to(self.path).as_posix()
            if path.is_file() and is_portable(name):
                yield name
