"""The rules of pass 1: which columns cannot inform, whatever the other columns hold.

Covers: what each rule compares with which option, the first rule that a column breaks.
Does not cover: the statistics (`dpipe.passes.prepare`), checking that a run obeyed the rules
(`dpipe.verify`, which has its own copy of them).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from dpipe.model.records import ColumnStatistics, Drop
from dpipe.model.registry import Reason
from dpipe.options import Options


@dataclass(frozen=True)
class Rule:
    """One rule of pass 1.

    Attributes
    ----------
    reason
        What a column that breaks it is dropped for.
    breaks
        Whether a column does, given the limit (NaN for a rule without an option).
    measure
        What the decisions call the value that was compared, None where there is none.
    value
        The value of a column, for the decisions.
    option
        The field of `Options` with the limit, None for a rule without one.
    """

    reason: Reason
    breaks: Callable[[ColumnStatistics, float], bool]
    measure: str | None = None
    value: Callable[[ColumnStatistics], float] | None = None
    option: str | None = None

    def limit(self, options: Options) -> float | None:
        """The limit that a run asks for."""
        return None if self.option is None else float(getattr(options, self.option))

    def is_broken_by(self, column: ColumnStatistics, options: Options) -> bool:
        """Whether a column breaks the rule."""
        limit = self.limit(options)
        return self.breaks(column, float("nan") if limit is None else limit)

    def drop(self, column: ColumnStatistics, pass_number: int, options: Options) -> Drop:
        """The drop of a column that breaks the rule."""
        value = None if self.value is None else float(self.value(column))
        limit = self.limit(options)
        return Drop(column.name, pass_number, self.reason, self.measure, value, limit)


def _missing_ratio(column: ColumnStatistics) -> float:
    return column.n_missing / max(1, column.n_rows)


def _varies_less(column: ColumnStatistics, limit: float) -> bool:
    if column.n_unique == 1 and column.n_rounded:  # what was rounded to one value may differ
        return False
    return column.normalised_variance < limit


RULES = (
    Rule(Reason.NO_VALUE, lambda column, _: column.n_valid == 0),
    Rule(
        Reason.TOO_FEW_VALUES,
        lambda column, limit: column.n_valid < limit,
        measure="n_valid",
        value=lambda column: column.n_valid,
        option="min_valid",
    ),
    Rule(
        Reason.TOO_MANY_MISSING,
        lambda column, limit: _missing_ratio(column) > limit,
        measure="missing_ratio",
        value=_missing_ratio,
        option="max_missing_ratio",
    ),
    Rule(Reason.CONSTANT, lambda column, _: column.n_unique == 1 and not column.n_rounded),
    Rule(
        Reason.LOW_VARIANCE,
        _varies_less,
        measure="normalised_variance",
        value=lambda column: column.normalised_variance,
        option="variance_threshold",
    ),
)
"""The rules in the order in which they are asked; the first one that is broken is the reason."""


def first_broken(column: ColumnStatistics, options: Options) -> Rule | None:
    """The first rule that a column breaks; None when it may stay."""
    return next((rule for rule in RULES if rule.is_broken_by(column, options)), None)
