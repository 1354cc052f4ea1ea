"""What tells of the target, and what a number of columns explains, on the page.

Covers: two sections and the links to them; nothing where a run has no target and no budget.
Does not cover: the tables in them, which the script fills (`page.js`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape

from dpipe.choice.certificate import follow_chain
from dpipe.common.words import counted, percent
from dpipe.model.records import Decision, Step
from dpipe.report.results import Results
from dpipe.report.words import DROPPED, KEPT, count, shown

_NO_LOSS = 0.0005
_SHOWN = 10
"""Most relevant columns that are drawn; the table has them all."""


def sections(results: Results) -> str:
    """The sections of the page on the target and on the budget, as far as the run has them."""
    parts = (
        ("target", "What tells of the target", _target),
        ("chosen", "What a number of columns explains", _chosen),
    )
    return "\n".join(
        f'<section id="{name}" aria-labelledby="h-{name}">\n<h2 id="h-{name}">{title}</h2>\n'
        f"{text}\n</section>\n"
        for name, title, write in parts
        if (text := write(results))
    )


def links(results: Results) -> str:
    """The links to them."""
    there = (("target", "Target", _relevant(results)), ("chosen", "Budget", results.chosen))
    return "\n".join(
        f'<a href="#{name}">{title}</a>' for name, title, is_there in there if is_there
    )


# The target


def _relevant(results: Results) -> list[Decision]:
    """The columns whose relevance is known, the most relevant first, equal ones by name."""
    known = [d for d in results.decisions if d.relevance is not None]
    return sorted(known, key=lambda d: (-(d.relevance or 0), d.column))


def _target(results: Results) -> str:
    relevant = _relevant(results)
    if not relevant:
        return ""
    bars = "".join(_bar(d) for d in relevant[:_SHOWN])
    key = (
        '<p class="hint"><span class="key kept"></span>kept '
        '<span class="key gone" style="margin-left:18px"></span>dropped; the table says what '
        "stands for it</p>"
        if any(d.decision == DROPPED for d in relevant[:_SHOWN])
        else ""
    )
    return (
        f"<p>{escape(_what_stands(results, relevant))}</p>"
        f'<div class="bins">{bars}</div>{key}'
        '<p class="hint">Relevance is the mean of HSIC and RDC with the target, between 0 and 1; '
        "of several targets that of which a column tells most.</p>"
        '<div class="table" data-table="relevance"></div>'
    )


def _bar(decision: Decision) -> str:
    value = decision.relevance or 0.0
    look = "over" if decision.decision == DROPPED else ""
    return (
        f'<span class="name">{escape(shown(decision.column))}</span>'
        f'<span class="rail" aria-hidden="true"><i class="{look}" style="width:{100 * value:.1f}%">'
        f"</i></span><span>{value:.3f}</span>"
    )


def _what_stands(results: Results, relevant: Sequence[Decision]) -> str:
    """How far the kept columns tell what the most relevant ones told."""
    rows = {d.column: d for d in results.decisions}
    top = relevant[:_SHOWN]
    kept = sum(d.decision == KEPT for d in top)
    which = f"the {len(top)} most relevant columns" if len(top) > 1 else "the one relevant column"
    sentence = f"Of {which} {count(kept)} {'was' if kept == 1 else 'were'} kept."
    lost = []
    for decision in top:
        last = rows.get(follow_chain(decision.column, rows)[-1])
        if decision.decision != DROPPED or last is None or last.relevance is None:
            continue
        lost.append(((decision.relevance or 0) - last.relevance, decision, last))
    if not lost:
        return sentence
    loss, decision, last = max(lost, key=lambda each: (each[0], each[1].column))
    if loss < _NO_LOSS:
        return f"{sentence} What stands for the others tells as much."
    return (
        f"{sentence} Of the others {shown(decision.column)} ({decision.relevance:.3f}) loses most: "
        f"what stands for it, {shown(last.column)}, has {last.relevance:.3f}."
    )


# The budget

_WIDTH, _HEIGHT = 640, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 48, 84, 14, 40


def _chosen(results: Results) -> str:
    steps = results.chosen
    if not steps:
        return ""
    last = steps[-1]
    target = "" if last.target is None else f" and {percent(last.target)} of the target's"
    which = "Of the rows of this run"
    which += "" if last.target is None else ", and of the target of those where it is known"
    number = counted(len(steps), "column")
    return (
        f"<p>{number} {'explains' if len(steps) == 1 else 'explain'} {percent(last.table)} of the "
        f"variance of the columns that were left to choose from{target}, on normal scores. For "
        "fewer columns, read the curve or take the first ones of the table.</p>"
        f"{_curve(steps)}"
        f'<p class="hint">{which}: it is no score of a model on new rows.</p>'
        '<div class="table" data-table="chosen"></div>'
    )


def _curve(steps: Sequence[Step]) -> str:
    """Both shares against the number of columns, drawn without a script."""
    across, down = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM

    def x(number: float) -> float:
        return _LEFT + across * number / len(steps)

    def y(share: float) -> float:
        return _TOP + down * (1 - min(max(share, 0.0), 1.0))

    grid = "".join(
        f'<line class="grid" x1="{_LEFT}" x2="{_LEFT + across}" y1="{y(share):.1f}" '
        f'y2="{y(share):.1f}"/><text x="{_LEFT - 8}" y="{y(share) + 4:.1f}" '
        f'text-anchor="end">{percent(share)}</text>'
        for share in (0.0, 0.25, 0.5, 0.75, 1.0)
    )
    ticks = "".join(
        f'<text x="{x(number):.1f}" y="{_TOP + down + 18}" text-anchor="middle">{number:,}</text>'
        for number in sorted({0, *(len(steps) * k // 4 for k in range(1, 5))})
    )
    ends = [("table", steps[-1].table), ("target", steps[-1].target)]
    lines = "".join(
        f'<polyline class="{name}" points="{_points(steps, name, x, y)}"/>'
        f'<text class="{name}" x="{x(len(steps)) + 8:.1f}" '
        f'y="{place + 4:.1f}">{name} {percent(end)}</text>'
        for (name, end), place in zip(ends, _apart([y(e or 0) for _, e in ends]), strict=True)
        if end is not None
    )
    middle = _LEFT + across / 2
    return (
        f'<svg class="shares" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
        'aria-label="Explained share against the number of columns">'
        f"{grid}{ticks}{lines}"
        f'<text x="{middle:.0f}" y="{_HEIGHT - 4}" text-anchor="middle">columns</text></svg>'
    )


def _points(
    steps: Sequence[Step], name: str, x: Callable[[float], float], y: Callable[[float], float]
) -> str:
    shares = [0.0, *(getattr(step, name) or 0.0 for step in steps)]
    return " ".join(f"{x(number):.1f},{y(share):.1f}" for number, share in enumerate(shares))


def _apart(places: list[float]) -> list[float]:
    """Heights of the two labels, moved so that they do not cover each other."""
    table, target = places
    if abs(table - target) >= 16:
        return places
    return [table - 8, target + 8] if table < target else [table + 8, target - 8]
