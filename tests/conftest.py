"""Fixtures and rules every test shares.

Covers: the `slow` and `gpu` markers, one small Dask cluster for the whole session, the paths of
example and shared data, hypothesis profiles, the compiled parts of the checkout, and the check that
no process outlives the tests.
Does not cover: references and data made by tests (they stand beside the tests that use them).
"""

from __future__ import annotations

import functools
import importlib
import os
import shlex
import shutil
import signal
import subprocess
import sysconfig
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import psutil
import pytest

from dpipe.common.environment import ONE_THREAD

ROOT = Path(__file__).resolve().parent.parent
KERNELS = ROOT / "dpipe" / "kernels"

# A program of its own, which plans tiny tiles and breaks `open` as soon as it is imported.
collect_ignore = ["faulty.py"]

# The threads of a linear algebra library read it as they are loaded, here and now. On matrices as
# small as those of tests they wait for each other, busily. What tests start finds no variable set.
with pytest.MonkeyPatch.context() as patch:
    for variable, value in ONE_THREAD.items():
        patch.setenv(variable, value)
    for library in ("numpy", "scipy.linalg"):
        importlib.import_module(library)

# Shared runners stall for seconds, so time says nothing about a test: laws are checked, not speed.
hypothesis.settings.register_profile("default", deadline=None, max_examples=30)
hypothesis.settings.register_profile("thorough", deadline=None, max_examples=500)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


# A suite started in the background ignores SIGINT, and so would the runs that it interrupts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def another_value(name: str) -> object:
    """A value of an option that is not its default, as a YAML file may hold it."""
    from dpipe.model.registry import FIRST, usual_passes
    from dpipe.options import DECLARED, DEFAULTS
    from dpipe.options.kinds import Choice, Flag, Number, Passes, Size, Weights, Whole

    match DECLARED[name].kind:
        case Flag():
            return not DEFAULTS[name]
        case Weights():
            return {"rdc": 1}
        case Choice(words=words):
            return next(word for word in reversed(words) if word != DEFAULTS[name])
        case Passes():
            return f"{FIRST},{max(usual_passes())}"
        case Whole(low=low) | Size(low=low):
            return int(low) + 2
        case Number(low=low):
            return low + 0.25
    return "x"


def linker() -> list[str] | None:
    """The command that makes an extension of Python from C; None where there is none."""
    words = shlex.split(sysconfig.get_config_var("LDSHARED") or "")
    headers = Path(sysconfig.get_path("include"), "Python.h")
    if not words or not headers.exists():
        return None
    found = shutil.which(words[0]) or shutil.which("cc")
    return [found, *words[1:], f"-I{headers.parent}"] if found else None


def build_kernel(target: Path, *flags: str) -> None:
    """Compile a kernel to its module; `CalledProcessError` holds what was said where it fails."""
    command = linker()
    assert command is not None
    source = str(KERNELS / target.name.replace(".abi3.so", ".c"))
    passing = target.with_suffix(f".{os.getpid()}")  # another session may read the target now
    words = [*command, "-fPIC", "-O3", "-ffp-contract=off", *flags, source, "-o", str(passing)]
    subprocess.run([*words, "-lm"], check=True, capture_output=True, text=True)
    passing.replace(target)


def pytest_configure() -> None:
    """Compile in place, as ``pip install --editable`` does: the tests import the checkout."""
    for source in KERNELS.glob("*.c"):
        target = source.with_suffix(".abi3.so")
        is_fresh = target.exists() and target.stat().st_mtime >= source.stat().st_mtime
        if linker() and not is_fresh:
            build_kernel(target)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--runslow", action="store_true", help="run the tests marked slow too")


@functools.cache
def why_no_gpu() -> str | None:
    """Why tests marked gpu cannot run here; None where they can."""
    try:
        import cupy
    except ImportError as error:
        return f"CuPy cannot be imported ({error})"
    try:
        return None if cupy.cuda.runtime.getDeviceCount() else "CuPy sees no device"
    except cupy.cuda.runtime.CUDARuntimeError as error:
        return f"CUDA does not answer ({error})"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    run_slow = config.getoption("--runslow")
    for item in items:  # by marker: a keyword is also the name of the folder the checkout lies in
        if item.get_closest_marker("slow") and not run_slow:
            item.add_marker(pytest.mark.skip(reason="slow: run with --runslow"))
        if item.get_closest_marker("gpu") and (reason := why_no_gpu()):
            item.add_marker(pytest.mark.skip(reason=f"no GPU: {reason}"))


def living_children(patience: float = 0.0) -> list[psutil.Process]:
    """Processes this one started that still run after `patience` seconds.

    Python's own resource tracker and fork server live as long as their parent and do not count.
    """

    def is_ours(process: psutil.Process) -> bool:
        try:
            words = " ".join(process.cmdline())
            return process.status() != psutil.STATUS_ZOMBIE and not any(
                helper in words for helper in ("resource_tracker", "forkserver")
            )
        except psutil.NoSuchProcess:
            return False

    children = [p for p in psutil.Process().children(recursive=True) if is_ours(p)]
    return psutil.wait_procs(children, timeout=patience)[1]


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    config = session.config
    left = [f"{p.pid}: {' '.join(p.cmdline())[:200]}" for p in living_children(patience=10)]
    if hasattr(config, "workeroutput"):  # one of several processes, whose parent asks for it
        config.workeroutput["left_behind"] = left
    LEFT_BEHIND.extend(left)
    if LEFT_BEHIND and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    LEFT_BEHIND.extend(getattr(node, "workeroutput", {}).get("left_behind", []))


LEFT_BEHIND: list[str] = []


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    without_gpu = [
        report
        for report in terminalreporter.stats.get("skipped", [])
        if isinstance(report, pytest.TestReport)  # not of a whole module that was skipped
        and "no GPU" in str(report.longrepr)
    ]
    if without_gpu:
        terminalreporter.section("GPU NOT TESTED", sep="!", red=True, bold=True)
        terminalreporter.line(f"{len(without_gpu)} tests need a GPU and did not run here.")
    for line in LEFT_BEHIND:
        terminalreporter.line(f"ERROR: a process outlived the tests: {line}", red=True)


_WANTED = threading.Event()


@pytest.fixture(scope="session", autouse=True)
def _no_dask_report() -> Iterator[None]:
    """Leave out Dask's report of a run, a second of Bokeh's time, but for `dask_report`."""
    from distributed.scheduler import Scheduler

    drawn = Scheduler.performance_report

    @functools.wraps(drawn)
    async def report(self: Scheduler, *arguments: Any, **settings: Any) -> Any:
        if _WANTED.is_set():
            return await drawn(self, *arguments, **settings)
        return "<p>Not drawn for this test.</p>"

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Scheduler, "performance_report", report)
        yield


@pytest.fixture
def dask_report() -> Iterator[None]:
    """Have Dask draw its report of each run of the test, as it does for users."""
    _WANTED.set()
    yield
    _WANTED.clear()


@pytest.fixture(scope="session")
def cluster() -> Iterator[object]:
    """Two workers of one thread with nannies, on this machine's loopback and any free port."""
    from distributed import LocalCluster

    with LocalCluster(
        n_workers=2,
        threads_per_worker=1,
        memory_limit="2GiB",
        host="127.0.0.1",
        scheduler_port=0,
        dashboard_address="127.0.0.1:0",
        silence_logs=False,
    ) as cluster:
        yield cluster


@pytest.fixture
def client(cluster: object) -> Iterator[object]:
    """A client of its own for one test; what it left on the workers goes with it."""
    from distributed import Client

    with Client(cluster) as client:
        yield client


@pytest.fixture(scope="module")
def here() -> Iterator[Any]:
    """A client of threads of this process: for runs whose subject is not the workers."""
    from dpipe.session import threads_here

    with threads_here() as client:
        yield client


@pytest.fixture
def heard() -> Any:
    """What a session tells, for `emit`: a list that collects it."""
    from sessions import Heard

    return Heard()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A browser with nothing open yet, for tests that are marked `needs_browser`."""
    from pages import Browser

    browser = Browser(tmp_path_factory.mktemp("profile"))
    try:
        yield browser
    finally:
        browser.driver.quit()


@pytest.fixture
def memory() -> Iterator[Any]:
    """The file system behind memory:// URLs, empty before and after."""
    from dirty import memory_files

    with memory_files() as system:
        yield system


@pytest.fixture
def folder(tmp_path: Path) -> Any:
    """A run folder with nothing in it."""
    from dpipe.runfolder import RunFolder

    return RunFolder(tmp_path / "out").create()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of large real tables beside the checkout, for tests that profit from them."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the large real tables are not beside this checkout")
    return folder


@pytest.fixture(scope="session")
def example_table() -> Path:
    """The folder of the example table that comes with dpipe."""
    return ROOT / "examples" / "nci"
