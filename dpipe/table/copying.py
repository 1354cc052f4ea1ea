"""Copying columns of a table into reduced Parquet files, row group by row group.

Covers: `copy_columns`, to one file or to a folder that mirrors the inputs, local or by fsspec URL.
Does not cover: which columns to copy (see `dpipe.pipeline`).

Values keep their type; where files disagree, all parts get the type that holds the values of each.
Everything is written under a temporary name and renamed at the end, so a destination is either
complete or absent.
"""

from __future__ import annotations

import errno
import os
import posixpath
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dpipe.common.atomic import partial_name, put_in_place, sync
from dpipe.common.credentials import check_url, is_url, safe_reason
from dpipe.errors import DpipeError, InputError, ResourceError
from dpipe.options.kinds import expanded
from dpipe.table.convert import simpler
from dpipe.table.decode import decoder
from dpipe.table.files import (
    STORAGE_ERRORS,
    StorageOptions,
    changed,
    filesystem,
    read_footer,
)
from dpipe.table.formats import PARQUET_ENDINGS, Format, format_of
from dpipe.table.record import Table, TableFile
from dpipe.table.scan import in_threads
from dpipe.table.schema import widen_types

_CELLS = 8 * 1024 * 1024
"""Cells of one row group written (64 MiB of float64)."""
_ROWS = 4096, 1024 * 1024
"""Fewest and most rows of one row group written."""

_Create = Callable[[str], AbstractContextManager[Any]]


def copy_columns(
    table: Table,
    names: Sequence[str],
    destination: str | os.PathLike[str],
    *,
    overwrite: bool = False,
) -> tuple[str, ...]:
    """Write the columns `names` of every row of a table.

    Parameters
    ----------
    table : Table
    names : sequence of str
        Columns of any role, in the order they are to have.
    destination : str or path
        One file when it ends in .parquet (or .parq, .pq), else a folder with one part for each
        input file, named like it; a path or an fsspec URL, which the table's options open too.
    overwrite : bool
        Whether an existing destination is replaced; a folder is replaced as a whole.

    Returns
    -------
    tuple of str
        The files written.

    Raises
    ------
    InputError
        When a column does not exist or has types that conflict, when the destination exists
        or cannot be written, or when an input file changed or is damaged.
    ResourceError
        When there is not enough disk or memory.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> from dpipe.options import Options
    >>> from dpipe.table import open_table
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> pq.write_table(pa.table({"x": [1], "y": [2], "z": [3]}), folder / "a.parquet")
    >>> table = open_table([folder / "a.parquet"], options=Options())
    >>> written = copy_columns(table, ["z", "x"], folder / "reduced.parquet")
    >>> pq.read_table(written[0]).to_pydict()
    {'z': [3], 'x': [1]}
    """
    destination = expanded(destination)
    check_url(destination)
    if format_of(destination) is not Format.PARQUET:
        raise InputError(
            f"{destination} cannot be written: the copy is Parquet; name a file that ends in "
            ".parquet, or a folder."
        )
    schema = _unified_schema(table, names)
    parts = _parts(table, destination)
    try:
        with _staged(table, destination, overwrite) as create:
            for part, files in parts.items():
                with create(part) as sink:
                    _write(table, files, schema, sink)
    except MemoryError as error:
        raise ResourceError(f"not enough memory to write {destination}.") from error
    except STORAGE_ERRORS as error:
        full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        kind: type[DpipeError] = ResourceError if full else InputError
        reason = safe_reason(error, table.storage_options)
        raise kind(f"{destination} cannot be written ({reason}).") from error
    return tuple(_join(destination, part) for part in parts)


def _is_single(destination: str) -> bool:
    return destination.lower().endswith(PARQUET_ENDINGS)


def _parts(table: Table, destination: str) -> dict[str, Sequence[TableFile]]:
    """The files to write, by their path within the destination, and which inputs go there."""
    if _is_single(destination):
        return {"": table.files}
    return {
        name: (file,) for name, file in zip(_mirrored_names(table.files), table.files, strict=True)
    }


def _mirrored_names(files: Sequence[TableFile]) -> list[str]:
    """A name for each part: that of its input within the folder that all inputs share."""
    folders = [file.named.split("/")[:-1] for file in files]
    shared = len(posixpath.commonprefix(folders))
    names = []
    for number, file in enumerate(files):
        name = "/".join(file.named.split("/")[shared:])
        if not _is_single(name):
            name += ".parquet"
        # A table opened from the copy must find every part, and none outside of it.
        if name in names or any(part.startswith((".", "_")) for part in name.split("/")):
            name = f"part-{number:05d}.parquet"
        names.append(name)
    return names


# Types


def _unified_schema(table: Table, names: Sequence[str]) -> pa.Schema:
    """The types of `names` over all files, from their footers, which must not have changed."""
    if not names or len(set(names)) < len(names):
        raise ValueError("name each column to copy once, and at least one")
    kinds = _types(table, names)
    return pa.schema([(name, _unified(name, kinds[name])) for name in names])


def conflicting(table: Table, names: Sequence[str]) -> tuple[str, ...]:
    """Those of `names` that `copy_columns` refuses: their types conflict between files."""
    kinds = _types(table, names)
    return tuple(name for name in names if widen_types(kinds[name]) is None)


def _types(table: Table, names: Sequence[str]) -> dict[str, list[pa.DataType]]:
    """The distinct types of each column; files without rows count where there are no others."""
    for name in names:
        table.column(name)

    def own_types(file: TableFile) -> dict[str, pa.DataType]:
        footer = read_footer(file.path, table.storage_options)
        if footer.digest != file.footer_hash:
            raise changed(file.path)
        own = dict(zip(footer.schema.names, footer.schema.types, strict=True))
        return {name: own[name] for name in names if name in own}

    types: dict[str, dict[pa.DataType, None]] = {name: {} for name in names}
    without_rows: dict[str, dict[pa.DataType, None]] = {name: {} for name in names}
    for file, own in zip(table.files, in_threads(own_types, table.files), strict=True):
        for name, kind in own.items():
            (types if file.n_rows else without_rows)[name][kind] = None
    return {name: list(types[name] or without_rows[name]) for name in names}


def _unified(name: str, kinds: Sequence[pa.DataType]) -> pa.DataType:
    unified = widen_types(kinds)
    if unified is None:
        raise InputError(
            f"column {name!r} cannot be copied: its types conflict between files "
            f"({', '.join(map(str, kinds))})."
        )
    return unified


def _conform(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """The batch with exactly the columns and types of `schema`."""
    own = dict(zip(batch.schema.names, batch.columns, strict=True))
    absent = pa.nulls(batch.num_rows)
    arrays = [_cast(own.get(field.name, absent), field.type) for field in schema]
    return pa.record_batch(arrays, schema=schema)


def _cast(array: pa.Array, kind: pa.DataType) -> pa.Array:
    """The array as `kind`, which is as wide as its own type or wider."""
    if array.type == kind:
        return array
    if pa.types.is_null(array.type):
        return pa.nulls(len(array), kind)
    decimal_to_double = pa.types.is_decimal(array.type) and kind == pa.float64()
    if isinstance(array, pa.DictionaryArray | pa.ExtensionArray) or decimal_to_double:
        array = simpler(array)
    return array.cast(kind, safe=False)


# Writing


def _write(table: Table, files: Sequence[TableFile], schema: pa.Schema, sink: Any) -> None:
    fewest, most = _ROWS
    rows = min(max(_CELLS // len(schema), fewest), most)
    with pq.ParquetWriter(sink, schema, compression="zstd", write_page_checksum=True) as writer:
        for file in files:
            for batch in _batches(table, file, schema.names, rows):
                writer.write_batch(_conform(batch, schema), row_group_size=rows)


def _batches(
    table: Table, file: TableFile, names: Sequence[str], rows: int
) -> Iterator[pa.RecordBatch]:
    layout = table.layouts[file.layout]
    if any(name in layout.leaves for name in names):
        with decoder(file, layout, table.storage_options, streamed=True) as source:
            yield from source.batches(names, rows)
        return
    for start in range(0, file.n_rows, rows):
        empty = pa.nulls(min(rows, file.n_rows - start))
        yield pa.record_batch([empty], names=[names[0]])


# All or nothing


def _staged(table: Table, destination: str, overwrite: bool) -> AbstractContextManager[_Create]:
    if is_url(destination):
        return _staged_url(destination, table.storage_options, overwrite)
    target = Path(os.path.abspath(destination))
    _check_target(table, target, overwrite)
    return _staged_path(target)


def _check_target(table: Table, target: Path, overwrite: bool) -> None:
    """Refuse to replace anything unasked, and to replace the input at all."""
    real = target.resolve()
    for file in table.files:
        if not is_url(file.named) and Path(file.named).resolve().is_relative_to(real):
            raise InputError(f"{target} holds the input itself; choose another destination.")
    if not target.exists():
        return
    if target.is_dir() == _is_single(target.name):
        what = "a folder" if target.is_dir() else "a file"
        raise InputError(f"{target} is {what}; remove it or choose another destination.")
    if not overwrite and (target.is_file() or any(target.iterdir())):
        raise _exists(target)


def _exists(target: object) -> InputError:
    return InputError(f"{target} exists already; remove it or choose another destination.")


@contextmanager
def _staged_path(target: Path) -> Iterator[_Create]:
    """Files are created beside the target, which takes their place when all are done."""
    temporary = target.with_name(partial_name(target.name))

    @contextmanager
    def create(part: str) -> Iterator[pa.NativeFile]:
        path = temporary / part
        path.parent.mkdir(parents=True, exist_ok=True)
        with pa.OSFile(os.fsencode(path), "wb") as sink:
            yield sink
        sync(path)

    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield create
        put_in_place(temporary, target)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary)
        else:
            temporary.unlink(missing_ok=True)


@contextmanager
def _staged_url(url: str, storage_options: StorageOptions, overwrite: bool) -> Iterator[_Create]:
    """Files are created under temporary names and moved one by one when all are done."""
    fs, target = filesystem(url, storage_options)
    if fs.exists(target) and not overwrite:
        raise _exists(url)
    folder, name = posixpath.split(target.rstrip("/"))
    temporary = f"{folder}/{partial_name(name)}"
    parts: list[str] = []

    @contextmanager
    def create(part: str) -> Iterator[Any]:
        path = _join(temporary, part)
        fs.makedirs(posixpath.dirname(path), exist_ok=True)
        with fs.open(path, "wb") as sink:
            parts.append(part)
            yield sink

    try:
        yield create
        if fs.exists(target):
            fs.rm(target, recursive=True)
        for part in parts:
            final = _join(target, part)
            fs.makedirs(posixpath.dirname(final), exist_ok=True)
            fs.mv(_join(temporary, part), final)
    finally:
        if fs.exists(temporary):
            fs.rm(temporary, recursive=True)


def _join(folder: str, part: str) -> str:
    return f"{folder.rstrip('/')}/{part}" if part else folder
