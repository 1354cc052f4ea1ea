"""Prepared column blocks: written once by pass 1, marked as done, checked when a run goes on.

Covers: the files of a block, the record and checksum of every column.
Does not cover: ranking (`dpipe.kernels.ranks`), reading for a pass (`dpipe.rankstore.catalogue`).
"""

from __future__ import annotations

import hashlib
import zlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpipe.model.records import ColumnStatistics
from dpipe.rankstore.store import Store, bytes_of

FORMAT = 3
"""Of what a block holds: raised when the ranks or their record mean something else."""


@dataclass(frozen=True)
class StoredColumn:
    """What is known of a prepared column, and where it lies.

    Attributes
    ----------
    statistics
        What pass 1 found out about it.
    block, slot
        The number of its block, and its place among the scores there.
    valid_slot
        Its place among the masks of the block; -1 for a complete column, which has none.
    pattern
        Equal for columns of the same valid rows, "" for complete ones.
    checksum
        CRC-32 of what is stored, set by `write_block`.
    """

    statistics: ColumnStatistics
    block: int
    slot: int
    valid_slot: int
    pattern: str
    checksum: int = 0


def pattern_of(mask: NDArray[np.uint8] | None) -> str:
    """Names a set of valid rows by its packed mask; "" for all of them."""
    return "" if mask is None else hashlib.sha256(mask.tobytes()).hexdigest()[:32]


def write_block(
    store: Store,
    number: int,
    columns: Sequence[StoredColumn],
    scores: Sequence[NDArray[np.float32]],
    masks: Sequence[NDArray[np.uint8]],
) -> None:
    """Write a prepared column block; its JSON, written last, marks it as done.

    ``scores`` and packed ``masks`` are in the order of their slots.
    """
    name = f"block-{number:05d}"
    store.write(f"{name}.f32", *(bytes_of(column) for column in scores), wait=False)
    store.write(f"{name}.bits", *(bytes_of(mask) for mask in masks), wait=False)
    sealed = []
    for column in columns:
        parts: list[NDArray[Any]] = [scores[column.slot]]
        parts += [masks[column.valid_slot]] if column.valid_slot >= 0 else []
        sealed.append(replace(column, checksum=_checksum(parts)))
    store.write_json(f"{name}.json", [asdict(column) for column in sealed])


def _checksum(parts: Sequence[NDArray[Any]]) -> int:
    return reduce(lambda crc, part: zlib.crc32(bytes_of(part), crc), parts, 0)


def is_intact(store: Store, number: int, n_rows: int) -> bool:
    """Whether a finished block still holds what was written, by its checksums."""
    name = f"block-{number:05d}"
    scores = np.empty(n_rows, dtype=np.float32)
    mask = np.empty(packed_length(n_rows), dtype=np.uint8)
    with store.reader(f"{name}.f32") as ranks, store.reader(f"{name}.bits") as bits:
        for column in read_block_columns(store, number):
            parts: list[NDArray[Any]] = []
            for reader, part, slot in (
                (ranks, scores, column.slot),
                (bits, mask, column.valid_slot),
            ):
                if slot >= 0:
                    reader.fill(part, slot * part.nbytes)
                    parts.append(part)
            if _checksum(parts) != column.checksum:
                return False
    return True


def finished_blocks(store: Store, n_rows: int) -> set[int]:
    """Numbers of the blocks that look whole: marked done, with files of the right size."""
    names = store.names()
    return {
        int(name[6:11])
        for name in names
        if name.startswith("block-") and name.endswith(".json") and _is_whole(store, name, n_rows)
    }


def _is_whole(store: Store, marker: str, n_rows: int) -> bool:
    columns = read_block_columns(store, int(marker[6:11]))
    masked = sum(column.valid_slot >= 0 for column in columns)
    stem = marker.removesuffix(".json")
    try:
        return store.size(f"{stem}.f32") == len(columns) * n_rows * 4 and (
            store.size(f"{stem}.bits") == masked * packed_length(n_rows)
        )
    except FileNotFoundError:
        return False


def read_block_columns(store: Store, number: int) -> list[StoredColumn]:
    """The columns of a block, in the order they were prepared."""
    return [
        StoredColumn(**{**entry, "statistics": ColumnStatistics(**entry["statistics"])})
        for entry in store.read_json(f"block-{number:05d}.json")
    ]


def tell_apart(store: Store, columns: Sequence[StoredColumn], n_rows: int) -> list[str]:
    """Task: fingerprints of some columns, changed where columns only have the same by chance.

    Columns of one fingerprint must come together: their ranks, and the rows they are valid on, are
    compared in full.
    """
    fingerprints: list[str] = []
    kinds: dict[str, list[StoredColumn]] = defaultdict(list)
    for column in columns:
        old = column.statistics.rank_hash
        known = kinds[old]
        number = next(
            (k for k, other in enumerate(known) if _rank_alike(store, column, other, n_rows)),
            len(known),
        )
        if number == len(known):
            known.append(column)
        fingerprints.append(f"{old}-{number}" if number else old)
    return fingerprints


def _rank_alike(store: Store, first: StoredColumn, second: StoredColumn, n_rows: int) -> bool:
    """Whether two columns hold the same ranks, or reversed ones, on the same rows."""
    (scores, mask), (others, other_mask) = (
        _read_column(store, column, n_rows) for column in (first, second)
    )
    if first.statistics.first_sign != second.statistics.first_sign:
        np.negative(others, out=others)
    return np.array_equal(scores, others) and np.array_equal(mask, other_mask)


def _read_column(
    store: Store, column: StoredColumn, n_rows: int
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Scores and packed mask of one column; an empty mask where none is missing."""
    name = f"block-{column.block:05d}"
    scores = np.empty(n_rows, dtype=np.float32)
    with store.reader(f"{name}.f32") as reader:
        reader.fill(scores, column.slot * scores.nbytes)
    mask = np.empty(packed_length(n_rows) if column.valid_slot >= 0 else 0, dtype=np.uint8)
    if mask.size:
        with store.reader(f"{name}.bits") as reader:
            reader.fill(mask, column.valid_slot * mask.nbytes)
    return scores, mask


def packed_length(n_rows: int) -> int:
    """Bytes of one packed mask."""
    return -(-n_rows // 8)
