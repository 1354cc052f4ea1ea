"""What a finished run would have kept at another threshold, from its table of pairs alone.

Covers: the columns that one pass would keep, for any threshold that the pairs reach down to.
Does not cover: what later passes would then make of them, which takes a run; finding the pairs
(`dpipe.engine.grid`).

A pass decides from its similar pairs, the missing cells of its columns and the user's wishes. All
of it is in the run folder, so the same code gives the answer of a run at that threshold.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from dpipe.choice.priority import Priority, in_millionths
from dpipe.choice.redundant import decide_at
from dpipe.errors import InputError
from dpipe.model.records import Decision, Edges
from dpipe.model.registry import PASSES
from dpipe.runfolder import RunFolder

DOUBT = 5e-4
"""How close to a threshold a value that was not settled leaves a pair in doubt."""


@dataclass(frozen=True)
class WhatIf:
    """What a pass would keep at a threshold.

    Attributes
    ----------
    number, measure, threshold
        The pass, the similarity it looks at, the threshold.
    kept
        The columns it would keep, in input order.
    in_doubt
        Pairs so close to the threshold that a run would settle them first.
    """

    number: int
    measure: str
    threshold: float
    kept: tuple[str, ...]
    in_doubt: int


class FinishedPass:
    """A pass of a finished run that drops similar columns, to be asked again.

    Parameters
    ----------
    folder
        The run folder.
    number
        The pass.

    Raises
    ------
    InputError
        When the run did no such pass, or the folder cannot be read.
    """

    def __init__(self, folder: str | Path, number: int) -> None:
        self.number = number
        self._folder = RunFolder(folder)
        run = self._folder.read_run()
        self._options: dict[str, Any] = run["options"]
        known = number in self._options["passes"] and PASSES[number].pairwise
        if not known or PASSES[number].threshold is None:
            raise InputError(f"{folder} holds no pass {number} that has a threshold of pairs.")
        self._decisions = tuple(d for d in self._folder.read_decisions() if self._received(d))

    def _received(self, decision: Decision) -> bool:
        if decision.decision == "kept":
            return True
        return decision.decision == "dropped" and (decision.pass_number or 0) >= self.number

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns the pass received, in input order."""
        return tuple(decision.column for decision in self._decisions)

    @property
    def threshold(self) -> float:
        """The threshold of the run."""
        name = PASSES[self.number].threshold
        assert name is not None
        return float(self._options[name])

    @cached_property
    def floor(self) -> float:
        """The lowest threshold that can be asked for."""
        return self._folder.pairs_floor(self.number)

    @cached_property
    def _priority(self) -> Priority:
        known = {d.column: d.relevance for d in self._decisions if d.relevance is not None}
        return Priority(self._options["keep"], self._options["prefer"], in_millionths(known))

    @cached_property
    def _pairs(self) -> tuple[str, Edges, Any]:
        table = self._folder.read_pairs(self.number)
        place = {name: index for index, name in enumerate(self.columns)}
        first, second = (
            np.array([place[name] for name in table[name].to_pylist()], dtype=np.int64)
            for name in ("column_a", "column_b")
        )
        low, high = np.minimum(first, second), np.maximum(first, second)
        order = np.lexsort((high, low))
        value, exact = table["value"].to_numpy()[order], table["exact"].to_numpy()[order]
        measure = table["measure"][0].as_py() if len(table) else PASSES[self.number].name
        return measure, Edges(low[order], high[order], value), exact

    def at(self, threshold: float) -> WhatIf:
        """What the pass would keep at a threshold.

        Raises
        ------
        InputError
            When the run left no pairs down to there.
        """
        if not self.floor <= threshold <= 1:
            raise InputError(
                f"the run lists the pairs of pass {self.number} from {self.floor:g} on: a "
                f"threshold of {threshold:g} takes a run with a lower --pairs-from."
            )
        measure, edges, exact = self._pairs
        _, choice = decide_at(
            threshold,
            self.columns,
            edges,
            seed=self._options["seed"],
            priority=self._priority,
            n_missing=[decision.n_missing or 0 for decision in self._decisions],
        )
        close = ~exact & (np.abs(np.abs(edges.value) - threshold) <= DOUBT)
        kept = tuple(self.columns[index] for index in choice.kept)
        return WhatIf(self.number, measure, threshold, kept, int(np.count_nonzero(close)))


def passes_of(folder: str | Path) -> tuple[FinishedPass, ...]:
    """The passes of a finished run that can be asked again, in their order."""
    asked = RunFolder(folder).read_run()["options"]["passes"]
    numbers = [n for n in sorted(asked) if PASSES[n].threshold is not None and PASSES[n].pairwise]
    return tuple(FinishedPass(folder, number) for number in numbers)


def table_of(finished: FinishedPass) -> tuple[WhatIf, ...]:
    """The pass at its own threshold, and at every twentieth that its pairs reach down to."""
    steps = {round(step / 20, 2) for step in range(1, 20) if step / 20 >= finished.floor}
    return tuple(finished.at(threshold) for threshold in sorted(steps | {finished.threshold}))
