"""The house stands as designed.

Covers: import contracts (and that each can fail), a light `import dpipe`, declared dependencies,
agreement of the files that describe the project, docstrings that state borders, tracked text.
Does not cover: what the documentation says (see `test_documentation`).
"""

from __future__ import annotations

import ast
import configparser
import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from dpipe.options import Options
from dpipe.table import open_table
from tests.tables import mixed_table, write_parts

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "dpipe"
MODULES = sorted(PACKAGE.rglob("*.py"))
HEAVY = {
    "bokeh",
    "cupy",
    "dask",
    "dask_cuda",
    "distributed",
    "igraph",
    "leidenalg",
    "numba",
    "pandas",
    "polars",
    "pyarrow",
    "scipy",
    "sklearn",
    "statsmodels",
}


def setup_cfg() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


def requirements(text: str) -> dict[str, str]:
    """Name -> the rest of the requirement, from one requirement a line."""
    found = (re.fullmatch(r"([A-Za-z0-9_.-]+)(.*)", line) for line in text.split())
    return {match[1].lower(): match[2] for match in found if match}


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    code = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    return subprocess.run(
        [sys.executable, "-c", code, "--no-cache"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_import_contracts_hold() -> None:
    done = lint_imports(ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("module", "line", "contract"),
    [
        ("kernels/basis.py", "import dpipe.table", "A layer imports only"),
        ("choice/communities.py", "import dpipe.engine.plan", "A layer imports only"),
        ("passes/prediction.py", "import dpipe.passes.spearman", "A pass knows no other"),
        ("kernels/basis.py", "import logging", "Kernels take arrays"),
        ("verify.py", "import dpipe.engine.tiles", "Verification does not use"),
        ("pipeline.py", "import distributed", "Dask is known"),
        ("kernels/ranks.py", "import cupy", "CuPy is known"),
        ("pipeline.py", "import pyarrow.parquet", "Arrow is known"),
        ("report.py", "import igraph", "Graph libraries"),
        ("verify.py", "import bokeh.plotting", "Bokeh is known"),
        ("pipeline.py", "import sklearn", "scikit-learn is known"),
        ("kernels/vif.py", "import scipy.linalg", "What the tests compare with"),
    ],
)
def test_every_contract_can_be_broken(
    tmp_path: Path, module: str, line: str, contract: str
) -> None:
    shutil.copytree(PACKAGE, tmp_path / "dpipe")
    shutil.copy(ROOT / "setup.cfg", tmp_path)
    target = tmp_path / "dpipe" / module
    if not target.exists():
        target = target.with_suffix("") / "__init__.py"
    with target.open("a") as file:
        file.write(f"\n{line}\n")
    done = lint_imports(tmp_path)
    plain = re.sub(r"\x1b\[[0-9;]*m", "", done.stdout)  # some versions colour even a pipe
    broken = re.findall(r"^(.+?) BROKEN", plain, flags=re.MULTILINE)
    assert done.returncode == 1, done.stdout + done.stderr
    assert any(name.startswith(contract) for name in broken), broken


def test_importing_dpipe_imports_nothing_heavy() -> None:
    code = "import sys, dpipe; print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not HEAVY & set(done.stdout.split())


def test_a_worker_that_reads_numbers_imports_no_pandas(tmp_path: Path) -> None:
    # Arrow imports pandas with the first array it makes from objects: seconds of a small run.
    folder = write_parts(mixed_table(50), tmp_path / "parts")
    (tmp_path / "table.json").write_text(open_table([folder], options=Options()).to_json())
    code = (
        "import sys, dpipe.engine.tiles\n"
        "from dpipe.kernels.ranks import rank_column\n"
        "from dpipe.table import Table, read_block\n"
        "table = Table.from_json(open(sys.argv[1]).read())\n"
        "block = read_block(table, table.features, None)\n"
        "assert rank_column(*block.column(0)).n_valid > 0\n"
        "print(*{name.partition('.')[0] for name in sys.modules})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "table.json")],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert not {"pandas", "matplotlib", "bokeh", "igraph"} & set(done.stdout.split())


def test_the_program_refuses_packages_that_others_import_in_passing() -> None:
    code = (
        "import importlib.util, sys\n"
        "from dpipe.common.spared import spare_imports\n"
        "spare_imports()\n"
        "import igraph, pyarrow\n"
        "assert pyarrow.array([1, None]).null_count == 1\n"
        "assert importlib.util.find_spec('pandas')  # as Bokeh asks\n"
        "assert igraph.Graph(2, [(0, 1)]).ecount() == 1\n"
        "print(*{name.partition('.')[0] for name in sys.modules})\n"
        "import pandas"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert not {"pandas", "matplotlib"} & set(done.stdout.split())
    *_, last = done.stderr.splitlines()
    assert last == "ModuleNotFoundError: the program dpipe does without pandas."


def test_a_whole_run_of_the_program_imports_neither(tmp_path: Path) -> None:
    folder = write_parts(mixed_table(200), tmp_path / "parts")
    words = ["run", folder, "--output-dir", tmp_path / "out", "--workers", "1", "--min-valid", "50"]
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "dpipe", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    imported = {line.rpartition("| ")[2].strip() for line in done.stderr.splitlines()}
    assert {"igraph", "pyarrow.lib", "bokeh.models"} <= imported
    assert not {name for name in imported if name.startswith(("pandas.", "matplotlib."))}


def test_every_name_the_package_offers_can_be_had() -> None:
    import dpipe

    offered = dir(dpipe)
    assert {"select", "similarity", "spearman", "hsic", "rdc", "DescriptorSelector"} <= set(offered)
    assert set(dpipe.__all__) <= set(offered)
    for name in offered:
        assert getattr(dpipe, name) is not None


def imported_names(path: Path) -> set[str]:
    """Top-level packages that a module imports anywhere, without relative imports."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.partition(".")[0])
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            names |= {
                str(a.value).partition(".")[0] for a in node.args if isinstance(a, ast.Constant)
            }
    return names


def test_every_package_that_dpipe_imports_is_declared() -> None:
    config = setup_cfg()
    declared = set(requirements(config["options"]["install_requires"]))
    declared |= {re.sub(r"-cu.*", "", name) for name in requirements(config[EXTRAS]["gpu12"])}
    declared |= {"dask_cuda", "dpipe", "yaml"}
    imported = set().union(*map(imported_names, MODULES)) - sys.stdlib_module_names
    # The selector looks for scikit-learn, and polars is there for whoever asks for its frames, as
    # leidenalg is for whoever asks for it.
    assert imported - declared <= {"sklearn", "polars", "leidenalg"}


EXTRAS = "options.extras_require"


def test_every_declared_dependency_is_used() -> None:
    # dask needs bokeh for its dashboard and fsspec for its files: so do we, by name.
    imported = set().union(*map(imported_names, MODULES)) | {"bokeh", "fsspec"}
    declared = {
        {"pyyaml": "yaml"}.get(name, name)
        for name in requirements(setup_cfg()["options"]["install_requires"])
    }
    assert declared <= imported


def test_the_doctor_looks_for_packages_that_are_declared() -> None:
    from dpipe.session.doctor import PACKAGES

    declared = requirements(setup_cfg()["options"]["install_requires"])
    assert set(PACKAGES) <= {"dpipe", *declared}


def test_extras_are_there() -> None:
    extras = setup_cfg()[EXTRAS]
    ours = {"gpu12", "gpu13", "leidenalg", "sklearn"}
    assert set(extras) == ours | {"test", "notebook", "bench", "docs"}
    for major in ("12", "13"):
        gpu = requirements(extras[f"gpu{major}"])
        assert set(gpu) == {f"cupy-cuda{major}x", "dask-cuda", f"rmm-cu{major}"}


def test_both_entry_points_lead_to_the_command_line() -> None:
    import click

    from dpipe.cli import main

    points = setup_cfg()["options.entry_points"]
    assert points["console_scripts"].split() == ["dpipe", "=", "dpipe.__main__:program"]
    assert points["dask_cli"].split() == ["dpipe", "=", "dpipe.cli:main"]
    assert isinstance(main, click.Group)


def test_conda_environment_asks_for_what_the_metadata_asks_for() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert environment["channels"] == ["rapidsai", "conda-forge", "nvidia"]
    conda = requirements("\n".join(environment["dependencies"]))
    pip = requirements(setup_cfg()["options"]["install_requires"])
    pip["python-igraph"] = pip.pop("igraph")
    assert {name: conda.get(name) for name in pip} == pip
    gpu = requirements(setup_cfg()[EXTRAS]["gpu12"])
    assert conda["cupy"] == gpu["cupy-cuda12x"]
    assert conda["rmm"] == gpu["rmm-cu12"]
    assert conda["dask-cuda"] == gpu["dask-cuda"]
    notebook = requirements(setup_cfg()[EXTRAS]["notebook"])
    assert {name: conda.get(name) for name in notebook} == notebook


def test_the_version_is_the_same_everywhere() -> None:
    version = setup_cfg()["metadata"]["version"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == version
    assert citation["license"] == setup_cfg()["metadata"]["license_expression"]
    assert f"## [{version}]" in (ROOT / "CHANGELOG.md").read_text()


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_module_docstring_states_its_borders(path: Path) -> None:
    tree = ast.parse(path.read_text())
    if path.name in ("__init__.py", "__main__.py"):
        return
    text = ast.get_docstring(tree) or ""
    assert re.search(r"\bCovers: ", text)
    assert re.search(r"\bDoes not cover: ", text)


def tracked_files() -> list[Path]:
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("not a git checkout, so there is no list of its files")
    return [ROOT / name for name in done.stdout.split("\0") if (ROOT / name).is_file()]


def test_no_file_names_a_machine_or_a_person() -> None:
    # Written in pieces, or this file would be the first to be found.
    folders = "|".join(("home", "root", "Users", "farm", "work", "tmp" + "/dev"))
    machine = re.compile(rf"(?<![\w.:/])/(?:{folders})/")
    found = []
    for path in tracked_files():
        content = path.read_bytes()
        if b"\0" in content[:8000]:
            continue
        for number, line in enumerate(content.decode().splitlines(), start=1):
            if machine.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()}")
    assert not found, "\n".join(found)


def test_no_large_or_left_over_file_is_tracked() -> None:
    for path in tracked_files():
        assert path.stat().st_size < 3 * 2**20, path
        assert path.suffix not in {".pyc", ".pkl", ".pickle", ".orig", ".rej"}, path


def test_the_package_is_typed_for_its_users() -> None:
    assert (PACKAGE / "py.typed").exists()
    assert "py.typed" in setup_cfg()["options.package_data"]["dpipe"]


def test_every_file_of_the_package_is_installed() -> None:
    patterns = setup_cfg()["options.package_data"]
    for path in PACKAGE.rglob("*"):
        if path.is_dir() or path.suffix in {".py", ".pyc", ".c", ".so"}:
            continue
        package = ".".join(path.parent.relative_to(ROOT).parts)
        assert any(path.match(pattern) for pattern in patterns.get(package, "").split()), path


def test_tests_mirror_modules() -> None:
    # A test file named after a module that is gone tests nothing that anybody would look for.
    for path in (ROOT / "tests").glob("test_kernels_*.py"):
        name = path.stem.removeprefix("test_kernels_")
        assert importlib.util.find_spec(f"dpipe.kernels.{name}"), path.name
