"""What a terminal and a notebook show of a selection.

Covers: the line, the table of passes, escaping, where the page is said to lie, copying the folder.
Does not cover: applying, saving what a run left (see ``tests/test_inputs.py`` and
``tests/test_pipeline.py``).
"""

from __future__ import annotations

import html.parser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import dpipe
from dpipe.errors import InputError
from dpipe.model.records import Decision, MemoryReading, Similarity, TargetRelevance
from dpipe.model.transfer import Transfer
from dpipe.pipeline.apply import Applied
from dpipe.runfolder import RunFolder
from dpipe.runfolder.thresholds import WhatIf
from dpipe.selection import Selection

MARKUP = "<script>alert(1)</script>&amp;"


def decision(column: str, what: str, number: int | None = None, reason: str = "") -> Decision:
    facts = (9, 0, 0, 0, 9)
    return Decision(column, "double", *facts, what, number, reason, None, None, None, None, None)


def selection(folder: Path, *decisions: Decision, passes: tuple[int, ...] = (1, 2)) -> Selection:
    ledger = tuple(
        MemoryReading("after", number, "client", 1, 1, 1, None, 1.0) for number in passes
    )
    kept = tuple(d.column for d in decisions if d.decision == "kept")
    return Selection(kept, decisions, {}, ledger, folder)


class Cells(html.parser.HTMLParser):
    """Rows of the table; fails on tags that nobody meant."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.links: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        assert tag in {"p", "strong", "table", "tr", "th", "td", "code", "a"}
        if tag == "tr":
            self.rows.append([])
        elif tag in ("th", "td"):
            self.rows[-1].append("")
        elif tag == "a":
            self.links.append(dict(attrs)["href"])

    def handle_data(self, data: str) -> None:
        if self.rows and self.rows[-1]:
            self.rows[-1][-1] += data


def test_one_row_a_pass_also_where_nothing_went(tmp_path: Path) -> None:
    result = selection(
        tmp_path,
        decision("a", "kept"),
        decision("b", "dropped", 1, "constant"),
        decision("c", "dropped", 1, "constant"),
        decision("d", "dropped", 1, "low variance"),
        decision("e", "id"),
    )
    shown = result._repr_html_()
    assert "4 columns in, 1 kept" in shown
    assert ".report(path)" in shown
    assert [row[:3] for row in Cells(shown).rows[1:]] == [
        ["1 prepare", "4", "1"],
        ["2 spearman", "1", "1"],
    ]
    assert Cells(shown).rows[1][3] == "2 constant, 1 low variance"
    assert repr(result) == "<Selection: 4 columns in, 1 kept; 5 decisions>"


def test_what_comes_from_outside_is_escaped(tmp_path: Path) -> None:
    folder = tmp_path / 'a"><b>'
    folder.mkdir()
    (folder / "report.html").touch()
    result = selection(
        folder, decision(MARKUP, "dropped", 1, MARKUP), decision("a", "kept"), passes=()
    )
    shown = result._repr_html_()
    assert MARKUP not in shown
    assert Cells(shown).links == [(folder / "report.html").as_uri()]


def test_a_page_below_this_folder_is_linked_by_its_way_from_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my out").mkdir()
    (tmp_path / "my out" / "report.html").touch()
    shown = selection(tmp_path / "my out", decision("a", "kept"))._repr_html_()
    assert Cells(shown).links == ["my%20out/report.html"]


@pytest.mark.parametrize("decisions", [(), (decision("a", "dropped", 1, "constant"),)])
def test_nothing_kept_reads_well(tmp_path: Path, decisions: tuple[Decision, ...]) -> None:
    result = selection(tmp_path, *decisions, passes=())
    assert "0 kept" in repr(result)
    assert "0 kept" in result._repr_html_()


def test_a_copy_has_every_result_whatever_it_is_called_and_no_ranks(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run").create()
    run.write_text("report.html", "<!doctype html>")
    run.claim_table().mkdir()
    table = run.path / "table" / "ranks_2024.parquet"
    table.write_bytes(b"kept columns")
    run.record_table([table])
    ranks = run.path / "checkpoint" / "ranks-1-2" / "block-00000.f32"
    ranks.parent.mkdir()
    ranks.write_bytes(b"ranks")
    copy = selection(run.path, decision("a", "kept")).save(tmp_path / "copy")
    assert RunFolder(copy).verify_checksums() == ()
    assert (copy / "table" / "ranks_2024.parquet").read_bytes() == b"kept columns"
    assert list(copy.rglob("*.f32")) == []


def test_every_answer_is_one_short_line() -> None:
    """Names and values of thousands of columns would fill a terminal."""
    names = tuple(f"column {number}" for number in range(2000))
    square, tall = np.zeros((2000, 2000), np.float32), np.zeros((2000, 1))
    answers = {
        repr(Similarity(square, names)): "<Similarity: 2,000 columns>",
        repr(TargetRelevance(names, ("y",), tall, tall)): (
            "<TargetRelevance: 2,000 columns, 1 target>"
        ),
        repr(Applied(("a.parquet",), 1, names, ())): "<Applied: 1 row, 2,000 columns in 1 file>",
        repr(WhatIf(2, "spearman", 0.9, names, 0, "")): (
            "<WhatIf: pass 2 (spearman) keeps 2,000 columns at 0.9>"
        ),
        repr(Transfer(624, 2000, (), (), (), names, 0, (), ())): (
            "<Transfer: the selection of 2,000 columns holds on 624 rows>"
        ),
    }
    assert list(answers) == list(answers.values())


def test_what_is_no_file_is_told_where_files_are_read(tmp_path: Path) -> None:
    for data in (pd.DataFrame({"a": [1.0]}), np.eye(2)):
        with pytest.raises(InputError, match=r"where files are read: give their paths; dpipe.load"):
            dpipe.apply(tmp_path, data, tmp_path / "new.parquet")
    with pytest.raises(InputError, match="is a URL: copy the run folder"):
        dpipe.load(f"file://{tmp_path}")
