"""Whole runs of the real program, and every command that takes a finished one.

Covers: what a run says and leaves, the same command again, `apply`, `report`, `verify`,
`similarity`, `plan` and `doctor`, and what each refuses beside a run that is sound.
Does not cover: whether a selection is right (see `test_pipeline`), runs that are interrupted
(`test_cli_processes`).
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from commands import SMALL, invoke, one_sentence, program, write_part, write_table
from conftest import ROOT

import dpipe
from dpipe.cli.commands import _final_words
from dpipe.errors import InputError
from dpipe.model.records import Decision
from dpipe.selection import Selection


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, str]:
    """A finished run: its table, its folder and what it said."""
    place = tmp_path_factory.mktemp("finished")
    data = write_table(place / "data")
    done = program("run", "data", "--output-dir", "out", *SMALL, cwd=place)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return data, place / "out", done.stdout


Finished = tuple[Path, Path, str]


def test_a_run_says_what_it_did_and_what_to_do_next(finished: Finished) -> None:
    _, out, said = finished
    lines = said.splitlines()
    assert lines[0].startswith("300 rows x 12 numeric columns; 1 worker on the CPU")
    assert lines[1].startswith("plan: ")
    passes = [line.split()[2] for line in lines if line.startswith("pass ")]
    assert passes == ["prepare", "spearman", "prediction", "nonlinear"]
    selected = (out / "selected.txt").read_text().splitlines()
    assert f"{len(selected)} of 12 numeric columns kept." in lines
    assert lines[-1].endswith("dpipe verify out")
    for line in lines[-4:-1]:
        assert (out.parent / line.split()[0]).is_file()


def test_one_column_is_not_many(capsys: pytest.CaptureFixture[str]) -> None:
    only = Decision("a", "double", 9, 0, 0, 0, 9, "kept", None, "", None, None, None, None, None)
    _final_words(Selection(("a",), (only,), {}, (), Path("out")), "out")
    assert "1 of 1 numeric column kept." in capsys.readouterr().out.splitlines()


def test_the_same_command_continues(finished: Finished) -> None:
    _, out, _ = finished
    before = (out / "selected.txt").read_text()
    done = program("run", "data", "--output-dir", "out", *SMALL, cwd=out.parent)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("from the checkpoint") == 4
    assert (out / "selected.txt").read_text() == before


def test_a_run_that_keeps_nothing_says_so(tmp_path: Path) -> None:
    write_part(tmp_path)
    words = ("a.parquet", "--output-dir", "out", "--passes", "1,2", "--min-valid", "6")
    done = program("run", *words, *SMALL, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "0 of 2 numeric columns kept." in done.stdout
    assert "2 of 2 have fewer than 6 valid cells. A lower --min-valid keeps them." in done.stdout
    result = invoke("apply", tmp_path / "out", tmp_path / "a.parquet", "--output", tmp_path / "b")
    assert result.exit_code == 2
    assert "kept no column" in one_sentence(result.stderr)


def test_quiet_says_nothing(finished: Finished) -> None:
    _, out, _ = finished
    done = program("run", "data", "--output-dir", "out", "--quiet", *SMALL, cwd=out.parent)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_apply_keeps_what_the_run_did_not_drop(finished: Finished, tmp_path: Path) -> None:
    data, out, _ = finished
    new = data / "part-1.parquet"
    result = invoke("apply", out, new, "--output", tmp_path / "reduced.parquet")
    assert result.exit_code == 0, result.stderr
    reduced = pq.read_table(tmp_path / "reduced.parquet")
    selected = (out / "selected.txt").read_text().splitlines()
    assert reduced.column_names == ["mol_id", *selected]
    assert reduced.equals(pq.read_table(new, columns=reduced.column_names))
    again = invoke("apply", out, new, "--output", tmp_path / "reduced.parquet")
    assert again.exit_code == 2
    assert "reduced.parquet" in one_sentence(again.stderr)


def test_apply_names_the_column_that_is_not_there(finished: Finished, tmp_path: Path) -> None:
    data, out, _ = finished
    whole = pq.read_table(data / "part-0.parquet")
    pq.write_table(whole, tmp_path / "whole.parquet")
    pq.write_table(whole.drop_columns(["x5", "x6"]), tmp_path / "without.parquet")
    pq.write_table(whole.drop_columns(["x5"]), tmp_path / "less.parquet")
    for sources, words in (
        (["without.parquet"], "without.parquet lacks column 'x5' and 1 more of the"),
        (["without.parquet", "less.parquet"], "none of the new files has column 'x5' of the"),
    ):
        paths = [tmp_path / source for source in sources]
        result = invoke("apply", out, *paths, "--output", tmp_path / "reduced.parquet")
        assert result.exit_code == 2
        assert words in one_sentence(result.stderr)
        assert not (tmp_path / "reduced.parquet").exists()


def test_apply_advises_no_option_that_it_lacks(finished: Finished, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.parquet").write_text("no Parquet")
    with pytest.raises(InputError, match=r"a\.parquet is not a Parquet file\.$"):
        dpipe.apply(finished[1], tmp_path, tmp_path / "reduced.parquet")


def test_apply_takes_the_input_of_a_run_whose_files_differ(
    finished: Finished, tmp_path: Path
) -> None:
    """As `run --write-table` does: a file that lacks a column counts as missing there."""
    data, out, _ = finished
    whole = pq.read_table(data / "part-0.parquet")
    pq.write_table(whole, tmp_path / "whole.parquet")
    pq.write_table(whole.drop_columns(["x5"]), tmp_path / "without.parquet")
    paths = tmp_path / "whole.parquet", tmp_path / "without.parquet"
    result = invoke("apply", out, *paths, "--output", tmp_path / "reduced.parquet")
    assert result.exit_code == 0, result.stderr
    assert result.stderr == "empty where a file lacks them: 'x5'.\n"
    reduced = pq.read_table(tmp_path / "reduced.parquet")["x5"].to_pylist()
    assert reduced == whole["x5"].to_pylist() + [None] * whole.num_rows


def test_apply_refuses_text_where_the_run_had_a_number(finished: Finished, tmp_path: Path) -> None:
    data, out, _ = finished
    whole = pq.read_table(data / "part-0.parquet")
    text = pa.array([str(value) for value in whole["x5"].to_pylist()])
    changed = whole.set_column(whole.column_names.index("x5"), "x5", text)
    pq.write_table(changed, tmp_path / "text.parquet")
    pq.write_table(whole, tmp_path / "whole.parquet")
    for sources in (["text.parquet"], ["whole.parquet", "text.parquet"]):
        paths = [tmp_path / source for source in sources]
        result = invoke("apply", out, *paths, "--output", tmp_path / "reduced.parquet")
        assert result.exit_code == 2
        sentence = one_sentence(result.stderr)
        assert re.search(r"column 'x5' of the new data is .*string, and a number \(dou", sentence)
        assert not (tmp_path / "reduced.parquet").exists()


@pytest.mark.parametrize("command", ["apply", "report", "verify"])
def test_a_folder_that_is_no_run_is_one_sentence(
    command: str, tmp_path: Path, finished: Finished
) -> None:
    data, _, _ = finished
    more = [data, "--output", tmp_path / "y.parquet"] if command == "apply" else []
    result = invoke(command, tmp_path / "nowhere", *more)
    assert result.exit_code == 2
    assert "nowhere" in one_sentence(result.stderr)
    assert not list(tmp_path.iterdir())


def test_report_renders_the_page_again(finished: Finished, tmp_path: Path) -> None:
    _, out, _ = finished
    result = invoke("report", out, "--output", tmp_path / "page.html")
    assert result.exit_code == 0, result.stderr
    assert "<html" in (tmp_path / "page.html").read_text()


def test_verify_accepts_a_true_run_and_refuses_a_false_one(
    finished: Finished, tmp_path: Path
) -> None:
    _, out, _ = finished
    done = program("verify", out, cwd=tmp_path)  # from another folder than the run
    assert done.returncode == 0, done.stderr
    assert done.stdout
    forged = tmp_path / "forged"
    shutil.copytree(out, forged)
    (forged / "selected.txt").write_text("x0\n")
    done = program("verify", forged, cwd=tmp_path)
    assert done.returncode == 2
    one_sentence(done.stderr)


def test_similarity_writes_the_matrix_and_its_names(finished: Finished, tmp_path: Path) -> None:
    data, _, _ = finished
    output = tmp_path / "rho.npy"
    words = ("similarity", data, "--measure", "spearman", "--output", output, *SMALL)
    done = program(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    values = np.load(output, allow_pickle=False)
    names = (tmp_path / "rho_columns.txt").read_text().splitlines()
    assert values.shape == (12, 12)
    assert values[names.index("x0"), names.index("twice x0")] == pytest.approx(1)
    assert "12 x 12 columns" in done.stdout


def test_plan_runs_nothing_and_prints_passes(finished: Finished, tmp_path: Path) -> None:
    data, _, _ = finished
    done = program("plan", data, "--workers", "2", "--passes", "1,2", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "300 rows x 12 numeric columns on 2 workers" in done.stdout
    assert re.search(r"^1 prepare +\d+ ", done.stdout, flags=re.MULTILINE)
    assert not re.search(r"^3 prediction", done.stdout, flags=re.MULTILINE)
    assert not list(tmp_path.iterdir())


def test_plan_tells_what_a_run_tells_of_its_input(tmp_path: Path) -> None:
    for name, value in (("a", 1), ("b", "text")):
        columns = {"x": np.arange(9.0), "drifting": [value] * 9}
        pq.write_table(pa.table(columns), tmp_path / f"{name}.parquet")
    result = invoke("plan", tmp_path, "--workers", "1", "--passes", "1")
    assert result.exit_code == 0, result.stderr
    assert "drifting" in result.stdout
    quiet = invoke("plan", tmp_path, "--workers", "1", "--passes", "1", "--quiet")
    assert "drifting" not in quiet.stdout


def test_plan_refuses_what_cannot_fit(tmp_path: Path) -> None:
    words = "plan --rows 120e9 --columns 1800 --workers 2 --memory-limit 1GiB"
    result = invoke(*words.split())
    assert result.exit_code == 3
    assert "it takes workers of" in one_sentence(result.stderr)


def test_the_memory_limit_that_plan_names_is_enough_when_typed() -> None:
    words = ["plan", "--rows", "10e6", "--columns", "100", "--workers", "1", "--memory-limit"]
    refused = invoke(*words, "512MiB")
    assert refused.exit_code == 3
    (named,) = re.findall("set --memory-limit to at least ([^,]+),", one_sentence(refused.stderr))
    assert invoke(*words, named).exit_code == 0


def test_a_reader_who_leaves_early_is_no_error(finished: Finished) -> None:
    data, _, _ = finished
    done = subprocess.run(
        ["bash", "-c", f"{sys.executable} -m dpipe plan {data} | true; exit ${{PIPESTATUS[0]}}"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_doctor_looks_here_and_at_the_worker(finished: Finished, tmp_path: Path) -> None:
    data, _, _ = finished
    done = program("doctor", data, "--scratch-dir", tmp_path, *SMALL, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for word in ("distributed", "BLAS", "scratch", "nanny", "worker 0", "as on the client"):
        assert word in done.stdout
    assert not list(tmp_path.iterdir())


# What is refused beside it


def test_an_output_folder_that_cannot_be_written_is_one_sentence(
    finished: Finished, tmp_path: Path
) -> None:
    data, _, _ = finished
    (tmp_path / "file").write_text("in the way")
    for folder in (tmp_path / "file", tmp_path / "file" / "below", "/dev/null/below"):
        result = invoke("run", data, "--output-dir", folder)
        assert result.exit_code == 2
        assert str(folder) in one_sentence(result.stderr)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_scheduler_that_does_not_answer_has_exit_code_3(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dpipe import session

    data, _, _ = finished
    monkeypatch.setitem(session.attach_session.__kwdefaults__, "connect_seconds", 1.0)
    address = "tcp://127.0.0.1:1"
    result = invoke("run", data, "--output-dir", tmp_path / "out", "--scheduler", address)
    assert result.exit_code == 3
    assert address in one_sentence(result.stderr)


@pytest.mark.parametrize(
    "words",
    [
        ["run", "", "--output-dir", "new"],
        ["run", "data", "--output-dir", ""],
        ["run", "data", "--output-dir", "new", "--scratch-dir", ""],
        ["plan", ""],
        ["plan", "data", "--config", ""],
        ["plan", "data", "--scheduler", ""],
        ["plan", "data", "--parquet-glob", ""],
        ["similarity", "", "--measure", "hsic", "--output", "new.npy"],
        ["apply", "", "data", "--output", "new"],
        ["apply", "out", "", "--output", "new"],
        ["apply", "out", "data", "--output", ""],
        ["transfer", "", "data"],
        ["transfer", "out", ""],
        ["transfer", "out", "data", "--report", ""],
        ["report", ""],
        ["thresholds", ""],
        ["verify", ""],
        ["verify", "out", "--input", ""],
        ["doctor", ""],
    ],
)
def test_an_empty_name_is_not_the_current_folder(
    finished: Finished, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As ``dpipe run "$DATA"`` has it where the variable is not set."""
    _, out, _ = finished
    monkeypatch.chdir(out.parent)
    before = sorted(out.parent.iterdir())
    result = invoke(*words)
    assert result.exit_code == 2
    assert "is empty; perhaps a variable of the shell is not set." in one_sentence(result.stderr)
    assert sorted(out.parent.iterdir()) == before


def test_python_takes_no_empty_name_either(finished: Finished) -> None:
    data, out, _ = finished
    table = pq.read_table(data / "part-0.parquet")
    for asked in (
        lambda: dpipe.select(""),
        lambda: dpipe.select(data, output_dir=""),
        lambda: dpipe.select(table, output_dir=""),
        lambda: dpipe.select(table, scratch_dir=""),
        lambda: dpipe.load(""),
        lambda: dpipe.load(out).save(""),
        lambda: dpipe.apply(out, data, ""),
        lambda: dpipe.transfer(out, data, report=""),
    ):
        with pytest.raises(InputError, match="is empty"):
            asked()
