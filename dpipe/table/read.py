"""Reading column blocks of a table as numbers, missing cells as NaN.

Covers: `read_block`.
Does not cover: decoding one file (see `dpipe.table.decode`), conversion of one array (see
`dpipe.table.convert`) and without rounding (`dpipe.table.exact`), ranks or statistics.

Row groups are decoded a few columns at a time straight into the result, on the calling thread, so
that the memory of a task is its result and little more. Page checksums are verified where the
writer stored them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dpipe.common.words import counted
from dpipe.errors import InputError, ResourceError
from dpipe.model.records import Role
from dpipe.table.convert import fill_float64
from dpipe.table.decode import Part, decoder, rows_within
from dpipe.table.exact import WholeColumn, as_float64, as_whole, find_rounded, scale_of
from dpipe.table.record import Table
from dpipe.table.schema import Kind, kind_of


@dataclass(frozen=True)
class Whole:
    """A column of whole numbers that float64 would round.

    Attributes
    ----------
    dtype
        int64 or uint64.
    scale
        The numbers are 10**scale times the cells.
    valid
        (n / 8,) packed bits: cells that hold a number; None when all do.
    """

    dtype: np.dtype[Any]
    scale: int
    valid: NDArray[np.uint8] | None


@dataclass(frozen=True)
class Block:
    """Columns of a table as numbers.

    Attributes
    ----------
    values : NDArray[np.float64]
        (len(names), n) in C order, NaN wherever a cell is missing.
    n_null, n_nan, n_inf : NDArray[np.int64]
        (len(names),) cells that were null (or whose file lacks the column), NaN, infinite.
    n_rounded : NDArray[np.int64]
        (len(names),) cells that float64 may round and that could not be kept otherwise.
    whole : Mapping[int, Whole]
        The columns, by position, that are held as whole numbers in the place of float64.
    """

    values: NDArray[np.float64]
    n_null: NDArray[np.int64]
    n_nan: NDArray[np.int64]
    n_inf: NDArray[np.int64]
    n_rounded: NDArray[np.int64]
    whole: Mapping[int, Whole]

    def column(self, position: int) -> tuple[NDArray[Any], NDArray[np.bool_] | None]:
        """The cells of a column, and which of them count (None: those that are finite)."""
        values = self.values[position]
        whole = self.whole.get(position)
        if whole is None:
            return values, None
        numbers: NDArray[Any] = values.view(whole.dtype)
        if whole.valid is None:
            return numbers, None
        valid: NDArray[np.bool_] = np.unpackbits(whole.valid, count=len(values)).view(np.bool_)
        return numbers, valid

    def scale(self, position: int) -> int:
        """The power of ten by which the cells of a column were multiplied."""
        return self.whole[position].scale if position in self.whole else 0


def read_block(
    table: Table,
    names: Sequence[str],
    rows: NDArray[np.int64] | None = None,
) -> Block:
    """Columns `names` of a table, every file in order, each byte decoded once.

    Parameters
    ----------
    table : Table
    names : sequence of str
        Numeric columns, each once, in the order of the result.
    rows : NDArray[np.int64] or None
        Strictly increasing global row numbers to read; None reads every row.

    Returns
    -------
    Block
        Values (len(names), n) and what is missing in them, counted.

    Raises
    ------
    InputError
        When a column does not exist or is not numeric, or a file changed or is damaged.
    ResourceError
        When there is not enough memory.

    Examples
    --------
    >>> import tempfile, pathlib, pyarrow as pa, pyarrow.parquet as pq
    >>> from dpipe.options import Options
    >>> from dpipe.table import open_table
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> pq.write_table(pa.table({"x": [1.5, None], "y": [True, False]}), folder / "a.parquet")
    >>> block = read_block(open_table([folder], options=Options()), ["y", "x"])
    >>> block.values.tolist(), block.n_null.tolist()
    ([[1.0, 0.0], [1.5, nan]], [0, 1])
    """
    _check_names(table, names)
    rows = _check_rows(table, rows)
    filler = _Filler(names, table.n_rows if rows is None else len(rows), table.coerced)
    for file, start in zip(table.files, table.starts, strict=True):
        local = rows_within(rows, start, file.n_rows)
        count = file.n_rows if local is None else len(local)
        if not count:
            continue
        with decoder(file, table.layouts[file.layout], table.storage_options) as source:
            for part in source.parts(filler.names, local):
                filler.fill(part, file.path)
        own = table.layouts[file.layout].leaves
        filler.lack([name for name in filler.names if name not in own], count)
        filler.advance(count)
    return filler.block()


def _check_names(table: Table, names: Sequence[str]) -> None:
    if len(set(names)) < len(names):
        raise ValueError("a column is named twice")
    for name in names:
        column = table.column(name)
        if column.role is Role.NOT_NUMERIC:
            raise _not_numeric(name, column.dtype)


def _not_numeric(name: str, dtype: str) -> InputError:
    return InputError(f"column {name!r} is {dtype}, which is not numeric.")


def _check_rows(table: Table, rows: NDArray[np.int64] | None) -> NDArray[np.int64] | None:
    if rows is None:
        return None
    rows = np.asarray(rows, dtype=np.int64)
    inside = len(rows) == 0 or (rows[0] >= 0 and rows[-1] < table.n_rows)
    if not inside or np.any(np.diff(rows) <= 0):
        raise ValueError(f"rows must increase strictly within 0..{table.n_rows - 1}")
    return rows


_MOST_WAITING = 2**20  # cells that wait, 8 MiB


def _can_be_joined(dtype: pa.DataType) -> bool:
    return bool(pa.types.is_floating(dtype) or pa.types.is_integer(dtype))


class _Filler:
    """The result of `read_block` while it fills; `advance` moves on to the next file's rows."""

    def __init__(self, names: Sequence[str], n: int, text: Sequence[str]) -> None:
        self.names = list(names)
        self._place = {name: place for place, name in enumerate(names)}
        self._text = set(text)
        self._counts = [(0, 0, 0, 0)] * len(names)
        self._row = 0
        self._scales = [0] * len(names)
        self._whole: dict[int, WholeColumn] = {}
        self._rounded: set[int] = set()  # columns that cannot be held as whole numbers
        self._waiting: list[pa.Table] = []  # of one schema, rows that follow each other
        self._first_waiting = self._n_waiting = 0
        try:
            self._values = np.empty((len(names), n), dtype=np.float64)
        except MemoryError as error:
            raise ResourceError(
                f"not enough memory for {counted(len(names), 'column')} of {counted(n, 'row')}; "
                "give workers more memory or read fewer columns at once."
            ) from error

    def fill(self, part: Part, path: str) -> None:
        """Put decoded columns into their places, at the latest when all have come.

        Those of small files wait for each other: putting an array into its place takes as long as
        decoding a thousand cells.
        """
        decoded, row = part.columns, self._row + part.offset
        if not self._waiting or not decoded.schema.equals(self._waiting[0].schema):
            self._put()
            self._check_types(decoded, path)
        elif row != self._first_waiting + self._n_waiting:
            self._put()
        if not self._waiting:
            self._first_waiting, self._n_waiting = row, 0
        self._waiting.append(decoded)
        self._n_waiting += decoded.num_rows
        if self._n_waiting * decoded.num_columns > _MOST_WAITING:
            self._put()

    def _check_types(self, decoded: pa.Table, path: str) -> None:
        for field in decoded.schema:
            kind = kind_of(field.type)
            if kind is Kind.OTHER or (kind is Kind.TEXT and field.name not in self._text):
                raise _not_numeric(field.name, f"{field.type} in {path}")

    def _put(self) -> None:
        """Put the columns that wait into their places."""
        if not self._waiting:
            return
        joined = pa.concat_tables(self._waiting)
        self._waiting = []
        for name, column in zip(joined.column_names, joined.itercolumns(), strict=True):
            chunks = column.chunks
            if len(chunks) > 1 and _can_be_joined(column.type):
                chunks = [pa.concat_arrays(chunks)]
            place, row = self._place[name], self._first_waiting
            for chunk in chunks:
                self._fill_chunk(place, row, chunk)
                row += len(chunk)

    def _fill_chunk(self, place: int, row: int, chunk: pa.Array) -> None:
        """As float64 while that rounds nothing, then as whole numbers while that is possible."""
        self._scales[place] = max(self._scales[place], scale_of(chunk))
        column = self._whole.get(place)
        out = self._values[place, row : row + len(chunk)]
        read = out if column is None else np.empty(len(chunk))
        counts = fill_float64(read, chunk)
        rounded = find_rounded(chunk, read)
        n_rounded = 0 if rounded is None else int(np.count_nonzero(rounded))
        if column is None and n_rounded and place not in self._rounded:
            column = as_whole(self._values[place], row, self._scales[place])
            if column is None:
                self._rounded.add(place)
            else:
                self._whole[place] = column
        if column is not None:
            if column.put(row, chunk):
                n_rounded = 0
            else:
                n_rounded += as_float64(column, row)
                out[:] = read
                del self._whole[place]
                self._rounded.add(place)
        self._count(place, (*counts, n_rounded))

    def lack(self, names: Sequence[str], count: int) -> None:
        """Mark the rows of a file that does not have these columns."""
        if names:
            self._put()
        for name in names:
            place, rows = self._place[name], slice(self._row, self._row + count)
            if place in self._whole:
                self._whole[place].bits[rows] = 0
                self._whole[place].valid[rows] = False
            else:
                self._values[place, rows] = math.nan
            self._count(place, (count, 0, 0, 0))

    def _count(self, place: int, more: Sequence[int]) -> None:
        null, nan, inf, rounded = self._counts[place]
        self._counts[place] = (null + more[0], nan + more[1], inf + more[2], rounded + more[3])

    def advance(self, count: int) -> None:
        """The next file begins `count` rows on."""
        self._row += count

    def block(self) -> Block:
        """The finished block."""
        self._put()
        null, nan, inf, rounded = np.array(self._counts, dtype=np.int64).reshape(-1, 4).T.copy()
        whole = {}
        for place, column in self._whole.items():
            valid = None if column.valid.all() else np.packbits(column.valid)
            whole[place] = Whole(column.dtype, column.scale, valid)
        return Block(self._values, null, nan, inf, rounded, whole)
