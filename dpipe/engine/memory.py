"""Bytes a task needs, from shapes alone.

Covers: arithmetic on rows, columns and functions.
Does not cover: what is chosen from it (`dpipe.engine.tiling`) or what a process really uses (the
ledger).

Each figure is an upper bound of one task's own arrays, in host memory unless its name speaks of a
device; `WORKER_BASE` is what a worker holds before its first task (interpreter, Dask, NumPy,
Arrow), measured as about 170 MiB.
"""

from __future__ import annotations

WORKER_BASE = 256 * 2**20
USABLE_SHARE = 0.75
"""Of a worker's limit; Dask pauses a worker at 0.8 of it."""

RANK_TEMPORARIES = 48
"""Most bytes a row that ranking one column takes beside its values, with some room."""


def ranking_bytes(n_rows: int, n_columns: int, row_group: int) -> int:
    """Peak of one ranking task: a column block and its masks, one column's temporaries.

    Parameters
    ----------
    n_rows
        Rows of the table.
    n_columns
        Columns of the block.
    row_group
        Rows of the largest row group, which is decoded beside the block.

    Examples
    --------
    >>> ranking_bytes(n_rows=1000, n_columns=10, row_group=100)
    158000
    """
    kept = n_rows * n_columns * (8 + 1)  # the scores take the place of the values
    return kept + n_rows * RANK_TEMPORARIES + row_group * n_columns * 20


def _item_bytes(functions: int) -> int:
    """Of a value of a function: one alone is float64, several are float32."""
    return 8 if functions == 1 else 4


def piece_bytes(block: int, functions: int, rows: int) -> int:
    """One column block expanded on one row chunk, beside the ranks and mask it is made from."""
    item = _item_bytes(functions)
    return block * rows * (functions * item + 4 + 1 + item)


_WHITENED = 16 * 2**20  # functions of a few columns and rows, which are whitened at a time


def moments_bytes(block: int, functions: int) -> int:
    """Float64 moments of one tile of incomplete columns."""
    width = block * functions
    return 8 * (width * width + 2 * width * block + 3 * block * block)


def tile_bytes(block: int, functions: int, rows: int) -> int:
    """Peak of one moments task: two pieces, the running moments and one chunk's product.

    Examples
    --------
    >>> tile_bytes(block=100, functions=12, rows=4096) < 150e6
    True
    """
    product = (block * functions) ** 2 * _item_bytes(functions)
    pieces = 2 * piece_bytes(block, functions, rows)
    whitened = _WHITENED if functions > 1 else 0
    return pieces + whitened + moments_bytes(block, functions) + product


def prediction_bytes(n_columns: int, also: int = 0) -> int:
    """Peak of pass 3 on the client: the Gram matrix and what the sweep derives from it.

    Pass 5 holds `also` so many more matrices of the same columns.

    Examples
    --------
    >>> prediction_bytes(1000) / 8e6
    6.0
    """
    return (6 + also) * 8 * n_columns**2


def merge_bytes(block: int, functions: int, fan_in: int) -> int:
    """Peak of adding `fan_in` partial moments, held by the worker, into the first."""
    return (fan_in + 1) * moments_bytes(block, functions)


# A device

DEVICE_SHARE = 0.5
"""Of what a worker can have of its card: what its tasks may plan with."""
KEPT_SHARE = 0.25
"""Of the same: pieces of the rank store that stay there between tasks."""

_DEVICE_BASE = 256 * 2**20  # workspaces of cuBLAS and cuSOLVER, kernels
_DEVICE_RANK_BYTES = 120  # a row of one column: values, ranks, and an argsort's keys and buffers


def device_ranking_bytes(n_rows: int) -> int:
    """Peak of ranking one column on a device.

    Examples
    --------
    >>> device_ranking_bytes(10**7) < 2 * 2**30
    True
    """
    return _DEVICE_BASE + n_rows * _DEVICE_RANK_BYTES


def device_tile_bytes(block: int, functions: int, rows: int) -> int:
    """Peak of one moments task on a device: whole chunks are whitened at once there.

    Examples
    --------
    >>> device_tile_bytes(block=1024, functions=12, rows=8192) < 6 * 2**30
    True
    """
    product = (block * functions) ** 2 * _item_bytes(functions)
    whitened = block * rows * (functions * 20 + 40) if functions > 1 else 0
    pieces = 2 * piece_bytes(block, functions, rows)
    return _DEVICE_BASE + pieces + whitened + moments_bytes(block, functions) + 2 * product
