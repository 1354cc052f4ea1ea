"""The measures as values: what each is called, needs and computes from a tile's moments.

Covers: Spearman's rho, copula HSIC, RDC, distance correlation, and the Gram matrix of normal scores
that predictions are computed from; the fusion of several.
Does not cover: forming the moments (`dpipe.kernels.moments`) or choosing what is redundant.
See also: docs/statistics.md, with every formula, source and accuracy; docs/extending.md, how to add
one.

Nothing else knows a measure by its name: the engine looks it up in `MEASURES`, evaluates as many
functions as the widest of a fusion needs, and hands each the same moments; the planner, the run
folder, the page and the command line read the fields of its record.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import Any

import numpy as np

from dpipe.device.arrays import Array, namespace
from dpipe.errors import InputError
from dpipe.kernels.basis import legendre
from dpipe.kernels.contraction import by_rows, project
from dpipe.kernels.draws import rdc_draws
from dpipe.kernels.marginals import Marginals
from dpipe.kernels.moments import Moments

BASIS = 12
"""Functions that a column's marginals know: with them HSIC is within 1e-6 of the dense estimate."""

PAIR_BASIS = 10
"""Those that HSIC and RDC multiply: still within 1e-6, at two thirds of the operations."""

DISTANCE_BASIS = 16
"""Functions of distance correlation, whose kernel has a kink: it is then within 1e-3 on ranks."""

HSIC_BANDWIDTH = 1 - 1 / np.sqrt(2)
"""Median distance of two uniform draws, the usual bandwidth of the Gaussian kernel."""

RDC_SCALE = 1 / 6
RDC_TOLERANCE = 1e-7

_CONSTANT = 1e-12  # variance (of unit-variance scores) under which a column is constant on a pair


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
    """What a measure of one function (K = 1) evaluates of each cell."""

    RANKS = "ranks"
    NORMAL = "normal"


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
        What its function is, where K = 1; measures of one fusion share it.
    dtype
        Type its tiles are stored in.
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


@dataclass(frozen=True)
class Fusion:
    """Measures of one tile grid, and the weighted mean of them that decides.

    Attributes
    ----------
    weights
        (name, weight) of each measure, by name. A measure of weight 0 is computed and has a
        matrix, but no say.

    Examples
    --------
    >>> fusion = Fusion.of({"rdc": 0.5, "hsic": 0.5})
    >>> fusion.name, fusion.title, fusion.functions
    ('hsic+rdc', 'HSIC + RDC', 10)
    """

    weights: tuple[tuple[str, float], ...]

    @classmethod
    def of(cls, weights: Mapping[str, float]) -> Fusion:
        """The fusion that ``--weights`` asks for.

        Raises
        ------
        InputError
            When a name is no measure, or none that can be fused.
        """
        fusible = [
            name for name, measure in MEASURES.items() if measure.settling is Settling.FLOAT64
        ]
        for name in weights:
            if name not in fusible:
                raise InputError(
                    f"--weights takes weights of {', '.join(fusible)}, not of {name!r}."
                )
        return cls(tuple(sorted(weights.items())))

    @classmethod
    def single(cls, name: str) -> Fusion:
        """A measure by itself, of any kind."""
        return cls(((name, 1.0),))

    @property
    def names(self) -> tuple[str, ...]:
        """The measures' names."""
        return tuple(name for name, _ in self.weights)

    @property
    def measures(self) -> tuple[Measure, ...]:
        """The measures themselves."""
        return tuple(MEASURES[name] for name in self.names)

    @property
    def functions(self) -> int:
        """K of the widest measure."""
        return max(measure.functions for measure in self.measures)

    def functions_for(self, parameters: Mapping[str, Any]) -> int:
        """The same where parameters may ask for more.

        Examples
        --------
        >>> Fusion.single("rdc").functions_for({"rdc_degree": 11})
        11
        """
        asked = (parameters.get(measure.widened_by or "") or 0 for measure in self.measures)
        return max(self.functions, *asked)

    @property
    def scale(self) -> Scale:
        """What the function of each column is, where K = 1."""
        return self.measures[0].scale

    @property
    def needs_marginals(self) -> bool:
        """Whether the columns' marginal moments come first: whitening needs them too."""
        return self.functions > 1 or any(measure.needs_marginals for measure in self.measures)

    @property
    def needs_distances(self) -> bool:
        """Whether the marginals hold distances."""
        return any(measure.needs_distances for measure in self.measures)

    @property
    def settling(self) -> Settling:
        """How pairs in doubt are settled: one way for all, as `of` sees to."""
        return self.measures[0].settling

    @property
    def parameters(self) -> tuple[str, ...]:
        """The options that its measures read."""
        return tuple(dict.fromkeys(name for each in self.measures for name in each.parameters))

    @property
    def singles(self) -> tuple[Measure, ...]:
        """The measures that are not the mean itself."""
        return tuple(measure for measure in self.measures if measure.name != self.name)

    @property
    def deciding(self) -> tuple[Measure, ...]:
        """The measures that have a say."""
        return tuple(MEASURES[name] for name, weight in self.weights if weight > 0)

    @property
    def name(self) -> str:
        """What the mean is called in the decisions."""
        return "+".join(measure.name for measure in self.deciding)

    @property
    def title(self) -> str:
        """The same for a reader."""
        return " + ".join(measure.title for measure in self.deciding)

    @property
    def symbol(self) -> str:
        """What stands before one of its values."""
        return "+".join(measure.symbol for measure in self.deciding)

    @property
    def signed(self) -> bool:
        """Whether the mean tells falling from rising."""
        return all(measure.signed for measure in self.deciding)

    def mean(self, values: Mapping[str, Array]) -> Array:
        """The weighted mean of the measures' values."""
        weighted = [weight * values[name] for name, weight in self.weights if weight > 0]
        return sum(weighted) / sum(weight for _, weight in self.weights)


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
    roots = [_square(kernel_root().T @ side.loading[:, :BASIS]) for side in (left, right)]
    root_i, root_j = (
        xp.asarray(side.on_gram(root)) for side, root in zip((left, right), roots, strict=True)
    )
    size_i, size_j = (xp.asarray(self_hsic(root)) for root in roots)

    def contract(part: slice, others: slice, covariance: Array) -> Array:
        return (project(covariance, root_i[part], root_j[others]) ** 2).sum(axis=(2, 3)).T

    scale = size_i[:, None] * size_j[None, :]
    values = by_rows(moments, contract, left is right) / xp.where(scale > 0, scale, 1)
    return xp.where(scale > 0, xp.clip(values, 0, 1), xp.nan)


def _square(root: np.ndarray) -> np.ndarray:
    """A root of the kernel (b, a, k) in no more rows than columns: HSIC knows it but for a turn."""
    return root if root.shape[1] <= root.shape[2] else np.asarray(np.linalg.qr(root, mode="r"))


def self_hsic(root: np.ndarray) -> np.ndarray:
    """Square root of each column's HSIC with itself, from its root of the kernel (b, a, K)."""
    return np.asarray(np.sqrt(((root @ root.transpose(0, 2, 1)) ** 2).sum(axis=(1, 2))))


def _dcor(
    moments: Moments, left: Marginals | None, right: Marginals | None, parameters: Mapping[str, Any]
) -> Array:
    """Distance correlation of the ranks, in [0, 1]."""
    assert left is not None and right is not None
    xp = namespace(moments.product)
    roots = [_distance_root(side) for side in (left, right)]
    root_i, root_j = (
        xp.asarray(side.on_gram(root)) for side, root in zip((left, right), roots, strict=True)
    )
    size_i, size_j = (xp.asarray(self_hsic(root)) for root in roots)
    # What two kernels would share by chance alone, of all directions and of those in the basis.
    whole_i, whole_j = (xp.asarray(side.distance) for side in (left, right))
    kept_i, kept_j = (xp.asarray((root**2).sum(axis=(1, 2))) for root in roots)
    beyond = whole_i[:, None] * whole_j[None, :] - kept_i[:, None] * kept_j[None, :]

    def contract(part: slice, others: slice, covariance: Array) -> Array:
        return (project(covariance, root_i[part], root_j[others]) ** 2).sum(axis=(2, 3)).T

    squares = by_rows(moments, contract, left is right) + beyond / xp.maximum(moments.count, 1)
    scale = size_i[:, None] * size_j[None, :]
    values = xp.sqrt(xp.clip(squares / xp.where(scale > 0, scale, 1), 0, 1))
    return xp.where(scale > 0, values, xp.nan)


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
    drawn = (
        parameters.get("seed", 0),
        parameters.get("rdc_seeds", 5),
        parameters.get("rdc_degree"),
    )

    def spans_of(side: Marginals) -> list[np.ndarray]:
        spans = feature_spans(*drawn)
        return [side.on_gram(orthonormal_span(side.loading[:, :BASIS], span)) for span in spans]

    spans_i, spans_j = (
        [xp.asarray(span) for span in side.worked_out(("rdc", *drawn), spans_of)]
        for side in (left, right)
    )

    def contract(part: slice, others: slice, covariance: Array) -> Array:
        draws = [
            largest_square(project(covariance, span_i[part], span_j[others])).T
            for span_i, span_j in zip(spans_i, spans_j, strict=True)
        ]
        return xp.median(xp.stack(draws), axis=0)

    values = xp.sqrt(xp.clip(by_rows(moments, contract, left is right), 0, 1))
    varies_i, varies_j = (
        xp.stack([(span != 0).any(axis=(1, 2)) for span in spans]).all(axis=0)
        for spans in (spans_i, spans_j)
    )
    return xp.where(varies_i[:, None] & varies_j[None, :], values, xp.nan)


def largest_square(inner: Array) -> Array:
    """The largest squared singular value of each matrix (..., d, e).

    Up to three by three in closed form, the angle of which (Smith 1961) costs half of the digits
    where two values are equal: 1e-8. LAPACK would take ten times as long.

    Examples
    --------
    >>> import numpy as np
    >>> largest_square(np.array([[[0.6, 0.0], [0.0, 0.8]]])).round(12).tolist()
    [0.64]
    """
    xp = namespace(inner)
    if inner.shape[-2] > inner.shape[-1]:
        inner = xp.swapaxes(inner, -1, -2)
    size = inner.shape[-2]
    if size > 3:
        return xp.linalg.eigvalsh(xp.matmul(inner, xp.swapaxes(inner, -1, -2)))[..., -1]
    rows = [inner[..., k, :] for k in range(size)]
    a, *rest = ((row * row).sum(axis=-1) for row in rows)
    if size == 1:
        return a
    b, d = rest[0], (rows[0] * rows[1]).sum(axis=-1)
    if size == 2:
        return (a + b) / 2 + xp.sqrt(((a - b) / 2) ** 2 + d * d)
    c, e, f = rest[1], (rows[1] * rows[2]).sum(axis=-1), (rows[0] * rows[2]).sum(axis=-1)
    middle = (a + b + c) / 3
    a, b, c = a - middle, b - middle, c - middle
    spread = xp.sqrt((a * a + b * b + c * c + 2 * (d * d + e * e + f * f)) / 6)
    product = a * (b * c - e * e) - d * (d * c - e * f) + f * (d * e - b * f)
    cosine = product / 2 / xp.where(spread > 1e-100, spread, 1) ** 3
    return middle + 2 * spread * xp.cos(xp.arccos(xp.clip(cosine, -1, 1)) / 3)


def orthonormal_span(loading: np.ndarray, features: np.ndarray) -> np.ndarray:
    """Rows spanning each column's features in its whitened coordinates: (b, d, K), zero-padded.

    Gram-Schmidt with column pivoting on the features (b, K, m) themselves, stopping at the relative
    tolerance of R's `cancor`: which directions a column has depends on how its features scale, so
    the decision is taken there and not among already whitened directions.
    """
    residual = np.matmul(loading.transpose(0, 2, 1), features)  # (b, K, m)
    b, k, _ = residual.shape
    columns = np.arange(b)
    directions = []
    largest = np.zeros(b)
    for step in range(k):
        norms = np.linalg.norm(residual, axis=1)
        pivot = np.argmax(norms, axis=1)
        norm = norms[columns, pivot]
        largest = np.maximum(largest, norm) if step == 0 else largest
        lives = (norm > RDC_TOLERANCE * largest) & (norm > 0)
        if not lives.any():
            break
        direction = residual[columns, :, pivot] / np.where(lives, norm, 1)[:, None]
        direction[~lives] = 0
        for _ in range(2):  # twice is enough (Kahan; Parlett 1980)
            overlap = np.einsum("bk,bkm->bm", direction, residual)
            residual = residual - direction[:, :, None] * overlap[:, None, :]
        residual[~lives] = 0
        directions.append(direction)
    return np.stack(directions, axis=1) if directions else np.zeros((b, 1, k))


@lru_cache
def _quadrature() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Gauss-Legendre nodes u (64,), weights (64,) on [0, 1] and the basis (K, 64) there."""
    nodes, weights = np.polynomial.legendre.leggauss(64)
    return (nodes + 1) / 2, weights / 2, legendre(nodes[None] / 2, BASIS)[0]


@lru_cache
def kernel_root() -> np.ndarray:
    """A (K, K) with A A' = T, the Gaussian kernel's coefficients in the basis."""
    u, weights, basis = _quadrature()
    kernel = np.exp(-((u[:, None] - u[None, :]) ** 2) / (2 * HSIC_BANDWIDTH**2))
    weighted = basis * weights
    values, vectors = np.linalg.eigh(weighted @ kernel @ weighted.T)
    return np.asarray(vectors * np.sqrt(np.clip(values, 0, None)))


@lru_cache
def feature_spans(seed: int, seeds: int, degree: int | None) -> tuple[np.ndarray, ...]:
    """Coefficients (K, m) of each draw's features in the basis."""
    if degree is not None:
        return (np.eye(BASIS)[:, :degree],)
    u, weights, basis = _quadrature()
    return tuple(
        (basis * weights) @ np.sin(RDC_SCALE / 2 * (np.outer(u, w) + b))
        for w, b in rdc_draws(seed, seeds)
    )


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
