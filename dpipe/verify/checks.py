"""What a finished run claims, one check for each kind of claim.

Covers: the checks of `dpipe.verify.verify`; each yields a sentence for every claim that fails.
Does not cover: the computations behind them (`dpipe.verify.columns`, `dpipe.verify.dependence`).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from dpipe.model.records import Decision, Role
from dpipe.options import Options
from dpipe.table import Table
from dpipe.table.sample import nonlinear_sample
from dpipe.verify.budget import Targets, of_table, of_targets, targets_of
from dpipe.verify.columns import Facts, RankedColumns
from dpipe.verify.crew import Crew
from dpipe.verify.dependence import (
    Nonlinear,
    Pair,
    rhos,
    similar_pairs,
    similarities,
    values_of,
)
from dpipe.verify.prediction import Scores

if TYPE_CHECKING:
    from numpy.typing import NDArray

SPEARMAN_TOLERANCE = 1e-6
NONLINEAR_TOLERANCE = 2e-5
R2_TOLERANCE = 1e-5
"""Of an R^2, from ranks stored in float32 and columns that are nearly dependent."""
VIF_TOLERANCE = 1e-5
"""Relative; a VIF of v also loses v times `_ROUNDING`, for the same reason."""

_ROUNDING = 1e-8
_DUPLICATE = "monotone duplicate"
_COMBINATION = "linear combination"
_PREDICTED = "predicted"
_INFLATED = "inflated variance"
_CAME_BACK = "came back"
_OVER_BUDGET = "over budget"
_REDUNDANT = "redundant"

Failures = Iterator[str]
Rule = tuple[str | None, float | None]
"""Measure and threshold that a drop for some reason has."""


@dataclass
class Claims:
    """The decisions of a run in the ways the checks look at them.

    Of ``drawn`` columns alone the values are recomputed, of all when it is None; ``crew`` does it.
    ``compared`` counts what was recomputed, per kind, and ``differences`` holds the largest
    difference found between a recorded and a recomputed value, per measure.
    """

    table: Table
    options: Options
    selected: tuple[str, ...]
    decisions: tuple[Decision, ...]
    communities: Mapping[str, Any]
    chosen: Sequence[Mapping[str, Any]] = ()
    order: Sequence[str] = ()
    crew: Crew = field(default_factory=Crew)
    drawn: frozenset[str] | None = None
    compared: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    differences: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.row = {decision.column: decision for decision in self.decisions}
        self.asked = set(self.options.keep)
        self._entries: dict[str, Mapping[str, Any]] = {
            entry["column"]: entry for entries in self.communities.values() for entry in entries
        }
        self.back = {
            d.column
            for d in self.decisions
            if (d.decision == "kept" and d.reason.startswith(_CAME_BACK))
            or (d.decision == "dropped" and self.entry(d.column).get("came_back"))
        }
        self._survivors: dict[int, frozenset[str]] = {}

    def dropped_by(self, number: int) -> list[Decision]:
        """The columns that a pass dropped and whose values are recomputed, in input order."""
        return [
            d
            for d in self.decisions
            if d.decision == "dropped" and d.pass_number == number and self._is_drawn(d.column)
        ]

    def _is_drawn(self, name: str) -> bool:
        return self.drawn is None or name in self.drawn

    @property
    def named(self) -> list[str]:
        """The feature columns drawn and those that their drops name, in input order."""
        names = set(self.table.features if self.drawn is None else self.drawn)
        for name in sorted(self.drawn or ()):
            named = self.entry(name).get("predictors", {})
            names |= {str(self.row[name].representative), *named}
        return [name for name in self.table.features if name in names]

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

    @property
    def swept(self) -> frozenset[str]:
        """The columns that pass 3 kept while it went through them."""
        inflated = {
            d.column
            for d in self.decisions
            if d.decision == "dropped" and d.pass_number == 3 and d.reason == _INFLATED
        }
        return frozenset({*self.survivors(3), *inflated} - self.back)

    def entry(self, name: str) -> Mapping[str, Any]:
        """What communities.json has of a dropped column."""
        return self._entries.get(name, {})

    @property
    def promises_prediction(self) -> bool:
        """Whether the selection predicts what pass 3 dropped.

        With a VIF to heed, or after pass 5, it may not.
        """
        return self.options.vif_threshold is None and not self.dropped_by(5)

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
        if number not in options.pass_numbers:
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


# Passes 2 and 4


def check_spearman(
    claims: Claims, columns: RankedColumns, rows: NDArray[np.int64] | None
) -> Failures:
    """The rho of every drop of pass 2, and that no two kept columns reach the threshold."""
    options, crew = claims.options, claims.crew
    measure = partial(rhos, min_valid=options.required_rows)
    yield from _check_drops(claims, 2, columns, measure, SPEARMAN_TOLERANCE)
    limit = options.spearman_threshold + SPEARMAN_TOLERANCE
    kept = [name for name in claims.selected if name in columns.index]
    pairs = similar_pairs(columns, kept, limit, options.required_rows, crew)
    yield from _check_kept(claims, kept, pairs, "spearman", options.spearman_threshold)


def check_nonlinear(
    claims: Claims, columns: RankedColumns, rows: NDArray[np.int64] | None
) -> Failures:
    """The fused similarity of every drop of pass 4, and that no two kept columns reach it."""
    options = claims.options
    drawn = nonlinear_sample(claims.table, rows, options)
    if drawn is not None:
        columns = columns.on(drawn, list(columns.index), claims.crew)
    measure = partial(similarities, options=options)
    yield from _check_drops(claims, 4, columns, measure, NONLINEAR_TOLERANCE)
    limit = options.nonlinear_threshold + NONLINEAR_TOLERANCE
    kept = [name for name in claims.selected if name in columns.index]
    pairs = Nonlinear(columns, options).similar_pairs(kept, limit, claims.crew)
    yield from _check_kept(claims, kept, pairs, _fused(options), options.nonlinear_threshold)


def _check_drops(
    claims: Claims,
    number: int,
    columns: RankedColumns,
    measure: Callable[[RankedColumns, Sequence[Pair]], list[float]],
    tolerance: float,
) -> Failures:
    # By representative, so that what was worked out for it is used again at once.
    drops = sorted(claims.dropped_by(number), key=lambda row: str(row.representative))
    pairs = [(str(row.representative), row.column) for row in drops]
    for row, computed in zip(drops, values_of(columns, pairs, measure, claims.crew), strict=True):
        other, threshold, recorded = row.representative, float(row.threshold or 0), row.value
        name = f"the {row.measure} of {row.column!r} and its representative {other!r}"
        claims.compared[f"drops of pass {number}"] += 1
        if recorded is None or math.isnan(computed):
            yield f"{name} is undefined, so it cannot have been dropped for it"
        elif claims.note(str(row.measure), recorded, computed) > tolerance:
            yield f"{name} is {computed:.6f}, not {recorded:.6f}"
        elif abs(computed) < threshold - tolerance:
            yield f"{name} is {computed:.6f}, below the threshold {threshold:g}"


def _check_kept(
    claims: Claims,
    kept: Sequence[str],
    pairs: Iterator[tuple[str, str, float]],
    measure: str,
    threshold: float,
) -> Failures:
    claims.compared[f"pairs of kept columns, {measure}"] = math.comb(len(kept), 2)
    for first, second, value in pairs:
        if not {first, second} <= claims.asked:
            yield (
                f"columns {first!r} and {second!r} were both kept although their {measure} is "
                f"{value:.6f}, at or above the threshold {threshold:g}"
            )


# Pass 3


def _rules_of_prediction(options: Options) -> dict[str, Rule]:
    """Measure and threshold of every rule of pass 3."""
    rules: dict[str, Rule] = {
        _COMBINATION: ("r2", 1.0),
        _PREDICTED: ("r2", options.r2_threshold),
    }
    if options.vif_threshold is not None:
        rules[_INFLATED] = ("vif", options.vif_threshold)
    return rules


def check_prediction(
    claims: Claims, columns: RankedColumns, rows: NDArray[np.int64] | None
) -> Failures:
    """What predicts every drop of pass 3, also on the final selection, and VIFs where asked for.

    What takes all kept columns is no matter of some decisions: only named predictors are.
    """
    swept = claims.swept
    kept = [name for name in claims.survivors(3) if _varies(name, columns)]
    inflated = [row for row in claims.dropped_by(3) if row.reason == _INFLATED]
    predicted = [row for row in claims.dropped_by(3) if row.reason != _INFLATED]
    named = [row for row in predicted if claims.entry(row.column).get("predictors")]
    by_many = [row for row in predicted if row not in named]
    if missing := {row.column for row in (*by_many, *inflated)} - set(claims.order):
        yield f"run.json does not say in which order pass 3 went through {min(missing)!r}"
        return
    others = {row.column for row in predicted} | {name for name in swept if name not in kept}
    known = [*kept, *sorted(name for name in others if _varies(name, columns))]
    scores = Scores(columns, known, claims.crew)
    for row in named:
        claims.compared["drops of pass 3"] += 1
        yield from _check_named(claims, row, scores, swept)
    if claims.drawn is not None:
        return
    yield from _check_unnamed(claims, by_many, scores, swept)
    yield from _check_final(claims, predicted, scores)
    yield from _check_back(claims, scores, swept)
    limit = claims.options.vif_threshold
    if limit is not None:
        yield from _check_inflated(claims, inflated, scores, kept, limit)


def _varies(name: str, columns: RankedColumns) -> bool:
    """Whether a column is looked at and has two values."""
    return name in columns.index and columns.facts[name].n_unique > 1


def _check_named(claims: Claims, row: Decision, scores: Scores, swept: Collection[str]) -> Failures:
    """The R^2 of a drop on the columns that it names."""
    name, recorded = row.column, row.value or 0.0
    entry = claims.entry(name)
    named = entry["predictors"]
    if odd := sorted(set(named) - set(swept)):
        yield f"column {name!r} is predicted by {odd[0]!r}, which pass 3 did not keep"
        return
    adjusted = scores.adjusted(name, list(named))[1]
    if len(named) != entry.get("n_predictors", 0):
        yield f"column {name!r} does not say how many columns predict it"
    elif claims.note("r2", recorded, adjusted) > R2_TOLERANCE:
        yield f"column {name!r} is predicted with R^2 {adjusted:.6f}, not {recorded:.6f}"
    elif adjusted < (row.threshold or 0.0) - R2_TOLERANCE:
        yield f"column {name!r} is predicted with R^2 {adjusted:.6f}, below the threshold"


def _check_unnamed(
    claims: Claims, drops: Sequence[Decision], scores: Scores, swept: Collection[str]
) -> Failures:
    """The R^2 of each drop that many columns predict: those kept before it in the order."""
    names = {row.column for row in drops}
    order = [name for name in claims.order if name in scores]
    found = scores.in_turn(order, swept, names) if names else {}
    for row in drops:
        claims.compared["drops of pass 3"] += 1
        name, recorded = row.column, row.value or 0.0
        adjusted, predictors = found[name]
        count = claims.entry(name).get("n_predictors", 0)
        if not count:
            yield f"column {name!r} does not say how many columns predict it"
        elif math.isinf(adjusted) or claims.note("r2", recorded, adjusted) > R2_TOLERANCE:
            yield f"column {name!r} is predicted with R^2 {adjusted:.6f}, not {recorded:.6f}"
        elif predictors != count:
            yield f"column {name!r} is predicted by {predictors} columns, not {count}"
        elif adjusted < (row.threshold or 0.0) - R2_TOLERANCE:
            yield f"column {name!r} is predicted with R^2 {adjusted:.6f}, below the threshold"


def _check_back(claims: Claims, scores: Scores, swept: Collection[str]) -> Failures:
    """What pass 3 kept predicts a column that came back, and what a later pass left does not.

    Its drop is not recorded any more, so that is asked of all columns together.
    """
    limit = claims.options.r2_threshold
    left = [name for name in sorted(claims.survivors(4)) if name in scores]
    first = [name for name in left if name not in claims.back]
    for name in sorted(claims.back):
        claims.compared["columns that came back"] += 1
        others = [other for other in left if other != name]
        kept = [other for other in sorted(swept) if other in scores]
        before = scores.adjusted(name, kept)[0] if name in scores else 0.0
        if not claims.dropped_by(4) or before < limit - R2_TOLERANCE:
            yield f"column {name!r} cannot have come back: pass 3 had no reason to drop it"
            continue
        after = min(scores.adjusted(name, some)[1] for some in (first, others))
        if after >= limit + R2_TOLERANCE:
            yield (
                f"column {name!r} cannot have come back: the selection predicts it with R^2 "
                f"{after:.6f}"
            )


def _check_final(claims: Claims, predicted: Sequence[Decision], scores: Scores) -> Failures:
    """The R^2 of every drop on the columns kept in the end, which must reach the threshold.

    It is that on all of them, or on the few that the drop names where that is larger: many
    predictors cost degrees of freedom.
    """
    selected = [name for name in sorted(claims.selected) if name in scores]
    names = [row.column for row in predicted]
    for row, on_all in zip(predicted, scores.all_adjusted(names, selected), strict=True):
        claims.compared["predictions by the selection"] += 1
        entry = claims.entry(row.column)
        named = list(entry.get("predictors", {}))
        found = on_all
        if named and set(named) <= set(selected):
            found = max(found, scores.adjusted(row.column, named)[1])
        recorded = entry.get("r2_final", -math.inf)
        if math.isfinite(max(found, recorded)):
            off = claims.note("r2_final", recorded, found)
        else:
            off = 0.0  # the rows leave no freedom, and nothing is recorded
        if off > R2_TOLERANCE:
            yield (
                f"the selection predicts column {row.column!r} with R^2 {found:.6f}, "
                f"not {recorded:.6f}"
            )
        elif claims.promises_prediction and found < claims.options.r2_threshold - R2_TOLERANCE:
            yield (
                f"the selection predicts column {row.column!r} with R^2 {found:.6f}, "
                f"below the threshold {claims.options.r2_threshold:g}"
            )


def _check_inflated(
    claims: Claims, drops: Sequence[Decision], scores: Scores, kept: Sequence[str], limit: float
) -> Failures:
    """No column kept is inflated, and what went was.

    The worst inflated column in the order went first, so beside each one that went there were all
    better ones and the worse ones that stayed.
    """
    first = [name for name in kept if name in claims.asked]
    left = scores.independent(first) + [name for name in kept if name not in claims.asked]
    claims.compared["VIF of columns that pass 3 kept"] = len(left)
    for name, vif in zip(left, scores.inflation(left), strict=True):
        if name not in claims.asked and vif >= limit * (1 + VIF_TOLERANCE):
            yield f"column {name!r} was kept with a VIF of {vif:.6g} (limit {limit:g})"
    gone = {row.column for row in drops}
    found = scores.inflation_in_turn([n for n in claims.order if n in {*left, *gone}], gone)
    for row in drops:
        claims.compared["drops of pass 3"] += 1
        recorded, vif = row.value or 0.0, found[row.column]
        if not abs(recorded - vif) <= vif * (VIF_TOLERANCE + _ROUNDING * vif):
            yield f"column {row.column!r} had a VIF of {vif:.6g}, not {recorded:.6g}"
        elif recorded < limit * (1 - VIF_TOLERANCE):
            yield f"column {row.column!r} had a VIF of {recorded:.6g}, below the threshold"


# Pass 5


def check_budget(
    claims: Claims, columns: RankedColumns, rows: NDArray[np.int64] | None
) -> Failures:
    """As many columns as asked for, which were best one by one, and the R^2 of every other one."""
    received = claims.survivors(4)
    wanted = min(claims.options.max_columns or 0, len(received))
    if len(claims.selected) != wanted:
        yield f"{len(claims.selected)} columns were kept by pass 5, and not {wanted}"
        return
    if claims.drawn is not None:  # it takes all columns to say what some explain
        return
    varying = [name for name in received if columns.facts[name].n_unique > 1]
    targets = None
    if claims.options.target:
        place = f"{columns.path}-targets"
        targets = targets_of(claims.table, claims.options, rows, place)
    scores = Scores(columns, varying, claims.crew, None if targets is None else targets.columns)
    yield from _check_rest(claims, scores)
    yield from _check_choice(claims, varying, scores, targets, columns.n_rows)


def _check_rest(claims: Claims, scores: Scores) -> Failures:
    """What the selection says of each column that went, and the column most similar to it."""
    selected = [name for name in sorted(claims.selected) if name in scores]
    drops = [row for row in claims.dropped_by(5) if row.column in scores]
    if not selected:
        return
    names = [row.column for row in drops]
    similar = np.abs(scores.vectors(names).T @ scores.vectors(selected))
    found = scores.all_adjusted(names, selected)
    for row, value, near in zip(drops, found, similar, strict=True):
        claims.compared["drops of pass 5"] += 1
        recorded = -math.inf if row.value is None else row.value
        finite = math.isfinite(max(value, recorded))
        if finite and not claims.note("r2", recorded, value) <= R2_TOLERANCE:
            yield (
                f"the selection predicts column {row.column!r} with R^2 {value:.6f}, "
                f"not {recorded:.6f}"
            )
        other = row.representative
        if other not in selected or near[selected.index(other)] < near.max() - SPEARMAN_TOLERANCE:
            closest = selected[int(near.argmax())]
            yield f"column {row.column!r} is most similar to {closest!r}, not to {other!r}"


def _check_choice(
    claims: Claims,
    varying: Sequence[str],
    scores: Scores,
    targets: Targets | None,
    n_rows: int,
) -> Failures:
    """Every column taken explained most of what was left, and all of them what is stated."""
    names = [str(step["column"]) for step in claims.chosen]
    if set(names) != set(claims.selected) & set(varying) or len(names) != len(set(names)):
        yield "the columns that pass 5 says it took are not those that were kept"
        return
    n_asked = len(claims.asked & set(names))
    if not claims.asked.issuperset(names[:n_asked]):
        yield "columns that were asked to be kept were not taken first"
        return
    taken = [varying.index(name) for name in names]
    vectors = scores.vectors(varying)
    ways = {"table": of_table(vectors, taken)}
    if targets is not None:
        responses = scores.vectors(list(targets.columns.index)) * targets.weights
        ridge = max(0.1, 100 / n_rows)
        ways["target"] = of_targets(vectors, responses, taken, ridge, targets.count)
    decides = list(ways)[-1]
    for what, way in ways.items():
        for number, (step, found) in enumerate(zip(claims.chosen, way, strict=True)):
            share = step[what]
            if share is None or not claims.note("share", share, found.share) <= R2_TOLERANCE:
                yield (
                    f"the columns up to {step['column']!r} explain {found.share:.6f} of the "
                    f"{what}, not {share}"
                )
                break
            if what != decides or number < n_asked or found.gain is None:
                continue
            claims.compared["choices of pass 5"] += 1
            if found.best is not None and found.gain < found.best * (1 - 1e-4) - 1e-9:
                yield (
                    f"pass 5 took {step['column']!r}, which explains {found.gain:.6f}, where "
                    f"another column would have explained {found.best:.6f}"
                )
                break


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
        _rules_of_prediction,
        check_prediction,
    ),
    4: PassCheck(
        lambda options: {_REDUNDANT: (_fused(options), options.nonlinear_threshold)},
        check_nonlinear,
    ),
    5: PassCheck(lambda options: {_OVER_BUDGET: ("r2", None)}, check_budget),
}
"""The checks by the number of the pass; on purpose nothing here comes from the passes."""
