"""Input and rank store on an object store, and what its errors look like to a user.

Covers: a whole run through the command line with input, output and scratch on a local S3 server;
refused credentials and endless throttling as one sentence; secrets in no output; copies to a URL.
Does not cover: reading by fsspec in detail (`test_table_sources`, with memory://).

The server is moto, in this process; without moto and s3fs these tests are skipped.
"""

from __future__ import annotations

import dataclasses
import functools
import http.client
import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from tables import mixed_table, write_parts

import dpipe
from dpipe.cli import main
from dpipe.common.credentials import HIDDEN, Secrets, check_url, without_secrets
from dpipe.errors import DpipeError, InputError, ResourceError
from dpipe.model.events import Event, PassDone
from dpipe.options import Options
from dpipe.passes.prepare import rank_columns
from dpipe.pipeline import run
from dpipe.rankstore import Store
from dpipe.report import write_report
from dpipe.runfolder import RunFolder, mirror
from dpipe.table import files as files_module
from dpipe.table import open_table, read_block
from dpipe.verify import verify

ROOT = Path(__file__).resolve().parent.parent
KEY, SECRET = "AKIDFORTHETESTS", "hunter2+hunter2/hunter2"
SMALL = ("--workers", "1", "--device", "cpu")

pytestmark = pytest.mark.filterwarnings(
    "ignore:datetime.datetime.utcnow:DeprecationWarning",
    "ignore:unclosed:ResourceWarning",  # aiohttp, when its loop ends with the process
)


def table() -> pa.Table:
    rng = np.random.default_rng(0)
    columns = {f"x{i}": rng.normal(size=300) for i in range(6)}
    columns["copy"] = 2 * columns["x0"]
    columns["near"] = columns["x1"] + 0.01 * rng.normal(size=300)
    columns["holes"] = np.where(rng.random(300) < 0.1, np.nan, columns["x2"])
    return pa.table(columns)


def program(words: Sequence[object], cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "dpipe", *map(str, words)],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )


def holds_secret(folder: Path) -> list[str]:
    """Files below a folder that hold the secret or its key, in any part."""
    return [
        str(path)
        for path in folder.rglob("*")
        if path.is_file() and any(w.encode() in path.read_bytes() for w in (KEY, SECRET))
    ]


def tell(server: str, path: str, content: str = "") -> None:
    """Send an order to the server itself."""
    connection = http.client.HTTPConnection(server.removeprefix("http://"))
    connection.request("POST", path, content)
    assert connection.getresponse().status == 200
    connection.close()


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The address of an S3 server of this process."""
    pytest.importorskip("s3fs")
    moto = pytest.importorskip("moto.server")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    running = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    try:
        yield f"http://{host}:{port}"
    finally:
        running.stop()


@pytest.fixture
def options(server: str) -> dict[str, Any]:
    """Storage options for the server, all of whose state is new."""
    tell(server, "/moto-api/reset")
    return {"key": KEY, "secret": SECRET, "client_kwargs": {"endpoint_url": server}}


@pytest.fixture
def bucket(options: dict[str, Any]) -> Any:
    """The file system of a bucket that holds the table in two files."""
    s3fs = pytest.importorskip("s3fs")
    system = s3fs.S3FileSystem(**options, skip_instance_cache=True)
    system.call_s3("create_bucket", Bucket="bucket")
    for number, part in enumerate((table().slice(0, 120), table().slice(120))):
        with system.open(f"bucket/data/part-{number}.parquet", "wb") as sink:
            pq.write_table(part, sink, row_group_size=50)
    return system


def test_a_run_on_s3_chooses_what_a_local_run_chooses(
    bucket: Any, options: dict[str, Any], tmp_path: Path, client: Any
) -> None:
    data = tmp_path / "data.parquet"
    pq.write_table(table(), data)
    here = run([data], Options(restart="never"), output_dir=tmp_path / "here", client=client)
    words = [
        *("run", "s3://bucket/data/", "--output-dir", "there", *SMALL, "--verbose"),
        *("--storage-options", json.dumps(options), "--scratch-dir", "s3://bucket/scratch"),
    ]
    done = program(words, tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "there" / "selected.txt").read_text().split() == list(here.selected)
    stored = [path.rsplit("/", 1)[-1] for path in bucket.find("bucket/scratch")]
    assert "block-00000.json" in stored
    assert not (tmp_path / "s3:").exists()

    assert SECRET not in done.stdout
    assert KEY not in done.stdout
    assert holds_secret(tmp_path) == []
    for path in bucket.find("bucket/scratch"):
        content = bucket.cat_file(path)
        assert SECRET.encode() not in content
        assert KEY.encode() not in content

    again = program(words, tmp_path)
    assert again.stdout.count("from the checkpoint") == 4

    target = ("--output", "s3://bucket/reduced.parquet", "--storage-options", json.dumps(options))
    reduced = program(["apply", "there", "s3://bucket/data/", *target], tmp_path)
    assert (reduced.returncode, reduced.stderr) == (0, "")
    with bucket.open("bucket/reduced.parquet", "rb") as source:
        assert pq.read_table(source).column_names == list(here.selected)


def test_the_store_is_the_same_on_s3(bucket: Any, options: dict[str, Any]) -> None:
    store, other = (Store("s3://bucket/ranks", options) for _ in range(2))
    assert store.names() == set()
    assert other.names() == set()
    store.write("folder/a.bin", b"one", b"two")
    store.write_json("b.json", {"x": [1, 2]})
    store.write_arrays("c.npz", {"numbers": np.arange(5)})
    # Another process has listed the folder before.
    assert other.names() == {"b.json", "c.npz", "folder"}
    assert other.names("folder") == {"a.bin"}
    assert (other.size("folder/a.bin"), other.read_text("folder/a.bin")) == (6, "onetwo")
    assert other.read_json("b.json") == {"x": [1, 2]}
    assert other.read_arrays("c.npz")["numbers"].tolist() == [0, 1, 2, 3, 4]
    with other.reader("folder/a.bin") as reader:
        buffer = np.zeros(3, dtype=np.uint8)
        reader.fill(buffer, 2)
    assert buffer.tobytes() == b"etw"
    with pytest.raises(FileNotFoundError):
        other.read_text("nowhere")
    store.remove()
    assert other.names() == set()


def test_an_object_that_could_not_be_written_whole_does_not_appear(
    bucket: Any, options: dict[str, Any]
) -> None:
    store = Store("s3://bucket/ranks", options)
    with pytest.raises(ResourceError, match="could not write"):
        store.write("half.bin", b"one", object())
    assert store.names() == set()


def test_refused_credentials_are_one_sentence(
    server: str, bucket: Any, options: dict[str, Any], tmp_path: Path
) -> None:
    tell(server, "/moto-api/reset-auth", "0")  # from now on keys must be known
    try:
        words = ["run", "s3://bucket/data/", "--output-dir", "out", "--verbose"]
        done = program([*words, "--storage-options", json.dumps(options)], tmp_path)
        with pytest.raises(ResourceError, match="cannot be reached") as caught:
            Store("s3://bucket/ranks", options).names()
    finally:
        tell(server, "/moto-api/reset-auth", "1000000000")
    assert done.returncode == 2
    sentence = done.stderr.splitlines()[-1]
    assert sentence.startswith("Error: s3://bucket/data/ cannot be reached (")
    for text in (done.stdout, done.stderr, str(caught.value)):
        assert SECRET not in text
        assert KEY not in text


# A server that always says no


class Slow(BaseHTTPRequestHandler):
    """Answers every request as a throttled object store does, repeating what it was sent."""

    def do_GET(self) -> None:
        secret = self.headers.get("Authorization", "")
        content = (
            "<Error><Code>SlowDown</Code>"
            f"<Message>Please reduce your request rate. {secret}</Message></Error>"
        ).encode()
        self.send_response(503, f"Slow Down {secret}")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    do_HEAD = do_PUT = do_POST = do_GET

    def log_message(self, *arguments: object) -> None:
        """Nothing to say."""


@pytest.fixture
def throttling() -> Iterator[str]:
    """The address of a server that throttles everything."""
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Slow)
    thread = threading.Thread(target=httpd.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{httpd.server_port}"
    finally:
        httpd.shutdown()
        thread.join()
        httpd.server_close()


def test_endless_throttling_is_one_sentence(
    throttling: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3fs = pytest.importorskip("s3fs")
    monkeypatch.setattr(files_module, "_PAUSES", (0.0,))
    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)
    options = {
        "key": KEY,
        "secret": SECRET,
        "client_kwargs": {"endpoint_url": throttling},
        "config_kwargs": {"retries": {"max_attempts": 1}},
    }
    with pytest.raises(InputError, match="reduce your request rate") as caught:
        open_table(["s3://bucket/a.parquet"], options=Options(), storage_options=options)
    with pytest.raises(ResourceError, match="run the same command again to continue") as stored:
        Store("s3://bucket/ranks", options).names()
    with pytest.raises(ResourceError, match="could not write"):
        Store("s3://bucket/ranks", options).write("a", b"b")
    for error in (caught, stored):
        assert SECRET not in str(error.value)
        assert KEY not in str(error.value)
        assert "\n" not in str(error.value)


def test_a_token_that_a_server_repeats_is_hidden(throttling: str) -> None:
    pytest.importorskip("aiohttp")
    options = {"client_kwargs": {"headers": {"Authorization": f"Bearer {SECRET}"}}}
    with pytest.raises(InputError) as caught:
        open_table([f"{throttling}/a.parquet"], options=Options(), storage_options=options)
    assert SECRET not in str(caught.value)


# Secrets, without any server


@pytest.mark.parametrize(
    "url",
    [
        "ftp://me:hunter2@host/data",
        "s3://key:hunter2@bucket/data",
        "https://host/a.parquet?X-Amz-Signature=hunter2",
        "https://host/a.parquet?sv=1&sig=hunter2",
        "https://host/a.parquet?access_token=hunter2",
    ],
)
def test_urls_with_secrets_are_refused_everywhere(url: str, tmp_path: Path) -> None:
    data = tmp_path / "a.parquet"
    pq.write_table(table(), data)
    words: tuple[tuple[object, ...], ...] = (
        ("run", url, "--output-dir", "out"),
        ("run", data, "--output-dir", url),
        ("run", data, "--output-dir", "out", "--scratch-dir", url),
        ("plan", url),
        ("similarity", data, "--measure", "hsic", "--output", "a.npy", "--scratch-dir", url),
    )

    from dpipe.cli import main

    for each in words:
        result = CliRunner().invoke(main, [*map(str, each), "-v"], prog_name="dpipe")
        assert result.exit_code == 2, result.output
        assert "a URL must not hold a" in result.stderr
        assert "hunter2" not in result.output
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "url",
    [
        "s3://bucket/data/part-?.parquet",
        "abfs://container@account/data",
        "https://host/a.parquet?download=1",
        "/local/a:b@c.parquet",
    ],
)
def test_ordinary_urls_are_taken(url: str) -> None:
    check_url(url)


def test_only_what_is_secret_is_hidden() -> None:
    options = {
        "key": "AKID1",
        "anon": False,
        "client_kwargs": {"region_name": "eu-west-1", "aws_session_token": "AKID1-and-more"},
        "headers": [{"Authorization": "Bearer abc"}],
        "password": "x",  # too short to look for
    }
    text = "AKID1-and-more, AKID1, eu-west-1, Bearer abc, x"
    assert without_secrets(text, options) == f"{HIDDEN}, {HIDDEN}, eu-west-1, {HIDDEN}, x"
    assert without_secrets(text, None) == text


def test_a_task_that_fails_does_not_write_its_options_into_a_log(
    client: Any, tmp_path: Path
) -> None:
    arguments = (Store(str(tmp_path), {"key": SECRET}), "table.json", 0, ["x"], "cpu")
    assert SECRET not in repr(arguments)
    future = client.submit(rank_columns, *arguments)
    with pytest.raises(FileNotFoundError):
        future.result()
    lines = [text for log in client.get_worker_logs().values() for _, text in log]
    assert any("Compute Failed" in text for text in lines)
    assert not any(SECRET in text for text in lines)
    store = Store(str(tmp_path), {"key": SECRET})
    carried = client.submit(lambda s: dict(s.storage_options), store).result()
    assert carried == {"key": SECRET}


class Refusing:
    """A file system that repeats its options in every error."""

    def __init__(self, error: type[Exception], options: Mapping[str, Any]) -> None:
        self._error = error
        self._options = options

    def __getattr__(self, name: str) -> Any:
        return functools.partial(self._refuse, name)

    def _refuse(self, name: str, *arguments: Any, **keywords: Any) -> Any:
        raise self._error(f"{name} failed with {self._options}\nand a second line")


@pytest.mark.parametrize("error", [RuntimeError, OSError, PermissionError, ValueError])
def test_whatever_a_file_system_raises_is_one_sentence(
    error: type[Exception], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    options = {"secret": SECRET}
    refusing = (Refusing(error, options), "bucket/a")
    monkeypatch.setattr("fsspec.core.url_to_fs", lambda *a, **k: refusing)
    monkeypatch.setattr(files_module, "_PAUSES", ())
    store = Store("odd://bucket", options)
    data = tmp_path / "a.parquet"
    pq.write_table(table(), data)
    local = open_table([data], options=Options())
    there = local.from_json(local.to_json().replace(str(data), "odd://bucket/a.parquet"))
    remote = dataclasses.replace(there, storage_options=Secrets(options))
    actions = [
        lambda: open_table(["odd://bucket/a"], options=Options(), storage_options=options),
        lambda: read_block(remote, ["x0"]),
        store.names,
        store.remove,
        lambda: store.read_json("a"),
        lambda: store.read_arrays("a"),
        lambda: store.size("a"),
        lambda: store.write("a", b""),
    ]
    for action in actions:
        with pytest.raises(DpipeError) as caught:
            action()
        assert SECRET not in str(caught.value)
        assert "second line" not in str(caught.value)


def test_a_store_of_an_unknown_kind_is_one_sentence() -> None:
    with pytest.raises(InputError, match="cannot store ranks at"):
        Store("nosuch://bucket/ranks")


def test_notes_of_a_run_hold_no_secret(tmp_path: Path, client: Any) -> None:
    data = tmp_path / "a.parquet"
    pq.write_table(table(), data)
    events: list[Event] = []
    run(
        [data],
        Options(passes=(1, 2), restart="never"),
        output_dir=tmp_path / "out",
        client=client,
        observers=(events.append,),
        storage_options={"key": KEY, "secret": SECRET},
    )
    assert holds_secret(tmp_path) == []
    assert SECRET not in repr(events)


# A run folder at a URL


def test_a_run_folder_on_s3_is_continued_proved_and_used(
    bucket: Any, options: dict[str, Any], tmp_path: Path
) -> None:
    storage = ["--storage-options", json.dumps(options)]
    words = ["run", "s3://bucket/data/", *storage, "--workers", 1, "--passes", "1,2"]
    local = program([*words, "--output-dir", "out"], tmp_path)
    assert local.returncode == 0, local.stderr
    remote = [*words, "--output-dir", "s3://bucket/out/"]
    first = program(remote, tmp_path)
    assert first.returncode == 0, first.stderr
    assert "dpipe verify s3://bucket/out/" in first.stdout
    names = {path.removeprefix("bucket/out/") for path in bucket.find("bucket/out")}
    assert {"selected.txt", "decisions.parquet", "run.json", "report.html"} <= names
    assert not any("ranks-" in name or "lock" in name for name in names)
    selected = (tmp_path / "out" / "selected.txt").read_bytes()
    assert bucket.cat_file("bucket/out/selected.txt") == selected

    again = program([*remote, "--spearman-threshold", 0.99999], tmp_path)
    assert again.returncode == 0, again.stderr
    assert "pass 1 prepare" in again.stdout
    assert "from the checkpoint" in again.stdout
    assert bucket.cat_file("bucket/out/selected.txt") != selected

    assert program(["verify", "s3://bucket/out", *storage], tmp_path).returncode == 0
    bucket.rm_file("bucket/out/report.html")
    shown = program(["report", "s3://bucket/out", *storage], tmp_path)
    assert shown.stdout == "s3://bucket/out/report.html\n"
    assert bucket.exists("bucket/out/report.html")
    reduced = [*storage, "--output", "s3://bucket/reduced.parquet"]
    applied = program(["apply", "s3://bucket/out", "s3://bucket/data/", *reduced], tmp_path)
    assert applied.returncode == 0, applied.stderr
    assert bucket.exists("bucket/reduced.parquet")

    nothing = program(["verify", "s3://bucket/nowhere", *storage], tmp_path)
    assert (nothing.returncode, nothing.stderr) == (
        2,
        "Error: there is no run at s3://bucket/nowhere.\n",
    )
    assert holds_secret(tmp_path) == []


def test_python_writes_and_reads_a_run_folder_at_a_url(client: Any, tmp_path: Path) -> None:
    data = tmp_path / "data.parquet"
    pq.write_table(table(), data)
    here = dpipe.select(
        data, client=client, restart="never", passes=(1, 2), output_dir=tmp_path / "out"
    )
    there = dpipe.select(
        data, client=client, restart="never", passes=(1, 2), output_dir="memory://python/out"
    )
    fs = fsspec.filesystem("memory")
    names = {path.removeprefix("/python/out/") for path in fs.find("/python/out")}
    assert {"selected.txt", "spearman.npy", "report.html", "checkpoint/pass-2.json"} <= names
    assert fs.cat_file("/python/out/selected.txt") == (tmp_path / "out/selected.txt").read_bytes()
    assert there.decisions == here.decisions

    events: list[Event] = []
    again = dpipe.select(
        data,
        client=client,
        restart="never",
        passes=(1, 2),
        output_dir="memory://python/out",
        observers=[events.append],
    )
    assert [event.reused for event in events if isinstance(event, PassDone)] == [True, True]
    assert again.report(tmp_path / "page.html").exists()
    saved = RunFolder(again.save(tmp_path / "saved"))
    assert saved.read_selected() == here.selected
    assert saved.verify_checksums() == ()

    reduced = dpipe.apply("memory://python/out", data, tmp_path / "reduced.parquet")
    assert reduced.columns == tuple(pq.read_schema(tmp_path / "reduced.parquet").names)
    assert reduced.columns == here.selected
    assert (reduced.n_rows, reduced.left_out) == (300, ())
    assert verify("memory://python/out").n_selected == len(here.selected)
    fs.rm_file("/python/out/report.html")
    assert write_report("memory://python/out") == "memory://python/out/report.html"
    assert fs.exists("/python/out/report.html")


def test_workers_that_may_be_elsewhere_keep_their_ranks_beside_a_run_folder_at_a_url(
    client: Any, tmp_path: Path
) -> None:
    data = tmp_path / "data.parquet"
    pq.write_table(table(), data)
    url = f"file://{tmp_path}/out"
    dpipe.select(data, client=client, restart="never", passes=(1,), output_dir=url)
    assert list((tmp_path / "out" / "checkpoint").glob("ranks-*/block-*.json"))
    events: list[Event] = []
    dpipe.select(
        data,
        client=client,
        restart="never",
        passes=(1, 2),
        output_dir=url,
        observers=[events.append],
    )
    assert [event.reused for event in events if isinstance(event, PassDone)] == [True, False]
    assert RunFolder(tmp_path / "out").verify_checksums() == ()


def test_a_run_folder_at_a_url_finds_its_ranks_again(tmp_path: Path) -> None:
    data = write_parts(mixed_table(200), tmp_path / "data")

    def run(threshold: str) -> str:
        words = ["run", str(data), "--output-dir", f"file://{tmp_path}/out", "--passes", "1,2"]
        words += ["--scratch-dir", str(tmp_path / "scratch"), "--min-valid", "50", "-v"]
        words += ["--workers", "1", "--device", "cpu", "--spearman-threshold", threshold]
        result = CliRunner().invoke(main, words)
        assert result.exit_code == 0, result.output
        return result.output

    run("0.95")
    again = run("0.9")
    assert "were ranked before" in again
    assert "because spearman_threshold changed" in again
    assert len(list((tmp_path / "scratch").iterdir())) == 1


def test_a_copy_follows_what_is_new_and_what_is_gone() -> None:
    fs = fsspec.filesystem("memory")
    fs.pipe_file("/follow/out/old.txt", b"old")
    fs.pipe_file("/follow/out/checkpoint/pass-1.json", b"{}")
    with mirror.working("memory://follow/out") as (folder, watch):
        copy = Path(folder)
        assert copy.name == "out"
        assert (copy / "checkpoint" / "pass-1.json").read_text() == "{}"
        (copy / "old.txt").unlink()
        (copy / "new.txt").write_text("new")
        (copy / "checkpoint" / "ranks-1").mkdir()
        (copy / "checkpoint" / "ranks-1" / "block").write_text("large")
        assert not fs.exists("/follow/out/new.txt")
        watch(PassDone(1, "prepare", 2, 1, 0.1, reused=False))
        assert fs.cat_file("/follow/out/new.txt") == b"new"
        (copy / "new.txt").write_text("newer")
    assert fs.cat_file("/follow/out/new.txt") == b"newer"
    assert sorted(fs.find("/follow/out")) == [
        "/follow/out/checkpoint/pass-1.json",
        "/follow/out/new.txt",
    ]
    assert not copy.exists()


def test_a_copy_is_kept_though_the_run_fails() -> None:
    fs = fsspec.filesystem("memory")

    def fail() -> None:
        with mirror.working("memory://fails/out") as (folder, _):
            (Path(folder) / "pass-1.json").write_text("{}")
            raise ResourceError("every worker was killed.")

    with pytest.raises(ResourceError, match="killed"):
        fail()
    assert fs.exists("/fails/out/pass-1.json")


def test_a_local_folder_is_no_copy(tmp_path: Path) -> None:
    with mirror.working(str(tmp_path)) as (folder, _), mirror.reading(str(tmp_path)) as same:
        assert folder == same == str(tmp_path)


def test_results_that_cannot_be_sent_are_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError("no right to write, says hunter2hunter2")

    monkeypatch.setattr(fsspec.filesystem("memory"), "put_file", refuse)
    monkeypatch.setattr(
        mirror.fsspec.core,
        "url_to_fs",
        lambda *_, **__: (fsspec.filesystem("memory"), "/refused/out"),
    )
    with (
        pytest.raises(ResourceError) as caught,
        mirror.working("memory://refused/out", {"secret": "hunter2hunter2"}) as (folder, _),
    ):
        (Path(folder) / "selected.txt").write_text("a")
    assert str(caught.value) == (
        "memory://refused/out cannot be written (no right to write, says <hidden>); "
        "run the same command again to continue."
    )
