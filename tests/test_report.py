"""The page of a run: what it says, how large it is, that nothing in it can run or fetch anything.

Covers: `dpipe.report` on run folders written by hand and on a real small run.
Does not cover: how it is used (`test_report_browser`), what it is made of (`test_report_parts`),
whether the results it shows are right (see `test_pipeline`, `dpipe.verify`).
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
from collections import Counter
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pages import Page, page_of
from results import NASTY, constant, decision, dropped, record, write_run
from written_runs import EDGES, full_run, large_run, run_with_pairs, targeted_run

from dpipe.errors import InputError
from dpipe.report import write_report
from dpipe.report.payload import LONGEST_REASON, dump
from dpipe.runfolder import RunFolder

MEGABYTE = 10**6


# What it says


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
    result = dpipe.select(
        tmp_path / "table.parquet", client=client, restart="never", output_dir=tmp_path / "run"
    )

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
