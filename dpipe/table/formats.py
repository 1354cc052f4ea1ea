"""Which format a file has, by the end of its name.

Covers: the endings of Parquet, CSV, TSV and Feather (Arrow IPC), and of what is compressed.
Does not cover: reading a format (see `dpipe.table.foreign`).

The end of a name decides, never a look into the file: a folder of a million files is not opened to
find out what it holds. A name of no known end is taken for Parquet, whose reader says so when it is
none.
"""

from __future__ import annotations

from enum import StrEnum

from dpipe.common.credentials import is_url


class Format(StrEnum):
    """A format that dpipe reads."""

    PARQUET = "Parquet"
    CSV = "CSV"
    TSV = "TSV"
    ARROW = "Feather"


PARQUET_ENDINGS = (".parquet", ".parq", ".pq")
_ENDINGS = {
    Format.PARQUET: PARQUET_ENDINGS,
    Format.CSV: (".csv",),
    Format.TSV: (".tsv", ".tab"),
    Format.ARROW: (".feather", ".arrow", ".ipc"),
}
_CODECS = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd"}
"""Text may be compressed; Parquet and Feather compress their own columns."""

_BY_ENDING = {
    ending + packed: (form, codec)
    for form, endings in _ENDINGS.items()
    for packed, codec in [
        ("", None),
        *(_CODECS.items() if form in (Format.CSV, Format.TSV) else ()),
    ]
    for ending in endings
}
ENDINGS = tuple(_BY_ENDING)
"""How the name of a file ends that a search of folders finds."""


def ending_of(path: str) -> str | None:
    """The known ending of a path or URL, in lower case; None where it has none.

    Examples
    --------
    >>> ending_of("a/b.CSV.gz"), ending_of("https://host/x.tsv?raw=1"), ending_of("notes.txt")
    ('.csv.gz', '.tsv', None)
    """
    name = path.rsplit("/", 1)[-1].lower()
    if is_url(path):
        name = name.partition("?")[0]
    return next((ending for ending in ENDINGS if name.endswith(ending)), None)


def format_of(path: str) -> Format:
    """The format of a file; Parquet where its name does not say.

    Examples
    --------
    >>> format_of("x.csv.gz").value, format_of("part-0").value
    ('CSV', 'Parquet')
    """
    ending = ending_of(path)
    return _BY_ENDING[ending][0] if ending else Format.PARQUET


def codec_of(path: str) -> str | None:
    """What a file of text is compressed by, as Arrow calls it; None where it is not.

    Examples
    --------
    >>> codec_of("x.csv.gz"), codec_of("x.csv")
    ('gzip', None)
    """
    ending = ending_of(path)
    return _BY_ENDING[ending][1] if ending else None
