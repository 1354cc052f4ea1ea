"""The results in words: headline, reasons, sizes and times.

Covers: plain text; every function returns words and numbers, never HTML.
Does not cover: where they stand on the page (see `dpipe.report.page`).
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from dpipe.common.words import counted
from dpipe.model.records import Decision, Role
from dpipe.report.results import Label

NOTHING = "\N{EN DASH}"
"""Stands where there is no value."""

_MINUS = "\N{MINUS SIGN}"
_STAY, _JOIN = "\N{NO-BREAK SPACE}", "\N{WORD JOINER}"
DROPPED, KEPT = "dropped", "kept"
_UNSEEN = re.compile(
    "[\\x00-\\x1f\\x7f-\\x9f\\u200b\\u200e\\u200f\\u2028-\\u202e\\u2060\\u2066-\\u2069\\ufeff]"
)
"""Characters that would change how a name or its neighbours read, as in `page.js`."""
_SHORT = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
_ROLES = {role.value: role for role in Role if role is not Role.FEATURE}


def reason_label(decision: Decision) -> str:
    """Why a column was dropped, in two or three words.

    Examples
    --------
    >>> empty = (None,) * 5
    >>> reason_label(Decision("a", "double", 9, 0, 0, 0, 9, "dropped", 3,
    ...     "linear combination of b (2)", *empty))
    'linear combination'
    """
    return decision.reason if decision.cause is None else decision.cause.label


def headline(
    decisions: Iterable[Decision], measures: Mapping[str, Label] | None = None
) -> tuple[str, str, str]:
    r"""The result in a sentence, why columns were dropped, and what never took part.

    Parameters
    ----------
    decisions
        Of the run.
    measures
        How a reader knows its measures; without, by their names.

    Examples
    --------
    >>> empty = (None,) * 5
    >>> headline([
    ...     Decision("a", "double", 9, 0, 0, 0, 9, "kept", None, "no similar column", *empty),
    ...     Decision("b", "double", 9, 0, 0, 0, 1, "dropped", 1, "constant", *empty),
    ... ])
    ('2 columns in, 1 kept', '1 dropped: constant.', '')
    """
    decisions = tuple(decisions)
    features = [d for d in decisions if d.decision in (KEPT, DROPPED)]
    dropped = [d for d in features if d.decision == DROPPED]
    title = f"{counted(len(features), 'column')} in, {count(len(features) - len(dropped))} kept"
    return title, _why_dropped(features, dropped, measures or {}), _passed_through(decisions)


def _why_dropped(
    features: Sequence[Decision], dropped: Sequence[Decision], measures: Mapping[str, Label]
) -> str:
    if not features:
        return "The table has no numeric column to select from."
    if not dropped:
        return "No column was dropped."
    alike: dict[tuple[str, str | None], list[Decision]] = defaultdict(list)
    for decision in dropped:
        alike[str(decision.cause or decision.reason), decision.measure].append(decision)
    groups = sorted(alike.values(), key=len, reverse=True)
    if len(groups) == 1:
        return f"{count(len(dropped))} dropped: {_clause(dropped, measures)}."
    # A line may break between clauses, not between a number and what it counts.
    parts = [f"{count(len(group))}{_STAY}{_clause(group, measures)}" for group in groups]
    return f"{count(len(dropped))} dropped: {', '.join(parts)}."


def _clause(alike: Sequence[Decision], measures: Mapping[str, Label]) -> str:
    """What the headline says of columns dropped for one reason, without their number."""
    first = alike[0]
    if first.cause is None:
        return f"for another reason ({first.reason})"
    symbol = first.measure or ""
    limits = [d.threshold for d in alike if d.threshold is not None]
    if symbol in measures:
        label = measures[symbol]
        size = f"|{_JOIN}{label.symbol}{_JOIN}|"
        symbol = size if label.signed else label.title.replace(" ", _STAY)
    return first.cause.clause.replace(
        " \N{GREATER-THAN OR EQUAL TO} ", f"{_STAY}\N{GREATER-THAN OR EQUAL TO}{_STAY}"
    ).format(
        limit=between(limits) if limits else "the limit",
        percent=f"{short(100 * limits[0])}{_STAY}%" if limits else "the allowed share",
        symbol=symbol,
    )


def _passed_through(decisions: Iterable[Decision]) -> str:
    roles = Counter(_ROLES[d.decision] for d in decisions if d.decision in _ROLES)
    if not roles:
        return ""
    total = roles.total()
    labels = {role: role.label if n == 1 else role.plural for role, n in roles.items()}
    kinds = [f"{count(n)} {labels[role]}" for role, n in roles.items()]
    if len(roles) == 1:
        kinds = list(labels.values())
    was = "was" if total == 1 else "were"
    return f"{counted(total, 'more column')} {was} not compared: {', '.join(kinds)}."


def count(number: int) -> str:
    """A whole number with thousands set apart.

    Examples
    --------
    >>> count(1830)
    '1,830'
    """
    return f"{number:,}"


def shown(name: str) -> str:
    r"""A column's name with nothing unseen in it, as the tables of the page show it.

    Examples
    --------
    >>> shown("MolWt"), shown(""), shown("a\nb"), shown("\ufeffid")
    ('MolWt', '(no name)', 'a\\nb', '\\ufeffid')
    """
    return _UNSEEN.sub(_in_letters, name) or "(no name)"


def _in_letters(found: re.Match[str]) -> str:
    return _SHORT.get(found[0], f"\\u{ord(found[0]):04x}")


def between(limits: Collection[float]) -> str:
    """One number, or from where to where several lie.

    Examples
    --------
    >>> between([0.95, 0.95]), between([0.9, 0.88, 0.96])
    ('0.95', '0.88 to 0.96')
    """
    return " to ".join(dict.fromkeys((short(min(limits)), short(max(limits)))))


def short(value: float) -> str:
    """A number with four digits at most.

    Examples
    --------
    >>> short(0.95), short(10.0), short(6304289518955.5), short(float("inf"))
    ('0.95', '10', '6.304e+12', '∞')
    """
    if math.isinf(value):
        return "∞" if value > 0 else f"{_MINUS}∞"
    return f"{value:.4g}".replace("-", _MINUS) if "e" not in f"{value:.4g}" else f"{value:.4g}"


def operations_of(number: float) -> str:
    """A number of floating-point operations.

    Examples
    --------
    >>> operations_of(301247721216.0), operations_of(12)
    ('301 Gflop', '12 flop')
    """
    for unit, scale in (("Pflop", 1e15), ("Tflop", 1e12), ("Gflop", 1e9), ("Mflop", 1e6)):
        if number >= scale:
            return f"{number / scale:.3g} {unit}"
    return f"{number:.0f} flop"


def option_text(value: Any) -> str:
    """The value of an option as one would write it.

    Examples
    --------
    >>> option_text([1, 2]), option_text(True), option_text(0.95), option_text(None) == NOTHING
    ('1, 2', 'yes', '0.95', True)
    """
    if value is None or value == [] or value == "":
        return NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(str(item) for item in value)
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {item}" for key, item in value.items())
    return str(value)
