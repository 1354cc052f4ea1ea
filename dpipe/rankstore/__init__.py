"""The rank store: the prepared table on disk, addressable by column block and row chunk.

Covers: writing prepared column blocks, the catalogue of the columns a pass works on, reading
(columns, rows) pieces, and the small arrays tasks leave for each other.
Does not cover: ranking (`dpipe.kernels.ranks`), which columns are kept (`dpipe.passes`).

A folder, local or any fsspec URL:

    block-00003.f32    float32 (columns, rows) centred ranks u - 1/2, 0 where missing
    block-00003.bits   packed validity, a row per incomplete column of the block
    block-00003.json   statistics and checksum of every column of the block; written last, it marks
                       it done

A column is contiguous, so a row chunk of it is one read, and a block is read as it is computed on.
Files appear under their name only when complete (temporary name, then rename): a worker that dies
leaves nothing that looks finished, and a task that runs twice writes the same bytes. Nobody waits
until the blocks are on the disk (``docs/performance.md`` has the cost): whether they survived a
crash of the machine is found out by their checksums when a run goes on.
"""

from dpipe.rankstore.blocks import (
    FORMAT,
    StoredColumn,
    finished_blocks,
    is_intact,
    packed_length,
    pattern_of,
    read_block_columns,
    tell_apart,
    write_block,
)
from dpipe.rankstore.catalogue import Catalogue, build_catalogue, load_catalogue, read_piece
from dpipe.rankstore.store import Store, bytes_of, temporary_store

__all__ = [
    "FORMAT",
    "Catalogue",
    "Store",
    "StoredColumn",
    "build_catalogue",
    "bytes_of",
    "finished_blocks",
    "is_intact",
    "load_catalogue",
    "packed_length",
    "pattern_of",
    "read_block_columns",
    "read_piece",
    "tell_apart",
    "temporary_store",
    "write_block",
]
