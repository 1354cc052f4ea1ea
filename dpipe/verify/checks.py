"""What a finished run claims, one check for each kind of claim.

Covers: the checks of `dpipe.verify.verify`; each yields a sentence for every claim that fails.
Does not cover: the computations behind them (`dpipe.verify.columns`, `dpipe.verify.dependence`).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from dpipe.model import Decision, Role
from dpipe.options import Options
from dpipe.table import Table
from dpipe.table.sample import nonlinear_sample
from dpipe.verify.columns import Facts, RankedColumns
from dpipe.verify.dependence import Nonlinear, score_factor, similar_pairs, spearman

if TYPE_CHECKING:
    from numpy.typing import NDArray

SPEARMAN_TOLERANCE = 1e-6
NONLINEAR_TOLERANCE = 2e-5
VIF_TOLERANCE = 1e-6
"""Relative; a VIF of v also loses v times `_ROUNDING`, from ranks stored in float32."""

_ROUNDING = 1e-10
_DEPENDENT = 1e-10  # 1 - R^2 of an exact combination
_EXACT = 1e-8  # and what is forgiven when it is computed from other columns than in the run
_DUPLICATE = "monotone duplicate"
_COMBINATION = "linear combination"
_INFLATED = "inflated variance"
_REDUNDANT = "redundant"

Failures = Iterator[str]
Rule = tuple[str | None, float | None]
"""Measure and threshold that a drop for some reason has."""


@dataclass
class Claims:
    """The decisions of a run in the ways the checks look at them.

    ``compared`` counts what was recomputed, per kind, and ``differences`` holds the largest
    difference found between a recorded and a recomputed value, per measure.
    """

    table: Table
    options: Options
    selected: tuple[str, ...]
    decisions: tuple[Decision, ...]
    communities: Mapping[str, Any]
    compared: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    differences: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.row = {decision.column: decision for decision in self.decisions}
        self.asked = set(self.options.keep)
        self._survivors: dict[int, frozenset[str]] = {}

    def dropped_by(self, number: int) -> list[Decision]:
        """The columns that a pass dropped, in input order."""
        return [d for d in self.decisions if d.decision == "dropped" and d.pass_number == number]

    def survivors(self, number: int) -> list[str]:
        """The feature columns that were left after a pass, in input order."""
        return [
            d.column
            for d in self.decisions
            if d.decision == "kept" or (d.decision == "dropped" and (d.pass_number or 0) > number)
        ]

    def survived(self, name: str, number: int) -> bool:
        """Whether a column was left after a pass."""
        if number not in self._survivors:
            self._survivors[number] = frozenset(self.survivors(number))
        return name in self._survivors[number]

    def note(self, measure: str, recorded: float, computed: float) -> float:
        """The difference of two values, remembered if it is the largest of its measure."""
        difference = abs(recorded - computed)
        self.differences[measure] = max(self.differences.get(measure, 0.0), difference)
        return difference


# The decision table, without the input's values


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


def check_words(claims: Claims) -> Failures:
    """Every drop names a pass that ran, a rule of that pass, its measure and its threshold."""
    options = claims.options
    for decision in claims.decisions:
        if decision.decision != "dropped":
            continue
        name, number = decision.column, decision.pass_number
        if number not in options.passes:
            yield f"column {name!r} was dropped by pass {number}, which did not run"
            continue
        expected = _rule(decision, options)
        if expected is None:
            yield f"column {name!r} was dropped by pass {number} as {decision.reason!r}: no rule"
        elif (decision.measure, decision.threshold) != expected:
            yield (
                f"column {name!r} was dropped by {decision.measure} at {decision.threshold}, "
                f"where pass {number} uses {expected[0]} at {expected[1]}"
            )


def _rule(decision: Decision, options: Options) -> Rule | None:
    """Measure and threshold of the rule a drop names; None when its pass has no such rule."""
    rules = CHECKS[decision.pass_number or 0].rules(options)
    return next((rules[text] for text in rules if _gives(decision.reason, text)), None)


def _fused(options: Options) -> str:
    """What the similarity of pass 4 is called: the measures that have a say, by name."""
    return "+".join(name for name, weight in sorted(options.shares.items()) if weight > 0)


def _gives(reason: str, text: str) -> bool:
    """Whether a reason is a text, with details after it or without."""
    return reason == text or reason.startswith(f"{text} ")


def _rules_of_prepare(options: Options) -> dict[str, Rule]:
    return {
        "no valid value": (None, None),
        "too few valid values": ("n_valid", options.required_rows),
        "too many missing values": ("missing_ratio", options.max_missing_ratio),
        "constant": (None, None),
        "low variance": ("normalised_variance", options.variance_threshold),
        _DUPLICATE: ("spearman", 1.0),
    }


def check_chains(claims: Claims) -> Failures:
    """Each representative was kept by the pass that names it; the chains lead to the selection."""
    selected = set(claims.selected)
    ends: dict[str, list[str]] = {}
    for decision in claims.decisions:
        if decision.decision != "dropped":
            continue
        name, number = decision.column, decision.pass_number or 0
        if decision.representative is None:
            if number > 1 or decision.reason == _DUPLICATE:
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
            listed[entry["column"]] = (chain, entry["pass"], entry["measure"], entry["value"])
    if set(claims.communities) != set(claims.selected):
        yield "the kept columns of communities.json are not the selection"
    for name in sorted(set(listed) ^ set(chains)):
        yield f"column {name!r} is an alternative in one of communities.json and the decisions only"
    for name in sorted(set(listed) & set(chains)):
        row = claims.row[name]
        if listed[name] != (chains[name], row.pass_number, row.measure, row.value):
            yield f"communities.json and the decisions differ about column {name!r}"


# Pass 1


def check_prepare(
    claims: Claims, columns: RankedColumns, rows: NDArray[np.int64] | None
) -> Failures:
    """The counts of every column, and that exactly the columns that break a rule were dropped."""
    options = claims.options
    for name in claims.table.features:
        row, facts = claims.row[name], columns.facts[name]
        claims.compared["columns"] += 1
        for counted in ("n_valid", "n_missing", "n_nan", "n_inf", "n_unique"):
            if getattr(row, counted) != getattr(facts, counted):
                yield (
                    f"column {name!r} has {counted} {getattr(facts, counted)}, "
                    f"not {getattr(row, counted)}"
                )
        broken = _broken_rules(facts, columns.n_rows, options)
        if row.pass_number == 1 and row.reason != _DUPLICATE:
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
        if row.reason == _DUPLICATE:
            claims.compared["monotone duplicates"] += 1
            other = str(row.representative)
            if columns.facts[row.column].n_rounded or columns.facts[other].n_rounded:
                yield f"{row.column!r} or {other!r} was rounded: nothing tells that they are alike"
                continue
            if columns.signature(row.column) != columns.signature(other):
                yield f"column {row.column!r} does not rank the rows as {other!r} does"
                continue
            rho = columns.first_sign(row.column) * columns.first_sign(other)
            if row.value != rho:
                yield f"the rho of {row.column!r} and its duplicate {other!r} is {rho:g}"
    same: dict[bytes, list[str]] = defaultdict(list)
    for name in claims.survivors(1):
        if columns.facts[name].n_unique > 1 and not columns.facts[name].n_rounded:
            same[columns.signature(name)].append(name)
    for group in same.values():
        if len(set(group) - claims.asked) > (0 if claims.asked & set(group) else 1):
            yield f"columns {group[0]!r} and {group[1]!r} rank the rows alike and both stayed"


# Passes 2 and 4


def check_spearman(
    claims: Claims, columns: RankedColumns, rows: NDArray[np.int64] | None
) -> Failures:
    """The rho of every drop of pass 2, and that no two kept columns reach the threshold."""
    options = claims.options

    def rho(first: str, second: str) -> float:
        return spearman(columns.of(first), columns.of(second), options.required_rows)

    yield from _check_drops(claims, 2, rho, SPEARMAN_TOLERANCE)
    limit = options.spearman_threshold + SPEARMAN_TOLERANCE
    pairs = similar_pairs(columns, claims.selected, limit, options.required_rows)
    yield from _check_kept(claims, pairs, "spearman", options.spearman_threshold)


def check_nonlinear(
    claims: Claims, columns: RankedColumns, rows: NDArray[np.int64] | None
) -> Failures:
    """The fused similarity of every drop of pass 4, and that no two kept columns reach it."""
    options = claims.options
    measure = Nonlinear(columns, nonlinear_sample(claims.table, rows, options), options)
    yield from _check_drops(claims, 4, measure.similarity, NONLINEAR_TOLERANCE)
    limit = options.nonlinear_threshold + NONLINEAR_TOLERANCE
    pairs = measure.similar_pairs(claims.selected, limit)
    yield from _check_kept(claims, pairs, _fused(options), options.nonlinear_threshold)


def _check_drops(
    claims: Claims,
    number: int,
    measure: Callable[[str, str], float],
    tolerance: float,
) -> Failures:
    # By representative, so that what was worked out for it is used again at once.
    for row in sorted(claims.dropped_by(number), key=lambda row: str(row.representative)):
        other, threshold = str(row.representative), float(row.threshold or 0)
        computed, recorded = measure(row.column, other), row.value
        name = f"the {row.measure} of {row.column!r} and its representative {other!r}"
        claims.compared[f"drops of pass {number}"] += 1
        if recorded is None or math.isnan(computed):
            yield f"{name} is undefined, so it cannot have been dropped for it"
        elif claims.note(str(row.measure), recorded, computed) > tolerance:
            yield f"{name} is {computed:.6f}, not {recorded:.6f}"
        elif abs(computed) < threshold - tolerance:
            yield f"{name} is {computed:.6f}, below the threshold {threshold:g}"


def _check_kept(
    claims: Claims, pairs: Iterator[tuple[str, str, float]], measure: str, threshold: float
) -> Failures:
    claims.compared[f"pairs of kept columns, {measure}"] = math.comb(len(claims.selected), 2)
    for first, second, value in pairs:
        if not {first, second} <= claims.asked:
            yield (
                f"columns {first!r} and {second!r} were both kept although their {measure} is "
                f"{value:.6f}, at or above the threshold {threshold:g}"
            )


# Pass 3


def check_vif(claims: Claims, columns: RankedColumns, rows: NDArray[np.int64] | None) -> Failures:
    """The VIF of every drop of pass 3 at that moment, and of what that pass kept.

    A pass drops the most inflated column first and every drop lowers the others' VIF, so the drops
    are replayed from the last one, of the lowest VIF, backwards: each is put back beside what was
    left at that moment. In one triangular factor of the columns in that order, what each has beyond
    the ones before it stands on the diagonal.
    """
    drops = claims.dropped_by(3)
    inflated = sorted(
        (row for row in drops if row.reason == _INFLATED), key=lambda row: row.value or 0
    )
    combinations = [row for row in drops if row.reason != _INFLATED]
    kept = [name for name in claims.survivors(3) if columns.facts[name].n_unique > 1]
    left = _independent(columns, kept, claims.asked)
    names = [*left, *(row.column for row in inflated), *(row.column for row in combinations)]
    factor = score_factor(columns, names)
    yield from _check_kept_vif(claims, left, factor[: len(left), : len(left)])
    for place, row in enumerate(inflated, start=len(left)):
        claims.compared["drops of pass 3"] += 1
        computed, recorded = 1 / max(float(factor[place, place] ** 2), 1e-300), row.value or 0.0
        off = claims.note("vif", 1.0, recorded / computed)
        if off > VIF_TOLERANCE + _ROUNDING * computed:
            yield (
                f"column {row.column!r} had a VIF of {computed:.6g} when it was dropped, "
                f"not {recorded:.6g}"
            )
        elif computed < claims.options.vif_threshold * (1 - VIF_TOLERANCE):
            yield f"column {row.column!r} had a VIF of {computed:.6g}, below the threshold"
    basis = len(left) + len(inflated)
    for place, row in enumerate(combinations, start=basis):
        claims.compared["drops of pass 3"] += 1
        beyond = float((factor[basis:, place] ** 2).sum())
        if claims.note("r2", row.value or 0.0, 1 - beyond) > _EXACT:
            yield f"column {row.column!r} is no exact combination: R^2 is {1 - beyond:.9f}"


def _independent(columns: RankedColumns, names: Sequence[str], asked: Collection[str]) -> list[str]:
    """The columns less those asked for that earlier ones asked for determine.

    Only such columns may be linearly dependent after pass 3; without them the span is the same.
    """
    first = [name for name in names if name in asked]
    beyond = np.diag(score_factor(columns, first)) ** 2
    chosen = [name for name, rest in zip(first, beyond, strict=True) if rest > _DEPENDENT]
    return chosen + [name for name in names if name not in asked]


def _check_kept_vif(claims: Claims, names: Sequence[str], factor: NDArray[np.float64]) -> Failures:
    """No column that pass 3 kept reaches the threshold, unless it was asked to be kept."""
    limit = claims.options.vif_threshold
    claims.compared["VIF of columns that pass 3 kept"] = len(names)
    if np.any(np.diag(factor) ** 2 <= _DEPENDENT):
        yield "the columns that pass 3 kept are linearly dependent"
        return
    vifs = (np.linalg.inv(factor) ** 2).sum(axis=1)
    for name, vif in zip(names, vifs, strict=True):
        if name not in claims.asked and vif >= limit * (1 + VIF_TOLERANCE):
            yield f"column {name!r} was kept with a VIF of {vif:.6g} (limit {limit:g})"


# All passes


@dataclass(frozen=True)
class PassCheck:
    """How the claims of one pass are checked.

    Attributes
    ----------
    rules
        Measure and threshold for each text of a reason that the pass may give.
    check
        Recomputes what the pass claims, from the claims of the run, the ranked columns and the
        rows that took part (None for all).
    """

    rules: Callable[[Options], Mapping[str, Rule]]
    check: Callable[[Claims, RankedColumns, NDArray[np.int64] | None], Failures]


CHECKS: dict[int, PassCheck] = {
    1: PassCheck(_rules_of_prepare, check_prepare),
    2: PassCheck(
        lambda options: {_REDUNDANT: ("spearman", options.spearman_threshold)}, check_spearman
    ),
    3: PassCheck(
        lambda options: {
            _COMBINATION: ("r2", 1.0),
            _INFLATED: ("vif", options.vif_threshold),
        },
        check_vif,
    ),
    4: PassCheck(
        lambda options: {_REDUNDANT: (_fused(options), options.nonlinear_threshold)},
        check_nonlinear,
    ),
}
"""The checks by the number of the pass; on purpose nothing here comes from the passes."""
