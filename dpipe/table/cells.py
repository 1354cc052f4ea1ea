"""What the columns of a text file hold: numbers, true and false, or text.

Covers: the rule by which a column of cells is one of these, decided from all of its cells.
Does not cover: parting a file into cells (see `dpipe.table.delimited`), text columns of Parquet
that are read as numbers when asked (`dpipe.table.roles`).

A column holds numbers where every cell that is not missing is a number, by the grammar and the
words for missing of `dpipe.table.convert`; true and false where every such cell is one of the two;
else text, of which only empty cells are missing. Whole numbers stay exact as far as 64 bits reach.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from itertools import repeat

import pyarrow as pa
import pyarrow.compute as pc

from dpipe.common.words import quoted
from dpipe.table.convert import MISSING_WORDS, text_as_float64
from dpipe.table.exact import EXACT_WHOLE, WHOLE_TEXT

_WITH_COMMAS = (
    r"^\s*[+-]?(?:[0-9]*,[0-9]+(?:[eE][+-]?[0-9]+)?"
    r"|[0-9]{1,3}(?:[,.' \x{a0}\x{202f}][0-9]{3})+(?:[.,][0-9]+)?)\s*$"
)
"""Numbers with a decimal comma, or with a sign between thousands."""
_NEARLY = 19
"""A column of text is told of when it has so many numbers for each other cell."""
_FLAGS = frozenset({"false", "true"})
_FIRST_ROW = 2
"""The first row below the header, as a person counts."""
_HEADINGS = 3
"""Most rows right under the header that are taken for more of it."""


@cache
def _words(words: frozenset[str]) -> pa.Array:
    """Some words for Arrow.

    Not made when this module is imported: a worker that reads numbers never needs them, and with
    the first array it makes from objects Arrow imports pandas, two seconds of a small run.
    """
    return pa.array(sorted(words))


class Holds(StrEnum):
    """What a column holds; the values are the names of Arrow's types."""

    NOTHING = "null"
    FLAGS = "bool"
    WHOLE = "int64"
    LARGE = "uint64"
    REAL = "double"
    TEXT = "string"

    @property
    def type(self) -> pa.DataType:
        """The Arrow type of such a column."""
        return pa.type_for_alias(self.value)


@dataclass(frozen=True)
class Cell:
    """One cell, by its row as a person counts them: the header is row 1."""

    row: int
    text: str

    def __str__(self) -> str:
        return f"{quoted(self.text)} in row {self.row:,}"


class CellColumn:
    """What a column holds, as far as its cells were seen.

    Attributes
    ----------
    name
        The column.
    other
        The first cell that is no number, in a column that has numbers before it or beside it.
    commas
        Whether all cells that are no numbers are numbers with commas.
    headings
        How many rows right under the header have the only cells that make the column text, with
        numbers below, or true and false: units or types, as a second header has them.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.other: Cell | None = None
        self.commas = False
        self.headings = 0
        self._flags = self._text = self._fractions = self._rounded = False
        self._low = self._high = 0
        self._numbers = self._others = 0

    @property
    def holds(self) -> Holds:
        """What all cells so far have in common."""
        if self._text or (self._flags and self._numbers):
            return Holds.TEXT
        if self._flags:
            return Holds.FLAGS
        if not self._numbers:
            return Holds.NOTHING
        if not self._fractions:
            if self._low >= -(2**63) and self._high < 2**63:
                return Holds.WHOLE
            if self._low >= 0:
                return Holds.LARGE
        return Holds.REAL

    @property
    def rounded(self) -> bool:
        """Whether whole numbers are rounded to float64, because of other cells of the column."""
        large = max(self._high, -self._low) >= EXACT_WHOLE
        return self.holds is Holds.REAL and (self._rounded or large)

    @property
    def nearly_numbers(self) -> bool:
        """Whether almost all cells were numbers when the first others came."""
        return self._text and self._numbers >= _NEARLY * self._others > 0

    @property
    def heading(self) -> str:
        """The first of the cells that `headings` counts."""
        return self.other.text if self.other is not None and self.headings else ""

    def fits(self, planned: Holds) -> bool:
        """Whether the cells so far can be written as `planned`."""
        holds = self.holds
        if planned is Holds.LARGE and holds is Holds.WHOLE:
            return self._low >= 0
        if planned is Holds.REAL and holds in (Holds.WHOLE, Holds.LARGE):
            return True
        return holds in (planned, Holds.NOTHING) or planned is Holds.TEXT

    def add(self, cells: pa.Array, row: int, planned: Holds) -> pa.Array:
        """Take in some more cells, of which the first stands in `row`.

        Returns
        -------
        pa.Array
            What they hold, in the type of `planned`, or of another type where they do not fit it.
        """
        if self._text:
            if self.commas:
                self._look_for_commas(cells)
            return cells
        numbers, left = _as_numbers(cells)
        is_number = pc.fill_null(pc.invert(pc.is_nan(numbers)), False)
        n = pc.sum(is_number).as_py() or 0
        self._numbers += n
        if numbers.null_count == left.null_count:
            found = self._take_numbers(left, numbers, is_number) if n else pa.nulls(len(cells))
            found = numbers if planned is Holds.REAL else found
        else:
            found = self._take_others(left, numbers, n, row)
        return cells if planned is Holds.TEXT else _as_type(found, planned)

    def _take_numbers(self, cells: pa.Array, numbers: pa.Array, is_number: pa.Array) -> pa.Array:
        # Whether NaN is a fraction is not asked: it would depend on what stands beside it.
        whole = None if self._fractions else _as_whole(cells, is_number)
        if whole is None:
            self._fractions = True
            self._rounded |= _has_large_whole(cells, numbers)
            return numbers
        ends = pc.min_max(whole).as_py()
        self._low, self._high = min(self._low, ends["min"]), max(self._high, ends["max"])
        return whole

    def _take_others(self, cells: pa.Array, numbers: pa.Array, n: int, row: int) -> pa.Array:
        """Cells of which some are neither missing nor numbers; `n` are numbers."""
        is_other = pc.and_(pc.is_null(numbers), pc.is_valid(cells))
        others = cells.filter(is_other)
        if not n and _all(pc.is_in(pc.utf8_lower(others), _words(_FLAGS))):
            self._flags = True
            flags = pc.equal(pc.utf8_lower(cells), "true")
            return pc.if_else(is_other, flags, pa.scalar(None, pa.bool_()))
        self._text = True
        self.other = Cell(row + pc.index(is_other, True).as_py(), others[0].as_py())
        self._others = len(others)
        self.commas = not self._flags and _all_match(others, _WITH_COMMAS)
        if row == _FIRST_ROW:
            self.headings = _count_headings(cells, numbers)
        return cells

    def _look_for_commas(self, cells: pa.Array) -> None:
        numbers, cells = _as_numbers(cells)
        others = cells.filter(pc.and_(pc.is_null(numbers), pc.is_valid(cells)))
        self.commas = _all_match(others, _WITH_COMMAS)


class Survey:
    """What the columns of a table hold, batch by batch."""

    def __init__(self, names: Sequence[str]) -> None:
        self.columns = [CellColumn(name) for name in names]
        self.rows = 0

    @property
    def holds(self) -> tuple[Holds, ...]:
        """What each column holds, as far as it was seen."""
        return tuple(column.holds for column in self.columns)

    def add(
        self, batch: pa.RecordBatch, planned: Sequence[Holds], pool: ThreadPoolExecutor
    ) -> list[pa.Array]:
        """Take in more rows; an array for each column, as `CellColumn.add` returns it."""
        first = repeat(self.rows + _FIRST_ROW)
        self.rows += len(batch)
        return list(pool.map(CellColumn.add, self.columns, batch.columns, first, planned))

    def fits(self, planned: Sequence[Holds]) -> bool:
        """Whether all rows so far can be written as `planned`."""
        return all(map(CellColumn.fits, self.columns, planned))


def _as_type(array: pa.Array, planned: Holds) -> pa.Array:
    """`array` in the type that was planned, where it holds its values."""
    kind = planned.type
    if array.type == kind or pa.types.is_string(array.type):
        return array
    if pa.types.is_null(array.type) or (pa.types.is_integer(array.type) and planned is Holds.LARGE):
        return array.cast(kind, safe=False)
    return array


def _as_numbers(cells: pa.Array) -> tuple[pa.Array, pa.Array]:
    """The numbers in some cells, null where there is none; the cells, null where one is missing."""
    try:
        return cells.cast(pa.float64()), cells
    except pa.ArrowInvalid:
        cells = pc.utf8_trim_whitespace(cells)
        is_missing = pc.is_in(pc.utf8_lower(cells), _words(MISSING_WORDS))
        cells = pc.if_else(is_missing, pa.scalar(None, pa.string()), cells)
        return text_as_float64(cells), cells


def _as_whole(cells: pa.Array, is_number: pa.Array) -> pa.Array | None:
    """Cells that hold numbers as whole numbers, NaN as null; None where they are not all whole.

    That they are numbers is settled before: Arrow takes 0x1F for a whole number.
    """
    cells = pc.if_else(is_number, cells, pa.scalar(None, pa.string()))
    for kind in (pa.int64(), pa.uint64()):
        try:
            return cells.cast(kind)
        except pa.ArrowInvalid:
            continue
    return None


def _count_headings(cells: pa.Array, numbers: pa.Array) -> int:
    """Rows at the top as far as there is text, if all below, at least two, is of one kind."""
    is_value = pc.or_(pc.is_valid(numbers), _matches(cells, _WITH_COMMAS))
    if not pc.any(is_value).as_py():
        is_value = pc.is_in(pc.utf8_lower(cells), _words(_FLAGS))
    texts = pc.indices_nonzero(pc.and_not(pc.is_valid(cells), is_value))
    count: int = texts[-1].as_py() + 1 if len(texts) else 0
    below = pc.sum(is_value.slice(count)).as_py() or 0
    return count if count <= _HEADINGS and below >= 2 else 0


def _has_large_whole(cells: pa.Array, numbers: pa.Array) -> bool:
    """Whether a cell is a whole number that float64 may round."""
    large = pc.greater_equal(pc.abs(numbers), float(EXACT_WHOLE))
    if not pc.any(large).as_py():
        return False
    cells = cells.filter(pc.fill_null(large, False))
    return bool(pc.any(pc.match_substring_regex(cells, WHOLE_TEXT)).as_py())


def _all_match(cells: pa.Array, pattern: str) -> bool:
    return _all(pc.match_substring_regex(cells, pattern))


def _matches(cells: pa.Array, pattern: str) -> pa.Array:
    """Whether each cell does; a missing one does not."""
    return pc.fill_null(pc.match_substring_regex(cells, pattern), False)


def _all(mask: pa.Array) -> bool:
    return pc.all(mask).as_py() is not False  # null where there is nothing to ask of
