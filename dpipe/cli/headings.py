"""How commands declare their options: made from `dpipe.options`, under headings, with examples.

Covers: click classes and decorators.
Does not cover: what is done with the values (see `dpipe.cli.request`).
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import click

from dpipe.cli.failures import VERBOSE, one_sentence, signals
from dpipe.options import DECLARED, DEFAULTS, EXTRA_KEYS, SINGLE_WEIGHTS, Option, Section, flag
from dpipe.options.kinds import Flag, Globs, Names, Passes, Settings

_Decorated = TypeVar("_Decorated", bound=Callable[..., Any])


class HeadedOption(click.Option):
    """An option with the heading it stands under, its default as text, and its declaration."""

    def __init__(
        self,
        *args: Any,
        section: Section,
        shown_default: str = "",
        declared: Option | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.section = section
        self.shown_default = shown_default
        self.declared = declared

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """The option and its meaning, with the default unless it is a flag."""
        record = super().get_help_record(ctx)
        if record is None or self.is_flag or not self.shown_default:
            return record
        return record[0], f"{record[1]}  [{self.shown_default}]"


class MeasureOption(HeadedOption):
    """One of the measures, whose module is loaded only when ``--help`` lists them."""

    @property
    def metavar(self) -> str:
        """The names of the measures."""
        from dpipe.kernels.measures import public_measures

        return "|".join(public_measures())

    @metavar.setter
    def metavar(self, value: str | None) -> None:
        """Click sets one; the measures are the better one."""


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
                heading = getattr(parameter, "section", Section.OTHER)
                sections.setdefault(heading, []).append(record)
        for heading in Section:
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


def own_option(
    section: Section, *names: str, **settings: Any
) -> Callable[[_Decorated], _Decorated]:
    """An option of a command that no YAML file holds."""
    return click.option(*names, **{"cls": HeadedOption, **settings}, section=section)


def options_of_a_run(command: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the options of a run and hand it those that were set, as ``given``.

    ``--help`` of `run` lists all of them, that of another command those declared to be its own; the
    others are accepted as well, so that the words of `dpipe run` fit every command.
    """

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(function)
        def with_given(**values: Any) -> None:
            taken = DECLARED.keys() | EXTRA_KEYS.keys() | SINGLE_WEIGHTS.keys()
            names = [name for name in values if name in taken]
            given = {name: values.pop(name) for name in names}
            function(given={k: v for k, v in given.items() if v not in (None, ())}, **values)

        decorated: Callable[..., None] = _general_options(with_given)
        decorated = extra_option("prefer_gpu", hidden=command != "run")(decorated)
        for name in reversed(list(DECLARED)):
            declared = DECLARED[name]
            hidden = command not in ("run", *declared.also)
            if name == "weights":
                for single, option in reversed(list(SINGLE_WEIGHTS.items())):
                    decorated = _declared_option(single, option, None, hidden=hidden)(decorated)
            decorated = _declared_option(name, declared, DEFAULTS[name], hidden=hidden)(decorated)
        return extra_option("output_dir", hidden=command != "run")(decorated)

    return decorate


def extra_option(name: str, **settings: Any) -> Callable[[_Decorated], _Decorated]:
    """The option of one of `dpipe.options.EXTRA_KEYS`."""
    return _declared_option(name, EXTRA_KEYS[name], None, **settings)


def _declared_option(
    name: str, declared: Option, default: Any, *short: str, **settings: Any
) -> Callable[[_Decorated], _Decorated]:
    """An option as declared; values stay text, so that `options_from` converts all sources."""
    kind = declared.kind
    word = flag(name)
    if isinstance(kind, Flag):
        word = f"{word}/--no-{word[2:]}" if default else word
        settings["is_flag"] = True
    else:
        settings |= {"metavar": kind.metavar, "multiple": isinstance(kind, _REPEATED)}
    return own_option(
        declared.section,
        *short,
        word,
        default=None,
        help=declared.help,
        declared=declared,
        shown_default="" if default in (None, ()) else kind.text(default),
        **settings,
    )


_REPEATED = (Names, Passes, Globs, Settings)


def _note_verbose(ctx: click.Context, parameter: click.Parameter, value: bool) -> bool:
    ctx.meta[VERBOSE] = value
    return value


def verbose_option(command: _Decorated, *, expose_value: bool = False) -> _Decorated:
    """Add ``--verbose`` to a command, which need not know of it."""
    settings = {"is_eager": True, "callback": _note_verbose, "expose_value": expose_value}
    return _declared_option("verbose", EXTRA_KEYS["verbose"], None, "-v", **settings)(command)


def _general_options(command: Callable[..., None]) -> Callable[..., None]:
    """Options of every command that takes those of a run."""
    quiet = _declared_option("quiet", EXTRA_KEYS["quiet"], None, "-q")
    config = own_option(Section.OTHER, "--config", metavar="FILE", help="YAML file with options")
    return config(verbose_option(quiet(command), expose_value=True))


def sources_argument(command: Callable[..., None]) -> Callable[..., None]:
    """The input: arguments, and what only files need beside their name."""
    argument = click.argument("sources", nargs=-1, metavar="DATA...")
    return argument(extra_option("parquet_glob")(storage_option(command)))


def storage_option(command: Callable[..., None]) -> Callable[..., None]:
    """Add ``--storage-options``."""
    return extra_option("storage_options")(command)
