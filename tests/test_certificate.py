"""The certificate's records: chains, alternatives and one decision per column."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest

from dpipe.choice.certificate import alternatives, decide, drops_by_column, explain, follow_chain
from dpipe.errors import InputError
from dpipe.model.records import Column, ColumnStatistics, Drop, PassResult, Role
from dpipe.model.registry import Reason

PASSES = (
    PassResult(1, "prepare", ("a", "b", "c", "d", "e"), (Drop("flat", 1, Reason.CONSTANT),)),
    PassResult(
        2,
        "spearman",
        ("a", "c", "e"),
        (
            Drop("b", 2, Reason.REDUNDANT, "spearman", 0.96, 0.95, "a"),
            Drop("d", 2, Reason.REDUNDANT, "spearman", -0.99, 0.95, "a"),
        ),
        {"a": 0, "b": 0, "d": 0, "c": 1, "e": 1},
    ),
    PassResult(3, "prediction", ("a", "c", "e"), ()),
    PassResult(
        4,
        "nonlinear",
        ("c", "e"),
        (Drop("a", 4, Reason.REDUNDANT, "hsic+rdc", 0.93, 0.9, "c"),),
        {"a": 0, "c": 0},
    ),
)


def statistics(name: str) -> ColumnStatistics:
    values: dict[str, Any] = {field.name: 0 for field in fields(ColumnStatistics)}
    counts = {"n_rows": 10, "n_valid": 7, "n_null": 1, "n_nan": 2, "n_unique": 5}
    return ColumnStatistics(**values | counts | {"name": name})


COLUMNS = (
    Column("mol", "string", Role.ID),
    *(Column(name, "double", Role.FEATURE) for name in ("flat", "a", "b", "c", "d", "e")),
    Column("y", "double", Role.EXCLUDED),
    Column("text", "string", Role.NOT_NUMERIC),
)
STATISTICS = [statistics(name) for name in ("flat", "a", "b", "c", "d", "e")]


@pytest.mark.parametrize(
    ("column", "chain"),
    [("b", ("b", "a", "c")), ("a", ("a", "c")), ("c", ("c",)), ("flat", ("flat",))],
)
def test_chain(column: str, chain: tuple[str, ...]) -> None:
    assert follow_chain(column, drops_by_column(PASSES)) == chain


def test_chain_in_a_circle_is_refused() -> None:
    drops = {
        "a": Drop("a", 2, Reason.REDUNDANT, representative="b"),
        "b": Drop("b", 2, Reason.REDUNDANT, representative="a"),
    }
    with pytest.raises(ValueError, match="run in a circle"):
        follow_chain("a", drops)


def test_alternatives_lead_to_the_final_selection() -> None:
    similar = {"pass": 2, "measure": "spearman"}
    assert alternatives(["c", "e"], PASSES) == {
        "c": [
            {"column": "d", **similar, "value": -0.99, "chain": ["d", "a", "c"]},
            {"column": "b", **similar, "value": 0.96, "chain": ["b", "a", "c"]},
            {"column": "a", "pass": 4, "measure": "hsic+rdc", "value": 0.93},
        ],
        "e": [],
    }


def test_one_decision_per_column_in_input_order() -> None:
    decisions = decide(COLUMNS, STATISTICS, PASSES, keep=["e"])
    assert [d.column for d in decisions] == [c.name for c in COLUMNS]
    assert {d.column: (d.decision, d.pass_number, d.reason) for d in decisions} == {
        "mol": ("id", None, "identifier, passed through"),
        "flat": ("dropped", 1, "constant"),
        "a": ("dropped", 4, Reason.REDUNDANT),
        "b": ("dropped", 2, Reason.REDUNDANT),
        "c": ("kept", None, "representative of 3 columns"),
        "d": ("dropped", 2, Reason.REDUNDANT),
        "e": ("kept", None, "asked to keep"),
        "y": ("excluded", None, "left out as asked"),
        "text": ("not_numeric", None, "not numeric, passed through"),
    }
    row = {d.column: d for d in decisions}
    assert (row["b"].measure, row["b"].value, row["b"].threshold) == ("spearman", 0.96, 0.95)
    assert row["b"].representative == "a"
    assert (row["a"].n_valid, row["a"].n_missing, row["a"].n_nan) == (7, 3, 2)
    assert row["mol"].n_valid is None


def test_community_numbers_are_unique_over_the_passes() -> None:
    row = {d.column: d.community for d in decide(COLUMNS, STATISTICS, PASSES)}
    assert row == {
        "mol": None, "flat": None, "a": 2, "b": 0, "c": 2, "d": 0, "e": 1, "y": None, "text": None
    }  # fmt: skip


def test_kept_column_reasons() -> None:
    two = PassResult(2, "spearman", ("a",), (Drop("b", 2, Reason.REDUNDANT, representative="a"),))
    columns = [Column(name, "double", Role.FEATURE) for name in ("a", "b", "c")]
    reasons = [d.reason for d in decide(columns, [], [two], keep=["a"])]
    assert reasons == [
        "asked to keep, representative of 1 column",
        Reason.REDUNDANT,
        "no similar column",
    ]
    assert decide(columns, [], [two])[0].reason == "representative of 1 column"


def test_explanations() -> None:
    decisions = decide(COLUMNS, STATISTICS, PASSES, keep=["e"])
    assert explain("c", decisions) == "'c' is kept: representative of 3 columns."
    assert explain("text", decisions) == "'text' is not numeric: not numeric, passed through."
    assert explain("flat", decisions) == "'flat' was dropped by pass 1 (prepare): constant."
    assert explain("d", decisions) == (
        "'d' was dropped by pass 2 (spearman): redundant, spearman -0.99 (threshold 0.95); "
        "'c' stays (through 'a')."
    )
    with pytest.raises(InputError, match="no column 'q'"):
        explain("q", decisions)
