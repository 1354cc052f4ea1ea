"""Errors and signals: the one place that decides what a user sees and which code is returned.

Covers: one sentence for each error, exit codes, interrupts, the traceback of ``--verbose``.
Does not cover: raising the errors (see `dpipe.errors`).
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NoReturn

import click

from dpipe.common.credentials import without_secrets
from dpipe.errors import DpipeError, InputError, ResourceError

if TYPE_CHECKING:
    from types import FrameType


UNEXPECTED = 1
"""Exit code of an error in dpipe itself."""
INTERRUPTED = 130

VERBOSE = "dpipe.verbose"  # key of click's context: whether an error shows its traceback
SECRETS = "dpipe.common.credentials"  # key of click's context: the storage options that were given
RESUMABLE = "dpipe.resumable"  # key of click's context: whether the command can be continued


@contextlib.contextmanager
def one_sentence(ctx: click.Context | None) -> Iterator[None]:
    """Show whatever goes wrong inside as one sentence, and end with its exit code."""
    meta = ctx.meta if ctx is not None else {}
    try:
        yield
        sys.stdout.flush()  # what nobody reads any more is found out here, not at the very end
    except (click.exceptions.Exit, click.Abort):
        raise
    except click.UsageError as error:
        where = f" See `{error.ctx.command_path} --help`." if error.ctx is not None else ""
        message = error.format_message().rstrip(".")
        fail(f"{message}{'' if message.endswith('?') else '.'}{where}", error.exit_code)
    except click.ClickException as error:
        fail(error.format_message(), InputError.exit_code)
    except DpipeError as error:
        fail(str(error), error.exit_code, show_trace=meta.get(VERBOSE, False))
    except KeyboardInterrupt:
        again = "; run the same command again to continue" if meta.get(RESUMABLE) else ""
        click.echo(f"interrupted{again}", err=True)
        raise click.exceptions.Exit(INTERRUPTED) from None
    except BrokenPipeError:
        # The reader has seen enough (`dpipe plan ... | head`). Python would complain once more
        # when it flushes standard output at the end.
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise click.exceptions.Exit(0) from None
    except Exception as error:
        sentence, code = _sentence_of(error)
        fail(sentence, code, show_trace=meta.get(VERBOSE, False))


def _sentence_of(error: Exception) -> tuple[str, int]:
    """What to say about an error that dpipe did not raise itself, and its exit code."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return (
            f"there is no space left on the disk of {error.filename or 'the output'}; "
            "make room and run the same command again.",
            ResourceError.exit_code,
        )
    if isinstance(error, MemoryError):
        return (
            "not enough memory on this machine; run on a machine with more, or on fewer columns.",
            ResourceError.exit_code,
        )
    if isinstance(error, PermissionError | FileNotFoundError | IsADirectoryError) and (
        error.filename is not None
    ):
        return f"{error.filename}: {error.strerror}.", InputError.exit_code
    return (
        f"unexpected {type(error).__name__}: {error}; this is a fault of dpipe: please run again "
        "with --verbose and report what it prints, with the output of `dpipe doctor`, "
        "as CONTRIBUTING.md says.",
        UNEXPECTED,
    )


def fail(sentence: str, code: int, *, show_trace: bool = False) -> NoReturn:
    """Write one sentence, and with `show_trace` the traceback, and end with `code`."""
    from dpipe.common.words import printable

    ctx = click.get_current_context(silent=True)
    secrets = ctx.meta.get(SECRETS) if ctx is not None else None
    if show_trace:
        click.echo(without_secrets(traceback.format_exc(), secrets), err=True, nl=False)
    sentence = without_secrets(" ".join(sentence.split()), secrets)
    click.echo(f"Error: {printable(sentence)}", err=True)
    raise click.exceptions.Exit(code) from None


@contextlib.contextmanager
def signals() -> Iterator[None]:
    """End at a polite kill or a lost terminal as at Ctrl-C: cleanly, and able to continue."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for name in ("SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)
            # Not where somebody else, such as nohup, has decided already.
            if number is not None and signal.getsignal(number) == signal.SIG_DFL:
                before[number] = signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
