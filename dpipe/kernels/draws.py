"""The random features of RDC: a convention that whoever computes it again has to share.

Covers: the seeded draws, the same for every column.
Does not cover: RDC itself (`dpipe.kernels.measures`; recomputed by `dpipe.verify`).
"""

from __future__ import annotations

import numpy as np

RDC_FEATURES = 20


def rdc_draws(seed: int, count: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """The random features of RDC: `count` draws of (w, b), each (20,) standard normal.

    One draw serves all columns, so a column's name or position never changes its value.

    Examples
    --------
    >>> (w, b), = rdc_draws(seed=0, count=1)
    >>> w.shape, b.shape
    ((20,), (20,))
    """
    children = np.random.SeedSequence(seed).spawn(count)
    generators = [np.random.Generator(np.random.PCG64(child)) for child in children]
    return [
        (rng.standard_normal(RDC_FEATURES), rng.standard_normal(RDC_FEATURES)) for rng in generators
    ]
