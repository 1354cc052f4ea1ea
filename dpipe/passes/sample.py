"""Pass 0: which rows take part.

Covers: the seeded draws of rows for the whole run (``--sample-rows``, ``--sample-per-file``) and
for pass 4 alone (``--nonlinear-rows``).
Does not cover: reading the rows (`dpipe.table`).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dpipe.config import Options
from dpipe.table import Table, draw_rows


def sample(table: Table, options: Options) -> NDArray[np.int64] | None:
    """Sorted row numbers of the run's sample, or None when every row takes part."""
    if options.sample_rows is None and options.sample_per_file is None:
        return None
    return draw_rows(table, options.sample_rows, options.sample_per_file, options.seed)


def nonlinear_rows(n_rows: int, options: Options) -> NDArray[np.int64] | None:
    """Sorted positions (among the run's rows) that pass 4 looks at; None for all."""
    wanted = options.nonlinear_rows
    if wanted is None or wanted >= n_rows:
        return None
    generator = np.random.Generator(np.random.PCG64([options.seed, 4]))
    return np.sort(generator.choice(n_rows, wanted, replace=False, shuffle=False)).astype(np.int64)
