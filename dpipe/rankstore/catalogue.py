"""The columns a pass works on, and reading pieces of them.

Covers: the catalogue in the order tiles address it, (columns, rows) pieces of scores and validity.
Does not cover: writing blocks (`dpipe.rankstore.blocks`), which columns a pass gets
(`dpipe.passes`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpipe.rankstore.blocks import StoredColumn, packed_length
from dpipe.rankstore.store import Reader, Store

_DRAW_CELLS = 2**21  # read at a time, of which a draw takes some; 14 bytes each at most


@dataclass(frozen=True)
class Catalogue:
    """The columns a pass works on, in the order its tiles address them: complete ones first.

    Of those, as of the others, the ones that need few functions come first.

    Arrays of one entry per column: ``block``, ``slot`` and ``valid_slot`` say where it lies,
    ``pattern`` numbers its set of valid rows (0: complete), ``n_valid`` counts them, ``untied``
    says that its ranks are 1 to ``n_rows``, each once, ``functions`` how many it needs: a column
    of m different values has m - 1 that differ. ``rows`` (sorted) restricts the pass to a
    draw of rows; empty means all.
    """

    n_stored: int
    block: NDArray[np.int64]
    slot: NDArray[np.int64]
    valid_slot: NDArray[np.int64]
    pattern: NDArray[np.int64]
    n_valid: NDArray[np.int64]
    untied: NDArray[np.bool_]
    functions: NDArray[np.int64]
    rows: NDArray[np.int64]

    @property
    def n_rows(self) -> int:
        """Rows a pass over this catalogue sees."""
        return len(self.rows) or self.n_stored

    @property
    def n_complete(self) -> int:
        """Columns without a missing cell; they come first."""
        return int(np.count_nonzero(self.valid_slot < 0))

    def __len__(self) -> int:
        return len(self.block)

    @property
    def key(self) -> str:
        """Equal for catalogues of the same places alone: workers keep one that they have read."""
        content = hashlib.sha256()
        for array in vars(self).values():
            content.update(np.asarray(array).tobytes())
        return content.hexdigest()[:16]

    def save(self, store: Store, name: str) -> None:
        """Write the catalogue where the tasks of a pass find it."""
        arrays = {key: np.asarray(value) for key, value in vars(self).items()}
        store.write_arrays(name, arrays)


def build_catalogue(
    columns: Mapping[str, StoredColumn],
    n_rows: int,
    rows: NDArray[np.int64] | None = None,
    functions: int = 1,
) -> tuple[Catalogue, tuple[str, ...]]:
    """The catalogue of some stored columns and their names in its order.

    Parameters
    ----------
    columns
        Name -> where it lies.
    n_rows
        Rows of the store.
    rows
        Sorted draw of rows to restrict the pass to.
    functions
        K, the most functions that a column has in the pass.
    """
    needed = {
        name: max(1, min(functions, column.statistics.n_unique - 1))
        for name, column in columns.items()
    }
    order = sorted(
        columns,
        key=lambda name: (
            columns[name].valid_slot >= 0,
            needed[name],
            columns[name].block,
            columns[name].slot,
        ),
    )
    stored = [columns[name] for name in order]
    patterns = {"": 0}
    for column in stored:
        patterns.setdefault(column.pattern, len(patterns))
    catalogue = Catalogue(
        n_stored=n_rows,
        block=np.array([column.block for column in stored], dtype=np.int64),
        slot=np.array([column.slot for column in stored], dtype=np.int64),
        valid_slot=np.array([column.valid_slot for column in stored], dtype=np.int64),
        pattern=np.array([patterns[column.pattern] for column in stored], dtype=np.int64),
        n_valid=np.array([column.statistics.n_valid for column in stored], dtype=np.int64),
        untied=np.array(
            [rows is None and column.statistics.n_unique == n_rows for column in stored],
            dtype=bool,
        ),
        functions=np.array([needed[name] for name in order], dtype=np.int64),
        rows=np.empty(0, dtype=np.int64) if rows is None else rows,
    )
    return catalogue, tuple(order)


@lru_cache(maxsize=4)
def load_catalogue(store: Store, name: str) -> Catalogue:
    """Read a catalogue (kept for the next task of the same pass)."""
    arrays = store.read_arrays(name)
    return Catalogue(n_stored=int(arrays.pop("n_stored")), **arrays)


def read_piece(
    store: Store,
    catalogue: Catalogue,
    columns: Sequence[int] | range,
    start: int,
    stop: int,
    *,
    empty: Callable[..., NDArray[Any]] = np.empty,
    readers: int = 1,
) -> tuple[NDArray[np.float32], NDArray[np.bool_] | None]:
    """Scores and validity of some columns on the pass's rows `start` to `stop`.

    Parameters
    ----------
    empty
        Makes the array of the scores, of a shape and dtype.
    readers
        Threads that read the blocks of a local store: a card waits for one.

    Returns
    -------
    scores
        (len(columns), stop - start) float32 centred ranks, 0 where missing.
    valid
        The same shape, bool; None when all of these columns are complete.
    """
    if len(catalogue.rows):
        return _read_draw(store, catalogue, columns, catalogue.rows[start:stop], empty)
    return _read_rows(store, catalogue, columns, start, stop, empty, readers)


def _read_draw(
    store: Store,
    catalogue: Catalogue,
    columns: Sequence[int] | range,
    wanted: NDArray[np.int64],
    empty: Callable[..., NDArray[Any]],
) -> tuple[NDArray[np.float32], NDArray[np.bool_] | None]:
    """Scores and validity on a draw of rows, read by windows: it may be a few rows of millions."""
    window = max(1, _DRAW_CELLS // max(1, len(columns)))
    scores = empty((len(columns), len(wanted)), dtype=np.float32)
    valid: NDArray[np.bool_] | None = None
    if np.any(catalogue.valid_slot[np.asarray(columns, dtype=np.int64)] >= 0):
        valid = np.empty(scores.shape, dtype=bool)
    cuts = np.flatnonzero(np.diff(wanted // window)) + 1
    for part in np.split(np.arange(len(wanted)), cuts):
        rows = wanted[part]
        first, last = int(rows[0]), int(rows[-1]) + 1
        some, mask = _read_rows(store, catalogue, columns, first, last, np.empty, 1)
        scores[:, part] = some[:, rows - first]
        if valid is not None and mask is not None:
            valid[:, part] = mask[:, rows - first]
    return scores, valid


def _read_rows(
    store: Store,
    catalogue: Catalogue,
    columns: Sequence[int] | range,
    start: int,
    stop: int,
    empty: Callable[..., NDArray[Any]],
    readers: int,
) -> tuple[NDArray[np.float32], NDArray[np.bool_] | None]:
    index = np.asarray(columns, dtype=np.int64)
    scores = empty((len(index), stop - start), dtype=np.float32)
    incomplete = bool(np.any(catalogue.valid_slot[index] >= 0))
    first_byte, last_byte = start // 8, packed_length(stop)
    bits = np.full((len(index) if incomplete else 0, last_byte - first_byte), 255, dtype=np.uint8)

    def fill(block: np.int64) -> None:
        places = np.flatnonzero(catalogue.block[index] == block)
        with store.reader(f"block-{block:05d}.f32") as reader:
            _fill_scores(reader, scores, places, catalogue.slot[index], start, catalogue.n_stored)
        masked = [place for place in places if catalogue.valid_slot[index[place]] >= 0]
        if masked:
            with store.reader(f"block-{block:05d}.bits") as reader:
                for place in masked:
                    slot = int(catalogue.valid_slot[index[place]])
                    reader.fill(bits[place], slot * packed_length(catalogue.n_stored) + first_byte)

    blocks = np.unique(catalogue.block[index])
    if readers == 1 or len(blocks) == 1 or not store.local:
        for block in blocks:
            fill(block)
    else:
        with ThreadPoolExecutor(min(readers, len(blocks))) as threads:
            list(threads.map(fill, blocks))
    if not incomplete:
        return scores, None
    valid = np.unpackbits(bits, axis=1, count=None)[:, start - first_byte * 8 :]
    return scores, valid[:, : stop - start].astype(bool)


def _fill_scores(
    reader: Reader,
    scores: NDArray[np.float32],
    places: NDArray[np.int64],
    slots: NDArray[np.int64],
    start: int,
    n_stored: int,
) -> None:
    """Fill rows `places` of `scores`; neighbours on disk over all rows come in one read."""
    whole = scores.shape[1] == n_stored
    cuts = np.flatnonzero((np.diff(places) != 1) | (np.diff(slots[places]) != 1)) + 1
    for run in np.split(places, cuts):
        if whole:
            reader.fill(scores[run[0] : run[-1] + 1], int(slots[run[0]]) * n_stored * 4)
        else:
            for place in run:
                reader.fill(scores[place], (int(slots[place]) * n_stored + start) * 4)
