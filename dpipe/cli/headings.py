"""How commands declare their options: generated from `Options`, under headings, with examples.

Covers: click classes and decorators.
Does not cover: what is done with the values (see `dpipe.cli.request`).
"""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from dpipe.cli.failures import VERBOSE, one_sentence, signals
from dpipe.options import BESIDE_OPTIONS, CHOICES, SIZES, Options

if TYPE_CHECKING:
    pass

_Decorated = TypeVar("_Decorated", bound=Callable[..., Any])


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
        "precision",
        "passes",
    ),
    "Workers and memory": (
        "device",
        "scheduler",
        "scheduler_file",
        "workers",
        "threads_per_worker",
        "memory_limit",
        "tls",
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


class HeadedOption(click.Option):
    """An option with the heading it stands under."""

    def __init__(self, *args: Any, section: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.section = section


class HeadedCommand(click.Command):
    """A command whose --help has sections and examples."""

    def __init__(self, *args: Any, examples: str = "", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.examples = examples

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the options under their headings."""
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
        """List the examples, which are lines to be typed, below the options."""
        if self.examples:
            with formatter.section("Examples"):
                for line in self.examples.strip().splitlines():
                    formatter.write(f"  {line.strip()}\n")


class MainGroup(click.Group):
    """The group of all commands; errors of any of them end here."""

    command_class = HeadedCommand

    def make_context(
        self,
        info_name: str | None,
        args: list[str],
        parent: click.Context | None = None,
        **extra: Any,
    ) -> click.Context:
        """Parse the words; a mistake in them becomes one sentence too."""
        with one_sentence(None):
            return super().make_context(info_name, args, parent, **extra)
        raise AssertionError("unreachable")  # pragma: no cover

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; what goes wrong becomes one sentence."""
        # A name that this terminal cannot show must not end a run.
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="backslashreplace")
        with one_sentence(ctx), signals():
            return super().invoke(ctx)


def own_option(section: str, *names: str, **settings: Any) -> Callable[[_Decorated], _Decorated]:
    """An option of a command that is no field of `Options`."""
    return click.option(*names, cls=HeadedOption, section=section, **settings)


def options_of_a_run(
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
                if name in fields or name in BESIDE_OPTIONS
            }
            command(given={k: v for k, v in given.items() if v not in (None, ())}, **values)

        decorated: Callable[..., None] = _general_options(with_given)
        decorated = own_option(
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
        return own_option(section, name, help=text, is_flag=True, **settings)
    if isinstance(default, tuple):
        settings["multiple"] = True
    shown = _shown_default(field.name, default)
    return own_option(
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
    ctx.meta[VERBOSE] = value
    return value


def verbose_option(command: _Decorated) -> _Decorated:
    """Add ``--verbose`` to a command that takes no options of a run."""
    return own_option(
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
    return own_option(
        "Workers and memory",
        "--prefer-gpu",
        is_flag=True,
        default=None,
        hidden=hidden,
        help="the same as --device auto",
    )


def _general_options(command: Callable[..., None]) -> Callable[..., None]:
    """Options of every command that takes those of a run."""
    quiet = own_option("Other", "-q", "--quiet", is_flag=True, default=None, help="say errors only")
    config = own_option("Other", "--config", metavar="FILE", help="YAML file with options")
    return config(verbose_option(quiet(command)))


def sources_argument(command: Callable[..., None]) -> Callable[..., None]:
    """The input: arguments, and what only files need beside their name."""
    argument = click.argument("sources", nargs=-1, metavar="PARQUET...")
    alias = own_option(
        "Input",
        "--parquet-glob",
        metavar="GLOB",
        multiple=True,
        help="another way to give the input",
    )
    return argument(alias(storage_option(command)))


def storage_option(command: Callable[..., None]) -> Callable[..., None]:
    """Add ``--storage-options``."""
    return own_option(
        "Input",
        "--storage-options",
        metavar="KEY=VALUE",
        multiple=True,
        help="for URLs, given to fsspec; also as one JSON object",
    )(command)
