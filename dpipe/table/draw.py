"""Drawing rows of a table with a seed, whatever the names and order of its files.

Covers: `draw_rows`. Does not cover: reading the rows drawn (`dpipe.table.read_block`).

Each row gets a 64-bit key from a generator seeded by the seed and the number of rows of its file;
the rows with the smallest keys are drawn. Files of as many rows are told apart by their place in
the order of the hashes of their footers. So a draw is uniform without replacement, depends neither
on how files are called or sorted nor on how one of them is laid out (columns, row groups,
compression), and a larger draw contains a smaller one of the same seed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from dpipe.table.record import Table

_KEYS = 1 << 20


def draw_rows(
    table: Table,
    sample_rows: int | None = None,
    sample_per_file: int | None = None,
    seed: int = 0,
    among: NDArray[np.int64] | None = None,
) -> NDArray[np.int64] | None:
    """Rows to read: `sample_rows` of the table or `sample_per_file` of each file.

    Parameters
    ----------
    table : Table
    sample_rows, sample_per_file : int or None
        At most one of them; all rows are drawn where there are no more.
    seed : int
    among : NDArray[np.int64] or None
        Sorted rows to draw from; all rows of the table when None.

    Returns
    -------
    NDArray[np.int64] or None
        Sorted global row numbers (k,); None (every row) when no sample is asked for.

    Examples
    --------
    >>> from dpipe.table.record import Table, TableFile
    >>> table = Table((TableFile("a", 5, 0, 0, (5,), "f00d"),), ())
    >>> len(draw_rows(table, sample_rows=3)), draw_rows(table) is None
    (3, True)
    """
    if sample_rows is None and sample_per_file is None:
        return None
    rows = np.empty(0, dtype=np.int64)
    keys = np.empty(0, dtype=np.uint64)
    drawn: list[NDArray[np.int64]] = []
    for start, stream in _streams(table, seed):
        if sample_per_file is not None:
            rows, keys = rows[:0], keys[:0]
        for offset, more in stream:
            wanted = sample_rows if sample_per_file is None else sample_per_file
            candidates = np.arange(start + offset, start + offset + len(more), dtype=np.int64)
            if among is not None:
                first, last = among.searchsorted([candidates[0], candidates[-1] + 1])
                candidates = among[first:last]
                more = more[candidates - (start + offset)]
            rows, keys = _smallest(
                np.concatenate([rows, candidates]), np.concatenate([keys, more]), wanted or 0
            )
        if sample_per_file is not None:
            drawn.append(rows)
    return np.sort(rows if sample_per_file is None else np.concatenate([rows[:0], *drawn]))


def _streams(
    table: Table, seed: int
) -> Iterator[tuple[int, Iterator[tuple[int, NDArray[np.uint64]]]]]:
    """For each file its first row and the keys of its rows, a piece at a time."""
    files = table.files
    places, as_long = [0] * len(files), Counter[int]()
    for i in sorted(range(len(files)), key=lambda i: files[i].footer_hash):
        places[i] = as_long[files[i].n_rows]
        as_long[files[i].n_rows] += 1
    for file, start, place in zip(files, table.starts, places, strict=True):
        seeds = np.random.SeedSequence([seed, file.n_rows, place])
        yield start, _keys(np.random.Philox(seeds), file.n_rows)


def _keys(bits: np.random.Philox, count: int) -> Iterator[tuple[int, NDArray[np.uint64]]]:
    for offset in range(0, count, _KEYS):
        yield offset, bits.random_raw(min(_KEYS, count - offset))


def _smallest(
    rows: NDArray[np.int64], keys: NDArray[np.uint64], count: int
) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
    if len(keys) <= count:
        return rows, keys
    chosen = np.argpartition(keys, count - 1)[:count]
    return rows[chosen], keys[chosen]
