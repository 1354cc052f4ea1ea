"""What a run would find here: versions, memory, devices, disks, on the client and on every worker.

Covers: looking at this process and at the workers of a session, comparing them, naming problems.
Does not cover: fixing anything, or the memory of a run that goes on (see
`dpipe.model.events.MemoryRead`).
See also: `dpipe.session`, which refuses clusters whose versions do not fit.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
import tempfile
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from dpipe import session as sessions
from dpipe.common.credentials import Secrets, is_url
from dpipe.common.words import counted, first_line, sized
from dpipe.device import card as cards
from dpipe.errors import InputError, ResourceError
from dpipe.kernels.ranks import implementation
from dpipe.model.events import Emit, silent
from dpipe.options import Options
from dpipe.session.calls import CLUSTER_ERRORS, PROBE_SECONDS, within
from dpipe.session.device import local_machine

PACKAGES = (
    "dpipe",
    "dask",
    "distributed",
    "numpy",
    "pyarrow",
    "fsspec",
    "igraph",
    "bokeh",
    "click",
    "rich",
)
"""Packages of every installation."""
GPU_PACKAGES = ("cupy", "dask-cuda", "rmm")
"""Packages a GPU session needs beside them; distributed under various names."""

_RANKING = {
    "C": "C",
    "NumPy": "NumPy, with the same result in more time: no C compiler worked at installation",
}
_MEMORY_DISKS = {"tmpfs", "ramfs"}
_NETWORK_DISKS = {"nfs", "nfs4", "cifs", "smb3", "fuse.sshfs", "9p"}
_LEAST_OPEN_FILES = 1024


@dataclass(frozen=True)
class Finding:
    """One fact: where it was found, what it is about, and what it is; `problem` asks for action."""

    place: str
    subject: str
    text: str
    problem: bool = False


@dataclass(frozen=True)
class Probe:
    """What a process is asked to look at.

    ``scratch`` is the folder of the rank store (the system's temporary one when None), ``token`` a
    file that the client has put into it, ``files`` input to open.
    """

    scratch: str | None
    token: str | None
    files: tuple[str, ...]
    storage_options: Mapping[str, Any] | None


@dataclass(frozen=True)
class Facts:
    """What one process says about itself; sizes in bytes, ``limit`` None without a limit."""

    name: str
    host: str
    python: str
    system: str
    versions: Mapping[str, str]
    blas: tuple[str, ...]
    ranking: str
    cpus: int
    memory: int
    limit: int | None
    threads: int
    nanny: bool | None
    card: str | None
    open_files: int | None
    scratch: str
    disk: str
    free: int | None
    writable: bool
    sees_token: bool
    unreadable: tuple[str, ...]


def examine(
    options: Options,
    sources: Sequence[str] = (),
    *,
    storage_options: Mapping[str, Any] | None = None,
    emit: Emit = silent,
) -> Iterator[Finding]:
    """Look at this machine and at the workers a run with `options` would use.

    Findings come as they are made, those about this process before a cluster is looked for.

    Parameters
    ----------
    options
        ``scheduler`` or ``scheduler_file`` name a cluster to look at; else one local worker (or
        ``workers``) is started and closed again. ``scratch_dir`` is the folder to look at.
    sources
        Input that every process is asked to open; only the first and last file are tried.
    storage_options
        Passed to fsspec for URLs.
    emit
        Told what the session says when it opens.

    Raises
    ------
    ResourceError
        When the cluster cannot be reached, or its versions do not fit.
    InputError
        When an address or a source is wrong.

    Examples
    --------
    >>> findings = examine(Options(workers=1))
    >>> next(findings).subject
    'python'
    """
    paths = _paths(sources, options, storage_options)
    files = tuple(dict.fromkeys((*paths[:1], *paths[-1:])))
    connection = options.scheduler or options.scheduler_file
    # With a URL the ranks take no disk; workers still keep temporary files on one.
    scratch = None if is_url(options.scratch_dir or "") else options.scratch_dir
    with _token(scratch) as token:
        probe = Probe(scratch, token, files, Secrets(storage_options))
        client_facts = look(probe)
        yield from _client_findings(client_facts)
        if connection:
            session_context = sessions.attach_session(connection, options, emit=emit)
        else:
            # One worker shows what a local session is like; starting one per core takes long.
            few = options.replace(workers=options.workers or 1)
            session_context = sessions.open_session(few, emit=emit)
        with session_context as session:
            answers = _ask(session.client, probe)
            owned, device = session.owned, session.device
    workers = [facts for facts in answers.values() if isinstance(facts, Facts)]
    yield Finding("session", "workers", _workers_text(owned, workers))
    yield Finding("session", "computes on", "the GPU" if device == "gpu" else "the CPU")
    for address, error in answers.items():
        if isinstance(error, BaseException):
            reason = f"could not look around: {type(error).__name__}: {error}"
            yield Finding(f"worker {address}", "failure", reason, problem=True)
    workers.sort(key=lambda facts: (len(facts.name), facts.name))
    yield from _worker_findings(client_facts, workers, shared=not owned)


def _ask(client: Any, probe: Probe) -> dict[str, Any]:
    """What every worker says about itself: address -> `Facts`, or the error it met."""
    try:
        answers: dict[str, Any] = within(
            client, PROBE_SECONDS, "run", look, probe, on_error="return"
        )
    except CLUSTER_ERRORS as error:
        raise ResourceError(
            f"the workers do not answer within {PROBE_SECONDS:g} s ({first_line(error)}); "
            "look at their logs, or start them anew."
        ) from error
    return answers


def look(probe: Probe, dask_worker: Any = None) -> Facts:
    """What the process this runs in says about itself (a worker's, where Dask passes one)."""
    import numpy  # noqa: F401  its BLAS must be loaded before it can be asked about

    threadpoolctl = importlib.import_module("threadpoolctl")
    cores, memory = local_machine()
    limit = dask_worker.memory_manager.memory_limit if dask_worker is not None else None
    scratch = os.path.abspath(probe.scratch or tempfile.gettempdir())
    place = _nearest_existing(scratch)
    return Facts(
        name="client" if dask_worker is None else str(dask_worker.name),
        host=platform.node(),
        python=platform.python_version(),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        versions=dict(_versions((*PACKAGES, *GPU_PACKAGES))),
        blas=tuple(
            f"{pool.get('internal_api')} {pool.get('version') or ''}".strip()
            + f", {pool['num_threads']} threads".replace("1 threads", "1 thread")
            for pool in threadpoolctl.threadpool_info()
            if pool.get("user_api") == "blas"
        ),
        ranking=implementation(),
        cpus=cores,
        memory=memory,
        limit=int(limit) if limit else None,
        threads=dask_worker.state.nthreads if dask_worker is not None else 1,
        nanny=None if dask_worker is None else dask_worker.nanny is not None,
        card=cards.describe(),
        open_files=_open_files_limit(),
        scratch=scratch,
        disk=_disk_type(place),
        free=shutil.disk_usage(place).free,
        writable=os.access(place, os.W_OK),
        sees_token=probe.token is None or os.path.exists(probe.token),
        unreadable=tuple(_unreadable(probe.files, probe.storage_options)),
    )


# What is found


def _client_findings(facts: Facts) -> Iterator[Finding]:
    place = "client"
    yield Finding(place, "python", f"{facts.python} on {facts.system}")
    yield Finding(
        place,
        "packages",
        ", ".join(f"{name} {facts.versions.get(name, 'missing')}" for name in PACKAGES),
        problem=any(name not in facts.versions for name in PACKAGES[1:]),
    )
    yield Finding(place, "BLAS", "; ".join(facts.blas) or "unknown")
    yield Finding(place, "ranking", _RANKING[facts.ranking])
    yield Finding(
        place,
        "machine",
        f"{facts.cpus} cores and {sized(facts.memory)} of memory that this process may use",
    )
    yield _card_finding(place, facts)
    if facts.open_files is not None:
        few = facts.open_files < _LEAST_OPEN_FILES
        advice = "; raise it with `ulimit -n 4096`" if few else ""
        yield Finding(place, "open files", f"at most {facts.open_files:,}{advice}", problem=few)
    yield _disk_finding(place, facts)
    yield from _input_findings(place, facts)


def _card_finding(place: str, facts: Facts) -> Finding:
    if facts.card is None:
        return Finding(place, "GPU", "no NVIDIA card is visible")
    missing = [name for name in GPU_PACKAGES if name not in facts.versions]
    if missing:
        return Finding(
            place, "GPU", f"{facts.card}, but {missing[0]} is not installed", problem=True
        )
    versions = ", ".join(f"{name} {facts.versions[name]}" for name in GPU_PACKAGES)
    return Finding(place, "GPU", f"{facts.card} with {versions}")


def _disk_finding(place: str, facts: Facts) -> Finding:
    free = "unknown space" if facts.free is None else sized(facts.free)
    text = f"{facts.scratch} ({facts.disk}, {free} free)"
    if not facts.writable:
        return Finding(place, "scratch", f"{text} cannot be written", problem=True)
    if facts.disk in _MEMORY_DISKS:
        return Finding(
            place,
            "scratch",
            f"{text} lies in memory: choose a disk with --scratch-dir",
            problem=True,
        )
    return Finding(place, "scratch", text)


def _input_findings(place: str, facts: Facts) -> Iterator[Finding]:
    for reason in facts.unreadable:
        yield Finding(place, "input", reason, problem=True)


def _worker_findings(
    client_facts: Facts, workers: Sequence[Facts], *, shared: bool
) -> Iterator[Finding]:
    """What is worth knowing about each worker, or about all where they are alike."""
    for place, facts in _alike(workers):
        limit = "no memory limit" if facts.limit is None else f"{sized(facts.limit)} of memory"
        yield Finding(
            place,
            "limits",
            f"{limit}, {counted(facts.threads, 'task thread')}",
            problem=facts.limit is None,
        )
        yield Finding(
            place,
            "nanny",
            "yes" if facts.nanny else "no: it cannot be restarted between passes",
            problem=not facts.nanny,
        )
        yield Finding(place, "BLAS", "; ".join(facts.blas) or "unknown")
        yield Finding(place, "ranking", _RANKING[facts.ranking])
        differing = [
            f"{name} {facts.versions.get(name, 'missing')} instead of {version}"
            for name, version in client_facts.versions.items()
            if facts.versions.get(name) != version
        ]
        if facts.python != client_facts.python:
            differing.insert(0, f"python {facts.python} instead of {client_facts.python}")
        text = ", ".join(differing) or "as on the client"
        yield Finding(place, "versions", text, problem=bool(differing))
        if shared:
            yield _card_finding(place, facts)
            yield _disk_finding(place, facts)
        if not facts.sees_token:
            yield Finding(
                place,
                "scratch",
                f"{facts.scratch} is not the client's folder: choose one that all workers share",
                problem=True,
            )
        yield from _input_findings(place, facts)


def _alike(workers: Sequence[Facts]) -> Iterator[tuple[str, Facts]]:
    """Workers that say the same, as one entry under all their names."""
    groups: dict[str, list[Facts]] = {}
    for facts in workers:
        same = {**vars(facts), "name": "", "free": 0, "host": ""}
        groups.setdefault(repr(same), []).append(facts)
    for members in groups.values():
        names = [member.name for member in members]
        listed = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
        yield f"worker {listed}" if len(names) == 1 else f"workers {listed}", members[0]


def _workers_text(owned: bool, workers: Sequence[Facts]) -> str:
    hosts = len({facts.host for facts in workers})
    where = "this machine, started to look at it" if owned else counted(hosts, "host")
    return f"{counted(len(workers), 'worker')} on {where}"


# Looking


def _versions(names: Iterable[str]) -> Iterator[tuple[str, str]]:
    for name in names:
        module = name.replace("-", "_")
        if importlib.util.find_spec(module) is None:
            continue
        owner = name
        if name in GPU_PACKAGES:
            # CuPy and RMM are distributed under a name for each version of CUDA.
            owner = importlib.metadata.packages_distributions().get(module, [name])[0]
        try:
            yield name, importlib.metadata.version(owner)
        except importlib.metadata.PackageNotFoundError:
            yield name, "from source"


def _open_files_limit() -> int | None:
    if sys.platform == "win32":
        return None
    import resource

    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def _nearest_existing(folder: str) -> str:
    path = Path(folder)
    return str(next(p for p in (path, *path.parents) if p.exists()))


def _disk_type(folder: str) -> str:
    """Type of the file system that holds `folder`."""
    real = os.path.realpath(folder)
    best, kind = "", "unknown file system"
    for part in psutil.disk_partitions(all=True):
        mount = part.mountpoint
        inside = real == mount or real.startswith(mount.rstrip("/") + "/")
        if inside and len(mount) >= len(best):
            best, kind = mount, part.fstype
    return f"network disk, {kind}" if kind in _NETWORK_DISKS else kind


@contextlib.contextmanager
def _token(folder: str | None) -> Iterator[str | None]:
    """A file in the scratch folder, for workers to show that they share the folder."""
    if folder is None or not os.path.isdir(folder):
        yield None
        return
    path = Path(folder).absolute() / f".dpipe-doctor-{uuid.uuid4().hex}"
    try:
        path.touch()
    except OSError:  # reported as a folder that cannot be written
        yield None
        return
    try:
        yield str(path)
    finally:
        path.unlink(missing_ok=True)


def _paths(
    sources: Sequence[str], options: Options, storage_options: Mapping[str, Any] | None
) -> tuple[str, ...]:
    if not sources:
        return ()
    from dpipe.table import open_table

    with open_table(sources, options=options, storage_options=storage_options) as table:
        # Of a file in another format the workers read what the client makes of it.
        return tuple(file.path for file in table.files if file.origin is None)


def _unreadable(files: Iterable[str], storage_options: Mapping[str, Any] | None) -> Iterator[str]:
    if not files:
        return
    from dpipe.table import open_table

    for file in files:
        try:
            open_table([file], options=Options(), storage_options=storage_options)
        except InputError as error:
            yield str(error)
