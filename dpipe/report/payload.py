"""The results as the page's script reads them: columns of values, names once, the rest by index.

Covers: the JSON in the page, small enough for tens of thousands of columns.
Does not cover: what the page shows without its script (see `dpipe.report.page`).
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from dpipe.model.records import Decision, Role
from dpipe.model.registry import PASSES
from dpipe.report.matrix import communities_of, community_order, condense, pack
from dpipe.report.results import Curve, Matrix, Results
from dpipe.report.words import DROPPED, KEPT, reason_label

LONGEST_REASON = 200
"""Characters of a reason on the page; ``decisions.csv`` has it in full."""

SAMPLE_BYTES = 600_000


def payload(results: Results) -> dict[str, Any]:
    """Everything the script needs, as plain values."""
    index = {d.column: i for i, d in enumerate(results.decisions)}
    return {
        "columns": _columns(results, index),
        "measures": {
            name: [label.title, label.symbol, label.signed]
            for name, label in results.measures.items()
        },
        "matrices": [_matrix(matrix, results, index) for matrix in results.matrices],
        "curves": [_curve(curve, index) for curve in results.curves],
        "near": [
            [number, index[a], index[b], _number(value)]
            for number, pairs in sorted(results.near.items())
            for a, b, value in pairs
            if a in index and b in index
        ],
        "passes": _passes(results),
        "chosen": [
            [index[step.column], _number(step.table), _number(step.target)]
            for step in results.chosen
            if step.column in index
        ],
        "decisions": {KEPT: KEPT, DROPPED: DROPPED} | {role.value: role.label for role in Role},
        "sample": _sample(results, index),
        "ledger": [
            [
                *(r.seconds, r.moment, r.pass_number, r.process, r.pid),
                *(r.rss, r.peak, r.device, r.device_peak),
            ]
            for r in results.ledger
        ],
    }


def dump(value: Any) -> str:
    r"""JSON that can stand inside a ``<script>`` element: it holds no ``<``.

    Examples
    --------
    >>> print(dump({"name": "</script>"}))
    {"name":"\u003c/script>"}
    """
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c")


def _passes(results: Results) -> dict[str, dict[str, Any]]:
    """Title and threshold of every pass, and whether its drops resemble their representative."""
    return {
        str(number): {
            "title": entry.title,
            "threshold": results.options.get(entry.threshold or ""),
            "pairwise": entry.pairwise,
            "rations": entry.rations,
        }
        for number, entry in PASSES.items()
    }


def _columns(results: Results, index: Mapping[str, int]) -> dict[str, Any]:
    decisions = results.decisions
    kinds = _kinds(decisions)

    def coded(value_of: Callable[[Decision], str | None]) -> dict[str, Any]:
        return _coded(map(value_of, decisions))

    def listed(field: str) -> list[Any]:
        return [_number(getattr(d, field)) for d in decisions]

    def known(field: str) -> list[Any]:
        return [_number(getattr(results.statistics.get(d.column), field, None)) for d in decisions]

    return {
        "name": [d.column for d in decisions],
        "type": coded(lambda d: d.dtype),
        "decision": coded(lambda d: d.decision),
        "pass": [d.pass_number for d in decisions],
        "kind": _coded(kinds),
        "kinds": _kind_labels(decisions, kinds),
        "reason": coded(lambda d: _short_reason(d.reason)),
        "measure": coded(lambda d: d.measure),
        "value": listed("value"),
        "threshold": listed("threshold"),
        "representative": [
            index.get(d.representative, -1) if d.representative is not None else -1
            for d in decisions
        ],
        "community": listed("community"),
        "relevance": listed("relevance"),
        "valid": listed("n_valid"),
        "missing": listed("n_missing"),
        "nan": listed("n_nan"),
        "inf": listed("n_inf"),
        "unique": listed("n_unique"),
        "min": known("minimum"),
        "max": known("maximum"),
        "mean": known("mean"),
    }


def _kinds(decisions: Sequence[Decision]) -> list[str | None]:
    """The pass and the reason of each drop, None for what was not dropped."""
    return [
        f"{d.pass_number} {reason_label(d)}" if d.decision == DROPPED else None for d in decisions
    ]


def _kind_labels(
    decisions: Sequence[Decision], kinds: Sequence[str | None]
) -> dict[str, dict[str, str]]:
    """Of each kind its label, the same with its pass, and how its representative was found."""
    labels = {}
    for kind, decision in zip(kinds, decisions, strict=True):
        if kind is not None and kind not in labels:
            label, cause = reason_label(decision), decision.cause
            number = decision.pass_number
            labels[kind] = {
                "label": label,
                "full": f"{label} (pass {number})",
                "partner": "" if cause is None else cause.partner,
            }
    return labels


def _short_reason(reason: str) -> str:
    if len(reason) <= LONGEST_REASON:
        return reason
    return f"{reason[: LONGEST_REASON - 1]}…"


def _coded(values: Iterable[str | None]) -> dict[str, Any]:
    """Texts that repeat, each once: its table and the entry of each column (-1 for None)."""
    table: dict[str, int] = {}
    codes = [-1 if value is None else table.setdefault(value, len(table)) for value in values]
    return {"table": list(table), "code": codes}


def _number(value: Any) -> float | int | str | None:
    """A number with six digits; infinite ones as text, undefined ones as None."""
    if value is None or isinstance(value, int):
        return value
    number = float(value)
    if math.isnan(number):
        return None
    if math.isinf(number):
        return "inf" if number > 0 else "-inf"
    rounded = float(f"{number:.6g}")
    return int(rounded) if rounded.is_integer() and abs(rounded) < 2**53 else rounded


def _matrix(matrix: Matrix, results: Results, index: Mapping[str, int]) -> dict[str, Any]:
    communities = communities_of(results.decisions, results.measures[matrix.measure].pass_number)
    order, sizes = community_order(matrix.columns, communities)
    small, step = condense(matrix.values, order)
    return {
        "measure": matrix.measure,
        "step": step,
        "side": len(small),
        "cells": pack(small),
        "order": [index.get(matrix.columns[i], -1) for i in order],
        "sizes": sizes,
    }


def _curve(curve: Curve, index: Mapping[str, int]) -> dict[str, Any]:
    """A curve: of each threshold a bit for each column, whether the pass would keep it."""
    place = {name: k for k, name in enumerate(curve.columns)}

    def bits(kept: Iterable[str]) -> str:
        flags = np.zeros(len(place), dtype=np.uint8)
        flags[[place[name] for name in kept]] = 1
        return base64.b64encode(np.packbits(flags, bitorder="little").tobytes()).decode()

    return {
        "pass": curve.number,
        "measure": curve.answers[0].measure,
        "threshold": curve.threshold,
        "columns": [index[name] for name in curve.columns],
        "now": bits(curve.kept),
        "thresholds": [answer.threshold for answer in curve.answers],
        "sizes": [len(answer.kept) for answer in curve.answers],
        "kept": [bits(answer.kept) for answer in curve.answers],
        "doubt": [answer.in_doubt for answer in curve.answers],
        "open": _coded(answer.left_open for answer in curve.answers),
    }


def _sample(results: Results, index: Mapping[str, int]) -> dict[str, Any] | None:
    """Ranks of the columns that another one can be compared with, on some rows."""
    if results.sample is None:
        return None
    stored = {name: row for row, name in enumerate(results.sample.columns)}
    wanted = [
        d.column
        for d in results.decisions
        if d.column in stored and (d.decision == KEPT or d.representative is not None)
    ]
    if not wanted:
        return None
    rows = min(results.sample.codes.shape[1], max(1, SAMPLE_BYTES // len(wanted)))
    chosen = np.linspace(0, results.sample.codes.shape[1] - 1, rows).astype(np.int64)
    codes = np.asarray(results.sample.codes[[stored[name] for name in wanted]])[:, chosen]
    return {
        "rows": rows,
        "columns": [index[name] for name in wanted],
        "codes": base64.b64encode(np.ascontiguousarray(codes).tobytes()).decode(),
    }
