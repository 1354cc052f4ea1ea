"""The program ``dpipe``, which ``python -m dpipe`` is too."""

from __future__ import annotations

import signal
import sys


def program(name: str | None = None) -> None:
    """Run the command line in a process of its own.

    What it takes is imported here: each worker process imports the script that it was started from.
    """
    try:
        from dpipe.common.spared import spare_imports

        spare_imports()
        from dpipe.cli import main
        from dpipe.common.environment import own_this_process
    except KeyboardInterrupt:  # nothing has begun that could tell of it
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    own_this_process()
    try:
        main(prog_name=name)
    finally:
        # What is left is Python's own end, which would show an interrupt as a traceback.
        signal.signal(signal.SIGINT, signal.SIG_DFL)


if __name__ == "__main__":
    program("python -m dpipe")
