"""The nouns of dpipe: what passes hand to each other.

Covers: columns and their statistics, edges, drops and decisions, the memory ledger.
Does not cover: behaviour. Everything here is a frozen record without input, output or policy.
See also: `dpipe.model.events` (what a run tells its observers), `dpipe.model.registry` (the passes
and their reasons), `dpipe.model.inventory` (the files of a run folder), `dpipe.options`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Self

import numpy as np

from dpipe.common.words import counted
from dpipe.model.registry import Reason

if TYPE_CHECKING:
    from numpy.typing import NDArray


MILLION = 10**6
"""Similarities are compared, added and reported to one millionth."""


def reaches(value: float, threshold: float) -> bool:
    """Whether a similarity reaches a threshold; NaN reaches none.

    Examples
    --------
    >>> reaches(-0.9500004, 0.95), reaches(0.9499996, 0.95), reaches(float("nan"), 0.0)
    (True, True, False)
    """
    return value == value and round(abs(value) * MILLION) >= round(threshold * MILLION)


class Role(StrEnum):
    """What a column of the input is to dpipe. The value is the decision on all but features.

    Attributes
    ----------
    label, plural
        Such a column in words, and several of them.
    reason
        Why it takes no part, as the decisions give it.
    """

    label: str
    plural: str
    reason: str

    def __new__(cls, value: str, label: str = "", plural: str = "", reason: str = "") -> Self:
        """A member: its value, and the words that go with it."""
        member = str.__new__(cls, value)
        member._value_ = value
        member.label, member.plural, member.reason = label, plural, reason
        return member

    FEATURE = "feature", "feature", "features"
    ID = "id", "identifier", "identifiers", "identifier, passed through"
    EXCLUDED = "excluded", "left out", "left out as asked", "left out as asked"
    NOT_NUMERIC = "not_numeric", "not numeric", "not numeric", "not numeric, passed through"
    TARGET = "target", "target", "targets", "what is to be predicted"


@dataclass(frozen=True)
class Column:
    """One column of the unified schema.

    Attributes
    ----------
    name
        Its name.
    dtype
        Its Arrow type as text.
    role
        What it is to dpipe.
    """

    name: str
    dtype: str
    role: Role


@dataclass(frozen=True)
class ColumnStatistics:
    """Exact statistics of one feature column (pass 1). Counts are rows; NaN where undefined.

    Attributes
    ----------
    name
        The column.
    n_rows
        Rows that take part.
    n_valid
        Rows with a finite value.
    n_null, n_nan, n_inf
        Rows without one, by kind.
    n_unique
        Different valid values.
    minimum, maximum, mean, variance
        Of the valid values; the variance is that of a population.
    normalised_variance
        The variance over the square of the width of the middle 95 %.
    q025, q975
        Their 2.5 % and 97.5 % quantiles.
    top_share
        The share of the commonest value.
    rank_hash
        The same for columns that rank the rows alike or in reverse.
    first_sign
        The sign of the first centred rank that is not 0; it tells the one from the other.
    n_rounded
        Cells that may have been rounded to float64 before they were ranked, so that different ones
        may seem equal.
    """

    name: str
    n_rows: int
    n_valid: int
    n_null: int
    n_nan: int
    n_inf: int
    n_unique: int
    minimum: float
    maximum: float
    mean: float
    variance: float
    normalised_variance: float
    q025: float
    q975: float
    top_share: float
    rank_hash: str
    first_sign: int = 0
    n_rounded: int = 0

    @property
    def n_missing(self) -> int:
        """Rows without a usable value: null, NaN or infinite."""
        return self.n_rows - self.n_valid


@dataclass(frozen=True)
class Edges:
    """Pairs of columns whose |similarity| reaches a threshold, sorted by (i, j).

    Attributes
    ----------
    i, j
        (m,) indices into the pass's column list, i < j.
    value
        (m,) the signed similarity.
    """

    i: NDArray[np.int64]
    j: NDArray[np.int64]
    value: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.i)

    @classmethod
    def sorted(
        cls, i: NDArray[np.int64], j: NDArray[np.int64], value: NDArray[np.float64]
    ) -> Edges:
        """Build edges from pairs in any order and orientation."""
        low, high = np.minimum(i, j), np.maximum(i, j)
        order = np.lexsort((high, low))
        return cls(low[order], high[order], value[order])

    def strengths(self) -> NDArray[np.int64]:
        """|value| in whole millionths, whose sums are the same in whatever order they are taken."""
        millionths: NDArray[np.int64] = np.rint(np.abs(self.value) * MILLION).astype(np.int64)
        return millionths

    def at_least(self, threshold: float) -> Edges:
        """The edges whose |value| reaches `threshold` (values compared after rounding to 1e-6)."""
        strong = np.round(np.abs(self.value), 6) >= round(threshold, 6)
        return Edges(self.i[strong], self.j[strong], self.value[strong])


@dataclass(frozen=True)
class Pairs:
    """The similar pairs of a pass, as they are left for a reader.

    Attributes
    ----------
    edges
        The pairs, by index into the pass's column list.
    rows
        Rows where both columns of a pair have a value, (len(edges),).
    exact
        Whether a value was settled; else it is as precise as the products of the pass.
    floor
        Every pair from this |similarity| on is there, and none below it.
    """

    edges: Edges
    rows: NDArray[np.int64]
    exact: NDArray[np.bool_]
    floor: float


@dataclass(frozen=True)
class Drop:
    """One column removed by one pass.

    Attributes
    ----------
    column
        The column.
    pass_number
        The pass that removed it.
    reason
        Why.
    measure
        What was compared with the threshold, None where the reason says it all.
    value
        Its value.
    threshold
        The limit it reached.
    representative
        A column that this pass kept and that stands for it, None where none does.
    detail
        What follows the reason in the decisions, such as the terms of a combination.
    n_predictors
        How many columns `value` is the adjusted R^2 on, 0 for any other measure.
    predictors
        These with their coefficients, in terms of unit-norm normal scores, where they are named.
    """

    column: str
    pass_number: int
    reason: Reason
    measure: str | None = None
    value: float | None = None
    threshold: float | None = None
    representative: str | None = None
    detail: str = ""
    n_predictors: int = 0
    predictors: tuple[tuple[str, float], ...] = ()

    @property
    def text(self) -> str:
        """The reason with its detail."""
        return f"{self.reason} {self.detail}" if self.detail else str(self.reason)


@dataclass(frozen=True)
class Step:
    """One column taken for a budget of columns.

    Attributes
    ----------
    column
        The column.
    table
        Share of the variance of all columns that it and those taken before explain.
    target
        The same of the targets, by a ridge regression; None without targets.
    """

    column: str
    table: float
    target: float | None


@dataclass(frozen=True)
class PassResult:
    """What a pass decided.

    Attributes
    ----------
    number, name
        The pass.
    kept
        The columns it kept, in input order.
    drops
        The columns it removed, in input order.
    communities
        The number of its community for each column of a community of two or more.
    near_threshold
        Pairs close to the threshold, with their similarity, the closest first.
    relevance
        How much each column tells of the targets, in [0, 1]; of pass 1 of a run that has targets.
    returned
        Columns dropped before that came back, in the order they did; those of them that are similar
        to a kept one are among the drops.
    predicted
        Adjusted R^2 on the columns kept of every column that some of them predict; empty where the
        pass took nothing that matters to it.
    chosen
        The columns kept in the order they were taken, of a pass that keeps a number of them.
    order
        The columns in the order the pass went through them, where it dropped any.
    """

    number: int
    name: str
    kept: tuple[str, ...]
    drops: tuple[Drop, ...]
    communities: Mapping[str, int] = field(default_factory=dict)
    near_threshold: tuple[tuple[str, str, float], ...] = ()
    relevance: Mapping[str, float] = field(default_factory=dict)
    returned: tuple[str, ...] = ()
    predicted: Mapping[str, float] = field(default_factory=dict)
    chosen: tuple[Step, ...] = ()
    order: tuple[str, ...] = ()


@dataclass(frozen=True)
class Decision:
    """One row of the decision table: what became of one input column.

    Counts are rows, and None for a column that took no part; so is what a drop alone has.

    Attributes
    ----------
    column
        The column.
    dtype
        Its Arrow type as text.
    n_valid
        Rows with a usable value.
    n_missing
        Rows without one.
    n_nan, n_inf
        Those of them that are NaN, and infinite.
    n_unique
        Different valid values.
    decision
        "kept", "dropped", or the role of a column that took no part.
    pass_number
        The pass that dropped it.
    reason
        Why, in words (see `cause`).
    measure
        What was compared with the threshold.
    value
        Its value.
    threshold
        The limit it reached.
    representative
        The column that stood for it after that pass.
    community
        The number of its community.
    relevance
        How much it tells of the targets, in [0, 1]; None without targets.
    """

    column: str
    dtype: str
    n_valid: int | None
    n_missing: int | None
    n_nan: int | None
    n_inf: int | None
    n_unique: int | None
    decision: str
    pass_number: int | None
    reason: str
    measure: str | None
    value: float | None
    threshold: float | None
    representative: str | None
    community: int | None
    relevance: float | None = None

    @property
    def cause(self) -> Reason | None:
        """The reason of a dropped column, read back from its words; None for any other one."""
        return Reason.of(self.reason) if self.decision == "dropped" else None


@dataclass(frozen=True)
class Similarity:
    """A symmetric all-pairs matrix.

    Attributes
    ----------
    values
        (p, p), NaN where undefined.
    columns
        The names of its rows and columns.
    """

    values: NDArray[np.float32]
    columns: tuple[str, ...]

    def __repr__(self) -> str:
        """One line, as of all that has thousands of columns."""
        return f"<Similarity: {counted(len(self.columns), 'column')}>"


@dataclass(frozen=True)
class MemoryReading:
    """Memory of one process at one moment, in bytes.

    Attributes
    ----------
    moment
        "start", "after" (a pass) or "recycled" (after a restart).
    pass_number
        The pass of the moment.
    process
        "client", or "worker" and its name.
    pid
        Its process number.
    rss
        Its resident size.
    peak
        The highest resident size since the process began.
    device
        Bytes in use on its GPU, by whomever; None without one.
    seconds
        When, since the session began.
    device_peak
        The most that Dask saw on the GPU, twice a second, since the process began.
    """

    moment: str
    pass_number: int
    process: str
    pid: int
    rss: int
    peak: int
    device: int | None
    seconds: float
    device_peak: int | None = None


@dataclass(frozen=True)
class TargetRelevance:
    """How much columns tell of targets.

    Attributes
    ----------
    columns, targets
        Their names, (p,) and (t,).
    hsic, rdc
        (p, t) float64 in [0, 1]; NaN where too few rows have both values.
    """

    columns: tuple[str, ...]
    targets: tuple[str, ...]
    hsic: NDArray[np.float64]
    rdc: NDArray[np.float64]

    def __repr__(self) -> str:
        """One line."""
        columns, targets = len(self.columns), len(self.targets)
        return f"<TargetRelevance: {counted(columns, 'column')}, {counted(targets, 'target')}>"

    @property
    def values(self) -> NDArray[np.float64]:
        """(p,) the mean of both measures with the target of which a column tells most; or NaN."""
        fused = (self.hsic + self.rdc) / 2
        largest = np.max(np.where(np.isnan(fused), -1.0, fused), axis=1)
        return np.where(largest < 0, np.nan, largest)
