"""The command line.

Covers: what words, YAML files and Dask's configuration become; the sentence and the exit code of
everything a user can get wrong; interruption; whole runs of the real program.
Does not cover: whether a selection is right (see `test_pipeline`), how progress looks
(`test_progress`), that the documentation names every option (`test_documentation`).
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import click
import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result
from conftest import another_value, why_no_gpu

import dpipe
from dpipe.cli import main
from dpipe.cli.commands import _final_words
from dpipe.errors import InputError, ResourceError
from dpipe.model.records import Decision
from dpipe.options import DECLARED, DEFAULTS, Options, flag
from dpipe.selection import Selection

ROOT = Path(__file__).resolve().parent.parent
SMALL = ("--workers", "1", "--device", "cpu")


def write_table(folder: Path) -> Path:
    """Two files of an identifier and twelve columns, four of which say nothing new."""
    rng = np.random.default_rng(1)
    data = {f"x{i}": rng.normal(size=300) for i in range(8)}
    data["twice x0"] = 2 * data["x0"]
    data["near x1"] = data["x1"] + 0.01 * rng.normal(size=300)
    data["square of x2"] = data["x2"] ** 2
    data["constant"] = np.ones(300)
    whole = pa.table({"mol_id": [f"m{i}" for i in range(300)], **data})
    folder.mkdir()
    pq.write_table(whole.slice(0, 200), folder / "part-0.parquet")
    pq.write_table(whole.slice(200), folder / "part-1.parquet")
    return folder


def write_part(folder: Path) -> None:
    """One small file of two columns."""
    pq.write_table(pa.table({"x": np.arange(5.0), "y": np.arange(5.0)}), folder / "a.parquet")


def invoke(*words: object) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words], prog_name="dpipe")


def program(
    *words: object, cwd: Path, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run the real program in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "dpipe", *map(str, words)],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | (env or {}),
        capture_output=True,
        text=True,
        timeout=300,
    )


def one_sentence(text: str) -> str:
    """The sentence of an error, after checking that it is all there is."""
    assert text.startswith("Error: ")
    assert text.endswith((".\n", "?\n"))
    assert text.count("\n") == 1
    return text.removeprefix("Error: ").rstrip()


# Words to options


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """Call a command and return what it asks the pipeline for."""
    from dpipe import pipeline
    from dpipe.pipeline import allpairs

    seen: dict[str, Any] = {}

    def record(sources: Any, *arguments: Any, **settings: Any) -> None:
        seen.update(settings, sources=sources)
        if arguments and isinstance(arguments[0], Options):
            seen["options"] = arguments[0]
        raise ResourceError("stopped here.")

    for module, name in ((pipeline, "run"), (pipeline, "plan_run"), (allpairs, "similarity")):
        monkeypatch.setattr(module, name, record)

    def call(*words: object) -> dict[str, Any]:
        seen.clear()
        result = invoke(*words)
        assert result.stderr == "Error: stopped here.\n", result.stderr
        return dict(seen)

    return call


Asked = Callable[..., dict[str, Any]]


def test_defaults_are_the_defaults_of_options(asked: Asked) -> None:
    seen = asked("run", "a.parquet", "b", "--output-dir", "out")
    assert seen["options"] == Options()
    assert seen["sources"] == ("a.parquet", "b")
    assert seen["output_dir"] == "out"
    assert seen["storage_options"] is None


@pytest.mark.parametrize(
    ("words", "name", "value"),
    [
        ("--spearman-threshold 0.9", "spearman_threshold", 0.9),
        ("--memory-limit 4GiB", "memory_limit", 4 * 2**30),
        ("--sample-rows 1e6", "sample_rows", 1_000_000),
        ("--no-checkpoint", "checkpoint", False),
        ("--fresh", "fresh", True),
        ("--write-table", "write_table", True),
        ("--prefer-gpu", "device", "auto"),
        ("--device cpu", "device", "cpu"),
        ("--passes 1,2", "passes", (1, 2)),
        ("--passes 1 --passes 3", "passes", (1, 3)),
        ("--keep a,b --keep c", "keep", ("a", "b", "c")),
        ("--id-columns mol_id", "id_columns", ("mol_id",)),
        ("--scheduler-file s.json", "scheduler_file", "s.json"),
        ("--restart never", "restart", "never"),
    ],
)
def test_words_become_options(asked: Asked, words: str, name: str, value: object) -> None:
    seen = asked("run", "a.parquet", "--output-dir", "out", *words.split())
    assert getattr(seen["options"], name) == value


def test_every_option_of_run_reaches_the_pipeline(asked: Asked) -> None:
    """Whatever is added to Options is an option of the command line by itself."""
    for name, default in DEFAULTS.items():
        word = flag(name)
        value = another_value(name)
        if isinstance(value, bool):
            words = [word if value else word.replace("--", "--no-")]
        elif isinstance(value, dict):
            words = [word, ",".join(f"{key}={weight}" for key, weight in value.items())]
        else:
            words = [word, str(value)]
        options = asked("run", "a.parquet", "--output-dir", "out", *words)["options"]
        assert getattr(options, name) != default, name


def test_names_come_from_files_exactly(asked: Asked, tmp_path: Path) -> None:
    from dpipe.runfolder import escape_name

    names = ["MolWt", " leading", "with, comma", "@at", "two\nlines", "back\\slash", "größe"]
    file = tmp_path / "names.txt"
    file.write_text("".join(escape_name(name) + "\n" for name in names), encoding="utf-8")
    seen = asked("run", "x", "--output-dir", "o", "--prefer", "first", "--prefer", f"@{file}")
    assert seen["options"].prefer == ("first", *names)


def test_a_tilde_is_the_home_folder_wherever_a_path_is_given(
    asked: Asked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    (home / "names.txt").write_text("MolWt\n")
    (home / "options.yaml").write_text("output-dir: ~/out\nscratch-dir: ~/scratch\n")
    words = ("--scheduler-file=~/scheduler.json", "--keep=@~/names.txt")
    for more in (("--config", "~/options.yaml"), ("--output-dir=~/out", "--scratch-dir=~/scratch")):
        seen = asked("run", "x", *words, *more)
        assert seen["output_dir"] == str(home / "out")
        assert seen["options"].scratch_dir == str(home / "scratch")
        assert seen["options"].scheduler_file == str(home / "scheduler.json")
        assert seen["options"].keep == ("MolWt",)
    assert asked("run", "x", "--output-dir", "s3://b/~/out")["output_dir"] == "s3://b/~/out"


def test_names_that_a_list_cannot_hold_are_given_in_a_file(tmp_path: Path) -> None:
    names = ["a, b", " lead", "@at"]
    pq.write_table(pa.table({name: [1.0, 2.0] for name in names}), tmp_path / "x.parquet")
    where = (tmp_path / "x.parquet", "--output-dir", tmp_path / "out")
    for given, meant in (("a, b", "a, b"), (" lead", " lead")):
        result = invoke("run", *where, "--keep", given)
        assert result.exit_code == 2
        assert f"mean {meant!r}, write it into a file" in one_sentence(result.stderr)
        assert "@FILE" in result.stderr
    result = invoke("run", *where, "--keep", "@at")
    assert result.exit_code == 2
    assert "a name that begins with @ can be given" in one_sentence(result.stderr)
    assert not (tmp_path / "out" / "selected.txt").exists()


def test_a_name_that_is_no_text_is_one_sentence() -> None:
    result = invoke("run", "x", "--output-dir", "o", "--keep", "a\udcff")
    assert result.exit_code == 2
    assert "--keep cannot be" in one_sentence(result.stderr)


def test_parquet_glob_adds_sources(asked: Asked) -> None:
    seen = asked("run", "a", "--parquet-glob", "b/*.parquet", "--output-dir", "o")
    assert seen["sources"] == ("a", "b/*.parquet")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["key=abc", "anon=false"], {"key": "abc", "anon": False}),
        (["secret=a=b=="], {"secret": "a=b=="}),
        (['{"client_kwargs": {"region_name": "eu"}}', "key=12"], None),
    ],
)
def test_storage_options(asked: Asked, words: list[str], expected: dict[str, Any] | None) -> None:
    flags = [part for word in words for part in ("--storage-options", word)]
    seen = asked("run", "s3://b/x", "--output-dir", "o", *flags)
    expected = expected or {"client_kwargs": {"region_name": "eu"}, "key": "12"}
    assert seen["storage_options"] == expected


def test_command_line_over_file_over_dask_configuration(asked: Asked, tmp_path: Path) -> None:
    import dask

    file = tmp_path / "options.yaml"
    file.write_text(
        "spearman-threshold: 0.8\nvif_threshold: 5\nkeep: [a, 'b, c']\nprefer: d, e\n"
        "output-dir: from-file\nparquet-glob: data/*.parquet\nworkers:\n"
    )
    configured = {"dpipe.vif-threshold": 7, "dpipe.min-valid": 10, "dpipe.workers": 3}
    with dask.config.set(configured):
        seen = asked("run", "--config", file, "--spearman-threshold", "0.7")
    options = seen["options"]
    assert (options.spearman_threshold, options.vif_threshold, options.min_valid) == (0.7, 5, 10)
    assert options.keep == ("a", "b, c")
    assert options.prefer == ("d", "e")
    assert seen["output_dir"] == "from-file"
    assert seen["sources"] == ("data/*.parquet",)


def test_input_on_the_command_line_replaces_that_of_the_file(asked: Asked, tmp_path: Path) -> None:
    file = tmp_path / "options.yaml"
    file.write_text("parquet-glob: [a, b]\n")
    seen = asked("run", "c", "--config", file, "--output-dir", "o")
    assert seen["sources"] == ("c",)


def test_plan_takes_a_shape(asked: Asked) -> None:
    seen = asked("plan", "--rows", "120e6", "--columns", "1_800", "--workers", "4")
    assert (seen["rows"], seen["columns"], seen["sources"]) == (120_000_000, 1800, None)
    assert seen["options"].workers == 4


def test_plan_takes_the_words_of_run(asked: Asked) -> None:
    words = ("data", "--output-dir", "out", "--vif-threshold", "5", "--write-table")
    assert asked("plan", *words)["options"] == asked("run", *words)["options"]


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


def test_python_takes_options_from_dask_configuration_too(tmp_path: Path) -> None:
    import dask

    import dpipe
    from dpipe.session import threads_here

    folder = write_table(tmp_path / "data")
    (tmp_path / "kept.txt").write_text("constant\n")
    configured = {
        "dpipe.passes": [1],
        "dpipe.keep": f"@{tmp_path / 'kept.txt'}",
        "dpipe.quiet": True,
    }
    with threads_here() as client, dask.config.set(configured):
        result = dpipe.select(folder, client=client)
        assert {"constant", "x1", "near x1"} <= set(result.selected)
        result = dpipe.select(folder, client=client, keep=[], passes=(1, 2))
        assert len({"constant", "x1", "near x1"} & set(result.selected)) == 1
        assert dpipe.spearman(folder, client=client).values.shape == (12, 12)
    for name, value in (("vif-treshold", 3), ("vif-threshold", "x")):
        with (
            dask.config.set({f"dpipe.{name}": value}),
            pytest.raises(dpipe.InputError, match=r"^Dask's configuration, under dpipe: .*vif"),
        ):
            dpipe.select(folder)


def test_a_secret_is_never_repeated(tmp_path: Path) -> None:
    result = invoke("run", "x", "--output-dir", tmp_path, "--storage-options", '{"key": hunter2}')
    assert result.exit_code == 2
    assert "hunter2" not in one_sentence(result.stderr)


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


def test_interruption_says_how_to_continue(monkeypatch: pytest.MonkeyPatch) -> None:
    from dpipe import pipeline

    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "run", interrupt)
    monkeypatch.setattr(pipeline, "plan_run", interrupt)
    result = invoke("run", "x", "--output-dir", "o")
    assert result.exit_code == 130
    assert result.stderr == "interrupted; run the same command again to continue\n"
    result = invoke("plan", "x")
    assert result.exit_code == 130
    assert result.stderr == "interrupted\n"


def test_a_polite_kill_interrupts_and_the_handler_goes_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from dpipe import pipeline

    def kill(*_: Any, **__: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)

    monkeypatch.setattr(pipeline, "run", kill)
    before = signal.getsignal(signal.SIGTERM)
    assert invoke("run", "x", "--output-dir", "o").exit_code == 130
    assert signal.getsignal(signal.SIGTERM) == before


def test_escapes_in_an_error_do_not_reach_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    from dpipe import pipeline

    def fail(*_: Any, **__: Any) -> None:
        raise ResourceError("column \x1b[2J[bold] is odd.")

    monkeypatch.setattr(pipeline, "run", fail)
    assert invoke("run", "x", "--output-dir", "o").stderr == (
        "Error: column \\x1b[2J[bold] is odd.\n"
    )


# Help


def test_help_has_examples_that_parse() -> None:
    commands = main.commands
    assert set(commands) == {
        "run",
        "plan",
        "similarity",
        "apply",
        "transfer",
        "report",
        "verify",
        "doctor",
        "thresholds",
    }
    for name, command in commands.items():
        text = invoke(name, "--help").stdout
        examples = [
            line.split() for line in text.splitlines() if line.startswith(f"  dpipe {name}")
        ]
        assert len(examples) >= 2 or name == "doctor", name
        for words in examples:
            command.make_context(name, [word.strip('"') for word in words[2:]])


def test_help_of_run_lists_every_option_with_its_default() -> None:
    text = re.sub(r"\s+", " ", invoke("run", "--help").stdout)
    for name, declared in DECLARED.items():
        assert f" {flag(name)} " in text
        assert declared.help in text
    for default in ("[0.95]", "[0.9]", "[1,2,3,4]", "[2GiB]", "[borderline]"):
        assert default in text


def test_no_words_show_the_help() -> None:
    result = invoke()
    assert result.exit_code == 0
    assert "Commands:" in result.stdout


def test_it_is_a_plugin_of_dask() -> None:
    from dask import cli

    point = EntryPoint("dpipe", "dpipe.cli:main", "dask_cli")
    dask_group = click.Group("dask")
    cli._register_command_ep(dask_group, point)
    for words, says in (
        (["dpipe", "run", "--device", "tpu", "x"], "--device is one of"),
        (["dpipe", "--frobnicate"], "No such option"),
    ):
        result = CliRunner().invoke(dask_group, words)
        assert result.exit_code == 2
        assert says in one_sentence(result.stderr)


def test_importing_the_command_line_is_cheap() -> None:
    code = (
        "import sys, dpipe.cli; print([m for m in ('dask', 'numpy', 'rich') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert done.stdout == "[]\n"


# Whole runs of the real program


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


# Where workers come from

FROM_ELSEWHERE = "import sys; sys.path.remove(''); from dpipe.__main__ import program; program()"
"""The program as its console script runs it: not looking for modules in the current folder."""


@pytest.mark.skipif(sys.platform != "linux", reason="workers are forked on Linux alone")
@pytest.mark.parametrize("killed", [False, True])
def test_workers_are_forked_from_one_process_that_ends_with_the_program(
    killed: bool, tmp_path: Path
) -> None:
    write_table(tmp_path / "data")
    (tmp_path / "numpy.py").write_text("raise SystemExit('not the module that was meant')")
    words = [sys.executable, "-c", FROM_ELSEWHERE, "run", "data", "--output-dir", "out", *SMALL]
    process = subprocess.Popen(
        words,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline()  # the workers are up
    started = psutil.Process(process.pid).children(recursive=True)
    servers = [child for child in started if "forkserver" in " ".join(child.cmdline())]
    # A forked process has the command line of what it was forked from.
    assert [child.ppid() for child in servers] == [process.pid, servers[0].pid]
    if killed:
        process.kill()
    _, errors = process.communicate(timeout=60)
    if not killed:  # else a helper of multiprocessing tells of what was left behind
        assert (process.returncode, errors) == (0, "")
    assert psutil.wait_procs(started, timeout=10)[1] == []


# Interruption


@pytest.mark.parametrize(
    ("code", "status", "told"),
    [
        ("import builtins\nload = __import__\ndef stop(name, *rest):\n if name == 'dpipe.cli':\n"
         "  raise KeyboardInterrupt\n return load(name, *rest)\nbuiltins.__import__ = stop",
         130, "interrupted\n"),
        ("import atexit, os, signal\natexit.register(os.kill, os.getpid(), signal.SIGINT)",
         -signal.SIGINT, ""),
    ],
    ids=["while it loads", "when it is done"],
)  # fmt: skip
def test_an_interrupt_outside_of_a_command_shows_no_traceback(
    code: str, status: int, told: str
) -> None:
    words = [sys.executable, "-c", f"{code}\nfrom dpipe.__main__ import program; program()"]
    done = subprocess.run([*words, "--version"], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (status, told)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_continues(number: signal.Signals, tmp_path: Path) -> None:
    write_table(tmp_path / "data")
    words = [sys.executable, "-m", "dpipe", "run", "data", "--output-dir", "out", *SMALL]
    words += ["--passes", "1,2"]
    process = subprocess.Popen(
        words,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline()  # the workers are up
    os.killpg(process.pid, number)  # as a terminal does: the workers too
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    if number == signal.SIGINT:  # a worker that gets SIGTERM itself says so
        assert errors == "interrupted; run the same command again to continue\n"
    assert not (tmp_path / "out" / "selected.txt").exists()
    done = program(*words[3:], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "selected.txt").exists()


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
