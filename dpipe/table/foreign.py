"""Files of other formats as Parquet files, which is what a table is made of.

Covers: CSV, TSV and Feather (Arrow IPC), each file made into one Parquet file of a temporary
folder, in memory that does not grow with its rows; what a user should know of how it was read.
Does not cover: data in memory (see `dpipe.table.inputs`), the formats' names
(`dpipe.table.formats`).

What a text file holds is known when all of it was read. It is written on the first way through, by
what the first rows hold; where later rows do not fit that, it is read a second time.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from dpipe.common.credentials import is_url, without_secrets
from dpipe.common.words import columns_phrase, counted, listed, quoted, sized
from dpipe.errors import InputError
from dpipe.model.events import Emit, Note
from dpipe.table import frames
from dpipe.table.cells import CellColumn, Holds, Survey
from dpipe.table.delimited import Delimited, Header
from dpipe.table.files import (
    STORAGE_ERRORS,
    BadFile,
    StorageOptions,
    fetch,
    modified,
    of_unknown_type,
    reason_of,
)
from dpipe.table.formats import Format, codec_of, format_of
from dpipe.table.record import Origin
from dpipe.table.scratch import Scratch, part_of

LARGE = 50 * 10**6
"""Bytes of text that take a second or more to read."""

_TRIES = 3


@dataclass(frozen=True)
class Made:
    """The Parquet file that was made of a file of another format.

    Attributes
    ----------
    path
        Where it lies.
    origin
        The file of the user.
    said
        What its user should know, in the words of a sentence about it.
    second_header
        Of that the one which tells of more rows of header below the first; empty without.
    """

    path: str
    origin: Origin
    said: tuple[str, ...]
    second_header: str = ""


def make_parquet(
    paths: Iterable[str],
    scratch: Scratch,
    is_analysed: Callable[[str], bool],
    storage_options: StorageOptions = None,
    emit: Emit | None = None,
) -> dict[str, Made | BadFile]:
    """A Parquet file for each file of another format, or what is wrong with that file.

    One file at a time, because all processors work at each.

    Parameters
    ----------
    paths
        Files of any format; nothing is made of Parquet.
    scratch
        Where to write.
    is_analysed
        Whether the numbers of a column are needed; the cells of others may look like anything.
    storage_options
        Passed to fsspec.
    emit
        Told beforehand of what takes a while.
    """
    foreign = [path for path in paths if format_of(path) is not Format.PARQUET]
    if emit is not None:
        _announce(foreign, emit)
    made: dict[str, Made | BadFile] = {}
    for path in foreign:
        target = part_of(scratch.path, len(made))
        try:
            made[path] = _make(path, target, is_analysed, storage_options)
        except BadFile as error:
            made[path] = error
    return made


def _announce(paths: Sequence[str], emit: Emit) -> None:
    sizes = []
    for path in paths:
        with suppress(OSError):  # which whoever reads the file tells better
            sizes.append(0 if is_url(path) else os.path.getsize(path))
    if sum(sizes) >= LARGE:
        emit(
            Note(
                f"{counted(len(paths), 'file')} of {sized(sum(sizes))} must be made into Parquet "
                "before anything else, by this and by every other command that reads them.",
                "notice",
            )
        )


def notes_of(made: Iterable[Made]) -> Iterator[str]:
    """One sentence for each thing that was said of some files, in the order of the files."""
    said: dict[str, list[str]] = {}
    for one in made:
        for text in one.said:
            said.setdefault(text, []).append(one.origin.path)
    for text, paths in said.items():
        where = (
            paths[0] if len(paths) == 1 else f"{counted(len(paths), 'file')} ({listed(paths, 2)})"
        )
        yield f"{where}: {text}."


def _make(
    path: str, target: str, is_analysed: Callable[[str], bool], storage_options: StorageOptions
) -> Made:
    try:
        before = modified(path, storage_options)
        with _local(path, target, storage_options) as local:
            digest = _digest(local)
            form = format_of(path)
            if form is Format.ARROW:
                _write_arrow(path, local, target)
                said: tuple[str, ...] = ()
                second = ""
            else:
                text = Delimited(path, local, form, codec_of(path))
                survey = _write_text(text, target, is_analysed)
                second = _second_header(survey.columns)
                said = tuple(_said(text.header, survey))
        if modified(path, storage_options) != before:
            raise _changed(path)
    except STORAGE_ERRORS as error:
        raise BadFile(path, without_secrets(reason_of(error), storage_options)) from error
    return Made(target, Origin(path, *before, digest), said, second)


def _changed(path: str) -> BadFile:
    return BadFile(path, "changed while it was read; run again on what it is now")


@contextmanager
def _local(path: str, target: str, storage_options: StorageOptions) -> Iterator[str]:
    """The file on this machine: text is read more than once, and not every server can seek."""
    if not is_url(path):
        yield os.path.realpath(path)
        return
    copy = f"{target}.copy"
    try:
        fetch(path, copy, storage_options)
        yield copy
    finally:
        if os.path.exists(copy):
            os.remove(copy)


def _digest(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# Text


def _write_text(text: Delimited, target: str, is_analysed: Callable[[str], bool]) -> Survey:
    names = text.header.names
    with ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="dpipe-cells") as pool:
        planned = _of_first_rows(text, pool)
        for _ in range(_TRIES):
            survey = Survey(names)
            schema = pa.schema([(n, h.type) for n, h in zip(names, planned, strict=True)])
            frames.write_batches(target, schema, _fitting(text, survey, planned, schema, pool))
            if survey.holds == planned:
                break
            planned = survey.holds
        else:
            raise _changed(text.shown)
    _refuse_commas(text, [c for c in survey.columns if c.commas and is_analysed(c.name)])
    return survey


def _of_first_rows(text: Delimited, pool: ThreadPoolExecutor) -> tuple[Holds, ...]:
    """What the columns hold, going by the first rows."""
    survey = Survey(text.header.names)
    for batch in text.batches():
        survey.add(batch, survey.holds, pool)
        break
    return survey.holds


def _fitting(
    text: Delimited,
    survey: Survey,
    planned: Sequence[Holds],
    schema: pa.Schema,
    pool: ThreadPoolExecutor,
) -> Iterator[pa.RecordBatch]:
    """The rows as they were planned, as far as they fit; the survey goes on to the end."""
    for batch in text.batches():
        arrays = survey.add(batch, planned, pool)
        if survey.fits(planned):
            yield pa.record_batch(arrays, schema=schema)


def _refuse_commas(text: Delimited, columns: Sequence[CellColumn]) -> None:
    for column in columns[:1]:
        raise BadFile(
            text.shown,
            f"has numbers with commas or with signs between thousands in column {column.name!r} "
            f"({column.other}); write them as 1234.5, or name the column in --exclude",
        )


def _said(header: Header, survey: Survey) -> Iterator[str]:
    kinds = [
        (counted(sum(h in which for h in survey.holds), "column"), what)
        for which, what in _WORDS.items()
        if any(h in which for h in survey.holds)
    ]
    told = ", ".join(f"{count} {what}" for count, what in kinds)
    yield f"read as text parted by {header.parted_by}: {told}"
    if header.like_numbers:
        yield f"most names in its header are numbers ({listed(header.names, 2)}): is it a header?"
    if second := _second_header(survey.columns):
        yield second
    nearly = [each for each in survey.columns if each.nearly_numbers and not each.headings]
    if nearly:
        names = [column.name for column in nearly]
        yield f"{columns_phrase(names)}: text for a few cells like {nearly[0].other}"
    rounded = [column.name for column in survey.columns if column.rounded]
    if rounded:
        yield (
            f"{columns_phrase(rounded)}: whole numbers beyond 2^53 are rounded to float64, for "
            "other cells of the column are fractions, or they do not fit 64 bits"
        )


def _second_header(columns: Sequence[CellColumn]) -> str:
    """The words on rows of units or types between the header and the values; "" without any."""
    under = [column for column in columns if column.headings]
    if not under:
        return ""
    last = 1 + max(column.headings for column in under)
    names, cell = columns_phrase([column.name for column in under]), quoted(under[0].heading)
    if last == 2:
        return (
            f"row 2 ({cell}) alone makes text of {names}; remove it if it is a second header, as "
            "of units or types"
        )
    return (
        f"rows 2 to {last} ({cell}) alone make text of {names}; remove them if they are more of "
        "the header, as of units or types"
    )


_WORDS = {
    frozenset({Holds.WHOLE, Holds.LARGE, Holds.REAL}): "of numbers",
    frozenset({Holds.FLAGS}): "of true and false",
    frozenset({Holds.TEXT}): "of text",
    frozenset({Holds.NOTHING}): "without a value",
}


# Feather


def _write_arrow(path: str, local: str, target: str) -> None:
    with pa.OSFile(os.fsencode(local), "rb") as source:
        magic = source.read(6)
        source.seek(0)
        if magic[:4] == b"FEA1":
            raise BadFile(
                path, "is a Feather file of version 1; write it again, as by pandas' to_feather"
            )
        is_file = magic == b"ARROW1"
        unread: list[BadFile] = []
        if not magic:
            raise BadFile(path, "is empty (0 bytes)")
        try:
            reader = pa.ipc.open_file(source) if is_file else pa.ipc.open_stream(source)
        except NotImplementedError as error:
            raise of_unknown_type(path, error) from error
        except STORAGE_ERRORS as error:
            raise BadFile(path, "is not a Feather or Arrow IPC file, or is truncated") from error
        try:
            batches = _batches(path, reader, unread)
            frames.write_stream(pa.RecordBatchReader.from_batches(reader.schema, batches), target)
        except InputError as error:
            if unread:
                raise unread[0] from error
            raise BadFile(path, f"cannot be used: {str(error).rstrip('.')}") from error


def _batches(path: str, reader: Any, unread: list[BadFile]) -> Iterator[pa.RecordBatch]:
    """The batches of a file or of a stream, one at a time.

    What is wrong with one is left in `unread`: of an error, Arrow hands on the text alone.
    """
    try:
        if isinstance(reader, pa.RecordBatchReader):
            yield from reader
        else:
            yield from map(reader.get_batch, range(reader.num_record_batches))
    except STORAGE_ERRORS as error:
        unread.append(BadFile(path, reason_of(error)))
        raise unread[0] from error
