"""Which measures a pass computes: its entry in the registry and the user's weights, made one.

Covers: the fusion of a pass, its matrices and other arrays.
Does not cover: the measures (`dpipe.kernels.measures`), the entries (`dpipe.model.registry`).
"""

from __future__ import annotations

from dpipe.kernels.fusion import Fusion
from dpipe.model.registry import Pass
from dpipe.options import Options
from dpipe.options.kinds import parse_weights


def fusion_of(this: Pass, options: Options) -> Fusion:
    """The measures that a pass computes, for one that does.

    Raises
    ------
    InputError
        When ``--weights`` names what cannot be fused.

    Examples
    --------
    >>> from dpipe.model.registry import PASSES
    >>> fusion_of(PASSES[4], Options()).name
    'hsic+rdc'
    """
    if this.measure is not None:
        return Fusion.single(this.measure)
    return Fusion.of(parse_weights(getattr(options, this.weights or "")))


def arrays_of(this: Pass, options: Options) -> tuple[str, ...]:
    """The arrays that a pass leaves beside its decisions, matrices where the budget allows them.

    Examples
    --------
    >>> from dpipe.model.registry import PASSES
    >>> arrays_of(PASSES[1], Options()), arrays_of(PASSES[4], Options())
    (('rank_sample',), ('hsic', 'rdc'))
    """
    if not this.measures_pairs:
        return this.arrays
    measures = fusion_of(this, options).measures
    return (*this.arrays, *(measure.name for measure in measures if measure.public))
