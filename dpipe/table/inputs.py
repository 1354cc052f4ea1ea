"""Data that is already in memory, as a table's files and back.

Covers: telling paths, frames, arrays and Dask collections apart; writing what is no file into
Parquet files of a temporary folder; taking columns of data in the caller's kind, or adding some.
Does not cover: how a kind becomes Parquet (see `dpipe.table.frames`), what is read from the files
(`dpipe.table`).

pandas and polars are looked for among the modules that are loaded already and are never imported:
data of a library that is not loaded cannot be given.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import StrEnum
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dpipe.common.words import counted, listed, nearest
from dpipe.errors import InputError
from dpipe.table import as_sources, frames
from dpipe.table.frames import EVERYTHING, Reading
from dpipe.table.scratch import Scratch, part_of


class Kind(StrEnum):
    """What data is to dpipe."""

    PATHS = "paths"
    FRAME = "pandas frame"
    ARROW = "Arrow table"
    ARRAY = "NumPy array"
    DASK_FRAME = "Dask DataFrame"
    DASK_ARRAY = "Dask Array"


def kind_of(data: Any) -> Kind:
    """The kind of some data.

    Raises
    ------
    InputError
        When dpipe does not know it, naming what it knows.

    Examples
    --------
    >>> kind_of("data/*.parquet").value, kind_of(np.zeros((2, 3))).value
    ('paths', 'NumPy array')
    """
    if isinstance(data, str | os.PathLike):
        return Kind.PATHS
    if isinstance(data, np.ndarray):
        return Kind.ARRAY
    if hasattr(data, "__dask_graph__"):
        if hasattr(data, "map_partitions") and getattr(data, "ndim", 0) == 2:
            return Kind.DASK_FRAME
        if hasattr(data, "map_blocks"):
            return Kind.DASK_ARRAY
    elif _is_of("pandas", "DataFrame", data):
        return Kind.FRAME
    elif hasattr(data, "__arrow_c_stream__"):
        return Kind.ARROW
    elif isinstance(data, list | tuple | set | frozenset | Iterator):
        return Kind.PATHS
    raise InputError(f"{_described(data)}{_advice(data)}.")


def _is_of(module: str, name: str, data: Any) -> bool:
    loaded = sys.modules.get(module)
    return loaded is not None and isinstance(data, getattr(loaded, name))


def _described(data: Any) -> str:
    return f"data of the type {type(data).__module__}.{type(data).__qualname__} cannot be used"


def _advice(data: Any) -> str:
    if hasattr(data, "toarray"):
        return ": every cell is ranked, so give it dense, as data.toarray()"
    if hasattr(data, "collect_schema"):
        return ": give data.collect(), or the files it scans"
    return (
        ": give paths of files, a pandas, polars or pyarrow table, a two-dimensional NumPy array, "
        "a Dask DataFrame or a Dask Array"
    )


@contextmanager
def as_files(
    data: Any,
    *,
    columns: Sequence[str] | None = None,
    client: Any = None,
    folder: str | os.PathLike[str] | None = None,
    reading: Reading = EVERYTHING,
) -> Iterator[Sequence[str]]:
    """The Parquet files that hold some data; what was not in files is removed at the end.

    A frame or an array is written row group by row group, uncompressed: for a moment it takes as
    many bytes on disk as in memory, and a row group (32 MiB, more for very wide tables) of memory.
    A Dask collection is never brought together: Dask runs one task a partition, where the
    partition is computed, and each task writes one file. So the workers must see `folder`, as
    they must see the rank store. Column chunks of an array are first merged into row chunks.

    The files are new each time, so a later run on the same data repeats pass 1.

    Parameters
    ----------
    data
        See `Kind`; paths are handed on as they are.
    columns
        Names of the columns of an array; "0", "1", ... when None.
    client
        The Dask client that computes a collection, when it is one; else Dask's own choice.
    folder
        Where to write; the system's temporary folder when None. Made if need be.
    reading
        What will be read from the files: a column of which nobody reads the values needs no type
        that Parquet has.

    Yields
    ------
    sequence of str
        Sources for `dpipe.table.open_table`.

    Raises
    ------
    InputError
        For data that cannot be used: unknown kinds, arrays that are not two-dimensional or hold
        no numbers, no rows, no columns, or equal names.
    ResourceError
        When the folder cannot be written or is full.

    Examples
    --------
    >>> with as_files(np.zeros((2, 3))) as files:
    ...     len(files)
    1
    """
    kind = kind_of(data)
    if columns is not None and kind not in (Kind.ARRAY, Kind.DASK_ARRAY):
        raise InputError(f"columns= names the columns of an array; {kind} have names of their own.")
    if kind is Kind.PATHS:
        yield paths_of(data)
        return
    scratch = Scratch(folder)
    try:
        _write(kind, data, scratch.path, columns=columns, client=client, reading=reading)
        yield [scratch.path]
    finally:
        scratch.remove()


def paths_of(data: Any) -> list[str]:
    """The paths or URLs that a caller names.

    Raises
    ------
    InputError
        For anything else, as for data in memory where files are read.

    Examples
    --------
    >>> paths_of("a.csv"), paths_of(["a.csv", "b.csv"])
    (['a.csv'], ['a.csv', 'b.csv'])
    """
    if kind_of(data) is not Kind.PATHS:
        raise InputError(
            f"{_described(data)} where files are read: give their paths; dpipe.load(folder).apply("
            "data) takes data in memory."
        )
    sources = [data] if isinstance(data, str | os.PathLike) else list(data)
    strange = next((each for each in sources if not isinstance(each, str | os.PathLike)), None)
    if strange is not None:
        raise InputError(
            f"a list of paths holds what is none: {_described(strange)}; give one table, or paths."
        )
    return as_sources(sources)


def _write(
    kind: Kind,
    data: Any,
    folder: str,
    *,
    columns: Sequence[str] | None,
    client: Any,
    reading: Reading,
) -> None:
    """Write data that is in no file into Parquet files of a folder."""
    match kind:
        case Kind.FRAME:
            frames.check_names(list(data.columns))
            _check_rows(len(data))
            frames.write_frame(data, part_of(folder, 0), reading)
        case Kind.ARRAY:
            frames.check_array(data.shape, data.dtype)
            _check_rows(len(data))
            frames.write_array(data, _array_names(data.shape[1], columns), part_of(folder, 0))
        case Kind.DASK_FRAME:
            _write_dask_frame(data, folder, client, reading)
        case Kind.DASK_ARRAY:
            _write_dask_array(data, columns, folder, client)
        case _:
            frames.write_stream(data, part_of(folder, 0), reading)


def _check_rows(count: int) -> None:
    if not count:
        raise InputError("the data has no rows.")


def _array_names(width: int, columns: Sequence[str] | None) -> tuple[str, ...]:
    names = frames.check_names(range(width) if columns is None else list(columns))
    if len(names) != width:
        raise InputError(
            f"columns= holds {counted(len(names), 'name')} for an array of "
            f"{counted(width, 'column')}."
        )
    return names


# Dask collections


def _write_dask_frame(data: Any, folder: str, client: Any, reading: Reading) -> None:
    frames.check_names(list(data.columns))
    written = data.map_partitions(
        _write_partition, folder, reading, meta=data._meta, enforce_metadata=False
    )
    written.compute(**_scheduler(client))


def _write_partition(frame: Any, folder: str, reading: Reading, partition_info: Any = None) -> Any:
    """Task: write one partition, which becomes one file; the columns of it without rows."""
    frames.write_frame(frame, part_of(folder, partition_info["number"]), reading)
    return frame.iloc[:0]


def _write_dask_array(data: Any, columns: Sequence[str] | None, folder: str, client: Any) -> None:
    frames.check_array(data.shape, data.dtype)
    if math.isnan(data.shape[1]):
        raise InputError("the Dask Array does not know its width; call compute_chunk_sizes().")
    names = _array_names(data.shape[1], columns)
    rows = {}
    if not any(map(math.isnan, data.chunks[0])):
        # The array's own, unless blocks of full width would then have too many cells.
        rows = {0: min(max(data.chunks[0]), frames.piece_rows(data.shape[1]))}
    blocks = data.rechunk({**rows, 1: -1})
    written = blocks.map_blocks(
        _write_block,
        folder,
        names,
        dtype=np.int64,
        meta=np.empty((0, 0), np.int64),
        chunks=((1,) * blocks.numblocks[0], (1,)),
    )
    written.compute(**_scheduler(client))


def _write_block(
    block: NDArray[Any], folder: str, names: Sequence[str], block_id: Any = None
) -> NDArray[np.int64]:
    """Task: write one block of rows, which becomes one file; how many rows it has."""
    frames.write_array(np.asanyarray(block), names, part_of(folder, block_id[0]))
    return np.array([[len(block)]])


def _scheduler(client: Any) -> dict[str, Any]:
    """Where a collection is computed: on the caller's client, else where Dask would anyway."""
    return {"scheduler": client} if hasattr(client, "scheduler_info") else {}


def as_table(data: Any) -> Any:
    """A batch or stream of Arrow as a table whose columns can be taken, other data as it is.

    Examples
    --------
    >>> as_table(pa.record_batch({"a": [1]})).column_names
    ['a']
    """
    ready = isinstance(data, pa.Table) or any(
        _is_of(module, "DataFrame", data) for module in ("pandas", "polars")
    )
    # A single column speaks Arrow too, and has neither.
    named = hasattr(data, "schema") or hasattr(data, "columns")
    if ready or not named or not hasattr(data, "__arrow_c_stream__"):
        return data
    return pa.table(data)


def with_columns(data: Any, names: Sequence[str], added: Mapping[str, NDArray[Any]]) -> Any:
    """A frame, table or array with some more columns, each of which keeps its type.

    Parameters
    ----------
    data
        A pandas frame, pyarrow or polars table, or NumPy array.
    names
        What the columns of an array are called; of other data, which has names, not looked at.
    added
        More columns, one-dimensional, by names that the data does not have.

    Examples
    --------
    >>> with_columns(np.zeros((1, 2)), ["a", "b"], {"label": np.array(["c"])}).to_pydict()
    {'a': [0.0], 'b': [0.0], 'label': ['c']}
    """
    kind = kind_of(data)
    if kind is Kind.ARRAY:
        values = np.asarray(data, dtype=frames.check_array(data.shape, data.dtype))
        own = dict(zip(names, map(np.ascontiguousarray, values.T), strict=True))
        return pa.table({**own, **added})
    if kind is Kind.FRAME:
        # Not by `assign`, which warns of a frame that many columns were added to one by one.
        return data.reset_index(drop=True).join(type(data)(dict(added)))
    if isinstance(data, pa.Table):
        for name, values in added.items():
            data = data.append_column(name, pa.array(values))
        return data
    return data.with_columns(**added)


# Back again


def take_columns(data: Any, names: Sequence[str], every: Sequence[str]) -> Any:
    """Some columns of data, as data of the same kind.

    Parameters
    ----------
    data
        A frame, table, array or Dask collection.
    names
        The columns to take, in the order they are to have.
    every
        All columns of the table that `names` were chosen from: an array's columns have no names,
        so it must have as many as these.

    Raises
    ------
    InputError
        When a column is missing, an array has another width, or the data is of another kind.

    Examples
    --------
    >>> take_columns(np.array([[1, 2, 3]]), ["c", "a"], ["a", "b", "c"])
    array([[3, 1]])
    """
    kind = kind_of(data)
    if kind is Kind.PATHS:
        raise InputError(
            "apply() takes data in memory; for files see dpipe.apply and `dpipe apply`."
        )
    if kind in (Kind.ARRAY, Kind.DASK_ARRAY):
        if len(data.shape) != 2 or data.shape[1] != len(every):
            raise InputError(
                f"the array has the shape {data.shape}, but the selection was made on "
                f"{counted(len(every), 'column')}."
            )
        place = {name: position for position, name in enumerate(every)}
        return data[:, [place[name] for name in names]]
    if kind is Kind.ARROW and not hasattr(data, "select"):
        raise InputError(f"{_described(data)}: give a pyarrow or polars table.")
    known = frames.stream_names(data) if kind is Kind.ARROW else list(data.columns)
    places = {str(name): position for position, name in enumerate(known)}
    missing = [name for name in names if name not in places]
    if missing:
        hint = nearest(missing[0], places) if len(missing) == 1 else ""
        raise InputError(f"the data has no column {listed(missing)}{hint}.")
    if kind is Kind.ARROW:
        return data.select(list(names))
    if kind is Kind.FRAME:
        return data.iloc[:, [places[name] for name in names]]
    return data[[known[places[name]] for name in names]]
