"""Opening a table: footers in, one unified schema with roles, notes and a fingerprint out.

Covers: `open_table`, `check_unchanged`, the roles of columns, drift notes, text that holds numbers.
Does not cover: which files a source means (see `dpipe.table.files`).

Footers are read once and forgotten: of each file only name, rows, row groups and a hash stay,
and of its schema one copy per distinct schema.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa

from dpipe.config import Options
from dpipe.errors import InputError
from dpipe.model import Column, Role
from dpipe.table.files import BadFile, StorageOptions, changed, find_files, read_footer
from dpipe.table.read import iterate_parts, text_as_float64
from dpipe.table.record import Table, TableFile, listed, nearest
from dpipe.table.schema import Kind, kind_of, widen, widen_types

_PARSED_SHARE = 0.95
_SAMPLE_CELLS = 1000
_THREADS = 8
_PANDAS_INDEX = re.compile(r"__index_level_\d+__")


def open_table(
    sources: Sequence[str | os.PathLike[str]],
    *,
    options: Options,
    storage_options: StorageOptions = None,
) -> Table:
    """Open Parquet files as one table.

    Parameters
    ----------
    sources : sequence of str or path
        Files, folders (searched recursively), globs and fsspec URLs, in any order.
    options : Options
        ``id_columns``, ``exclude``, ``keep``, ``prefer``, ``on_bad_file`` and ``coerce_strings``.
    storage_options : mapping or None
        Passed to fsspec for URLs; never stored.

    Returns
    -------
    Table
        Files sorted by path, columns in order of first appearance.

    Raises
    ------
    InputError
        When nothing is found, a file is bad, there are no rows, no numeric column, duplicate
        names in a file, or an option names a column that does not exist.

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
    found = find_files(sources, storage_options)
    scans, skipped = _scan_all(found.paths, options.on_bad_file, storage_options)
    if not any(scan.n_rows for scan in scans):
        raise InputError(
            f"the input has no rows: {_plural(len(scans), 'file')} ({listed(_paths(scans), 2)})."
        )
    uses = _column_uses(scans)
    _check_options(options, uses)
    files = tuple(scan.file(uses) for scan in scans)
    roles = _Roles(options, files, uses, storage_options)
    columns = tuple(roles.column(name) for name in uses)
    table = Table(
        files=files,
        columns=columns,
        notes=(*found.notes, *_file_notes(scans, skipped), *roles.notes()),
        skipped=tuple(skipped),
        coerced=tuple(roles.coerced),
    )
    _check_features(table)
    return table


def check_unchanged(table: Table, storage_options: StorageOptions = None) -> None:
    """Compare size, time and footer of every file with what they were when the table was opened.

    Raises
    ------
    InputError
        Naming the first file that changed or can no longer be read.
    """

    def facts(file: TableFile) -> tuple[int, int, str]:
        footer = read_footer(file.path, storage_options)
        return footer.size, footer.mtime, footer.digest

    for file, now in zip(table.files, _in_threads(facts, table.files), strict=True):
        if now != (file.size, file.mtime, file.footer_hash):
            raise changed(file.path)


# Footers


@dataclass(frozen=True)
class _Schema:
    """One distinct schema among the files."""

    names: tuple[str, ...]
    types: tuple[pa.DataType, ...]
    index: frozenset[str]


@dataclass(frozen=True)
class _Scan:
    """What is kept of one footer."""

    path: str
    size: int
    mtime: int
    digest: str
    row_groups: tuple[int, ...]
    schema: _Schema

    @property
    def n_rows(self) -> int:
        return sum(self.row_groups)

    def file(self, uses: Mapping[str, _Use]) -> TableFile:
        own = set(self.schema.names)
        return TableFile(
            path=self.path,
            n_rows=self.n_rows,
            size=self.size,
            mtime=self.mtime,
            row_groups=self.row_groups,
            footer_hash=self.digest,
            lacks=tuple(name for name in uses if name not in own),
        )


def _scan_all(
    paths: Sequence[str], on_bad_file: str, storage_options: StorageOptions
) -> tuple[list[_Scan], list[tuple[str, str]]]:
    scans: list[_Scan] = []
    skipped: list[tuple[str, str]] = []
    schemas: dict[_Schema, _Schema] = {}
    scan_one = partial(_scan_or_error, storage_options=storage_options, schemas=schemas)
    for result in _in_threads(scan_one, paths):
        if isinstance(result, _Scan):
            scans.append(result)
        elif on_bad_file == "skip":
            skipped.append((result.path, result.reason))
        else:
            raise result
    if not scans:
        path, reason = skipped[0]
        raise InputError(f"no file can be used; the first, {path}, {reason}.")
    return scans, skipped


def _in_threads(function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="dpipe-footer") as pool:
        yield from pool.map(function, items)


def _scan_or_error(
    path: str, storage_options: StorageOptions, schemas: dict[_Schema, _Schema]
) -> _Scan | BadFile:
    try:
        footer = read_footer(path, storage_options)
        metadata = footer.metadata
        groups = tuple(metadata.row_group(i).num_rows for i in range(metadata.num_row_groups))
        if sum(groups) != metadata.num_rows or min(groups, default=0) < 0:
            raise BadFile(path, "is damaged: its row counts contradict each other")
        schema = _schema_of(path, metadata.schema.to_arrow_schema())
    except BadFile as error:
        # The traceback would keep the footer alive until every file is scanned.
        return error.with_traceback(None)
    return _Scan(
        path, footer.size, footer.mtime, footer.digest, groups, schemas.setdefault(schema, schema)
    )


def _schema_of(path: str, schema: pa.Schema) -> _Schema:
    repeated = [name for name, count in Counter(schema.names).items() if count > 1]
    if repeated:
        raise BadFile(path, f"has more than one column called {listed(repeated, 2)}")
    return _Schema(tuple(schema.names), tuple(schema.types), _pandas_index(schema))


def _pandas_index(schema: pa.Schema) -> frozenset[str]:
    """Columns that hold the index of a pandas frame."""
    index = {name for name in schema.names if _PANDAS_INDEX.fullmatch(name)}
    try:
        described = json.loads((schema.metadata or {}).get(b"pandas", b"{}"))
        named = described.get("index_columns", [])
    except (ValueError, AttributeError):
        named = []
    index.update(name for name in named if isinstance(name, str) and name in schema.names)
    return frozenset(index)


# Columns over all files


@dataclass
class _Use:
    """Where a column occurs: its types with the files that have them."""

    files_by_type: dict[pa.DataType, list[str]]
    index: bool = False
    n_files: int = 0

    def dtype(self) -> str:
        types = list(self.files_by_type)
        if self.kind() is None:
            return " | ".join(dict.fromkeys(str(each) for each in types))
        return str(widen_types(types) if len(types) > 1 else types[0])

    def kind(self) -> Kind | None:
        return widen(kind_of(each) for each in self.files_by_type)

    def kinds(self) -> set[Kind]:
        return {kind_of(each) for each in self.files_by_type}


def _column_uses(scans: Sequence[_Scan]) -> dict[str, _Use]:
    """Columns in order of first appearance.

    A file without rows names columns, but its types say nothing about values: they count only
    where no other file has the column.
    """
    uses: dict[str, _Use] = {}
    empty: dict[str, _Use] = {}
    for scan in scans:
        for name, kind in zip(scan.schema.names, scan.schema.types, strict=True):
            use = uses.setdefault(name, _Use({}))
            use.n_files += 1
            use.index |= name in scan.schema.index
            target = use if scan.n_rows else empty.setdefault(name, _Use({}))
            target.files_by_type.setdefault(kind, []).append(scan.path)
    for name, use in empty.items():
        if not uses[name].files_by_type:
            uses[name].files_by_type.update(use.files_by_type)
    return uses


def _check_options(options: Options, uses: Mapping[str, _Use]) -> None:
    for option in ("id_columns", "exclude", "keep"):
        for name in getattr(options, option):
            if name not in uses:
                raise InputError(
                    f"--{option.replace('_', '-')} names {name!r}, but the table has no such "
                    f"column{nearest(name, uses)}."
                )
    both = [name for name in options.id_columns if name in options.exclude]
    if both:
        raise InputError(f"column {both[0]!r} is named in both --id-columns and --exclude.")


def _check_features(table: Table) -> None:
    if table.features:
        return
    roles = Counter(column.role for column in table.columns)
    parts = [
        f"{count} {label}"
        for role, label in (
            (Role.NOT_NUMERIC, "not numeric"),
            (Role.ID, "ids"),
            (Role.EXCLUDED, "excluded"),
        )
        if (count := roles[role])
    ]
    hint = "; --coerce-strings reads text that holds numbers" if _text_columns(table) else ""
    raise InputError(
        f"no numeric column is left to analyse in {_plural(len(table.files), 'file')}: "
        f"of {_plural(len(table.columns), 'column')}, {', '.join(parts) or '0'}{hint}."
    )


def _text_columns(table: Table) -> bool:
    return any(
        column.role is Role.NOT_NUMERIC and "string" in column.dtype for column in table.columns
    )


class _Roles:
    """Gives each column its role and collects what to tell about it."""

    def __init__(
        self,
        options: Options,
        files: Sequence[TableFile],
        uses: Mapping[str, _Use],
        storage_options: StorageOptions,
    ) -> None:
        self._options = options
        self._files = files
        self._uses = uses
        self._storage_options = storage_options
        self.coerced: dict[str, tuple[int, int]] = {}
        self._suggested: list[str] = []
        self._roles = {name: self._plain_role(name, use) for name, use in uses.items()}
        self._consider_text()

    def column(self, name: str) -> Column:
        return Column(name, self._uses[name].dtype(), self._roles[name])

    def _plain_role(self, name: str, use: _Use) -> Role:
        if name in self._options.exclude:
            return Role.EXCLUDED
        if name in self._options.id_columns or (use.index and name not in self._options.keep):
            return Role.ID
        kind = use.kind()
        return Role.FEATURE if kind is not None and kind.numeric else Role.NOT_NUMERIC

    # Text that holds numbers

    def _consider_text(self) -> None:
        candidates = [
            name
            for name, use in self._uses.items()
            if self._roles[name] is Role.NOT_NUMERIC
            and Kind.TEXT in use.kinds()
            and Kind.OTHER not in use.kinds()
        ]
        if not candidates:
            return
        if self._options.coerce_strings:
            self.coerced = _parsable(self._files, candidates, self._storage_options)
            self._roles.update(dict.fromkeys(self.coerced, Role.FEATURE))
        else:
            self._suggested = _parsable_in_sample(
                self._files, candidates, self._uses, self._storage_options
            )

    # Notes

    def notes(self) -> Iterator[str]:
        yield from self._index_notes()
        yield from self._conflict_notes()
        yield from self._widening_notes()
        yield from self._presence_notes()
        yield from self._text_notes()
        yield from self._option_notes()

    def _index_notes(self) -> Iterator[str]:
        index = [
            name
            for name, use in self._uses.items()
            if use.index and self._roles[name] is Role.ID and name not in self._options.id_columns
        ]
        if index:
            yield f"the index of a pandas frame is passed through as an id: {listed(index)}."

    def _conflict_notes(self) -> Iterator[str]:
        """Columns whose types do not meet, those with the same story in one sentence."""
        stories: dict[str, list[str]] = {}
        for name, use in self._uses.items():
            if use.kind() is None:
                stories.setdefault(_story(use), []).append(name)
        for story, names in stories.items():
            coerced = [name for name in names if name in self.coerced]
            left = [name for name in names if self._roles[name] is Role.NOT_NUMERIC]
            if left:
                yield f"{_columns(left)} {story}: not numeric, left out of the analysis."
            if coerced:
                yield f"{_columns(coerced)} {story}: the text is read as numbers."

    def _widening_notes(self) -> Iterator[str]:
        stories: dict[str, list[str]] = {}
        for name, use in self._uses.items():
            solid = [kind for kind in use.files_by_type if kind_of(kind) is not Kind.NULL]
            if use.kind() is not None and len(solid) > 1 and self._roles[name] is Role.FEATURE:
                stories.setdefault(_story(use), []).append(name)
        for story, names in stories.items():
            yield f"{_columns(names)} {story}: read as double."

    def _presence_notes(self) -> Iterator[str]:
        stories: dict[tuple[str, ...], list[str]] = {}
        absent: dict[str, list[str]] = {}
        for file in self._files:
            for name in file.lacks:
                absent.setdefault(name, []).append(file.path)
        for name, paths in absent.items():
            stories.setdefault(tuple(paths), []).append(name)
        for where, names in stories.items():
            verb = "does" if len(names) == 1 else "do"
            yield (
                f"{_columns(names)} {verb} not occur in {_plural(len(where), 'file')} "
                f"({listed(where, 2)}): missing there."
            )

    def _text_notes(self) -> Iterator[str]:
        if self.coerced:
            lost = sum(bad for bad, _ in self.coerced.values())
            yield (
                f"{_columns(list(self.coerced))}: text read as numbers; "
                f"{_plural(lost, 'cell')} that hold no number count as missing."
            )
        if self._suggested:
            yield (
                f"{_columns(self._suggested)}: text that looks like numbers; "
                f"--coerce-strings reads it."
            )

    def _option_notes(self) -> Iterator[str]:
        unknown = [name for name in self._options.prefer if name not in self._uses]
        if unknown:
            yield f"--prefer names columns that the table does not have: {listed(unknown)}."
        idle = [name for name in self._options.keep if self._roles[name] is not Role.FEATURE]
        if idle:
            yield f"--keep has no effect on columns that are not numeric: {listed(idle)}."


def _parsable(
    files: Sequence[TableFile], names: Sequence[str], storage_options: StorageOptions
) -> dict[str, tuple[int, int]]:
    """Text columns whose cells are numbers (nearly) all, with (cells that are none, cells).

    Blank cells count as missing, not as evidence. A column is given up as soon as the rest of
    the table can no longer save it.
    """
    total = sum(file.n_rows for file in files)
    bad = dict.fromkeys(names, 0)
    absent = dict.fromkeys(names, 0)
    for file in files:
        for name in bad:
            absent[name] += file.n_rows if name in file.lacks else 0
        for part in iterate_parts(file, list(bad), None, storage_options):
            for name, column in part.columns.items():
                tried, failed = _try_numbers(column)
                bad[name] += failed
                absent[name] += len(column) - tried
        hopeless = [
            name for name in bad if bad[name] > (1 - _PARSED_SHARE) * (total - absent[name])
        ]
        for name in hopeless:
            del bad[name]
    return {name: (bad[name], total - absent[name]) for name in bad}


def _try_numbers(column: pa.ChunkedArray) -> tuple[int, int]:
    """Cells that hold something, and those of them that hold no number."""
    tried = failed = 0
    for chunk in column.chunks:
        if isinstance(chunk, pa.DictionaryArray):
            chunk = chunk.dictionary_decode()
        if kind_of(chunk.type) is not Kind.TEXT:
            tried += len(chunk) - chunk.null_count
            continue
        parsed = text_as_float64(chunk)
        blank = _count_blank(chunk) if parsed.null_count > chunk.null_count else 0
        tried += len(chunk) - chunk.null_count - blank
        failed += parsed.null_count - chunk.null_count - blank
    return tried, failed


def _count_blank(chunk: pa.Array) -> int:
    import pyarrow.compute as pc

    blank = pc.equal(pc.utf8_trim_whitespace(chunk), "")
    return pc.sum(blank).as_py() or 0


def _parsable_in_sample(
    files: Sequence[TableFile],
    names: Sequence[str],
    uses: Mapping[str, _Use],
    storage_options: StorageOptions,
) -> list[str]:
    """Text columns whose first cells are all numbers."""
    return []


# Words


def _story(use: _Use) -> str:
    """Which types a column has where: ``is double in 2 files ('a', 'b') and string in 1 ...``."""
    parts = [
        f"{kind} in {_plural(len(paths), 'file')} ({listed(paths, 2)})"
        for kind, paths in use.files_by_type.items()
    ]
    return f"is {', '.join(parts[:-1])} and {parts[-1]}"


def _columns(names: Sequence[str]) -> str:
    return f"column {names[0]!r}" if len(names) == 1 else f"{len(names)} columns ({listed(names)})"


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _paths(scans: Sequence[_Scan]) -> list[str]:
    return [scan.path for scan in scans]


def _file_notes(scans: Sequence[_Scan], skipped: Sequence[tuple[str, str]]) -> Iterator[str]:
    empty = [scan.path for scan in scans if not scan.n_rows]
    if empty:
        yield f"{_plural(len(empty), 'file')} without rows: {listed(empty, 2)}."
    for path, reason in skipped:
        yield f"left out: {path} {reason}."
