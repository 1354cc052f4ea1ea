"""Columns of whole numbers too large for float64, kept as whole numbers so that ranks are exact.

Covers: which cells float64 rounds, and columns of 64-bit whole numbers, decimals and text that
holds whole numbers, without rounding.
Does not cover: conversion to float64 (see `dpipe.table.convert`).

A column is read as float64 until a cell comes that this would round. If every cell read so far and
every cell to come times one power of ten is a whole number of 64 bits, the column is held as such;
else it stays float64, and the cells that were rounded are counted.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from dpipe.table.convert import bits_of, parse_number, texts_of, values_of
from dpipe.table.schema import is_text

Wholes = NDArray[np.int64]
Mask = NDArray[np.bool_] | None

EXACT_WHOLE = 2**53
"""Whole numbers below it are exact in float64, and no other is rounded to one of them."""
WHOLE_TEXT = r"^\s*[+-]?[0-9]+\s*$"

_EXACT_DIGITS = 15  # decimals of so many digits come back from float64 as they were
_DIGITS_OF_64_BITS = 19  # of their largest power of ten, 10**18
_TEXT_DIGITS = 17  # programs write so many, so that a float64 comes back from text as it was
_WHOLE = re.compile(r"[+-]?[0-9]+")


def find_rounded(chunk: pa.Array, numbers: NDArray[np.float64]) -> NDArray[np.bool_] | None:
    """Which cells of an Arrow array float64 may have rounded in `numbers`; None where none.

    Examples
    --------
    >>> cells = pa.array([1, 2**53 + 1, None])
    >>> find_rounded(cells, np.array([1.0, 2.0**53, np.nan])).tolist()
    [False, True, False]
    >>> find_rounded(pa.array(["0.1"]), np.array([0.1])) is None
    True
    """
    if isinstance(chunk, pa.DictionaryArray):
        chunk = chunk.dictionary_decode()
    types = pa.types
    if types.is_int64(chunk.type) or types.is_uint64(chunk.type):
        found = np.abs(numbers) >= EXACT_WHOLE
    elif types.is_decimal(chunk.type) and chunk.type.precision > _EXACT_DIGITS:
        found = np.abs(numbers) * 10.0**chunk.type.scale > 10.0**_EXACT_DIGITS
        found[found] = _count_digits(chunk.filter(pa.array(found))) > _EXACT_DIGITS
    elif is_text(chunk.type) and _longest(chunk) > _EXACT_DIGITS:
        found = np.isfinite(numbers)
        texts = chunk.filter(pa.array(found)).cast(pa.large_string())
        digits = _count_digits(texts)
        whole = pc.match_substring_regex(texts, WHOLE_TEXT).to_numpy(False)
        large = whole & (np.abs(numbers[found]) >= EXACT_WHOLE)
        found[found] = (digits > _TEXT_DIGITS) | (large & (digits > _EXACT_DIGITS))
    else:
        return None
    return found if found.any() else None


def _longest(chunk: pa.Array) -> int:
    return pc.max(pc.binary_length(chunk.cast(pa.large_string()))).as_py() or 0


def _count_digits(numbers: pa.Array) -> NDArray[np.int64]:
    """The digits of decimals, or of numbers as text, from the first to the last that is not 0."""
    text = pc.replace_substring_regex(numbers.cast(pa.large_string()), r"[eE].*|[.\s+-]", "")
    digits: NDArray[np.int64] = pc.utf8_length(pc.utf8_trim(text, "0")).to_numpy(False)
    return digits


def scale_of(chunk: pa.Array) -> int:
    """The power of ten that makes the cells of an Arrow array whole numbers, by its type."""
    if isinstance(chunk, pa.DictionaryArray):
        return scale_of(chunk.dictionary)
    return max(0, chunk.type.scale) if pa.types.is_decimal(chunk.type) else 0


def whole_cells(chunk: pa.Array, scale: int) -> tuple[Wholes, Mask, bool] | None:
    """Cells times 10**`scale` as whole numbers of 64 bits.

    Returns
    -------
    tuple or None
        The bits of the numbers, which cells are valid (None: all), whether the bits have no sign;
        None where the cells are no such numbers.

    Examples
    --------
    >>> whole_cells(pa.array(["12", " 7", None, "NA"]), 0)[:2]
    (array([12,  7,  0,  0]), array([ True,  True, False, False]))
    >>> whole_cells(pa.array([1.5]), 0) is None
    True
    """
    if isinstance(chunk, pa.DictionaryArray):
        chunk = chunk.dictionary_decode()
    types = pa.types
    try:
        if is_text(chunk.type):
            chunk = _text_as_whole(chunk)
        if types.is_null(chunk.type) or types.is_boolean(chunk.type):
            chunk = chunk.cast(pa.int64())
        if types.is_floating(chunk.type):
            return _whole_floats(chunk, scale)
        if scale or types.is_decimal(chunk.type):
            return _unscaled(chunk.cast(pa.decimal128(38, scale)))
        if not types.is_integer(chunk.type):
            return None
        unsigned = types.is_uint64(chunk.type)
        chunk = chunk if unsigned else chunk.cast(pa.int64())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):  # too large, or no whole numbers
        return None
    valid = _valid(chunk)
    cells = values_of(chunk, np.dtype(np.int64))
    return (cells if valid is None else np.where(valid, cells, 0)), valid, unsigned


def _valid(chunk: pa.Array) -> Mask:
    if not chunk.null_count:
        return None
    return bits_of(chunk.buffers()[0], chunk.offset, len(chunk)).view(np.bool_)


def _unscaled(chunk: pa.Array) -> tuple[Wholes, Mask, bool] | None:
    """The digits of decimals of 128 bits, where 64 hold them."""
    valid = _valid(chunk)
    halves = np.zeros((0, 2), dtype=np.int64)
    if len(chunk):
        start = 16 * chunk.offset
        halves = np.frombuffer(chunk.buffers()[1], np.int64, 2 * len(chunk), start).reshape(-1, 2)
    low, high = halves.T
    if valid is not None:
        low, high = np.where(valid, low, 0), np.where(valid, high, 0)
    if np.array_equal(high, low >> 63):
        return low.copy(), valid, False
    return (low.copy(), valid, True) if not high.any() else None


def _whole_floats(chunk: pa.Array, scale: int) -> tuple[Wholes, Mask, bool] | None:
    """Real numbers that are whole and exact; an infinity is missing."""
    read = chunk.cast(pa.float64()).to_numpy(zero_copy_only=False)
    valid, whole = _times(read, scale)
    return None if whole is None else (whole, valid, False)


def _times(read: NDArray[np.float64], scale: int) -> tuple[NDArray[np.bool_], Wholes | None]:
    """Which are finite, and 10**`scale` times these; None where some is no exact whole number."""
    valid = np.isfinite(read)
    power = 10.0**scale
    cells = np.where(valid, read, 0)
    with np.errstate(over="ignore"):  # infinite is too large as well
        whole = np.rint(cells * power)
    integral = (cells == np.rint(cells)) & (np.abs(whole) < 2.0**63)
    limited = np.where(integral, 0, np.abs(whole))
    if ((whole / power != cells) & ~integral).any() or (limited >= 10.0**_EXACT_DIGITS).any():
        return valid, None
    # Whole numbers are multiplied as such: their product may have more digits than float64.
    factor = 10**scale if scale < _DIGITS_OF_64_BITS else 0  # of zeros alone beyond
    products = np.where(integral, cells, 0).astype(np.int64) * factor
    return valid, np.where(integral, products, np.where(integral, 0, whole).astype(np.int64))


def _text_as_whole(chunk: pa.Array) -> pa.Array:
    """Text as int64 or uint64; words for missing become null.

    Raises
    ------
    pa.ArrowInvalid
        When some number is not whole, or too large.
    """
    coded = chunk.dictionary_encode()
    numbers: list[int | None] = []
    for text in texts_of(coded.dictionary):
        if _WHOLE.fullmatch(text := (text or "").strip()):
            numbers.append(int(text))
        elif parse_number(text) is None or not math.isfinite(float(text)):
            numbers.append(None)
        else:
            raise pa.ArrowInvalid(f"{text} is not whole")
    found = [number for number in numbers if number is not None]
    kind = pa.uint64() if min(found, default=0) >= 0 else pa.int64()
    try:
        return pa.array(numbers, kind).take(coded.indices)
    except OverflowError as error:
        raise pa.ArrowInvalid("a number has more than 64 bits") from error


@dataclass
class WholeColumn:
    """A column that is being read as whole numbers, over the place of its float64.

    Attributes
    ----------
    bits
        (n,) the numbers, 10**scale times the cells.
    scale
        See `bits`.
    valid
        (n,) cells that hold a number.
    signed, large
        Whether some number is negative, or needs all 64 bits without a sign.
    """

    bits: Wholes
    scale: int
    valid: NDArray[np.bool_]
    signed: bool = False
    large: bool = False

    @property
    def dtype(self) -> np.dtype[Any]:
        """What the bits mean."""
        return np.dtype(np.uint64 if self.large else np.int64)

    def put(self, row: int, chunk: pa.Array) -> bool:
        """Take cells from `row` on; False, and nothing is taken, where 64 bits cannot hold all."""
        scale = max(self.scale, scale_of(chunk))
        cells = whole_cells(chunk, scale)
        if cells is None or not self._rescale(row, scale):
            return False
        bits, valid, unsigned = cells
        negative = bool((bits < 0).any())
        signed = self.signed or (negative and not unsigned)
        large = self.large or (negative and unsigned)
        if signed and large:
            return False
        self.signed, self.large = signed, large
        rows = slice(row, row + len(bits))
        self.bits[rows] = bits
        self.valid[rows] = True if valid is None else valid
        return True

    def _rescale(self, rows: int, scale: int) -> bool:
        """Multiply what was read so far; False where that has more than 64 bits."""
        factor = 10 ** (scale - self.scale)
        if factor > 1:
            read = self.bits[:rows]
            if self.large or (
                rows and max(abs(int(read.min())), int(read.max())) * factor >= 2**63
            ):
                return False
            read *= factor
            self.scale = scale
        return True


def as_whole(values: NDArray[np.float64], rows: int, scale: int) -> WholeColumn | None:
    """Begin with a column of which `rows` were read as float64; None where they are not whole.

    Changes the bits of `values` then, and only then.
    """
    valid = np.zeros(len(values), dtype=bool)
    valid[:rows], whole = _times(values[:rows], scale)
    if whole is None:
        return None
    column = WholeColumn(values.view(np.int64), scale, valid, signed=bool((whole < 0).any()))
    column.bits[:rows] = whole
    return column


def as_float64(column: WholeColumn, rows: int) -> int:
    """Turn the first `rows` of a column back into float64; how many of them may be rounded."""
    numbers, valid = column.bits[:rows].view(column.dtype), column.valid[:rows]
    unit = 10**column.scale
    read = numbers / float(unit)
    limit = 10**_EXACT_DIGITS if column.scale else EXACT_WHOLE
    large = numbers >= limit
    if not column.large:
        large |= numbers <= -limit
    exactly = numbers[large].tolist()
    read[large] = [cell / unit for cell in exactly]  # rounded once, as Python does
    if column.scale:  # of decimals, those of many digits
        large[large] = [len(str(abs(cell)).strip("0")) > _EXACT_DIGITS for cell in exactly]
    column.bits[:rows].view(np.float64)[:] = np.where(valid, read, math.nan)
    return int(np.count_nonzero(large & valid))
