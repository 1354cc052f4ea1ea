"""Pieces of the rank store that a worker keeps on its device between tasks.

Covers: keeping as many as fit, the longest unused leave first.
Does not cover: what a piece is (`dpipe.engine.tiles`) or how many bytes there are for it
(`dpipe.engine.plan`).

A tile needs the pieces of two column blocks, and every block is part of many tiles: reading it from
disk and copying it over once per task costs more than the products it is needed for.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable

from dpipe.device.arrays import Array

Piece = tuple[Array, Array | None]
"""Scores and validity, the latter None where every cell is valid."""


class PieceCache:
    """Pieces by key, within bounds that each `put` names; safe among threads."""

    def __init__(self) -> None:
        self._pieces: OrderedDict[Hashable, Piece] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._pieces)

    def get(self, key: Hashable) -> Piece | None:
        """A piece that is there, None if it is not."""
        with self._lock:
            if key in self._pieces:
                self._pieces.move_to_end(key)
            return self._pieces.get(key)

    def put(self, key: Hashable, piece: Piece, room: int) -> None:
        """Keep a piece if `room` bytes hold it, together with as many others as fit."""
        size = _size(piece)
        with self._lock:
            if key in self._pieces or size > room:
                return
            while self._bytes + size > room:
                self._bytes -= _size(self._pieces.popitem(last=False)[1])
            self._pieces[key] = piece
            self._bytes += size

    def clear(self) -> None:
        """Let go of all."""
        with self._lock:
            self._pieces.clear()
            self._bytes = 0


def _size(piece: Piece) -> int:
    return sum(int(array.nbytes) for array in piece if array is not None)


CACHE = PieceCache()
"""What this process keeps."""
