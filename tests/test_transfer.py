"""Whether a selection holds on new data, compared with pandas and with runs on the whole table.

Covers: values of dropped columns, certificates that break, kept columns that became redundant,
unfit or absent, ranges, what kept columns predict, the command with its exit code.
Does not cover: the measures themselves (see `test_tiles`).
"""

from __future__ import annotations

import contextlib
import html
import math
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import statsmodels.api as sm
from click.testing import CliRunner

import dpipe
from dpipe.cli import main
from dpipe.errors import InputError
from dpipe.model.registry import Reason
from dpipe.model.transfer import Certificate, Transfer
from dpipe.report.transfer import render, write_transfer
from dpipe.session import session_for
from tests.tables import mixed_table, write_parts

PLAIN: dict[str, Any] = {"restart": "never", "min_valid": 50}


def frame(n: int = 400) -> pd.DataFrame:
    rng = np.random.default_rng(4)
    base = rng.normal(size=(n, 6))
    table = pd.DataFrame(base, columns=[f"x{i}" for i in range(6)])
    table["near"] = table["x0"] + 0.05 * rng.normal(size=n)
    table["holes"] = np.where(rng.random(n) < 0.1, np.nan, -(table["x1"] ** 3))
    table["curve"] = table["x2"] ** 2 + 0.01 * rng.normal(size=n)
    table["twice"] = 2 * table["x3"] + 1
    table["flat"] = 1.0
    return table


@pytest.fixture(scope="module")
def finished(cluster: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on the first half of a table."""
    folder = tmp_path_factory.mktemp("transfer") / "run"
    options = {**PLAIN, "nonlinear_threshold": 0.5}
    dpipe.select(frame()[:200], client=cluster, output_dir=folder, **options)
    return folder


def on(finished: Path, data: Any, client: Any) -> Transfer:
    return dpipe.transfer(finished, data, client=client, restart="never")


def test_every_dropped_column_has_its_value_on_the_new_data(finished: Path, client: Any) -> None:
    new = frame()[200:]
    answer = on(finished, new, client)
    assert answer.holds, answer.lines
    assert answer.broken == answer.redundant == answer.unfit == answer.absent == ()
    spearman = [each for each in answer.certificates if each.measure == "spearman"]
    assert {each.column for each in spearman} >= {"holes"}
    for each in spearman:
        expected = new[each.column].corr(new[each.representative], method="spearman")
        assert each.now == pytest.approx(expected, abs=1e-9)
        old = frame()[:200]
        before = old[each.column].corr(old[each.representative], method="spearman")
        assert each.before == pytest.approx(before, abs=1e-6) or each.before == 1
    (curve,) = [each for each in answer.certificates if each.measure == "hsic+rdc"]
    hsic = dpipe.hsic(new, client=client, restart="never")
    rdc = dpipe.rdc(new, client=client, restart="never")
    i, j = (hsic.columns.index(name) for name in (curve.column, curve.representative))
    assert curve.now == pytest.approx((hsic.values[i, j] + rdc.values[i, j]) / 2, abs=2e-5)


def test_what_breaks_is_named(finished: Path, client: Any) -> None:
    new = frame()[200:].copy()
    rng = np.random.default_rng(5)
    new["holes"] = rng.normal(size=len(new))
    new["x4"] = new["x5"] + 0.01 * rng.normal(size=len(new))
    new.loc[new.index[0], "x0"] = 1e6
    answer = on(finished, new, client)
    assert not answer.holds
    (broken,) = answer.broken
    assert "holes" in (broken.column, broken.representative)
    assert {(each.first, each.second) for each in answer.redundant} == {("x4", "x5")}
    rho = new["x4"].corr(new["x5"], method="spearman")
    assert answer.redundant[0].value == pytest.approx(rho, abs=1e-9)
    assert len(answer.outside) > 1
    name, *_, high = answer.outside[0]  # the farthest from its range
    assert (name, high) == ("x0", 1e6)
    text = "\n".join(answer.lines)
    assert f"outside of the range in the run: {len(answer.outside)} columns, the farthest" in text
    for words in ("does not hold", "holes", "x4 and x5, both kept", "x0 ranges from"):
        assert words in text


def test_threads_of_this_process_and_workers_find_the_same(
    finished: Path, client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = frame()[200:].copy()
    new["x4"] = new["x5"] + 0.01 * np.random.default_rng(5).normal(size=len(new))
    new.to_parquet(tmp_path / "new.parquet")
    own: list[bool] = []
    opened = session_for

    @contextlib.contextmanager
    def spy(*arguments: Any) -> Iterator[Any]:
        with opened(*arguments) as session:
            own.append(session.owned)
            yield session

    monkeypatch.setattr(sys.modules["dpipe.pipeline.transfer"], "session_for", spy)
    monkeypatch.setattr("dpipe.session.current_client", lambda: None)
    words = ["transfer", str(finished), str(tmp_path / "new.parquet")]
    here, there = (CliRunner().invoke(main, [*words, *more]) for more in ([], ["--workers", "1"]))
    assert own == [False, True]
    assert here.exit_code == there.exit_code == 4
    assert here.output == there.output
    alone = dpipe.transfer(finished, tmp_path / "new.parquet")
    assert alone == on(finished, tmp_path / "new.parquet", client)
    assert own == [False, True, False, False]
    assert alone.redundant


def test_columns_that_are_absent_or_unfit_are_named(finished: Path, client: Any) -> None:
    kept = (finished / "selected.txt").read_text().split()
    gone, flat = [name for name in kept if name.startswith("x")][:2]
    new = frame()[200:].drop(columns=[gone, "flat"])
    new[flat] = 3.0
    answer = on(finished, new, client)
    assert answer.absent == (gone, "flat")
    assert answer.lost == 1
    assert answer.unfit == ((flat, "constant"),)
    assert not answer.holds
    with pytest.raises(InputError, match="has none of the columns of the run"):
        on(finished, pd.DataFrame({"other": [1.0, 2.0, 3.0]}), client)


def test_what_is_not_compared_says_why(client: Any, tmp_path: Path) -> None:
    table = frame()
    table["sum"] = table["x0"] + table["x3"]
    table["total"] = table["x4"] - table["x5"]
    run = dpipe.select(table, output_dir=tmp_path / "run", client=client, **PLAIN)
    one, other = (d for d in run.decisions if d.cause is Reason.PREDICTED)
    similar = next(d for d in run.decisions if d.cause is Reason.REDUNDANT)
    new = table.assign(**{one.column: 1.0}).drop(columns=similar.representative)
    answer = on(tmp_path / "run", new, client)
    assert (similar.column, "what stands for them is absent") in answer.uncompared
    assert (one.column, "they have one value at most") in answer.uncompared
    few = on(tmp_path / "run", table[:3].drop(columns=other.representative), client)
    assert (other.column, "so few rows cannot tell what predicts them") in few.uncompared
    assert few.unmeasured == len(few.uncompared)
    assert few.lines[-1].startswith("not compared: ")
    assert few.lines[-1].endswith(" because so few rows cannot tell what predicts them")


@pytest.mark.parametrize(
    ("changes", "why", "unfit"),
    [
        ({"a": 1.0, "b": 1.0}, "they have one value at most", ["constant"]),
        ({"a": 1.0}, "what stands for them has one value at most", ["constant"]),
        ({"a": math.nan}, "what stands for them has one value at most", ["no valid value"]),
        ({"a": math.nan, "b": math.nan}, "they have one value at most", ["no valid value"]),
        ({"half": 1}, "the rows that have both values are too few, or all alike", []),
    ],
)
@pytest.mark.parametrize("asked", [False, True])
def test_a_pair_without_a_value_is_not_compared(
    client: Any,
    tmp_path: Path,
    changes: dict[str, float],
    why: str,
    unfit: list[str],
    asked: bool,
) -> None:
    rng = np.random.default_rng(3)
    table = pd.DataFrame({"a": rng.normal(size=200), "z": rng.normal(size=200)})
    table["b"] = table["a"] + 0.01 * rng.normal(size=200)
    options = {**PLAIN, "keep" if asked else "prefer": ["a"]}
    run = dpipe.select(table, output_dir=tmp_path / "run", client=client, **options)
    assert run.selected == ("a", "z")
    new = table.assign(**{name: x for name, x in changes.items() if name in table})
    if "half" in changes:  # every row has one of the two values
        new.loc[:99, "a"] = math.nan
        new.loc[100:, "b"] = math.nan
    answer = on(tmp_path / "run", new, client)
    assert answer.certificates == ()
    assert answer.uncompared == (("b", why),)
    lost = "b" not in changes  # what it told is told by nothing that is kept
    assert [reason for _, reason in answer.unfit] == (unfit if lost or not asked else [])
    assert "nan" not in "\n".join(answer.lines)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"nonlinear_threshold": 0.6},
        {"nonlinear_threshold": 0.4},
        {"spearman_threshold": 0.7},
        {"nonlinear_threshold": 0.6, "target": "base0"},
        {"max_columns": 6},
        {"vif_threshold": 5.0},
        {"passes": (1, 2), "nonlinear_threshold": 0.3},
    ],
)
def test_a_selection_holds_on_the_data_it_was_made_from(
    client: Any, tmp_path: Path, options: dict[str, Any]
) -> None:
    data = write_parts(mixed_table(400), tmp_path / "parts")
    dpipe.select(data, client=client, output_dir=tmp_path / "run", restart="never", **options)
    answer = dpipe.transfer(tmp_path / "run", data, client=client, restart="never")
    assert answer.holds, answer.lines
    for each in answer.certificates:
        assert abs(each.now) == pytest.approx(abs(each.before), abs=1e-6), each
    if {"max_columns", "vif_threshold"}.isdisjoint(options):
        assert answer.unmeasured == 0
    else:
        assert {why for _, why in answer.uncompared} == {"the run makes no promise about them"}
    result = CliRunner().invoke(main, ["verify", str(tmp_path / "run"), "--workers", "1"])
    assert result.exit_code == 0, result.output


def test_too_few_rows_are_said_once(finished: Path, client: Any, tmp_path: Path) -> None:
    few = frame()[200:230]
    answer = on(finished, few, client)
    assert not answer.holds
    assert answer.lines[0] == (
        f"whether the selection of {answer.n_kept} columns holds cannot be told from 30 rows: a "
        "column needs 50 valid values (--min-valid, that of the run unless given); give more rows, "
        "or a lower --min-valid."
    )
    assert "too few valid values" not in "\n".join(answer.lines)
    lower = dpipe.transfer(finished, few, client=client, restart="never", min_valid=20)
    assert lower.holds, lower.lines
    assert {each.measure for each in lower.certificates} == {"spearman", "hsic+rdc"}
    few.to_parquet(tmp_path / "few.parquet")
    words = ["transfer", str(finished), str(tmp_path / "few.parquet"), "--workers", "1"]
    for more, code in ([], 4), (["--min-valid", "20"], 0):
        result = CliRunner().invoke(main, [*words, *more])
        assert result.exit_code == code, result.output


def test_what_the_kept_columns_predict_is_measured_again(client: Any, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    old = pd.DataFrame(rng.normal(size=(300, 4)), columns=list("abcd"))
    old["sum"] = old["a"] + old["b"] + old["c"] + 0.05 * rng.normal(size=300)
    new = old.iloc[::-1].copy()
    new["sum"] += 0.6 * rng.normal(size=300)
    dpipe.select(old, client=client, output_dir=tmp_path / "run", **PLAIN)
    answer = on(tmp_path / "run", new, client)
    (certificate,) = answer.certificates
    assert certificate.measure == "r2"
    scores = scipy.stats.norm.ppf((new.rank() - 0.5) / len(new))
    frame = pd.DataFrame(scores, columns=new.columns)
    kept = (tmp_path / "run" / "selected.txt").read_text().split()
    adjusted = [
        sm.OLS(frame[certificate.column], sm.add_constant(frame[names])).fit().rsquared_adj
        for names in (kept, [name for name in kept if name != "d"])
    ]
    assert certificate.now == pytest.approx(max(adjusted), abs=1e-6)
    assert certificate.now < 0.9 < certificate.before
    assert answer.broken == (certificate,)
    assert "the R^2 of its prediction by kept columns was" in "\n".join(answer.lines)


def test_new_data_needs_no_target(client: Any, tmp_path: Path) -> None:
    old = frame()[:200].assign(y=frame()["x0"][:200] ** 3)
    dpipe.select(old, client=client, output_dir=tmp_path / "run", target="y", **PLAIN)
    assert on(tmp_path / "run", frame()[200:], client).holds


def test_what_a_message_advises_of_reading_new_data_is_heeded(
    finished: Path, client: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "new"
    folder.mkdir()
    frame()[200:].assign(x0=frame()["x0"][200:].astype(str)).to_parquet(folder / "a.parquet")
    (folder / "b.parquet").write_text("no Parquet")
    with pytest.raises(InputError, match="--on-bad-file skip"):
        dpipe.transfer(finished, folder, client=client)
    answer = dpipe.transfer(finished, folder, client=client, on_bad_file="skip")
    assert answer.absent == ("x0",)
    reading = {"on_bad_file": "skip", "coerce_strings": True}
    assert dpipe.transfer(finished, folder, client=client, **reading).holds


def cells(page: str, section: str) -> list[list[str]]:
    """The rows of the tables of a section, as text."""
    part = page.partition(f'<section id="{section}"')[2].partition("</section>")[0]
    rows = re.findall(r"<tr>(<td>.*?)</tr>", part)
    return [
        [html.unescape(re.sub(r"<[^>]*>", "", cell)) for cell in re.findall("<td>(.*?)</td>", row)]
        for row in rows
    ]


def test_the_page_shows_each_value_then_and_now(
    finished: Path, client: Any, tmp_path: Path
) -> None:
    new = frame()[200:].copy()
    rng = np.random.default_rng(5)
    new["holes"] = rng.normal(size=len(new))
    new["x4"] = new["x5"] + 0.01 * rng.normal(size=len(new))
    new.loc[new.index[0], "x0"] = 1e6
    kept = (finished / "selected.txt").read_text().split()
    gone, flat = [name for name in kept if name in ("x2", "curve", "x3", "twice")][:2]
    new = new.drop(columns=gone)
    new[flat] = 3.0
    path = tmp_path / "transfer.html"
    answer = dpipe.transfer(finished, new, client=client, restart="never", report=path)
    page = path.read_text(encoding="utf-8")
    assert "does not hold on 200 rows" in page
    rows = {row[0]: row for row in cells(page, "values")}
    assert set(rows) == {each.column for each in answer.certificates}
    old = frame()[:200]
    for name, other, measure, before, now, _, word in rows.values():
        if measure != "spearman" or flat in (name, other):
            continue
        expected = new[name].corr(new[other], method="spearman")
        assert float(now.replace("\N{MINUS SIGN}", "-")) == pytest.approx(expected, abs=5.1e-5)
        was = old[name].corr(old[other], method="spearman")
        assert float(before.replace("\N{MINUS SIGN}", "-")) == pytest.approx(was, abs=5.1e-5)
        assert (word == "broken") == (abs(expected) < 0.95)
    assert [row[0] for row in cells(page, "broken")] == [each.column for each in answer.broken]
    assert cells(page, "redundant")[0][:2] == ["x4", "x5"]
    assert [flat, "constant"] in cells(page, "unfit")
    assert [gone, "kept"] in cells(page, "unfit")
    assert "1e+06" in next(row for row in cells(page, "ranges") if row[0] == "x0")[2]
    assert page.count("<circle") >= 2
    assert "script" not in page


def test_points_fill_their_plot_and_lie_on_the_side_of_the_threshold_that_they_are_on() -> None:
    values = [(0.99, 0.98, True), (0.955, 0.93, False), (1.0, 0.955, True), (0.97, 0.91, False)]
    certificates = tuple(
        Certificate(f"c{k}", "a", "spearman", before, -now, 0.95, holds=holds)
        for k, (before, now, holds) in enumerate(values)
    )
    page = render(Transfer(9, 1, certificates, (), (), (), 0, (), ()), "out", 1)
    points = re.findall(r'<circle class="(\w+)" cx="(\d+)" cy="(\d+)"', page)
    frame = re.search(r'<rect x="(\d+)" y="(\d+)" width="(\d+)"', page)
    level, upright = re.findall(r'class="limit" x1="([\d.]+)" y1="([\d.]+)"', page)
    assert frame is not None
    left, top, side = map(int, frame.groups())
    assert all(left <= int(x) <= left + side and top <= int(y) <= top + side for _, x, y in points)
    heights = [int(y) for _, _, y in points]
    assert max(heights) - min(heights) > side / 3
    assert {look for look, _, y in points if int(y) > float(level[1])} == {"gone"}
    assert {look for look, _, y in points if int(y) < float(level[1])} == {"kept"}
    assert all(int(x) >= float(upright[0]) for _, x, _ in points)


def test_columns_with_thresholds_of_their_own_share_a_plot() -> None:
    certificates = tuple(
        Certificate(f"c{k}", "a", "r2", 0.97, 0.95, threshold, holds=True)
        for k, threshold in enumerate([0.88, 0.9, 0.94, 1.0, 1.0])
    )
    page = render(Transfer(9, 1, certificates, (), (), (), 0, (), ()), "out", 1)
    titles = re.findall("<figcaption>([^<]+)</figcaption>", page)
    assert titles == ["r2, threshold 0.88 to 0.94: 3 columns", "r2, threshold 1: 2 columns"]
    assert page.count('class="limit"') == 4 + 2  # the lowest and the highest, both ways


def test_the_page_holds_names_as_text_and_few_rows(tmp_path: Path) -> None:
    nasty = "<script>alert(1)</script>"
    certificates = tuple(
        Certificate(f"{nasty}{k}", "a", "spearman", -0.99, 0.9 - k * 1e-4, 0.95, holds=False)
        for k in range(1200)
    )
    empty = Certificate("flat", "a", "spearman", 0.97, math.nan, 0.95, holds=True)
    answer = Transfer(9, 1, (*certificates, empty), (), (), (), 0, (), ())
    page = write_transfer(answer, tmp_path / "page.html", "out", 1).read_text(encoding="utf-8")
    assert nasty not in page
    assert "&lt;script&gt;" in page
    assert cells(page, "values")[0][0] == "flat"  # the largest fall first
    assert cells(page, "values")[1][0] == f"{nasty}1199"
    assert page.count("and 201 more") == 1
    assert page.count("and 200 more") == 1
    assert "without a value: 1" in page
    holding = render(Transfer(9, 1, (), (), (), (), 0, (), ()), "out", 1)
    assert "The selection of 1 column holds on 9 rows" in holding


def test_a_page_that_cannot_be_written_is_refused_at_once(
    finished: Path, client: Any, tmp_path: Path
) -> None:
    new = frame()[200:]
    for path, words in (
        (tmp_path, "is a folder; name a file"),
        (tmp_path / "none" / "page.html", "there is no folder"),
        (finished / "report.html", "would overwrite a result of a run"),
    ):
        with pytest.raises(InputError, match=words):
            dpipe.transfer(finished, new, client=client, restart="never", report=path)


@pytest.mark.parametrize("broken", [False, True])
def test_the_command_says_it_and_ends_with_0_or_4(
    finished: Path, tmp_path: Path, broken: bool
) -> None:
    new = frame()[200:].copy()
    if broken:
        new["near"] = new["x0"].sample(frac=1, random_state=0).to_numpy()
    new.to_parquet(tmp_path / "new.parquet")
    words = ["transfer", str(finished), str(tmp_path / "new.parquet"), "--workers", "1"]
    words += ["--report", str(tmp_path / "page.html")]
    result = CliRunner().invoke(main, [*words, "--device", "cpu"])
    assert result.exit_code == (4 if broken else 0), result.output
    assert ("does not hold on 200 rows" if broken else "holds on 200 rows") in result.stdout
    assert ("near" in result.stdout) is broken
    assert ("does not hold" in (tmp_path / "page.html").read_text(encoding="utf-8")) is broken


def wide(n: int, seed: int, same: int) -> pd.DataFrame:
    """Columns with ties and missing cells, `same` of them bent copies of others."""
    rng = np.random.default_rng(seed)
    base = rng.normal(size=(n, 60))
    base[:, 40:] = np.round(base[:, 40:])
    base[rng.random(base.shape) < 0.05] = np.nan
    names = [f"c{i:02d}" for i in range(60)]
    table = pd.DataFrame(base, columns=names)
    for i in range(same):
        noise = rng.uniform(0.02, 0.3) * rng.normal(size=n)
        table[f"c{i:02d}"] = (table[f"c{i + 20:02d}"] + noise) ** 2
        table[f"c{i + 20:02d}"] = np.abs(table[f"c{i + 20:02d}"])
    return table


def test_what_the_bound_leaves_out_does_not_reach_the_threshold(
    client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pairs of kept columns that became similar are those of all pairs in tiles."""
    dpipe.select(wide(400, 1, 0), output_dir=tmp_path / "run", client=client, **PLAIN)
    few = on(tmp_path / "run", wide(400, 2, 15), client).redundant
    with monkeypatch.context() as patched:
        patched.setattr("dpipe.engine.screen._FEW", 0)
        every = on(tmp_path / "run", wide(400, 2, 15), client).redundant
    assert sum(each.measure == "hsic+rdc" for each in few) > 3
    assert [(e.first, e.second, e.measure) for e in few] == [
        (e.first, e.second, e.measure) for e in every
    ]
    assert [e.value for e in few] == pytest.approx([e.value for e in every], abs=1e-4)
