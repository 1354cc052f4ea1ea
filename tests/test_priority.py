"""One order of columns: the documented one, and in time that grows with columns plus wishes."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from dpipe.choice.certificate import decide
from dpipe.choice.priority import Priority
from dpipe.model.records import Column, PassResult, Role

some = st.lists(st.sampled_from("abcdxy"), max_size=4)


@given(
    st.permutations("hgfedcba"),
    some,
    some,
    st.dictionaries(st.sampled_from("abcdefgx"), st.integers(-1, 2)),
    st.lists(st.tuples(st.integers(0, 1), st.integers(0, 2)), min_size=8, max_size=8),
)
def test_order_is_the_documented_one(
    names: list[str],
    keep: list[str],
    prefer: list[str],
    relevance: dict[str, int],
    added: list[tuple[int, int]],
) -> None:
    def documented(index: int) -> tuple[object, ...]:
        name = names[index]
        place = prefer.index(name) if name in prefer else len(prefer)
        return name not in keep, place, -relevance.get(name, 0), *added[index], name

    first, second = (np.array([entry[k] for entry in added], dtype=np.int64) for k in (0, 1))
    found = Priority(keep, prefer, relevance).order(names, first, second)
    assert found.tolist() == sorted(range(len(names)), key=documented)


def test_no_column_at_all() -> None:
    assert Priority(["a"], ["b"]).order([], np.empty(0, np.int64)).tolist() == []


class Counted(str):
    """A name that counts how often it is compared with another."""

    compared: ClassVar[int] = 0

    def __eq__(self, other: object) -> bool:
        Counted.compared += 1
        return str.__eq__(self, other)  # type: ignore[arg-type]

    __hash__ = str.__hash__


def test_long_lists_of_wishes_cost_no_search_for_each_column() -> None:
    def named(count: int) -> list[str]:
        return [Counted(f"c{k}") for k in range(count)]

    names, priority = named(40_000), Priority(named(10_000), named(10_000))
    columns = [Column(name, "double", Role.FEATURE) for name in names]
    Counted.compared = 0
    priority.order(names)
    decide(columns, [], [PassResult(2, "spearman", tuple(names), ())], priority.keep)
    assert Counted.compared < 5 * len(names)
