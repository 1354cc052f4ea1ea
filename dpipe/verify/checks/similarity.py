"""The claims of passes 2 and 4: what is similar went, and what stayed is not.

Covers: the value of every drop, pairs of kept columns.
Does not cover: the measures (`dpipe.verify.dependence`), how pairs are found
(`dpipe.verify.screen`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from dpipe.options import Options
from dpipe.table.sample import nonlinear_sample
from dpipe.verify.checks.claims import (
    DEGREE_TOLERANCE,
    NONLINEAR_TOLERANCE,
    SPEARMAN_TOLERANCE,
    Claims,
    Failures,
)
from dpipe.verify.columns import RankedColumns
from dpipe.verify.dependence import Pair, rhos, similarities
from dpipe.verify.screen import nonlinear_pairs, spearman_pairs, values_of

if TYPE_CHECKING:
    from numpy.typing import NDArray


def check_spearman(
    claims: Claims, columns: RankedColumns, rows: NDArray[np.int64] | None
) -> Failures:
    """The rho of every drop of pass 2, and that no two kept columns reach the threshold."""
    options, crew = claims.options, claims.crew
    measure = partial(rhos, min_valid=options.required_rows)
    yield from _check_drops(claims, 2, columns, measure, SPEARMAN_TOLERANCE)
    limit = options.spearman_threshold + SPEARMAN_TOLERANCE
    kept = [name for name in claims.selected if name in columns.index]
    pairs = spearman_pairs(columns, kept, limit, options.required_rows, crew)
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
    has_degree = options.rdc_degree is not None and options.shares.get("rdc", 0) > 0
    tolerance = DEGREE_TOLERANCE if has_degree else NONLINEAR_TOLERANCE
    yield from _check_drops(claims, 4, columns, measure, tolerance)
    limit = options.nonlinear_threshold + tolerance
    kept = [name for name in claims.selected if name in columns.index]
    pairs = nonlinear_pairs(columns, kept, limit, options, claims.crew)
    yield from _check_kept(claims, kept, pairs, fused(options), options.nonlinear_threshold)


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


def fused(options: Options) -> str:
    """What the similarity of pass 4 is called: the measures that have a say, by name."""
    return "+".join(name for name, weight in sorted(options.shares.items()) if weight > 0)
