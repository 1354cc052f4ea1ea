"""The table of similar pairs: a part from each pass, joined when a run ends.

Covers: the columns of ``pairs.parquet``, writing it in bounded memory, reading it.
Does not cover: which pairs are listed (`dpipe.engine.grid`), how a file appears whole
(`dpipe.runfolder.files`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dpipe.model.inventory import PAIRS, pairs_file
from dpipe.model.records import MILLION, Pairs
from dpipe.runfolder.files import BROKEN, Files, unreadable

PAIRS_SCHEMA = pa.schema(
    [
        pa.field("pass", pa.int64(), nullable=False),
        pa.field("measure", pa.string(), nullable=False),
        pa.field("column_a", pa.string(), nullable=False),
        pa.field("column_b", pa.string(), nullable=False),
        pa.field("value", pa.float64(), nullable=False),
        pa.field("rows", pa.int64(), nullable=False),
        pa.field("exact", pa.bool_(), nullable=False),
    ]
)
"""Columns of the table; ``column_a`` comes before ``column_b`` in the alphabet."""

_AT_ONCE = 2**18  # rows that are held as text at any time


def write_pairs(
    files: Files, number: int, measure: str, columns: Sequence[str], pairs: Pairs
) -> None:
    """Write the pairs of a pass, between columns by their number.

    The most similar come first, then the names decide: the order of columns leaves no trace.
    """
    edges, names = pairs.edges, pa.array(columns, pa.string())
    place = np.empty(len(columns), dtype=np.int64)
    place[sorted(range(len(columns)), key=columns.__getitem__)] = np.arange(len(columns))
    first = np.where(place[edges.i] < place[edges.j], edges.i, edges.j)
    second = edges.i + edges.j - first
    strengths = edges.strengths()
    order = np.lexsort((place[second], place[first], -strengths))
    order = order[strengths[order] >= round(pairs.floor * MILLION)]
    with _written(files, pairs_file(number)) as writer:
        writer.add_key_value_metadata({f"floor-{number}": repr(pairs.floor)})
        for start in range(0, len(order), _AT_ONCE):
            chosen = order[start : start + _AT_ONCE]
            parts = [
                pa.array(np.full(len(chosen), number)),
                pa.array([measure] * len(chosen), pa.string()),
                names.take(pa.array(first[chosen])),
                names.take(pa.array(second[chosen])),
                pa.array(edges.value[chosen]),
                pa.array(pairs.rows[chosen]),
                pa.array(pairs.exact[chosen]),
            ]
            writer.write_table(pa.table(parts, schema=PAIRS_SCHEMA))


def join_pairs(files: Files, numbers: Iterable[int]) -> None:
    """Put together what these passes left; a pass that received no column left nothing."""
    with _written(files, PAIRS) as writer:
        for number in numbers:
            path = files.path / pairs_file(number)
            if path.exists():
                with pq.ParquetFile(path) as part:
                    writer.add_key_value_metadata({f"floor-{number}": repr(_floor(part, number))})
                    for batch in part.iter_batches(_AT_ONCE):
                        writer.write_batch(batch.cast(PAIRS_SCHEMA))


def read_floor(files: Files, number: int) -> float:
    """The similarity from which on every pair of a pass is listed; infinite where none is."""
    try:
        with pq.ParquetFile(files.path / PAIRS) as table:
            return _floor(table, number)
    except (pa.ArrowException, *BROKEN) as error:
        raise unreadable(files.path / PAIRS, error) from error


def _floor(table: pq.ParquetFile, number: int) -> float:
    return float((table.metadata.metadata or {}).get(f"floor-{number}".encode(), b"inf"))


@contextmanager
def _written(files: Files, name: str) -> Iterator[pq.ParquetWriter]:
    with (
        files.replacing(name) as pending,
        pq.ParquetWriter(
            pending.file, PAIRS_SCHEMA, compression="zstd", write_page_checksum=True
        ) as writer,
    ):
        yield writer


def read_pairs(files: Files, number: int | None) -> pa.Table:
    """The pairs of one pass, or all of them."""
    path = files.path / PAIRS
    try:
        rows = None if number is None else [("pass", "=", number)]
        table = pq.read_table(path, filters=rows, page_checksum_verification=True)
        return table.select(PAIRS_SCHEMA.names).cast(PAIRS_SCHEMA)
    except (pa.ArrowException, *BROKEN) as error:
        raise unreadable(path, error) from error
