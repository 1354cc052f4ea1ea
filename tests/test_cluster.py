"""The recipes of cluster/ run, as far as one machine without their systems can run them.

Covers: separate processes, certificates, job scripts under a stand-in for srun, SSH to this
machine, workers in network namespaces of their own with one of them cut off; else syntax, options
and schemas.
Does not cover: real SLURM, Kubernetes or GPUs, and building the container images.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from conftest import ROOT
from tables import mixed_table, write_parts

import dpipe

CLUSTER = ROOT / "cluster"
SHELL = sorted([*CLUSTER.rglob("*.sh"), *CLUSTER.rglob("*.sbatch")])
MANIFESTS = sorted((CLUSTER / "kubernetes").glob("*.yaml"))
RECIPES = sorted(
    path
    for path in CLUSTER.rglob("*")
    if path.is_file() and path.suffix != ".pyc" and path.name != "README.md"
)
OPTIONS = ["--min-valid", "50", "--nonlinear-threshold", "0.6", "-q"]

# Options of `dask cuda worker` from dask-cuda 26.02 to 26.10.
CUDA_WORKER = {
    "--scheduler-file", "--host", "--nthreads", "--name", "--memory-limit",
    "--device-memory-limit", "--rmm-pool-size", "--rmm-async", "--set-rmm-allocator-for-libs",
    "--rmm-release-threshold", "--dashboard", "--no-dashboard", "--dashboard-address",
    "--local-directory", "--protocol", "--interface", "--death-timeout", "--worker-class",
}  # fmt: skip


def ids(paths: list[Path]) -> list[str]:
    return [str(path.relative_to(CLUSTER)) for path in paths]


def environment(**more: str) -> dict[str, str]:
    """What a person has: this interpreter, this dpipe, no configuration of Dask's own."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("DASK_")}
    return kept | {"PYTHON": sys.executable, "PYTHONPATH": search_path()} | more


def search_path() -> str:
    return os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])


def shell(*words: str | Path, seconds: float = 300, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(word) for word in words],
        env=environment(**env),
        capture_output=True,
        text=True,
        timeout=seconds,
    )


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cluster") / "table"
    return write_parts(mixed_table(600, families=2), folder)


@pytest.fixture(scope="module")
def expected(table: Path, cluster: Any) -> list[str]:
    from distributed import Client

    with Client(cluster) as client:
        result = dpipe.select(table, client=client, min_valid=50, nonlinear_threshold=0.6)
    return list(result.selected)


def selected(run: Path) -> list[str]:
    return (run / "selected.txt").read_text().splitlines()


@contextlib.contextmanager
def process(*words: str | Path, log: Path, **env: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process that ends with the block."""
    with log.open("ab") as file:
        started = subprocess.Popen(
            [str(word) for word in words], env=environment(**env), stdout=file, stderr=file
        )
    try:
        yield started
    finally:
        started.terminate()
        try:
            started.wait(20)
        except subprocess.TimeoutExpired:
            started.kill()
            started.wait()


def wait_for(condition: Callable[[], object], what: str, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not happen within {seconds:g} s"
        time.sleep(0.05)


# What every recipe has


@pytest.mark.parametrize("path", SHELL, ids=ids(SHELL))
def test_shell_script_is_sound(path: Path) -> None:
    text = path.read_text()
    assert text.startswith("#!/usr/bin/env bash\n")
    assert "\nset -euo pipefail\n" in text
    assert shell("bash", "-n", path).returncode == 0
    if path.suffix == ".sh":
        assert os.access(path, os.X_OK)


@pytest.mark.parametrize("path", SHELL, ids=ids(SHELL))
def test_shell_script_passes_shellcheck(path: Path) -> None:
    if not shutil.which("shellcheck"):
        pytest.skip("shellcheck is not installed")
    done = shell("shellcheck", "--severity=warning", path)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("path", RECIPES, ids=ids(RECIPES))
def test_recipe_says_how_to_run_it_and_is_listed(path: Path) -> None:
    head = "".join(path.read_text().splitlines(keepends=True)[:12])
    assert path.relative_to(ROOT).as_posix() in head
    assert f"({path.relative_to(CLUSTER).as_posix()})" in (CLUSTER / "README.md").read_text()


def words_after(command: str, text: str) -> list[str]:
    """The words of the first command line in `text` that begins with `command`."""
    joined = text.replace("\\\n", " ")
    match = re.search(rf"{re.escape(command)} (.+?)(?: >.*)?(?: &)?$", joined, flags=re.MULTILINE)
    assert match, command
    return shlex.split(match[1])


def options_of(words: list[str]) -> set[str]:
    return {word.partition("=")[0] for word in words if word.startswith("--")}


def known_options(command: click.Command) -> set[str]:
    return {
        name
        for parameter in command.params
        for name in (*parameter.opts, *parameter.secondary_opts)
    }


def dask_options() -> dict[str, set[str]]:
    from distributed.cli import dask_scheduler, dask_worker

    return {
        "scheduler": known_options(dask_scheduler.main),
        "worker": known_options(dask_worker.main),
        "cuda worker": CUDA_WORKER,
    }


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("local.sh", ["scheduler", "worker"]),
        ("slurm/cpu.sbatch", ["scheduler", "worker"]),
        ("slurm/gpu.sbatch", ["scheduler", "cuda worker"]),
    ],
)
def test_options_of_dask_exist(name: str, kinds: list[str]) -> None:
    text = (CLUSTER / name).read_text()
    for kind in kinds:
        used = options_of(words_after(f'"$PYTHON" -m dask {kind}', text))
        assert used
        assert used <= dask_options()[kind]


# One machine


def test_local__runs_in_separate_processes_and_leaves_nothing(
    table: Path, expected: list[str], tmp_path: Path
) -> None:
    work = tmp_path / "work"
    work.mkdir()
    done = shell(
        CLUSTER / "local.sh", table, "--output-dir", tmp_path / "out", *OPTIONS, FOLDER=str(work)
    )
    assert done.returncode == 0, done.stderr
    assert selected(tmp_path / "out") == expected
    assert list(work.iterdir()) == []


def test_local__hands_on_the_exit_code_and_cleans_up(tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    done = shell(
        CLUSTER / "local.sh", tmp_path / "none", "--output-dir", tmp_path / "out", FOLDER=str(work)
    )
    assert done.returncode == 2
    assert "none" in done.stderr
    assert list(work.iterdir()) == []


DASK_CUDA = '''
"""Stands in for dask-cuda: the signature of LocalCUDACluster, workers without cards."""
from distributed import LocalCluster

def LocalCUDACluster(
    CUDA_VISIBLE_DEVICES=None, n_workers=None, threads_per_worker=1, memory_limit="auto",
    device_memory_limit="default", enable_cudf_spill=False, cudf_spill_stats=0,
    local_directory=None, protocol=None, rmm_pool_size=None, rmm_maximum_pool_size=None,
    rmm_managed_memory=False, rmm_async=False, rmm_allocator_external_lib_list=None,
    rmm_release_threshold=None, rmm_log_directory=None, rmm_track_allocations=False,
    log_spilling=False, pre_import=None, host=None, dashboard_address=":0",
):
    assert not (rmm_async and rmm_pool_size)
    return LocalCluster(
        n_workers=1, threads_per_worker=threads_per_worker, memory_limit="2GiB", host=host,
        dashboard_address=dashboard_address,
    )
'''


def test_local_cuda__runs_with_a_stand_in_for_dask_cuda(
    table: Path, expected: list[str], tmp_path: Path
) -> None:
    (tmp_path / "dask_cuda.py").write_text(DASK_CUDA)
    done = shell(
        sys.executable,
        CLUSTER / "local_cuda.py",
        table,
        "--output-dir",
        tmp_path / "out",
        *OPTIONS,
        PYTHONPATH=os.pathsep.join([str(tmp_path), search_path()]),
    )
    assert done.returncode == 0, done.stderr
    assert selected(tmp_path / "out") == expected


# Certificates


def test_certificates__let_their_holder_in_and_nobody_else(
    table: Path, expected: list[str], tmp_path: Path
) -> None:
    if not shutil.which("openssl"):
        pytest.skip("openssl is not installed")
    folder, address = tmp_path / "certificates", tmp_path / "scheduler.json"
    script = CLUSTER / "tls" / "make_certificates.sh"
    made = shell(script, folder)
    assert made.returncode == 0, made.stderr
    assert shell(script, folder).returncode == 2
    assert all(path.stat().st_mode & 0o077 == 0 for path in [folder, *folder.iterdir()])
    trusted = {"DASK_CONFIG": str(folder / "dask.yaml")}
    dask = (sys.executable, "-m", "dask")
    scheduler = (*dask, "scheduler", "--host", "127.0.0.1", "--protocol", "tls", "--port", "0",
                 "--no-dashboard", "--scheduler-file", address)  # fmt: skip
    worker = (*dask, "worker", "--scheduler-file", address, "--host", "127.0.0.1", "--nthreads",
              "1", "--no-dashboard", "--local-directory", tmp_path)  # fmt: skip
    run = (sys.executable, "-m", "dpipe", "run", table, *OPTIONS, "--scheduler-file", address)
    with (
        process(*scheduler, log=tmp_path / "scheduler.log", **trusted),
        process(*worker, log=tmp_path / "worker.log", **trusted),
    ):
        wait_for(address.exists, "the scheduler's file")
        assert json.loads(address.read_text())["address"].startswith("tls://")
        done = shell(*run, "--output-dir", tmp_path / "out", **trusted)
        assert done.returncode == 0, done.stderr
        assert shell(script, tmp_path / "others").returncode == 0
        forged = {"DASK_CONFIG": str(tmp_path / "others" / "dask.yaml")}
        for stranger in ({}, forged):
            refused = shell(*run, "--output-dir", tmp_path / "none", **stranger)
            assert refused.returncode != 0
            assert not (tmp_path / "none" / "selected.txt").exists()
    assert selected(tmp_path / "out") == expected


# SLURM

SRUN = """#!/usr/bin/env bash
# Stands in for srun: starts the tasks of a job on this machine.
while [[ ${1:-} == --* ]]; do shift; done
for task in $(seq "$SLURM_NTASKS"); do
    SLURM_PROCID=$((task - 1)) "$@" &
done
trap 'kill $(jobs -p) 2>/dev/null' TERM INT
wait; wait
"""


def slurm(tmp_path: Path) -> dict[str, str]:
    """What sbatch gives to a job of two tasks, and a stand-in for srun first in the path."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "srun").write_text(SRUN)
    (folder / "srun").chmod(0o755)
    return {
        "PATH": os.pathsep.join([str(folder), os.environ["PATH"]]),
        "SLURM_JOB_ID": "7",
        "SLURM_NTASKS": "2",
        "SLURM_CPUS_PER_TASK": "1",
        "SLURM_MEM_PER_CPU": "2048",
        "SLURM_SUBMIT_DIR": str(tmp_path),
        "LOCAL": str(tmp_path),
    }


def directives(path: Path) -> dict[str, str]:
    found = re.findall(r"^#SBATCH (--[a-z-]+)=(\S+)$", path.read_text(), flags=re.MULTILINE)
    assert len(found) == path.read_text().count("\n#SBATCH ")
    return dict(found)


@pytest.mark.parametrize("name", ["cpu.sbatch", "gpu.sbatch"])
def test_slurm__asks_for_what_it_uses(name: str) -> None:
    path = CLUSTER / "slurm" / name
    asked = directives(path)
    assert {"--nodes", "--ntasks-per-node", "--mem-per-cpu", "--time", "--signal"} <= set(asked)
    assert ("--gpus-per-task" in asked) == (name == "gpu.sbatch")
    if name == "cpu.sbatch":
        hours, minutes, _ = map(int, asked["--time"].split(":"))
        lifetime = re.search(r"LIFETIME:-(\d+)m", path.read_text())
        assert lifetime
        assert 0 < 60 * hours + minutes - int(lifetime[1]) <= 10


def test_slurm__a_job_runs(table: Path, expected: list[str], tmp_path: Path) -> None:
    done = shell(
        "bash", CLUSTER / "slurm" / "cpu.sbatch", table, "--output-dir", tmp_path / "out",
        *OPTIONS, **slurm(tmp_path),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert selected(tmp_path / "out") == expected
    assert not list(tmp_path.glob("*.json"))
    assert "Register worker" in (tmp_path / "dpipe-7-scheduler.log").read_text()


@pytest.mark.slow
def test_slurm__a_job_that_is_signalled_ends_in_order_and_continues(tmp_path: Path) -> None:
    folder = write_parts(mixed_table(30_000, families=12), tmp_path / "table")
    command = ["bash", CLUSTER / "slurm" / "cpu.sbatch", folder, "--output-dir", tmp_path / "out"]
    with process(*command, log=tmp_path / "log", **slurm(tmp_path)) as job:
        wait_for((tmp_path / "out" / "checkpoint").exists, "the first checkpoint")
        job.send_signal(2)  # as --signal=B:INT@120 does
        assert job.wait(60) == 130, (tmp_path / "log").read_text()
    again = {**slurm(tmp_path / "out"), "SLURM_SUBMIT_DIR": str(tmp_path)}
    done = shell(*command, **again)
    assert done.returncode == 0, done.stderr
    assert selected(tmp_path / "out")


SBATCH = """#!/usr/bin/env bash
# Stands in for sbatch: starts the script of a job on this machine, as a process group.
set -m
bash "${@: -1}" >"$JOBS/$$.log" 2>&1 &
echo "Submitted batch job $!"
"""
SCANCEL = """#!/usr/bin/env bash
# Stands in for scancel.
kill -TERM -- "-${@: -1}" 2>/dev/null || true
"""


@pytest.mark.slow
def test_slurm__workers_of_dask_jobqueue_are_used(
    table: Path, expected: list[str], tmp_path: Path
) -> None:
    """The block of the page runs with the real dask-jobqueue and a stand-in for SLURM."""
    if importlib.util.find_spec("dask_jobqueue") is None:
        pytest.skip("dask-jobqueue is not installed")
    page = (CLUSTER / "slurm" / "README.md").read_text()
    (block,) = re.findall(r"^```python\n(.*?)^```$", page, flags=re.MULTILINE | re.DOTALL)
    for there, here in (
        ("cluster.scale(jobs=32)", "cluster.scale(jobs=2)"),
        ('interface="ib0"', 'interface="lo"'),
        ("/shared/data", str(table)),
        ("/shared/out", str(tmp_path / "out")),
        ("passes=(1, 2)", "min_valid=50, nonlinear_threshold=0.6"),
    ):
        assert there in block
        block = block.replace(there, here)
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, text in (("sbatch", SBATCH), ("scancel", SCANCEL)):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    (tmp_path / "block.py").write_text(block)
    path = os.pathsep.join([str(folder), os.environ["PATH"]])
    done = shell(
        sys.executable, tmp_path / "block.py", PATH=path, JOBS=str(tmp_path), TMPDIR=str(tmp_path)
    )
    assert done.returncode == 0, done.stderr
    assert selected(tmp_path / "out") == expected
    assert list(tmp_path.glob("*.log"))  # of the jobs that were submitted


# SSH


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@pytest.fixture
def ssh_server(tmp_path: Path) -> Iterator[list[str]]:
    """An SSH server on this machine's loopback; the options that log in to it."""
    sshd = shutil.which("sshd") or shutil.which("sshd", path="/usr/sbin")
    if sshd is None or not shutil.which("ssh-keygen"):
        pytest.skip("no SSH server is installed")
    if importlib.util.find_spec("asyncssh") is None:
        pytest.skip("asyncssh is not installed")
    for name in ("host", "user"):
        made = shell("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / name)
        assert made.returncode == 0, made.stderr
    port = free_port()
    kind, key, *_ = (tmp_path / "host.pub").read_text().split()
    (tmp_path / "known").write_text(f"[127.0.0.1]:{port} {kind} {key}\n")
    (tmp_path / "config").write_text(
        f"ListenAddress 127.0.0.1\nPort {port}\nHostKey {tmp_path / 'host'}\nPidFile none\n"
        f"AuthorizedKeysFile {tmp_path / 'user.pub'}\nStrictModes no\nUsePAM no\n"
        "PasswordAuthentication no\nKbdInteractiveAuthentication no\n"
    )
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # where its unprivileged half lives
    with process(sshd, "-D", "-e", "-f", tmp_path / "config", log=tmp_path / "log") as server:

        def answers() -> bool:
            assert server.poll() is None, (tmp_path / "log").read_text()
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                return True
            return False

        wait_for(answers, "the SSH server")
        yield ["--port", str(port), "--key", str(tmp_path / "user"),
               "--known-hosts", str(tmp_path / "known")]  # fmt: skip


def test_ssh__runs_on_hosts_reached_by_ssh(
    table: Path, expected: list[str], tmp_path: Path, ssh_server: list[str]
) -> None:
    done = shell(
        sys.executable, CLUSTER / "ssh" / "run.py", table, "--output-dir", tmp_path / "out",
        "--hosts", "127.0.0.1,127.0.0.1,127.0.0.1", "--interface", "lo",
        "--local-directory", tmp_path, "--memory-limit", "2GiB", *ssh_server, *OPTIONS,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert selected(tmp_path / "out") == expected


# Several hosts: network namespaces


def ip(*words: str) -> None:
    done = shell("ip", *words)
    assert done.returncode == 0, f"ip {' '.join(words)}: {done.stderr}"


@pytest.fixture
def hosts() -> Iterator[tuple[str, str, str]]:
    """Three namespaces on one bridge, 10.201.0.1 to 10.201.0.3; the first one has the bridge."""
    if os.geteuid() != 0 or not shutil.which("ip"):
        pytest.skip("network namespaces need root and iproute2")
    hub, left, right = names = tuple(f"dp{os.getpid()}{letter}" for letter in "abc")
    try:
        for name in names:
            ip("netns", "add", name)
            ip("-n", name, "link", "set", "lo", "up")
        ip("-n", hub, "link", "add", "bridge", "type", "bridge")
        ip("-n", hub, "addr", "add", "10.201.0.1/24", "dev", "bridge")
        ip("-n", hub, "link", "set", "bridge", "up")
        for number, name in ((2, left), (3, right)):
            ip("link", "add", f"port{number}", "netns", hub, "type", "veth",
               "peer", "name", "eth", "netns", name)  # fmt: skip
            ip("-n", hub, "link", "set", f"port{number}", "master", "bridge", "up")
            ip("-n", name, "addr", "add", f"10.201.0.{number}/24", "dev", "eth")
            ip("-n", name, "link", "set", "eth", "up")
    except AssertionError as error:
        remove(names)
        pytest.skip(f"no network namespaces here: {error}")
    yield hub, left, right
    remove(names)


def remove(names: tuple[str, ...]) -> None:
    for name in names:
        shell("ip", "netns", "del", name)


@pytest.mark.slow
def test_hosts__one_is_cut_off_and_comes_back(
    hosts: tuple[str, str, str], tmp_path: Path, client: Any
) -> None:
    hub, left, right = hosts
    folder = write_parts(mixed_table(20_000, families=12), tmp_path / "table")
    alone = dpipe.select(folder, client=client, output_dir=tmp_path / "alone")
    file, out = tmp_path / "scheduler.json", tmp_path / "out"
    # A host that does not answer counts as lost after this time; Dask allows no less than 11 s.
    patience = {"DASK_DISTRIBUTED__COMM__TIMEOUTS__TCP": "12s"}

    def on(name: str, *words: str | Path) -> tuple[str | Path, ...]:
        return ("ip", "netns", "exec", name, sys.executable, "-m", *words)

    def worker(name: str, number: int) -> tuple[str | Path, ...]:
        return on(name, "dask", "worker", "--scheduler-file", file, "--nthreads", "1",
                  "--host", f"10.201.0.{number}", "--memory-limit", "2GiB", "--no-dashboard",
                  "--local-directory", tmp_path)  # fmt: skip

    scheduler = on(hub, "dask", "scheduler", "--host", "10.201.0.1", "--port", "0",
                   "--no-dashboard", "--scheduler-file", file)  # fmt: skip
    run = on(hub, "dpipe", "run", folder, "--output-dir", out, "--scheduler-file", file, "-q")
    log = tmp_path / "scheduler.log"
    with contextlib.ExitStack() as stack:

        def start(name: str, *words: str | Path) -> subprocess.Popen[bytes]:
            return stack.enter_context(process(*words, log=tmp_path / f"{name}.log", **patience))

        start("scheduler", *scheduler)
        wait_for(file.exists, "the scheduler's file")
        start("left", *worker(left, 2))
        lost = start("right", *worker(right, 3))
        wait_for(lambda: log.read_text().count("Register worker") == 2, "two workers")
        running = start("run", *run)
        wait_for((out / "checkpoint").exists, "the beginning of the run")
        ip("-n", hub, "link", "set", "port3", "down")
        wait_for(lambda: "Remove worker" in log.read_text(), "the loss of a worker")
        assert running.poll() is None, (tmp_path / "run.log").read_text()
        ip("-n", hub, "link", "set", "port3", "up")
        # A worker that lost its scheduler ends; whatever starts workers starts it anew.
        lost.wait(60)
        start("right again", *worker(right, 3))
        wait_for(lambda: "10.201.0.3" in log.read_text().rpartition("Remove worker")[2], "it back")
        assert running.wait(300) == 0, (tmp_path / "run.log").read_text()
    assert selected(out) == list(alone.selected)


# Kubernetes


def violations(value: Any, schema: dict[str, Any], where: str) -> Iterator[str]:
    """What `value` has that the API server would refuse, unknown fields included."""
    kinds = {"object": dict, "array": list, "string": str, "integer": int, "boolean": bool}
    if "enum" in schema and value not in schema["enum"]:
        yield f"{where} is {value!r}"
    loose = "anyOf" in schema or schema.get("x-kubernetes-int-or-string")
    kind = schema.get("type")
    if kind in kinds and not loose and not isinstance(value, kinds[kind]):
        yield f"{where} is not {kind}"
    if isinstance(value, dict) and "properties" in schema:
        for name in schema.get("required", ()):
            if name not in value:
                yield f"{where}.{name} is missing"
        for name, item in value.items():
            if name in schema["properties"]:
                yield from violations(item, schema["properties"][name], f"{where}.{name}")
            else:
                yield f"{where}.{name} is unknown"
    elif isinstance(value, dict) and isinstance(schema.get("additionalProperties"), dict):
        for name, item in value.items():
            yield from violations(item, schema["additionalProperties"], f"{where}.{name}")
    if isinstance(value, list) and "items" in schema:
        for number, item in enumerate(value):
            yield from violations(item, schema["items"], f"{where}[{number}]")


def job_schema() -> dict[str, Any]:
    content: dict[str, Any] = json.loads((ROOT / "tests" / "daskjob_schema.json").read_text())
    schema: dict[str, Any] = content["schema"]
    return schema


def manifest(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    claim, job = yaml.safe_load_all(path.read_text())
    return claim, job


@pytest.mark.parametrize("path", MANIFESTS, ids=ids(MANIFESTS))
def test_kubernetes__fits_the_schema_of_the_operator(path: Path) -> None:
    claim, job = manifest(path)
    assert list(violations(job, job_schema(), "job")) == []
    assert (claim["apiVersion"], claim["kind"]) == ("v1", "PersistentVolumeClaim")


@pytest.mark.parametrize("path", MANIFESTS, ids=ids(MANIFESTS))
def test_kubernetes__parts_fit_together(path: Path) -> None:
    claim, job = manifest(path)
    cluster = job["spec"]["cluster"]["spec"]
    pods = [job["spec"]["job"]["spec"], cluster["worker"]["spec"], cluster["scheduler"]["spec"]]
    service = cluster["scheduler"]["service"]
    assert service["selector"] == {
        "dask.org/cluster-name": job["metadata"]["name"],
        "dask.org/component": "scheduler",
    }
    assert len({container["image"] for pod in pods for container in pod["containers"]}) == 1
    for pod in pods:
        assert pod["securityContext"]["runAsNonRoot"]
        volumes = {volume["name"]: volume for volume in pod.get("volumes", ())}
        for container in pod["containers"]:
            assert {mount["name"] for mount in container.get("volumeMounts", ())} <= set(volumes)
        if "data" in volumes:
            claimed = volumes["data"]["persistentVolumeClaim"]["claimName"]
            assert claimed == claim["metadata"]["name"]
    ports = {port["name"] for port in cluster["scheduler"]["spec"]["containers"][0]["ports"]}
    assert {port["targetPort"] for port in service["ports"]} == ports


@pytest.mark.parametrize("path", MANIFESTS, ids=ids(MANIFESTS))
def test_kubernetes__commands_exist(path: Path) -> None:
    from dpipe.cli import main
    from dpipe.options import parse_size

    assert isinstance(main, click.Group)
    _, job = manifest(path)
    (runner,) = job["spec"]["job"]["spec"]["containers"]
    assert (runner["command"], runner["args"][0]) == (["dpipe"], "run")
    assert options_of(runner["args"]) <= known_options(main.commands["run"])
    cluster = job["spec"]["cluster"]["spec"]
    (worker,), (scheduler,) = (cluster[n]["spec"]["containers"] for n in ("worker", "scheduler"))
    assert (scheduler["command"], scheduler["args"]) == (["dask"], ["scheduler"])
    assert worker["command"] == ["dask"]
    kind = " ".join(word for word in worker["args"] if not word.startswith("-"))
    assert kind == ("cuda worker" if path.stem == "gpu" else "worker")
    assert options_of(worker["args"]) <= dask_options()[kind]
    (limit,) = (word.partition("=")[2] for word in worker["args"] if "--memory-limit" in word)
    assert parse_size(limit) < parse_size(worker["resources"]["limits"]["memory"] + "B")
    assert ("nvidia.com/gpu" in worker["resources"]["limits"]) == (path.stem == "gpu")


def test_the_schema_check_finds_what_is_wrong() -> None:
    _, job = manifest(CLUSTER / "kubernetes" / "cpu.yaml")
    worker = job["spec"]["cluster"]["spec"]["worker"]
    worker["replica"] = worker.pop("replicas")
    worker["spec"]["containers"][0]["args"] = "worker"
    del job["spec"]["cluster"]["spec"]["scheduler"]["service"]["ports"][0]["port"]
    found = "\n".join(violations(job, job_schema(), "job"))
    assert "worker.replica is unknown" in found
    assert "args is not array" in found
    assert "ports[0].port is missing" in found


# Containers


@pytest.mark.parametrize("name", ["Containerfile", "Containerfile.gpu"])
def test_containerfile__copies_what_exists_and_runs_as_a_user(name: str) -> None:
    text = (CLUSTER / name).read_text().replace("\\\n", " ")
    steps = re.findall(r"^([A-Z]+) (.+)$", text, flags=re.MULTILINE)
    copied = [
        source
        for step, words in steps
        if step == "COPY" and "--from" not in words
        for source in words.split()[:-1]
    ]
    assert {"dpipe", "setup.cfg", "pyproject.toml"} <= set(copied)
    assert all((ROOT / source).exists() for source in copied)
    users = [words for step, words in steps if step == "USER"]
    assert users[-1] != "root"
    assert ("ENTRYPOINT", '["dpipe"]') in steps
