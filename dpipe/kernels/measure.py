"""A measure of dependence as data: what it is called, needs and computes.

Covers: the record, what its functions are, how its pairs are settled and how near a threshold.
Does not cover: the measures there are (`dpipe.kernels.measures`), several as one
(`dpipe.kernels.fusion`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from dpipe.device.arrays import Array
from dpipe.kernels.marginals import Marginals
from dpipe.kernels.moments import Moments


class Settling(StrEnum):
    """How a pair is measured again when its tile leaves it in doubt."""

    RERANKED = "reranked"
    """By ranks among the rows the two columns share: where they miss different rows."""
    FLOAT64 = "float64"
    """In float64 throughout: near the threshold, where float32 products might decide."""
    NEVER = "never"
    """Not at all: the tile's value is final, and no pair of it makes an edge."""


MARGIN = {"float32": 5e-4, "tf32": 1e-2}
"""How close to a threshold a similarity is settled in float64, by precision of the products.

The largest errors seen: 1.4e-5 with float32, 1.1e-3 with factors rounded to TF32 on a CPU
(docs/statistics.md).
"""


class Scale(StrEnum):
    """What the functions of a column are."""

    RANKS = "ranks"
    """The basis on its ranks."""
    NORMAL = "normal"
    """Its normal scores, one function (K = 1)."""
    LEADING = "leading"
    """The directions on its ranks in which HSIC's kernel varies most."""


@dataclass(frozen=True)
class Measure:
    """A measure of dependence, as data.

    Attributes
    ----------
    name
        Its name in files, in options and on the command line.
    title
        What its matrix is called on the page.
    symbol
        What stands before one of its values.
    summary
        What it is, in a line, for the documentation of its function.
    functions
        K, the basis functions it needs of a column. 1 keeps the ranks in float64; more are
        float32, and whitened where a column needs it. A tile may hold more than K, the first K in
        the order of the basis, when another measure of its fusion needs them.
    contract
        (moments, left, right, parameters) -> (b_i, b_j) similarities, NaN where undefined. `left`
        and `right` are the marginals of the two column blocks (None where no measure of the
        fusion needs them); on the diagonal they are one object, and the tile is taken to be
        symmetric.
    settling
        How pairs in doubt are settled.
    parameters
        The options it reads, which reach `contract` by name.
    widened_by
        The one of them that asks for that many functions where they are more than K.
    needs_marginals
        Whether `contract` reads the marginals.
    needs_distances
        Whether it reads `Marginals.kernel` and `Marginals.distance`.
    pairwise
        Whether a pair with too few common rows is undefined.
    signed
        Whether it tells falling from rising, in [-1, 1]; else it is in [0, 1].
    public
        Whether a user can ask for its matrix.
    scale
        What its functions are; measures of one fusion share it.
    dtype
        Type its tiles are stored in.
    bound
        The measure of fewer functions that is never smaller, if there is one.
    """

    name: str
    title: str
    symbol: str
    summary: str
    functions: int
    contract: Callable[[Moments, Marginals | None, Marginals | None, Mapping[str, Any]], Array]
    settling: Settling
    parameters: tuple[str, ...] = ()
    widened_by: str | None = None
    needs_marginals: bool = True
    needs_distances: bool = False
    pairwise: bool = True
    signed: bool = False
    public: bool = True
    scale: Scale = Scale.RANKS
    dtype: str = "float32"
    bound: str | None = None
