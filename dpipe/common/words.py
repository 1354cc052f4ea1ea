"""Words for the sentences and lines that a person reads.

Covers: numbers with their nouns, sizes, durations; the first line of an error; names quoted, listed
and matched with known ones; text that cannot break a line or steer a terminal.
Does not cover: what is told, results in words (see `dpipe.report.words`), names as lines of a file
(see `dpipe.runfolder.names`).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

_LONGEST_REASON = 200


def counted(n: int, noun: str) -> str:
    """A number with its noun.

    Examples
    --------
    >>> counted(1, "row"), counted(1830, "column")
    ('1 row', '1,830 columns')
    """
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"


def sized(n_bytes: float) -> str:
    """A number of bytes in binary units.

    Examples
    --------
    >>> sized(3.5 * 2**30), sized(9140352), sized(768 * 2**20), sized(312)
    ('3.5 GiB', '8.7 MiB', '768 MiB', '312 B')
    """
    for unit, scale in (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if n_bytes >= scale:
            amount = n_bytes / scale
            return f"{amount:.0f} {unit}" if amount >= 100 else f"{amount:.1f} {unit}"
    return f"{n_bytes:.0f} B"


def typed_size(n_bytes: int) -> str:
    """The next size from a number of bytes on that is short, as an option takes it.

    Examples
    --------
    >>> typed_size(2**30), typed_size(2**30 + 1), typed_size(5 * 10**8)
    ('1GiB', '1.1GiB', '477MiB')
    """
    if n_bytes <= 1000 * 2**20:
        return f"{-(-n_bytes // 2**20)}MiB"
    tenths = -(-10 * n_bytes // 2**30)
    return f"{tenths / 10:.15g}GiB"


def timed(seconds: float) -> str:
    """A time as a person says it.

    Examples
    --------
    >>> [timed(seconds) for seconds in (0.0421, 8.6, 75, 7322)]
    ['42 ms', '8.6 s', '1 min 15 s', '2 h 02 min']
    """
    if seconds < 0.9995:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def first_line(error: object) -> str:
    r"""The first line of what an error says, or its type, short enough to end a sentence.

    Examples
    --------
    >>> first_line(ValueError("no such key.\nSee the manual.")), first_line(KeyError())
    ('no such key', 'KeyError')
    """
    line = str(error).strip().partition("\n")[0].rstrip(". \r")
    return printable(line[:_LONGEST_REASON] or type(error).__name__)


def printable(text: str) -> str:
    r"""`text` with every character escaped that could steer a terminal or break a line.

    Examples
    --------
    >>> printable("a\x1b[2Jb\n")
    'a\\x1b[2Jb\\n'
    """
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text
    )


def quoted(name: str) -> str:
    """A name in quotes, as Python quotes it, its middle left out when it is very long.

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
    return f"{counted(len(names), 'column')} ({listed(names)})"


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of a sentence that suggests the most similar known name, or nothing.

    Examples
    --------
    >>> nearest("molwt", ["MolWt", "TPSA"])
    " (did you mean 'MolWt'?)"
    """
    candidates = list(known)
    by_case = [other for other in candidates if other.casefold() == name.casefold()]
    matches = by_case or difflib.get_close_matches(name, candidates, n=1)
    return f" (did you mean {quoted(matches[0])}?)" if matches else ""


def percent(share: float) -> str:
    """A share in whole percent.

    Examples
    --------
    >>> percent(0.274)
    '27 %'
    """
    return f"{100 * share:.0f} %"
