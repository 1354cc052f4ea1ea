"""The command line: words in, one call of the library, words out.

Covers: commands and their options, YAML files and Dask's configuration as further sources of
options, exit codes, and how an error is shown.
Does not cover: what the commands do (see `dpipe.pipeline`, `dpipe.verify`, `dpipe.report`,
`dpipe.session.doctor`), the meaning of options (see `dpipe.options`), progress (see
`dpipe.watch.terminal`).

Importing this package is cheap, because ``dask --help`` imports it too: every command imports what
it needs when it runs.
"""

from __future__ import annotations

from dpipe.cli import finished  # its commands join those of `main`
from dpipe.cli.commands import main

__all__ = ["finished", "main"]
