"""Nobody let in: what SECURITY.md promises, tried on whole runs.

Covers: where own clusters listen, planted pickles and paths, names that are attacks, schedulers
without and with TLS, what a guest leaves alone, the rules that keep it so.
Does not cover: credentials (see `test_remote`), damaged files (see `test_fuzz`), the parts by
themselves (see `test_runfolder_files`, `test_report`, `test_session`).
"""

from __future__ import annotations

import configparser
import contextlib
import csv
import datetime
import hashlib
import importlib.metadata
import ipaddress
import json
import os
import pickle
import tomllib
import uuid
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask
import dirty
import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from commands import invoke
from distributed import Client, LocalCluster, Security, get_client
from packaging.version import Version

import dpipe
from dpipe import session as session_module
from dpipe.errors import DpipeError, ResourceError
from dpipe.model.events import Event, Note, StageStarted
from dpipe.options import Options
from dpipe.pipeline import run
from dpipe.rankstore import Store
from dpipe.report import write_report
from dpipe.runfolder import RunFolder
from dpipe.session import attach_session
from dpipe.verify import verify

ROOT = Path(__file__).resolve().parent.parent
SMALL = Options(workers=1, device="cpu")


def write_table(path: Path, rows: int = 200) -> Path:
    rng = np.random.default_rng(3)
    columns = {f"x{i}": rng.normal(size=rows) for i in range(5)}
    columns["copy"] = 2 * columns["x0"]
    columns["near"] = columns["x1"] + 0.01 * rng.normal(size=rows)
    pq.write_table(pa.table(columns), path)
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_table(tmp_path / "data.parquet")


# Who can reach an own cluster


def listening() -> dict[tuple[str, int], int]:
    """Addresses on which this process and its descendants accept connections or packets."""
    own = psutil.Process()
    pids = {own.pid, *(child.pid for child in own.children(recursive=True))}
    return {
        (c.laddr.ip, c.laddr.port): c.pid
        for c in psutil.net_connections(kind="inet")
        if c.pid in pids and c.laddr and not c.raddr
    }


def test_own_clusters_listen_on_this_machine_alone(data: Path, tmp_path: Path) -> None:
    before = set(listening())
    seen: dict[tuple[str, int], int] = {}

    def observe(event: Event) -> None:
        if isinstance(event, StageStarted):
            seen.update(listening())

    run([data], SMALL, output_dir=tmp_path / "out", observers=(observe,))
    opened = set(seen) - before
    assert len(opened) >= 3  # scheduler, dashboard, and what nanny and worker open
    assert len(set(seen.values())) >= 2  # children have been looked at too
    assert {address for address in opened if not ipaddress.ip_address(address[0]).is_loopback} == (
        set()
    )


# What lies in a run folder


class Trap:
    """An object whose unpickling leaves a file behind."""

    def __init__(self, evidence: Path) -> None:
        self._evidence = evidence

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch '{self._evidence}'",)


def trapped_npy(evidence: Path) -> bytes:
    """A ``.npy`` file of one trap."""
    header = b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }"
    header += b" " * (117 - len(header)) + b"\n"
    magic = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little")
    return magic + header + pickle.dumps(Trap(evidence))


def set_traps(folder: Path, evidence: Path) -> int:
    """Replace the content of every array below a folder by traps, names and entries as before."""
    count = 0
    for path in [*folder.rglob("*.npz"), *folder.rglob("*.npy")]:
        count += 1
        if path.suffix == ".npy":
            path.write_bytes(trapped_npy(evidence))
            continue
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
        with zipfile.ZipFile(path, "w") as archive:
            for name in names:
                archive.writestr(name, trapped_npy(evidence))
    return count


def sign_again(checkpoint: Path) -> None:
    """Give altered files of passes the checksums that their records ask for."""

    def digest_of(value: Any) -> str:
        text = json.dumps(value, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    for record in checkpoint.glob("pass-?.json"):
        body = json.loads(record.read_text())["body"]
        for name in body["extra"]["files"]:
            content = (checkpoint.parent / name).read_bytes()
            body["extra"]["files"][name] = hashlib.sha256(content).hexdigest()
        record.write_text(json.dumps({"sha256": digest_of(body), "body": body}))


def test_the_trap_works(tmp_path: Path) -> None:
    evidence = tmp_path / "evidence"
    (tmp_path / "a.npy").write_bytes(trapped_npy(evidence))
    np.load(tmp_path / "a.npy", allow_pickle=True)
    assert evidence.exists()


@pytest.mark.parametrize("signed", [False, True])
def test_nothing_in_a_run_folder_is_unpickled(
    signed: bool, data: Path, tmp_path: Path, client: Any
) -> None:
    out, evidence = tmp_path / "out", tmp_path / "evidence"
    options = Options(sample_rows=150, restart="never")
    run([data], options, output_dir=out, client=client)
    assert set_traps(out, evidence) >= 5
    if signed:
        sign_again(out / "checkpoint")
    for again in (options, options.replace(spearman_threshold=0.9)):
        with contextlib.suppress(DpipeError):
            run([data], again, output_dir=out, client=client)
        set_traps(out, evidence)
    for look in (verify, write_report):
        with contextlib.suppress(DpipeError):
            look(out)
    assert not evidence.exists()


@pytest.mark.parametrize("form", ["npz", "npy", "pickle", "nothing"])
def test_a_trap_in_the_rank_store_is_one_sentence(form: str, tmp_path: Path) -> None:
    store, evidence = Store(str(tmp_path / "ranks")), tmp_path / "evidence"
    store.write_arrays("tile.npz", {"i": np.arange(3)})
    path = tmp_path / "ranks" / "tile.npz"
    if form == "npz":
        set_traps(path.parent, evidence)
    else:
        contents = {"npy": trapped_npy(evidence), "pickle": pickle.dumps(Trap(evidence))}
        path.write_bytes(contents.get(form, b""))
    with pytest.raises(ResourceError, match="is not what dpipe wrote there") as caught:
        store.read_arrays("tile.npz")
    assert str(path) in str(caught.value)
    assert not evidence.exists()


@pytest.mark.parametrize("absolute", [False, True])
def test_a_manifest_cannot_lead_outside(
    absolute: bool, data: Path, tmp_path: Path, client: Any
) -> None:
    out, victim = tmp_path / "out", tmp_path / "victim.txt"
    victim.write_text("mine")
    options = Options(passes=(1, 2), restart="never")
    run([data], options, output_dir=out, client=client)
    manifest = out / "checkpoint" / "manifest.json"
    content = json.loads(manifest.read_text())
    name = str(victim) if absolute else "../victim.txt"
    content["files"][name] = {"sha256": hashlib.sha256(b"mine").hexdigest(), "bytes": 4}
    manifest.write_text(json.dumps(content))
    assert invoke("verify", out).exit_code == 2
    with contextlib.suppress(DpipeError):
        run([data], options, output_dir=out, client=client)
    with contextlib.suppress(DpipeError):
        RunFolder(out).prune_results(())
    assert victim.read_text() == "mine"


# Names that are attacks

NASTY = (
    *dirty.ODD_NAMES,
    "</script><script>alert(1)</script>",
    "--><img src=x onerror=alert(2)>",
    '=HYPERLINK("http://evil","x")',
    "+1+cmd|' /C calc'!A0",
    "-2+3",
    "@SUM(1)",
    "\tTAB",
    "\rCR",
    "\x9b31m",
    "\u202egnirts",
    "[red]markup[/red]",
    ":warning:",
    "{{7*7}}",
    "$(touch evidence)",
    "a\x00b",
)


def test_nasty_names_go_through_the_whole_program(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    columns = {name: rng.normal(size=150) for name in NASTY}
    copies = {f"{name}\n2": -values for name, values in columns.items()}
    data, out = tmp_path / "nasty.parquet", tmp_path / "out"
    pq.write_table(pa.table({**columns, **copies}), data)
    done = invoke("run", data, "--output-dir", out, "--workers", 1, "--device", "cpu", "--verbose")
    assert done.exit_code == 0, done.output

    for text in (done.stdout, done.stderr):
        assert all(c.isprintable() or c == "\n" for c in text)
    decisions = RunFolder(out).read_decisions()
    assert [d.column for d in decisions] == [*columns, *copies]
    assert len(RunFolder(out).read_selected()) == len(NASTY)
    assert len((out / "selected.txt").read_text().splitlines()) == len(NASTY)

    with open(out / "decisions.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    assert len(rows) == 1 + 2 * len(NASTY)
    cells = {cell for row in rows for cell in row if cell}
    numbers = {cell for cell in cells if cell.startswith("-") and _is_number(cell)}
    assert not [c for c in cells - numbers if c.startswith(("=", "+", "-", "@", "\t", "\r", "\n"))]

    page = (out / "report.html").read_text(encoding="utf-8")
    assert "<img src=x" not in page
    assert "<script>alert" not in page
    assert "\x1b" not in page
    assert "\x00" not in page

    for words in (
        ("verify", out),
        ("report", out),
        ("apply", out, data, "--output", tmp_path / "reduced.parquet"),
        ("run", data, "--output-dir", out, "--workers", 1, "--device", "cpu", "--verbose"),
    ):
        again = invoke(*words)
        assert again.exit_code == 0, again.output
        assert all(c.isprintable() or c == "\n" for c in again.output)
    names = pq.read_schema(tmp_path / "reduced.parquet").names
    assert names == list(RunFolder(out).read_selected())
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "nasty.parquet",
        "out",
        "reduced.parquet",
    ]


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def test_nasty_names_in_errors_do_not_steer_the_terminal(tmp_path: Path) -> None:
    path = tmp_path / "\x1b]0;owned\x07.parquet"
    path.write_bytes(b"no parquet")
    for words in (
        ("plan", path),
        ("plan", tmp_path / "\x1b[2Jnowhere"),
        ("plan", write_table(tmp_path / "a.parquet"), "--keep", "\x1b[31m"),
    ):
        result = invoke(*words)
        assert result.exit_code == 2
        assert all(c.isprintable() or c == "\n" for c in result.stderr)


# Other people's schedulers


def test_a_run_on_an_open_scheduler_warns(
    data: Path, tmp_path: Path, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Event] = []
    options = Options(passes=(1, 2), restart="never")
    run([data], options, output_dir=tmp_path / "here", client=client, observers=(told.append,))
    assert not [e for e in told if isinstance(e, Note) and e.level == "warning"]
    monkeypatch.setattr("dpipe.session.attach.scheduler_address", lambda _: "tcp://10.0.0.1:8786")
    run([data], options, output_dir=tmp_path / "there", client=client, observers=(told.append,))
    assert [
        "whoever reaches it can run code on its workers" in e.text
        for e in told
        if isinstance(e, Note) and e.level == "warning"
    ] == [True]


def certificates(folder: Path) -> dict[str, str]:
    """Dask's settings for a certificate of this machine, signed by an authority made for it."""
    x509 = pytest.importorskip("cryptography.x509")
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    now = datetime.datetime.now(datetime.UTC)

    def name(text: str) -> Any:
        return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)])

    def sign(subject: str, key: Any, signer: Any, authority: bool) -> Any:
        made = (
            x509.CertificateBuilder()
            .subject_name(name(subject))
            .issuer_name(name("authority"))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        )
        return made.sign(signer, hashes.SHA256())

    authority_key, own_key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    pem = serialization.Encoding.PEM
    (folder / "ca.pem").write_bytes(
        sign("authority", authority_key, authority_key, authority=True).public_bytes(pem)
    )
    (folder / "own.pem").write_bytes(
        own_key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + sign("dpipe test", own_key, authority_key, authority=False).public_bytes(pem)
    )
    own = str(folder / "own.pem")
    roles = {
        f"distributed.comm.tls.{role}.{part}": own
        for role in ("scheduler", "worker", "client")
        for part in ("cert", "key")
    }
    return {**roles, "distributed.comm.tls.ca-file": str(folder / "ca.pem")}


@pytest.fixture
def tls(tmp_path: Path) -> dict[str, Any]:
    """Settings of Dask for TLS everywhere."""
    folder = tmp_path / "certificates"
    folder.mkdir()
    return {**certificates(folder), "distributed.comm.require-encryption": True}


def test_tls_of_dask_configuration_is_used(tls: dict[str, Any], data: Path, tmp_path: Path) -> None:
    told: list[Event] = []
    with dask.config.set(tls):
        cluster = LocalCluster(
            n_workers=1,
            threads_per_worker=1,
            host="127.0.0.1",
            protocol="tls://",
            security=Security(),
            dashboard_address="127.0.0.1:0",
        )
    with cluster:
        address = cluster.scheduler_address
        assert address.startswith("tls://")
        options = Options(scheduler=address, passes=(1, 2))
        with dask.config.set(tls):
            result = run([data], options, output_dir=tmp_path / "out", observers=(told.append,))
        assert len(result.selected) == 5
        # Whoever has no certificate stays outside, and is told so in one sentence.
        with pytest.raises(DpipeError) as caught:
            attach_session(address, Options(), connect_seconds=3.0)
        assert "\n" not in str(caught.value)
        assert not [e for e in told if isinstance(e, Note) and e.level == "warning"]


def test_own_clusters_use_tls_where_dask_demands_it(
    tls: dict[str, Any], data: Path, tmp_path: Path
) -> None:
    with dask.config.set(tls), session_module.open_session(SMALL) as session:
        assert session.client.scheduler.address.startswith("tls://127.0.0.1:")
        assert all(facts.address.startswith("tls://") for facts in session.workers())
    with dask.config.set(tls):
        result = run([data], SMALL.replace(passes=(1, 2)), output_dir=tmp_path / "out")
    assert len(result.selected) == 5


def test_own_clusters_shut_other_users_out_when_asked(data: Path, tmp_path: Path) -> None:
    pytest.importorskip("cryptography")
    with session_module.open_session(SMALL.replace(tls=True)) as session:
        address = session.client.scheduler.address
        assert address.startswith("tls://127.0.0.1:")
        with pytest.raises(DpipeError):
            attach_session(address, Options(), connect_seconds=3.0)
        assert session.recycle(1)
    out = tmp_path / "out"
    done = invoke("run", data, "--output-dir", out, "--workers", 1, "--device", "cpu", "--tls")
    assert done.exit_code == 0, done.output
    assert "5 of 7 numeric columns kept" in done.output
    assert invoke("run", data, "--output-dir", out, "--tls", "--scheduler", "x").exit_code == 2


# A guest


@pytest.fixture
def foreign() -> Iterator[LocalCluster]:
    """Somebody else's cluster."""
    with LocalCluster(
        n_workers=2,
        threads_per_worker=1,
        host="127.0.0.1",
        dashboard_address="127.0.0.1:0",
        memory_limit="1GiB",
    ) as cluster:
        yield cluster


def _count(folder: str, number: int) -> int:
    """Somebody's task; leaves a file each time it runs."""
    Path(folder, f"{number}-{uuid.uuid4().hex}").touch()
    return number * number


def test_a_run_leaves_the_work_of_others_alone(
    foreign: LocalCluster, data: Path, tmp_path: Path
) -> None:
    work = tmp_path / "work"
    work.mkdir()
    with Client(foreign, set_as_default=False) as other, Client(foreign) as own:
        held = other.map(_count, [str(work)] * 20, range(20), pure=False)
        mine = own.submit(_count, str(work), 1000, pure=False)
        other.gather(held)
        assert mine.result() == 1_000_000
        other.publish_dataset(theirs=held[0])
        pids = {w: f.pid for w, f in _facts(own).items()}
        meanwhile: list[Any] = []

        def work_on(event: Event) -> None:
            number = 100 + len(meanwhile)
            meanwhile.append(other.submit(_count, str(work), number, pure=False))

        chosen = dpipe.select([str(data)], output_dir=str(tmp_path / "out"), client=own)
        assert len(chosen.selected) == 5
        run([data], Options(), output_dir=tmp_path / "out2", client=own, observers=(work_on,))

        assert other.gather(held) == [n * n for n in range(20)]
        assert mine.result() == 1_000_000
        assert len(meanwhile) > 10
        assert other.gather(meanwhile) == [n * n for n in range(100, 100 + len(meanwhile))]
        # Each ran once: nothing was lost and computed again.
        ran = sorted(int(path.name.split("-")[0]) for path in work.iterdir())
        assert ran == [*range(20), *range(100, 100 + len(meanwhile)), 1000]
        assert {w: f.pid for w, f in _facts(own).items()} == pids
        assert other.list_datasets() == ("theirs",)
        assert (other.status, own.status) == ("running", "running")
        assert get_client() is own
        assert _foreign_keys(own, "dpipe") == []
    assert foreign.status.name == "running"


def _facts(client: Client) -> dict[str, Any]:
    with attach_session(client, Options(restart="never")) as session:
        return {facts.name: facts for facts in session.workers()}


def _foreign_keys(client: Client, word: str) -> list[str]:
    """Tasks of dpipe that the scheduler still holds after a moment."""

    def left(dask_scheduler: Any) -> list[str]:
        return [str(key) for key in dask_scheduler.tasks if word in str(key)]

    for _ in range(50):
        found: list[str] = client.run_on_scheduler(left)
        if not found:
            break
    return found


# Rules that keep it so


def test_versions_with_known_holes_are_excluded() -> None:
    """CVE-2021-42343 (listened everywhere) and CVE-2026-23528 (script in the dashboard's proxy)."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    bounds = dict(
        line.split(">=") for line in setup["options"]["install_requires"].split() if ">=" in line
    )
    assert tuple(map(int, bounds["distributed"].split("."))) >= (2026, 1, 0)
    # CVE-2023-47248: reading Arrow's files ran code.
    assert tuple(map(int, bounds["pyarrow"].split("."))) >= (14, 0, 1)


def test_the_security_rules_of_ruff_are_on() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["ruff"]["lint"]
    assert "S" in settings["select"]
    ignored = {*settings["ignore"], *settings["per-file-ignores"].get("dpipe/**", ())}
    assert {rule for rule in ignored if rule.startswith("S")} == {"S101", "S603"}
    for path in (ROOT / "dpipe").rglob("*.py"):
        source = path.read_text(encoding="utf-8")
        for word in ("noqa: S30", "allow_pickle=True", "yaml.load(", "shell=True", "import pickle"):
            assert word not in source, f"{path} holds {word}"


# Versions with known holes

HOLES = {
    "distributed": ("2026.1.1", "CVE-2026-23528: script in an error page of the dashboard"),
    "pyarrow": ("14.0.1", "CVE-2023-47248: code from a data file"),
    "pyyaml": ("5.4", "CVE-2020-14343: code from a YAML file"),
    "tornado": ("6.5", "CVE-2025-47287: a form that fills the log"),
}
"""Package: the first version without the hole, and the hole."""


@pytest.mark.parametrize("package", HOLES)
def test_no_version_with_a_known_hole_is_allowed_or_installed(package: str) -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    bounds = dict(line.split(">=") for line in config["options"]["install_requires"].split())
    mended, hole = HOLES[package]
    for version in (bounds[package], importlib.metadata.version(package)):
        assert Version(version) >= Version(mended), hole
