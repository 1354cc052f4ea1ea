"""The table of similar pairs: a part from each pass, joined when a run ends.

Covers: the columns of ``pairs.parquet``, writing it in bounded memory, reading it.
Does not cover: which pairs are listed (`dpipe.engine.grid`), how a file appears whole
(`dpipe.runfolder.files`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dpipe.model.inventory import PAIRS, pairs_file
from dpipe.model.records import MILLION, Edges, Pairs
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


class PairFiles(Files):
    """A folder with the tables of similar pairs."""

    def write_pairs(self, number: int, columns: Sequence[str], listed: Mapping[str, Pairs]) -> None:
        """Write the pairs of a pass, between columns by their number, by measure.

        The measure that decides comes first. Of each the most similar pairs come first, then the
        names decide: the order of columns leaves no trace.
        """
        deciding = next(iter(listed))
        with self._writer(pairs_file(number)) as writer:
            writer.add_key_value_metadata({f"measure-{number}": deciding})
            for measure, pairs in listed.items():
                of = "" if measure == deciding else f"-{measure}"
                writer.add_key_value_metadata({f"floor-{number}{of}": repr(pairs.floor)})
                for rows in _tables(number, measure, columns, pairs):
                    writer.write_table(rows)

    def join_pairs(self, numbers: Iterable[int]) -> None:
        """Write ``pairs.parquet`` from what these passes left.

        A pass that received no column left nothing.
        """
        with self._writer(PAIRS) as writer:
            for number in numbers:
                path = self.path / pairs_file(number)
                if path.exists():
                    with pq.ParquetFile(path) as part:
                        writer.add_key_value_metadata(_facts(part.metadata))
                        for batch in part.iter_batches(_AT_ONCE):
                            writer.write_batch(batch.cast(PAIRS_SCHEMA))

    @contextmanager
    def _writer(self, name: str) -> Iterator[pq.ParquetWriter]:
        with (
            self.replacing(name) as file,
            pq.ParquetWriter(
                file, PAIRS_SCHEMA, compression="zstd", write_page_checksum=True
            ) as writer,
        ):
            yield writer

    def read_pairs(self, number: int | None = None) -> pa.Table:
        """Read ``pairs.parquet``: the pairs of one pass, or all of them.

        Raises
        ------
        InputError
            When the file is missing, broken or no such table.
        """
        path = self.path / PAIRS
        try:
            rows = None if number is None else [("pass", "=", number)]
            table = pq.read_table(path, filters=rows, page_checksum_verification=True)
            return table.select(PAIRS_SCHEMA.names).cast(PAIRS_SCHEMA)
        except (pa.ArrowException, *BROKEN) as error:
            raise unreadable(path, error) from error

    def deciding_pairs(self, number: int, columns: Sequence[str]) -> tuple[str, Pairs]:
        """The measure that decides in a pass and its pairs, between these columns by number.

        The floor is infinite where the pass left nothing.

        Raises
        ------
        InputError
            As `read_pairs`, or when a pair has another column.
        """
        path = self.path / PAIRS
        try:
            with pq.ParquetFile(path) as stored:
                facts = _facts(stored.metadata)
        except (pa.ArrowException, *BROKEN) as error:
            raise unreadable(path, error) from error
        measure, floor = facts.get(f"measure-{number}", ""), facts.get(f"floor-{number}", "inf")
        table = self.read_pairs(number).filter(pc.field("measure") == measure)
        names = pa.array(columns, pa.string())
        ends = [pc.index_in(table[name], value_set=names) for name in ("column_a", "column_b")]
        if any(end.null_count for end in ends):
            raise unreadable(path, "it has columns that the pass did not receive")
        first, second = (end.to_numpy().astype(np.int64) for end in ends)
        low, high = np.minimum(first, second), np.maximum(first, second)
        order = np.argsort(low * len(columns) + high)
        value, rows, exact = (table[name].to_numpy()[order] for name in ("value", "rows", "exact"))
        return measure, Pairs(Edges(low[order], high[order], value), rows, exact, float(floor))


def _tables(number: int, measure: str, columns: Sequence[str], pairs: Pairs) -> Iterator[pa.Table]:
    edges, names = pairs.edges, pa.array(columns, pa.string())
    place = np.empty(len(columns), dtype=np.int64)
    place[sorted(range(len(columns)), key=columns.__getitem__)] = np.arange(len(columns))
    first = np.where(place[edges.i] < place[edges.j], edges.i, edges.j)
    second = edges.i + edges.j - first
    strengths = edges.strengths()
    order = np.lexsort((place[second], place[first], -strengths))
    order = order[strengths[order] >= round(pairs.floor * MILLION)]
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
        yield pa.table(parts, schema=PAIRS_SCHEMA)


def _facts(metadata: pq.FileMetaData | None) -> dict[str, str]:
    """What the file says of its passes: ``measure-N`` decides, ``floor-N`` is where its pairs end.

    ``floor-N-NAME`` is the same of a measure that is listed beside it.
    """
    stored = {} if metadata is None else metadata.metadata or {}
    decoded = {key.decode(): value.decode() for key, value in stored.items()}
    return {key: value for key, value in decoded.items() if key.startswith(("measure-", "floor-"))}
