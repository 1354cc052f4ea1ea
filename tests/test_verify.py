"""Verify: accepts a true run that was made by hand, and refuses every kind of lie.

Covers: results that do not fit their checksums, and those that do; the same verdict of several
processes; a sample of the decisions.
Does not cover: the measures (`test_verify_measures`), runs of the pipeline (`test_verify_runs`),
the processes themselves (`test_verify_crew`).
"""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from handmade import OPTIONS, N, Rows, Run, hand_made_frame, run_by_hand, write

from dpipe.errors import InputError, VerificationError
from dpipe.model.inventory import CHECKPOINT, DECISIONS, MANIFEST
from dpipe.report import write_report
from dpipe.table import Table
from dpipe.verify import VerifyReport, verify
from dpipe.verify.columns import RankedColumns, rank_columns


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run_by_hand(tmp_path_factory.mktemp("input") / "table.parquet")


def test_hand_made_run_has_every_kind_of_drop_and_holds(run: Run, tmp_path: Path) -> None:
    told = {(drop.pass_number, drop.reason) for p in run.passes for drop in p.drops}
    assert told == {
        (1, "no valid value"),
        (1, "too few valid values"),
        (1, "too many missing values"),
        (1, "constant"),
        (1, "low variance"),
        (1, "monotone duplicate"),
        (2, "redundant"),
        (3, "linear combination"),
        (3, "predicted"),
        (4, "redundant"),
    }
    run.write(tmp_path)
    report = verify(tmp_path)
    assert (report.n_rows, report.n_columns) == (N, len(run.table.columns))
    assert report.compared["rows"] == len(run.table.columns)
    assert report.compared["chains"] == sum(
        drop.representative is not None for p in run.passes for drop in p.drops
    )
    assert set(report.differences) >= {"spearman", "hsic+rdc", "r2", "r2_final"}
    assert "the certificate holds" in report.lines[0]


def test_counts_are_told_with_their_nouns() -> None:
    compared = {"drops of pass 2": 1, "monotone duplicates": 1, "columns that came back": 1}
    compared |= {"pairs of kept columns, spearman": 69378, "rows": 1, "chains": 1101}
    assert VerifyReport(1, 1830, 1373, compared, {}).lines == (
        "1,373 of 1,830 columns kept, 1 row: the certificate holds.",
        "checked: 1 drop of pass 2",
        "checked: 1 monotone duplicate",
        "checked: 1 column that came back",
        "checked: 69,378 pairs of kept columns, spearman",
        "checked: 1 row of the decision table",
        "checked: 1,101 chains",
    )


def test_input_may_have_moved(run: Run, tmp_path: Path) -> None:
    run.write(tmp_path / "out")
    moved = tmp_path / "moved" / run.source.name
    moved.parent.mkdir()
    moved.write_bytes(run.source.read_bytes())
    times = run.source.stat()
    os.utime(moved, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert verify(tmp_path / "out", [moved]).n_rows == N


# Tampering that the checksums show


@pytest.mark.parametrize("name", ["selected.txt", "decisions.parquet", "communities.json"])
def test_altered_file(run: Run, tmp_path: Path, name: str) -> None:
    run.write(tmp_path)
    with (tmp_path / name).open("ab") as file:
        file.write(b"\n")
    with pytest.raises(VerificationError, match=f"{name} is not the file the run wrote"):
        verify(tmp_path)


def test_missing_file(run: Run, tmp_path: Path) -> None:
    run.write(tmp_path)
    (tmp_path / DECISIONS).unlink()
    with pytest.raises(VerificationError, match=r"decisions\.parquet is not the file"):
        verify(tmp_path)


def test_file_struck_from_the_manifest(run: Run, tmp_path: Path) -> None:
    folder = run.write(tmp_path)
    manifest = folder.read_json(MANIFEST)
    del manifest["files"]["selected.txt"]
    folder.write_json(MANIFEST, manifest)
    with pytest.raises(VerificationError, match=r"selected\.txt has no checksum"):
        verify(tmp_path)


def test_a_run_without_its_checkpoint_is_proved_but_for_the_checksums(
    run: Run, tmp_path: Path
) -> None:
    run.write(tmp_path)
    whole = verify(tmp_path)
    shutil.rmtree(tmp_path / CHECKPOINT)
    write_report(tmp_path)  # which vouches for no file that nobody checked
    proved = verify(tmp_path)
    assert dataclasses.replace(proved, has_checksums=True) == whole
    told = [line for line in proved.lines if line not in whole.lines]
    assert [line[:40] for line in told] == ["the folder checkpoint of the run is gone"]


def test_a_false_claim_is_found_without_checksums(run: Run, tmp_path: Path) -> None:
    run.write(tmp_path, selected=["a", "a_down"])
    shutil.rmtree(tmp_path / CHECKPOINT)
    with pytest.raises(VerificationError, match="the selection is not the kept columns"):
        verify(tmp_path)


def test_changed_input(run: Run, tmp_path: Path) -> None:
    run.write(tmp_path / "out")
    changed = tmp_path / run.source.name
    write(hand_made_frame().assign(a=0.5), changed)
    with pytest.raises(VerificationError, match="the input is not the one of the run"):
        verify(tmp_path / "out", [changed])


def test_run_that_does_not_say_where_its_input_lies(run: Run, tmp_path: Path) -> None:
    folder = run.write(tmp_path)
    folder.write_run({"options": dataclasses.asdict(run.options), "input": {}})
    with pytest.raises(InputError, match="name the files"):
        verify(tmp_path)
    folder.write_run({"input": {"sources": [str(run.source)]}})
    with pytest.raises(InputError, match="holds no options"):
        verify(tmp_path)


def test_folder_without_a_finished_run(run: Run, tmp_path: Path) -> None:
    run.write(tmp_path)
    (tmp_path / "run.json").unlink()
    with pytest.raises(InputError, match=r"run\.json"):
        verify(tmp_path)


# Lies told with matching checksums


def bend(column: str, **changes: Any) -> Callable[[Rows], Rows]:
    """Change one row of the decisions."""
    return lambda rows: tuple(
        replace(row, **changes) if row.column == column else row for row in rows
    )


def keep_it(column: str) -> Callable[[Rows], Rows]:
    nothing = dict.fromkeys(
        ("pass_number", "measure", "value", "threshold", "representative", "community")
    )
    return bend(column, decision="kept", reason="no similar column", **nothing)


def drop_it(
    column: str, number: int, reason: str, *cause: Any, representative: str | None = None
) -> Callable[[Rows], Rows]:
    measure, value, threshold = cause or (None, None, None)
    return bend(
        column,
        decision="dropped",
        pass_number=number,
        reason=reason,
        measure=measure,
        value=value,
        threshold=threshold,
        representative=representative,
    )


LIES: Mapping[str, tuple[Callable[[Rows], Rows], str]] = {
    "a redundant column was kept": (
        keep_it("a_noisy"),
        "'a' and 'a_noisy' were both kept although their spearman is 0.99",
    ),
    "so was one with missing cells": (
        keep_it("b_tail"),
        "'b' and 'b_tail' were both kept although their spearman is -0.9",
    ),
    "and one that pass 4 should drop": (
        keep_it("c_square"),
        r"'c' and 'c_square' were both kept although their hsic\+rdc is 0\.[67]",
    ),
    "a column of its own was dropped": (
        drop_it("d", 2, "redundant", "spearman", 0.97, 0.95, representative="a"),
        r"the spearman of 'd' and its representative 'a' is -?0\.[01]\d+, not 0\.97",
    ),
    "for less than the threshold": (
        drop_it("d", 4, "redundant", "hsic+rdc", 0.97, 0.6, representative="a"),
        r"the hsic\+rdc of 'd' and its representative 'a' is 0\.\d+, not 0\.97",
    ),
    "the value is another": (bend("a_noisy", value=0.9512), "is 0.99.*, not 0.951200"),
    "there is no value": (bend("a_noisy", value=None), "cannot have been dropped for it"),
    "the threshold is another": (
        bend("a_noisy", threshold=0.5),
        "by spearman at 0.5, where pass 2 uses spearman at 0.95",
    ),
    "the measure is another": (bend("a_noisy", measure="pearson"), "dropped by pearson at 0.95"),
    "there is no such rule": (bend("a_noisy", reason="boring"), "as 'boring': no rule"),
    "no such rule in pass 1": (drop_it("d", 1, "redundant"), "as 'redundant': no rule"),
    "no such rule in pass 3": (drop_it("d", 3, "redundant"), "as 'redundant': no rule"),
    "a pass that did not run": (drop_it("d", 7, "redundant"), "by pass 7, which did not run"),
    "nobody represents it": (bend("a_noisy", representative=None), "without a representative"),
    "nobody represents a duplicate": (bend("a_up", representative=None), "without a repr"),
    "a stranger represents it": (
        bend("a_noisy", representative="nobody"),
        "represented by 'nobody', which pass 2 did not keep",
    ),
    "the representative went in the same pass": (
        bend("a_noisy", representative="a_holes"),
        "represented by 'a_holes', which pass 2 did not keep",
    ),
    "it is not constant": (drop_it("d", 1, "constant"), "'d' was dropped as 'constant', which"),
    "it has values": (drop_it("d", 1, "no valid value"), "which it is not"),
    "it varies enough": (
        drop_it("d", 1, "low variance", "normalised_variance", 0.001, 0.005),
        "'d' was dropped as 'low variance', which it is not",
    ),
    "it is constant": (keep_it("constant"), "'constant' is 'constant' and was not dropped"),
    "it is empty": (keep_it("empty"), "'empty' is 'no valid value' and was not dropped"),
    "it has few values": (keep_it("few"), "'few' is 'too few valid values' and was not dropped"),
    "it has many gaps": (keep_it("gaps"), "'gaps' is 'too many missing values' and was not"),
    "it hardly varies": (keep_it("spike"), "'spike' is 'low variance' and was not dropped"),
    "another share is missing": (bend("gaps", value=0.75), "missing_ratio of 0.58.*, not 0.75"),
    "counts are wrong": (bend("a_holes", n_valid=200), "'a_holes' has n_valid .*, not 200"),
    "infinities are wrong": (bend("b_tail", n_inf=0), "'b_tail' has n_inf .*, not 0"),
    "it is no duplicate": (
        drop_it("d", 1, "monotone duplicate", "spearman", 1.0, 1.0, representative="e"),
        "'d' does not rank the rows as 'e' does",
    ),
    "a duplicate of rho 0.5": (bend("a_up", value=0.5), "rho of 'a_up' and its duplicate"),
    "a duplicate was kept": (keep_it("a_up"), "'a' and 'a_up' rank the rows alike and both"),
    "the R^2 is another": (
        bend("sum", value=0.95),
        r"'sum' is predicted with R.2 0\.9\d+, not 0.95",
    ),
    "it was not predicted": (
        drop_it("d", 3, "predicted by a (1)", "r2", 0.93, 0.9, representative="a"),
        "not say in which order pass 3 went through 'd'",
    ),
    "there was no strict reading": (
        drop_it("d", 3, "inflated variance", "vif", 9.0, 6.0, representative="a"),
        "as 'inflated variance': no rule",
    ),
    "a column asked for was dropped": (
        drop_it("kept_one", 2, "redundant", "spearman", 0.99, 0.95, representative="kept_two"),
        "'kept_one' was dropped although it was asked to be kept",
    ),
    "an identifier was kept": (keep_it("name"), "'name' is id but its decision says otherwise"),
    "text was kept": (keep_it("text"), "'text' is not_numeric but its decision"),
    "the type is another": (bend("a", dtype="int8"), "'a' holds double, not int8"),
    "a row is missing": (lambda rows: rows[:-1], "rows of the decisions are not.*'text'"),
    "the rows are in another order": (lambda rows: rows[::-1], "are not the columns .* order"),
}


@pytest.mark.parametrize("lie", LIES)
def test_lie(run: Run, tmp_path: Path, lie: str) -> None:
    bent, words = LIES[lie]
    run.write(tmp_path, decisions=bent)
    with pytest.raises(VerificationError, match=words):
        verify(tmp_path)


def test_selection_of_other_columns(run: Run, tmp_path: Path) -> None:
    run.write(tmp_path, selected=["a", "b"])
    with pytest.raises(VerificationError, match="selection is not the kept columns"):
        verify(tmp_path)


def test_chain_that_leads_nowhere(run: Run, tmp_path: Path) -> None:
    def circle(rows: Rows) -> Rows:
        return bend("a_noisy", representative="c")(
            drop_it("c", 4, "redundant", "hsic+rdc", 0.9, 0.6, representative="c_square")(rows)
        )

    run.write(tmp_path, decisions=circle)
    with pytest.raises(VerificationError, match="'c_square', which pass 4 did not keep"):
        verify(tmp_path)


Told = dict[str, list[dict[str, Any]]]


def retell(told: Told, **changes: Any) -> Told:
    """communities.json with another entry of the column that four others predict."""
    return {
        kept: [entry | changes if entry["column"] == "sum" else entry for entry in entries]
        for kept, entries in told.items()
    }


def predictors_are(named: dict[str, float], count: int | None = None) -> Callable[[Told], Told]:
    n = len(named) if count is None else count
    return lambda told: retell(told, predictors=named, n_predictors=n)


def final_is(value: float) -> Callable[[Told], Told]:
    return lambda told: retell(told, r2_final=value)


@pytest.mark.parametrize(
    ("bent", "words"),
    [
        (predictors_are({"a": 1.0}), r"'sum' is predicted with R.2 -?0\.\d+, not 0\.9"),
        (predictors_are({"a_noisy": 1.0}), "by 'a_noisy', which pass 3 did not keep"),
        (predictors_are({}, 200), "not say in which order pass 3 went through 'sum'"),
        (final_is(0.97), r"the selection predicts column 'sum' with R.2 0\.9\d+, not 0\.97"),
        (final_is(0.5), r"the selection predicts column 'sum' with R.2 0\.9\d+, not 0\.5"),
        (lambda told: {**told, "a": []}, "an alternative in one of communities.json and"),
        (lambda told: dict(list(told.items())[1:]), "not the selection"),
        (
            lambda told: {
                kept: [{**entry, "value": 0.5} for entry in entries]
                for kept, entries in told.items()
            },
            "differ about column",
        ),
    ],
)
def test_communities_that_tell_another_story(
    run: Run, tmp_path: Path, bent: Callable[[Any], Any], words: str
) -> None:
    run.write(tmp_path, communities=bent)
    with pytest.raises(VerificationError, match=words):
        verify(tmp_path)


def test_many_failures_are_counted(run: Run, tmp_path: Path) -> None:
    run.write(tmp_path, decisions=lambda rows: tuple(replace(row, n_unique=77) for row in rows))
    with pytest.raises(VerificationError, match=r"and 1\d more\.$") as caught:
        verify(tmp_path)
    assert str(caught.value).count("has n_unique") == 5


# Several processes, some decisions


def test_every_verdict_is_the_same_whatever_the_number_of_processes(
    run: Run, tmp_path: Path
) -> None:
    run.write(tmp_path / "true")
    run.write(
        tmp_path / "false", decisions=lambda rows: tuple(replace(row, n_unique=77) for row in rows)
    )
    alone, told = verify(tmp_path / "true"), []
    several = verify(tmp_path / "true", workers=2)
    assert several.lines == alone.lines
    assert several.differences == pytest.approx(alone.differences, abs=1e-12)
    for workers in (1, 2):
        with pytest.raises(VerificationError) as refused:
            verify(tmp_path / "false", workers=workers)
        told.append(str(refused.value))
    assert told[0] == told[1]


def test_a_sample_of_decisions_reads_what_they_name_and_says_what_it_left_out(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.write(tmp_path)
    read: list[str] = []

    def noted(table: Table, names: Sequence[str], *rest: Any) -> RankedColumns:
        read.extend(names)
        return rank_columns(table, names, *rest)

    monkeypatch.setattr("dpipe.verify.rank_columns", noted)
    seen = set()
    for n in range(1, 22, 4):
        read.clear()
        report = verify(tmp_path, n_drawn=n)
        assert report == verify(tmp_path, n_drawn=n)
        assert (report.n_drawn, report.seed) == (n, OPTIONS.seed)
        drawn = (
            "1 decision, drawn by seed 5, was"
            if n == 1
            else f"{n} decisions, drawn by seed 5, were"
        )
        assert f"a sample: {drawn} recomputed with" in report.lines[1]
        assert report.lines[0].endswith("what was drawn of the certificate holds.")
        assert n <= report.compared["columns"] == len(set(read))
        seen |= report.compared.keys()
    assert {"drops of pass 2", "drops of pass 3", "drops of pass 4"} <= seen
    assert verify(tmp_path, n_drawn=10**6).n_drawn is None


def test_a_sample_finds_the_lies_among_what_it_draws(run: Run, tmp_path: Path) -> None:
    run.write(tmp_path, decisions=lambda rows: tuple(replace(row, n_unique=77) for row in rows))
    with pytest.raises(VerificationError, match="has n_unique"):
        verify(tmp_path, n_drawn=3)
