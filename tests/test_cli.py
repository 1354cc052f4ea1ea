"""The words of the command line.

Covers: what words, YAML files and Dask's configuration become, and what the help says.
Does not cover: whether a selection is right (see `test_pipeline`), what a user can get wrong
(`test_cli_errors`), finished runs (`test_cli_runs`), how progress looks (`test_progress`), that the
documentation names every option (`test_documentation`).
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import click
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from commands import invoke, one_sentence, write_table
from conftest import ROOT, another_value

from dpipe.cli import main
from dpipe.errors import ResourceError
from dpipe.options import DECLARED, DEFAULTS, Options, flag

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


def test_a_floor_of_pairs_is_compared_with_the_thresholds_that_are_in_force(
    asked: Asked, tmp_path: Path
) -> None:
    import dask

    def run(*words: object) -> Options:
        options = asked("run", "x", "--output-dir", "o", *words)["options"]
        assert isinstance(options, Options)
        return options

    raised = ("--spearman-threshold", "0.99", "--nonlinear-threshold", "0.98")
    assert run(*raised, "--pairs-from", "0.97").pairs_from == 0.97
    assert run("--passes", "1,2", "--pairs-from", "0.93").passes == (1, 2)
    file = tmp_path / "options.yaml"
    file.write_text("spearman-threshold: 0.99\nnonlinear-threshold: 0.98\n")
    assert run("--config", file, "--pairs-from", "0.97").pairs_from == 0.97
    with dask.config.set({"dpipe.pairs-from": 0.97}):
        assert run(*raised).pairs_from == 0.97
    refused = invoke("run", "x", "--output-dir", "o", "--pairs-from", "0.97")
    assert "0.97 is above --spearman-threshold 0.95" in one_sentence(refused.stderr)


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
