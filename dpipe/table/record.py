"""The record of an open table: its files, columns, notes and fingerprint, as plain JSON.

Covers: `Table`, `TableFile` and `Origin`, and their JSON, which workers read. Credentials are
carried by the table and never part of its JSON.
Does not cover: building it (see `dpipe.table.scan`).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from typing import Self

from dpipe.common.credentials import Secrets
from dpipe.common.plain import restored
from dpipe.common.words import nearest
from dpipe.errors import InputError
from dpipe.model.events import Emit, Note
from dpipe.model.records import Column, Role
from dpipe.table.scratch import Scratch

_FORMAT = "dpipe-table"
_VERSION = 1


@dataclass(frozen=True)
class Layout:
    """Where columns lie in a file: names in file order, and how many leaf columns each has.

    Files written by one program share one layout. ``widths`` is empty where every column is flat.
    """

    names: tuple[str, ...]
    widths: tuple[int, ...] = ()

    @cached_property
    def leaves(self) -> dict[str, range]:
        """Positions of the leaf columns of each column, which is how a reader selects them.

        Names would not do: pyarrow takes them for prefixes of nested names, so that asking for
        ``x`` would read ``x.1`` too.
        """
        stops = list(accumulate(self.widths or [1] * len(self.names), initial=0))
        spans = map(range, stops, stops[1:])
        return dict(zip(self.names, spans, strict=False))


@dataclass(frozen=True)
class Origin:
    """The file of the user that a Parquet file was made of.

    ``path`` is absolute (or a URL), ``size`` in bytes, ``mtime`` in nanoseconds (0 where the file
    system tells none), ``digest`` the sha256 of its bytes.
    """

    path: str
    size: int
    mtime: int
    digest: str


@dataclass(frozen=True)
class TableFile:
    """One Parquet file of a table.

    ``path`` is absolute (or a URL), ``size`` in bytes, ``mtime`` in nanoseconds (0 where the file
    system tells none), ``row_groups`` the rows of each row group, ``footer_hash`` the sha256 of
    the bytes of the footer, ``layout`` the number of its layout in the table's ``layouts``,
    ``origin`` the file that it was made of, where the user's is of another format.
    """

    path: str
    n_rows: int
    size: int
    mtime: int
    row_groups: tuple[int, ...]
    footer_hash: str
    layout: int = 0
    origin: Origin | None = None

    @property
    def named(self) -> str:
        """The path of the user's file."""
        return self.path if self.origin is None else self.origin.path


@dataclass(frozen=True)
class Table:
    """An open table: files in order of name, columns in order of first appearance.

    ``notes`` tell the user about drift, widening and whatever was left out, one sentence each;
    ``skipped`` are files left out because they were bad, with the reason; ``coerced`` are the text
    columns that are read as numbers. ``storage_options`` open its files, and ``scratch`` holds
    those that were made for it as long as it lives; they are no part of the JSON.
    """

    files: tuple[TableFile, ...]
    columns: tuple[Column, ...]
    layouts: tuple[Layout, ...] = ()
    notes: tuple[str, ...] = ()
    skipped: tuple[tuple[str, str], ...] = ()
    coerced: tuple[str, ...] = ()
    storage_options: Secrets = field(default_factory=Secrets, repr=False, compare=False)
    scratch: Scratch | None = field(default=None, repr=False, compare=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Remove the files that were made for the table."""
        if self.scratch is not None:
            self.scratch.remove()

    @cached_property
    def n_rows(self) -> int:
        """Rows of all files together."""
        return sum(file.n_rows for file in self.files)

    @cached_property
    def row_group(self) -> int:
        """Rows of the largest row group, which is decoded at once."""
        return max((size for file in self.files for size in file.row_groups), default=0)

    @cached_property
    def features(self) -> tuple[str, ...]:
        """Names of the columns that are analysed, in input order."""
        return tuple(c.name for c in self.columns if c.role is Role.FEATURE)

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """Global row number of the first row of each file."""
        starts, row = [], 0
        for file in self.files:
            starts.append(row)
            row += file.n_rows
        return tuple(starts)

    @cached_property
    def fingerprint(self) -> str:
        """Sha256 over names, sizes, times, row counts and footer hashes of the files.

        Of a file in another format than Parquet it is the hash of the whole file, which does not
        depend on how it was made into Parquet. Only the last part of a path takes part, so that a
        table keeps its fingerprint when its folder is reached under another name.
        """
        digest = hashlib.sha256()
        for file in self.files:
            name = file.named.rsplit("/", 1)[-1]
            facts = [name, file.size, file.mtime, file.n_rows, file.footer_hash]
            if file.origin is not None:
                own = file.origin
                facts = [name, own.size, own.mtime, file.n_rows, own.digest]
            digest.update(json.dumps(facts).encode())
        return digest.hexdigest()

    def lacks(self, file: TableFile) -> tuple[str, ...]:
        """The columns of the table that one of its files does not have."""
        own = self.layouts[file.layout].leaves
        return tuple(column.name for column in self.columns if column.name not in own)

    @cached_property
    def _by_name(self) -> dict[str, Column]:
        return {column.name: column for column in self.columns}

    def column(self, name: str) -> Column:
        """The column called `name`.

        Raises
        ------
        InputError
            When there is none, with the nearest name.
        """
        try:
            return self._by_name[name]
        except KeyError:
            hint = nearest(name, self._by_name)
            raise InputError(f"the table has no column {name!r}{hint}.") from None

    def to_json(self) -> str:
        """The record as JSON text, for tasks to read."""
        record = dataclasses.asdict(dataclasses.replace(self, scratch=None))
        del record["storage_options"], record["scratch"]
        return json.dumps({"format": _FORMAT, "version": _VERSION, **record})

    @classmethod
    def from_json(cls, text: str) -> Table:
        """Read what `to_json` wrote.

        Raises
        ------
        InputError
            When the text is something else.
        """
        try:
            record = json.loads(text)
            if (record.pop("format"), record.pop("version")) != (_FORMAT, _VERSION):
                raise ValueError
            return restored(cls, record)
        except (ValueError, KeyError, TypeError, AttributeError):
            raise InputError("this is no table record of this version of dpipe.") from None


def tell_notes(table: Table, emit: Emit) -> None:
    """Tell what a user should know about an open table."""
    for note in table.notes:
        emit(Note(note, "notice"))
    for path, reason in table.skipped:
        emit(Note(f"left out {path}: {reason}", "warning"))
