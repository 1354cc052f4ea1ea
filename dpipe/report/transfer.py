"""The page of a transfer: what of a selection holds on new data, in one HTML file without a script.

Covers: scatter plots of the similarities then and now, the tables of what does not hold.
Does not cover: measuring (`dpipe.pipeline.transfer`), the page of a run (`dpipe.report.page`).

Names reach the page through `html.escape` alone, and its policy lets nothing run or be fetched.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape
from importlib import resources
from pathlib import Path
from string import Template
from typing import TypeVar

from dpipe.common.words import counted
from dpipe.errors import InputError
from dpipe.model.inventory import entry_of, is_run
from dpipe.model.transfer import Certificate, Transfer
from dpipe.report.words import NOTHING, between, short, shown
from dpipe.report.write import check_target, replace

MOST_ROWS = 1000
"""Rows of a table on the page; the others are counted."""

_Row = TypeVar("_Row")

_SIDE, _LEFT, _TOP = 340, 54, 10
_RIGHT, _BOTTOM = _LEFT + _SIDE, _TOP + _SIDE


def write_transfer(
    answer: Transfer,
    target: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    n_files: int,
) -> Path:
    """Write the page and return its absolute path.

    Parameters
    ----------
    answer
        What became of the selection.
    target
        The file to write.
    folder
        The run folder, which the page names; none of its results may be overwritten.
    n_files
        Files of the new data.

    Raises
    ------
    InputError
        When `target` is a folder or a result of a run, or lies in a folder that does not exist.
    ResourceError
        When the disk refuses.
    """
    path = check_page(target)
    replace(path, render(answer, os.fspath(folder), n_files), "--report")
    return path


def check_page(target: str | os.PathLike[str]) -> Path:
    """The absolute path of a page to write.

    Raises
    ------
    InputError
        As in `write_transfer`.
    """
    path = check_target(target, "--report")
    if entry_of(path.name) is not None and is_run(path.parent):
        raise InputError(f"--report {path} would overwrite a result of a run; choose another name.")
    return path


def render(answer: Transfer, folder: str, n_files: int) -> str:
    """The whole page as one HTML text that needs nothing beside it."""
    title, compared, *_ = map(_sentence, answer.lines)
    why = (
        f"{compared} Kept columns: {counted(len(answer.redundant), 'pair')} became redundant, "
        f"{len(answer.unfit):,} would be dropped by pass 1, {answer.lost:,} "
        f"{'is' if answer.lost == 1 else 'are'} absent."
    )
    why = " ".join([why, *map(_sentence, answer.why_uncompared)])
    facts = f"{counted(answer.n_rows, 'row')} · {counted(n_files, 'file')} · run folder {folder}"
    page = resources.files("dpipe.report")
    return Template(page.joinpath("transfer.html").read_text(encoding="utf-8")).substitute(
        title=escape(title.rstrip(".")),
        style=page.joinpath("page.css").read_text(encoding="utf-8"),
        why=escape(why),
        facts=escape(facts),
        values=_values(answer.certificates),
        broken=_certificates(
            sorted(answer.broken, key=_fall, reverse=True),
            "Every dropped column is still as similar.",
        ),
        redundant=_redundant(answer),
        unfit=_unfit(answer),
        ranges=_ranges(answer),
    )


def _sentence(line: str) -> str:
    return f"{line[0].upper()}{line[1:].rstrip('.')}."


# Values then and now


def _values(certificates: Sequence[Certificate]) -> str:
    if not certificates:
        return '<p class="hint">No dropped column had a representative to be measured against.</p>'
    # What goes only where nothing is lost stands apart; R^2 may have a threshold for each column.
    by_measure: dict[tuple[str, bool], list[Certificate]] = {}
    for each in certificates:
        by_measure.setdefault((each.measure, each.threshold == 1), []).append(each)
    drawn = "".join(_scatter(measure, found) for (measure, _), found in by_measure.items())
    falling = sorted(certificates, key=_fall, reverse=True)
    return (
        f'<div class="scatters">{drawn}</div><p class="hint">A point is a dropped column, or '
        "several; on the solid line nothing changed, and below the dashed one, the "
        "threshold (the lowest and the highest where columns have their own), this similarity "
        "would not have dropped the column.</p>"
        f"<details><summary>All {len(certificates):,}, the largest fall first</summary>"
        f"{_certificates(falling, '')}</details>"
    )


def _fall(certificate: Certificate) -> float:
    """By how much a similarity fell; most where none is left."""
    fall = abs(certificate.before) - abs(certificate.now)
    return math.inf if math.isnan(fall) else fall


def _scatter(measure: str, certificates: Sequence[Certificate]) -> str:
    """Size of the similarity in the run (across) and on the new data (up), on equal axes."""
    known = [c for c in certificates if not (math.isnan(c.before) or math.isnan(c.now))]
    limits = [each.threshold for each in certificates]
    axis = _Axis.down_to(
        min([*limits, *(abs(value) for each in known for value in (each.before, each.now))])
    )
    across, up = axis.across, axis.up
    spots = Counter(
        (round(across(abs(each.before))), round(up(abs(each.now))), each.holds) for each in known
    )
    dots = "".join(
        f'<circle class="{"kept" if holds else "gone"}" cx="{x}" cy="{y}" '
        f'r="{min(9.0, 2.5 * n**0.25 + 0.5):.1f}"/>'
        for (x, y, holds), n in sorted(spots.items())
    )
    ticks = "".join(
        f'<text x="{across(at):.0f}" y="{_BOTTOM + 18}" text-anchor="middle">{at:g}</text>'
        f'<text x="{_LEFT - 8}" y="{up(at) + 4:.0f}" text-anchor="end">{at:g}</text>'
        for at in axis.ticks
    )
    title = f"{measure}, threshold {between(limits)}: {counted(len(certificates), 'column')}"
    left_out = len(certificates) - len(known)
    more = f"; without a value: {left_out:,}" if left_out else ""
    middle = _TOP + _SIDE / 2
    dashed = "".join(
        f'<line class="limit" x1="{_LEFT}" y1="{up(at):.1f}" x2="{_RIGHT}" y2="{up(at):.1f}"/>'
        f'<line class="limit" x1="{across(at):.1f}" y1="{_TOP}" x2="{across(at):.1f}" '
        f'y2="{_BOTTOM}"/>'
        for at in sorted({min(limits), max(limits)})
    )
    return f"""<figure><figcaption>{escape(title)}{more}</figcaption>
<svg viewBox="0 0 {_RIGHT + 20} {_BOTTOM + 48}" role="img" aria-label="{escape(title)}">
<rect x="{_LEFT}" y="{_TOP}" width="{_SIDE}" height="{_SIDE}"/>
<line x1="{_LEFT}" y1="{_BOTTOM}" x2="{_RIGHT}" y2="{_TOP}"/>
{dashed}
{dots}{ticks}
<text x="{_LEFT + _SIDE / 2}" y="{_BOTTOM + 38}" text-anchor="middle">in the run</text>
<text transform="translate(11 {middle}) rotate(-90)" text-anchor="middle">on the new data</text>
</svg></figure>"""


@dataclass(frozen=True)
class _Axis:
    """Values from `start` to 1, along both sides of a plot."""

    start: float

    @classmethod
    def down_to(cls, least: float) -> _Axis:
        """An axis that shows `least` a little inside of the frame."""
        return cls(max(0, math.floor(20 * least - 0.25)) / 20)

    @property
    def ticks(self) -> list[float]:
        span = 1 - self.start
        step = 0.05 if span < 0.3 else 0.1 if span < 0.6 else 0.25
        return [1 - k * step for k in range(int(span / step + 1e-9) + 1)]

    def across(self, value: float) -> float:
        return _LEFT + _SIDE * (value - self.start) / (1 - self.start)

    def up(self, value: float) -> float:
        return _BOTTOM - _SIDE * (value - self.start) / (1 - self.start)


# Tables


def _certificates(certificates: Sequence[Certificate], otherwise: str) -> str:
    return _table(
        (
            "Dropped",
            "Stands for it",
            "Measure",
            "In the run",
            "New data",
            "Threshold",
            "",
        ),
        certificates,
        lambda c: (
            _name(c.column),
            "kept columns" if c.measure == "r2" else _name(c.representative),
            escape(c.measure),
            _value(c.before),
            _value(c.now),
            f"{c.threshold:g}",
            "" if c.holds else '<span class="is-gone">broken</span>',
        ),
        otherwise,
    )


def _redundant(answer: Transfer) -> str:
    return _table(
        ("Kept column", "Kept column", "Measure", "New data", "Threshold"),
        answer.redundant,
        lambda r: (
            _name(r.first),
            _name(r.second),
            escape(r.measure),
            _value(r.value),
            f"{r.threshold:g}",
        ),
        "No two kept columns reach a threshold of the run.",
    )


def _unfit(answer: Transfer) -> str:
    kept = _table(
        ("Kept column", "Pass 1 would drop it for"),
        answer.unfit,
        lambda entry: (_name(entry[0]), escape(entry[1])),
        "Pass 1 would drop none of the kept columns.",
    )
    return kept + _table(
        ("Absent, or no number", ""),
        list(enumerate(answer.absent)),
        lambda entry: (_name(entry[1]), "kept" if entry[0] < answer.lost else "dropped in the run"),
        "No column of the run is absent.",
    )


def _ranges(answer: Transfer) -> str:
    return _table(
        ("Column", "In the run", "New data"),
        answer.outside,
        lambda o: (
            _name(o[0]),
            f"{short(o[1])} to {short(o[2])}",
            f"{short(o[3])} to {short(o[4])}",
        ),
        "Every column stays in its range.",
    )


def _table(
    head: Iterable[str],
    rows: Sequence[_Row],
    cells: Callable[[_Row], Iterable[str]],
    otherwise: str,
) -> str:
    """A table of cells that are HTML already; a sentence where there is no row."""
    if not rows:
        return f'<p class="hint">{escape(otherwise)}</p>'
    titles = "".join(f'<th scope="col">{escape(title)}</th>' for title in head)
    lines = "".join(
        f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells(row))}</tr>" for row in rows[:MOST_ROWS]
    )
    more = len(rows) - MOST_ROWS
    rest = f'<p class="hint">and {more:,} more</p>' if more > 0 else ""
    return (
        f'<table class="plain"><thead><tr>{titles}</tr></thead><tbody>{lines}</tbody></table>{rest}'
    )


def _name(name: str) -> str:
    return f'<span class="name">{escape(shown(name))}</span>'


def _value(value: float) -> str:
    return NOTHING if math.isnan(value) else f"{value:z.4f}".replace("-", "\N{MINUS SIGN}")
