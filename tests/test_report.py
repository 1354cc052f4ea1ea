"""The page of a run: what it says, how large it is, that nothing in it can run or fetch anything.

Covers: `dpipe.report` on run folders written here and on a real small run, in Python and, where
Chromium and its driver are installed, in a browser.
Does not cover: whether the results it shows are right (see `test_pipeline`, `dpipe.verify`).
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import importlib.util
import json
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from html.parser import HTMLParser
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpipe.errors import InputError
from dpipe.model.records import ColumnStatistics, Decision, Edges, MemoryReading, Pairs
from dpipe.options import Options
from dpipe.report import write_report
from dpipe.report.figures import pass_spans
from dpipe.report.matrix import MISSING, communities_of, community_order, condense, pack
from dpipe.report.payload import LONGEST_REASON, dump
from dpipe.report.results import Label
from dpipe.report.words import headline
from dpipe.runfolder import RunFolder

MEGABYTE = 10**6
RHO = "\N{GREEK SMALL LETTER RHO}"
MEASURES: dict[str, dict[str, Any]] = {
    "spearman": {"title": f"Spearman {RHO}", "symbol": RHO, "signed": True, "pass": 2},
    "hsic": {"title": "HSIC", "symbol": "HSIC", "signed": False, "pass": 4},
    "rdc": {"title": "RDC", "symbol": "RDC", "signed": False, "pass": 4},
    "hsic+rdc": {"title": "HSIC + RDC", "symbol": "HSIC+RDC", "signed": False, "pass": 4},
}
LABELS = {
    name: Label(each["title"], each["symbol"], each["signed"], each["pass"])
    for name, each in MEASURES.items()
}
NASTY = (
    "<img src=x onerror=alert(1)>",
    "</script><script>alert(2)</script>",
    "<!--<script>",
    "$$\\alpha$$",
    "$title ${data}",
    "\"quoted' & &amp;",
    "two\nlines\tand a tab",
    "  spaces  ",
    "",
    "\u202eright to left",
    "__proto__",
    "x" * 300,
    "名前🧪",
)


def decision(name: str, **changes: Any) -> Decision:
    """A kept column of 100 rows; `changes` make it another."""
    fields: dict[str, Any] = {
        "column": name,
        "dtype": "double",
        "n_valid": 100,
        "n_missing": 0,
        "n_nan": 0,
        "n_inf": 0,
        "n_unique": 90,
        "decision": "kept",
        "pass_number": None,
        "reason": "no similar column",
        "measure": None,
        "value": None,
        "threshold": None,
        "representative": None,
        "community": None,
    }
    return Decision(**{**fields, **changes})


def dropped(name: str, representative: str, number: int = 2, **changes: Any) -> Decision:
    """A column another one stands for."""
    fields = {
        "decision": "dropped",
        "pass_number": number,
        "reason": "redundant",
        "measure": "hsic+rdc" if number == 4 else "spearman",
        "value": 0.97,
        "threshold": 0.95,
        "representative": representative,
        "community": 0,
    }
    return decision(name, **{**fields, **changes})


def constant(name: str) -> Decision:
    return decision(name, decision="dropped", pass_number=1, reason="constant", n_unique=1)


def reading(moment: str, number: int, process: str, pid: int, seconds: float) -> MemoryReading:
    return MemoryReading(moment, number, process, pid, 10**8 + pid, 2 * 10**8, None, seconds)


LEDGER = tuple(
    reading(moment, number, process, pid + 10 * (seconds > 3), seconds)
    for moment, number, seconds in (
        ("start", 0, 0.5),
        ("after", 1, 3.0),
        ("recycled", 1, 4.0),
        ("after", 2, 9.0),
    )
    for process, pid in (("client", 1), ("worker 0", 2), ("worker 1", 3))
)


def record(passes: Sequence[tuple[int, int, int]] = (), **sections: Any) -> dict[str, Any]:
    """What run.json says of passes (number, columns in, columns kept)."""
    names = {1: "prepare", 2: "spearman", 3: "prediction", 4: "nonlinear", 5: "budget"}
    return {
        "versions": {"dpipe": "0.1.0"},
        "options": {"spearman_threshold": 0.95, "nonlinear_threshold": 0.9, "seed": 7},
        "input": {"rows": 100, "rows_used": 100, "files": ["a.parquet"], "skipped": []},
        "measures": MEASURES,
        "plan": {
            "machine": {"workers": 2, "threads": 1, "memory": 2**30},
            "passes": [
                {
                    "number": number,
                    "name": names[number],
                    "columns": before,
                    "shape": "3 tiles of 100 columns",
                    "tasks": 3,
                    "worker_bytes": 2**28,
                    "bytes_read": 10**6,
                    "operations": 1e9,
                }
                for number, before, _ in passes
            ],
        },
        "passes": [
            {
                "number": number,
                "name": names[number],
                "n_columns": before,
                "n_kept": after,
                "seconds": 1.5 * number,
                "reused": False,
            }
            for number, before, after in passes
        ],
        "near_threshold": {},
        "ledger": [],
        "notes": [],
        **sections,
    }


def write_run(
    path: Path,
    decisions: Sequence[Decision],
    run: Mapping[str, Any] | None = None,
    matrices: Mapping[str, tuple[Sequence[str], np.ndarray]] | None = None,
    sample: tuple[Sequence[str], np.ndarray] | None = None,
) -> Path:
    """A run folder as a finished run leaves it."""
    folder = RunFolder(path).create()
    folder.write_decisions(decisions)
    folder.write_selected(d.column for d in decisions if d.decision == "kept")
    folder.write_run(record() if run is None else run)
    for measure, (columns, values) in (matrices or {}).items():
        folder.write_npy(f"{measure}.npy", values.astype(np.float32))
        folder.write_columns(f"{measure}_columns.txt", columns)
    if sample is not None:
        folder.write_npy("rank_sample.npy", sample[1])
        folder.write_columns("rank_sample_columns.txt", sample[0])
    return folder.path


def correlations(size: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    values = rng.uniform(-1, 1, (size, size)).astype(np.float32)
    values = np.triu(values, 1)
    return values + values.T + np.eye(size, dtype=np.float32)


def full_run(path: Path, names: Sequence[str] = ("a", "b", "c", "d", "e")) -> Path:
    """Five and more columns with everything a run can leave: b and d for a, by two passes."""
    a, b, c, d, e, *more = names
    decisions = [
        decision(a, reason="representative of 2 columns"),
        dropped(b, a),
        dropped(d, b, value=-0.99),
        constant(c),
        decision(e, n_valid=80, n_missing=20, n_nan=15, n_inf=1),
        *(decision(name) for name in more),
        decision(
            "key",
            decision="id",
            reason="identifier, passed through",
            n_valid=None,
            n_missing=None,
            n_nan=None,
            n_inf=None,
            n_unique=None,
            dtype="string",
        ),
    ]
    named = [a, b, d, e, *more]
    total = len(decisions) - 1
    run = record(
        [(1, total, total - 1), (2, total - 1, total - 3)],
        near_threshold={"2": [[a, e, 0.9499], [b, e, -0.9501]]},
        ledger=[vars(entry) for entry in LEDGER],
        notes=[{"text": f"{a}: 3 rows were widened.", "level": "warning"}],
    )  # fmt: skip
    codes = np.random.default_rng(1).integers(0, 256, (len(named), 40)).astype(np.uint8)
    return write_run(
        path,
        decisions,
        run,
        {m: (named, correlations(len(named))) for m in ("spearman", "hsic", "rdc")},
        (named, codes),
    )


def targeted_run(
    path: Path, names: Sequence[str] = ("a", "b", "c", "d"), relevance: float = 0.425
) -> Path:
    """Four columns and a target: a and b were taken, b for the similar c; d is over the budget."""
    a, b, c, d, *more = names
    over = {"reason": "over budget", "measure": "r2", "threshold": None, "community": None}
    decisions = [
        decision(a, relevance=0.81),
        decision(b, relevance=0.405, reason="representative of 1 column"),
        dropped(c, b, relevance=relevance),
        dropped(d, a, 5, value=0.25, relevance=0.4, **over),
        *(dropped(name, a, 5, value=None, relevance=None, **over) for name in more),
        decision("y", decision="target", reason="what is to be predicted"),
    ]
    total = len(decisions) - 1
    chosen = [
        {"column": a, "table": 0.5, "target": 0.6},
        {"column": b, "table": 0.75, "target": 0.625},
    ]
    run = record([(1, total, total), (2, total, total - 1), (5, total - 1, 2)], chosen=chosen)
    return write_run(path, decisions, run)


def with_pairs(
    folder: Path, columns: Sequence[str], pairs: Sequence[tuple[int, int, float]], floor: float
) -> Path:
    """The folder of a run of passes 1 and 2 that left these pairs, by number of the columns."""
    run = RunFolder(folder)
    options = dataclasses.asdict(Options(passes=(1, 2)))
    run.write_run({**run.read_run(), "options": options})
    run.write_communities({})
    i, j = (np.array([pair[end] for pair in pairs], dtype=np.int64) for end in (0, 1))
    edges = Edges.sorted(i, j, np.array([pair[2] for pair in pairs]))
    exact = np.ones(len(pairs), dtype=np.bool_)
    run.write_pairs(2, columns, {"spearman": Pairs(edges, np.full(len(pairs), 100), exact, floor)})
    run.join_pairs([2])
    return folder


def run_with_pairs(path: Path, names: Sequence[str] = ("a", "b", "c", "d", "e")) -> Path:
    """A run that dropped b for a; at 0.9 it would drop d too, at 0.75 it would keep b, d and e."""
    decisions = [decision(names[0]), dropped(names[1], names[0]), *map(decision, names[2:])]
    folder = write_run(path, decisions, record([(1, 5, 5), (2, 5, 4)]))
    return with_pairs(folder, names, [(0, 1, 0.97), (1, 2, -0.8), (2, 3, 0.92)], 0.7)


class Page(HTMLParser):
    """What a browser would make of the page, as far as tests ask."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append((dict(attrs), ""))

    def handle_data(self, data: str) -> None:
        if self.lasttag == "script" and self.scripts and self.cdata_elem == "script":
            self.scripts[-1] = (self.scripts[-1][0], self.scripts[-1][1] + data)
        elif self.lasttag != "style":
            self.text += data

    def data(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(
            next(s for a, s in self.scripts if a.get("id") == "data")
        )
        return found


def page_of(folder: Path) -> Page:
    return Page(write_report(folder).read_text(encoding="utf-8"))


# Words


def test_headline_says_how_many_stay_and_why_the_others_were_dropped() -> None:
    title, why, passed = headline(
        [
            *(decision(f"k{i}") for i in range(412)),
            *(dropped(f"r{i}", "k0") for i in range(1200)),
            *(dropped(f"n{i}", "k0", 4, threshold=0.9) for i in range(2)),
            constant("c"),
            dropped("l", "k0", 3, reason="linear combination of a (1), b (2)", threshold=1.0),
            dropped("v", "k0", 3, reason="inflated variance", measure="vif", threshold=10.0),
            dropped("m", "", 1, reason="too many missing values", threshold=0.5),
            decision("id", decision="id"),
            decision("t1", decision="not_numeric"),
            decision("t2", decision="not_numeric"),
        ],
        LABELS,
    )
    why = why.replace("\N{NO-BREAK SPACE}", " ").replace("\N{WORD JOINER}", "")
    assert title == "1,618 columns in, 412 kept"
    assert why == (
        "1,206 dropped: 1,200 redundant (|ρ| ≥ 0.95), 2 redundant (HSIC + RDC ≥ 0.9), "  # noqa: RUF001
        "1 constant, 1 linearly dependent on others, "
        "1 with a variance inflation factor above 10, 1 with more than 50 % missing."
    )
    assert passed == "3 more columns were not compared: 1 identifier, 2 not numeric."


def test_headline_does_not_say_a_number_twice() -> None:
    _, why, _ = headline([decision("a"), dropped("b", "a"), dropped("c", "a")])
    assert why.startswith("2 dropped: redundant (")
    assert headline([decision("a")])[1] == "No column was dropped."


def test_headline_of_a_reason_it_does_not_know() -> None:
    _, why, _ = headline([dropped("a", "", 1, reason="bad omen")])
    assert why == "1 dropped: for another reason (bad omen)."


# Matrices


def brute_force(values: np.ndarray, order: np.ndarray, step: int) -> np.ndarray:
    """Cell by cell: the value that is largest in size, without the diagonal if step > 1."""
    m = values[np.ix_(order, order)].copy()
    if step > 1:
        np.fill_diagonal(m, np.nan)
    side = -(-len(m) // step)
    out = np.full((side, side), np.nan)
    for i in range(side):
        for j in range(side):
            cell = m[i * step : (i + 1) * step, j * step : (j + 1) * step].ravel()
            cell = cell[~np.isnan(cell)]
            if len(cell):
                out[i, j] = cell[np.argmax(np.abs(cell))]
    return out


@given(
    size=st.integers(1, 23), cells=st.integers(1, 30), seed=st.integers(0, 99), gaps=st.booleans()
)
def test_condensed_cells_are_the_largest_of_their_pairs(
    size: int, cells: int, seed: int, gaps: bool
) -> None:
    values = correlations(size, seed)
    rng = np.random.default_rng(seed)
    if gaps:
        holes = np.triu(rng.random((size, size)) < 0.4)
        values[holes | holes.T] = np.nan
    order = rng.permutation(size)
    small, step = condense(values, order, cells)
    assert len(small) <= cells
    np.testing.assert_array_equal(small, brute_force(values, order, step).astype(np.float32))


def test_packed_cells_are_hundredths_of_the_upper_triangle() -> None:
    values = correlations(7)
    values[2, 5] = values[5, 2] = np.nan
    codes = np.frombuffer(base64.b64decode(pack(values)), dtype=np.int8)
    expected = values[np.triu_indices(7)]
    np.testing.assert_array_equal(codes == MISSING, np.isnan(expected))
    np.testing.assert_allclose(
        codes[~np.isnan(expected)] / 100, expected[~np.isnan(expected)], atol=0.005001
    )


def test_columns_stand_by_falling_size_of_their_community() -> None:
    names = [f"c{i}" for i in range(8)]
    groups = {"c7": 3, "c1": 3, "c2": 1, "c3": 1, "c6": 1, "c0": 9}
    order, sizes = community_order(names, groups)
    assert [names[i] for i in order] == ["c2", "c3", "c6", "c1", "c7", "c0", "c4", "c5"]
    assert sizes == [3, 2]


def test_a_representative_belongs_to_the_community_it_stands_for() -> None:
    rows = [
        dropped("b", "a", community=0),
        decision("a", community=4),  # a later pass found it in another community
        dropped("c", "a", 4, community=4),
        decision("alone"),
    ]
    assert communities_of(rows, 2) == {"a": 0, "b": 0}
    assert communities_of(rows, 4) == {"a": 4, "c": 4}


def test_pass_spans_leave_out_restarts() -> None:
    assert pass_spans(LEDGER) == [(1, 0.5, 3.0), (2, 4.0, 9.0)]


# The page


def test_page_shows_what_the_run_found(tmp_path: Path) -> None:
    page = page_of(full_run(tmp_path))
    assert "5 columns in, 2 kept" in page.text
    assert "2\N{NO-BREAK SPACE}redundant" in page.text
    assert "1 more column was not compared: identifier" in page.text
    assert "a: 3 rows were widened." in page.text
    assert "100 rows" in page.text
    assert "95.4 MiB of" not in page.text
    assert "191 MiB of 256 MiB planned" in page.text
    data = page.data()
    names = data["columns"]["name"]
    assert names == ["a", "b", "d", "c", "e", "key"]
    assert data["columns"]["representative"] == [-1, 0, 1, -1, -1, -1]
    assert [(names[i], names[j], value) for _, i, j, value in data["near"]] == [
        ("a", "e", 0.9499),
        ("b", "e", -0.9501),
    ]
    assert [m["measure"] for m in data["matrices"]] == ["spearman", "hsic", "rdc"]
    assert [names[i] for i in data["matrices"][0]["order"]] == ["a", "b", "d", "e"]


def test_page_has_what_other_thresholds_would_keep(tmp_path: Path) -> None:
    page = page_of(run_with_pairs(tmp_path))
    (curve,) = page.data()["curves"]
    kept = {
        threshold: "".join(
            "abcde"[place] for place in range(5) if base64.b64decode(bits)[0] >> place & 1
        )
        for threshold, bits in zip(curve["thresholds"], curve["kept"], strict=True)
    }
    assert set(kept) == {round(0.7 + step / 100, 2) for step in range(30)}
    assert {at: kept[at] for at in (0.7, 0.8, 0.81, 0.92, 0.93, 0.97, 0.98)} == {
        0.7: "bde", 0.8: "bde", 0.81: "ace", 0.92: "ace", 0.93: "acde", 0.97: "acde", 0.98: "abcde",
    }  # fmt: skip
    assert curve["sizes"] == [len(names) for names in kept.values()]
    assert base64.b64decode(curve["now"])[0] == 0b11101
    assert (curve["pass"], curve["measure"], curve["threshold"]) == (2, "spearman", 0.95)
    assert "Pass 2 Spearman" in page.text
    assert "compared pairs of columns" in page_of(EDGES["pass 1 only"](tmp_path / "none")).text


def test_page_without_readable_pairs_says_so(tmp_path: Path) -> None:
    folder = run_with_pairs(tmp_path)
    (folder / "pairs.parquet").write_bytes(b"PAR1 no table PAR1")
    assert "other thresholds are not shown" in page_of(folder).text


def test_page_is_a_result_of_the_run(tmp_path: Path) -> None:
    folder = full_run(tmp_path / "run")
    path = write_report(folder)
    assert path == folder / "report.html"
    manifest = RunFolder(folder).read_json("checkpoint/manifest.json")["files"]
    assert manifest["report.html"]["bytes"] == path.stat().st_size
    assert RunFolder(folder).verify_checksums() == ()


@pytest.mark.parametrize("damage", ["removed", "broken"])
def test_page_of_a_run_without_its_manifest_makes_none(tmp_path: Path, damage: str) -> None:
    folder = full_run(tmp_path / "run")
    manifest = folder / "checkpoint/manifest.json"
    if damage == "removed":
        shutil.rmtree(folder / "checkpoint")
    else:
        manifest.write_bytes(manifest.read_bytes()[:-9])
    before = sorted(folder.rglob("*"))
    path = write_report(folder)
    assert path.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert sorted(folder.rglob("*")) == sorted([*before, path])
    assert damage == "removed" or not manifest.read_text().endswith("}\n")


def test_page_elsewhere_leaves_the_run_alone(tmp_path: Path) -> None:
    folder = full_run(tmp_path / "run")
    before = (folder / "checkpoint/manifest.json").read_bytes()
    path = write_report(folder, tmp_path / "page.html")
    assert path == tmp_path / "page.html"
    assert path.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["page.html", "run"]
    assert not (folder / "report.html").exists()
    assert (folder / "checkpoint/manifest.json").read_bytes() == before


def test_page_is_the_same_each_time(tmp_path: Path) -> None:
    folder = full_run(tmp_path)

    def without_ids(html: str) -> str:
        return re.sub(r'"(?:id|root_id|target_id)":"[^"]*"', "", html)

    first = write_report(folder).read_text(encoding="utf-8")
    assert without_ids(write_report(folder).read_text(encoding="utf-8")) == without_ids(first)


@pytest.mark.parametrize("missing", ["decisions.parquet", "run.json"])
def test_folder_without_results_is_refused(tmp_path: Path, missing: str) -> None:
    folder = full_run(tmp_path)
    (folder / missing).unlink()
    with pytest.raises(InputError, match=missing):
        write_report(folder)
    assert not (folder / "report.html").exists()


@pytest.mark.parametrize(
    "broken",
    [
        {"passes": [{"number": "one"}]},
        {"ledger": [{"moment": "start"}]},
        {"near_threshold": {"2": [["a"]]}},
        {"options": [1]},
        {"notes": ["text"]},
    ],
)
def test_record_of_something_else_is_refused(tmp_path: Path, broken: dict[str, Any]) -> None:
    folder = write_run(tmp_path, [decision("a")], {**record(), **broken})
    with pytest.raises(InputError, match=r"run\.json"):
        write_report(folder)


def test_output_must_be_a_file_in_a_folder(tmp_path: Path) -> None:
    folder = full_run(tmp_path / "run")
    with pytest.raises(InputError, match="is a folder"):
        write_report(folder, tmp_path)
    with pytest.raises(InputError, match="no folder"):
        write_report(folder, tmp_path / "nowhere" / "page.html")


def test_a_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    full_run(tmp_path / "run")
    assert write_report("~/run", "~/page.html") == tmp_path / "page.html"
    assert write_report("~/run") == tmp_path / "run" / "report.html"


def test_matrix_that_does_not_fit_is_left_out_and_said(tmp_path: Path) -> None:
    folder = full_run(tmp_path)
    RunFolder(folder).write_npy("hsic.npy", np.zeros((2, 2), dtype=np.float32))
    (folder / "rdc.npy").write_bytes(b"no array")
    page = page_of(folder)
    assert [m["measure"] for m in page.data()["matrices"]] == ["spearman"]
    assert "it does not fit hsic_columns.txt" in page.text
    assert "rdc matrix is not shown" in page.text


EDGES: dict[str, Callable[[Path], Path]] = {
    "nothing dropped": lambda path: write_run(
        path, [decision("a"), decision("b")], record([(1, 2, 2), (2, 2, 2)])
    ),
    "all dropped but one": lambda path: write_run(
        path,
        [decision("a", reason="representative of 30 columns")]
        + [dropped(f"b{i}", "a") for i in range(30)],
        record([(1, 31, 31), (2, 31, 1)]),
        {"spearman": (["a", *(f"b{i}" for i in range(30))], np.ones((31, 31)))},
    ),
    "one column": lambda path: write_run(
        path, [decision("a")], record([(1, 1, 1)]), {"spearman": (["a"], np.ones((1, 1)))}
    ),
    "no feature": lambda path: write_run(
        path, [decision("id", decision="id", n_valid=None, n_missing=None)]
    ),
    "no column": lambda path: write_run(path, []),
    "pass 1 only": lambda path: write_run(
        path, [decision("a"), constant("b")], record([(1, 2, 1)])
    ),
    "everything constant": lambda path: write_run(
        path, [constant("a"), constant("b")], record([(1, 2, 0)])
    ),
    "all undefined": lambda path: write_run(
        path,
        [decision("a"), decision("b")],
        record([(1, 2, 2)]),
        {"spearman": (["a", "b"], np.full((2, 2), np.nan))},
    ),
    "pairs": run_with_pairs,
    "empty record": lambda path: write_run(path, [decision("a"), dropped("b", "a")], {}),
    "infinite values": lambda path: write_run(
        path,
        [decision("a"), dropped("b", "a", 3, reason="inflated variance", value=np.inf)],
        record([(3, 2, 1)]),
    ),
    "reused passes": lambda path: write_run(
        path,
        [decision("a")],
        {**record([(1, 1, 1)]), "plan": None},
    ),
    "one reading": lambda path: write_run(
        path, [decision("a")], record([(1, 1, 1)], ledger=[vars(LEDGER[0])])
    ),
    "a target and a budget": lambda path: targeted_run(path),
    "names of a target": lambda path: targeted_run(path, NASTY),
    "names": lambda path: full_run(path, NASTY),
    "everything": full_run,
}


@pytest.mark.parametrize("edge", EDGES)
def test_page_of_unusual_runs(tmp_path: Path, edge: str) -> None:
    page = page_of(EDGES[edge](tmp_path))
    assert sum(tag == "h1" for tag, _ in page.tags) == 1
    assert "None" not in page.text
    assert not re.search(r"\bnan\b", page.text)  # as Python writes it


def test_a_run_without_matrices_says_so(tmp_path: Path) -> None:
    page = page_of(EDGES["pass 1 only"](tmp_path))
    assert "This run wrote no similarity matrix" in page.text
    assert "Not run: Spearman, Prediction, Nonlinear." in page.text
    assert "The ledger is empty" in page.text
    assert "No pair lies near a threshold." in page.text
    assert len(page.scripts) == 3  # data, figures, the page's own; no Bokeh where nothing is drawn


def test_a_pass_that_no_column_reached_dropped_nothing_and_says_so(tmp_path: Path) -> None:
    run = record([(1, 2, 0), (2, 0, 0)])
    page = page_of(write_run(tmp_path, [constant("a"), constant("b")], run))
    assert "no column reached it" in page.text
    assert "nothing dropped" not in page.text


def test_columns_that_come_back_are_counted_where_they_went_and_where_they_returned(
    tmp_path: Path,
) -> None:
    columns = [*(decision(name) for name in "abc"), dropped("d", "a", 3), dropped("e", "a", 4)]
    page = page_of(write_run(tmp_path, columns, record([(3, 5, 3), (4, 3, 3)])))
    assert "1 redundant · 1 that came back later" in page.text
    assert "1 redundant · 1 came back" in page.text


def test_columns_that_miss_more_than_allowed_are_explained(tmp_path: Path) -> None:
    holes = decision("a", n_valid=30, n_missing=70)
    strict = record(options={"max_missing_ratio": 0.5})
    page = page_of(write_run(tmp_path / "strict", [holes], strict))
    assert "above the allowed share of 50 % (--max-missing-ratio)" in page.text
    lenient = record(options={"max_missing_ratio": 1.0})
    assert "allowed share" not in page_of(write_run(tmp_path / "lenient", [holes], lenient)).text


def test_long_reasons_are_cut(tmp_path: Path) -> None:
    terms = ", ".join(f"column {i} (0.5)" for i in range(900))
    long = dropped("b", "a", 3, reason=f"linear combination of {terms}", measure="r2")
    data = page_of(write_run(tmp_path, [decision("a"), long])).data()
    assert max(map(len, data["columns"]["reason"]["table"])) == LONGEST_REASON
    assert data["columns"]["kinds"]["3 linear combination"]["label"] == "linear combination"


def test_page_of_a_real_run(tmp_path: Path, client: Any) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    import dpipe

    rng = np.random.default_rng(5)
    base = rng.normal(size=(400, 12))
    columns = {f"base {i}": base[:, i] for i in range(12)}
    columns |= {f"copy {i}": np.exp(base[:, i]) for i in range(4)}
    columns |= {f"near {i}": base[:, i] + 0.05 * rng.normal(size=400) for i in range(6)}
    columns["flat"] = np.zeros(400)
    columns["holes"] = np.where(rng.random(400) < 0.1, np.nan, rng.normal(size=400))
    pq.write_table(pa.table(columns), tmp_path / "table.parquet")
    result = dpipe.select(tmp_path / "table.parquet", client=client, output_dir=tmp_path / "run")

    page = Page((tmp_path / "run" / "report.html").read_text(encoding="utf-8"))
    assert f"24 columns in, {len(result.selected)} kept" in page.text
    assert "the page could not be rendered" not in page.text
    data = page.data()
    assert data["columns"]["name"] == list(columns)
    kept = data["columns"]["decision"]["table"].index("kept")
    assert data["columns"]["decision"]["code"].count(kept) == len(result.selected)
    assert [m["measure"] for m in data["matrices"]] == ["spearman", "hsic", "rdc"]
    assert data["ledger"]
    assert "planned" in page.text
    assert RunFolder(tmp_path / "run").verify_checksums() == ()


def test_what_tells_of_the_target_and_what_stands_for_it(tmp_path: Path) -> None:
    page = page_of(targeted_run(tmp_path))
    assert "Of the 4 most relevant columns 2 were kept." in page.text
    assert "Of the others c (0.425) loses most: what stands for it, b, has 0.405." in page.text
    assert {"#target", "#chosen"} <= {attrs.get("href") for _, attrs in page.tags}
    assert page.data()["columns"]["relevance"] == [0.81, 0.405, 0.425, 0.4, None]


def test_a_run_without_target_and_budget_has_no_section_on_them(tmp_path: Path) -> None:
    page = page_of(full_run(tmp_path))
    assert not {"target", "chosen"} & {attrs.get("id") for _, attrs in page.tags}
    assert not {"#target", "#chosen"} & {attrs.get("href") for _, attrs in page.tags}


def test_the_curve_of_a_budget_goes_through_what_was_recorded(tmp_path: Path) -> None:
    page = page_of(targeted_run(tmp_path))
    assert (
        "2 columns explain 75 % of the variance of the columns that were left to choose from and "
        "62 % of the target's" in page.text
    )
    lines = {
        attrs["class"]: [
            tuple(map(float, point.split(","))) for point in str(attrs["points"]).split()
        ]
        for tag, attrs in page.tags
        if tag == "polyline"
    }
    for name, shares in (("table", [0, 0.5, 0.75]), ("target", [0, 0.6, 0.625])):
        (x0, y0), *others = lines[name]
        widths = [x - x0 for x, _ in others]
        assert widths[1] == pytest.approx(2 * widths[0], abs=0.2)
        heights = [y0 - y for _, y in lines[name]]
        assert heights[1] / heights[2] == pytest.approx(shares[1] / shares[2], abs=0.01)
    assert page.data()["chosen"] == [[0, 0.5, 0.6], [1, 0.75, 0.625]]


def test_no_rule_of_the_style_sheet_overrides_another_by_accident() -> None:
    style = resources.files("dpipe.report").joinpath("page.css").read_text(encoding="utf-8")
    style = re.sub(
        r"/\*.*?\*/|@media[^{]*\{(?:[^{}]*\{[^{}]*\})*[^{}]*\}", "", style, flags=re.DOTALL
    )
    selectors = [selector.strip() for selector in re.findall(r"([^{}]+)\{", style)]
    assert len(selectors) > 100
    assert [each for each, count in Counter(selectors).items() if count > 1] == []


# Safety


def test_names_never_become_markup(tmp_path: Path) -> None:
    page = page_of(full_run(tmp_path, NASTY))
    assert {tag for tag, _ in page.tags} <= {
        *("html", "head", "meta", "title", "style", "body", "a", "header", "div", "span", "nav"),
        *("main", "section", "h1", "h2", "h3", "p", "ol", "ul", "li", "small", "button", "input"),
        *("label", "noscript", "code", "table", "thead", "tbody", "tr", "th", "td", "i", "br"),
        *("details", "summary", "script"),
    }
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert page.data()["columns"]["name"][:3] == [NASTY[0], NASTY[1], NASTY[3]]
    assert len(page.scripts) == 5  # data, figures, Bokeh and its log level, the page's own


def test_page_fetches_nothing_and_runs_only_its_own_scripts(tmp_path: Path) -> None:
    page = page_of(full_run(tmp_path))
    for tag, attributes in page.tags:
        assert "src" not in attributes, tag
        assert (attributes.get("href") or "#").startswith("#"), tag
    policy = next(a["content"] for t, a in page.tags if a.get("http-equiv"))
    assert policy is not None
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "'unsafe-inline'" not in policy.split("style-src")[0]
    for attributes, script in page.scripts:
        if attributes.get("type") != "application/json":
            digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
            assert f"'sha256-{digest}'" in policy


def test_passwords_in_addresses_are_not_shown(tmp_path: Path) -> None:
    run = record()
    run["input"]["files"] = ["https://me:secret@host/a.parquet"]
    run["input"]["skipped"] = [["https://me:secret@host/b.parquet", "broken"]]
    html = write_report(write_run(tmp_path, [decision("a")], run)).read_text(encoding="utf-8")
    assert "secret" not in html


@given(st.recursive(st.text() | st.integers() | st.none(), st.lists))
def test_data_survives_being_inside_a_page(value: Any) -> None:
    text = dump(value)
    assert "<" not in text
    assert json.loads(text) == value


# Size


def large_run(path: Path, size: int, name: Callable[[int], str]) -> Path:
    """As large as a run of `size` columns gets: dropped columns, matrices, pairs, ledger, ranks."""
    names = [name(i) for i in range(size)]
    decisions = [
        decision(names[i])
        if i % 4 == 0
        else dropped(
            names[i], names[i - i % 4], value=0.95 + i * 1e-7, community=i // 4, n_missing=i
        )
        for i in range(size)
    ]
    pairs = [[names[i], names[i + 1], 0.95 + i * 1e-6] for i in range(1000)]
    ledger = [
        vars(reading(moment, number, process, pid, seconds))
        for moment, number, seconds in (
            ("start", 0, 0.5), ("after", 1, 1000.25), ("recycled", 1, 1010.5),
            ("after", 2, 2000.75), ("after", 3, 2001.25), ("recycled", 3, 2010.5),
            ("after", 4, 9000.75),
        )
        for pid, process in enumerate(f"tcp://10.0.0.1:{port}" for port in range(32000, 32064))
    ]  # fmt: skip
    run = record(
        [(1, size, size), (2, size, size // 4)],
        near_threshold={"2": pairs, "4": pairs},
        ledger=ledger,
    )
    # More columns than this make no larger picture.
    shown = names[: min(size, 1040)]
    values = correlations(len(shown))
    rng = np.random.default_rng(3)
    folder = write_run(
        path,
        decisions,
        run,
        dict.fromkeys(("spearman", "hsic", "rdc"), (shown, values)),
        (names, rng.integers(0, 256, (size, 200), dtype=np.uint8)),
    )
    numbers = {"minimum": -12.3456789, "maximum": 1.23e5, "mean": 0.000123456}
    others = dict.fromkeys(("variance", "normalised_variance", "q025", "q975", "top_share"), 0.5)
    RunFolder(folder).write_statistics(
        ColumnStatistics(name, 9, 6, 3, 0, 0, 6, **numbers, **others, rank_hash="")
        for name in names
    )
    redundant = [(i - i % 4, i, 0.95 + i * 1e-6) for i in range(size) if i % 4]
    return with_pairs(folder, names, redundant, 0.94)


@pytest.mark.parametrize(
    ("size", "name", "limit"),
    [
        (5000, lambda i: f"descriptor_{i:05d}_of_family", 5),
        (5000, lambda i: f"{i:05d}" + "n" * 295, 5),
        (20000, lambda i: f"descriptor_{i:05d}_of_family", 6.5),
    ],
    ids=["5,000", "5,000 long names", "20,000"],
)
def test_page_stays_small(
    tmp_path: Path, size: int, name: Callable[[int], str], limit: float
) -> None:
    path = write_report(large_run(tmp_path, size, name))
    assert path.stat().st_size < limit * MEGABYTE


# In a browser

needs_browser = pytest.mark.skipif(
    not (
        importlib.util.find_spec("selenium")
        and shutil.which("chromedriver")
        and (shutil.which("chromium") or shutil.which("google-chrome"))
    ),
    reason="no browser: needs selenium, chromedriver and Chromium",
)

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


class Browser:
    """A laptop's screen with nothing on it yet."""

    def __init__(self, profile: Path) -> None:
        from selenium import webdriver
        from selenium.webdriver.chrome.service import Service

        options = webdriver.ChromeOptions()
        for flag in (*FLAGS, f"--user-data-dir={profile}", "--window-size=1366,768"):
            options.add_argument(flag)
        options.binary_location = shutil.which("chromium") or shutil.which("google-chrome") or ""
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        self.driver = webdriver.Chrome(options, Service(shutil.which("chromedriver")))
        self.command(
            "Emulation.setDeviceMetricsOverride",
            width=1366,
            height=768,
            deviceScaleFactor=1,
            mobile=False,
        )
        self.scheme("light")

    def command(self, name: str, **parameters: Any) -> None:
        self.driver.execute_cdp_cmd(name, parameters)

    def scheme(self, name: str) -> None:
        self.command(
            "Emulation.setEmulatedMedia",
            features=[
                {"name": "prefers-color-scheme", "value": name},
                {"name": "prefers-reduced-motion", "value": "reduce"},  # no waiting for scrolls
            ],
        )

    def open(self, path: Path) -> None:
        self.complaints()
        self.driver.get_log("performance")
        self.driver.get(path.as_uri())
        self.wait("return document.documentElement.dataset.ready === 'true'")

    def complaints(self) -> list[str]:
        """What the console says beyond information: errors, warnings, refused by the policy."""
        return [
            e["message"]
            for e in self.driver.get_log("browser")
            if e["level"] not in ("INFO", "DEBUG")
        ]

    def requests(self) -> set[str]:
        """Schemes of everything asked for since the page was opened."""
        messages = (json.loads(e["message"])["message"] for e in self.driver.get_log("performance"))
        urls = (
            m["params"]["request"]["url"]
            for m in messages
            if m["method"] == "Network.requestWillBeSent"
        )
        return {url.split(":", 1)[0] for url in urls}

    def run(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def wait(self, script: str, *arguments: Any) -> Any:
        from selenium.webdriver.support.ui import WebDriverWait

        return WebDriverWait(self.driver, 30, 0.05).until(lambda _: self.run(script, *arguments))

    def one(self, selector: str) -> Any:
        return self.driver.find_element("css selector", selector)

    def all(self, selector: str) -> list[Any]:
        return list(self.driver.find_elements("css selector", selector))

    def texts(self, selector: str) -> list[str]:
        found: list[str] = self.run(
            "return [...document.querySelectorAll(arguments[0])].map((e) => e.textContent)",
            selector,
        )
        return found

    def keys(self, *keys: str) -> None:
        """Press keys wherever the focus is."""
        from selenium.webdriver.common.action_chains import ActionChains

        ActionChains(self.driver).send_keys(*keys).perform()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    browser = Browser(tmp_path_factory.mktemp("profile"))
    try:
        yield browser
    finally:
        browser.driver.quit()


FIGURES_DRAWN = (
    "return ['matrix', 'curve', 'memory', 'pair'].every((name) => "
    "!JSON.parse(document.getElementById('figures').textContent)[name] || "
    "!document.getElementById('figure-' + name) || "
    "document.getElementById('figure-' + name).childElementCount > 0)"
)


@needs_browser
@pytest.mark.parametrize(
    ("edge", "scheme"), [*((edge, "light") for edge in EDGES), ("everything", "dark")]
)
def test_browser_has_nothing_to_complain_about(
    browser: Browser, tmp_path: Path, edge: str, scheme: str
) -> None:
    browser.scheme(scheme)
    browser.open(write_report(EDGES[edge](tmp_path)))
    browser.wait(FIGURES_DRAWN)
    assert browser.complaints() == []
    assert browser.requests() <= {"file", "data", "chrome-error"}
    assert browser.run("return document.documentElement.scrollWidth <= innerWidth")
    assert browser.run("return document.querySelectorAll('main img, main script').length") == 0


@needs_browser
@pytest.mark.parametrize("width", [400, 700, 1200])
def test_page_is_read_on_any_screen(browser: Browser, tmp_path: Path, width: int) -> None:
    size = {"height": 768, "deviceScaleFactor": 1, "mobile": False}
    browser.command("Emulation.setDeviceMetricsOverride", width=width, **size)
    try:
        browser.open(write_report(targeted_run(tmp_path)))
        assert browser.run("return document.documentElement.scrollWidth <= innerWidth")
        cut = (
            "return [...document.querySelectorAll('[data-table=decisions] th button')]"
            ".filter((e) => e.scrollWidth > e.parentNode.clientWidth).map((e) => e.textContent)"
        )
        assert browser.run(cut) == []
        share = (
            "return document.querySelector('.funnel .track').clientWidth / "
            "document.querySelector('.funnel').clientWidth"
        )
        assert browser.run(share) > 0.4
        grey = (
            "const stats = document.querySelector('.stats'), right = (e) => "
            "e.getBoundingClientRect().right; return right(stats) - right(stats.lastElementChild)"
        )
        assert browser.run(grey) < 3  # the last line of statistics is as wide as the others
    finally:
        browser.command("Emulation.setDeviceMetricsOverride", width=1366, **size)


@needs_browser
def test_table_is_searched_sorted_and_filtered(browser: Browser, tmp_path: Path) -> None:
    names = [f"c{i}" for i in range(3000)]
    rows = [
        decision(n) if i % 2 else dropped(n, names[i + 1], value=0.95 + i * 1e-5)
        for i, n in enumerate(names)
    ]
    browser.open(write_report(write_run(tmp_path, rows, record([(2, 3000, 1500)]))))
    table = "[data-table=decisions]"
    first = f"{table} tr[data-row='0'] td:nth-child(2)"
    assert browser.texts(f"{table} .count") == ["3,000 columns"]
    assert len(browser.all(f"{table} tbody tr")) < 60  # the others are not in the document
    assert browser.texts(first) == ["c0"]

    browser.one(f"{table} th:nth-child(6) button").click()  # by value, falling
    assert browser.texts(first) == ["c2998"]
    assert browser.one(f"{table} th:nth-child(6)").get_attribute("aria-sort") == "descending"
    browser.one(f"{table} th:nth-child(6) button").click()
    assert browser.texts(first) == ["c0"]
    browser.one(f"{table} th:nth-child(2) button").click()  # by name, as a person counts
    assert browser.texts(f"{table} td:nth-child(2)")[:3] == ["c0", "c1", "c2"]

    browser.one(f"{table} input").send_keys("C12")
    assert browser.texts(f"{table} .count") == ["111 of 3,000 columns"]
    browser.one(f"{table} select").send_keys("Kept")
    assert browser.texts(f"{table} .count") == ["55 of 3,000 columns"]
    browser.one(f"{table} input").send_keys(" and nothing like it")
    assert browser.texts(f"{table} td") == ["Nothing matches."]

    browser.one(f"{table} input").clear()
    browser.one(f"{table} input").send_keys("c2999")
    browser.one(f"{table} td button.open").click()
    assert browser.texts("#column h3") == ["c2999"]
    browser.run("document.querySelector(arguments[0]).scrollTop = 1e6", f"{table} .scroll")
    assert browser.complaints() == []


@needs_browser
def test_tables_of_the_target_and_of_the_budget(browser: Browser, tmp_path: Path) -> None:
    browser.open(write_report(targeted_run(tmp_path)))
    assert browser.texts("[data-table=relevance] tr[data-row] td")[:12] == [
        *("a", "0.8100", "kept", "", "", ""),
        *("c", "0.4250", "dropped", "b", "0.4050", "0.0200"),
    ]
    chosen = browser.texts("[data-table=chosen] tr[data-row] td")
    assert chosen[5:] == ["2", "b", "75.0 %", "62.5 %", "0.4050"]
    browser.one("#find").send_keys("d")
    browser.one("#columns [role=option]").click()
    assert "Of the columns kept the most similar is:" in browser.texts("#asked")[0]
    assert "limit" not in browser.texts("#asked")[0]
    assert browser.complaints() == []


@needs_browser
def test_a_difference_that_rounds_to_nothing_has_no_sign(browser: Browser, tmp_path: Path) -> None:
    browser.open(write_report(targeted_run(tmp_path, relevance=0.405 - 4e-5)))
    cells = browser.texts("[data-table=relevance] tr[data-row] td")
    assert cells[12:18] == ["c", "0.4050", "dropped", "b", "0.4050", "0.0000"]


@needs_browser
def test_scrolling_a_table_shows_the_rows_of_that_place(browser: Browser, tmp_path: Path) -> None:
    rows = [decision(f"c{i}") for i in range(20000)]
    browser.open(write_report(write_run(tmp_path, rows)))
    table = "[data-table=decisions]"
    browser.run("document.querySelector(arguments[0]).scrollTop = 32 * 12345", f"{table} .scroll")
    browser.wait(
        "const row = document.querySelector(arguments[0]); return row && "
        "row.getBoundingClientRect().top - row.closest('.scroll').getBoundingClientRect().top < 80",
        f"{table} tr[data-row='12345']",
    )
    assert len(browser.all(f"{table} tbody tr")) < 60


@needs_browser
def test_column_is_found_and_read_with_the_keyboard_alone(browser: Browser, tmp_path: Path) -> None:
    from selenium.webdriver.common.keys import Keys

    browser.open(write_report(full_run(tmp_path)))
    assert browser.texts("#column h3") == ["a"]
    assert browser.texts("#columns .option .name") == ["a", "e"]
    browser.run("document.getElementById('find').focus()")
    browser.keys("d")
    assert browser.texts("#columns .option .name") == ["d"]
    browser.keys(Keys.ENTER)
    assert browser.texts("#column h3") == ["a"]
    assert browser.texts(".chain .name") == ["d", "b", "a"]
    assert "ρ −0.9900 with the next" in browser.texts(".chain small")[0]  # noqa: RUF001
    assert browser.texts(".chain .values") == ["100 valid, 0 % missing, 90 different"] * 2
    assert browser.texts("#asked") == [
        "d was dropped by pass 2 – redundant (ρ −0.9900, limit 0.95). "  # noqa: RUF001
        "By way of b, this column stands for it:"
    ]
    assert browser.texts(".alternatives td:nth-child(4)") == ["direct", "b"]
    browser.wait("return document.querySelector('#figure-pair').childElementCount > 0")
    browser.keys(Keys.TAB)  # to the list
    assert browser.run("return document.activeElement.id") == "columns"
    browser.run("document.getElementById('find').value = ''")
    browser.run("document.getElementById('find').dispatchEvent(new Event('input'))")
    browser.keys(Keys.END)
    assert browser.texts("#column h3") == ["e"]
    assert browser.texts("#asked") == []
    assert browser.texts("#column .hint") == ["It stands for no other column."]
    assert browser.complaints() == []


@needs_browser
def test_rows_on_one_spot_make_a_larger_point(browser: Browser, tmp_path: Path) -> None:
    rows = [decision("a"), dropped("b", "a")]
    codes = np.array([[1, 1, 1, 1, 255, 255, 0], [1, 1, 1, 255, 255, 255, 255]], np.uint8)
    browser.open(write_report(write_run(tmp_path, rows, sample=(["a", "b"], codes))))
    browser.one("#find").send_keys("b")
    browser.one("#columns .option").click()
    points = (
        "const plots = Bokeh.documents.flatMap((d) => d.roots());"
        "const plot = plots.find((r) => r.name === 'pair');"
        "const source = plot && [...plot.references()].find((r) => r.name === 'pair-points');"
        "if (!source) return [];"
        "const { x, y, size } = source.data;"
        "return Array.from(x, (_, k) => [x[k], y[k], (size[k] / 5) ** 2])"
    )
    wanted = [[0.0, 0.0, 3.0], [0.0, 1.0, 1.0], [1.0, 1.0, 2.0]]  # the seventh row misses a
    browser.wait(f"return (() => {{{points}}})().length > 0")
    found = sorted([x, y, round(rows, 6)] for y, x, rows in browser.run(points))
    assert found == wanted


@needs_browser
def test_dropped_column_is_in_sight_among_many(browser: Browser, tmp_path: Path) -> None:
    rows = [decision("a"), decision("v"), dropped("u", "v", 3, reason="inflated variance")]
    rows += [dropped(f"b{i}", "a", value=0.99 - i * 1e-4) for i in range(90)]
    browser.open(write_report(write_run(tmp_path, rows)))
    sight = (
        "const row = document.querySelector('.alternatives tr[aria-current=true]');"
        "const inner = row.getBoundingClientRect();"
        "const outer = row.closest('.scroll').getBoundingClientRect();"
        "return [row.textContent, inner.top >= outer.top + 32 && inner.bottom <= outer.bottom]"
    )
    for name in ("b70", "b0"):
        browser.run("document.getElementById('find').value = ''")
        browser.one("#find").send_keys(name)
        browser.one("#columns .option").click()
        found, seen = browser.run(sight)
        assert found.startswith(name)
        assert seen
    assert "This column stands for it:" in browser.texts("#asked")[0]
    browser.one(".alternatives tr[data-row='1'] button").click()  # another one of the table
    assert browser.texts("#asked")[0].startswith("b1 was dropped by pass 2")
    browser.run("document.getElementById('find').value = ''")
    browser.one("#find").send_keys("u")
    browser.one("#columns .option").click()
    assert "Kept columns determine it together" in browser.texts("#asked")[0]
    assert browser.complaints() == []


@needs_browser
def test_the_very_name_is_found_first(browser: Browser, tmp_path: Path) -> None:
    names = ("big nAring", "nAringing", "naring", "nAring")
    rows = [decision(name) for name in names[:3]] + [dropped("nAring", "big nAring")]
    browser.open(write_report(write_run(tmp_path, rows)))
    browser.one("#find").send_keys("nAring")
    found = browser.texts("#columns .option .name")
    assert found == ["nAring", "naring", "nAringing", "big nAring"]


@needs_browser
def test_list_says_what_its_numbers_mean(browser: Browser, tmp_path: Path) -> None:
    count = "#columns-count"
    browser.open(write_report(full_run(tmp_path / "some")))
    assert browser.texts(count) == ["2 kept columns; “for 5” means 5 similar ones"]
    browser.open(write_report(EDGES["one column"](tmp_path / "one")))
    assert browser.texts(count) == ["1 kept column"]
    browser.open(write_report(EDGES["everything constant"](tmp_path / "none")))
    assert browser.texts("#columns .empty")[0].startswith("No column was kept. Type")
    browser.one("#find").send_keys("nothing like it")
    assert browser.texts("#columns .empty") == ["No such column."]


@needs_browser
def test_matrix_says_what_is_undefined_and_how_it_is_ordered(
    browser: Browser, tmp_path: Path
) -> None:
    labels = (
        "const plot = Bokeh.documents.flatMap((d) => d.roots()).find((r) => r.name === 'matrix');"
        "return [...plot.references()].filter((m) => (m.name || '').startsWith('matrix-')"
        " && m.axis_label).map((m) => m.axis_label)"
    )
    shown = "return !document.getElementById('undefined').hidden"
    ready = "return document.querySelector('.segmented [aria-pressed=true]') !== null"
    browser.open(write_report(EDGES["all undefined"](tmp_path / "undefined")))
    browser.wait(ready)
    assert browser.run(shown)
    assert browser.run(labels) == ["columns, in the order of the input"] * 2
    browser.open(write_report(EDGES["all dropped but one"](tmp_path / "one")))
    browser.wait(ready)
    assert not browser.run(shown)
    assert browser.run(labels) == ["columns, by community"] * 2
    assert browser.texts("#matrix-note")[0].startswith("31 columns: one community. ")


@needs_browser
def test_matrix_is_read_zoomed_and_clicked(browser: Browser, tmp_path: Path) -> None:
    from selenium.webdriver.common.action_chains import ActionChains

    names = [f"c{i}" for i in range(40)]
    values = correlations(40)
    rows = [decision(n) for n in names]
    browser.open(
        write_report(
            write_run(tmp_path, rows, record([(2, 40, 40)]), {"spearman": (names, values)})
        )
    )
    browser.wait("return document.querySelector('.segmented [aria-pressed=true]') !== null")
    browser.run("document.getElementById('similarity').scrollIntoView({behavior: 'instant'})")
    stage = browser.one("#figure-matrix")
    ranges = (
        "const plot = Bokeh.documents.flatMap((d) => d.roots()).find((r) => r.name === 'matrix');"
        "return [plot.x_range.start, plot.x_range.end, plot.y_range.end, plot.y_range.start]"
    )
    assert browser.run(ranges) == [0, 40, 0, 40]

    ActionChains(browser.driver).move_to_element_with_offset(stage, 100, -60).perform()
    browser.wait("return document.querySelectorAll('#readout dd').length === 2")
    row, column = (int(text[1:]) for text in browser.texts("#readout dd"))
    assert row < column  # above the diagonal, as row 0 is on top
    told = browser.texts("#readout b")[0].replace("\N{MINUS SIGN}", "-")
    assert float(told.split()[-1]) == pytest.approx(values[row, column], abs=0.00501)

    browser.run("arguments[0].focus()", stage)
    browser.keys("+")
    assert browser.run(ranges) == [10, 30, 10, 30]
    browser.keys("\ue012")  # to the left
    assert browser.run(ranges) == [6, 26, 10, 30]
    assert browser.texts("#readout dd") == ["c20", "c16"]  # under the cross, in the middle
    browser.keys("\ue007")  # Enter
    assert browser.texts("#column h3") == ["c20"]
    browser.run("arguments[0].focus()", stage)
    browser.keys("-", "-")
    assert browser.run(ranges) == [0, 40, 0, 40]
    browser.one("[data-zoom=in]").click()
    browser.one("[data-zoom=all]").click()
    assert browser.run(ranges) == [0, 40, 0, 40]

    drag = ActionChains(browser.driver).move_to_element_with_offset(stage, -100, -100)
    drag.click_and_hold().move_by_offset(130, 130).release().perform()
    browser.wait(f"const at = (() => {{ {ranges} }})(); return Math.abs(at[1] - at[0] - 10) < 0.1")
    browser.one("[data-zoom=all]").click()

    ActionChains(browser.driver).move_to_element_with_offset(stage, 100, -60).click().perform()
    browser.wait(
        "return document.querySelector('#column h3').textContent === arguments[0]", f"c{row}"
    )
    assert browser.complaints() == []


@needs_browser
def test_slider_shows_what_would_go_and_what_would_come_back(
    browser: Browser, tmp_path: Path
) -> None:
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    browser.open(write_report(run_with_pairs(tmp_path, ["!", *NASTY[:4]])))
    browser.wait("return document.getElementById('verdict').textContent !== ''")
    verdict = "#verdict"
    assert browser.texts(verdict)[0].startswith(
        f"This run: at |Spearman {RHO}| ≥ 0.95 pass 2 kept 4 of 5 columns."
    )
    assert browser.texts("#asked-threshold") == ["0.95"]
    assert not browser.one("[data-table=changes]").is_displayed()
    assert not browser.one("#as-run").is_enabled()

    browser.run("document.getElementById('threshold').focus()")
    browser.keys(*([Keys.ARROW_LEFT] * 20))
    assert browser.texts("#asked-threshold") == ["0.75"]
    assert browser.texts(verdict)[0].endswith(
        "pass 2 would keep 3 of 5 columns: of those it kept in this run 2 would go, and 1 would "
        "come back."
    )
    names = browser.texts("[data-table=changes] button.open")
    changes = browser.texts("[data-table=changes] td:nth-child(2)")
    assert list(zip(names, changes, strict=True)) == [
        ("!", "go"), (NASTY[1], "go"), (NASTY[0], "come back"),
    ]  # fmt: skip
    assert browser.texts("[data-table=changes] td:nth-child(3)")[2] == f"redundant, {RHO} 0.9700"
    assert browser.one("#threshold").get_attribute("aria-valuetext") == "0.75"
    browser.one("[data-table=changes] input").send_keys("script")
    assert browser.texts("[data-table=changes] button.open") == [NASTY[1]]
    browser.run("document.getElementById('as-run').click()")
    assert browser.texts("#asked-threshold") == ["0.95"]
    browser.run("document.getElementById('thresholds').scrollIntoView({behavior: 'instant'})")
    middle = ActionChains(browser.driver).move_to_element(browser.one("#figure-curve"))
    middle.click().perform()
    browser.wait("return document.getElementById('asked-threshold').textContent !== '0.95'")
    assert 0.8 < float(browser.texts("#asked-threshold")[0]) < 0.9
    assert browser.complaints() == []


@needs_browser
def test_figures_follow_the_colour_scheme(browser: Browser, tmp_path: Path) -> None:
    palette = (
        "const plot = Bokeh.documents.flatMap((d) => d.roots()).find((r) => r.name === 'matrix');"
        "return [...plot.references()].find((m) => m.name === 'matrix-colours').palette.join()"
    )
    browser.scheme("light")
    browser.open(write_report(full_run(tmp_path)))
    browser.wait("return document.querySelector('.segmented [aria-pressed=true]') !== null")
    light = browser.run(palette)
    assert light.count("#") == 201
    browser.scheme("dark")
    browser.wait(f"return (() => {{ {palette} }})() !== arguments[0]", light)
    assert browser.complaints() == []


@needs_browser
def test_nasty_names_are_text_everywhere(browser: Browser, tmp_path: Path) -> None:
    browser.open(write_report(full_run(tmp_path, NASTY)))
    for i in range(len(NASTY) - 2):
        browser.run(
            "document.querySelectorAll('[data-table=decisions] tr.row')[arguments[0]].click()",
            i,
        )
    assert NASTY[0] in browser.texts("[data-table=decisions] button.open")
    assert "two\\nlines\\tand a tab" in browser.texts("[data-table=decisions] button.open")
    assert "(no name)" in browser.texts("[data-table=decisions] button.open")
    assert "\\u202eright to left" in browser.texts("[data-table=decisions] button.open")
    assert browser.run("return document.querySelectorAll('main img, main script').length") == 0
    assert browser.complaints() == []  # neither script nor request was even refused


@needs_browser
def test_a_bar_and_its_row_in_the_table_have_one_name(browser: Browser, tmp_path: Path) -> None:
    browser.open(write_report(targeted_run(tmp_path, ("", "two\nlines", "c\x7f", "d\ufeff"))))
    bars = browser.texts("#target .bins > .name")
    assert bars == ["(no name)", "c\\u007f", "two\\nlines", "d\\ufeff"]
    assert browser.texts("[data-table=relevance] td:first-child button.open") == bars


@needs_browser
def test_large_page_opens(browser: Browser, tmp_path: Path) -> None:
    folder = large_run(tmp_path, 20000, lambda i: f"descriptor_{i:05d}_of_family")
    browser.open(write_report(folder))
    browser.wait("return document.querySelector('.segmented [aria-pressed=true]') !== null")
    assert browser.run("return document.querySelectorAll('*').length") < 3000
    assert browser.texts("[data-table=decisions] .count") == ["20,000 columns"]
    browser.one("details:has([data-table=ledger]) summary").click()
    browser.wait("return document.querySelector('[data-table=ledger] tr[data-row]') !== null")
    assert browser.texts("[data-table=ledger] .count") == ["448 readings"]
    assert browser.complaints() == []
