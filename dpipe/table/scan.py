"""Opening a table: footers in, one unified schema with roles, notes and a fingerprint out.

Covers: `open_table`.
Does not cover: which files a source means (see `dpipe.table.find`), what a column is (see
`dpipe.table.roles`).

Footers are read once and forgotten: of each file only its rows, row groups and a hash stay, and
of the schemas one copy of each that is distinct.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import pyarrow as pa

from dpipe.common.credentials import Secrets
from dpipe.common.words import counted, listed
from dpipe.errors import InputError
from dpipe.model.events import Emit
from dpipe.model.records import Role
from dpipe.options import Options
from dpipe.table.files import (
    STORAGE_ERRORS,
    BadFile,
    Footer,
    StorageOptions,
    read_footer,
)
from dpipe.table.find import find_files
from dpipe.table.foreign import Made, make_parquet, notes_of
from dpipe.table.record import Layout, Table, TableFile
from dpipe.table.roles import Roles, Use, check_budget, check_options
from dpipe.table.schema import count_leaves
from dpipe.table.scratch import Scratch

_THREADS = 8
_PANDAS_INDEX = re.compile(r"__index_level_\d+__")
_SKIP_HINT = "; leave it out or give --on-bad-file skip"

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def open_table(
    sources: Sequence[str | os.PathLike[str]],
    *,
    options: Options,
    storage_options: StorageOptions = None,
    scratch: str | os.PathLike[str] | None = None,
    analysed: Collection[str] | None = None,
    emit: Emit | None = None,
) -> Table:
    """Open files as one table.

    Parameters
    ----------
    sources : sequence of str or path
        Files, folders (searched recursively), globs and fsspec URLs, in any order.
    options : Options
        ``id_columns``, ``exclude``, ``keep``, ``prefer``, ``on_bad_file``, ``coerce_strings`` and
        ``scratch_dir``.
    storage_options : mapping or None
        Passed to fsspec for URLs; the table carries them, and writes them nowhere.
    scratch
        Where a Parquet file is made of each file of another format, if ``scratch_dir`` does not
        say; the system's temporary folder when None. They live as long as the table, which can be
        closed by ``with``.
    analysed
        The columns whose numbers are needed, if not all: text elsewhere may look like anything.
    emit
        Told beforehand of what takes a while.

    Returns
    -------
    Table
        Files sorted by path, columns in order of first appearance.

    Raises
    ------
    InputError
        When nothing is found, a file is bad, there are no rows, no numeric column, duplicate
        names in a file, or an option names a column that does not exist.
    ResourceError
        When there is no room for what has to be made.

    Examples
    --------
    >>> import tempfile, pathlib, pyarrow.parquet as pq
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> pq.write_table(pa.table({"id": ["a"], "x": [1]}), folder / "1.parquet")
    >>> pq.write_table(pa.table({"id": ["b"], "x": [0.5]}), folder / "2.parquet")
    >>> table = open_table([folder], options=Options(id_columns=("id",)))
    >>> table.n_rows, table.features, table.column("x").dtype
    (2, ('x',), 'double')
    """
    room = Scratch(options.scratch_dir or scratch)
    try:
        return _open(sources, options, Secrets(storage_options), room, analysed, emit)
    except BaseException:
        room.remove()
        raise


def _open(
    sources: Sequence[str | os.PathLike[str]],
    options: Options,
    storage_options: Secrets,
    room: Scratch,
    analysed: Collection[str] | None,
    emit: Emit | None,
) -> Table:
    inputs = find_files(sources, storage_options)
    left_out = {*options.exclude, *options.id_columns}

    def is_analysed(name: str) -> bool:
        return name not in left_out and (analysed is None or name in analysed)

    made = make_parquet(inputs.paths, room, is_analysed, storage_options, emit)
    scans, skipped = _scan_all(inputs.paths, made, options.on_bad_file, storage_options)
    if not any(scan.file.n_rows for scan in scans):
        paths = [scan.file.named for scan in scans]
        raise InputError(
            f"there are no rows in {counted(len(paths), 'file')} ({listed(paths, 2)})."
        )
    uses = _column_uses(scans)
    check_options(options, uses)
    numbers = {layout: i for i, layout in enumerate(dict.fromkeys(s.schema.layout for s in scans))}
    files = tuple(replace(scan.file, layout=numbers[scan.schema.layout]) for scan in scans)
    layouts = tuple(numbers)
    roles = Roles(options, uses, files, layouts, storage_options, hints=_second_headers(made))
    table = Table(
        files=files,
        columns=roles.columns,
        layouts=layouts,
        notes=(
            *inputs.notes,
            *notes_of(each for each in made.values() if isinstance(each, Made)),
            *_file_notes(files),
            *roles.notes(),
        ),
        skipped=tuple(skipped),
        coerced=roles.coerced,
        storage_options=storage_options,
        scratch=room,
    )
    _check_features(table, made, asked=options.coerce_strings)
    check_budget(options, table.features)
    return table


def in_threads(function: Callable[[_Item], _Result], items: Iterable[_Item]) -> Iterator[_Result]:
    """Results in order; a few files at a time, which hides the latency of remote storage."""
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="dpipe-footer") as pool:
        yield from pool.map(function, items)


# Footers


@dataclass(frozen=True)
class _Schema:
    """One distinct schema among the files."""

    layout: Layout
    types: tuple[pa.DataType, ...]
    index: frozenset[str]


@dataclass(frozen=True)
class _Scan:
    """What is kept of one footer; layouts are numbered when all files are known."""

    file: TableFile
    schema: _Schema


def _scan_all(
    paths: Sequence[str],
    made: Mapping[str, Made | BadFile],
    on_bad_file: str,
    storage_options: StorageOptions,
) -> tuple[list[_Scan], list[tuple[str, str]]]:
    scans: list[_Scan] = []
    skipped: list[tuple[str, str]] = []
    schemas: dict[bytes, _Schema] = {}
    scan_one = partial(_scan_or_error, made=made, storage_options=storage_options, schemas=schemas)
    for result in in_threads(scan_one, paths):
        if isinstance(result, _Scan):
            scans.append(result)
        elif on_bad_file == "skip":
            skipped.append((result.path, result.reason))
        else:
            raise BadFile(result.path, result.reason, _SKIP_HINT if len(paths) > 1 else "")
    if not scans:
        path, reason = skipped[0]
        raise InputError(f"none of {counted(len(skipped), 'file')} can be used: {path} {reason}.")
    return scans, skipped


def _scan_or_error(
    path: str,
    made: Mapping[str, Made | BadFile],
    storage_options: StorageOptions,
    schemas: dict[bytes, _Schema],
) -> _Scan | BadFile:
    """What to keep of one file; `schemas` holds those met so far by their serialised form."""
    stands_for = made.get(path)
    if isinstance(stands_for, BadFile):
        return stands_for
    origin = None
    if stands_for is not None:
        path, origin = stands_for.path, stands_for.origin
    try:
        footer = read_footer(path, storage_options)
        if sum(footer.row_groups) != footer.n_rows or min(footer.row_groups, default=0) < 0:
            raise BadFile(path, "is damaged: its row counts contradict each other")
        key = hashlib.sha256(footer.schema.serialize()).digest()
        schema = schemas.get(key) or _schema_of(path, footer)
        schema = schemas.setdefault(key, schema)
    except BadFile as error:
        return error
    except (*STORAGE_ERRORS, UnicodeDecodeError):
        return BadFile(path, "is damaged: its schema cannot be read")
    file = TableFile(
        path=path,
        n_rows=footer.n_rows,
        size=footer.size,
        mtime=footer.mtime,
        row_groups=footer.row_groups,
        footer_hash=footer.digest,
        origin=origin,
    )
    return _Scan(file, schema)


def _schema_of(path: str, footer: Footer) -> _Schema:
    schema = footer.schema
    repeated = [name for name, count in Counter(schema.names).items() if count > 1]
    if repeated:
        raise BadFile(path, f"has more than one column called {listed(repeated, 2)}")
    widths = tuple(count_leaves(kind) for kind in schema.types)
    if sum(widths) != footer.n_leaves:
        raise BadFile(path, "has a schema that cannot be understood")
    flat = all(width == 1 for width in widths)
    layout = Layout(tuple(schema.names), () if flat else widths)
    return _Schema(layout, tuple(schema.types), _pandas_index(schema))


def _pandas_index(schema: pa.Schema) -> frozenset[str]:
    """Columns that hold the index of a pandas frame."""
    index = {name for name in schema.names if _PANDAS_INDEX.fullmatch(name)}
    try:
        described = json.loads((schema.metadata or {}).get(b"pandas", b"{}"))
        named = described.get("index_columns", [])
    except (ValueError, AttributeError):
        named = []
    own = set(schema.names)
    index.update(name for name in named if isinstance(name, str) and name in own)
    return frozenset(index)


# The table as a whole


def _column_uses(scans: Sequence[_Scan]) -> dict[str, Use]:
    """Columns in order of first appearance.

    A file without rows names columns, but its types say nothing about values: they count only
    where no other file has the column.
    """
    groups: dict[tuple[int, bool], list[_Scan]] = {}
    for scan in scans:
        groups.setdefault((id(scan.schema), scan.file.n_rows > 0), []).append(scan)
    uses: dict[str, Use] = {}
    without_rows: dict[str, Use] = {}
    for group in groups.values():
        schema, paths = group[0].schema, [scan.file.named for scan in group]
        for name, kind in zip(schema.layout.names, schema.types, strict=True):
            use = uses.setdefault(name, Use())
            use.is_index |= name in schema.index
            target = use if group[0].file.n_rows else without_rows.setdefault(name, Use())
            target.files_by_type.setdefault(kind, []).append(paths)
    for name, use in without_rows.items():
        if not uses[name].files_by_type:
            uses[name].files_by_type.update(use.files_by_type)
    return uses


def _file_notes(files: Sequence[TableFile]) -> Iterator[str]:
    empty = [file.named for file in files if not file.n_rows]
    if empty:
        yield f"{counted(len(empty), 'file')} without rows: {listed(empty, 2)}."


def _second_headers(made: Mapping[str, Made | BadFile]) -> list[str]:
    """What to do about rows of units or types, a file each."""
    return [
        f"in {path} {each.second_header}"
        for path, each in made.items()
        if isinstance(each, Made) and each.second_header
    ]


def _check_features(table: Table, made: Mapping[str, Made | BadFile], *, asked: bool) -> None:
    if table.features:
        return
    roles = Counter(column.role for column in table.columns)
    said = {
        Role.NOT_NUMERIC: f"{roles[Role.NOT_NUMERIC]:,} not numeric",
        Role.ID: counted(roles[Role.ID], "id"),
        Role.EXCLUDED: f"{roles[Role.EXCLUDED]:,} excluded",
        Role.TARGET: counted(roles[Role.TARGET], "target"),
    }
    parts = [words for role, words in said.items() if roles[role]]
    hints = _second_headers(made)
    if roles[Role.NOT_NUMERIC] and not asked:
        hints.append("--coerce-strings reads text that holds numbers")
    if any(roles[role] for role in (Role.ID, Role.EXCLUDED, Role.TARGET)):
        hints.append("name fewer in --target, --exclude and --id-columns")
    hints.append("give a table of numbers")
    raise InputError(
        f"no numeric column is left to analyse: of {counted(len(table.columns), 'column')} in "
        f"{counted(len(table.files), 'file')}, {', '.join(parts) or 'none'}; {hints[0]}."
    )
