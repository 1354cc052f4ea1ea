"""The checks of what a finished run claims; each yields a sentence for every claim that fails.

Covers: the checks by pass, the words of every drop.
Does not cover: what is computed for them (`dpipe.verify.columns`, `dpipe.verify.dependence`,
`dpipe.verify.screen`, `dpipe.verify.prediction`, `dpipe.verify.relevance`, `dpipe.verify.budget`).

On purpose nothing here comes from the passes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dpipe.model.records import MILLION, Decision
from dpipe.options import Options
from dpipe.verify.checks.budget import check_budget
from dpipe.verify.checks.claims import OVER_BUDGET, REDUNDANT, Claims, Failures, Rule
from dpipe.verify.checks.decisions import check_chains, check_rows
from dpipe.verify.checks.prediction import check_prediction, rules_of_prediction
from dpipe.verify.checks.prepare import check_prepare, rules_of_prepare
from dpipe.verify.checks.relevance import check_relevance
from dpipe.verify.checks.similarity import check_nonlinear, check_spearman, fused
from dpipe.verify.columns import RankedColumns

if TYPE_CHECKING:
    from numpy.typing import NDArray


__all__ = [
    "CHECKS",
    "Claims",
    "PassCheck",
    "check_chains",
    "check_relevance",
    "check_rows",
    "check_words",
]


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
    1: PassCheck(rules_of_prepare, check_prepare),
    2: PassCheck(
        lambda options: {REDUNDANT: ("spearman", options.spearman_threshold)}, check_spearman
    ),
    3: PassCheck(
        rules_of_prediction,
        check_prediction,
    ),
    4: PassCheck(
        lambda options: {REDUNDANT: (fused(options), options.nonlinear_threshold)},
        check_nonlinear,
    ),
    5: PassCheck(lambda options: {OVER_BUDGET: ("r2", None)}, check_budget),
}
"""The checks by the number of the pass."""


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
        expected = _rule(decision, claims)
        if expected is None:
            yield f"column {name!r} was dropped by pass {number} as {decision.reason!r}: no rule"
        elif not _follows(decision, *expected):
            yield (
                f"column {name!r} was dropped by {decision.measure} at {decision.threshold}, "
                f"where pass {number} uses {expected[0]} at {expected[1]}"
            )


def _rule(decision: Decision, claims: Claims) -> tuple[str | None, float | None] | None:
    """Measure and threshold of the rule a drop names; None when its pass has no such rule."""
    rules = CHECKS[decision.pass_number or 0].rules(claims.options)
    for text, (measure, threshold) in rules.items():
        if _gives(decision.reason, text):
            own = threshold(claims, decision.column) if callable(threshold) else threshold
            return measure, own
    return None


def _follows(decision: Decision, measure: str | None, threshold: float | None) -> bool:
    """Whether a drop has the measure and the threshold of its rule, which is in millionths."""
    if threshold is None or decision.threshold is None:
        return (decision.measure, decision.threshold) == (measure, threshold)
    return decision.measure == measure and abs(decision.threshold - threshold) < 2 / MILLION


def _gives(reason: str, text: str) -> bool:
    """Whether a reason is a text, with details after it or without."""
    return reason == text or reason.startswith(f"{text} ")
