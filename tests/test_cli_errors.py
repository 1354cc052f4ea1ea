"""The sentence and the exit code of everything a user can get wrong.

Covers: words, YAML files and Dask's configuration before any work, bad input, and failures in the
middle of a command.
Does not cover: what is wrong with a finished run or beside it (`test_cli_runs`), interruption
(`test_cli_processes`).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from commands import invoke, one_sentence, program, write_part
from conftest import why_no_gpu

from dpipe.errors import ResourceError

# What a user can get wrong, before any work


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("frobnicate", "No such command 'frobnicate'"),
        ("--frobnicate", "No such option"),
        ("run x --output-dir o --frobnicate", "No such option"),
        ("run x --output-dir o --workers", "requires an argument"),
        ("run --output-dir o", "no input was given"),
        ("run x", "no output folder was given"),
        ("run x --output-dir o --device tpu", "--device is one of auto, cpu, gpu, not 'tpu'"),
        ("run x --output-dir o --workers two", "--workers cannot be 'two'; it is a whole number"),
        ("run x --output-dir o --vif-threshold 1,5", "a number at least 1, with a point for dec"),
        ("run x --output-dir o --passes two", "it is a list of numbers like 1,2,3,4."),
        ("run x --output-dir o --weights 3", "it is text like hsic=0.5,rdc=0.5."),
        ("pln x", "Did you mean 'plan'? See `dpipe --help`."),
        ("report setup.py", "decisions.parquet does not exist; give the folder of a finished run."),
        ("run x --output-dir o --workers 0", "--workers must be between 1 and"),
        ("run x --output-dir o --spearman-threshold nan", "--spearman-threshold must be"),
        ("run x --output-dir o --memory-limit lots", "'lots' is not a size"),
        ("run x --output-dir o --passes 2,3", "--passes takes a list"),
        ("run x --output-dir o --passes one", "--passes cannot be"),
        ("run x --output-dir o --keep a --exclude a", "'a' is asked to be kept and to be left"),
        ("run x --output-dir o --prefer-gpu --device cpu", "give --prefer-gpu or --device"),
        ("run x --output-dir o --device=", "--device is one of auto, cpu, gpu, not ''"),
        ("run x --output-dir o --target=", "--target: '' names no column; perhaps"),
        ("run x --output-dir o --exclude ,", "--exclude: ',' names no column"),
        ("run x --output-dir o --keep @nowhere.txt", "nowhere.txt cannot be read"),
        ("run x --output-dir o --config nowhere.yaml", "nowhere.yaml cannot be read"),
        ("run x --output-dir o --storage-options secret", "takes key=value or a JSON object"),
        ("plan", "give files, or both --rows and --columns"),
        ("plan --rows 5", "give files, or both --rows and --columns"),
        ("plan x --rows 5 --columns 5", "not both"),
        ("plan --rows many --columns 5", "--rows takes a whole number"),
        ("plan --rows 1.5 --columns 5", "--rows takes a whole number"),
        ("plan --rows inf --columns 5", "--rows takes a whole number"),
        ("similarity x --output m.npy", "Missing option '--measure'"),
        ("similarity x --measure spearman --output m.csv", "ends in .npy"),
        ("apply out --output y.parquet", "no input was given"),
    ],
)
def test_bad_usage_is_one_sentence(
    words: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = invoke(*words.split())
    assert result.exit_code == 2
    assert says in one_sentence(result.stderr)
    assert result.stdout == ""
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("spearman-treshold: 0.9", "there is no option 'spearman-treshold' (did you mean"),
        ("vif-threshold: 0.5", "--vif-threshold must be at least 1"),
        ("device: tpu", "--device is one of"),
        ("keep: [NO]", "--keep cannot be (False,)"),
        ("keep: {a: b}", "--keep cannot be"),
        ("target: ''", "--target: '' names no column"),
        ("workers: yes", "--workers cannot be True"),
        ("fresh: 1", "--fresh cannot be 1"),
        ("storage-options: 12345678", "--storage-options cannot hold"),
        ("output-dir: [a]", "--output-dir cannot hold"),
        ("parquet-glob: {a: 1}", "--parquet-glob cannot hold"),
        ("- a\n- b", "must hold options"),
        ("just words", "must hold options"),
        ("a: [1,", "is not valid YAML in line 1"),
        ("a: !!python/object/apply:os.getcwd []", "is not valid YAML"),
    ],
)
def test_errors_of_a_file_name_the_file_and_the_key(
    content: str, says: str, tmp_path: Path
) -> None:
    file = tmp_path / "options.yaml"
    file.write_text(content)
    result = invoke("run", "x", "--output-dir", tmp_path / "o", "--config", file)
    assert result.exit_code == 2
    sentence = one_sentence(result.stderr)
    assert says in sentence
    assert str(file) in sentence
    assert "12345678" not in sentence


def test_verbose_adds_the_traceback_to_the_sentence() -> None:
    result = invoke("run", "x", "--output-dir", "o", "--verbose", "--quiet")
    assert result.exit_code == 2
    assert result.stderr.startswith("Traceback")
    assert result.stderr.endswith("Error: give --verbose or --quiet, not both.\n")


def test_errors_of_dask_configuration_say_so(tmp_path: Path) -> None:
    import dask

    with dask.config.set({"dpipe.vif-treshold": 3}):
        result = invoke("run", "x", "--output-dir", tmp_path / "o")
    assert result.exit_code == 2
    sentence = one_sentence(result.stderr)
    assert "Dask's configuration" in sentence
    assert "vif-treshold" in sentence


def test_a_secret_is_never_repeated(tmp_path: Path) -> None:
    result = invoke("run", "x", "--output-dir", tmp_path, "--storage-options", '{"key": hunter2}')
    assert result.exit_code == 2
    assert "hunter2" not in one_sentence(result.stderr)


@pytest.mark.parametrize(
    ("number", "words"),
    [
        ("0", "--sample must be at least 1, not 0."),
        ("-3", "--sample must be at least 1, not -3."),
        ("2.5", "--sample takes a whole number such as 5000 or 120e6, not '2.5'."),
        ("inf", "--sample takes a whole number such as 5000 or 120e6, not 'inf'."),
    ],
)
def test_a_count_is_a_whole_number_of_at_least_1(number: str, words: str) -> None:
    result = invoke("verify", "out", "--sample", number)
    assert result.exit_code == 2
    assert words in one_sentence(result.stderr)


# What goes wrong in the middle


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (ResourceError("the cluster was lost."), 3, "the cluster was lost."),
        (KeyError("x"), 1, "run again with --verbose and report"),
        (OSError(28, "No space left on device", "/scratch/a"), 3, "no space left on the disk of"),
        (PermissionError(13, "Permission denied", "/a"), 2, "/a: Permission denied."),
        (MemoryError(), 3, "not enough memory on this machine"),
    ],
)
def test_errors_have_their_exit_code(
    error: Exception, code: int, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dpipe import pipeline

    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(pipeline, "run", fail)
    result = invoke("run", "x", "--output-dir", "o")
    assert result.exit_code == code
    assert says in one_sentence(result.stderr)
    shown = invoke("run", "x", "--output-dir", "o", "--verbose")
    assert shown.exit_code == code
    assert shown.stderr.startswith("Traceback")
    assert says in shown.stderr.splitlines()[-1]


def test_escapes_in_an_error_do_not_reach_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    from dpipe import pipeline

    def fail(*_: Any, **__: Any) -> None:
        raise ResourceError("column \x1b[2J[bold] is odd.")

    monkeypatch.setattr(pipeline, "run", fail)
    assert invoke("run", "x", "--output-dir", "o").stderr == (
        "Error: column \\x1b[2J[bold] is odd.\n"
    )


# Bad input: one sentence, exit code 2, nothing half written


def corrupt(folder: Path) -> None:
    (folder / "text.parquet").write_text("this is no Parquet file, whatever its name says")


def no_rows(folder: Path) -> None:
    pq.write_table(pa.table({"x": pa.array([], pa.float64())}), folder / "empty.parquet")


def no_numbers(folder: Path) -> None:
    pq.write_table(pa.table({"name": ["a", "b"]}), folder / "names.parquet")


def nothing(folder: Path) -> None:
    """Leave the folder empty."""


@pytest.mark.parametrize(
    ("make", "words", "says"),
    [
        (nothing, "nowhere.parquet", "nowhere.parquet"),
        (nothing, "input", "input"),
        (nothing, "input/*.parquet", "input/*.parquet"),
        (corrupt, "input/text.parquet", "text.parquet"),
        (no_rows, "input", "no rows"),
        (no_numbers, "input", "no numeric column"),
        (write_part, "input --device tpu", "--device"),
        (write_part, "input --keep MolWt", "'MolWt'"),
        (write_part, "input --id-columns x99", "'x99'"),
        (write_part, "input --device gpu", "--device gpu"),
        (write_part, "input --scheduler-file nowhere.json", "nowhere.json"),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_nothing(
    make: Callable[[Path], None],
    words: str,
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tmp_path / "input"
    folder.mkdir()
    make(folder)
    if "--device gpu" in words and why_no_gpu() is None:
        pytest.skip("there is a GPU")
    monkeypatch.chdir(tmp_path)
    result = invoke("run", *words.split(), "--output-dir", "out")
    assert result.exit_code == 2, result.stderr
    assert says in one_sentence(result.stderr)
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]


def test_the_real_program_shows_no_more_of_an_error(tmp_path: Path) -> None:
    done = program("run", "nowhere.parquet", "--output-dir", "out", cwd=tmp_path)
    assert done.returncode == 2
    assert "nowhere.parquet" in one_sentence(done.stderr)
    assert done.stdout == ""
    assert not list(tmp_path.iterdir())
