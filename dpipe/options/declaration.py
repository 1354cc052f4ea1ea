"""What there is to declare about an option.

Covers: the headings, one record for each option, the field that carries it.
Does not cover: the options themselves (see `dpipe.options`), what a value may be (see
`dpipe.options.kinds`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from dpipe.options.kinds import Kind


class Section(StrEnum):
    """The headings of ``--help`` and of the reference, in their order."""

    INPUT = "Input"
    REDUNDANCY = "What is redundant"
    WORKERS = "Workers and memory"
    OUTPUT = "Output"
    OTHER = "Other"


@dataclass(frozen=True)
class Option:
    """Everything there is to say about an option beside its name and its default."""

    section: Section
    """The heading it stands under."""
    kind: Kind
    """What a value may be."""
    help: str
    """What it means, in a line, with the unit."""
    more: str = ""
    """What the reference adds to that line."""
    affects: int | None = None
    """The first pass whose answer it changes; None: no answer."""
    also: tuple[str, ...] = ()
    """The commands beside ``run`` whose ``--help`` lists it; every one of them takes it."""

    @property
    def description(self) -> str:
        """`help`, and `more` where there is more to say."""
        return f"{self.help}; {self.more}" if self.more else self.help


def option(section: Section, default: Any, kind: Kind, text: str, **rest: Any) -> Any:
    """A field of `dpipe.options.Options` with all that is declared about it."""
    return field(default=default, metadata={"option": Option(section, kind, text, **rest)})
