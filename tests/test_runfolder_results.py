"""Results come back as they were written, whatever the names in them, and harm no reader.

Covers: statistics, matrices, decisions as Parquet and CSV, lists of columns, JSON; what is
missing or broken.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from folders import DEPENDS, RESULT
from hypothesis import given
from hypothesis import strategies as st

from dpipe import runfolder
from dpipe.errors import InputError
from dpipe.model import inventory
from dpipe.model.records import ColumnStatistics, Decision
from dpipe.runfolder import SCHEMA_VERSION, RunFolder, escape_name, plain, unescape_name
from dpipe.runfolder.files import digest

# Statistics, matrices, digests


def test_statistics_come_back_exactly(folder: RunFolder) -> None:
    numbers = (float("nan"), float("-inf"), 0.1 + 0.2, 1e-300, 5e-324, -0.0, 1.0)
    entries = tuple(
        ColumnStatistics(name, 9, 6, 1, 1, 1, 5, *numbers[k:], *numbers[:k], 0.5, "nan", -1)
        for k, name in enumerate(["nan", "inf", "two\nlines"])
    )
    folder.write_statistics(entries)
    again = folder.read_statistics()
    assert list(map(repr, again)) == list(map(repr, entries))
    assert folder.verify_checksums() == ()


@pytest.mark.parametrize("content", ['{"columns": 3}', '{"columns": [{"name": "x"}]}', "{}"])
def test_broken_statistics_are_an_input_error(folder: RunFolder, content: str) -> None:
    folder.write_text(inventory.STATISTICS, content)
    with pytest.raises(InputError, match=r"statistics\.json cannot be read: .*; run dpipe again"):
        folder.read_statistics()


def test_a_matrix_comes_back_with_its_columns(folder: RunFolder) -> None:
    with folder.write_matrix("hsic", ["a", "two\nlines"]) as out:
        out[:] = [[1, 0.25], [0.25, np.nan]]
    columns, values = folder.read_matrix("hsic")
    assert columns == ("a", "two\nlines")
    np.testing.assert_array_equal(values, np.array([[1, 0.25], [0.25, np.nan]], np.float32))
    folder.write_columns("hsic_columns.txt", ["a"])
    with pytest.raises(InputError, match=r"hsic\.npy cannot be read: it does not fit hsic_col"):
        folder.read_matrix("hsic")


def test_a_digest_is_of_the_content_whoever_wrote_it(folder: RunFolder) -> None:
    folder.write_text("a.txt", "one")
    ours = folder.digest_of("a.txt")
    assert ours == digest(folder.path / "a.txt")
    (folder.path / "a.txt").write_text("two")
    assert folder.digest_of("a.txt") == digest(folder.path / "a.txt") != ours
    assert folder.digest_of("b.txt") is None
    (folder.path / inventory.MANIFEST).write_text("broken")
    assert folder.digest_of("a.txt") == digest(folder.path / "a.txt")


def test_a_run_of_another_layout_is_refused_with_what_to_do(folder: RunFolder) -> None:
    folder.write_json("run.json", {"schema": 1})
    with pytest.raises(InputError, match=r"it has schema 1, .* reads 2; run dpipe again\.$"):
        folder.read_run()


# Results


NASTY = [
    '=HYPERLINK("http://x")',
    "+1",
    "-2",
    "@SUM(A1)",
    "\tx",
    "\rx",
    'comma, "quote"',
    "two\r\nlines",
    "<img src=x onerror=alert(1)>",
    "",
    " ",
    "ünïcode 🧪",
    "back\\slash\\n",
    "line\u2028separator\x85\x0b\x1c",
    "\ufeffbom",
]


def decision(column: str, **changes: object) -> Decision:
    values = dict.fromkeys(Decision.__dataclass_fields__) | {
        "column": column,
        "dtype": "double",
        "decision": "kept",
        "reason": "",
    }
    return Decision(**{**values, **changes})  # type: ignore[arg-type]


DECISIONS = [
    *map(decision, NASTY),
    decision(
        "full",
        n_valid=10**12,
        n_missing=3,
        n_nan=1,
        n_inf=1,
        n_unique=7,
        decision="dropped",
        pass_number=3,
        reason="vif",
        measure="vif",
        value=float("inf"),
        threshold=10.0,
        representative="=1+1",
        community=4,
    ),
    decision("negative", value=-0.1, threshold=0.95),
]


def test_decisions_come_back(folder: RunFolder) -> None:
    folder.write_decisions(DECISIONS)
    assert list(folder.read_decisions()) == DECISIONS
    assert pq.read_schema(folder.path / "decisions.parquet").names == [
        *("column", "dtype", "n_valid", "n_missing", "n_nan", "n_inf", "n_unique"),
        *("decision", "pass", "reason", "measure", "value", "threshold"),
        *("representative", "community", "relevance"),
    ]


def test_no_decisions_come_back(folder: RunFolder) -> None:
    folder.write_decisions([])
    assert folder.read_decisions() == ()


def test_the_csv_is_readable_and_harmless(folder: RunFolder) -> None:
    folder.write_decisions(DECISIONS)
    text = (folder.path / "decisions.csv").read_bytes().decode()
    rows = list(csv.reader(io.StringIO(text, newline=""), strict=True))
    assert rows[0] == runfolder.DECISIONS_SCHEMA.names
    assert {len(row) for row in rows} == {16}
    for row, name in zip(rows[1:], NASTY, strict=False):
        assert row[0] == (f"'{name}" if name[:1] in tuple("=+-@\t\r") and name else name)
    full = dict(zip(rows[0], rows[-2], strict=True))
    assert full["representative"] == "'=1+1"
    assert (full["n_valid"], full["value"], full["threshold"]) == ("1000000000000", "inf", "10.0")
    # A negative number is a number and stays one.
    assert dict(zip(rows[0], rows[-1], strict=True))["value"] == "-0.1"


def test_the_csv_is_what_pandas_reads(folder: RunFolder) -> None:
    pandas = pytest.importorskip("pandas")
    folder.write_decisions(DECISIONS)
    frame = pandas.read_csv(
        folder.path / "decisions.csv", keep_default_na=False, na_values={"value": [""]}
    )
    assert list(frame["column"])[6] == 'comma, "quote"'
    assert frame["value"].iloc[-1] == -0.1


def test_selected_columns_come_back_one_a_line(folder: RunFolder) -> None:
    folder.write_selected(NASTY)
    assert list(folder.read_selected()) == NASTY
    text = (folder.path / "selected.txt").read_bytes().decode()
    assert len(text.splitlines()) == len(NASTY)
    assert "back\\\\slash\\\\n\n" in text
    assert "two\\r\\nlines\n" in text
    assert "line\\u2028separator\\x85\\x0b\\x1c\n" in text


def test_ordinary_names_are_written_as_they_are(folder: RunFolder) -> None:
    folder.write_selected(["MolWt", "a b", "ünïcode"])
    assert (folder.path / "selected.txt").read_bytes() == "MolWt\na b\nünïcode\n".encode()
    folder.write_selected([])
    assert (folder.path / "selected.txt").read_bytes() == b""
    assert folder.read_selected() == ()


@pytest.mark.parametrize("content", [b"a\r\nb\r\n", b"\xef\xbb\xbfa\nb", b"a\nb\n"])
def test_a_list_saved_by_an_editor_still_reads(folder: RunFolder, content: bytes) -> None:
    (folder.path / "selected.txt").write_bytes(content)
    assert folder.read_selected() == ("a", "b")


@given(st.text(st.characters(codec="utf-8")))
def test_escaping_is_reversible_and_stays_on_one_line(name: str) -> None:
    line = escape_name(name)
    assert unescape_name(line) == name
    assert len(line.splitlines()) <= 1
    assert not line.endswith(("\n", "\r"))


@given(st.text(alphabet="\\nrxu0a\n\r\u2028"), st.text(alphabet="\\nrxu0a\n\r\u2028"))
def test_escaping_keeps_names_apart(one: str, other: str) -> None:
    assert unescape_name(escape_name(one)) == one
    assert (escape_name(one) == escape_name(other)) == (one == other)


def test_json_results_come_back(folder: RunFolder) -> None:
    communities = {"MolWt": [{"column": "<b>", "pass": 2, "measure": "spearman", "value": 0.97}]}
    folder.write_communities(communities)
    assert folder.read_communities() == communities
    folder.write_run({"options": DEPENDS, "ledger": (RESULT.drops[1],), "where": Path("a")})
    run = folder.read_run()
    assert run["schema"] == SCHEMA_VERSION
    assert run["where"] == "a"
    assert run["ledger"][0]["column"] == "LogP"


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("decisions.parquet", RunFolder.read_decisions),
        ("selected.txt", RunFolder.read_selected),
        ("communities.json", RunFolder.read_communities),
        ("run.json", RunFolder.read_run),
        ("spearman.npy", lambda folder: folder.read_npy("spearman.npy")),
    ],
)
def test_readers_name_what_is_missing_or_broken(
    folder: RunFolder, name: str, read: Callable[[RunFolder], object]
) -> None:
    with pytest.raises(InputError, match=f"{name} does not exist; give the folder of a finished"):
        read(folder)
    (folder.path / name).write_bytes(b"\xff\xfe broken")
    with pytest.raises(InputError, match=f"{name} cannot be read: .*; run dpipe again"):
        read(folder)
    (folder.path / name).unlink()
    (folder.path / name).mkdir()
    with pytest.raises(InputError, match=f"{name} cannot be read"):
        read(folder)


def test_another_parquet_file_is_no_decision_table(folder: RunFolder) -> None:
    folder.write_parquet("decisions.parquet", pa.table({"column": ["a"]}))
    with pytest.raises(InputError, match=r"decisions\.parquet cannot be read"):
        folder.read_decisions()


def test_plain_refuses_what_json_cannot_hold() -> None:
    with pytest.raises(TypeError, match="object has no form in JSON"):
        plain(object())


def test_plain_speaks_json() -> None:
    value = {
        "numpy": (np.float32(0.5), np.int64(3), np.bool_(True), np.arange(2)),
        "floats": [float("nan"), float("-inf"), 1e300],
        "sets": {"b", "a"},
        3: None,
    }
    text = json.dumps(plain(value), allow_nan=False)
    assert json.loads(text) == {
        "numpy": [0.5, 3, True, [0, 1]],
        "floats": ["nan", "-inf", 1e300],
        "sets": ["a", "b"],
        "3": None,
    }
