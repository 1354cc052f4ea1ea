r"""Column names as lines of text.

Covers: lists of columns (``selected.txt``, ``*_columns.txt``), one name a line, in UTF-8. A
backslash in a name is written ``\\``, a line feed ``\n``, a carriage return ``\r``, and any other
character that some program takes for the end of a line ``\xNN`` or ``\uNNNN``; `escape_name` and
`unescape_name` are exact inverses.
Does not cover: reading and writing the files (`dpipe.runfolder.RunFolder`).
"""

from __future__ import annotations

import re

# Everything str.splitlines breaks at, and the backslash itself.
_UNSAFE = re.compile("[\\\\\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029]")
_ESCAPED = re.compile(r"\\(\\|n|r|x[0-9a-f]{2}|u[0-9a-f]{4})")
_SHORT = {"\\": "\\\\", "\n": "\\n", "\r": "\\r"}


def escape_name(name: str) -> str:
    r"""A column name as one line of text; `unescape_name` is the inverse.

    Examples
    --------
    >>> print(escape_name("two\nlines"), escape_name("C:\\x"))
    two\nlines C:\\x
    """
    return _UNSAFE.sub(_escape, name)


def unescape_name(line: str) -> str:
    r"""The column name that `escape_name` wrote; an unknown escape stands for itself.

    Examples
    --------
    >>> unescape_name("two\\nlines") == "two\nlines"
    True
    """
    return _ESCAPED.sub(_unescape, line)


def _escape(match: re.Match[str]) -> str:
    character = match[0]
    code = ord(character)
    return _SHORT.get(character) or (f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}")


def _unescape(match: re.Match[str]) -> str:
    mark = match[1]
    return {"\\": "\\", "n": "\n", "r": "\r"}.get(mark) or chr(int(mark[1:], 16))
