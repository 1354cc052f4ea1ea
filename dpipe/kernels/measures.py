"""The measures of dependence: what each computes from a tile's moments, and its record.

Covers: Spearman's rho, copula HSIC, RDC, distance correlation, and the Gram matrix of normal scores
that predictions are computed from.
Does not cover: forming the moments (`dpipe.kernels.moments`), several measures as one
(`dpipe.kernels.fusion`), choosing what is redundant.
See also: docs/statistics.md, with every formula, source and accuracy; docs/extending.md, how to add
one.

Nothing else knows a measure by its name: the engine looks it up in `MEASURES`, evaluates as many
functions as the widest of a fusion needs, and hands each the same moments; the planner, the run
folder, the page and the command line read the fields of its record.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from dpipe.device.arrays import Array, namespace
from dpipe.kernels.bound import LEADING, hsic_bound
from dpipe.kernels.contraction import Part, by_rows
from dpipe.kernels.copula import (
    BASIS,
    DISTANCE_BASIS,
    PAIR_BASIS,
    distances_of_first,
    feature_directions,
    kernel_of_first,
    kernel_root,
    self_hsic,
)
from dpipe.kernels.joint import DEGREE, Common, common, whitening
from dpipe.kernels.marginals import Marginals
from dpipe.kernels.measure import Measure, Scale, Settling
from dpipe.kernels.moments import Moments
from dpipe.kernels.spectrum import largest_square

_CONSTANT = 1e-12  # variance (of unit-variance scores) under which a column is constant on a pair


def _spearman(
    moments: Moments,
    left: Marginals | None,
    right: Marginals | None,
    parameters: Mapping[str, Any],
) -> Array:
    """Pearson correlation of the columns' marginal ranks over jointly valid rows."""
    xp = namespace(moments.product)
    count = xp.maximum(moments.count, 1)
    mean_i = moments.sum_i[:, 0, :] / count
    mean_j = moments.sum_j[:, 0, :].T / count
    variance_i = moments.square_i / count - mean_i**2
    variance_j = moments.square_j.T / count - mean_j**2
    covariance = moments.product[:, 0, :, 0] / count - mean_i * mean_j
    varies = (variance_i > _CONSTANT) & (variance_j > _CONSTANT)
    scale = xp.sqrt(xp.where(varies, variance_i * variance_j, 1))
    return xp.where(varies, xp.clip(covariance / scale, -1, 1), xp.nan)


def _gram(
    moments: Moments,
    left: Marginals | None,
    right: Marginals | None,
    parameters: Mapping[str, Any],
) -> Array:
    """Correlation of the normal scores, missing cells at the mean: positive semi-definite."""
    assert left is not None and right is not None
    xp = namespace(moments.product)
    mean_i, mean_j = (xp.asarray(side.mean[:, 0]) for side in (left, right))
    norm_i, norm_j = (
        xp.asarray(np.sqrt(side.count * side.covariance[:, 0, 0])) for side in (left, right)
    )
    centred = (
        moments.product[:, 0, :, 0]
        - moments.sum_i[:, 0, :] * mean_j[None, :]
        - moments.sum_j[:, 0, :].T * mean_i[:, None]
        + moments.count * mean_i[:, None] * mean_j[None, :]
    )
    scale = norm_i[:, None] * norm_j[None, :]
    return xp.where(scale > 0, centred / xp.where(scale > 0, scale, 1), xp.nan)


def _hsic(
    moments: Moments, left: Marginals | None, right: Marginals | None, parameters: Mapping[str, Any]
) -> Array:
    """Normalised HSIC of the ranks under a Gaussian kernel, in [0, 1]."""
    assert left is not None and right is not None
    xp = namespace(moments.product)

    def root_of(side: Marginals) -> list[np.ndarray]:
        return [_square(kernel_root().T @ side.loading[:, :BASIS])]

    (root_i,), (root_j,) = (side.worked_out("hsic", root_of) for side in (left, right))
    shared = _shared(moments, left, right, (root_i, root_j), kernel_of_first(DEGREE))

    def contract(part: Part) -> Array:
        squares, most = shared(part)
        return xp.where(most > 0, xp.clip(squares / xp.where(most > 0, most, 1), 0, 1), xp.nan)

    return by_rows(moments, left, right, contract)


def _shared(
    moments: Moments,
    left: Marginals,
    right: Marginals,
    roots: Sequence[np.ndarray],
    first: np.ndarray,
) -> Callable[[Part], tuple[Array, Array]]:
    """Squared covariances of two kernels' directions, added up; the most that they could be.

    `roots` are of the kernels of both sides, as combinations (b, a, k) of whitened functions;
    `first` holds the kernel's coefficients for the first functions of the basis. Where cells are
    missing the squares are put in proportion: as if the common rows were all rows.
    """
    xp = namespace(moments.product)
    root_i, root_j = (
        xp.asarray(side.on_gram(root)) for side, root in zip((left, right), roots, strict=True)
    )
    size_i, size_j = (xp.asarray(self_hsic(root)) for root in roots)
    on_common = common(moments, left, right)

    def of_part(part: Part) -> tuple[Array, Array]:
        squares = (part.project(root_i, root_j) ** 2).sum(axis=(2, 3))
        if on_common is not None:
            squares = squares / _sizes(on_common, part, first)
        return squares, part.left(size_i) * part.right(size_j)

    return of_part


def _sizes(pairs: Common, part: Part, first: np.ndarray) -> Array:
    """The most that two kernels could share on a pair's common rows, in units of all rows of each.

    Told by the first functions: they are nearly all of a kernel, and what they leave out cancels.
    """
    xp = namespace(pairs.left)
    kernel = xp.asarray(first)
    ratio = 1.0
    both = zip(pairs.covariances(part), pairs.own_covariances(part), strict=True)
    for there, everywhere in both:
        sizes = [xp.matmul(kernel, side) for side in (there, everywhere)]
        own = [xp.sqrt((size * xp.swapaxes(size, -1, -2)).sum(axis=(-1, -2))) for size in sizes]
        ratio = ratio * own[0] / xp.where(own[1] > 0, own[1], 1)
    return xp.maximum(ratio, _CONSTANT)


def _square(root: np.ndarray) -> np.ndarray:
    """A root of the kernel (b, a, k) in no more rows than columns: HSIC knows it but for a turn."""
    return root if root.shape[1] <= root.shape[2] else np.asarray(np.linalg.qr(root, mode="r"))


def _dcor(
    moments: Moments, left: Marginals | None, right: Marginals | None, parameters: Mapping[str, Any]
) -> Array:
    """Distance correlation of the ranks, in [0, 1]."""
    assert left is not None and right is not None
    xp = namespace(moments.product)
    roots = [_distance_root(side) for side in (left, right)]
    # What two kernels would share by chance alone, of all directions and of those in the basis.
    whole_i, whole_j = (xp.asarray(side.distance) for side in (left, right))
    kept_i, kept_j = (xp.asarray((root**2).sum(axis=(1, 2))) for root in roots)
    shared = _shared(moments, left, right, roots, distances_of_first(DEGREE))

    def contract(part: Part) -> Array:
        squares, most = shared(part)
        beyond = part.left(whole_i) * part.right(whole_j) - part.left(kept_i) * part.right(kept_j)
        share = (squares + beyond / part.count) / xp.where(most > 0, most, 1)
        return xp.where(most > 0, xp.sqrt(xp.clip(share, 0, 1)), xp.nan)

    return by_rows(moments, left, right, contract)


def _distance_root(side: Marginals) -> np.ndarray:
    """The root of the distance kernel as combinations (b, a, K) of whitened functions."""
    assert side.kernel is not None
    return side.kernel.transpose(0, 2, 1)


def _rdc(
    moments: Moments, left: Marginals | None, right: Marginals | None, parameters: Mapping[str, Any]
) -> Array:
    """Randomized dependence coefficient: the median over draws, in [0, 1]."""
    assert left is not None and right is not None
    xp = namespace(moments.product)
    degree = parameters.get("rdc_degree")
    drawn = (parameters.get("seed", 0), parameters.get("rdc_seeds", 5), degree)

    def spans_of(side: Marginals) -> list[np.ndarray]:
        spans = feature_directions(side.loading, *drawn)
        return [np.stack([side.on_gram(span) for span in spans], axis=1)]

    (spans_i,), (spans_j,) = (side.worked_out(("rdc", *drawn), spans_of) for side in (left, right))
    live_i, live_j = (_directions(spans) for spans in (spans_i, spans_j))
    spans_i, spans_j = xp.asarray(spans_i), xp.asarray(spans_j)
    varies_i, varies_j = ((spans != 0).any(axis=(2, 3)).all(axis=1) for spans in (spans_i, spans_j))
    of_common = _canonical(moments, left, right, degree or DEGREE)

    def contract(part: Part) -> Array:
        inner = part.project_each(spans_i, spans_j)
        if part.listed or xp is not np:
            # All directions alike: no digit depends on other pairs, and a card has less to start.
            squares = largest_square(inner)
        else:
            each = zip(live_i, live_j, strict=True)
            squares = xp.stack(
                [largest_square(inner[:, :, draw, :i, :j]) for draw, (i, j) in enumerate(each)],
                axis=2,
            )
        found = of_common(part, xp.median(squares, axis=2))
        varies = part.left(varies_i) & part.right(varies_j)
        return xp.where(varies, xp.sqrt(xp.clip(found, 0, 1)), xp.nan)

    return by_rows(moments, left, right, contract)


def _directions(spans: np.ndarray) -> list[int]:
    """Of each draw the most directions that a column has: they come first in (b, draws, a, k)."""
    live: list[int] = (spans != 0).any(axis=3).sum(axis=2).max(axis=0, initial=1).tolist()
    return live


def _canonical(
    moments: Moments, left: Marginals, right: Marginals, degree: int
) -> Callable[[Part, Array], Array]:
    """A function that corrects squared RDCs where a pair's columns miss different rows.

    The span of a draw is that of the cubic polynomials, as near as matters to pairs in doubt: the
    largest squared canonical correlation of the first functions on the common rows stands for it.
    """
    xp = namespace(moments.product)
    on_common = common(moments, left, right)
    if on_common is None or degree > DEGREE:
        return lambda part, squares: squares
    first_i, first_j = (
        xp.asarray(side.on_gram(side.loading[:, :degree])) for side in (left, right)
    )

    def corrected(part: Part, squares: Array) -> Array:
        covariance = part.project(first_i, first_j)
        white_i, white_j = (
            whitening(side[..., :degree, :degree]) for side in on_common.covariances(part)
        )
        inner = xp.matmul(xp.matmul(white_i, covariance), xp.swapaxes(white_j, -1, -2))
        return xp.where(on_common.partial[part.rows, part.columns], largest_square(inner), squares)

    return corrected


MEASURES: dict[str, Measure] = {
    measure.name: measure
    for measure in (
        Measure(
            name="spearman",
            title="Spearman \N{GREEK SMALL LETTER RHO}",
            symbol="\N{GREEK SMALL LETTER RHO}",
            summary="Spearman correlation; missing cells pair by pair",
            functions=1,
            contract=_spearman,
            settling=Settling.RERANKED,
            needs_marginals=False,
            signed=True,
        ),
        Measure(
            name="gram",
            title="Correlation of normal scores",
            symbol="r",
            summary="correlation of the normal scores, missing cells at the mean",
            functions=1,
            contract=_gram,
            settling=Settling.NEVER,
            pairwise=False,
            signed=True,
            public=False,
            scale=Scale.NORMAL,
            dtype="float64",
        ),
        Measure(
            name="hsic",
            title="HSIC",
            symbol="HSIC",
            summary="normalised copula HSIC in [0, 1] (Gretton et al. 2005)",
            functions=PAIR_BASIS,
            contract=_hsic,
            settling=Settling.FLOAT64,
            bound="hsic_bound",
        ),
        Measure(
            name="hsic_bound",
            title="Upper bound of HSIC",
            symbol="HSIC <=",
            summary="what HSIC is at most, from its kernel's leading directions",
            functions=LEADING,
            contract=hsic_bound,
            settling=Settling.FLOAT64,
            public=False,
            scale=Scale.LEADING,
        ),
        Measure(
            name="rdc",
            title="RDC",
            symbol="RDC",
            summary="randomized dependence coefficient in [0, 1] (Lopez-Paz et al. 2013)",
            functions=PAIR_BASIS,
            contract=_rdc,
            settling=Settling.FLOAT64,
            parameters=("seed", "rdc_seeds", "rdc_degree"),
            widened_by="rdc_degree",
        ),
        Measure(
            name="dcor",
            title="Distance correlation",
            symbol="dCor",
            summary="distance correlation of the ranks in [0, 1] (Szekely et al. 2007)",
            functions=DISTANCE_BASIS,
            contract=_dcor,
            settling=Settling.FLOAT64,
            needs_distances=True,
        ),
    )
}
"""Every measure by its name."""


def public_measures() -> tuple[str, ...]:
    """Names of the measures whose matrix a user can ask for."""
    return tuple(name for name, measure in MEASURES.items() if measure.public)
