"""What can go wrong and how a program that calls dpipe learns of it.

Covers: the exceptions of the public interface and the exit code each one means on the command line.
Does not cover: how an error is shown (see `dpipe.cli`).

Every message is one sentence a user can act on: which file, which column, what to do.
"""

from __future__ import annotations


class DpipeError(Exception):
    """Base of every error dpipe raises on purpose.

    Examples
    --------
    >>> issubclass(InputError, DpipeError), InputError.exit_code
    (True, 2)
    """

    exit_code = 2


class InputError(DpipeError):
    """Bad usage or bad input: an option, a file or a column; exit code 2."""


class VerificationError(DpipeError):
    """A run folder does not prove what it claims; exit code 2."""


class ResourceError(DpipeError):
    """The cluster was lost, or there is not enough memory or disk; exit code 3."""

    exit_code = 3
