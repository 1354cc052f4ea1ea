"""Starting processes from this one: what stands against it, in words for whoever called.

Covers: a daemon, a process of joblib's, a script read from standard input or without a guard.
Does not cover: starting them (`dpipe.session.local`, `dpipe.common.processes`).
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from pathlib import Path

from dpipe.errors import ResourceError

ELSEWHERE = "or use a running cluster (client= in Python, --scheduler on the command line)"
GUARD = 'a script must call dpipe under if __name__ == "__main__"'


def check_that_processes_can_start(elsewhere: str = ELSEWHERE) -> None:
    """Refuse what cannot work, before a worker is started and waited for.

    Parameters
    ----------
    elsewhere
        What else whoever called can do, as the end of a sentence.

    Raises
    ------
    ResourceError
        When this process may have no children, or they could not import what it runs.
    """
    process = multiprocessing.current_process()
    if getattr(process, "_inheriting", False):
        # A worker imports the script it was started from, which calls dpipe once more.
        raise ResourceError(f"the workers could not be started: {GUARD}.")
    if process.daemon:
        raise ResourceError(
            "the workers could not be started, because this process is a daemon, which may start "
            "no others (as those of multiprocessing.Pool and of Dask's workers are): call dpipe "
            f"in the main process, {elsewhere}."
        )
    if within_joblib():
        raise ResourceError(
            "the workers could not be started, because this process is one that joblib started (as "
            "n_jobs of scikit-learn does), of which no others can start: call dpipe in the main "
            f"process, {elsewhere}."
        )
    script = _script()
    if script is not None and not script.exists():
        raise ResourceError(
            f"the workers could not be started, because each of them reads the script again and "
            f"there is no file {script.name}: save it in a file and run that, {elsewhere}."
        )


def within_joblib() -> bool:
    """Whether this process was started by loky, as joblib does.

    Python tells a new process how its parent was started, and it ends where it does not know that.

    Examples
    --------
    >>> within_joblib()
    False
    """
    known: list[str | None] = [None, *multiprocessing.get_all_start_methods()]
    return multiprocessing.get_start_method(allow_none=True) not in known


def advice() -> str:
    """What to do when workers did not start although nothing stood against it."""
    return GUARD if lacks_guard() else "see what they wrote to the terminal, or try fewer --workers"


def lacks_guard() -> bool:
    """Whether processes would run the script that this one runs, from its first line on."""
    script = _script()
    return script is not None and "__main__" not in script.read_text("utf-8", errors="replace")


def _script() -> Path | None:
    """The file that worker processes import as this process's main module; None without one."""
    main = sys.modules.get("__main__")
    # As multiprocessing.spawn decides it.
    if main is None or getattr(getattr(main, "__spec__", None), "name", None) is not None:
        return None
    file = getattr(main, "__file__", None)
    return None if file is None else Path(os.path.abspath(file))
