"""What became of every column, put together from the passes' own answers.

Covers: the chain from a dropped column to one that is finally kept, the alternatives a kept column
stands for, the decision table with one row per input column, a sentence on any of its rows.
Does not cover: deciding (see `dpipe.passes`), writing (see `dpipe.runfolder`), or checking that the
answers are true (see `dpipe.verify`, which does not use this module).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from dpipe.common.words import counted
from dpipe.errors import InputError
from dpipe.model.records import Column, ColumnStatistics, Decision, Drop, PassResult, Role
from dpipe.model.registry import PASSES, Reason

CAME_BACK = "came back: a later pass dropped what predicted it"
"""Why a column was kept that pass 3 had dropped."""

_FACTS = ("n_valid", "n_missing", "n_nan", "n_inf", "n_unique")
_CAUSE = ("pass_number", "measure", "value", "threshold", "representative")


def came_back(decision: Decision) -> bool:
    """Whether a pass dropped a kept column and a later one took it back."""
    return decision.decision == "kept" and decision.reason.startswith(CAME_BACK)


def drops_by_column(passes: Iterable[PassResult]) -> dict[str, Drop]:
    """Every drop of a run by its column, but for those that came back; no column goes twice."""
    drops: dict[str, Drop] = {}
    for result in passes:
        for name in result.returned:
            del drops[name]
        drops |= {drop.column: drop for drop in result.drops}
    return drops


def follow_chain(column: str, drops: Mapping[str, Drop | Decision]) -> tuple[str, ...]:
    """`column`, its representative, that one's representative, and so on to a column that stayed.

    A representative was kept by the pass that named it, so each step leads to a later pass or to
    the final selection. The chain of a kept column, or of one that nobody stands for (a constant,
    say), is the column alone.

    Raises
    ------
    ValueError
        When the representatives run in a circle, so are not the passes' answers.

    Examples
    --------
    >>> from dpipe.model.registry import Reason
    >>> drops = {
    ...     "a": Drop("a", 2, Reason.REDUNDANT, "spearman", 0.97, 0.95, representative="b"),
    ...     "b": Drop("b", 4, Reason.REDUNDANT, "hsic+rdc", 0.93, 0.9, representative="c"),
    ... }
    >>> follow_chain("a", drops)
    ('a', 'b', 'c')
    """
    chain = [column]
    while (drop := drops.get(chain[-1])) is not None and drop.representative is not None:
        if drop.representative in chain:
            raise ValueError(f"the representatives of {column!r} run in a circle")
        chain.append(drop.representative)
    return tuple(chain)


def alternatives(
    selected: Sequence[str], passes: Sequence[PassResult]
) -> dict[str, list[dict[str, Any]]]:
    """The dropped columns that each finally kept column stands for: content of communities.json.

    Parameters
    ----------
    selected
        The final selection; each of its columns gets an entry, in this order.
    passes
        The answers of all passes.

    Returns
    -------
    dict
        Per kept column a list of ``{"column", "pass", "measure", "value"}``, by pass, then by
        falling |value|, then by name. Where the column's own representative was dropped later, a
        ``"chain"`` leads from the column to the kept one, both included. A column that others
        predict has ``"n_predictors"``, their names and coefficients in ``"predictors"`` where the
        reason names them, and ``"r2_final"``, the adjusted R^2 on the final selection. One that
        had come back and went all the same has ``"came_back"``.

    Examples
    --------
    >>> from dpipe.model.registry import Reason
    >>> drop = Drop("b", 2, Reason.REDUNDANT, "spearman", -0.97, 0.95, representative="a")
    >>> alternatives(["a", "c"], [PassResult(2, "spearman", ("a", "c"), (drop,))])
    {'a': [{'column': 'b', 'pass': 2, 'measure': 'spearman', 'value': -0.97}], 'c': []}
    """
    passes = tuple(passes)
    drops = drops_by_column(passes)
    final = next((done.predicted for done in reversed(passes) if done.predicted), {})
    entries: dict[str, list[dict[str, Any]]] = {name: [] for name in selected}
    relevance = _relevance(passes)
    returned = {name for result in passes for name in result.returned}
    for drop in sorted(drops.values(), key=_by_strength):
        chain = follow_chain(drop.column, drops)
        if len(chain) == 1:
            continue
        entry: dict[str, Any] = {
            "column": drop.column,
            "pass": drop.pass_number,
            "measure": drop.measure,
            "value": drop.value,
        }
        if drop.column in relevance:
            entry["relevance"] = relevance[drop.column]
        if len(chain) > 2:
            entry["chain"] = list(chain)
        if drop.n_predictors:
            entry["n_predictors"] = drop.n_predictors
        if drop.predictors:
            entry["predictors"] = dict(drop.predictors)
        if drop.column in returned:
            entry["came_back"] = True
        if math.isfinite(final.get(drop.column, math.nan)):
            entry["r2_final"] = final[drop.column]
        entries[chain[-1]].append(entry)
    return entries


def decide(
    columns: Sequence[Column],
    statistics: Iterable[ColumnStatistics],
    passes: Sequence[PassResult],
    keep: Collection[str] = (),
) -> tuple[Decision, ...]:
    """One decision per input column, in input order.

    Community numbers are made unique over the passes: those of a later pass go on where the
    earlier ones end. A dropped column has its number from the pass that dropped it, a kept one from
    the last pass that found it in a community.

    Parameters
    ----------
    columns
        All columns of the table.
    statistics
        What pass 1 found out about the feature columns.
    passes
        The answers of all passes that ran.
    keep
        The columns asked to be kept.
    """
    known = {entry.name: entry for entry in statistics}
    asked = frozenset(keep)
    relevance = _relevance(passes)
    drops = drops_by_column(passes)
    numbers = _community_numbers(passes)
    back = {name for result in passes for name in result.returned}
    stands_for: dict[str, int] = {}
    for name in drops:
        last = follow_chain(name, drops)[-1]
        stands_for[last] = stands_for.get(last, 0) + (last != name)

    def decision(column: Column) -> Decision:
        name = column.name
        facts = known.get(name)
        drop = drops.get(name)
        if column.role is not Role.FEATURE:
            verdict, reason = column.role.value, column.role.reason
        elif drop is not None:
            verdict, reason = "dropped", drop.text
        else:
            verdict = "kept"
            reason = _why_kept(name in asked, name in back, stands_for.get(name, 0))
        return Decision(
            column=name,
            dtype=column.dtype,
            decision=verdict,
            reason=reason,
            community=_community_of(name, drop, numbers),
            relevance=relevance.get(name),
            **{field: getattr(facts, field, None) for field in _FACTS},
            **{field: getattr(drop, field, None) for field in _CAUSE},
        )

    return tuple(decision(column) for column in columns)


def _relevance(passes: Sequence[PassResult]) -> dict[str, float]:
    """Relevance by column; a duplicate ranks the rows alike, so it tells what the other does."""
    known = {name: value for result in passes for name, value in result.relevance.items()}
    drops = drops_by_column(passes)
    for name, drop in drops.items():
        if drop.reason is Reason.DUPLICATE and drop.representative in known:
            known[name] = known[drop.representative]
    return known


def explain(column: str, decisions: Sequence[Decision]) -> str:
    """What became of one column, in a sentence.

    Raises
    ------
    InputError
        When the table has no such column.

    Examples
    --------
    >>> from dpipe.model.registry import Reason
    >>> columns = [Column(name, "double", Role.FEATURE) for name in "ab"]
    >>> drop = Drop("b", 2, Reason.REDUNDANT, "spearman", -0.97, 0.95, representative="a")
    >>> decisions = decide(columns, [], [PassResult(2, "spearman", ("a",), (drop,))])
    >>> explain("b", decisions)
    "'b' was dropped by pass 2 (spearman): redundant, spearman -0.97 (threshold 0.95); 'a' stays."
    """
    rows = {decision.column: decision for decision in decisions}
    if column not in rows:
        raise InputError(f"the table has no column {column!r}.")
    row = rows[column]
    if row.pass_number is None:
        return f"{column!r} is {row.decision.replace('_', ' ')}: {row.reason}."
    name = PASSES[row.pass_number].name
    sentence = f"{column!r} was dropped by pass {row.pass_number} ({name}): {row.reason}"
    if row.measure is not None and row.value is not None:
        limit = "" if row.threshold is None else f" (threshold {row.threshold:.6g})"
        sentence += f", {row.measure} {row.value:.6g}{limit}"
    if row.representative is None:
        return f"{sentence}."
    *between, last = follow_chain(column, rows)[1:]
    through = f" (through {', '.join(map(repr, between))})" if between else ""
    return f"{sentence}; {last!r} stays{through}."


def _by_strength(drop: Drop) -> tuple[int, float, str]:
    return drop.pass_number, -abs(drop.value or 0.0), drop.column


def _why_kept(was_asked: bool, came_back: bool, others: int) -> str:
    represents = f"representative of {counted(others, 'column')}" if others else ""
    if was_asked or came_back:
        why = "asked to keep" if was_asked else CAME_BACK
        return f"{why}, {represents}" if represents else why
    return represents or "no similar column"


def _community_numbers(passes: Iterable[PassResult]) -> dict[int, dict[str, int]]:
    """Per pass the community of each column, numbered on from the pass before."""
    numbers: dict[int, dict[str, int]] = {}
    offset = 0
    for result in sorted(passes, key=lambda result: result.number):
        own = {name: offset + label for name, label in result.communities.items()}
        numbers[result.number] = own
        offset = max(own.values(), default=offset - 1) + 1
    return numbers


def _community_of(
    name: str, drop: Drop | None, numbers: Mapping[int, Mapping[str, int]]
) -> int | None:
    if drop is not None:
        return numbers[drop.pass_number].get(name)
    labels = [own[name] for _, own in sorted(numbers.items()) if name in own]
    return labels[-1] if labels else None
