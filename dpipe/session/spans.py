"""Marking tasks for the pages of Dask's dashboard, without leaving more there with every run.

Covers: the span of a stage's tasks, one for all stages of that name on a scheduler.
Does not cover: which tasks are marked (`dpipe.engine.submit`, `dpipe.session.attach`).

A scheduler keeps every span for good, and so do the workers the metrics they note under its name.
Those of `distributed.span` have a new identity each time; tasks without any get a new one whenever
the cluster was idle. A scheduler that serves a hundred runs would grow by a dozen spans each.
"""

from __future__ import annotations

from contextlib import AbstractContextManager

from dask.base import annotate, get_annotations


def span(*tags: str) -> AbstractContextManager[None]:
    """Mark the tasks submitted inside as one span, the same one each time.

    Within a caller's own span it is a part of that one.
    """
    outer = get_annotations().get("span", {"name": (), "ids": ()})
    name = (*outer["name"], *tags)
    inside = "".join(outer["ids"][-1:])
    ids = tuple(f"{inside}/{'/'.join(tags[: depth + 1])}" for depth in range(len(tags)))
    marked: AbstractContextManager[None] = annotate(
        span={"name": name, "ids": (*outer["ids"], *ids)}
    )
    return marked
