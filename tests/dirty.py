"""The dirt that real tables hold: schemas that drift, odd columns, odd names, broken files.

Covers: small tables in memory and files on disk, with what a reader has to make of them.
Does not cover: reading them (see `test_table`). What is expected stands here as plain Python, made
without the code under test.
"""

from __future__ import annotations

import base64
import datetime
import decimal
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.implementations.memory import MemoryFileSystem
from packaging.version import Version
from pyarrow.parquet import encryption

from dpipe.model.records import Role
from dpipe.options import Options

ARROW = Version(pa.__version__)
NAN, INF = math.nan, math.inf


def write(path: Path, **columns: Any) -> Path:
    """Write columns as one file of small row groups, with page checksums."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, row_group_size=4, write_page_checksum=True)
    return path


@dataclass(frozen=True)
class Dirt:
    """Files of one table, and what must come out.

    ``others`` are the columns that are not analysed, with their roles; every other column is a
    feature. ``notes`` holds, for each note expected, words that must occur in it together.
    """

    name: str
    files: Mapping[str, pa.Table]
    others: Mapping[str, Role] = field(default_factory=dict)
    notes: Sequence[Sequence[str]] = ()
    options: Options = field(default_factory=Options)

    def write(self, folder: Path) -> Path:
        """Write the files into a new folder."""
        folder.mkdir()
        for name, table in self.files.items():
            pq.write_table(table, folder / name, row_group_size=3)
        return folder

    def names(self) -> list[str]:
        """Columns in order of first appearance in files sorted by name."""
        ordered = (name for file in sorted(self.files) for name in self.files[file].column_names)
        return list(dict.fromkeys(ordered))

    def features(self) -> list[str]:
        return [name for name in self.names() if name not in self.others]

    def cells(self, name: str) -> list[Any]:
        """The cells of a column as Python objects, files sorted by name."""
        cells: list[Any] = []
        for file in sorted(self.files):
            table = self.files[file]
            own = name in table.column_names
            cells += table.column(name).to_pylist() if own else [None] * table.num_rows
        return cells


def as_number(cell: Any) -> float:
    """What a cell means as a number; NaN for missing, infinite included."""
    if cell is None:
        return NAN
    try:
        number = float(cell.strip() if isinstance(cell, str) else cell)
    except ValueError:
        return NAN
    return number if math.isfinite(number) else NAN


def counts(cells: Sequence[Any]) -> tuple[int, int, int]:
    """Cells that are null (or text without a number), NaN, infinite."""
    null = nan = inf = 0
    for cell in cells:
        try:
            number = None if cell is None else float(cell)
        except ValueError:
            number = None
        null += number is None
        nan += number is not None and math.isnan(number)
        inf += number is not None and math.isinf(number)
    return null, nan, inf


def _one(name: str, column: pa.Array | Sequence[Any], **keywords: Any) -> Dirt:
    """One file with one column called x beside a plain one."""
    array = column if isinstance(column, pa.Array) else pa.array(column)
    plain = np.arange(len(array)) / 2
    return Dirt(name, {"a.parquet": pa.table({"plain": plain, "x": array})}, **keywords)


def _two(name: str, first: pa.Array, second: pa.Array, **keywords: Any) -> Dirt:
    """Two files whose column x differs."""
    files = {
        file: pa.table({"plain": np.arange(len(array)) / 4, "x": array})
        for file, array in (("a.parquet", first), ("b.parquet", second))
    }
    return Dirt(name, files, **keywords)


def _left_out(*names: str) -> dict[str, Role]:
    return dict.fromkeys(names, Role.NOT_NUMERIC)


def drifts() -> Iterator[Dirt]:
    """Tables whose files disagree about a column."""
    real = pa.array([1.5, None, 3.25])
    whole = pa.array([1, 2, None], pa.int64())
    widened = [("'x'", "a.parquet", "b.parquet", "read as numbers")]
    conflict = [("'x'", "a.parquet", "b.parquet", "not numeric")]
    yield _two("int then double", whole, real, notes=widened)
    yield _two("double then int", real, whole, notes=widened)
    yield _two("null then double", pa.nulls(2), real, notes=widened)
    yield _two("double then null", real, pa.nulls(2), notes=widened)
    yield _two("bool then double", pa.array([True, None, False]), real, notes=widened)
    yield _two("bool then int", pa.array([True, None, False]), whole, notes=widened)
    yield _two("float32 then double", pa.array([0.1, 0.2], pa.float32()), real, notes=widened)
    yield _two("half then int8", pa.array(np.float16([0.5, 2])), pa.array([7], pa.int8()))
    yield _two("int8 then uint64", pa.array([-1], pa.int8()), pa.array([2**64 - 1], pa.uint64()))
    digits = [decimal.Decimal("0.1"), None, decimal.Decimal("12345678901234.7")]
    yield _two("decimal then double", pa.array(digits), real, notes=widened)
    yield _two(
        "decimals of two scales tie",
        pa.array(digits, pa.decimal128(30, 7)),
        pa.array(digits, pa.decimal256(60, 20)),
    )
    yield _two("dictionary then plain", real.dictionary_encode(), real)
    text = pa.array(["a", "b"])
    yield _two("double then text", real, text, others=_left_out("x"), notes=conflict)
    yield _two("text then double", text, real, others=_left_out("x"), notes=conflict)
    yield _two("null then text", pa.nulls(2), text, others=_left_out("x"), notes=conflict)
    dates = pa.array([datetime.date(2020, 1, 1)])
    yield _two("double then date", real, dates, others=_left_out("x"), notes=conflict)
    yield _two("date then text", dates, text, others=_left_out("x"), notes=conflict)
    yield _two(
        "categories then text",
        text.dictionary_encode(),
        text,
        others=_left_out("x"),
        notes=conflict,
    )
    yield Dirt(
        "columns come and go",
        {
            "a.parquet": pa.table({"first": [1.0, 2.0], "both": [1, 2]}),
            "b.parquet": pa.table({"both": [3, 4], "later": [True, None]}),
            "c.parquet": pa.table({"later": [False], "both": [9]}),
        },
        notes=[
            ("'first'", "not in 2 files", "b.parquet", "c.parquet"),
            ("'later'", "not in 1 file", "a.parquet"),
        ],
    )
    yield Dirt(
        "columns swap places",
        {
            "a.parquet": pa.table({"x": [1.0], "y": [2.0], "z": [3.0]}),
            "b.parquet": pa.table({"z": [6.0], "y": [5.0], "x": [4.0]}),
        },
    )
    yield Dirt("names differ by case", {"a.parquet": pa.table({"mw": [1.0], "MW": [2.0]})})
    yield Dirt(
        "a file without rows says nothing about types",
        {
            "a.parquet": pa.table({"x": pa.array([], pa.string()), "w": pa.array([], pa.int8())}),
            "b.parquet": pa.table({"x": [1.5, 2.5]}),
        },
        notes=[("1 file without rows", "a.parquet")],
    )
    yield Dirt(
        "nested columns take several leaves",
        {
            "a.parquet": pa.table(
                {
                    "s": pa.array([{"x": 1, "y": [1, 2]}, None]),
                    "x": [1.0, 2.0],
                    "m": pa.array([[("k", 1)], []], pa.map_(pa.string(), pa.int8())),
                    "y": [3, 4],
                }
            )
        },
        others=_left_out("s", "m"),
    )


def odd_columns() -> Iterator[Dirt]:
    """Single columns as descriptors really have them."""
    yield _one("one row", [1.5])
    yield _one("all null", pa.array([None, None], pa.float64()))
    yield _one("null type", pa.nulls(3))
    yield _one("all infinite", [INF, -INF, INF])
    yield _one("null, NaN and infinite", [1.0, None, NAN, INF, -INF, -0.0, 5e-324, 1.7e308])
    yield _one("constant", [7.0] * 5)
    yield _one("huge descriptor", [8e162, 1.0, None])
    yield _one("bool with nulls", [True, None, False, True] * 5)
    yield _one("int8 extremes", pa.array([-128, 127, None], pa.int8()))
    yield _one("uint64 extremes", pa.array([2**64 - 1, 0, None, 2**53 + 1], pa.uint64()))
    yield _one("int64 extremes", pa.array([-(2**63), 2**63 - 1, None, 2**53], pa.int64()))
    yield _one("half", pa.array(np.float16([0.5, np.nan, np.inf, 65504])))
    yield _one("float with nulls", pa.array([0.1, None, INF], pa.float32()))
    yield _one("decimal256", pa.array([decimal.Decimal(10**40), None], pa.decimal256(60, 2)))
    if hasattr(pa, "decimal32"):  # pyarrow 18 has none
        yield _one("decimal32", pa.array([decimal.Decimal("1.25"), None], pa.decimal32(5, 2)))
    flags = pa.array([2, 0, None, -1], pa.int8())
    yield _one("bool8 is bool", pa.ExtensionArray.from_storage(pa.bool8(), flags), notes=())
    yield _one("numbers behind a dictionary", pa.array([1.5, None, 1.5]).dictionary_encode())
    left_out = {"others": _left_out("x")}
    yield _one("text", ["a", None], **left_out)
    yield _one("one category", pa.array(["a", "a"]).dictionary_encode(), **left_out)
    yield _one("large text", pa.array(["a"], pa.large_string()), **left_out)
    if ARROW.major >= 21:  # older ones cannot write it
        yield _one("text view", pa.array(["a"], pa.string_view()), **left_out)
    yield _one("binary", pa.array([b"1"]), **left_out)
    yield _one("timestamp", pa.array([datetime.datetime(2020, 1, 1)]), **left_out)
    yield _one("date", pa.array([datetime.date(2020, 1, 1)]), **left_out)
    yield _one("time", pa.array([datetime.time(1)]), **left_out)
    yield _one("duration", pa.array([datetime.timedelta(1)]), **left_out)
    yield _one("list", pa.array([[1.0], None]), **left_out)
    yield _one("struct", pa.array([{"plain": 1.0}]), **left_out)
    yield _one(
        "text that looks like numbers",
        ["1.5", " 2 ", None],
        notes=[("'x'", "--coerce-strings")],
        **left_out,
    )


def coerced_columns() -> Iterator[Dirt]:
    """Text read as numbers on demand."""
    options = Options(coerce_strings=True)
    read = [("'x'", "text read as numbers")]
    mordred = ["1.5"] * 39 + ["max() arg is an empty sequence (MAXsLi)", None, "", "  "]
    yield _one("error texts", mordred, options=options, notes=[(*read[0], "1 cell ")])
    yield _one(
        "spaces, signs, nan, inf",
        [" 1", "+2.", "-.5e1", "NaN", "inf", "1e400"],
        options=options,
        notes=read,
    )
    yield _one(
        "numbers as categories",
        pa.array(["1", "2", None, "1"]).dictionary_encode(),
        options=options,
        notes=read,
    )
    if ARROW.major >= 21:
        yield _one(
            "text view of numbers",
            pa.array(["1", None, " 3"], pa.string_view()),
            options=options,
            notes=read,
        )
    yield _two(
        "numbers, then text of numbers",
        pa.array([1.5]),
        pa.array(["2.5", None]),
        options=options,
        notes=[("'x'", "read as numbers"), *read],
    )
    yield _two(
        "a bad first file is outvoted",
        pa.array(["oops", "1"]),
        pa.array(["2"] * 40),
        options=options,
        notes=read,
    )
    for word in ("NA", "n/a", "#N/A", "<NA>", "NULL", "None", " - ", "?", "."):
        yield _one(
            f"{word!r} stands for a missing cell",
            ["1.5", word, "2", word],
            options=options,
            notes=[(*read[0], "0 cells ")],
        )
    left_out = {"others": _left_out("x"), "options": options}
    yield _one(
        "too little of it is numbers",
        ["1", "2", "NA", "b", "b", "c"],
        notes=[("'x'", "60%", "'b'", "at most 5%")],
        **left_out,
    )
    without = {"notes": [("'x'", "text without numbers")], **left_out}
    yield _one("decimal commas are no numbers", ["1,5", "2,5"], **without)
    yield _one("underscores are no numbers", ["1_000", "2_000"], **without)
    yield _one("no text at all", pa.array([None, None], pa.string()), **left_out)
    yield _one("blank text", ["", " "], **left_out)
    yield _two(
        "text, then date", pa.array(["1"]), pa.array([datetime.date(2020, 1, 1)]), **left_out
    )


ODD_NAMES = (
    "",
    " ",
    "x.1",
    "x",
    "a.b.c",
    "schema",
    "element",
    "na\u00efve",
    "nai\u0308ve",
    "😀",
    "<img src=x onerror=alert(1)>",
    "[bold]",
    "=cmd()",
    "a,b",
    "quote\"s'",
    "new\nline",
    "\x1b[31mred",
    "n" * 5000,
    "../../etc/passwd",
    "%20",
)


def odd_names() -> Dirt:
    """Column names that other tools stumble over."""
    columns = {name: [float(i), i + 0.5] for i, name in enumerate(ODD_NAMES)}
    return Dirt("odd names", {"a.parquet": pa.table(columns)})


ODD_PATHS = (
    "with space.parquet",
    "br[ack]et.parquet",
    "ha#sh.parquet",
    "per%20cent.parquet",
    "st*r.parquet",
    "what?.parquet",
    "ümlaut😀.parquet",
    "plus+&=.parquet",
    "semi;colon:.parquet",
    "UPPER.PARQUET",
    "short.parq",
    "shorter.pq",
)


@contextmanager
def memory_files() -> Iterator[MemoryFileSystem]:
    """The file system behind memory:// URLs, empty before and after."""
    system = fsspec.filesystem("memory")

    def clear() -> None:
        system.store.clear()
        system.pseudo_dirs[:] = [""]

    clear()
    try:
        yield system
    finally:
        clear()


def broken_files(folder: Path) -> dict[Path, str]:
    """Files that are no Parquet, or no longer; with words of the reason."""
    folder.mkdir(exist_ok=True)
    sound = folder / "sound"
    pq.write_table(pa.table({"x": np.arange(1000.0)}), sound)
    whole = sound.read_bytes()
    sound.unlink()
    contents = {
        "zero.parquet": (b"", "is empty (0 bytes)"),
        "text.parquet": (b"id,x\n1,2\n" * 10, "is not a Parquet file"),
        "tiny.parquet": (b"PAR1", "is truncated"),
        "half.parquet": (whole[: len(whole) // 2], "is truncated"),
        "noend.parquet": (whole[:-1], "is truncated"),
        "length.parquet": (whole[:-8] + b"\xff\xff\xff\x7fPAR1", "footer is longer than the file"),
        "footer.parquet": (whole[:-40] + b"\xff" * 32 + whole[-8:], "footer cannot be read"),
        "encrypted.parquet": (whole[:-4] + b"PARE", "is encrypted"),
    }
    for name, (content, _) in contents.items():
        (folder / name).write_bytes(content)
    (folder / "link.parquet").symlink_to("nowhere")
    reasons = {folder / name: reason for name, (_, reason) in contents.items()}
    return {**reasons, folder / "link.parquet": "does not exist"}


def damage_page(path: Path, column: int, group: int = 0) -> None:
    """Flip a bit in the last data page of a column."""
    chunk = pq.ParquetFile(path).metadata.row_group(group).column(column)
    start = chunk.dictionary_page_offset or chunk.data_page_offset
    content = bytearray(path.read_bytes())
    content[start + chunk.total_compressed_size - 1] ^= 0x10
    path.write_bytes(bytes(content))


class _KeysInTheOpen(encryption.KmsClient):  # type: ignore[misc]
    """Wraps keys by writing them down: enough to have a file that is encrypted."""

    def wrap_key(self, key: bytes, master: str) -> bytes:
        return base64.b64encode(key)

    def unwrap_key(self, wrapped: bytes, master: str) -> bytes:
        return base64.b64decode(wrapped)


def write_encrypted(path: Path, table: pa.Table, column: str, *, plain_footer: bool) -> None:
    """Write a file with one encrypted column, and its footer encrypted or not."""
    factory = encryption.CryptoFactory(lambda connection: _KeysInTheOpen())
    properties = factory.file_encryption_properties(
        encryption.KmsConnectionConfig(),
        encryption.EncryptionConfiguration(
            footer_key="footer", column_keys={"one": [column]}, plaintext_footer=plain_footer
        ),
    )
    with pq.ParquetWriter(path, table.schema, encryption_properties=properties) as writer:
        writer.write_table(table)
