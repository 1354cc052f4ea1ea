"""What every pass works with.

Covers: the context of a run, where its matrices go.
Does not cover: the grid of tiles (`dpipe.engine.grid`), the rules of a pass (its own module) or
their order (`dpipe.pipeline`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from dpipe.choice.priority import Priority
from dpipe.engine.machine import LIMITS, Limits, Machine
from dpipe.kernels.fusion import Fusion
from dpipe.kernels.measure import Settling
from dpipe.model.events import Emit
from dpipe.model.records import ColumnStatistics, Pairs
from dpipe.options import Options
from dpipe.rankstore import Store, StoredColumn
from dpipe.session import Session
from dpipe.session.device import local_machine

Prepared = Mapping[str, StoredColumn]
"""Column name -> its statistics and where it lies: what pass 1 leaves in the rank store."""


class MatrixFolder(Protocol):
    """Where matrices go: the run folder, as a pass sees it."""

    def write_matrix(
        self, name: str, columns: Sequence[str]
    ) -> AbstractContextManager[NDArray[np.float32]]:
        """A matrix assembled on disk in place, with its columns."""

    def write_pairs(self, number: int, columns: Sequence[str], listed: Mapping[str, Pairs]) -> None:
        """The similar pairs of a pass."""

    def write_statistics(self, statistics: Iterable[ColumnStatistics]) -> None:
        """The statistics of every column."""

    def write_rank_sample(self, columns: Sequence[str], codes: NDArray[np.uint8]) -> None:
        """Ranks of a few rows."""


PAIRS_FROM = 0.7
"""The weakest similarity of a listed pair where nobody asked for another."""


@dataclass(frozen=True)
class Context:
    """A run as its passes see it.

    Attributes
    ----------
    session
        The Dask cluster.
    store
        The rank store.
    options
        What the user asked for.
    emit
        Who hears what happens.
    n_rows
        Rows that take part.
    folder
        Where matrices and pairs go, None where nobody wants them.
    nonlinear_rows
        The rows that pass 4 looks at, None for all of them.
    priority
        The user's wishes and the relevance of columns.
    limits
        The sizes that the plan keeps to.
    """

    session: Session
    store: Store
    options: Options
    emit: Emit
    n_rows: int
    folder: MatrixFolder | None = None
    nonlinear_rows: NDArray[np.int64] | None = None
    priority: Priority = field(default_factory=Priority)
    limits: Limits = LIMITS

    @property
    def machine(self) -> Machine:
        """The workers as the planner sees them."""
        session = self.session
        return Machine(
            session.n_workers,
            max(1, session.threads_per_worker),
            session.memory_limit,
            session.device_memory,
            self.limits,
            local_machine()[1] if session.owned else 0,
        )

    def rows_of(self, fusion: Fusion) -> NDArray[np.int64] | None:
        """The rows that measures look at, None for all of them."""
        return None if fusion.settling is Settling.RERANKED else self.nonlinear_rows

    def pairs_floor(self, threshold: float) -> float:
        """The weakest similarity of a pair that is listed for a reader; infinite for none."""
        if self.folder is None:
            return math.inf
        wanted = self.options.pairs_from
        return min(PAIRS_FROM if wanted is None else wanted, threshold)

    def wants_matrix(self, n_columns: int) -> bool:
        """Whether the matrices of `n_columns` columns are to be written."""
        return self.folder is not None and 4 * n_columns**2 <= self.options.matrix_budget
