"""The passes of a run and the reasons they give, each known here and nowhere else.

Covers: number, name, title, results and threshold of a pass; text and labels of a reason.
Does not cover: what a pass does (the module that its entry names, see `dpipe.passes`), the rules of
pass 1 (`dpipe.choice.rules`), or how a claim is checked (`dpipe.verify`, which keeps its own copy).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Self


class Reason(StrEnum):
    """Why a column was dropped. The value is its text in the decisions.

    Attributes
    ----------
    label
        The reason in two or three words.
    clause
        What a headline says of the columns dropped for it, after their number; ``{limit}`` and
        ``{percent}`` are the threshold, ``{symbol}`` is the measure.
    partner
        How the representative was found, where the drop's value is not that of the pair.
    """

    label: str
    clause: str
    partner: str

    def __new__(cls, text: str, label: str = "", clause: str = "", partner: str = "") -> Self:
        """A member: its text, and the words that go with it."""
        member = str.__new__(cls, text)
        member._value_ = text
        member.label, member.clause, member.partner = label, clause, partner
        return member

    NO_VALUE = "no valid value", "no valid value", "without a valid value"
    TOO_FEW_VALUES = (
        "too few valid values",
        "too few valid values",
        "with fewer than {limit} valid values",
    )
    TOO_MANY_MISSING = (
        "too many missing values",
        "too many missing",
        "with more than {percent} missing",
    )
    CONSTANT = "constant", "constant", "constant"
    LOW_VARIANCE = "low variance", "low variance", "with low variance"
    DUPLICATE = "monotone duplicate", "monotone duplicate", "with the same ranks as another column"
    REDUNDANT = "redundant", "redundant", "redundant ({symbol} ≥ {limit})"
    COMBINATION = (
        "linear combination",
        "linear combination",
        "linearly dependent on others",
        "the next is its closest part",
    )
    PREDICTED = (
        "predicted",
        "predicted by others",
        "predicted by columns that stay (R² ≥ {limit})",
        "of what predicts it, the next is most similar",
    )
    INFLATED = (
        "inflated variance",
        "inflated variance",
        "with a variance inflation factor above {limit}",
        "of the columns that stayed, the next is most similar",
    )
    OVER_BUDGET = (
        "over budget",
        "over budget",
        "beyond the number of columns asked for",
        "of the columns that stayed, the next is most similar",
    )

    @classmethod
    def of(cls, text: str) -> Reason | None:
        """The reason that a text of the decisions gives, whatever details follow; None for none.

        Examples
        --------
        >>> Reason.of("linear combination of MolWt (2), TPSA (1)")
        <Reason.COMBINATION: 'linear combination'>
        >>> Reason.of("no similar column") is None
        True
        """
        return next((each for each in cls if text == each or text.startswith(f"{each} ")), None)


@dataclass(frozen=True)
class Pass:
    """One pass of a run.

    Attributes
    ----------
    number
        Its place in the order of passes, and what ``--passes`` calls it.
    name
        Its name in tasks, in notes and in the folders of its tiles.
    title
        Its heading on the page.
    module
        The module with its ``run`` and its ``plan`` (see `dpipe.passes`).
    reasons
        The reasons it may drop a column for.
    threshold
        The option with its threshold, None where it has none or several.
    measure
        The measure that it computes (see `dpipe.kernels.measures`), None where it computes none or
        `weights` say which.
    weights
        The option that names its measures and weighs them.
    arrays
        What it leaves beside its decisions and its matrices: ``NAME.npy``, ``NAME_columns.txt``.
    pairwise
        Whether a column it drops resembles its representative; else several kept columns determine
        it together.
    fresh_workers
        Whether the workers are restarted before it.
    asked_by
        The option that makes it run; None where it runs unless ``--passes`` leaves it out.
    rations
        Whether it keeps a number of columns, whatever they predict.
    """

    number: int
    name: str
    title: str
    module: str
    reasons: tuple[Reason, ...]
    threshold: str | None = None
    measure: str | None = None
    weights: str | None = None
    arrays: tuple[str, ...] = ()
    pairwise: bool = True
    fresh_workers: bool = False
    asked_by: str | None = None
    rations: bool = False

    @property
    def measures_pairs(self) -> bool:
        """Whether it computes measures of pairs of columns."""
        return self.measure is not None or self.weights is not None

    @property
    def drops_similar(self) -> bool:
        """Whether it drops a column for one that is as similar as its threshold asks."""
        return self.pairwise and self.measures_pairs


PASSES: dict[int, Pass] = {
    entry.number: entry
    for entry in (
        Pass(
            number=1,
            name="prepare",
            title="Prepare",
            module="dpipe.passes.prepare",
            reasons=(
                Reason.NO_VALUE,
                Reason.TOO_FEW_VALUES,
                Reason.TOO_MANY_MISSING,
                Reason.CONSTANT,
                Reason.LOW_VARIANCE,
                Reason.DUPLICATE,
            ),
            arrays=("rank_sample",),
        ),
        Pass(
            number=2,
            name="spearman",
            title="Spearman",
            module="dpipe.passes.spearman",
            reasons=(Reason.REDUNDANT,),
            threshold="spearman_threshold",
            measure="spearman",
            fresh_workers=True,
        ),
        Pass(
            number=3,
            name="prediction",
            title="Prediction",
            module="dpipe.passes.prediction",
            reasons=(Reason.COMBINATION, Reason.PREDICTED, Reason.INFLATED),
            threshold="r2_threshold",
            measure="gram",
            pairwise=False,
        ),
        Pass(
            number=4,
            name="nonlinear",
            title="Nonlinear",
            module="dpipe.passes.nonlinear",
            reasons=(Reason.REDUNDANT,),
            threshold="nonlinear_threshold",
            weights="weights",
            fresh_workers=True,
        ),
        Pass(
            number=5,
            name="budget",
            title="Budget",
            module="dpipe.passes.budget",
            reasons=(Reason.OVER_BUDGET,),
            measure="gram",
            pairwise=False,
            asked_by="max_columns",
            rations=True,
        ),
    )
}
"""The passes by number, in their order."""


def usual_passes() -> tuple[int, ...]:
    """The numbers that ``--passes`` takes: of all passes but those that another option asks for.

    Examples
    --------
    >>> usual_passes()
    (1, 2, 3, 4)
    """
    return tuple(number for number, entry in PASSES.items() if entry.asked_by is None)


FIRST = 1
"""The pass that ranks the columns, which every other one needs."""
