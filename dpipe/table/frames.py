"""Data in memory as Parquet files, which is what a table is made of.

Covers: pandas frames, NumPy arrays and whatever speaks the Arrow PyCapsule interface (pyarrow,
polars, ...), each written to one uncompressed file, one row group after the other.
Does not cover: telling these kinds apart, or parts of Dask collections (see `dpipe.table.inputs`).

Beside the data no more than one row group is held. Values keep their type; a cell that pandas calls
missing is null in the file, NaN of an array stays NaN. A column whose values Parquet cannot hold
and nobody will read (molecule objects, intervals, unions) is there by its name alone.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from numbers import Number
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from dpipe.common.words import counted, first_line, quoted
from dpipe.errors import InputError, ResourceError

_CELLS = 4 * 1024 * 1024
"""Cells of one row group (32 MiB of float64)."""
_ROWS = 1024, 1024 * 1024
"""Fewest and most rows of one row group."""

_WITHOUT_VALUES = pa.large_binary()
"""The type of a column that is there by its name alone: not numeric, and never taken for text."""

_Path = str | os.PathLike[str]


@dataclass(frozen=True)
class Reading:
    """What will be read from the files.

    Attributes
    ----------
    left_out
        Columns that take no part in the analysis.
    every_value
        Whether all values are copied on, into a reduced table.
    """

    left_out: Collection[str] = ()
    every_value: bool = False

    def needs_values(self, name: str, *, numeric: bool) -> bool:
        """Whether the values of a column are read."""
        return self.every_value or (numeric and name not in self.left_out)


EVERYTHING = Reading(every_value=True)


def piece_rows(n_columns: int) -> int:
    """Rows of one row group of a table with so many columns.

    Examples
    --------
    >>> piece_rows(10), piece_rows(1_000_000)
    (419430, 1024)
    """
    fewest, most = _ROWS
    return min(max(_CELLS // max(1, n_columns), fewest), most)


def check_names(names: Sequence[Any]) -> tuple[str, ...]:
    """Column names as text.

    Raises
    ------
    InputError
        When there are none, or two are the same text.

    Examples
    --------
    >>> check_names(["MolWt", 7])
    ('MolWt', '7')
    """
    texts = tuple(map(str, names))
    if not texts:
        raise InputError("the data has no columns.")
    seen: dict[str, Any] = {}
    for name, text in zip(names, texts, strict=True):
        if text in seen:
            pair = f"{seen[text]!r} and {name!r}"
            raise InputError(
                f"two columns are called {quoted(text)} ({pair}); rename one, or drop it."
            )
        seen[text] = name
        if not _is_text(text):
            raise InputError(f"the column name {text!r} is not valid Unicode; rename it.")
    return texts


def _is_text(name: str) -> bool:
    """Whether a name can be written at all: half of a surrogate pair cannot."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def write_frame(frame: Any, path: _Path, reading: Reading = EVERYTHING) -> None:
    """Write a pandas frame; its index is left out.

    Raises
    ------
    InputError
        When there are no columns, names that are equal as text, or a column of values that have
        no type in common.
    ResourceError
        When the disk is full.
    """
    names = check_names(list(frame.columns))
    columns = [frame.iloc[:, position] for position in range(len(names))]
    schema = pa.schema(
        [
            (name, _column_type(name, each, reading))
            for name, each in zip(names, columns, strict=True)
        ]
    )

    def batches() -> Iterator[pa.RecordBatch]:
        for start, stop in _pieces(len(frame), len(names)):
            arrays = [
                _from_series(field.name, series.iloc[start:stop], field.type)
                for field, series in zip(schema, columns, strict=True)
            ]
            yield pa.record_batch(arrays, schema=schema)

    _write(path, schema, batches())


def write_array(values: NDArray[Any], names: Sequence[str], path: _Path) -> None:
    """Write a NumPy array of numbers (n, p), which may be masked, with the columns `names`.

    Raises
    ------
    InputError
        When the array is not two-dimensional, has no columns, or holds no numbers.
    ResourceError
        When the disk is full.
    """
    dtype = check_array(values.shape, values.dtype)
    schema = pa.schema([(name, pa.from_numpy_dtype(dtype)) for name in names])
    data = np.ma.getdata(values)
    mask = np.ma.getmaskarray(values) if isinstance(values, np.ma.MaskedArray) else None

    def batches() -> Iterator[pa.RecordBatch]:
        for start, stop in _pieces(*values.shape):
            # Columns of a piece side by side, which Arrow takes without another copy.
            piece = np.ascontiguousarray(data[start:stop].T, dtype=dtype)
            holes = None if mask is None else np.ascontiguousarray(mask[start:stop].T)
            arrays = [
                pa.array(column, mask=None if holes is None else holes[position])
                for position, column in enumerate(piece)
            ]
            yield pa.record_batch(arrays, schema=schema)

    _write(path, schema, batches())


def check_array(shape: tuple[Any, ...], dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The type in which an array of this shape and type is written.

    Raises
    ------
    InputError
        When the array is not two-dimensional, has no columns, or holds no numbers.
    """
    if len(shape) != 2:
        raise InputError(
            f"the array has {counted(len(shape), 'dimension')}; give one of two, rows by columns."
        )
    if shape[1] == 0:
        raise InputError("the data has no columns.")
    if dtype.kind not in "biuf":
        raise InputError(
            f"the array has the type {dtype}, which is not numeric; convert it to numbers, or "
            "give a frame, whose columns have types of their own."
        )
    if dtype.kind == "f":  # half precision is exact in single, and long double is no type of Arrow
        return np.dtype(np.float32 if dtype.itemsize <= 4 else np.float64)
    return dtype.newbyteorder("=")


def write_stream(data: Any, path: _Path, reading: Reading = EVERYTHING) -> None:
    """Write whatever has ``__arrow_c_stream__``: pyarrow and polars tables, DuckDB results, ...

    Raises
    ------
    InputError
        When it is no table, has no columns or equal names, or a type that Parquet does not have.
    ResourceError
        When the disk is full.
    """
    data = _without_foreign_values(data, reading)
    try:
        reader = pa.RecordBatchReader.from_stream(data)
    except (pa.ArrowException, TypeError, ValueError) as error:
        raise InputError(f"{type(data).__name__} is no table ({first_line(error)}).") from error
    check_names(reader.schema.names)
    schema = pa.schema([(each.name, _stored_type(each, reading)) for each in reader.schema])
    write_batches(path, schema, (_plain(batch, schema) for batch in reader))


def write_batches(path: _Path, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> None:
    """Write batches of one schema, small ones together.

    Raises
    ------
    ResourceError
        When the disk is full.
    """
    rows = piece_rows(len(schema))

    def pieces() -> Iterator[pa.RecordBatch]:
        waiting: list[pa.RecordBatch] = []
        for batch in batches:
            waiting.append(batch)
            if sum(len(each) for each in waiting) >= rows:
                yield from _joined(waiting)
                waiting = []
        yield from _joined(waiting)

    _write(path, schema, pieces())


def stream_names(data: Any) -> tuple[str, ...]:
    """Names of the columns of whatever has ``__arrow_c_stream__``."""
    return tuple(pa.RecordBatchReader.from_stream(data).schema.names)


# Pandas


def _column_type(name: str, series: Any, reading: Reading) -> pa.DataType:
    """The Arrow type of a whole column, so that all its pieces get the same."""
    try:
        if series.dtype != object:
            return _as_array(series.iloc[:0], None).type
        kind = pa.infer_type(series.to_numpy(), from_pandas=True)
        if name in reading.left_out:
            _as_array(series, kind)  # a type that was inferred need not suit every value
        return kind
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        numeric = series.dtype.kind == "c" or any(isinstance(each, Number) for each in series)
        if reading.needs_values(name, numeric=numeric):
            raise _no_common_type(name, error) from error
        return _WITHOUT_VALUES


def _from_series(name: str, series: Any, kind: pa.DataType) -> pa.Array:
    if kind == _WITHOUT_VALUES and series.dtype == object:  # which is never inferred
        return pa.nulls(len(series), kind)
    try:
        return _as_array(series, kind)
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        raise _no_common_type(name, error) from error


def _as_array(series: Any, kind: pa.DataType | None) -> pa.Array:
    if hasattr(series.dtype, "fill_value"):  # a sparse column
        series = series.sparse.to_dense()
    if isinstance(series.dtype, np.dtype) and not series.dtype.isnative:
        # Arrow takes no bytes in the order of another machine.
        series = series.astype(series.dtype.newbyteorder("="))
    array = pa.array(series, type=kind, from_pandas=True)
    return array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array


def _no_common_type(name: str, error: Exception) -> InputError:
    return InputError(
        f"column {quoted(name)} holds values that are no single type of Arrow "
        f"({first_line(error)}); convert it to numbers, or drop it."
    )


# Arrow


def _stored_type(column: pa.Field, reading: Reading) -> pa.DataType:
    """The type in which a column is written.

    Raises
    ------
    InputError
        When its values are needed and Parquet cannot hold them.
    """
    kind = _plain_type(column.type)
    if _is_storable(kind):
        return kind
    if reading.needs_values(column.name, numeric=False):
        raise InputError(
            f"column {quoted(column.name)} has the type {column.type}, which Parquet does not "
            "have; convert it, or drop it."
        )
    return _WITHOUT_VALUES


def _plain_type(kind: pa.DataType) -> pa.DataType:
    """A type that Parquet has for values of `kind`: no views, codes of views or runs."""
    if pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind):
        return _plain_type(kind.value_type)
    if pa.types.is_string_view(kind):
        return pa.large_string()
    if pa.types.is_binary_view(kind):
        return pa.large_binary()
    return kind


@lru_cache(maxsize=1024)
def _is_storable(kind: pa.DataType) -> bool:
    """Whether Parquet can hold values of a type; its writer is the one to know."""
    try:
        pq.ParquetWriter(io.BytesIO(), pa.schema([("", kind)])).close()
    except pa.ArrowException:
        return False
    return True


def _plain(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    arrays = [_as_plain(a, kind) for a, kind in zip(batch.columns, schema.types, strict=True)]
    return pa.record_batch(arrays, schema=schema)


def _as_plain(array: pa.Array, kind: pa.DataType) -> pa.Array:
    if isinstance(array, pa.DictionaryArray):
        return _as_plain(array.dictionary, kind).take(array.indices)
    if isinstance(array, pa.RunEndEncodedArray):
        return _as_plain(pc.run_end_decode(array), kind)
    if array.type == kind:
        return array
    if kind == _WITHOUT_VALUES and not _is_storable(_plain_type(array.type)):
        return pa.nulls(len(array), kind)
    return array.cast(kind)


def _without_foreign_values(data: Any, reading: Reading) -> Any:
    """A polars frame without the values that Arrow does not have: 128-bit integers, objects.

    polars hands an object over as the address it has in memory.

    Raises
    ------
    InputError
        When they are needed.
    """
    polars = sys.modules.get("polars")
    if polars is None or not isinstance(data, polars.DataFrame):
        return data
    foreign = {
        name: kind
        for name, kind in data.schema.items()
        if str(kind) in ("Int128", "UInt128", "Object")
    }
    for name, kind in foreign.items():
        if reading.needs_values(name, numeric=kind.is_numeric()):
            raise InputError(
                f"column {quoted(name)} has the type {kind}, which Arrow and Parquet do not have; "
                "cast it to Int64 or Float64, or drop it."
            )
    return data.with_columns(polars.lit(None, dtype=polars.Binary).alias(name) for name in foreign)


def _joined(batches: Sequence[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Small batches as one, so that they do not become small row groups."""
    if batches:
        yield from pa.Table.from_batches(batches).combine_chunks().to_batches()


# Files


def _pieces(n_rows: int, n_columns: int) -> Iterator[tuple[int, int]]:
    return pairwise([*range(0, n_rows, piece_rows(n_columns)), n_rows])


def _write(path: _Path, schema: pa.Schema, batches: Iterator[pa.RecordBatch]) -> None:
    rows = piece_rows(len(schema))
    settings = {"compression": "none", "use_dictionary": False, "write_statistics": False}
    try:
        with pq.ParquetWriter(os.fspath(path), schema, **settings) as writer:
            for batch in batches:
                writer.write_batch(batch, row_group_size=rows)
    except OSError as error:
        where = os.fspath(path)
        refused = f"the data cannot be written to {where} ({first_line(error)})"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            refused = f"there is no space left to write {where}"
        raise ResourceError(f"{refused}; --scratch-dir names another place.") from error
    except pa.ArrowException as error:
        raise InputError(f"the data cannot be written as Parquet ({first_line(error)}).") from error
