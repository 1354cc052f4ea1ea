"""Words for the sentences that tell a user about files and columns.

Covers: lists cut short, plurals, the nearest known name. Names are quoted as Python quotes them, so
that no name can break a line or steer a terminal.
Does not cover: what is told.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of a sentence that suggests the most similar known name, or nothing.

    Examples
    --------
    >>> nearest("molwt", ["MolWt", "TPSA"])
    " (did you mean 'MolWt'?)"
    """
    candidates = list(known)
    by_case = [other for other in candidates if other.casefold() == name.casefold()]
    found = by_case or difflib.get_close_matches(name, candidates, n=1)
    return f" (did you mean {quoted(found[0])}?)" if found else ""


def quoted(name: str) -> str:
    """A name in quotes, its middle left out when it is very long.

    Examples
    --------
    >>> quoted("MolWt"), len(quoted("x" * 5000))
    ("'MolWt'", 205)
    """
    return repr(name if len(name) <= 203 else f"{name[:100]}...{name[-100:]}")


def listed(items: Iterable[str], limit: int = 4) -> str:
    """Some of the items as text.

    Examples
    --------
    >>> listed(["a", "b"]), listed("abcdefg", 3)
    ("'a' and 'b'", "'a', 'b', 'c' and 4 more")
    """
    names = [quoted(item) for item in items]
    if len(names) > limit + 1:
        return f"{', '.join(names[:limit])} and {len(names) - limit} more"
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def columns_phrase(names: Sequence[str]) -> str:
    """One column by name, several by number and names.

    Examples
    --------
    >>> columns_phrase(["a"]), columns_phrase(["a", "b"])
    ("column 'a'", "2 columns ('a' and 'b')")
    """
    if len(names) == 1:
        return f"column {quoted(names[0])}"
    return f"{len(names)} columns ({listed(names)})"


def plural(count: int, noun: str) -> str:
    """``1 file`` or ``3 files``."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
