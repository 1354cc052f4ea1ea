"""Pass 0: which rows take part.

Covers: the seeded draws of rows for the whole run (``--sample-rows``, ``--sample-per-file``) and
for pass 4 alone (``--nonlinear-rows``).
Does not cover: reading the rows (`dpipe.table`).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dpipe.options import Options
from dpipe.table import Table, draw_rows


def sample(table: Table, options: Options) -> NDArray[np.int64] | None:
    """Sorted row numbers of the run's sample, or None when every row takes part."""
    if options.sample_rows is None and options.sample_per_file is None:
        return None
    return draw_rows(table, options.sample_rows, options.sample_per_file, options.seed)


def nonlinear_sample(
    table: Table, rows: NDArray[np.int64] | None, options: Options
) -> NDArray[np.int64] | None:
    """Sorted positions, among the run's `rows`, that pass 4 looks at; None for all."""
    wanted = options.nonlinear_rows
    if wanted is None or wanted >= (table.n_rows if rows is None else len(rows)):
        return None
    drawn = draw_rows(table, wanted, None, options.seed, among=rows)
    return drawn if rows is None or drawn is None else rows.searchsorted(drawn)
