"""A file of text parted into cells: its header, and its rows in batches.

Covers: the delimiter, the names of columns, what is wrong with the file and where.
Does not cover: what the cells hold (see `dpipe.table.cells`), finding the file
(`dpipe.table.find`).

Arrow parts the rows. The header is read here: Arrow takes equal names, and a first row of numbers,
as they come.
"""

from __future__ import annotations

import csv
import io
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from dpipe.common.words import counted, listed, quoted
from dpipe.table.convert import parse_number
from dpipe.table.files import STORAGE_ERRORS, BadFile, reason_of
from dpipe.table.formats import Format

INDEX_NAME = "__index_level_0__"
"""What pandas calls an index without a name in Parquet; in CSV its name is empty."""

_BLOCKS = 4 * 1024 * 1024, 16 * 1024 * 1024
"""Fewest and most bytes parsed at once, which is as long as a row may be.

Arrow reads up to 32 blocks ahead of who takes their rows.
"""
_BYTES_OF_COLUMN = 4096
"""Bytes of each column in a block: a few hundred cells, so that no column is handled for less."""
_HEAD = 64 * 1024
_BOM = b"\xef\xbb\xbf"
_DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs"}
_OTHER_SIGNS = {"|": "|", ",": "commas", ";": "semicolons", None: "spaces"}
"""What parts cells where no delimiter does; None as `str.split` has it."""
_MAGIC = {
    b"PAR1": "a Parquet file",
    b"ARROW1": "a Feather file",
    b"PK\x03\x04": "a spreadsheet or an archive",
    b"\x1f\x8b": "compressed by gzip",
    b"BZh": "compressed by bzip2",
    b"\x28\xb5\x2f\xfd": "compressed by zstd",
}


@dataclass(frozen=True)
class Header:
    """The first row of a file.

    Attributes
    ----------
    names
        The columns.
    cells
        What stands there, before names were made of it.
    delimiter
        What parts the cells.
    length
        Bytes to the end of the row.
    """

    names: tuple[str, ...]
    cells: tuple[str, ...]
    delimiter: str
    length: int

    @property
    def parted_by(self) -> str:
        """What parts the cells, in a word."""
        return _DELIMITERS[self.delimiter]

    @property
    def like_numbers(self) -> bool:
        """Whether most names are numbers that nobody would number columns by."""
        return 2 * _count_numbers(self.names) > len(self.names) and not _is_numbering(self.names)


class Delimited:
    """One local file of text.

    Parameters
    ----------
    shown
        What the user calls the file.
    path
        Where it lies.
    form, codec
        CSV or TSV; what it is compressed by.

    Raises
    ------
    BadFile
        When there is no header, or none that can be used.
    """

    def __init__(self, shown: str, path: str, form: Format, codec: str | None) -> None:
        self.shown = shown
        self._path = path
        self._codec = codec
        self.header = self._read_header("\t" if form is Format.TSV else None)

    # The header

    def _read_header(self, delimiter: str | None) -> Header:
        data = self._first_row()
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError:
            raise self._bad("has a header that is not UTF-8; save the file as UTF-8") from None
        row = text.strip("\r\n")
        delimiter = delimiter or _delimiter_of(row)
        cells = next(csv.reader(io.StringIO(row, newline=""), delimiter=delimiter))
        names = self._names([cell.strip() for cell in cells], row)
        return Header(names, tuple(cells), delimiter, len(data))

    def _first_row(self) -> bytes:
        """The bytes as far as the first row with something in it ends."""
        data = b""
        end = None
        with self._opened() as source:
            while end is None and len(data) < _BLOCKS[1]:
                more: bytes = source.read(max(_HEAD, len(data)))
                data += more
                end = _end_of_row(data, is_all=not more)
                if not more:
                    break
        for magic, what in _MAGIC.items():
            if data.startswith(magic):
                raise self._bad(f"is {what}, which its name does not say; rename it")
        if data[:2] in (b"\xff\xfe", b"\xfe\xff") or b"\0" in data[:_HEAD]:
            raise self._bad("is not text in UTF-8; save it as CSV in UTF-8")
        if not data.lstrip(_BOM).strip():
            raise self._bad("is empty (there is no text)" if data else "is empty (0 bytes)")
        if end is None:
            raise self._bad("has a quote in its header that is not closed; close it")
        return data[:end]

    def _names(self, cells: Sequence[str], line: str) -> tuple[str, ...]:
        names = list(cells)
        if not names[0] and len(names) > 1 and INDEX_NAME not in names:
            names[0] = INDEX_NAME
        if "" in names:
            raise self._bad(
                f"has no name for column {names.index('') + 1} of {len(names)} in its first line"
                f"{_told(line)}; give it one, remove the delimiter at the end of the rows, or "
                "remove the line if it is no header"
            )
        repeated = [name for name, count in Counter(names).items() if count > 1]
        if repeated:
            raise self._bad(f"has more than one column called {listed(repeated, 2)}; rename one")
        own = names[1:] if names[0] == INDEX_NAME else names
        if _count_numbers(own) == len(own) and not _is_numbering(own):
            raise self._bad(
                f"has no header: its first row holds numbers ({listed(own, 2)}); write the names "
                "of the columns above it"
            )
        return tuple(names)

    # Rows

    def batches(self) -> Iterator[pa.RecordBatch]:
        """The rows as text, column by column under the number of each; empty cells are null.

        Raises
        ------
        BadFile
            When a row has too many or too few cells, or the text cannot be read.
        """
        last = None
        rows = 1
        try:
            for batch in self._parse([], threads=True):
                self._refuse_second_header(batch, rows)
                if last is None and len(batch):
                    self._refuse_other_sign(batch.column(0)[0].as_py() or "")
                rows += len(batch)
                last = batch if len(batch) else last
                yield batch
        except STORAGE_ERRORS as error:
            raise self._explained(error) from error
        if last is not None:
            self._refuse_open_quote(last)

    def _parse(self, bad: list[Any], *, threads: bool) -> Iterator[pa.RecordBatch]:
        """Batches of rows; `bad` gets the first row of another length."""

        def refuse(row: Any) -> str:
            bad.append(row)
            return "error"

        names = [str(number) for number in range(len(self.header.names))]
        with self._opened() as source:
            source.read(self.header.length)
            try:
                reader = pa.csv.open_csv(
                    source,
                    pa.csv.ReadOptions(
                        column_names=names, block_size=self._block, use_threads=threads
                    ),
                    pa.csv.ParseOptions(
                        delimiter=self.header.delimiter,
                        newlines_in_values=True,
                        invalid_row_handler=refuse,
                    ),
                    pa.csv.ConvertOptions(
                        column_types=dict.fromkeys(names, pa.string()),
                        null_values=[""],
                        strings_can_be_null=True,
                    ),
                )
            except pa.ArrowInvalid as error:
                if "Empty CSV" in str(error):  # a header alone
                    return
                raise
            yield from reader

    def _explained(self, error: Exception) -> BadFile:
        """What is wrong with the rows, and where: threads do not know, so they are read again."""
        bad: list[Any] = []
        rows = 1
        try:
            for batch in self._parse(bad, threads=False):
                rows += len(batch)
        except STORAGE_ERRORS as again:
            error = again
        text = str(error)
        if bad:
            return self._ragged(bad[0])
        if "straddling" in text:
            return self._bad(
                f"has a row of more than {self._block >> 20} MiB after row {rows:,}; a quote is "
                "opened there and not closed"
            )
        if "invalid UTF8" in text:
            place = re.search(r"#(\d+)", text)
            column = quoted(self.header.names[int(place[1])]) if place else "a column"
            return self._bad(
                f"holds text that is not UTF-8, in {column} below row {rows:,}; save the file as "
                "UTF-8"
            )
        return self._bad(reason_of(error))

    def _ragged(self, row: Any) -> BadFile:
        number = f"row {row.number + 1:,}"
        if "\n" in row.text or row.text.count('"') % 2:
            return self._bad(f"has a quote in {number} that is not closed in that row; close it")
        hint = ""
        if row.actual_columns > row.expected_columns and self.header.delimiter == ",":
            hint = " (a cell with a comma is put in quotes, decimals are written with a point)"
        if row.actual_columns > row.expected_columns == 1:
            hint = f", or remove the first line{_told(self.header.cells[0])} if it is no header"
        if row.actual_columns < row.expected_columns and row.number == 1:
            hint = f", or remove that row{_told(row.text)} if it is a second header, as of units"
        return self._bad(
            f"has {counted(row.actual_columns, 'cell')} in {number} and "
            f"{counted(row.expected_columns, 'column')} in its header, parted by "
            f"{self.header.parted_by}; give every row a cell for each column{hint}"
        )

    def _refuse_second_header(self, batch: pa.RecordBatch, rows: int) -> None:
        """Refuse a row that is the header again, as files that were joined have it."""
        place, name = next((k, cell) for k, cell in enumerate(self.header.cells) if cell)
        if _count_numbers(self.header.names):  # a row of an array may be the numbers of its columns
            return
        for row in pc.indices_nonzero(pc.equal(batch.column(place), name)).to_pylist():
            if all(
                (column[row].as_py() or "") == cell
                for column, cell in zip(batch.columns, self.header.cells, strict=True)
            ):
                raise self._bad(f"has its header again in row {rows + row + 1:,}; remove that row")

    def _refuse_other_sign(self, cell: str) -> None:
        """Refuse one column whose first cell, with a number in it, is parted as the header is."""
        if len(self.header.names) > 1:
            return
        name = self.header.cells[0]
        for sign, what in _OTHER_SIGNS.items():
            parts = cell.split(sign)
            is_parted = len(parts) == len(name.split(sign)) > 1
            if is_parted and sign != self.header.delimiter and _count_numbers(parts):
                raise self._bad(
                    f"has one column, {quoted(name)}, where it is parted by "
                    f"{self.header.parted_by}, and seems to be parted by {what}; write it as CSV "
                    "with commas, or rename it if only its ending is wrong"
                )

    def _refuse_open_quote(self, last: pa.RecordBatch) -> None:
        """Arrow takes a quote that is never closed as one cell as far as the file goes."""
        ends = [last.column(place)[len(last) - 1].as_py() for place in range(last.num_columns)]
        if not any(cell and "\n" in cell for cell in ends):
            return
        quotes = 0
        with self._opened() as source:
            while piece := source.read(_BLOCKS[0]):
                quotes += piece.count(b'"')
        if quotes % 2:
            raise self._bad(
                "ends within a cell: a quote is opened in its last row and not closed; close it"
            )

    @property
    def _block(self) -> int:
        fewest, most = _BLOCKS
        return min(max(_BYTES_OF_COLUMN * len(self.header.names), fewest), most)

    @contextmanager
    def _opened(self) -> Iterator[pa.NativeFile]:
        with pa.OSFile(os.fsencode(self._path), "rb") as file:
            if self._codec is None:
                yield file
            else:
                with pa.CompressedInputStream(file, self._codec) as stream:
                    yield stream

    def _bad(self, reason: str) -> BadFile:
        return BadFile(self.shown, reason)


def _end_of_row(data: bytes, *, is_all: bool) -> int | None:
    """Where the first row that is not blank ends, after its line break; None if it does not."""
    seen = len(data) - len(data.lstrip(_BOM + b"\r\n"))
    quotes = 0
    for found in re.compile(rb"\r\n?|\n").finditer(data, seen):
        quotes += data.count(b'"', seen, found.start())
        seen = found.end()
        if quotes % 2 == 0:
            return seen
    quotes += data.count(b'"', seen)
    return len(data) if is_all and quotes % 2 == 0 else None


def _delimiter_of(row: str) -> str:
    """The one of comma, semicolon and tab that a header has most of, outside of quotes."""
    plain = re.sub(r'"[^"]*"', "", row)
    return max(_DELIMITERS, key=plain.count)  # of equals the first: a comma


def _told(line: str) -> str:
    """How the first line begins, by which a comment or a setting is known."""
    return f" ({quoted(line if len(line) <= 60 else f'{line[:60]}...')})"


def _count_numbers(names: Sequence[str]) -> int:
    return sum(parse_number(name) is not None for name in names)


def _is_numbering(names: Sequence[str]) -> bool:
    """Whether names count columns, as those of an array do."""
    with suppress(ValueError):
        first = int(names[0])
        return first in (0, 1) and list(names) == [str(first + k) for k in range(len(names))]
    return False
