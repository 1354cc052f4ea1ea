"""Reading what a model is to predict: one column as numbers or as classes.

Covers: which of the two a column is, its values on the rows that take part, numbers that float64
would round told apart.
Does not cover: how much columns tell of it (`dpipe.engine.relevance`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from dpipe.errors import InputError
from dpipe.table.convert import fill_float64
from dpipe.table.decode import decoder, rows_within
from dpipe.table.exact import WholeColumn, find_rounded, scale_of
from dpipe.table.record import Table
from dpipe.table.schema import Kind, kind_of

_DIGITS = 76  # of the widest decimal of Arrow


@dataclass(frozen=True)
class TargetColumn:
    """A target on the rows that take part.

    Attributes
    ----------
    values
        (n,) float64, NaN where missing; of classes the number of each row's class. Of numbers that
        float64 would round their places among each other, because only their order is looked at.
    classes
        The classes in order, as text; None for numbers.
    """

    values: NDArray[np.float64]
    classes: tuple[str, ...] | None


def read_target(
    table: Table, name: str, kind: str, rows: NDArray[np.int64] | None = None
) -> TargetColumn:
    """The column `name` as a target, on all rows or sorted `rows`.

    Of `kind` "numbers" or "classes", or of "auto": numbers and flags as numbers, text as classes.

    Raises
    ------
    InputError
        When it holds neither numbers nor text, or text is to be numbers.
    """
    chunks = list(_chunks(table, name, rows))
    kinds = {kind_of(chunk.type) for chunk in chunks if chunk.type != pa.null()}
    if Kind.OTHER in kinds:
        raise InputError(
            f"the target {name!r} is {table.column(name).dtype}: neither numbers nor classes."
        )
    is_text = Kind.TEXT in kinds and name not in table.coerced
    if kind == "numbers" and is_text:
        raise InputError(
            f"the target {name!r} is text; --target-kind classes takes it as classes, and "
            "--coerce-strings reads numbers from it."
        )
    if is_text:
        return _text_classes(chunks)
    values = _numbers(chunks)
    if kind != "classes":
        return TargetColumn(values, None)
    found, codes = np.unique(values, return_inverse=True)  # NaN, if any, comes last
    n_classes = int(np.count_nonzero(~np.isnan(found)))
    coded = np.where(codes < n_classes, codes, math.nan)
    return TargetColumn(coded, tuple(f"{value:.15g}" for value in found[:n_classes]))


def _chunks(table: Table, name: str, rows: NDArray[np.int64] | None) -> Iterator[pa.Array]:
    """The column's cells in order; nulls for the rows of a file that lacks it."""
    for file, start in zip(table.files, table.starts, strict=True):
        local = rows_within(rows, start, file.n_rows)
        count = file.n_rows if local is None else len(local)
        layout = table.layouts[file.layout]
        if not count:
            continue
        if name not in layout.leaves:
            yield pa.nulls(count)
            continue
        with decoder(file, layout, table.storage_options) as source:
            for part in source.parts([name], local):
                yield from part.columns[name].chunks


def _numbers(chunks: list[pa.Array]) -> NDArray[np.float64]:
    """Numbers as float64 where that rounds none, else their places among each other."""
    values = np.empty(sum(map(len, chunks)))
    row, rounded = 0, False
    for chunk in chunks:
        own = values[row : row + len(chunk)]
        fill_float64(own, chunk)
        rounded = rounded or find_rounded(chunk, own) is not None
        row += len(chunk)
    if not rounded:
        return values
    for places_of in (_places_of_whole, _places_of_decimals):
        if (places := places_of(chunks)) is not None:
            return places
    return values  # rounded, as a feature of such numbers is


def _places_of_whole(chunks: list[pa.Array]) -> NDArray[np.float64] | None:
    """The places of numbers that 64 bits hold once they are whole; None where some are others."""
    n_rows = sum(map(len, chunks))
    column = WholeColumn(np.zeros(n_rows, np.int64), 0, np.zeros(n_rows, bool))
    row = 0
    for chunk in chunks:
        if not column.put(row, chunk):
            return None
        row += len(chunk)
    places = np.full(n_rows, math.nan)
    numbers: NDArray[Any] = column.bits.view(column.dtype)[column.valid]
    places[column.valid] = np.unique(numbers, return_inverse=True)[1]
    return places


def _places_of_decimals(chunks: list[pa.Array]) -> NDArray[np.float64] | None:
    """The places of whole numbers and decimals of any size; None where there are others."""
    if any(kind_of(chunk.type) in (Kind.FLOAT, Kind.TEXT) for chunk in chunks):
        return None
    digits = pa.decimal256(_DIGITS, max(map(scale_of, chunks)))
    try:
        numbers = pa.chunked_array([chunk.cast(digits) for chunk in chunks])
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):  # too many digits in all, or a flag
        return None
    places: NDArray[np.float64] = pc.rank(numbers, tiebreaker="dense").to_numpy() - 1.0
    places[numbers.is_null().to_numpy()] = math.nan
    return places


def _text_classes(chunks: list[pa.Array]) -> TargetColumn:
    """Classes by their text, in alphabetical order whatever the order of the rows."""
    texts = [
        (chunk.dictionary_decode() if isinstance(chunk, pa.DictionaryArray) else chunk).cast(
            pa.large_string()
        )
        for chunk in chunks
    ]
    coded = pa.chunked_array(texts).combine_chunks().dictionary_encode()
    classes = coded.dictionary.to_pylist()
    place = np.empty(len(classes) + 1)
    place[sorted(range(len(classes)), key=classes.__getitem__)] = np.arange(len(classes))
    place[-1] = math.nan
    codes = coded.indices.fill_null(len(classes)).to_numpy()
    return TargetColumn(place[codes], tuple(sorted(classes)))
