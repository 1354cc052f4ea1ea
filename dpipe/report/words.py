"""The results in words: headline, reasons, sizes and times.

Covers: plain text; every function returns words and numbers, never HTML.
Does not cover: where they stand on the page (see `dpipe.report.page`).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from dpipe.model import Decision

PASS_TITLES = {1: "Prepare", 2: "Spearman", 3: "Variance inflation", 4: "Nonlinear"}
NOTHING = "\N{EN DASH}"
"""Stands where there is no value."""

_MINUS = "\N{MINUS SIGN}"
_STAY, _JOIN = "\N{NO-BREAK SPACE}", "\N{WORD JOINER}"
DROPPED, KEPT = "dropped", "kept"
COMBINATION = "linear combination"

_UNTOUCHED = {
    "id": ("identifier", "identifiers"),
    "excluded": ("left out as asked", "left out as asked"),
    "not_numeric": ("not numeric", "not numeric"),
}

# reason -> (in the funnel, in the headline; {t} is the threshold of the rule)
_REASONS = {
    "no valid value": ("no valid value", "{n} hold no valid value"),
    "too few valid values": ("too few valid values", "{n} hold fewer than {t} valid values"),
    "too many missing values": ("too many missing", "{n} miss more than {t%} of their values"),
    "constant": ("constant", "{n} are constant"),
    "low variance": ("low variance", "{n} hardly vary"),
    "monotone duplicate": ("monotone duplicate", "{n} rank the rows exactly as another column"),
    "redundant": ("redundant", "{n} follow a kept column (|\N{GREEK SMALL LETTER RHO}| ≥ {t})"),
    "redundant nonlinear": ("redundant", "{n} are determined by a kept column (HSIC + RDC ≥ {t})"),
    COMBINATION: ("linear combination", "{n} are exact linear combinations of others"),
    "inflated variance": ("inflated variance", "{n} have a variance inflation factor above {t}"),
}
# The same where n is 1.
_SINGULAR = (
    (" hold ", " holds "),
    (" miss ", " misses "),
    (" are ", " is "),
    (" have ", " has "),
    (" follow ", " follows "),
    ("hardly vary", "hardly varies"),
    (" rank ", " ranks "),
    ("linear combinations", "linear combination"),
    ("of their values", "of its values"),
    ("is exact linear", "is an exact linear"),
)


def reason_key(decision: Decision) -> str:
    """What kind of reason a decision has: its text without the names in it.

    Examples
    --------
    >>> from dataclasses import replace
    >>> kept = Decision("a", "double", 9, 0, 0, 0, 9, "kept", None, "representative of 3 columns",
    ...     None, None, None, None, None)
    >>> reason_key(kept)
    'kept'
    >>> reason_key(replace(kept, decision="dropped", reason="linear combination of b (2)"))
    'linear combination'
    """
    if decision.decision != DROPPED:
        return decision.decision
    if decision.reason.startswith(COMBINATION):
        return COMBINATION
    if decision.reason == "redundant" and decision.measure != "spearman":
        return "redundant nonlinear"
    return decision.reason


def reason_label(key: str) -> str:
    """A reason in two or three words.

    Examples
    --------
    >>> reason_label("redundant nonlinear"), reason_label("something else")
    ('redundant', 'something else')
    """
    return _REASONS.get(key, (key,))[0]


def headline(decisions: Iterable[Decision]) -> tuple[str, str, str]:
    r"""The result in a sentence, why the rest went, and what never took part.

    Examples
    --------
    >>> empty = (None,) * 5
    >>> headline([
    ...     Decision("a", "double", 9, 0, 0, 0, 9, "kept", None, "no similar column", *empty),
    ...     Decision("b", "double", 9, 0, 0, 0, 1, "dropped", 1, "constant", *empty),
    ... ])
    ('2 columns in, 1 kept', '1 went: 1\xa0is constant.', '')
    """
    decisions = tuple(decisions)
    features = [d for d in decisions if d.decision in (KEPT, DROPPED)]
    gone = [d for d in features if d.decision == DROPPED]
    title = f"{plural(len(features), 'column')} in, {count(len(features) - len(gone))} kept"
    counts = Counter(reason_key(d) for d in gone)
    limits = {reason_key(d): d.threshold for d in gone}
    parts = [_clause(key, number, limits[key]) for key, number in counts.most_common()]
    if len(counts) == 1 and len(gone) > 1:
        parts = [part.replace(f"{count(len(gone))}{_STAY}", f"all{_STAY}", 1) for part in parts]
    why = f"{count(len(gone))} went: {', '.join(parts)}." if gone else _nothing_went(features)
    return title, why, _passed_through(decisions)


def _nothing_went(features: list[Decision]) -> str:
    if not features:
        return "The table has no numeric column to select from."
    if len(features) == 1:
        return "Nothing went: no rule speaks against it."
    return "Nothing went: no rule and no other column speaks against any of them."


def _clause(key: str, number: int, threshold: float | None) -> str:
    pattern = _REASONS.get(key, (key, f"{{n}} of: {key}"))[1]
    limit = "the limit" if threshold is None else short(threshold)
    share = "the allowed share" if threshold is None else f"{short(100 * threshold)} %"
    text = pattern.replace("{t%}", share).replace("{t}", limit)
    if number == 1:
        for many, one in _SINGULAR:
            text = text.replace(many, one, 1)
    # A line may break between clauses, not between a sign and its number.
    text = text.replace(
        "|\N{GREEK SMALL LETTER RHO}|", f"|{_JOIN}\N{GREEK SMALL LETTER RHO}{_JOIN}|"
    )
    text = text.replace(" ≥ ", f"{_STAY}≥{_STAY}").replace(" %", f"{_STAY}%")
    return text.replace("{n} ", f"{count(number)}{_STAY}")


def _passed_through(decisions: Iterable[Decision]) -> str:
    counts = Counter(d.decision for d in decisions if d.decision in _UNTOUCHED)
    if not counts:
        return ""
    total = sum(counts.values())
    kinds = [f"{count(n)} {_UNTOUCHED[kind][n > 1]}" for kind, n in counts.items()]
    if len(counts) == 1:
        kinds = [_UNTOUCHED[kind][total > 1] for kind in counts]
    was = "was" if total == 1 else "were"
    return f"{plural(total, 'more column')} {was} not compared: {', '.join(kinds)}."


def count(number: int) -> str:
    """A whole number with thousands set apart.

    Examples
    --------
    >>> count(1830)
    '1,830'
    """
    return f"{number:,}"


def plural(number: int, noun: str) -> str:
    """A number of things.

    Examples
    --------
    >>> plural(1, "column"), plural(1200, "row")
    ('1 column', '1,200 rows')
    """
    return f"{count(number)} {noun}{'' if number == 1 else 's'}"


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


def duration(seconds: float) -> str:
    """A time as a person says it.

    Examples
    --------
    >>> duration(0.0421), duration(8.6), duration(75), duration(7322)
    ('42 ms', '8.6 s', '1 min 15 s', '2 h 02 min')
    """
    if seconds < 0.9995:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def bytes_of(size: float) -> str:
    """A size in binary units.

    Examples
    --------
    >>> bytes_of(9140352), bytes_of(3.5 * 2**30), bytes_of(312)
    ('8.7 MiB', '3.5 GiB', '312 B')
    """
    for unit, scale in (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if size >= scale:
            amount = size / scale
            return f"{amount:.0f} {unit}" if amount >= 100 else f"{amount:.1f} {unit}"
    return f"{size:.0f} B"


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
