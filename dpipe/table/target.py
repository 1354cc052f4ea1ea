"""Reading what a model is to predict: one column as numbers or as classes.

Covers: which of the two a column is, its values on the rows that take part.
Does not cover: how much columns tell of it (`dpipe.engine.relevance`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dpipe.errors import InputError
from dpipe.table.convert import fill_float64
from dpipe.table.decode import decoder, rows_within
from dpipe.table.record import Table
from dpipe.table.schema import Kind, kind_of

TARGET_KINDS = ("auto", "numbers", "classes")
"""What a target may be taken for; auto: numbers and flags as numbers, text as classes."""


@dataclass(frozen=True)
class TargetColumn:
    """A target on the rows that take part.

    Attributes
    ----------
    values
        (n,) float64, NaN where missing; of classes the number of each row's class.
    classes
        The classes in order, as text; None for numbers.
    """

    values: NDArray[np.float64]
    classes: tuple[str, ...] | None


def read_target(
    table: Table,
    name: str,
    kind: str,
    rows: NDArray[np.int64] | None = None,
) -> TargetColumn:
    """The column `name` as a target of `kind` (see `TARGET_KINDS`), on all rows or sorted `rows`.

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
    if kind == "numbers" and Kind.TEXT in kinds:
        raise InputError(f"the target {name!r} is text; --target-kind classes takes it as classes.")
    if Kind.TEXT in kinds:
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
    values = np.empty(sum(map(len, chunks)))
    row = 0
    for chunk in chunks:
        fill_float64(values[row : row + len(chunk)], chunk)
        row += len(chunk)
    return values


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
