"""A pass and a rule of one's own, added as docs/extending.md says and in no other way.

Covers: a pass registered here alone goes through plan, run, resume, report and verify; a rule
decides.
Does not cover: the passes and rules that come with dpipe (`test_pipeline`, `test_verify`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tables import write_parts

from dpipe import pipeline
from dpipe.choice import rules
from dpipe.choice.rules import Rule, first_broken
from dpipe.engine.context import Context, Prepared
from dpipe.engine.machine import Machine
from dpipe.engine.plan import TableShape
from dpipe.errors import InputError, VerificationError
from dpipe.model.events import PassDone, PlannedPass
from dpipe.model.records import ColumnStatistics, Drop, PassResult
from dpipe.model.registry import PASSES, Pass, Reason
from dpipe.options import Options
from dpipe.verify import verify
from dpipe.verify.checks import CHECKS, Claims, Failures, PassCheck
from dpipe.verify.columns import RankedColumns

LONGER_NAMES = Pass(
    number=6,
    name="names",
    title="Longer names",
    module=__name__,
    reasons=(Reason.REDUNDANT,),
    threshold="spearman_threshold",
)


def run(this: Pass, context: Context, prepared: Prepared, columns: Sequence[str]) -> PassResult:
    """Drop each column whose name begins with that of another one."""
    limit = context.options.spearman_threshold
    drops = tuple(
        Drop(name, this.number, Reason.REDUNDANT, "prefix", 1.0, limit, shorter)
        for name in columns
        for shorter in columns
        if name != shorter and name.startswith(shorter)
    )
    gone = {drop.column for drop in drops}
    return PassResult(this.number, this.name, tuple(c for c in columns if c not in gone), drops)


def plan(this: Pass, table: TableShape, options: Options, machine: Machine) -> PlannedPass:
    return PlannedPass(this.number, this.name, table.n_columns, 0, 0, 0, 0.0, "names alone")


def check(claims: Claims, columns: RankedColumns, rows: object) -> Failures:
    for row in claims.dropped_by(6):
        claims.compared["longer names"] += 1
        if not row.column.startswith(str(row.representative)):
            yield f"{row.column!r} does not begin like {row.representative!r}"


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PASSES, 6, LONGER_NAMES)
    rule = PassCheck(lambda options: {"redundant": ("prefix", options.spearman_threshold)}, check)
    monkeypatch.setitem(CHECKS, 6, rule)


@pytest.fixture
def client() -> Iterator[Any]:
    """A client of a worker in this process."""
    from distributed import Client, LocalCluster

    with (
        LocalCluster(
            n_workers=1,
            threads_per_worker=2,
            processes=False,
            protocol="tcp",
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",
            memory_limit="2GiB",
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client


def test_a_pass_that_is_not_registered_cannot_be_asked_for() -> None:
    with pytest.raises(InputError, match=r"out of 1,2,3,4 that has 1 in it"):
        Options(passes=(1, 6))


@pytest.mark.usefixtures("registered")
def test_a_registered_pass_goes_through_plan_run_report_and_verify(
    client: Any, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    names = ("weight", "weight2", "height", "age")
    table = write_parts({name: rng.random(300) for name in names}, tmp_path / "table", parts=1)
    settings: dict[str, Any] = {"passes": (1, 6), "restart": "never", "device": "cpu"}
    planned = pipeline.plan_run([str(table)], Options(**settings))
    assert [(each.number, each.shape) for each in planned.passes][1:] == [(6, "names alone")]

    done: list[PassDone] = []

    def watch(event: object) -> None:
        if isinstance(event, PassDone):
            done.append(event)

    for _ in range(2):
        result = pipeline.run(
            [str(table)],
            Options(**settings),
            output_dir=tmp_path / "out",
            client=client,
            observers=[watch],
        )
        assert result.selected == ("weight", "height", "age")
    assert [(each.name, each.reused) for each in done][1::2] == [("names", False), ("names", True)]
    assert result.explain("weight2") == (
        "'weight2' was dropped by pass 6 (names): redundant, prefix 1 (threshold 0.95); "
        "'weight' stays."
    )
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "<small>6</small>Longer names</span>" in page
    assert '"6":{"title":"Longer names","threshold":0.95,"pairwise":true,' in page
    assert verify(tmp_path / "out").compared["longer names"] == 1


@pytest.mark.usefixtures("registered")
def test_the_check_of_a_registered_pass_is_asked(
    client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    data = {name: rng.random(300) for name in ("weight", "weight2")}
    table = write_parts(data, tmp_path / "table", parts=1)
    options = Options(passes=(1, 6), restart="never", device="cpu")
    pipeline.run([str(table)], options, output_dir=tmp_path / "out", client=client)
    monkeypatch.setitem(CHECKS, 6, PassCheck(lambda _: {"redundant": ("suffix", 0.5)}, check))
    with pytest.raises(VerificationError, match=r"where pass 6 uses suffix at 0\.5"):
        verify(tmp_path / "out")


def statistics(**changes: Any) -> ColumnStatistics:
    """A column that breaks no rule that comes with dpipe."""
    counts = {"n_rows": 100, "n_valid": 100, "n_null": 0, "n_nan": 0, "n_inf": 0, "n_unique": 90}
    numbers = {"minimum": 0.0, "maximum": 1.0, "mean": 0.5, "variance": 0.08}
    quantiles = {"normalised_variance": 0.08, "q025": 0.0, "q975": 1.0, "top_share": 0.02}
    fields = {"name": "a", **counts, **numbers, **quantiles, "rank_hash": "", **changes}
    return ColumnStatistics(**fields)


def test_a_rule_of_ones_own_decides_after_those_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    rule = Rule(
        Reason.LOW_VARIANCE,
        lambda column, limit: column.top_share > limit,
        measure="top_share",
        value=lambda column: column.top_share,
        option="max_missing_ratio",
    )
    options = Options(min_valid=100)
    lumpy, constant = statistics(top_share=0.9), statistics(top_share=1.0, maximum=0.0, n_unique=1)
    assert first_broken(lumpy, options) is None
    monkeypatch.setattr(rules, "RULES", (*rules.RULES, rule))
    assert first_broken(lumpy, options) is rule
    assert rule.drop(lumpy, 1, options) == Drop("a", 1, rule.reason, "top_share", 0.9, 0.5)
    broken = first_broken(constant, options)
    assert broken is not None
    assert broken.reason is Reason.CONSTANT
