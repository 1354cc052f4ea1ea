"""Sizes, durations, lists and first lines read well at the edges.

Covers: `dpipe.common.words`.
Does not cover: the sentences they stand in.
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpipe.common.words import columns_phrase, counted, first_line, nearest, printable, sized, timed
from dpipe.options import parse_size


def test_sizes_have_two_to_four_digits() -> None:
    sizes = (0, 1, 1023, 1024, 3 * 2**20, 2**30 - 1, 2**30, 3 * 2**40)
    assert [sized(size) for size in sizes] == [
        "0 B",
        "1 B",
        "1023 B",
        "1.0 KiB",
        "3.0 MiB",
        "1024 MiB",
        "1.0 GiB",
        "3.0 TiB",
    ]


@given(st.integers(0, 2**50))
def test_a_size_in_words_is_read_as_that_size(size: int) -> None:
    assert parse_size(sized(size)) == pytest.approx(size, rel=0.05)


def test_times_change_their_unit_where_the_number_would_be_rounded_up() -> None:
    seconds = (0, 0.9994, 0.9996, 59.94, 59.96, 3599.4, 3600, 360_000)
    assert [timed(each) for each in seconds] == [
        "0 ms",
        "999 ms",
        "1.0 s",
        "59.9 s",
        "1 min 00 s",
        "59 min 59 s",
        "1 h 00 min",
        "100 h 00 min",
    ]


def test_nouns_follow_their_number() -> None:
    assert [counted(n, "row") for n in (0, 1, 2, 1_000_000)] == [
        "0 rows",
        "1 row",
        "2 rows",
        "1,000,000 rows",
    ]
    assert columns_phrase([str(n) for n in range(1200)]).startswith("1,200 columns ('0', '1'")


def test_what_an_error_says_cannot_break_a_line() -> None:
    assert first_line(ValueError("\n  first.\nsecond")) == "first"
    assert first_line(TimeoutError()) == "TimeoutError"
    assert first_line("a\x1b[2J" + "b" * 1000) == "a\\x1b[2J" + "b" * 195
    assert first_line(ValueError("...")) == "ValueError"


@given(st.text())
def test_printable_text_is_one_line_without_control_characters(text: str) -> None:
    assert all(c.isprintable() for c in printable(text))
    assert printable(printable(text)) == printable(text)


def test_nearest__prefers_a_name_that_differs_in_case_alone() -> None:
    assert nearest("tpsa", ["tpsb", "TPSA"]) == " (did you mean 'TPSA'?)"
    assert nearest("x", ["MolWt"]) == ""
