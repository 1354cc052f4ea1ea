"""Tables in CSV, TSV and Feather: what is read, what is told, what is refused, what follows.

Covers: types by the rule, exact numbers, delimiters, compression, URLs, bad files one by one, a run
on text beside the same run on Parquet, resume and verification by the user's file.
Does not cover: which files a source means (see `test_table_find`), data in memory
(`test_inputs`).
"""

from __future__ import annotations

import bz2
import errno
import functools
import gzip
import http.server
import itertools
import json
import math
import os
import re
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.feather
import pyarrow.parquet
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from tables import mixed_table

import dpipe
from dpipe.cli import main as command_line
from dpipe.errors import InputError, ResourceError
from dpipe.model.events import PassDone
from dpipe.options import Options
from dpipe.pipeline import plan_run
from dpipe.table import Table, copy_columns, delimited, files, foreign, open_table, read_block
from dpipe.table.cells import CellColumn, Holds
from dpipe.table.convert import MISSING_WORDS, parse_number
from dpipe.verify import verify


def write(folder: Path, content: str | bytes, name: str = "x.csv") -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def opened(source: Any, **options: Any) -> Table:
    return open_table([source], options=Options(**options))


def types(table: Table) -> list[str]:
    return [column.dtype for column in table.columns]


def values(table: Table) -> list[list[float]]:
    return read_block(table, table.features).values.tolist()


# What is read


def test_a_column_is_numeric_where_every_cell_of_the_file_is_a_number(tmp_path: Path) -> None:
    table = opened(write(tmp_path, "name,x,n,flag,none\na,1.5,3,true,\nb,-2e3,-4,FALSE,\n"))
    assert types(table) == ["string", "double", "int64", "bool", "null"]
    assert table.features == ("x", "n", "flag", "none")
    assert values(table)[:3] == [[1.5, -2000.0], [3, -4], [1, 0]]


@pytest.mark.parametrize("late", ["1.5", "word", "9223372036854775808", "true", "-7"])
def test_the_end_of_a_file_counts_as_much_as_its_beginning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, late: str
) -> None:
    monkeypatch.setattr(delimited, "_BLOCKS", (4096, 4096))
    rows = ["1,0.5"] * 3000 + [f"{late},2"]
    small = opened(write(tmp_path, "x,y\n" + "\n".join(rows) + "\n"))
    monkeypatch.undo()
    whole = opened(write(tmp_path, "x,y\n" + "\n".join(rows) + "\n"))
    assert types(small) == types(whole)
    expected = {"1.5": "double", "-7": "int64", "9223372036854775808": "uint64"}
    assert small.columns[0].dtype == expected.get(late, "string")
    assert small.n_rows == 3001
    assert len(small.files[0].row_groups) == 1  # small batches do not become small row groups


@pytest.mark.parametrize("word", sorted(MISSING_WORDS))
def test_words_for_missing_are_those_of_text_that_is_coerced(tmp_path: Path, word: str) -> None:
    content = f'x,n,s\n{word.upper()},1,{word}\n"{word}",2,b\n0.5, {word} ,c\n'
    table = opened(write(tmp_path, content))
    assert types(table) == ["double", "int64", "string"]
    block = read_block(table, ["x", "n"])
    assert block.n_null.tolist() == [2, 1]
    text = pa.parquet.read_table(table.files[0].path)["s"].to_pylist()
    assert text == [word or None, "b", "c"]  # a word in a column of text is text


def test_nan_and_infinite_cells_are_counted_apart_wherever_they_stand(tmp_path: Path) -> None:
    table = opened(write(tmp_path, "x,n\nnan,NaN\ninf,1\n1.5,2\n"))
    block = read_block(table, ["x", "n"])
    assert (block.n_nan.tolist(), block.n_inf.tolist()) == ([1, 0], [1, 0])
    assert types(table) == ["double", "int64"]


LARGE = [2**53 + 1, 2**63 - 1, 2**64 - 1]


@pytest.mark.parametrize("largest", LARGE)
def test_whole_numbers_stay_exact(tmp_path: Path, largest: int) -> None:
    table = opened(write(tmp_path, f"x\n{largest}\n{largest - 1}\nNA\n"))
    found, valid = read_block(table, ["x"]).column(0)
    assert found[:2].tolist() == [largest, largest - 1]
    assert valid is None or valid.tolist() == [True, True, False]
    assert not any("rounded" in note for note in table.notes)


ROUNDED = [
    ["9007199254740993", "0.5"],
    ["0.5", "9007199254740993"],
    ["18446744073709551616", "1"],
    ["-1", "18446744073709551615"],
]


@pytest.mark.parametrize("cells", ROUNDED)
def test_whole_numbers_that_must_be_rounded_are_told(tmp_path: Path, cells: list[str]) -> None:
    table = opened(write(tmp_path, "x\n" + "\n".join(cells) + "\n"))
    assert types(table) == ["double"]
    assert any("column 'x': whole numbers beyond 2^53 are rounded" in n for n in table.notes)


@pytest.mark.parametrize("id_", ["0x1F", "1_000", "12-34", "1e", "nan(x)x", "\u0661"])
def test_what_is_no_number_is_text(tmp_path: Path, id_: str) -> None:
    assert types(opened(write(tmp_path, f"id,x\n{id_},1\n{id_},2\n"))) == ["string", "int64"]


NUMBERS = st.from_regex(
    r"[+-]?([0-9]{1,20}\.?[0-9]{0,5}|\.[0-9]{1,5})([eE][+-]?[0-9]{1,3})?", fullmatch=True
)


@given(st.lists(NUMBERS | st.sampled_from([" 1 ", "+inf", "-Infinity", "nan", "0x1"]), min_size=1))
def test_numbers_are_those_of_pythons_float(cells: list[str]) -> None:
    column = CellColumn("x")
    found = column.add(pa.array(cells), 2, Holds.REAL)
    meant = [parse_number(each) for each in cells]
    if None in meant:
        assert column.holds == "string"
    elif not all(map(math.isnan, filter(lambda x: x is not None, meant))):  # type: ignore[arg-type]
        assert column.holds != "string"
        np.testing.assert_array_equal(found.to_numpy(zero_copy_only=False), meant)


@pytest.mark.parametrize(
    ("content", "name", "told"),
    [
        ("a,b\n1,2\n", "x.csv", "commas"),
        ("a;b\n1;2\n", "x.csv", "semicolons"),
        ('"a,1,2";b\n1;2\n', "x.csv", "semicolons"),
        ("a\tb\n1\t2\n", "x.csv", "tabs"),
        ("a\tb;c\n1\t2\n", "x.tsv", "tabs"),
        ("a\n1\n", "x.csv", "commas"),
    ],
)
def test_the_header_tells_the_delimiter(tmp_path: Path, content: str, name: str, told: str) -> None:
    table = opened(write(tmp_path, content, name))
    assert values(table) == [[1], [2]][: len(table.columns)]
    assert any(f"read as text parted by {told}" in note for note in table.notes)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("before", ["", "\ufeff", "\n\n"])
def test_line_ends_marks_and_blank_lines_do_not_matter(
    tmp_path: Path, before: str, end: str
) -> None:
    table = opened(write(tmp_path, before + end.join([" a ", '"b""c"', ""]).replace(end, ",", 1)
                         + end.join(["1,2", "", "3,4"])))  # fmt: skip
    assert [column.name for column in table.columns] == ["a", 'b"c']
    assert values(table) == [[1, 3], [2, 4]]


def test_quotes_hold_delimiters_and_line_breaks(tmp_path: Path) -> None:
    table = opened(write(tmp_path, 'a,s\n1,"x, ""y""\nz"\n2,"w\n"\n'))
    assert values(table) == [[1, 2]]
    assert table.n_rows == 2


def test_the_index_that_pandas_writes_is_an_id(tmp_path: Path) -> None:
    pd.DataFrame({"x": [1, 2]}, index=["p", "q"]).to_csv(tmp_path / "x.csv")
    table = opened(tmp_path / "x.csv")
    assert table.features == ("x",)
    assert any("index of a pandas frame is passed through as an id" in n for n in table.notes)


def test_an_array_may_number_its_columns(tmp_path: Path) -> None:
    pd.DataFrame(np.arange(9).reshape(3, 3)).to_csv(tmp_path / "x.csv", index=False)
    assert opened(tmp_path / "x.csv").n_rows == 3  # its first row is that of the names


def test_a_column_that_is_text_for_a_few_cells_is_told_of(tmp_path: Path) -> None:
    rows = [f"{k},1" for k in range(40)]
    rows[30] = "abc,1"
    path = write(tmp_path, "x,y\n" + "\n".join(rows))
    notes = opened(path).notes
    assert any("column 'x': text for a few cells like 'abc' in row 32" in n for n in notes)
    assert opened(path, coerce_strings=True).features == ("x", "y")


@pytest.mark.parametrize("rows", [2, 20])
@pytest.mark.parametrize(
    ("second", "told"),
    [
        ("-,g/mol,bool,A\n", "row 2 ('g/mol') alone makes text of 3 columns ('b', 'c' and 'd');"),
        ("mass of it,,,\n,g/mol,,\n", "rows 2 to 3 ('mass of it') alone make text of 2 columns ("),
        (",,,\n,,yes or no,\n", "rows 2 to 3 ('yes or no') alone make text of column 'c';"),
    ],
)
def test_a_second_header_is_told_of(tmp_path: Path, second: str, told: str, rows: int) -> None:
    below = "1,2,true,0.5\n" * rows
    path = write(tmp_path, f"a,b,c,d\n{second}{below}")
    notes = opened(path).notes
    assert sum(note.startswith(f"{path}: {told}") for note in notes) == 1
    assert not any("a few cells like" in note for note in notes)
    mended = opened(write(tmp_path, f"a,b,c,d\n{below}", "mended.csv"))  # as the sentence says
    assert mended.features == ("a", "b", "c", "d")
    assert not any(" alone make" in note for note in mended.notes)


@pytest.mark.parametrize("rows", [2, 20])
@pytest.mark.parametrize(
    ("second", "told"),
    [
        ("float,int,bool,float\n", r"row 2 \('float'\) alone makes text of 4 columns"),
        ("a,b,c,d is long\nm,g,s,A\n", r"rows 2 to 3 \('a'\) alone make text of 4 columns"),
    ],
)
def test_a_second_header_that_leaves_no_column_of_numbers_is_told_of(
    tmp_path: Path, second: str, told: str, rows: int
) -> None:
    path = write(tmp_path, f"a,b,c,d\n{second}" + "1,2,true,0.5\n" * rows)
    with pytest.raises(InputError, match=f"^no numeric column is left .*; in {path} {told}"):
        opened(path)


@pytest.mark.parametrize(
    "rows",
    [
        ["name", "other", "1"],  # one number below is none of a column of numbers
        ["name", "1", "2", "other"],
        ["a", "b", "c", "d", "1", "2"],  # more rows than a header has
        ["1", "name", "2", "true"],
        ["", "", "", ""],
    ],
)
def test_text_that_is_no_second_header_is_not_taken_for_one(
    tmp_path: Path, rows: list[str]
) -> None:
    path = write(tmp_path, "x,y\n" + "".join(f"{cell},1\n" for cell in rows))
    assert not any(" alone make" in note for note in opened(path).notes)


def test_a_second_header_above_decimal_commas_is_told_of(tmp_path: Path) -> None:
    path = write(tmp_path, "a;b\nmol;g\n1,5;2,5\n1;2,25\n")
    with pytest.raises(InputError, match=r"row 2 \('mol'\) alone makes text of 2 columns"):
        opened(path)


def test_a_second_header_of_one_file_is_told_of_where_the_others_have_none(tmp_path: Path) -> None:
    write(tmp_path, "a,b\n1,2\n3,4\n", "1.csv")
    path = write(tmp_path, "a,b\nm,s\n1,2\n3,4\n", "2.csv")
    told = rf"in {path} row 2 \('m'\) alone makes text of 2 col"
    with pytest.raises(InputError, match=rf"of 2 columns in 2 files, 2 not numeric; {told}"):
        opened(tmp_path)
    with pytest.raises(InputError, match=rf"^the target 'b' is int64 in 1 file .*; {told}"):
        opened(tmp_path, target=("b",))
    with pytest.raises(InputError, match=r"in 2 files, 1 not numeric, 1 id; "):
        opened(tmp_path, id_columns=("b",))


PACKED: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "zst": lambda data: pa.Codec("zstd").compress(data, asbytes=True),
}


@pytest.mark.parametrize("packed", PACKED)
def test_text_may_be_compressed(tmp_path: Path, packed: str) -> None:
    content = PACKED[packed](b"x,y\n1,2\n3,4\n")
    assert values(opened(write(tmp_path, content, f"x.CSV.{packed}"))) == [[1, 3], [2, 4]]


def test_several_files_are_one_table(tmp_path: Path) -> None:
    write(tmp_path, "x,y\n1,2\n", "a.csv")
    write(tmp_path, "y,x\n0.5,NA\n", "b.csv")
    for source in (tmp_path, f"{tmp_path}/*.csv"):
        table = opened(source)
        assert [file.named for file in table.files] == [f"{tmp_path}/{n}.csv" for n in "ab"]
        np.testing.assert_array_equal(values(table), [[1, np.nan], [2, 0.5]])
        assert any("int64 in 1 file ('" in note and "a.csv" in note for note in table.notes)


@pytest.fixture
def web(tmp_path: Path) -> Iterator[str]:
    """The address of a web server of a folder."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments: object) -> None:
            """Nothing to say."""

    serve = functools.partial(Quiet, directory=str(tmp_path))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), serve)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")  # aiohttp, as in test_remote
def test_text_may_lie_at_a_url(tmp_path: Path, web: str) -> None:
    content = 'x,s\n1,<a href="https://example.org/y">\n2,b\n'  # fsspec takes links for a folder
    write(tmp_path, content.replace('"', ""))
    assert values(opened(f"{web}/x.csv")) == [[1, 2]]
    fs = fsspec.filesystem("memory")
    fs.pipe_file("/text/x.csv.gz", gzip.compress(b"x\n1\n"))
    try:
        assert values(opened("memory://text")) == [[1]]
    finally:
        fs.rm("/text", recursive=True)


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
def test_parquet_is_not_read_from_a_server_that_sends_whole_files_alone(
    tmp_path: Path, web: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_PAUSES", ())
    pd.DataFrame({"x": np.arange(9.0)}).to_parquet(tmp_path / "x.parquet")
    with pytest.raises(InputError, match="does not answer range requests; download it or use"):
        opened(f"{web}/x.parquet")


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
@pytest.mark.parametrize("name", ["x.csv", "x.parquet", "*.csv", "folder"])
def test_a_server_that_is_not_reached_is_told_from_a_file_that_is_not_there(
    web: str, name: str
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
        with pytest.raises(InputError, match=rf"{re.escape(name)} cannot be reached \(.*onnect"):
            opened(f"{address}/{name}")
    with pytest.raises(InputError, match=r"does not exist|no file matches"):
        opened(f"{web}/{name}")


FRAME = pd.DataFrame({"x": [1.5, None], "n": [2**53 + 1, 2], "s": ["a", None]})


@pytest.mark.parametrize("name", ["x.feather", "x.arrow", "x.ipc"])
@pytest.mark.parametrize("compression", ["lz4", "zstd", "uncompressed"])
def test_feather_files_keep_their_types(tmp_path: Path, name: str, compression: Any) -> None:
    pa.feather.write_feather(FRAME, str(tmp_path / name), compression=compression)
    table = opened(tmp_path / name)
    assert types(table)[:2] == ["double", "int64"]
    assert read_block(table, ["n"]).column(0)[0].tolist() == [2**53 + 1, 2]


def test_streams_of_arrow_are_read_too(tmp_path: Path) -> None:
    data = pa.table({"x": pa.array([1, 2]).dictionary_encode()})
    with pa.ipc.new_stream(str(tmp_path / "x.arrow"), data.schema) as writer:
        writer.write_table(data)
    assert values(opened(tmp_path / "x.arrow")) == [[1, 2]]


def test_a_stream_that_breaks_off_is_one_sentence(tmp_path: Path) -> None:
    data = pa.table({"x": np.arange(5000.0)})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, data.schema) as writer:
        writer.write_table(data, max_chunksize=1000)
    path = write(tmp_path, sink.getvalue().to_pybytes()[:-20_000], "x.arrow")
    with pytest.raises(InputError, match=r"x\.arrow cannot be read \([^()]*\)\.$"):
        opened(path)


# What is refused

BAD: dict[str, tuple[str | bytes, str]] = {
    "a comment": ("# made by x\na,b,c\n1,2,3\n", r"first line \('# made by x'\) if it is no"),
    "a setting": ("sep=;\na;b\n1;2\n", r"column 2 of 2 in its first line \('sep=;'\)"),
    "bars": ("a|b|c\nm1|2|3\n", r"has one column, 'a\|b\|c', .* seems to be parted by \|"),
    "spaces": ("a   b\n1.5 2\n", "parted by spaces; write it as CSV"),
    "short row": ("a,b\n1,2\n3\n", "has 1 cell in row 3 and 2 columns in its header"),
    "a short second header": ("a,b\ng\n1,2\n", r"remove that row \('g'\) if it is a second"),
    "long row": ("a,b\n1,2\n3,4,5\n", "has 3 cells in row 3 .* decimals are written with a point"),
    "two headers": ("a,b\n1,2\na,b\n3,4\n", "has its header again in row 3"),
    "decimal commas": ("a;b\n1,5;2\n", r"commas .* column 'a' \('1,5' in row 2\)"),
    "thousands": ('a,b\n"1,234",2\n7,3\n', r"column 'a' \('1,234' in row 2\)"),
    "thin spaces": ("a,b\n7,3\n1\u202f234,2\n", r"column 'a' \(.* in row 3\)"),
    "open quote": ('a,b\n"1,2\n3,4\n', "has a quote in row 2 that is not closed"),
    "open quote at the end of a row": ('a,b\n1,"2\n3,4\n', "ends within a cell: a quote"),
    "open quote in the header": ('a,"b\n1,2\n', "has a quote in its header"),
    "a name twice": ("a,b,a \n1,2,3\n", "has more than one column called 'a'"),
    "no name": ("a,,b\n1,2,3\n", "has no name for column 2 of 3"),
    "no header": ("1,2.5\n3,4\n", "has no header: its first row holds numbers"),
    "nothing": ("", r"is empty \(0 bytes\)"),
    "blank lines": ("\n\r\n", r"is empty \(there is no text\)"),
    "a header alone": ("a,b\n", "there are no rows in 1 file"),
    "a header without an end": ("a,b", "there are no rows in 1 file"),
    "Latin-1": ("a,b\n1,\u00b5\n".encode("latin-1"), "not UTF-8, in 'b' below row 1"),
    "Latin-1 in the header": ("a,\u00b5\n1,2\n".encode("latin-1"), "a header that is not UTF-8"),
    "UTF-16": ("a,b\n1,2\n".encode("utf-16"), "is not text in UTF-8"),
    "another format": (b"PAR1", "is a Parquet file, which its name does not say"),
    "gzip": (gzip.compress(b"a\n1\n"), "is compressed by gzip, which its name does not say"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_a_bad_file_is_one_sentence_that_names_it(tmp_path: Path, case: str) -> None:
    content, sentence = BAD[case]
    path = write(tmp_path, content)
    with pytest.raises(InputError, match=sentence) as error:
        opened(path, scratch_dir=str(tmp_path / "scratch"))
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == [path]  # nothing half-written, not even the folder for it


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("x.csv.gz", b"a\n1\n", "cannot be read"),
        ("x.csv.gz", gzip.compress(bytes(range(256)) * 99)[:-9], "cannot be read|is not text"),
        ("x.feather", b"a\n1\n", "is not a Feather or Arrow IPC file"),
        ("x.feather", b"FEA1....FEA1", "is a Feather file of version 1"),
        ("x.feather", b"", r"is empty \(0 bytes\)"),
        ("x.tsv", b"a,b\n1,2\n", "one column, 'a,b', .* seems to be parted by commas"),
        ("x.txt", b"a\n1\n", "is not a Parquet file; other formats go by the name, as .csv"),
    ],
)
def test_a_file_that_is_not_what_its_name_says_is_one_sentence(
    tmp_path: Path, name: str, content: bytes, sentence: str
) -> None:
    with pytest.raises(InputError, match=sentence):
        opened(write(tmp_path, content, name))


def test_a_row_that_never_ends_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delimited, "_BLOCKS", (1 << 20, 1 << 20))
    content = "a,b\n" + "1,2\n" * 5 + '3,"4\n' + "5,6\n" * 600_000
    with pytest.raises(InputError, match="has a row of more than 1 MiB after row 6; a quote is"):
        opened(write(tmp_path, content))


def test_commas_do_not_matter_in_a_column_that_nobody_analyses(tmp_path: Path) -> None:
    path = write(tmp_path, "pairs;x\n1,5;2\n2,6;3\n")
    assert opened(path, exclude=("pairs",)).features == ("x",)


def test_a_single_column_may_have_a_name_of_several_words(tmp_path: Path) -> None:
    assert opened(write(tmp_path, "boiling point\n1.5\n2\n")).features == ("boiling point",)


def test_a_row_of_numbers_that_are_names_is_no_header(tmp_path: Path) -> None:
    assert opened(write(tmp_path, "0,1\n0,1\n5,6\n")).n_rows == 2


def test_a_bad_file_can_be_left_out(tmp_path: Path) -> None:
    write(tmp_path, "a,b\n1,2\n", "good.csv")
    bad = write(tmp_path, "a,b\n1\n", "poor.csv")
    table = opened(tmp_path, on_bad_file="skip")
    assert table.n_rows == 1
    assert [path for path, _ in table.skipped] == [str(bad)]


FORMATS = ["a.csv", "b.tsv", "c.csv.gz", "d.feather", "e.parquet"]


@pytest.mark.parametrize("pair", list(itertools.combinations(FORMATS, 2)))
def test_a_folder_of_several_formats_is_refused(tmp_path: Path, pair: tuple[str, str]) -> None:
    for name in pair:
        write(tmp_path, "a\n1\n", name)
    for source in (tmp_path, f"{tmp_path}/*"):
        with pytest.raises(InputError, match=r"holds files of several formats: .*; name those"):
            opened(source)


def test_a_copy_is_written_as_parquet_alone(tmp_path: Path) -> None:
    table = opened(write(tmp_path, "a\n1\n"))
    with pytest.raises(InputError, match=r"copy\.csv cannot be written: the copy is Parquet"):
        copy_columns(table, ["a"], tmp_path / "copy.csv")


# What follows


@given(
    st.lists(
        st.tuples(
            st.none() | st.floats(allow_nan=False, allow_infinity=False),
            st.none() | st.integers(-(2**63), 2**63 - 1),
            st.none() | st.booleans(),
            st.none() | st.text("abcé,;\" \n'", min_size=1).filter(lambda s: s.strip() == s),
        ),
        min_size=1,
    ),
    st.sampled_from(["pandas", "pyarrow"]),
)
def test_a_table_is_the_same_from_text_as_from_parquet(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[Any, ...]], writer: str
) -> None:
    folder = tmp_path_factory.mktemp("same")
    kinds = {"x": pa.float64(), "n": pa.int64(), "b": pa.bool_(), "s": pa.string()}
    columns = zip(*rows, strict=True)
    arrays = [pa.array(c, kind) for c, kind in zip(columns, kinds.values(), strict=True)]
    data = pa.table(arrays, names=list(kinds))
    pa.parquet.write_table(data, folder / "x.parquet")
    if writer == "pyarrow":
        pa.csv.write_csv(data, folder / "x.csv")
    else:
        data.to_pandas(types_mapper=pd.ArrowDtype).to_csv(folder / "x.csv", index=False)
    names = ["x", "n", "b"]
    a, b = (read_block(opened(folder / f"x.{end}"), names) for end in ("csv", "parquet"))
    for place in range(3):
        (one, valid), (other, also) = a.column(place), b.column(place)
        everywhere = np.ones(len(rows), dtype=bool)
        np.testing.assert_array_equal(
            everywhere if valid is None else valid, everywhere if also is None else also
        )
        seen = everywhere if valid is None else valid
        np.testing.assert_array_equal(one[seen], other[seen])


PLAIN: dict[str, Any] = {"restart": "never", "min_valid": 50, "nonlinear_threshold": 0.6}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One table, as text and as Parquet."""
    folder = tmp_path_factory.mktemp("text")
    frame = pd.DataFrame(mixed_table(400, families=2))
    frame["label"] = [f"row {k}" for k in range(len(frame))]
    frame.to_csv(folder / "table.csv", index=False)
    frame.to_parquet(folder / "table.parquet", index=False)
    return folder


def test_a_run_on_text_decides_as_one_on_parquet_and_is_resumed_and_verified_by_the_text(
    folder: Path, client: Any, tmp_path: Path
) -> None:
    source, out = folder / "table.csv", tmp_path / "out"
    text = dpipe.select(source, output_dir=out, client=client, write_table=True, **PLAIN)
    parquet = dpipe.select(folder / "table.parquet", client=client, **PLAIN)
    for one, other in zip(text.decisions, parquet.decisions, strict=True):
        assert (one.column, one.decision, one.reason, one.representative, one.value) == (
            other.column, other.decision, other.reason, other.representative, other.value
        )  # fmt: skip
    record = json.loads((out / "run.json").read_text())
    assert record["input"]["files"] == [str(source)]
    assert not list(out.glob(".dpipe-input-*"))
    assert (out / "table" / "table.csv.parquet").exists()
    events: list[Any] = []
    dpipe.select(
        source, output_dir=out, client=client, write_table=True, observers=[events.append], **PLAIN
    )
    assert all(event.reused for event in events if isinstance(event, PassDone))
    assert verify(out).n_rows == 400
    applied = dpipe.apply(out, source, tmp_path / "reduced.parquet")
    assert {"label", *text.selected} >= set(text.selected) <= set(applied.columns)
    again = dpipe.transfer(out, source, client=client, restart="never")
    parquet_again = dpipe.transfer(out, folder / "table.parquet", client=client, restart="never")
    assert again.lines == parquet_again.lines
    matrix = dpipe.similarity(source, "spearman", client=client, restart="never")
    assert (
        matrix.columns
        == dpipe.similarity(
            folder / "table.parquet", "spearman", client=client, restart="never"
        ).columns
    )


def test_other_text_is_other_input(folder: Path, tmp_path: Path) -> None:
    copy = write(tmp_path, (folder / "table.csv").read_bytes(), "table.csv")
    before = opened(copy).fingerprint
    assert opened(copy).fingerprint == before
    copy.write_bytes(copy.read_bytes().replace(b"row 7", b"row 8"))
    assert opened(copy).fingerprint != before


def test_a_plan_reads_text_too(folder: Path) -> None:
    options = Options(device="cpu", workers=1)
    text = plan_run([str(folder / "table.csv")], options)
    assert text.passes == plan_run([str(folder / "table.parquet")], options).passes


def test_the_command_says_what_is_wrong_and_leaves_nothing(tmp_path: Path) -> None:
    path = write(tmp_path, "a,b\n1,2\n3\n")
    done = CliRunner().invoke(command_line, ["run", str(path), "--output-dir", f"{tmp_path}/out"])
    assert done.exit_code == 2
    assert done.output.count("\n") == 1
    assert "has 1 cell in row 3" in done.output
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("below", ["", "/below/it"])
def test_an_output_folder_that_cannot_be_is_told_before_text_is_read(
    tmp_path: Path, below: str
) -> None:
    path = write(tmp_path, "a,b\n1,2\n3\n")  # which reading would refuse
    with pytest.raises(InputError, match=r"^the output folder .* a file; choose another\.$"):
        dpipe.select(path, output_dir=f"{path}{below}")


@pytest.mark.parametrize(
    ("number", "told"),
    [
        (errno.ENOSPC, "there is no space left to write"),
        (errno.EIO, r"the data cannot be written to .*\(\[Errno 5\] Input/output error\)"),
    ],
)
def test_a_disk_that_refuses_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, told: str
) -> None:
    path = write(tmp_path, "a,b\n1,2\n3,4\n")

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(pa.parquet.ParquetWriter, "write_batch", refuse)
    with pytest.raises(ResourceError, match=f"^{told}.*; --scratch-dir names another place"):
        opened(path, scratch_dir=str(tmp_path / "scratch"))
    assert list(tmp_path.iterdir()) == [path]


def test_what_takes_a_while_is_told_beforehand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, "a,b\n1,2\n3,4\n")
    told: list[Any] = []
    open_table([path], options=Options(), emit=told.append)
    assert told == []
    monkeypatch.setattr(foreign, "LARGE", 12)
    open_table([path], options=Options(), emit=told.append)
    (note,) = told
    assert note.text.startswith("1 file of 12 B must be made into Parquet before anything else")


def test_notes_come_in_the_order_of_the_files(tmp_path: Path) -> None:
    """The note on the second file is the first in the alphabet."""
    for number, cell in enumerate(("2", "text", "3")):
        (tmp_path / f"{number}.csv").write_text(f"a,b\n1,{cell}\n4,5\n")
    with open_table([str(tmp_path / "*.csv")], options=Options()) as table:
        first, second = (note for note in table.notes if "read as text parted" in note)
    assert re.search(r"2 files .*/0\.csv' and .*/2\.csv'\).*: 2 columns of numbers", first)
    assert re.search(r"/1\.csv: .*: 1 column of numbers, 1 column of text", second)
