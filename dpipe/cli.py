"""The command line: words in, one call of the library, words out.

Covers: commands and their options, YAML files and Dask's configuration as further sources of
options, exit codes, and how an error is shown.
Does not cover: what the commands do (see `dpipe.pipeline`, `dpipe.verify`, `dpipe.report`,
`dpipe.doctor`), the meaning of options (see `dpipe.config`), progress (see `dpipe.progress`).

Importing this module is cheap, because ``dask --help`` imports it too: every command imports what
it needs when it runs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import functools
import json
import logging
import os
import shlex
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click

from dpipe.config import CHOICES, SIZES, Options, options_from
from dpipe.errors import DpipeError, InputError, ResourceError

if TYPE_CHECKING:
    from types import FrameType

    from rich.table import Table

    from dpipe.plan import Plan

_Decorated = TypeVar("_Decorated", bound=Callable[..., Any])

UNEXPECTED = 1
"""Exit code of an error in dpipe itself."""
INTERRUPTED = 130

SECTIONS: dict[str, tuple[str, ...]] = {
    "Input": (
        "id_columns",
        "exclude",
        "on_bad_file",
        "coerce_strings",
        "sample_rows",
        "sample_per_file",
        "seed",
    ),
    "What is redundant": (
        "keep",
        "prefer",
        "max_missing_ratio",
        "min_valid",
        "variance_threshold",
        "spearman_threshold",
        "missing",
        "vif_threshold",
        "nonlinear_threshold",
        "w_hsic",
        "w_rdc",
        "nonlinear_rows",
        "rdc_seeds",
        "rdc_degree",
        "passes",
    ),
    "Workers and memory": (
        "device",
        "scheduler",
        "scheduler_file",
        "workers",
        "threads_per_worker",
        "memory_limit",
        "restart",
        "scratch_dir",
        "matrix_budget",
    ),
    "Output": ("checkpoint", "fresh", "write_table"),
}
"""Every field of `Options` under the heading it has in ``--help``."""

_METAVARS = {
    "scheduler": "ADDRESS",
    "scheduler_file": "FILE",
    "scratch_dir": "DIR",
    "passes": "1,2,3,4",
}
_BESIDE_OPTIONS = (
    "parquet_glob",
    "storage_options",
    "prefer_gpu",
    "output_dir",
    "verbose",
    "quiet",
)
"""What a YAML file may hold beside the fields of `Options`."""

_VERBOSE = "dpipe.verbose"  # key of click's context: whether an error shows its traceback
_RESUMABLE = "dpipe.resumable"  # key of click's context: whether the command can be continued


# Errors and signals: the one place that decides what a user sees and which code is returned


@contextlib.contextmanager
def _one_sentence(ctx: click.Context | None) -> Iterator[None]:
    """Show whatever goes wrong inside as one sentence, and end with its exit code."""
    meta = ctx.meta if ctx is not None else {}
    try:
        yield
    except (click.exceptions.Exit, click.Abort):
        raise
    except click.UsageError as error:
        where = f" See `{error.ctx.command_path} --help`." if error.ctx is not None else ""
        _fail(error.format_message().rstrip(".") + "." + where, error.exit_code)
    except click.ClickException as error:
        _fail(error.format_message(), InputError.exit_code)
    except DpipeError as error:
        _fail(str(error), error.exit_code, show_trace=meta.get(_VERBOSE, False))
    except KeyboardInterrupt:
        again = "; run the same command again to continue" if meta.get(_RESUMABLE) else ""
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
        _fail(sentence, code, show_trace=meta.get(_VERBOSE, False))


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
            "the memory of this process does not suffice; run on a machine with more, "
            "or on fewer columns.",
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


def _fail(sentence: str, code: int, *, show_trace: bool = False) -> NoReturn:
    from dpipe.progress import printable

    if show_trace:
        traceback.print_exc()
    click.echo(f"Error: {printable(' '.join(sentence.split()))}", err=True)
    raise click.exceptions.Exit(code) from None


@contextlib.contextmanager
def _signals() -> Iterator[None]:
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


# click: sections in --help, examples below them


class _Option(click.Option):
    """An option with the heading it stands under."""

    def __init__(self, *args: Any, section: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.section = section


class _Command(click.Command):
    """A command whose --help has sections and examples."""

    def __init__(self, *args: Any, examples: str = "", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.examples = examples

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None and isinstance(parameter, click.Option):
                heading = getattr(parameter, "section", "Other")
                sections.setdefault(heading, []).append(record)
        for heading in (*SECTIONS, "Other"):
            if heading in sections:
                with formatter.section(heading):
                    formatter.write_dl(sections[heading], col_max=34)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        if self.examples:
            with formatter.section("Examples"):
                for line in self.examples.strip().splitlines():
                    formatter.write(f"  {line.strip()}\n")


class _Main(click.Group):
    """The group of all commands; errors of any of them end here."""

    command_class = _Command

    def make_context(
        self,
        info_name: str | None,
        args: list[str],
        parent: click.Context | None = None,
        **extra: Any,
    ) -> click.Context:
        with _one_sentence(None):
            return super().make_context(info_name, args, parent, **extra)
        raise AssertionError("unreachable")  # pragma: no cover

    def invoke(self, ctx: click.Context) -> Any:
        # A name that this terminal cannot show must not end a run.
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="backslashreplace")
        with _one_sentence(ctx), _signals():
            return super().invoke(ctx)


def _own(section: str, *names: str, **settings: Any) -> Callable[[_Decorated], _Decorated]:
    """An option of a command that is no field of `Options`."""
    return click.option(*names, cls=_Option, section=section, **settings)


def _options(
    *shown: str, every: bool = False
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the fields of `Options` and hand it those that were set, as ``given``.

    Parameters
    ----------
    shown
        The fields that ``--help`` lists; the others are accepted as well, so that the words of
        `dpipe run` fit every command.
    every
        List all of them.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def with_given(**values: Any) -> None:
            fields = {f.name for f in dataclasses.fields(Options)}
            given = {
                name: values.pop(name)
                for name in list(values)
                if name in fields or name in _BESIDE_OPTIONS
            }
            command(given={k: v for k, v in given.items() if v not in (None, ())}, **values)

        decorated: Callable[..., None] = _general_options(with_given)
        decorated = _own(
            "Output",
            "--output-dir",
            metavar="DIR",
            hidden=not every,
            help="the run folder; the same one continues a run",
        )(decorated)
        fields = {f.name: f for f in dataclasses.fields(Options)}
        for section, names in reversed(SECTIONS.items()):
            for name in reversed(names):
                hidden = not (every or name in shown)
                if name == "device":
                    decorated = _prefer_gpu(hidden)(decorated)
                decorated = _field_option(fields[name], section, hidden)(decorated)
        return decorated

    return decorate


def _field_option(
    field: dataclasses.Field[Any], section: str, hidden: bool
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """The option of one field; values stay text, so that `options_from` converts all sources."""
    flag = "--" + field.name.replace("_", "-")
    default = field.default
    text = field.metadata["help"]
    settings: dict[str, Any] = {"default": None, "hidden": hidden}
    if isinstance(default, bool):
        name = f"{flag}/--no-{flag[2:]}" if default else flag
        return _own(section, name, help=text, is_flag=True, **settings)
    if isinstance(default, tuple):
        settings["multiple"] = True
    shown = _shown_default(field.name, default)
    return _own(
        section,
        flag,
        metavar=_metavar(field.name, default),
        help=f"{text}  [{shown}]" if shown else text,
        **settings,
    )


def _metavar(name: str, default: Any) -> str:
    if name in CHOICES:
        return "|".join(CHOICES[name])
    if name in SIZES:
        return "SIZE"
    return _METAVARS.get(name) or (
        "NAMES" if isinstance(default, tuple) else "X" if isinstance(default, float) else "N"
    )


def _shown_default(name: str, default: Any) -> str:
    if default is None or default == ():
        return ""
    if name in SIZES:
        return f"{default / 2**30:g}GiB"
    return ",".join(map(str, default)) if isinstance(default, tuple) else str(default)


def _note_verbose(ctx: click.Context, parameter: click.Parameter, value: bool) -> bool:
    ctx.meta[_VERBOSE] = value
    return value


def _verbose_option(command: _Decorated) -> _Decorated:
    return _own(
        "Other",
        "-v",
        "--verbose",
        is_flag=True,
        default=None,
        is_eager=True,
        callback=_note_verbose,
        help="say more; add the traceback to an error",
    )(command)


def _prefer_gpu(hidden: bool) -> Callable[[Callable[..., None]], Callable[..., None]]:
    return _own(
        "Workers and memory",
        "--prefer-gpu",
        is_flag=True,
        default=None,
        hidden=hidden,
        help="the same as --device auto",
    )


def _general_options(command: Callable[..., None]) -> Callable[..., None]:
    """Options of every command that takes those of a run."""
    quiet = _own("Other", "-q", "--quiet", is_flag=True, default=None, help="say errors only")
    config = _own("Other", "--config", metavar="FILE", help="YAML file with options")
    return config(_verbose_option(quiet(command)))


def _sources(command: Callable[..., None]) -> Callable[..., None]:
    """The input: arguments, and what only files need beside their name."""
    argument = click.argument("sources", nargs=-1, metavar="PARQUET...")
    alias = _own(
        "Input",
        "--parquet-glob",
        metavar="GLOB",
        multiple=True,
        help="another way to give the input",
    )
    return argument(alias(_storage_option(command)))


def _storage_option(command: Callable[..., None]) -> Callable[..., None]:
    return _own(
        "Input",
        "--storage-options",
        metavar="KEY=VALUE",
        multiple=True,
        help="for URLs, given to fsspec; also as one JSON object",
    )(command)


# From words to options


@dataclass(frozen=True)
class _Request:
    """What a command was asked for, from all sources of options."""

    options: Options
    sources: tuple[str, ...]
    storage_options: Mapping[str, Any] | None
    output_dir: str | None
    verbosity: int


def _settle(
    given: Mapping[str, Any], sources: Sequence[str] = (), config: str | None = None
) -> _Request:
    """Merge Dask's configuration, the YAML file and the command line; the last one wins."""
    line = _checked(_from_line(given), "")
    file = _checked(_read_yaml(config), f"{config}: ") if config else {}
    from dpipe import session  # after the cheap checks: it imports Dask

    base = _checked(session.configured_options(), "Dask's configuration, under dpipe: ")
    merged = {**base, **file, **line}
    beside = {name: merged.pop(name, None) for name in _BESIDE_OPTIONS}
    if beside["prefer_gpu"]:
        if merged.get("device", "auto") != "auto":
            raise InputError("give --prefer-gpu or --device, not both.")
        merged["device"] = "auto"
    if beside["verbose"] and beside["quiet"]:
        raise InputError("give --verbose or --quiet, not both.")
    named = (*sources, *line.get("parquet_glob", ()))
    if not beside["verbose"]:
        _silence_libraries()
    return _Request(
        options=options_from(merged),
        sources=named or tuple(beside["parquet_glob"] or ()),
        storage_options=beside["storage_options"],
        output_dir=beside["output_dir"],
        verbosity=1 if beside["verbose"] else -1 if beside["quiet"] else 0,
    )


def _from_line(given: Mapping[str, Any]) -> dict[str, Any]:
    """Values of the command line: lists joined, everything else as it is."""
    values = dict(given)
    for name, value in given.items():
        if name == "storage_options":
            values[name] = _storage_options(value)
        elif name == "passes":
            values[name] = ",".join(value)
        elif isinstance(value, tuple) and name != "parquet_glob":
            values[name] = [part for text in value for part in _split(text)]
    return values


def _split(text: str) -> list[str]:
    """Parts of a comma list; a part that begins with @ names a file and is kept whole."""
    if text.startswith("@"):
        return [text]
    return [part.strip() for part in text.split(",") if part.strip()]


def _checked(values: Mapping[Any, Any], where: str) -> dict[str, Any]:
    """`values` under their Python names, each one checked by itself so that errors say `where`."""
    checked: dict[str, Any] = {}
    for raw, value in values.items():
        name = str(raw).replace("-", "_")
        try:
            if name in _BESIDE_OPTIONS:
                checked[name] = _beside(name, value)
            else:
                checked[name] = _with_names_of_files(name, value)
                options_from({str(raw): checked[name]})
        except InputError as error:
            raise InputError(f"{where}{error}") from None
    if not where:
        options_from({k: v for k, v in checked.items() if k not in _BESIDE_OPTIONS})
    return checked


def _beside(name: str, value: Any) -> Any:
    """The value of something that is no field of `Options`, in its type."""
    wanted: type = {"storage_options": dict, "output_dir": str}.get(name, bool)
    if name == "parquet_glob":
        parts = [value] if isinstance(value, str) else value
        if isinstance(parts, list | tuple) and all(isinstance(part, str) for part in parts):
            return tuple(parts)
    elif isinstance(value, wanted):
        return value
    # The value may be a secret, so it is not shown.
    raise InputError(f"--{name.replace('_', '-')} cannot hold what stands there.")


def _with_names_of_files(name: str, value: Any) -> Any:
    """A list of columns in which each ``@file`` is replaced by the names the file holds."""
    default = Options.__dataclass_fields__[name].default if name in _fields() else None
    if not isinstance(default, tuple) or name == "passes":
        return value
    parts = _split(value) if isinstance(value, str) else value
    if not isinstance(parts, list | tuple):
        return value
    expanded: list[Any] = []
    for part in parts:
        if isinstance(part, str) and part.startswith("@"):
            expanded.extend(_names_in(part[1:]))
        else:
            expanded.append(part)
    return tuple(expanded)


def _fields() -> set[str]:
    return {field.name for field in dataclasses.fields(Options)}


def _names_in(path: str) -> list[str]:
    """Column names of a file, one a line, written as in ``selected.txt``."""
    from dpipe.runfolder import unescape_name

    return [unescape_name(line) for line in _read_text(path).split("\n") if line]


def _read_text(path: str) -> str:
    try:
        with open(path, encoding="utf-8-sig") as file:
            return file.read()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}).") from None
    except UnicodeDecodeError:
        raise InputError(f"{path} is not a text file in UTF-8.") from None


def _read_yaml(path: str) -> dict[Any, Any]:
    import yaml

    try:
        values = yaml.safe_load(_read_text(path))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f" in line {mark.line + 1}" if mark is not None else ""
        problem = getattr(error, "problem", None) or "it cannot be parsed"
        raise InputError(f"{path} is not valid YAML{place}: {problem}.") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise InputError(f"{path} must hold options as `name: value`, one a line.")
    return values


_LITERALS = {"true": True, "false": False, "null": None, "none": None}


def _storage_options(texts: Sequence[str]) -> dict[str, Any]:
    """Storage options from JSON objects and key=value pairs; values of pairs stay text."""
    options: dict[str, Any] = {}
    for text in texts:
        if text.lstrip().startswith("{"):
            try:
                options |= json.loads(text)
            except ValueError as error:
                # Not the text itself: it may hold a secret.
                raise InputError(f"--storage-options is not valid JSON ({error}).") from None
            continue
        key, equals, value = text.partition("=")
        if not (key and equals):
            raise InputError("--storage-options takes key=value or a JSON object.")
        options[key] = _LITERALS.get(value.lower(), value)
    return options


def _whole_number(text: str | None, option: str) -> int | None:
    """A count such as 120000, 120e6 or 120_000."""
    if text is None:
        return None
    try:
        value = float(text)
        if value != int(value) or value < 1:
            raise ValueError
    except (ValueError, OverflowError):
        raise InputError(
            f"{option} takes a whole number such as 5000 or 120e6, not {text!r}."
        ) from None
    return int(value)


def _silence_libraries() -> None:
    """Keep libraries from writing between the lines of the progress, until the command ends."""
    loggers = [logging.getLogger(name) for name in ("distributed", "tornado", "asyncio", "bokeh")]
    ctx = click.get_current_context()
    for logger in loggers:
        ctx.call_on_close(functools.partial(logger.setLevel, logger.level))
        logger.setLevel(logging.CRITICAL)
    if not sys.warnoptions:
        ctx.with_resource(warnings.catch_warnings())
        warnings.simplefilter("ignore")


def _need_sources(request: _Request) -> tuple[str, ...]:
    if not request.sources:
        raise InputError("no input was given; name Parquet files, folders, globs or URLs.")
    return request.sources


# The commands


@click.group(
    "dpipe",  # the name `dask` lists it under
    cls=_Main,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(package_name="dpipe", prog_name="dpipe")
@click.pass_context
def main(ctx: click.Context) -> None:
    """Find the columns of a wide table that can go, because another column says the same.

    Every command explains itself: dpipe run --help.
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


@main.command(
    short_help="Run the passes and write the run folder.",
    examples="""
    dpipe run data/ --output-dir out
    dpipe run "data/part-*.parquet" --output-dir out --id-columns mol_id --prefer MolWt,TPSA
    dpipe run s3://bucket/data/ --output-dir out --scheduler tcp://host:8786 --scratch-dir /scratch
    """,
)
@_sources
@_options(every=True)
@click.pass_context
def run(
    ctx: click.Context, given: dict[str, Any], sources: tuple[str, ...], config: str | None
) -> None:
    """Run the passes on PARQUET... (files, folders, globs, URLs) and write the run folder.

    The same command continues what was interrupted. Lists of columns are separated by commas;
    @FILE takes the names from a file, one a line.
    """
    request = _settle(given, sources, config)
    ctx.meta[_VERBOSE] = request.verbosity > 0
    found = _need_sources(request)
    if request.output_dir is None:
        raise InputError("no output folder was given; name one with --output-dir.")
    ctx.meta[_RESUMABLE] = True
    from dpipe import pipeline
    from dpipe.progress import Progress

    with Progress(request.verbosity) as progress:
        selection = pipeline.run(
            found,
            request.options,
            output_dir=request.output_dir,
            observers=(progress,),
            storage_options=request.storage_options,
        )
        from dpipe.report import write_report  # takes a second to import: not before it is due

        write_report(request.output_dir)
    progress.summary(selection.decisions)
    if request.verbosity >= 0:
        _final_words(selection, request.output_dir)


def _final_words(selection: Any, folder: str) -> None:
    """How many columns are left, where the files are, what to do next."""
    analysed = [d for d in selection.decisions if d.decision in ("kept", "dropped")]
    where = click.format_filename(folder)
    if not selection.selected:
        click.echo("No column is left. A table of few rows needs a lower --min-valid.")
    click.echo(
        f"\n{len(selection.selected):,} of {len(analysed):,} numeric columns kept.\n"
        f"  {os.path.join(where, 'selected.txt')}   their names, one a line\n"
        f"  {os.path.join(where, 'decisions.csv')}  what became of every column, and why\n"
        f"  {os.path.join(where, 'report.html')}    the same to look at: open it in a browser\n"
        f"To prove the decisions from the input: dpipe verify {shlex.quote(where)}"
    )


@main.command(
    short_help="Print what a run would take, and run nothing.",
    examples="""
    dpipe plan data/
    dpipe plan --rows 120e6 --columns 1800 --workers 16 --memory-limit 8GiB
    """,
)
@_sources
@_own("Input", "--rows", metavar="N", help="rows of a table that does not exist yet, as in 120e6")
@_own("Input", "--columns", metavar="P", help="numeric columns of it")
@_options(
    "sample_rows",
    "sample_per_file",
    "nonlinear_rows",
    "passes",
    "workers",
    "threads_per_worker",
    "memory_limit",
)
def plan(
    given: dict[str, Any],
    sources: tuple[str, ...],
    config: str | None,
    rows: str | None,
    columns: str | None,
) -> None:
    """Print passes, tasks and memory of a run on PARQUET..., and run nothing.

    Takes the options of `dpipe run`.
    """
    n_rows, n_columns = _whole_number(rows, "--rows"), _whole_number(columns, "--columns")
    request = _settle(given, sources, config)
    if request.sources and (n_rows or n_columns):
        raise InputError("give Parquet files or --rows and --columns, not both.")
    if not request.sources and not (n_rows and n_columns):
        raise InputError("give Parquet files, or both --rows and --columns.")
    from dpipe import pipeline
    from dpipe.progress import make_console

    made = pipeline.plan_run(
        request.sources or None,
        request.options,
        rows=n_rows,
        columns=n_columns,
        storage_options=request.storage_options,
    )
    console = make_console()
    for line in _plan_lines(made):
        console.print(line, soft_wrap=isinstance(line, str))


def _plan_lines(made: Plan) -> Iterator[str | Table]:
    """A plan as lines and a table."""
    from rich.table import Table

    from dpipe.plan import gib
    from dpipe.progress import counted

    machine = made.machine
    yield (
        f"{counted(made.n_rows, 'row')} x {counted(made.n_columns, 'numeric column')} on "
        f"{counted(machine.workers, 'worker')} with {counted(machine.threads, 'thread')} "
        f"and {gib(machine.memory)} each\n"
    )
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column("pass", no_wrap=True)
    for name in ("tasks", "a worker at most", "reads"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("as")
    for part in made.passes:
        table.add_row(
            f"{part.number} {part.name}",
            f"{part.tasks:,}",
            gib(part.worker_bytes),
            gib(part.bytes_read),
            part.shape,
        )
    yield table
    yield (
        f"\nscratch disk {gib(made.scratch_bytes)}, largest matrix here {gib(made.client_bytes)}; "
        "later passes are planned for all columns and receive fewer."
    )


@main.command(
    short_help="Write the matrix of one measure.",
    examples="""
    dpipe similarity data/ --measure spearman --output spearman.npy
    dpipe similarity data/ --measure hsic --output hsic.npy --id-columns mol_id --device gpu
    """,
)
@_sources
@_own("Output", "--measure", metavar="spearman|hsic|rdc", required=True, help="what to compute")
@_own("Output", "--output", metavar="FILE.npy", required=True, help="the matrix to write")
@_options(
    *SECTIONS["Input"][:4],
    *SECTIONS["Workers and memory"][:8],
    "seed",
    "min_valid",
    "missing",
    "rdc_seeds",
    "rdc_degree",
)
def similarity(
    given: dict[str, Any],
    sources: tuple[str, ...],
    config: str | None,
    measure: str,
    output: str,
) -> None:
    """Write the matrix of one measure between all numeric columns of PARQUET...

    The file holds float32, NaN where a pair has no similarity; the names of the columns stand
    beside it in NAME_columns.txt, one a line.
    """
    if not output.endswith(".npy"):
        raise InputError(f"--output takes a file that ends in .npy, not {output!r}.")
    request = _settle(given, sources, config)
    found = _need_sources(request)
    from dpipe import allpairs
    from dpipe.progress import Progress

    with Progress(request.verbosity) as progress:
        made = allpairs.similarity(
            found,
            measure,
            options=request.options,
            observers=(progress,),
            storage_options=request.storage_options,
            output=output,
        )
    if request.verbosity >= 0:
        size = len(made.columns)
        names = f"{output.removesuffix('.npy')}_columns.txt"
        click.echo(f"{output}: {measure} of {size:,} x {size:,} columns; their names: {names}")


@main.command(
    short_help="Reduce new data with a finished selection.",
    examples="""
    dpipe apply out new.parquet --output reduced.parquet
    dpipe apply out "new/part-*.parquet" --output reduced/
    """,
)
@click.argument("folder", metavar="DIR")
@_sources
@_own(
    "Output",
    "--output",
    metavar="FILE|DIR",
    required=True,
    help="one Parquet file, or a folder that gets a file for each of the input",
)
@_verbose_option
def apply(
    folder: str,
    sources: tuple[str, ...],
    parquet_glob: tuple[str, ...],
    storage_options: tuple[str, ...],
    output: str,
    verbose: bool | None,
) -> None:
    """Reduce PARQUET... to the columns that the run in DIR kept.

    Columns that the run did not analyse (identifiers, text) are carried along where the new data
    has them. The new data must have every kept column.
    """
    found = (*sources, *parquet_glob)
    if not found:
        raise InputError("no input was given; name Parquet files, folders, globs or URLs.")
    from dpipe.progress import counted

    n_rows, n_columns = _reduce(folder, found, output, _storage_options(storage_options) or None)
    click.echo(f"{output}: {counted(n_rows, 'row')}, {counted(n_columns, 'column')}")


def _reduce(
    folder: str, sources: Sequence[str], output: str, storage_options: Mapping[str, Any] | None
) -> tuple[int, int]:
    """Copy what the run in `folder` did not drop; the rows and columns that were written."""
    from dpipe.runfolder import RunFolder
    from dpipe.table import copy_columns, open_table

    done = RunFolder(folder)
    selected = done.read_selected()
    coerce = bool(done.read_run().get("options", {}).get("coerce_strings", False))
    options = Options(coerce_strings=coerce)
    table = open_table(sources, options=options, storage_options=storage_options)
    there = {column.name for column in table.columns}
    for file in table.files:
        lacking = set(selected) - there | set(table.lacks(file))
        missing = [name for name in selected if name in lacking]
        if missing:
            others = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise InputError(
                f"{file.path} lacks column {missing[0]!r}{others} of the {len(selected)} that "
                f"{os.path.join(folder, 'selected.txt')} lists."
            )
    carried = [d.column for d in done.read_decisions() if d.decision != "dropped"]
    names = [name for name in carried if name in there]
    if not names:
        raise InputError(f"the run in {folder} kept no column: there is nothing to copy.")
    copy_columns(table, names, output, storage_options=storage_options)
    return table.n_rows, len(names)


@main.command(
    short_help="Render the page of a finished run again.",
    examples="""
    dpipe report out
    dpipe report out --output selection.html
    """,
)
@click.argument("folder", metavar="DIR")
@_own("Output", "--output", metavar="FILE", help="the page to write  [DIR/report.html]")
@_verbose_option
def report(folder: str, output: str | None, verbose: bool | None) -> None:
    """Render the page of the finished run in DIR again."""
    from dpipe.report import write_report

    click.echo(str(write_report(folder, output)))


@main.command(
    short_help="Recompute the proof of a finished run.",
    examples="""
    dpipe verify out
    dpipe verify out --input /moved/data/
    """,
)
@click.argument("folder", metavar="DIR")
@_own(
    "Input",
    "--input",
    "sources",
    metavar="PARQUET",
    multiple=True,
    help="the input, where it is not where the run found it",
)
@_storage_option
@_verbose_option
def verify(
    folder: str,
    sources: tuple[str, ...],
    storage_options: tuple[str, ...],
    verbose: bool | None,
) -> None:
    """Recompute from the input what the run in DIR claims, without the engine that made it."""
    from dpipe.verify import verify as recompute

    made = recompute(folder, sources or None, _storage_options(storage_options) or None)
    for line in made.lines:
        click.echo(line)


@main.command(
    short_help="Look at versions, limits, devices and disks.",
    examples="""
    dpipe doctor
    dpipe doctor data/ --scheduler tcp://host:8786 --scratch-dir /scratch/dpipe
    """,
)
@_sources
@_options("device", "scheduler", "scheduler_file", "workers", "memory_limit", "scratch_dir")
def doctor(given: dict[str, Any], sources: tuple[str, ...], config: str | None) -> None:
    """Look at versions, limits, devices and disks, here and on the workers.

    With PARQUET... every worker also opens the input. Lines that begin with ! ask for action.
    """
    request = _settle(given, sources, config)
    from dpipe.doctor import examine
    from dpipe.progress import Progress

    place = None
    progress = Progress(request.verbosity)
    findings = examine(
        request.options,
        request.sources,
        storage_options=request.storage_options,
        emit=progress,
    )
    for finding in findings:
        if request.verbosity < 0 and not finding.problem:
            continue
        if finding.place != place:
            place = finding.place
            progress.line(place)
        mark = "!" if finding.problem else " "
        progress.line(f"{mark} {finding.subject:<12} {finding.text}")
