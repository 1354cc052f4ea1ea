"""What a finished run would have kept at another threshold, from its table of pairs alone.

Covers: the columns that one pass would keep, for any threshold that the pairs reach down to; what
of a run's selection that leaves open.
Does not cover: finding the pairs (`dpipe.engine.grid`), showing what comes of it (`dpipe.report`).

A pass decides from its similar pairs, the missing cells of its columns and the user's wishes. All
of it is in the run folder, so the same code gives the answer of a run at that threshold. Pass 3
decides from all columns together, which pairs cannot tell: what it would make of another answer of
pass 2, and what it would take back after another one of pass 4, takes a run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import chain, starmap
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray

from dpipe.choice.certificate import came_back
from dpipe.choice.priority import Priority, in_millionths
from dpipe.choice.redundant import decide_at
from dpipe.choice.representatives import Choice
from dpipe.common.processes import Processes, cores, serves
from dpipe.common.words import counted
from dpipe.errors import InputError
from dpipe.kernels.measure import MARGIN
from dpipe.model.records import Decision, Pairs
from dpipe.model.registry import PASSES, Pass
from dpipe.runfolder import RunFolder

MOST_HELPERS = 8
"""Processes that share the answers: there are twenty to a hundred, some of which take longest."""
FEW_PAIRS = 2**12
"""Pairs whose answers one process has before others have imported what they need."""
PAIR_BYTES = 320
"""Bytes a pair that an answer takes: 240 were measured with 5,000,000 pairs, 48 are sent."""


@dataclass(frozen=True)
class WhatIf:
    """What a pass would keep at a threshold.

    Attributes
    ----------
    number, measure, threshold
        The pass, the similarity it looks at, the threshold.
    kept
        The columns it would keep of those it received, in input order.
    in_doubt
        Pairs so close to the threshold that a run would settle them first.
    left_open
        What else a run at this threshold would do that takes a run to tell, in a sentence, or what
        came back in the run that was; empty where `kept` is what it would select.
    """

    number: int
    measure: str
    threshold: float
    kept: tuple[str, ...]
    in_doubt: int
    left_open: str

    def __repr__(self) -> str:
        """One line."""
        kept = counted(len(self.kept), "column")
        return f"<WhatIf: pass {self.number} ({self.measure}) keeps {kept} at {self.threshold:g}>"


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
        self._where = folder
        self._folder = RunFolder(folder)
        run = self._folder.read_run()
        self._options: dict[str, Any] = run["options"]
        known = number in self._options["passes"] and PASSES[number].pairwise
        if not known or PASSES[number].threshold is None:
            raise InputError(f"{folder} holds no pass {number} that has a threshold of pairs.")
        self._passes = tuple(n for n, entry in PASSES.items() if _ran(entry, self._options))
        every = self._folder.read_decisions()
        entries = chain.from_iterable(self._folder.read_communities().values())
        self._came_back = {d.column for d in every if came_back(d)} | {
            entry["column"] for entry in entries if entry.get("came_back")
        }
        self._decisions = tuple(d for d in every if self._received(d))
        self._predicted = tuple(d.column for d in every if self._was_predicted(d))
        self._back = tuple(
            d.column
            for d in every
            if d.column in self._came_back
            and (d.decision == "kept" or (d.pass_number or 0) > self.number)
            and self._was_predicted(d)
        )

    def _received(self, decision: Decision) -> bool:
        dropped_before = (decision.pass_number or self.number) < self.number
        took_part = decision.decision in ("kept", "dropped") and not dropped_before
        return took_part and not self._was_predicted(decision)

    def _was_predicted(self, decision: Decision) -> bool:
        """Whether a pass before dropped a column for what several others tell of it."""
        joint = [n for n in self._passes if n < self.number and not PASSES[n].pairwise]
        return decision.pass_number in joint or (bool(joint) and decision.column in self._came_back)

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """The columns the pass received, in input order."""
        return tuple(decision.column for decision in self._decisions)

    @cached_property
    def kept(self) -> tuple[str, ...]:
        """The columns it kept in the run, in input order."""
        return tuple(d.column for d in self._decisions if d.pass_number != self.number)

    @property
    def threshold(self) -> float:
        """The threshold of the run."""
        name = PASSES[self.number].threshold
        assert name is not None
        return float(self._options[name])

    @property
    def floor(self) -> float:
        """The lowest threshold that can be asked for; infinite where no column was compared."""
        return self._stored[1].floor

    @property
    def n_pairs(self) -> int:
        """The pairs that it is asked by."""
        return len(self._stored[1].edges)

    @cached_property
    def _stored(self) -> tuple[str, Pairs]:
        return self._folder.deciding_pairs(self.number, self.columns)

    @cached_property
    def _priority(self) -> Priority:
        known = {d.column: d.relevance for d in self._decisions if d.relevance is not None}
        return Priority(self._options["keep"], self._options["prefer"], in_millionths(known))

    def at(self, threshold: float) -> WhatIf:
        """What the pass would keep at a threshold.

        Raises
        ------
        InputError
            When the run left no pairs down to there.
        """
        return self.at_each([threshold])[0]

    def at_each(
        self, thresholds: Sequence[float], processes: Processes | None = None
    ) -> tuple[WhatIf, ...]:
        """What the pass would keep at each threshold, asked in this process or in some others.

        Raises
        ------
        InputError
            When the run left no pairs down to one of them.
        """
        for threshold in thresholds:
            self._check(threshold)
        tasks = ((threshold,) for threshold in thresholds)
        each = starmap if processes is None else processes.each
        return tuple(map(self._answer, thresholds, each(self._decide, tasks)))

    def _check(self, threshold: Any) -> None:
        if math.isinf(self.floor):
            raise InputError(f"pass {self.number} of the run in {self._where} compared no columns.")
        if not isinstance(threshold, int | float | np.number):
            raise InputError(f"a threshold must be a number, not {threshold!r}.")
        if not 0 <= threshold <= 1:
            raise InputError(f"a threshold must be between 0 and 1, not {threshold:g}.")
        if threshold < self.floor:
            raise InputError(
                f"the run lists the pairs of pass {self.number} from {self.floor:g} on: a "
                f"threshold of {threshold:g} takes a run with a lower --pairs-from."
            )

    @cached_property
    def _decide(self) -> Callable[[float], tuple[NDArray[np.int64], Choice]]:
        """How the pass decides; other processes can call it."""
        return partial(
            decide_at,
            columns=self.columns,
            edges=self._stored[1].edges,
            seed=self._options["seed"],
            library=self._options["leiden"],
            priority=self._priority,
            n_missing=[decision.n_missing or 0 for decision in self._decisions],
        )

    def _answer(self, threshold: float, decided: tuple[NDArray[np.int64], Choice]) -> WhatIf:
        measure, pairs = self._stored
        margin = MARGIN[self._options["precision"]]
        close = ~pairs.exact & (np.abs(np.abs(pairs.edges.value) - threshold) <= margin)
        kept = tuple(self.columns[index] for index in decided[1].kept.tolist())
        return WhatIf(
            self.number,
            measure,
            threshold,
            kept,
            int(np.count_nonzero(close)),
            self._left_open(threshold, len(kept)),
        )

    def _left_open(self, threshold: float, n_kept: int) -> str:
        if self._back and threshold == self.threshold:
            dropped = counted(len(self._predicted), "column")
            return (
                f"{len(self._back):,} of {dropped} that pass 3 dropped came back to stay in this "
                f"run, which kept {n_kept + len(self._back):,}."
            )
        *others, last = (number for number in self._passes if number >= self.number)
        if others:
            later = [f"pass {number}" for number in (*others[1:], last)]
            names = " and ".join(filter(None, (", ".join(later[:-1]), later[-1])))
            return f"what {names} would make of these columns takes a run."
        if self._predicted and n_kept < len(self.columns) and not self._options["vif_threshold"]:
            dropped = counted(len(self._predicted), "column")
            return f"which of {dropped} that pass 3 dropped would come back takes a run."
        return ""


def _ran(entry: Pass, options: Mapping[str, Any]) -> bool:
    """Whether a run with these options had a pass."""
    if entry.asked_by is None:
        return entry.number in options["passes"]
    return options.get(entry.asked_by) is not None


def passes_of(folder: str | Path) -> tuple[FinishedPass, ...]:
    """The passes of a finished run that can be asked again, in their order."""
    asked = RunFolder(folder).read_run()["options"]["passes"]
    numbers = [n for n in sorted(asked) if PASSES[n].threshold is not None and PASSES[n].pairwise]
    finished = (FinishedPass(folder, number) for number in numbers)
    return tuple(each for each in finished if math.isfinite(each.floor))


@contextmanager
def helpers(passes: Sequence[FinishedPass]) -> Iterator[Processes | None]:
    """Processes that share the tables of these passes, as many as cores and memory allow.

    None where this one is done sooner.
    """
    pairs = [finished.n_pairs for finished in passes]
    fitting = psutil.virtual_memory().available // 2 // (PAIR_BYTES * max(pairs, default=0) + 1)
    number = min(cores(), MOST_HELPERS, fitting)
    if serves() and number > 1 and sum(pairs) >= FEW_PAIRS:
        with Processes(number, forked=True) as processes:
            yield processes
    else:
        yield None


def table_of(
    finished: FinishedPass, parts: int = 20, processes: Processes | None = None
) -> tuple[WhatIf, ...]:
    """The pass at its own threshold, and at every such part of 1 that its pairs reach down to."""
    steps = {round(step / parts, 6) for step in range(1, parts) if step / parts >= finished.floor}
    return finished.at_each(sorted(steps | {finished.threshold}), processes)
