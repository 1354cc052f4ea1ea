"""What Bokeh draws: the similarity matrix, columns kept against threshold, ranks of a pair, memory.

Covers: empty figures for the page's script to fill (matrix, curve, pair), which are the same for
every run, and the memory figure.
Does not cover: values of matrices (see `dpipe.report.matrix`), tables and bars (plain HTML).

Every model that has a colour names it in its tags, as ``property=variable`` of the page's style
sheet. The page's script sets them, for the light and the dark scheme, and again when it changes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any, Literal

from bokeh.core.types import ID
from bokeh.embed import json_item
from bokeh.models import (
    BasicTicker,
    BoxZoomTool,
    ColumnDataSource,
    HoverTool,
    LinearAxis,
    LinearColorMapper,
    NumeralTickFormatter,
    Plot,
    Range1d,
)
from bokeh.models.annotations.geometry import BoxAnnotation, Span
from bokeh.models.annotations.labels import Label, Title
from bokeh.models.glyphs import Image, Line, MultiLine, Quad, Scatter, Segment
from bokeh.models.grids import Grid
from bokeh.resources import Resources

from dpipe.model.records import MemoryReading
from dpipe.report.results import PassRecord

_Side = Literal["above", "below", "left"]

MIB = 2**20
_LETTER = 0.0068  # of the width of the memory figure on a laptop
_FONT = "system-ui, sans-serif"
_SMALL = "12px"


@lru_cache
def scripts() -> tuple[str, ...]:
    """BokehJS itself, only the part that draws, to stand inside the page."""
    resources = Resources(mode="inline", components=["bokeh"], log_level="error")
    return tuple(str(script) for script in resources.js_raw)


@lru_cache
def matrix_figure() -> dict[str, Any]:
    """A square of cells, row 0 on top; the script sets image, ranges, labels and palette."""
    plot = _plot(
        "matrix",
        frame_width=520,
        frame_height=520,
        x_range=Range1d(start=0, end=1),
        y_range=Range1d(start=1, end=0),
        min_border_left=72,  # as much as the widest labels need, so that zooming moves nothing
    )
    sides: tuple[_Side, ...] = ("above", "left")
    for side in sides:
        _axis(
            plot,
            side,
            "columns",
            NumeralTickFormatter(format="0,0"),
            ticker=BasicTicker(min_interval=1),
            name=f"matrix-{side}",
        )
    mapper = LinearColorMapper(
        palette=["#888888"], low=-100, high=100, low_color="#888888", name="matrix-colours"
    )
    source = ColumnDataSource(
        {"image": [], "x": [], "y": [], "w": [], "h": []}, name="matrix-cells"
    )
    plot.add_glyph(source, Image(image="image", x="x", y="y", dw="w", dh="h", color_mapper=mapper))
    frames = ColumnDataSource({"low": [], "high": []}, name="matrix-frames")
    plot.add_glyph(
        frames,
        _themed(
            Quad(left="low", right="high", top="low", bottom="high", fill_color=None, line_width=2),
            line_color="frame",
        ),
    )
    cross = Scatter(x="x", y="y", size=16, marker="cross", line_width=3)
    plot.add_glyph(
        ColumnDataSource({"x": [], "y": []}, name="matrix-aim"), _themed(cross, line_color="frame")
    )
    plot.add_tools(BoxZoomTool(match_aspect=True))
    return _item(plot)


@lru_cache
def curve_figure() -> dict[str, Any]:
    """Columns kept against the threshold of a pass; the script sets points, ranges and marks."""
    plot = _plot(
        "curve",
        frame_height=300,
        sizing_mode="stretch_width",
        x_range=Range1d(start=0, end=1),
        y_range=Range1d(start=0, end=1),
        min_border_left=72,
    )
    _axis(plot, "below", "threshold", NumeralTickFormatter(format="0.00"))
    axis = _axis(
        plot,
        "left",
        "columns the pass would keep",
        NumeralTickFormatter(format="0,0"),
        ticker=BasicTicker(min_interval=1),
    )
    plot.add_layout(
        _themed(Grid(dimension=1, ticker=axis.ticker), grid_line_color="rule"), "center"
    )
    asked = Span(dimension="height", line_width=1.5, name="curve-asked", level="underlay")
    plot.add_layout(_themed(asked, line_color="gone"))
    points = ColumnDataSource({"x": [], "y": []}, name="curve-points")
    plot.add_glyph(points, _themed(Line(x="x", y="y", line_width=2), line_color="kept"))
    dot = Scatter(x="x", y="y", size=6, marker="circle", line_color=None)
    dots = plot.add_glyph(points, _themed(dot, fill_color="kept"))
    run = ColumnDataSource({"x": [], "y": []}, name="curve-run")
    mark = Scatter(x="x", y="y", size=15, marker="diamond", line_width=2)
    plot.add_glyph(run, _themed(mark, line_color="paper", fill_color="ink"))
    here = ColumnDataSource({"x": [], "y": []}, name="curve-here")
    ring = Scatter(x="x", y="y", size=13, marker="circle", line_width=2.5, fill_color=None)
    plot.add_glyph(here, _themed(ring, line_color="gone"))
    plot.add_tools(HoverTool(renderers=[dots], tooltips=[("at", "@x"), ("kept", "@y{0,0}")]))
    return _item(plot)


@lru_cache
def pair_figure() -> dict[str, Any]:
    """Ranks of two columns on some rows; the script sets the points."""
    plot = _plot(
        "pair",
        frame_width=215,
        frame_height=215,
        x_range=Range1d(start=-0.03, end=1.03),
        y_range=Range1d(start=-0.03, end=1.03),
    )
    # What is on the axes stands beside the figure, as text: a name here could be taken for TeX.
    sides: tuple[_Side, ...] = ("below", "left")
    for side in sides:
        _axis(
            plot,
            side,
            "",
            NumeralTickFormatter(format="0.0"),
            ticker=BasicTicker(num_minor_ticks=0, desired_num_ticks=3),
        )
    points = Scatter(x="x", y="y", size="size", marker="circle", line_color=None, fill_alpha=0.55)
    source = ColumnDataSource({"x": [], "y": [], "size": []}, name="pair-points")
    plot.add_glyph(source, _themed(points, fill_color="kept"))
    return _item(plot)


def memory_figure(
    ledger: Sequence[MemoryReading], passes: Sequence[PassRecord]
) -> dict[str, Any] | None:
    """Memory of every process over time, passes as bands, restarts as lines; None without any."""
    if len({reading.seconds for reading in ledger}) < 2:
        return None
    end = max(reading.seconds for reading in ledger)
    start = min(reading.seconds for reading in ledger)
    room = (end - start) * 0.02
    planned = {
        each.planned.number: each.planned.worker_bytes
        for each in passes
        if each.planned is not None and not each.done.reused
    }
    spans = pass_spans(ledger)
    highest = max([r.peak for r in ledger] + [planned.get(n, 0) for n, _, _ in spans]) / MIB
    top = highest * 1.16
    plot = _plot(
        "memory",
        height=320,
        sizing_mode="stretch_width",
        x_range=Range1d(start=start - room, end=end + room),
        y_range=Range1d(start=0, end=top),
    )
    _axis(plot, "below", "seconds since the session opened", NumeralTickFormatter(format="0,0.[0]"))
    axis = _axis(plot, "left", "resident memory, MiB", NumeralTickFormatter(format="0,0"))
    plot.add_layout(
        _themed(Grid(dimension=1, ticker=axis.ticker), grid_line_color="rule"), "center"
    )
    names = {each.done.number: each.done.name for each in passes}
    for place, (number, low, high) in enumerate(spans):
        text = f"{number} {names.get(number, '')}"
        if (high - low) / (end - start) < _LETTER * (len(text) + 1):
            text = str(number)
        _band(plot, low, high, text, place, top)
        if number in planned:
            _planned(plot, low, high, planned[number] / MIB)
    for moment in sorted({r.seconds for r in ledger if r.moment == "recycled"}):
        plot.add_layout(
            _themed(
                Span(location=moment, dimension="height", line_dash="dashed", line_width=1.5),
                line_color="soft",
            )
        )
    _lines(plot, [r for r in ledger if r.process != "client"], "gone", "circle", "workers")
    _lines(plot, [r for r in ledger if r.process == "client"], "kept", "square", "client")
    return _item(plot)


def pass_spans(ledger: Sequence[MemoryReading]) -> list[tuple[int, float, float]]:
    """When each pass ran, (number, from, to) in seconds: from the reading before to the one after.

    Examples
    --------
    >>> def at(moment, number, seconds):
    ...     return MemoryReading(moment, number, "client", 1, 0, 0, None, seconds)
    >>> pass_spans([at("start", 0, 1.0), at("after", 1, 3.0), at("recycled", 1, 4.0),
    ...     at("after", 2, 5.0)])
    [(1, 1.0, 3.0), (2, 4.0, 5.0)]
    """
    moments = sorted({(r.seconds, r.moment, r.pass_number) for r in ledger})
    return [
        (number, before[0], seconds)
        for before, (seconds, moment, number) in pairwise(moments)
        if moment == "after"
    ]


def _lines(
    plot: Plot, readings: Sequence[MemoryReading], colour: str, marker: str, name: str
) -> None:
    """Resident memory of processes as lines that end with the process, peaks as whiskers."""
    if not readings:
        return
    lives: dict[tuple[str, int], list[MemoryReading]] = defaultdict(list)
    for reading in sorted(readings, key=lambda r: r.seconds):
        lives[reading.process, reading.pid].append(reading)
    plot.add_glyph(
        ColumnDataSource(
            {
                "xs": [[r.seconds for r in life] for life in lives.values()],
                "ys": [[r.rss / MIB for r in life] for life in lives.values()],
            }
        ),
        _themed(MultiLine(xs="xs", ys="ys", line_width=2), line_color=colour),
    )
    source = ColumnDataSource(
        {
            "x": [r.seconds for r in readings],
            "y": [r.rss / MIB for r in readings],
            "peak": [r.peak / MIB for r in readings],
            "process": [r.process for r in readings],
            "pid": [r.pid for r in readings],
        }
    )
    plot.add_glyph(source, _themed(Segment(x0="x", x1="x", y0="y", y1="peak"), line_color=colour))
    plot.add_glyph(
        source, _themed(Scatter(x="x", y="peak", marker="dash", size=10), line_color=colour)
    )
    dots = plot.add_glyph(
        source,
        _themed(Scatter(x="x", y="y", marker=marker, size=7, line_color=None), fill_color=colour),
    )
    plot.add_tools(
        HoverTool(
            renderers=[dots],
            tooltips=[
                ("process", "@process (pid @pid)"),
                ("at", "@x{0.0} s"),
                ("resident", "@y{0,0} MiB"),
                ("peak so far", "@peak{0,0} MiB"),
            ],
        )
    )


def _band(plot: Plot, low: float, high: float, text: str, place: int, top: float) -> None:
    shade = BoxAnnotation(
        left=low,
        right=high,
        fill_alpha=0.55 if place % 2 == 0 else 0.3,
        line_color=None,
        level="underlay",
    )
    plot.add_layout(_themed(shade, fill_color="band"))
    label = Label(
        x=(low + high) / 2,
        y=top,
        y_offset=-6,
        text=text,
        text_align="center",
        text_baseline="top",
        text_font=_FONT,
        text_font_size=_SMALL,
    )
    plot.add_layout(_themed(label, text_color="ink"))


def _planned(plot: Plot, low: float, high: float, amount: float) -> None:
    source = ColumnDataSource({"x0": [low], "x1": [high], "y": [amount]})
    glyph = Segment(x0="x0", x1="x1", y0="y", y1="y", line_width=2, line_dash="dotted")
    plot.add_glyph(source, _themed(glyph, line_color="ink"))


def _plot(name: str, **settings: Any) -> Plot:
    plot: Plot = Plot(
        name=name,
        title=Title(text=""),
        toolbar_location=None,
        background_fill_color=None,
        border_fill_color=None,
        min_border=8,
        **settings,
    )
    _themed(plot, outline_line_color="rule")
    return plot


def _axis(plot: Plot, side: _Side, label: str, formatter: Any, **settings: Any) -> LinearAxis:
    axis = LinearAxis(
        axis_label=label,
        formatter=formatter,
        axis_label_text_font=_FONT,
        axis_label_text_font_size=_SMALL,
        axis_label_text_font_style="normal",
        major_label_text_font=_FONT,
        major_label_text_font_size=_SMALL,
        minor_tick_line_color=None,
        **settings,
    )
    _themed(
        axis,
        axis_label_text_color="soft",
        major_label_text_color="soft",
        axis_line_color="rule",
        major_tick_line_color="rule",
    )
    plot.add_layout(axis, side)
    return axis


def _themed(model: Any, **colours: str) -> Any:
    model.tags = [f"{name}={variable}" for name, variable in colours.items()]
    return model


def _item(plot: Plot) -> dict[str, Any]:
    item: dict[str, Any] = dict(json_item(plot, ID(f"figure-{plot.name}")))
    return item
