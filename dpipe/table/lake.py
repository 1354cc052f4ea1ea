"""Telling a folder of Parquet files from a lake table, whose log says which of its files count.

Covers: Delta Lake, Hudi, Iceberg and the file sink of Spark's streams.
Does not cover: reading them. Their files also hold rows that were deleted or replaced since, and
only the format's own library knows which; a snapshot that it writes is plain Parquet.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

from dpipe.errors import InputError

Entries = Callable[[str], Collection[str]]
"""The names of what lies in a folder; empty where it cannot be listed."""

# Every version of an Iceberg table is one file: 00003-0a1b2c3d-....metadata.json, or v3 in a
# Hadoop catalogue.
_ICEBERG_VERSION = re.compile(r"(v\d+|\d{5}-[0-9a-f-]+)(\.gz)?\.metadata\.json(\.gz)?")


@dataclass(frozen=True)
class LakeFormat:
    """A table format that keeps a log beside its Parquet files.

    Attributes
    ----------
    title
        What its users call it.
    snapshot
        Code that writes what the table holds now as plain Parquet; ``{folder}`` is the table.
    """

    title: str
    snapshot: str


_BY_LOG = {
    "_delta_log": LakeFormat(
        "Delta Lake", 'polars.read_delta("{folder}").write_parquet("snapshot.parquet")'
    ),
    ".hoodie": LakeFormat(
        "Hudi", 'spark.read.format("hudi").load("{folder}").write.parquet("snapshot")'
    ),
    "_spark_metadata": LakeFormat(
        "Spark streaming", 'spark.read.parquet("{folder}").write.parquet("snapshot")'
    ),
}
_ICEBERG = LakeFormat(
    "Iceberg", 'polars.scan_iceberg("METADATA.json").sink_parquet("snapshot.parquet")'
)


def lake_format(folder: str, entries: Entries) -> LakeFormat | None:
    """The format of the lake table that `folder` is; None where it is an ordinary folder.

    Examples
    --------
    >>> lake_format("t", lambda folder: ["_delta_log", "a.parquet"]).title
    'Delta Lake'
    >>> lake_format("t", lambda folder: ["metadata", "a.parquet"]) is None
    True
    """
    names = entries(folder)
    for log, kind in _BY_LOG.items():
        if log in names:
            return kind
    if "metadata" in names and any(map(_ICEBERG_VERSION.fullmatch, entries(f"{folder}/metadata"))):
        return _ICEBERG
    return None


def refuse_lakes(paths: Iterable[str], entries: Entries, address: Callable[[str], str]) -> None:
    """Refuse files that lie in a lake table, at whatever depth.

    Parameters
    ----------
    paths
        The files.
    entries
        Lists a folder.
    address
        A path as its user would write it.

    Raises
    ------
    InputError
        Naming the table and how to write what it holds now as plain Parquet.
    """
    ordinary: set[str] = set()
    for path in paths:
        folder = path.rpartition("/")[0]
        while folder and folder not in ordinary:
            kind = lake_format(folder, entries)
            if kind is not None:
                table = address(folder)
                code = kind.snapshot.format(folder=table)
                raise InputError(
                    f"{table} is a table in the {kind.title} format, whose files also hold rows "
                    f"that no longer count; write what it holds now, as by {code}, and give that."
                )
            ordinary.add(folder)
            folder = folder.rpartition("/")[0]
