"""The claims of pass 1: counts, rules and monotone duplicates.

Covers: the counts of every column, the columns that break a rule, duplicates.
Does not cover: ranking (`dpipe.verify.columns`).
"""

from __future__ import annotations

import math
from collections import defaultdict
from typing import TYPE_CHECKING

import numpy as np

from dpipe.options import Options
from dpipe.verify.checks.claims import DUPLICATE, Claims, Failures, Rule
from dpipe.verify.columns import Facts, RankedColumns

if TYPE_CHECKING:
    from numpy.typing import NDArray


def rules_of_prepare(options: Options) -> dict[str, Rule]:
    """Measure and threshold of every rule of pass 1."""
    return {
        "no valid value": (None, None),
        "too few valid values": ("n_valid", options.required_rows),
        "too many missing values": ("missing_ratio", options.max_missing_ratio),
        "constant": (None, None),
        "low variance": ("normalised_variance", options.variance_threshold),
        DUPLICATE: ("spearman", 1.0),
    }


def check_prepare(
    claims: Claims, columns: RankedColumns, rows: NDArray[np.int64] | None
) -> Failures:
    """The counts of every column, and that exactly the columns that break a rule were dropped."""
    options = claims.options
    for name in columns.index:
        row, facts = claims.row[name], columns.facts[name]
        claims.compared["columns"] += 1
        for counted in ("n_valid", "n_missing", "n_nan", "n_inf", "n_unique"):
            if getattr(row, counted) != getattr(facts, counted):
                yield (
                    f"column {name!r} has {counted} {getattr(facts, counted)}, "
                    f"not {getattr(row, counted)}"
                )
        broken = _broken_rules(facts, columns.n_rows, options)
        if row.pass_number == 1 and row.reason != DUPLICATE:
            if row.reason not in broken:
                yield f"column {name!r} was dropped as {row.reason!r}, which it is not"
            elif row.value is not None and row.measure is not None:
                claimed, computed = row.value, broken[row.reason]
                if claims.note(row.measure, claimed, computed) > 1e-9 * max(1, abs(computed)):
                    yield f"column {name!r} has a {row.measure} of {computed}, not {claimed}"
        elif name not in claims.asked and any(
            not _is_close_call(rule, value, options) for rule, value in broken.items()
        ):
            yield f"column {name!r} is {next(iter(broken))!r} and was not dropped for it"
    yield from _check_duplicates(claims, columns)


def _broken_rules(facts: Facts, n_rows: int, options: Options) -> dict[str, float]:
    """The rules of pass 1 a column breaks, with the value that breaks it."""
    ratio = facts.n_missing / max(1, n_rows)
    one = facts.n_unique == 1
    hidden = one and facts.n_rounded > 0  # what was rounded to one value may differ
    rules = {
        "no valid value": (facts.n_valid == 0, math.nan),
        "too few valid values": (facts.n_valid < options.required_rows, facts.n_valid),
        "too many missing values": (ratio > options.max_missing_ratio, ratio),
        "constant": (one and not hidden, math.nan),
        "low variance": (
            not hidden and facts.normalised_variance < options.variance_threshold * (1 + 1e-9),
            facts.normalised_variance,
        ),
    }
    return {rule: value for rule, (breaks, value) in rules.items() if breaks}


def _is_close_call(rule: str, value: float, options: Options) -> bool:
    """Whether rounding alone decides that a column breaks a rule."""
    return rule == "low variance" and value >= options.variance_threshold * (1 - 1e-9)


def _check_duplicates(claims: Claims, columns: RankedColumns) -> Failures:
    """Dropped duplicates are duplicates, and no two columns that pass 1 kept are."""
    for row in claims.dropped_by(1):
        if row.reason == DUPLICATE:
            claims.compared["monotone duplicates"] += 1
            other = str(row.representative)
            if columns.facts[row.column].n_rounded or columns.facts[other].n_rounded:
                yield f"{row.column!r} or {other!r} was rounded: nothing tells that they are alike"
                continue
            own, others = columns.marks[row.column], columns.marks[other]
            if own.signature != others.signature:
                yield f"column {row.column!r} does not rank the rows as {other!r} does"
                continue
            rho = own.first_sign * others.first_sign
            if row.value != rho:
                yield f"the rho of {row.column!r} and its duplicate {other!r} is {rho:g}"
    same: dict[bytes, list[str]] = defaultdict(list)
    for name in claims.survivors(1):
        facts = columns.facts.get(name)
        if facts is not None and facts.n_unique > 1 and not facts.n_rounded:
            same[columns.marks[name].signature].append(name)
    for group in same.values():
        if len(set(group) - claims.asked) > (0 if claims.asked & set(group) else 1):
            yield f"columns {group[0]!r} and {group[1]!r} rank the rows alike and both stayed"
