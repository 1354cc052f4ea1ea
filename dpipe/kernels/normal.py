"""Normal scores: the ranks of a column on the scale of a standard normal variable.

Covers: the normal quantile of the centred ranks, for NumPy and CuPy arrays, and its sums.
Does not cover: the ranks (`dpipe.kernels.ranks`) or what the scores predict
(`dpipe.kernels.prediction`).

Sums of columns are sums of their normal scores where the columns are jointly normal after some
monotone change of each (a Gaussian copula); of their ranks they never are.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from dpipe.device.arrays import Array, namespace
from dpipe.kernels.marginals import Marginals, MarginalSums
from dpipe.kernels.ranks import untied_scores

# Wichura (1988), algorithm AS 241: numerator and denominator in rising powers.
_CENTRE = (
    (
        3.3871328727963666080e0,
        1.3314166789178437745e2,
        1.9715909503065514427e3,
        1.3731693765509461125e4,
        4.5921953931549871457e4,
        6.7265770927008700853e4,
        3.3430575583588128105e4,
        2.5090809287301226727e3,
    ),
    (
        1.0,
        4.2313330701600911252e1,
        6.8718700749205790830e2,
        5.3941960214247511077e3,
        2.1213794301586595867e4,
        3.9307895800092710610e4,
        2.8729085735721942674e4,
        5.2264952788528545610e3,
    ),
)
_TAIL = (
    (
        1.42343711074968357734e0,
        4.63033784615654529590e0,
        5.76949722146069140550e0,
        3.64784832476320460504e0,
        1.27045825245236838258e0,
        2.41780725177450611770e-1,
        2.27238449892691845833e-2,
        7.74545014278341407640e-4,
    ),
    (
        1.0,
        2.05319162663775882187e0,
        1.67638483018380384940e0,
        6.89767334985100004550e-1,
        1.48103976427480074590e-1,
        1.51986665636164571966e-2,
        5.47593808499534494600e-4,
        1.05075007164441684324e-9,
    ),
)
_OUTERMOST = 0.5 - 2.0**-25
"""Further out a float32 holds 1/2 alone. Where u is below exp(-25) a third formula would serve."""


def normal_scores(scores: Array) -> Array:
    """The standard normal quantile of u, in float64.

    Parameters
    ----------
    scores
        Centred ranks u - 1/2, of any shape; 0, so a missing cell too, stays 0.

    Examples
    --------
    >>> import numpy as np
    >>> normal_scores(np.array([-0.475, 0.0, 0.475])).round(3).tolist()
    [-1.96, 0.0, 1.96]
    """
    xp = namespace(scores)
    centred = xp.clip(scores.astype(xp.float64), -_OUTERMOST, _OUTERMOST)
    beyond = xp.sqrt(-xp.log(0.5 - xp.abs(centred)))
    tail = xp.copysign(_ratio(beyond - 1.6, _TAIL), centred)
    centre = centred * _ratio(0.180625 - centred * centred, _CENTRE)
    return xp.where(xp.abs(centred) <= 0.425, centre, tail)


def _ratio(argument: Array, coefficients: tuple[tuple[float, ...], tuple[float, ...]]) -> Any:
    numerator, denominator = (_polynomial(argument, powers) for powers in coefficients)
    return numerator / denominator


def _polynomial(argument: Array, powers: tuple[float, ...]) -> Array:
    value = argument * powers[-1]
    for power in powers[-2:0:-1]:
        value += power
        value *= argument
    value += powers[0]
    return value


_STRIP = 2**17


def normal_sums(scores: Array, valid: Array | None) -> MarginalSums:
    """Valid rows of each column (b, r), and the sums of their scores and of the squares, (b, 2)."""
    xp = namespace(scores)
    values = normal_scores(scores)
    if valid is None:
        count = xp.full(len(values), values.shape[1], dtype=xp.float64)
    else:
        count = valid.sum(axis=-1, dtype=xp.float64)
    return MarginalSums(count, xp.stack([values.sum(axis=-1), (values**2).sum(axis=-1)], axis=1))


@lru_cache(maxsize=4)
def _untied_square(n: int) -> float:
    strips = (
        normal_scores(untied_scores(n, start, min(start + _STRIP, n)))
        for start in range(0, n, _STRIP)
    )
    return sum(float((strip**2).sum()) for strip in strips)


def untied_normal_sums(n: int) -> MarginalSums:
    """`normal_sums` of a complete column of n rows without ties: the same for every such column.

    Examples
    --------
    >>> untied_normal_sums(3).total.round(3).tolist()
    [[0.0, 1.872]]
    """
    return MarginalSums(np.array([float(n)]), np.array([[0.0, _untied_square(n)]]))


def normal_moments(sums: MarginalSums) -> Marginals:
    """Mean and variance of each column's normal scores over its valid rows."""
    weight = np.maximum(sums.count, 1)
    mean = (sums.total[:, 0] / weight)[:, None]
    variance = np.maximum(sums.total[:, 1] / weight - mean[:, 0] ** 2, 0)[:, None, None]
    unchanged = np.ones_like(variance)
    plain = np.ones(len(mean), dtype=bool)
    return Marginals(sums.count, mean, variance, unchanged, unchanged, plain)
