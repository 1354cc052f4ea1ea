"""Workers forked from a process that has imported what they need, for the program ``dpipe``.

Covers: starting that process, once, and having Dask use it.
Does not cover: workers that start from nothing, as those of a caller's process do
(`dpipe.session.local`).

A worker that starts from nothing spends more time on imports than a small table takes, and every
restart starts all of them. The server imports once, computes nothing and so does not grow; a worker
forked from it is as fresh as any. There is one to a process, which keeps the environment it was
started with and lives as long as its process: nothing to leave behind in somebody else's.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Mapping
from multiprocessing import forkserver

import dask
import distributed.utils

from dpipe.common.environment import owns_this_process
from dpipe.common.processes import say_that_it_serves

IMPORTED = (
    "distributed.nanny",
    "distributed.worker",
    "dpipe.engine.tiles",
    "dpipe.session.worker",
)
"""What every worker needs. Not PyArrow, which pass 1 alone needs, and which starts a thread."""


def serve_workers(environment: Mapping[str, str]) -> None:
    """Have workers forked from a server with these variables, if this process is dpipe's own."""
    # Elsewhere than on Linux the libraries of the system may not survive a fork.
    if sys.platform != "linux" or not owns_this_process():
        return
    dask.config.set({"distributed.worker.multiprocessing-method": "forkserver"})
    # Dask would have it import whatever may be useful, pandas among it.
    distributed.utils._forkserver_preload_set = True
    forkserver.set_forkserver_preload(list(IMPORTED))
    # Else it would look for modules in the current folder first, as every `python -c` does.
    path = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "PYTHONSAFEPATH": "1"}
    with _environment({**environment, **path}):
        forkserver.ensure_running()
    say_that_it_serves()


@contextlib.contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set variables, for processes that are started inside."""
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        for name in variables:
            if name in before:
                os.environ[name] = before[name]
            else:
                del os.environ[name]
