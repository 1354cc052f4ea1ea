"""What a finished run claims, in the ways that the checks of its claims look at it.

Covers: the decisions as they were recorded, the words of reasons, tolerances.
Does not cover: the checks (the other modules of this package).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dpipe.model.records import MILLION, Decision
from dpipe.options import Options
from dpipe.table import Table
from dpipe.verify.crew import Crew

SPEARMAN_TOLERANCE = 1e-6
NONLINEAR_TOLERANCE = 2e-5
DEGREE_TOLERANCE = 1e-3
"""With ``--rdc-degree``: what rounding makes of directions in which a column hardly varies."""
R2_TOLERANCE = 1e-5
"""Of an R^2, from ranks stored in float32 and columns that are nearly dependent."""
R2_ROUNDING = 1e-6
"""The part of it that adjusting for many predictors multiplies, by rows over degrees of freedom."""
VIF_TOLERANCE = 1e-5
"""Relative; a VIF of v also loses v times `VIF_ROUNDING`, for the same reason."""
VIF_ROUNDING = 1e-8
RELEVANCE_TOLERANCE = 2e-5
"""Of the mean of HSIC and RDC: the columns of which it is off most are nearly constant."""

DUPLICATE = "monotone duplicate"
COMBINATION = "linear combination"
PREDICTED = "predicted"
INFLATED = "inflated variance"
CAME_BACK = "came back"
OVER_BUDGET = "over budget"
REDUNDANT = "redundant"

Failures = Iterator[str]


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
    returned: Sequence[str] = ()
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
            if (d.decision == "kept" and d.reason.startswith(CAME_BACK))
            or (d.decision == "dropped" and self.entry(d.column).get("came_back"))
        }
        known = {d.column: d.relevance or 0.0 for d in self.decisions}
        self._told = {  # one that is no number is found by another check
            name: round(told * MILLION) if math.isfinite(told) else 0
            for name, told in known.items()
        }
        self._survivors: dict[int, frozenset[str]] = {}

    def dropped_by(self, number: int) -> list[Decision]:
        """The columns that a pass dropped and whose values are recomputed, in input order."""
        return [
            d
            for d in self.decisions
            if d.decision == "dropped" and d.pass_number == number and self.is_drawn(d.column)
        ]

    def is_drawn(self, name: str) -> bool:
        """Whether what the run says of a column is recomputed."""
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
            if d.decision == "dropped" and d.pass_number == 3 and d.reason == INFLATED
        }
        return frozenset({*self.survivors(3), *inflated} - self.back)

    def required_r2(self, name: str) -> float:
        """The R^2 at which pass 3 drops a column: the more it tells of the target, the higher."""
        share = self._told[name] / max(*self._told.values(), 1)
        unexplained = 1 - self.options.required_r2
        return round(1 - unexplained + unexplained * share * 2 / 3, 6)

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


def r2_tolerance(multiple: float) -> float:
    """Of an adjusted R^2 that has so many times the error of R^2 itself."""
    return max(R2_TOLERANCE, R2_ROUNDING * multiple)


Rule = tuple[str | None, float | Callable[[Claims, str], float] | None]
"""Measure and threshold that a drop for some reason has; it may depend on the column's name."""
