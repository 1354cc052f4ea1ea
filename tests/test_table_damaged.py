"""Files that are no Parquet, or no longer, or too much: named, or left out where that is asked for.

Covers: broken and encrypted files, corrupt pages, tables with nothing to do, too little memory,
flipped bytes.
Does not cover: many thousand damaged files (`fuzz`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import random
from pathlib import Path
from typing import Any

import dirty
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from dirty import write
from reading import PLAIN, SKIP, refusal

from dpipe.errors import DpipeError, InputError, ResourceError
from dpipe.options import Options
from dpipe.table import decode as decode_module
from dpipe.table import files as files_module
from dpipe.table import open_table, read_block


def test_broken_files_are_named(tmp_path: Path) -> None:
    sound = write(tmp_path / "sound.parquet", x=[1.0, 2.0])
    for path, reason in dirty.broken_files(tmp_path).items():
        for sources in ([path], [path, sound]):
            message = refusal(sources)
            assert str(path) in message
            assert reason in message
            assert ("--on-bad-file skip" in message) == (len(sources) > 1)  # else nothing is left


def test_broken_files_can_be_skipped(tmp_path: Path) -> None:
    broken = dirty.broken_files(tmp_path)
    write(tmp_path / "sound.parquet", x=[1.0, 2.0])
    table = open_table([tmp_path], options=SKIP)
    assert [path for path, _ in table.skipped] == sorted(str(path) for path in broken)
    assert all(broken[Path(path)] in reason for path, reason in table.skipped)
    assert read_block(table, ["x"]).values.tolist() == [[1.0, 2.0]]
    (tmp_path / "sound.parquet").unlink()
    assert "none of 9 files can be used" in refusal([tmp_path], SKIP)


def test_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.parquet")
    assert "is not a file" in refusal([tmp_path])


def test_unreadable_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.parquet", x=[1.0])

    def deny(*arguments: Any) -> Any:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(files_module.pa, "OSFile", deny)
    assert f"{path} cannot be read (permission denied)" in refusal([path])


def test_tables_without_anything_to_do(tmp_path: Path) -> None:
    empty = write(tmp_path / "empty.parquet", x=pa.array([], pa.float64()))
    assert "there are no rows in 1 file" in refusal([empty])
    text = write(tmp_path / "text.parquet", s=["a"], t=["1"])
    assert "2 not numeric; --coerce-strings reads text" in refusal([text])
    names = write(tmp_path / "names.parquet", s=["a"])
    assert "1 not numeric; give a table of numbers" in refusal(
        [names], Options(coerce_strings=True)
    )
    one = write(tmp_path / "x.parquet", x=[1])
    assert "1 excluded; name fewer in --target, --exclude" in refusal(
        [one], Options(exclude=("x",))
    )
    pq.write_table(pa.table({}), tmp_path / "none.parquet")
    assert "no rows" in refusal([tmp_path / "none.parquet"])


def test_corrupt_pages_name_file_and_column(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", x=np.arange(12.0), y=np.arange(12.0) ** 2)
    dirty.damage_page(path, column=1, group=2)
    for options in (PLAIN, SKIP):
        table = open_table([path], options=options)
        assert read_block(table, ["x"]).values[0].tolist() == list(range(12))
        with pytest.raises(InputError, match=r"a\.parquet .*column 'y', row group 2") as caught:
            read_block(table, ["x", "y"])
        assert "\n" not in str(caught.value)


def test_encrypted_files_are_named(tmp_path: Path) -> None:
    columns = pa.table({"x": [1.0, 2.0], "y": [3.0, 4.0]})
    path = tmp_path / "a.parquet"
    dirty.write_encrypted(path, columns, "x", plain_footer=False)
    assert "is encrypted" in refusal([path])
    dirty.write_encrypted(path, columns, "x", plain_footer=True)
    table = open_table([path], options=PLAIN)
    if dirty.ARROW.major >= 26:  # older ones read nothing of such a file
        assert read_block(table, ["y"]).values.tolist() == [[3.0, 4.0]]
    with pytest.raises(InputError, match=r"a\.parquet has column 'x' encrypted; decrypt it"):
        read_block(table, ["x", "y"])


def test_too_little_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = open_table([write(tmp_path / "a.parquet", x=[1.0])], options=PLAIN)

    class Starved:
        def read_row_groups(self, *arguments: Any, **keywords: Any) -> Any:
            raise pa.ArrowMemoryError("malloc of size 99 failed")

    monkeypatch.setattr(decode_module, "open_part", lambda *args, **kw: Starved())
    with pytest.raises(ResourceError, match="not enough memory to decode 1 row"):
        read_block(table, ["x"])


def test_a_result_too_large_for_memory(tmp_path: Path) -> None:
    table = open_table([write(tmp_path / "a.parquet", x=[1.0])], options=PLAIN)
    endless = dataclasses.replace(table.files[0], n_rows=2**50, row_groups=(2**50,))
    with pytest.raises(ResourceError, match="not enough memory for 1 column"):
        read_block(dataclasses.replace(table, files=(endless,)), ["x"])


@pytest.mark.parametrize("seed", range(4))
def test_flipped_bytes_never_end_in_a_traceback(tmp_path: Path, seed: int) -> None:
    source = write(tmp_path / "a.parquet", x=np.arange(40.0), n=list(range(40)), s=["a", "b"] * 20)
    sound = source.read_bytes()
    dice = random.Random(seed)
    for _ in range(60):
        broken = bytearray(sound)
        for _ in range(dice.choice([1, 1, 4])):
            broken[dice.randrange(len(sound))] = dice.randrange(256)
        source.write_bytes(bytes(broken))
        with contextlib.suppress(DpipeError):
            table = open_table([source], options=PLAIN)
            read_block(table, table.features)
