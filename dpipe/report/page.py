"""The page put together: what is there without its script, the data, the scripts, the policy.

Covers: HTML from the results; every text of the run goes through `html.escape`.
Does not cover: what it says (`dpipe.report.words`), what the script shows (`page.js`).
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from html import escape
from importlib import resources
from itertools import pairwise
from string import Template
from typing import Any

from dpipe.common.words import counted, sized, timed
from dpipe.model.events import PassDone
from dpipe.model.records import Decision, MemoryReading
from dpipe.model.registry import PASSES, usual_passes
from dpipe.options import Options
from dpipe.report import figures, target, words
from dpipe.report.payload import dump, payload
from dpipe.report.results import PassRecord, Results
from dpipe.report.words import DROPPED, KEPT, NOTHING, count, operations_of

_POLICY = (
    "default-src 'none'; script-src {scripts}; style-src 'unsafe-inline'; img-src data:; "
    "font-src data:; base-uri 'none'; form-action 'none'"
)
_SHARES = (0.0, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0)


def render(results: Results) -> str:
    """The whole page as one HTML text that needs nothing beside it."""
    title, why, passed = words.headline(results.decisions, results.measures)
    drawn = {
        "matrix": figures.matrix_figure() if results.matrices else None,
        "curve": figures.curve_figure() if results.curves else None,
        "pair": figures.pair_figure() if results.sample else None,
        "memory": figures.memory_figure(results.ledger, results.passes),
    }
    scripts = [_asset("page.js")]
    if any(drawn.values()):
        scripts = [*figures.scripts(), *scripts]
    return Template(_asset("page.html")).substitute(
        policy=_policy(scripts),
        version=escape(str(results.versions.get("dpipe", ""))),
        title=escape(title),
        style=_asset("page.css"),
        headline=escape(title),
        why=escape(f"{why} {passed}".strip()),
        facts=escape(_facts(results)),
        warnings=_warnings(results),
        funnel=_funnel(results),
        target=target.sections(results),
        target_links=target.links(results),
        similarity=_similarity(results),
        thresholds=_thresholds(results),
        near=_near(results),
        missing=_missing(results),
        time=_time(results),
        memory=_memory(results, drawn["memory"] is not None),
        run=_run(results),
        data=dump(payload(results)),
        figures=dump(drawn),
        scripts="\n".join(f"<script>{_closed(script)}</script>" for script in scripts),
    )


def _asset(name: str) -> str:
    return resources.files("dpipe.report").joinpath(name).read_text(encoding="utf-8")


def _closed(script: str) -> str:
    """A script that cannot end its own element."""
    return script.replace("</script", "<\\/script")


def _policy(scripts: Iterable[str]) -> str:
    """Only these very scripts run, and nothing is ever fetched."""
    digests = (hashlib.sha256(_closed(script).encode()).digest() for script in scripts)
    allowed = " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)
    return _POLICY.format(scripts=allowed)


# The top


def _facts(results: Results) -> str:
    rows, used = results.input.get("rows"), results.input.get("rows_used")
    parts = []
    if isinstance(rows, int) and isinstance(used, int):
        drawn = f", {count(used)} of them drawn" if used != rows else ""
        parts.append(f"{counted(rows, 'row')}{drawn}")
    if results.input.get("files"):
        parts.append(counted(len(results.input["files"]), "file"))
    if results.passes:
        parts.append(f"{timed(sum(p.done.seconds for p in results.passes))} in all passes")
    if results.versions.get("dpipe"):
        parts.append(f"dpipe {results.versions['dpipe']}")
    parts.append(f"run folder {results.name}")
    return " · ".join(parts)


def _warnings(results: Results) -> str:
    lines = [note.text for note in results.notes if note.level == "warning"]
    lines += results.troubles
    return "\n".join(f'<p class="note warning">{escape(line)}</p>' for line in lines)


# The funnel


def _funnel(results: Results) -> str:
    features = [d for d in results.decisions if d.decision in (KEPT, DROPPED)]
    if not features:
        return '<p class="hint">No column took part.</p>'
    passes = results.passes or _passes_from(features)
    lines = [_funnel_line("", "Input", len(features), len(features), [])]
    for done in (each.done for each in passes):
        reasons = Counter(
            words.reason_label(d)
            for d in features
            if d.decision == DROPPED and d.pass_number == done.number
        )
        lines.append(
            _funnel_line(
                str(done.number),
                _title(done),
                done.n_kept,
                len(features),
                reasons.most_common(),
                done.n_columns - done.n_kept,
            )
        )
    skipped = set(usual_passes()) - {each.done.number for each in passes}
    left = (
        f'<p class="hint">Not run: {", ".join(PASSES[n].title for n in sorted(skipped))}.</p>'
        if skipped
        else ""
    )
    key = (
        '<p class="hint"><span class="key kept"></span>still there '
        '<span class="key gone" style="margin-left:18px"></span>dropped by this pass, '
        "a part for each reason</p>"
    )
    return f'<ol class="funnel">{"".join(lines)}</ol>{key}{left}'


def _passes_from(features: Sequence[Decision]) -> tuple[PassRecord, ...]:
    """The passes as the decisions show them, for a run that kept no record of its passes."""
    left, records = len(features), []
    dropped = Counter(d.pass_number for d in features if d.pass_number is not None)
    for number in sorted(dropped):
        name = PASSES[number].name if number in PASSES else str(number)
        after = left - dropped[number]
        records.append(PassRecord(PassDone(number, name, left, after, 0.0, False)))
        left = after
    return tuple(records)


def _title(done: PassDone) -> str:
    return PASSES[done.number].title if done.number in PASSES else done.name


def _funnel_line(
    number: str,
    title: str,
    left: int,
    total: int,
    drops: Sequence[tuple[str, int]],
    fewer: int | None = None,
) -> str:
    """A line of the funnel; `fewer` columns were left by the pass than it received."""
    parts = [f'<span class="kept" style="width:{_percent(left, total)}"></span>'] if left else []
    parts += [
        f'<span class="gone" style="width:{_percent(n, total)}" '
        f'title="{escape(label)}: {count(n)}"></span>'
        for label, n in drops
    ]
    lost = sum(n for _, n in drops)
    minus = f"<small>&minus;{count(lost)}</small>" if lost else ""
    reasons = " · ".join(f"{count(n)} {escape(label)}" for label, n in drops)
    if not drops and number:
        reasons = "nothing dropped" if left else "no column reached it"
    if fewer is not None and fewer != lost:
        which = "that came back later" if fewer > lost else "came back"
        reasons += f" · {count(abs(fewer - lost))} {which}"
    details = f'<p class="reasons">{reasons}</p>' if reasons else ""
    return (
        f'<li><span class="step"><small>{escape(number)}</small>{escape(title)}</span>'
        f'<span class="track" aria-hidden="true">{"".join(parts)}</span>'
        f'<span class="left">{count(left)}{minus}</span>{details}</li>'
    )


# Similarity and pairs


def _similarity(results: Results) -> str:
    if not results.matrices:
        return (
            '<p class="hint">This run wrote no similarity matrix: its pass was not run or had no '
            "column, or the matrix would have been larger than <code>--matrix-budget</code>.</p>"
        )
    buttons = "".join(
        f'<button type="button" data-matrix="{place}" aria-pressed="false">'
        f"{escape(results.measures[matrix.measure].title)}</button>"
        for place, matrix in enumerate(results.matrices)
    )
    return f"""<div class="controls">
<span class="segmented" role="group" aria-label="Measure">{buttons}</span>
<button type="button" data-zoom="in">Zoom in</button>
<button type="button" data-zoom="out">Zoom out</button>
<button type="button" data-zoom="all">Whole matrix</button>
</div>
<div class="matrix">
<div class="stage" id="figure-matrix" tabindex="0" role="application" aria-describedby="matrix-note"
 aria-label="Similarity matrix. Arrow keys move, plus and minus zoom, 0 shows all of it;
 the cell in the middle is read, Enter opens its column."></div>
<div>
<p class="hint" id="matrix-note"></p>
<div class="scale" aria-hidden="true"><div class="ramp"></div><div class="ticks"></div></div>
<p class="hint" id="undefined" hidden><span class="key missing"></span>no value: too few rows in
common, or one column constant on them</p>
<div class="readout" id="readout" aria-live="polite"></div>
<p class="hint" style="margin-top:12px">Drag a box to zoom in; click a cell to open its column
below. With the keyboard: <code>+</code> <code>&minus;</code> <code>0</code> and the arrow keys move
to a cell, which is read; <code>Enter</code> opens its column.</p>
</div>
</div>"""


def _thresholds(results: Results) -> str:
    if not results.curves:
        return '<p class="hint">No pass of this run compared pairs of columns.</p>'
    buttons = "".join(
        f'<button type="button" data-curve="{place}" aria-pressed="false">'
        f"Pass {curve.number} {escape(PASSES[curve.number].title)}</button>"
        for place, curve in enumerate(results.curves)
    )
    return f"""<div class="controls">
<span class="segmented" role="group" aria-label="Pass">{buttons}</span>
<label for="threshold">Threshold</label>
<input id="threshold" type="range" min="0" step="1" aria-describedby="verdict">
<output id="asked-threshold" for="threshold"></output>
<button type="button" id="as-run">As in this run</button>
</div>
<div class="curve">
<div><div id="figure-curve"></div>
<ul class="legend"><li><span class="diamond" aria-hidden="true">◆</span> this run</li>
<li><span class="ring" aria-hidden="true"></span> the slider</li></ul></div>
<div><p id="verdict" aria-live="polite"></p><p class="hint" id="left-open"></p>
<div class="table" data-table="changes"></div></div>
</div>"""


def _near(results: Results) -> str:
    if not results.near:
        return '<p class="hint">No pair lies near a threshold.</p>'
    return (
        '<p class="hint">Pairs within 0.005 of the threshold of their pass, the closest first: '
        "small changes of the data or of the threshold would decide them otherwise. At most 1,000 "
        "are recorded for each pass.</p>"
        '<div class="table" data-table="near"></div>'
    )


# Missing values


def _missing(results: Results) -> str:
    known = [d for d in results.decisions if d.n_valid is not None and d.n_missing is not None]
    if not known:
        return '<p class="hint">The run recorded no counts of missing values.</p>'
    incomplete = [d for d in known if d.n_missing]
    if not incomplete:
        return '<p class="hint">No column has a missing, NaN or infinite value.</p>'
    nan, infinite = sum(d.n_nan or 0 for d in known), sum(d.n_inf or 0 for d in known)
    missing = sum(d.n_missing or 0 for d in known)
    has = "has" if len(incomplete) == 1 else "have"
    text = (
        f"{counted(len(incomplete), 'column')} of {count(len(known))} {has} missing values, "
        f"{counted(missing, 'cell')} in all: {count(missing - nan - infinite)} empty, "
        f"{count(nan)} NaN, {count(infinite)} infinite."
    )
    return f'<p>{text}</p>{_bins(results, known)}<div class="table" data-table="incomplete"></div>'


def _bins(results: Results, known: Sequence[Decision]) -> str:
    """How many columns miss how much."""
    shares = [_missing_share(d) for d in known]
    limit = float(results.options.get("max_missing_ratio", 1.0))
    numbers = [(0.0, 0.0, sum(s == 0 for s in shares))]
    for low, high in pairwise(_SHARES):
        numbers.append((low, high, sum(low < s <= high for s in shares)))
    most = max(n for _, _, n in numbers)
    lines = []
    for low, high, n in numbers:
        label = "complete" if high == 0 else f"{100 * low:.0f} &ndash; {100 * high:.0f} % missing"
        bar = f'<i class="{"over" if low >= limit else ""}" style="width:{_percent(n, most)}"></i>'
        lines.append(
            f'<span>{label}</span><span class="rail" aria-hidden="true">{bar if n else ""}</span>'
            f"<span>{count(n)}</span>"
        )
    excess = (
        f'<p class="hint"><span class="key gone"></span>above the allowed share of '
        f"{words.short(100 * limit)} % (<code>--max-missing-ratio</code>)</p>"
        if any(n and low >= limit for low, _, n in numbers)
        else ""
    )
    return f'<div class="bins">{"".join(lines)}</div>{excess}'


def _missing_share(decision: Decision) -> float:
    missing, valid = decision.n_missing or 0, decision.n_valid or 0
    return missing / (missing + valid) if missing + valid else 0.0


# Time and memory


def _time(results: Results) -> str:
    if not results.passes:
        return '<p class="hint">The run kept no record of its passes.</p>'
    longest = max(p.done.seconds for p in results.passes) or 1.0
    rows = "".join(_time_row(p, longest, results.ledger) for p in results.passes)
    return f"""<table class="plain"><thead><tr>
<th scope="col">Pass</th><th scope="col">Columns</th><th scope="col">Time</th>
<th scope="col">Planned work, at most</th><th scope="col">Peak of a worker</th>
</tr></thead><tbody>{rows}</tbody></table>
<p class="hint" style="margin-top:10px">The plan is made before anything runs, for the columns a
pass may at most receive. It bounds work and memory; it does not predict seconds. The time of a pass
includes starting the workers before it and restarting them after it.</p>"""


def _time_row(record: PassRecord, longest: float, ledger: Sequence[MemoryReading]) -> str:
    done, planned = record.done, record.planned
    time = (
        f'<span class="meter"><i style="width:{_percent(done.seconds, longest)}"></i></span>'
        f"{timed(done.seconds)}"
    )
    if done.reused:
        time = f"{timed(done.seconds)}, taken from the run before"
    work = NOTHING
    if planned is not None:
        parts = [counted(planned.tasks, "task")]
        if planned.operations:
            parts.append(operations_of(planned.operations))
        if planned.bytes_read:
            parts.append(f"{sized(planned.bytes_read)} read")
        work = ", ".join(parts)
    return (
        f'<tr><th scope="row">{done.number} '
        f"{escape(_title(done))}</th>"
        f"<td>{count(done.n_columns)} → {count(done.n_kept)}</td><td>{time}</td><td>{work}</td>"
        f"<td>{_peak(record, ledger)}</td></tr>"
    )


def _peak(record: PassRecord, ledger: Sequence[MemoryReading]) -> str:
    peaks = [
        r.peak
        for r in ledger
        if r.pass_number == record.done.number and r.moment == "after" and r.process != "client"
    ]
    if not peaks:
        return NOTHING
    if record.planned is None:
        return sized(max(peaks))
    limit = record.planned.worker_bytes
    over = max(peaks) > limit
    return (
        f'<span class="meter"><i class="{"gone" if over else ""}" '
        f'style="width:{_percent(max(peaks), limit)}"></i></span>'
        f"{sized(max(peaks))} of {sized(limit)} planned"
        f"{', exceeded' if over else ''}"
    )


def _memory(results: Results, drawn: bool) -> str:
    if not results.ledger:
        return '<p class="hint">The ledger is empty: the run left no memory reading.</p>'
    figure = ""
    if drawn:
        workers = len({r.process for r in results.ledger if r.process != "client"})
        figure = f"""<div id="figure-memory"></div>
<ul class="legend">
<li><span class="swatch workers"></span>{counted(workers, "worker")}</li>
<li><span class="swatch client"></span>client</li>
<li>whiskers: highest so far in the life of a process</li>
<li><span class="swatch planned"></span>planned for a worker, at most</li>
<li><span class="swatch restart"></span>workers restarted: the same names, new processes</li>
</ul>"""
    return (
        f"{figure}<details><summary>All {count(len(results.ledger))} readings</summary>"
        '<div class="table" data-table="ledger"></div></details>'
    )


# How it was made


def _run(results: Results) -> str:
    defaults = {name: _plain(value) for name, value in vars(Options()).items()}
    changed: list[str] = []
    same: list[str] = []
    for name, value in results.options.items():
        row = (
            f'<tr><th scope="row"><code>--{escape(name.replace("_", "-"))}</code></th>'
            f"<td>{escape(words.option_text(value))}</td></tr>"
        )
        (same if defaults.get(name) == value else changed).append(row)
    options = (
        f'<table class="plain"><tbody>{"".join(changed)}</tbody></table>'
        if changed
        else '<p class="hint">Every option has its default.</p>'
    )
    rest = (
        f"<details><summary>{counted(len(same), 'option')} at the default</summary>"
        f'<table class="plain"><tbody>{"".join(same)}</tbody></table></details>'
        if same
        else ""
    )
    notes = "".join(
        f'<p class="note">{escape(note.text)}</p>'
        for note in results.notes
        if note.level != "warning"
    )
    skipped = "".join(
        f'<p class="note warning">left out {escape(_public(path))}: {escape(reason)}</p>'
        for path, reason in results.skipped
    )
    return (
        f"{notes}{skipped}{_facts_table(results)}"
        f'<h3 style="margin:20px 0 6px">Options that differ from the default</h3>{options}{rest}'
    )


def _facts_table(results: Results) -> str:
    files = [_public(str(path)) for path in results.input.get("files") or ()]
    rows = []
    if files:
        shown = "<br>".join(f'<span class="name">{escape(path)}</span>' for path in files[:8])
        more = f"<br>and {count(len(files) - 8)} more" if len(files) > 8 else ""
        rows.append(("Input", f"{shown}{more}"))
    if results.input.get("fingerprint"):
        digest = escape(str(results.input["fingerprint"]))
        rows.append(("Fingerprint", f'<span class="name">{digest}</span>'))
    machine = (results.plan or {}).get("machine") or {}
    if machine:
        threads, memory = int(machine["threads"]), int(machine["memory"])
        each = f"{counted(threads, 'thread')} and at most {sized(memory)} each"
        rows.append(("Workers", f"{count(int(machine['workers']))}, {each}"))
    if results.versions:
        rows.append(
            ("Versions", escape(", ".join(f"{k} {v}" for k, v in results.versions.items())))
        )
    body = "".join(f'<tr><th scope="row">{name}</th><td>{value}</td></tr>' for name, value in rows)
    return f'<table class="plain"><tbody>{body}</tbody></table>' if body else ""


def _public(path: str) -> str:
    """A path or URL without a password in it.

    Examples
    --------
    >>> _public("ftp://me:secret@host/a.parquet")
    'ftp://…@host/a.parquet'
    """
    return re.sub(r"://[^/@]*@", "://…@", path)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _percent(part: float, whole: float) -> str:
    return f"{min(100.0, 100 * part / whole):.2f}%" if whole else "0%"
