"""The results as the page's script reads them: columns of values, names once, the rest by index.

Covers: the JSON in the page, small enough for tens of thousands of columns.
Does not cover: what the page shows without its script (see `dpipe.report.page`).
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from dpipe.model import Decision
from dpipe.report.matrix import communities_of, community_order, condense, pack
from dpipe.report.results import Matrix, Results
from dpipe.report.words import KEPT, reason_key, reason_label

LONGEST_REASON = 200
"""Characters of a reason on the page; ``decisions.csv`` has it in full."""

SAMPLE_BYTES = 600_000
_MATRIX_PASS = {"spearman": 2, "hsic": 4, "rdc": 4}


def payload(results: Results) -> dict[str, Any]:
    """Everything the script needs, as plain values."""
    index = {d.column: i for i, d in enumerate(results.decisions)}
    return {
        "columns": _columns(results, index),
        "matrices": [_matrix(matrix, results, index) for matrix in results.matrices],
        "near": [
            [number, index[a], index[b], _number(value)]
            for number, pairs in sorted(results.near.items())
            for a, b, value in pairs
            if a in index and b in index
        ],
        "thresholds": {
            "2": results.options.get("spearman_threshold"),
            "4": results.options.get("nonlinear_threshold"),
        },
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


def _columns(results: Results, index: Mapping[str, int]) -> dict[str, Any]:
    decisions = results.decisions
    labels = {key: reason_label(key) for key in map(reason_key, decisions)}

    def coded(value_of: Callable[[Decision], str | None]) -> dict[str, Any]:
        return _coded(map(value_of, decisions))

    def listed(field: str) -> list[Any]:
        return [_number(getattr(d, field)) for d in decisions]

    def known(field: str) -> list[Any]:
        return [_number(results.statistics.get(d.column, {}).get(field)) for d in decisions]

    return {
        "name": [d.column for d in decisions],
        "type": coded(lambda d: d.dtype),
        "decision": coded(lambda d: d.decision),
        "pass": [d.pass_number for d in decisions],
        "kind": coded(reason_key),
        "labels": labels,
        "reason": coded(lambda d: _short_reason(d.reason)),
        "measure": coded(lambda d: d.measure),
        "value": listed("value"),
        "threshold": listed("threshold"),
        "representative": [
            index.get(d.representative, -1) if d.representative is not None else -1
            for d in decisions
        ],
        "community": listed("community"),
        "valid": listed("n_valid"),
        "missing": listed("n_missing"),
        "nan": listed("n_nan"),
        "inf": listed("n_inf"),
        "unique": listed("n_unique"),
        "min": known("minimum"),
        "max": known("maximum"),
        "mean": known("mean"),
    }


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
    communities = communities_of(results.decisions, _MATRIX_PASS[matrix.measure])
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
