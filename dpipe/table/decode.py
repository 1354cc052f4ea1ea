"""Decoding the row groups of one file into Arrow columns, a bounded number of cells at a time.

Covers: which columns and row groups are decoded together, and what is said when that fails.
Does not cover: conversion to float64 (see `dpipe.table.convert`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow.parquet.core import ParquetReader

from dpipe.common.credentials import without_secrets
from dpipe.common.words import counted, first_line, listed
from dpipe.errors import ResourceError
from dpipe.table.files import (
    STORAGE_ERRORS,
    BadFile,
    StorageOptions,
    open_file,
    open_part,
    reason_of,
)
from dpipe.table.record import Layout, TableFile

_MERGED_ROWS = 64 * 1024
"""Row groups smaller than this are decoded together."""
_CELLS = 2 * 1024 * 1024
"""Cells decoded at once (16 MiB of float64); one column of a row group is the least."""


@dataclass(frozen=True)
class Part:
    """Some columns of some rows of a file; ``offset`` is the first row among those asked for."""

    offset: int
    columns: pa.Table


@contextmanager
def decoder(
    file: TableFile,
    layout: Layout,
    storage_options: StorageOptions = None,
    *,
    streamed: bool = False,
) -> Iterator[Decoder]:
    """An open `Decoder` of a file of a table; `streamed` suits `Decoder.batches`.

    Raises
    ------
    InputError
        When the file is gone, unreadable, or no longer what it was.
    """
    with ExitStack() as stack:
        try:
            source = stack.enter_context(open_file(file.path, storage_options))
            reader = open_part(file.path, source, file.footer_hash, streamed=streamed)
        except STORAGE_ERRORS as error:
            reason = without_secrets(reason_of(error), storage_options)
            raise BadFile(file.path, reason) from error
        yield Decoder(file, layout, reader)


class Decoder:
    """Decodes columns of one open file; columns that the file lacks are passed over."""

    def __init__(self, file: TableFile, layout: Layout, reader: ParquetReader) -> None:
        self._file = file
        self._leaves = layout.leaves
        self._reader = reader

    def parts(self, names: Sequence[str], rows: NDArray[np.int64] | None = None) -> Iterator[Part]:
        """Columns `names` of the file's rows `rows` (sorted; None: all), each byte decoded once.

        Raises
        ------
        InputError
            Naming the file, the column and the row group that cannot be read.
        ResourceError
            When there is not enough memory.
        """
        names = [name for name in names if name in self._leaves]
        offset = 0
        for groups, start, count in _merged(self._file.row_groups):
            chosen = rows_within(rows, start, count)
            if chosen is not None and not len(chosen):
                continue
            width = max(1, _CELLS // count)
            for first in range(0, len(names), width):
                some = names[first : first + width]
                decoded = self._decode(groups, count, some)
                if chosen is not None and len(chosen) < count:
                    decoded = decoded.take(pa.array(chosen))
                yield Part(offset, decoded)
            offset += count if chosen is None else len(chosen)

    def batches(
        self, names: Sequence[str], rows: int, groups: Sequence[int] | None = None
    ) -> Iterator[pa.RecordBatch]:
        """Columns `names` (in file order) as batches of at most `rows` rows.

        Raises
        ------
        InputError, ResourceError
            As `parts`.
        """
        names = [name for name in names if name in self._leaves]
        if groups is None:
            groups = [i for i, count in enumerate(self._file.row_groups) if count]
        if not groups or not names:
            return
        try:
            yield from self._reader.iter_batches(
                rows, list(groups), self._positions(names), use_threads=True
            )
        except MemoryError as error:
            raise self._too_large(rows, names) from error
        except STORAGE_ERRORS as error:
            raise self._damaged(groups, names, error) from error

    def _positions(self, names: Sequence[str]) -> list[int]:
        return [leaf for name in names for leaf in self._leaves[name]]

    def _decode(self, groups: Sequence[int], count: int, names: Sequence[str]) -> pa.Table:
        try:
            decoded = self._reader.read_row_groups(
                groups, self._positions(names), use_threads=False
            )
        except MemoryError as error:
            raise self._too_large(count, names) from error
        except STORAGE_ERRORS as error:
            raise self._damaged(groups, names, error) from error
        if decoded.num_rows != count:
            reason = f"is damaged: {counted(count, 'row')} announced and {decoded.num_rows:,} found"
            raise BadFile(self._file.path, reason)
        return decoded

    def _too_large(self, count: int, names: Sequence[str]) -> ResourceError:
        return ResourceError(
            f"not enough memory to decode {counted(count, 'row')} of "
            f"{counted(len(names), 'column')} of {self._file.path}; give workers more memory or "
            "write smaller row groups."
        )

    def _damaged(
        self, groups: Sequence[int], names: Sequence[str], error: BaseException
    ) -> BadFile:
        """The error for pages that cannot be read: names the first column that fails alone."""
        culprit, group, error = self._first_failure(groups, names, error)
        if "decrypt" in str(error).lower():
            return BadFile(
                self._file.path, f"has {culprit} encrypted; decrypt it or exclude the column"
            )
        return BadFile(
            self._file.path,
            f"cannot be read at {culprit}, row group {group} ({first_line(error)}); restore the "
            "file or leave it out, which --on-bad-file skip cannot do for a page found bad while "
            "reading",
        )

    def _first_failure(
        self, groups: Sequence[int], names: Sequence[str], error: BaseException
    ) -> tuple[str, int, BaseException]:
        for group in groups:
            for name in names:
                try:
                    self._reader.read_row_groups(
                        [group], self._positions([name]), use_threads=False
                    )
                except STORAGE_ERRORS as own:
                    return f"column {name!r}", group, own
        return f"one of {listed(names)}", groups[0], error


def rows_within(rows: NDArray[np.int64] | None, start: int, count: int) -> NDArray[np.int64] | None:
    """The numbers among sorted `rows` within start..start + count, counted from `start`.

    Examples
    --------
    >>> rows_within(np.array([1, 5, 6, 9]), 5, 4)
    array([0, 1])
    """
    if rows is None:
        return None
    low, high = np.searchsorted(rows, [start, start + count])
    return rows[low:high] - start


def _merged(row_groups: Sequence[int]) -> Iterator[tuple[list[int], int, int]]:
    """Runs of row groups to decode together: their numbers, first row and rows."""
    groups: list[int] = []
    start = count = 0
    for number, rows in enumerate(row_groups):
        if groups and count + rows > _MERGED_ROWS:
            yield groups, start, count
            groups, start, count = [], start + count, 0
        if rows:
            groups.append(number)
            count += rows
    if groups:
        yield groups, start, count
