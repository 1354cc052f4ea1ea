"""The input: Parquet files with one unified schema, read in column blocks.

Covers: finding files, unifying their schemas, roles of columns, the fingerprint, reading column
blocks as float64, drawing rows, copying columns into reduced tables.
Does not cover: ranks and statistics (see `dpipe.kernels.ranks`), or what happens to a column next.
See also: `dpipe.rankstore` (what is kept after the table was read once).

The types of one column in several files meet by the table of `dpipe.table.schema`, never by
guessing: a number stays a number, and what is a number in one file and text in another is named
in a note and left out of the analysis instead of being narrowed.
"""

from __future__ import annotations

from dpipe.table.copying import conflicting, copy_columns
from dpipe.table.draw import draw_rows
from dpipe.table.find import as_sources
from dpipe.table.read import Block, read_block
from dpipe.table.record import Table, TableFile, tell_notes
from dpipe.table.scan import open_table

__all__ = [
    "Block",
    "Table",
    "TableFile",
    "as_sources",
    "conflicting",
    "copy_columns",
    "draw_rows",
    "open_table",
    "read_block",
    "tell_notes",
]
