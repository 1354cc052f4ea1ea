"""Whether a selection holds on new data, compared with pandas and with runs on the whole table.

Covers: values of dropped columns, certificates that break, kept columns that became redundant,
unfit or absent, ranges, the command with its exit code.
Does not cover: the measures themselves (see `test_tiles`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

import dpipe
from dpipe.cli import main
from dpipe.errors import InputError
from dpipe.pipeline.transfer import Transfer

PLAIN: dict[str, Any] = {"restart": "never", "min_valid": 50}


def frame(n: int = 400) -> pd.DataFrame:
    rng = np.random.default_rng(4)
    base = rng.normal(size=(n, 6))
    table = pd.DataFrame(base, columns=[f"x{i}" for i in range(6)])
    table["near"] = table["x0"] + 0.05 * rng.normal(size=n)
    table["holes"] = np.where(rng.random(n) < 0.1, np.nan, -(table["x1"] ** 3))
    table["curve"] = table["x2"] ** 2 + 0.01 * rng.normal(size=n)
    table["twice"] = 2 * table["x3"] + 1
    table["flat"] = 1.0
    return table


@pytest.fixture(scope="module")
def finished(cluster: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on the first half of a table."""
    folder = tmp_path_factory.mktemp("transfer") / "run"
    options = {**PLAIN, "nonlinear_threshold": 0.5}
    dpipe.select(frame()[:200], client=cluster, output_dir=folder, **options)
    return folder


def on(finished: Path, data: Any, client: Any) -> Transfer:
    return dpipe.transfer(finished, data, client=client, restart="never")


def test_every_dropped_column_has_its_value_on_the_new_data(finished: Path, client: Any) -> None:
    new = frame()[200:]
    answer = on(finished, new, client)
    assert answer.holds, answer.lines
    assert answer.broken == answer.redundant == answer.unfit == answer.absent == ()
    spearman = [each for each in answer.certificates if each.measure == "spearman"]
    assert {each.column for each in spearman} >= {"holes"}
    for each in spearman:
        expected = new[each.column].corr(new[each.representative], method="spearman")
        assert each.now == pytest.approx(expected, abs=1e-9)
        old = frame()[:200]
        before = old[each.column].corr(old[each.representative], method="spearman")
        assert each.before == pytest.approx(before, abs=1e-6) or each.before == 1
    (curve,) = [each for each in answer.certificates if each.measure == "hsic+rdc"]
    hsic = dpipe.hsic(new, client=client, restart="never")
    rdc = dpipe.rdc(new, client=client, restart="never")
    i, j = (hsic.columns.index(name) for name in (curve.column, curve.representative))
    assert curve.now == pytest.approx((hsic.values[i, j] + rdc.values[i, j]) / 2, abs=2e-5)


def test_what_breaks_is_named(finished: Path, client: Any) -> None:
    new = frame()[200:].copy()
    rng = np.random.default_rng(5)
    new["holes"] = rng.normal(size=len(new))
    new["x4"] = new["x5"] + 0.01 * rng.normal(size=len(new))
    new.loc[new.index[0], "x0"] = 1e6
    answer = on(finished, new, client)
    assert not answer.holds
    (broken,) = answer.broken
    assert "holes" in (broken.column, broken.representative)
    assert {(each.first, each.second) for each in answer.redundant} == {("x4", "x5")}
    rho = new["x4"].corr(new["x5"], method="spearman")
    assert answer.redundant[0].value == pytest.approx(rho, abs=1e-9)
    assert ("x0", 1e6) in [(name, high) for name, _, _, _, high in answer.outside]
    text = "\n".join(answer.lines)
    for words in ("does not hold", "holes", "x4 and x5, both kept", "x0 ranges from"):
        assert words in text


def test_columns_that_are_absent_or_unfit_are_named(finished: Path, client: Any) -> None:
    kept = (finished / "selected.txt").read_text().split()
    gone, flat = [name for name in kept if name.startswith("x")][:2]
    new = frame()[200:].drop(columns=[gone, "flat"])
    new[flat] = 3.0
    answer = on(finished, new, client)
    assert answer.absent == (gone, "flat")
    assert answer.lost == 1
    assert answer.unfit == ((flat, "constant"),)
    assert not answer.holds
    with pytest.raises(InputError, match="has none of the columns of the run"):
        on(finished, pd.DataFrame({"other": [1.0, 2.0, 3.0]}), client)


@pytest.mark.parametrize("broken", [False, True])
def test_the_command_says_it_and_ends_with_0_or_4(
    finished: Path, tmp_path: Path, broken: bool
) -> None:
    new = frame()[200:].copy()
    if broken:
        new["near"] = new["x0"].sample(frac=1, random_state=0).to_numpy()
    new.to_parquet(tmp_path / "new.parquet")
    words = ["transfer", str(finished), str(tmp_path / "new.parquet"), "--workers", "1"]
    result = CliRunner().invoke(main, [*words, "--device", "cpu"])
    assert result.exit_code == (4 if broken else 0), result.output
    assert ("does not hold on 200 rows" if broken else "holds on 200 rows") in result.stdout
    assert ("near" in result.stdout) is broken
