"""What the run says that columns tell of its targets.

Covers: the relevance of every column that pass 1 kept, and of duplicates of these.
Does not cover: the measures (`dpipe.verify.relevance`), which of two columns was the better one to
keep.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from dpipe.model.records import Decision
from dpipe.verify.checks.claims import DUPLICATE, RELEVANCE_TOLERANCE, Claims, Failures
from dpipe.verify.columns import RankedColumns
from dpipe.verify.relevance import relevances

if TYPE_CHECKING:
    from numpy.typing import NDArray


def check_relevance(
    claims: Claims, columns: RankedColumns, rows: NDArray[np.int64] | None
) -> Failures:
    """The relevance of every column that has to have one, and that no other has."""
    source = {row.column: _measured(row, claims) for row in claims.decisions}
    for row in claims.decisions:
        if source[row.column] is None and row.relevance is not None:
            yield f"column {row.column!r} has a relevance, although none was to be measured"
    drawn = [row for row in claims.decisions if source[row.column] and claims.is_drawn(row.column)]
    names = list(dict.fromkeys(str(source[row.column]) for row in drawn))
    if not names:
        return
    found = relevances(claims.table, columns, names, rows, claims.options, claims.crew)
    for row in drawn:
        claims.compared["relevances of columns"] += 1
        recorded, computed = row.relevance, found[str(source[row.column])]
        if recorded is None:
            if not math.isnan(computed):
                yield f"column {row.column!r} has a relevance of {computed:.6f}, and none is stated"
        elif math.isnan(computed):
            yield f"column {row.column!r} can have no relevance, not {recorded:.6f}"
        elif not claims.note("relevance", recorded, computed) <= RELEVANCE_TOLERANCE:
            yield f"column {row.column!r} has a relevance of {computed:.6f}, not {recorded:.6f}"


def _measured(row: Decision, claims: Claims) -> str | None:
    """The column whose relevance a decision states: its own, or that of what it duplicates."""
    if not claims.options.target:
        return None
    if claims.survived(row.column, 1):
        return row.column
    return row.representative if row.reason == DUPLICATE else None
