"""Whether the decision table fits the input and itself, without the input's values.

Covers: its rows, the chains of representatives, communities.
Does not cover: the words of its reasons (`dpipe.verify.checks`), values (the other modules).
"""

from __future__ import annotations

from collections.abc import Mapping

from dpipe.model.records import Role
from dpipe.verify.checks.claims import DUPLICATE, Claims, Failures


def check_rows(claims: Claims) -> Failures:
    """One row per input column with its type and role, and the selection is the kept rows."""
    expected = [column.name for column in claims.table.columns]
    rows = [decision.column for decision in claims.decisions]
    if rows != expected:
        odd = sorted(set(rows) ^ set(expected))
        what = f"of {odd[0]!r}" if odd else "or their order"
        yield f"the rows of the decisions are not the columns of the input (see that {what})"
        return
    for column, decision in zip(claims.table.columns, claims.decisions, strict=True):
        claims.compared["rows"] += 1
        allowed = {column.role.value} if column.role is not Role.FEATURE else {"kept", "dropped"}
        if decision.decision not in allowed:
            yield f"column {column.name!r} is {column.role.value} but its decision says otherwise"
        if decision.dtype != column.dtype:
            yield f"column {column.name!r} holds {column.dtype}, not {decision.dtype}"
        if decision.decision == "dropped" and column.name in claims.asked:
            yield f"column {column.name!r} was dropped although it was asked to be kept"
    kept = tuple(d.column for d in claims.decisions if d.decision == "kept")
    if claims.selected != kept:
        odd = sorted(set(claims.selected) ^ set(kept))
        what = f"{odd[0]!r}" if odd else "the order"
        yield f"the selection is not the kept columns of the decisions (see {what})"


def check_chains(claims: Claims) -> Failures:
    """Each representative was kept by the pass that names it; the chains lead to the selection."""
    selected = set(claims.selected)
    ends: dict[str, list[str]] = {}
    for decision in claims.decisions:
        if decision.decision != "dropped":
            continue
        name, number = decision.column, decision.pass_number or 0
        if decision.representative is None:
            if number > 1 or decision.reason == DUPLICATE:
                yield f"column {name!r} was dropped without a representative"
            continue
        other = claims.row.get(decision.representative)
        if other is None or not claims.survived(other.column, number):
            yield (
                f"column {name!r} is represented by {decision.representative!r}, "
                f"which pass {number} did not keep"
            )
            continue
        chain = _chain(claims, name)
        claims.compared["chains"] += 1
        if chain[-1] not in selected:
            yield (
                f"the representatives of column {name!r} lead to {chain[-1]!r}, "
                "which was dropped too"
            )
        ends[name] = chain
    yield from _check_communities(claims, ends)


def _chain(claims: Claims, name: str) -> list[str]:
    chain = [name]
    while (after := claims.row[chain[-1]].representative) in claims.row and after not in chain:
        chain.append(str(after))
    return chain


def _check_communities(claims: Claims, chains: Mapping[str, list[str]]) -> Failures:
    """communities.json tells the same story as the decisions."""
    listed = {}
    for kept, entries in claims.communities.items():
        for entry in entries:
            chain = entry.get("chain", [entry["column"], kept])
            listed[entry["column"]] = (
                chain,
                entry["pass"],
                entry["measure"],
                entry["value"],
                entry.get("relevance"),
            )
    if set(claims.communities) != set(claims.selected):
        yield "the kept columns of communities.json are not the selection"
    for name in sorted(set(listed) ^ set(chains)):
        yield f"column {name!r} is an alternative in one of communities.json and the decisions only"
    for name in sorted(set(listed) & set(chains)):
        row = claims.row[name]
        own = (chains[name], row.pass_number, row.measure, row.value, row.relevance)
        if listed[name] != own:
            yield f"communities.json and the decisions differ about column {name!r}"
