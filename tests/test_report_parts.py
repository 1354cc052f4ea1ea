"""What the page of a run is made of: its sentences, its matrices, the order of their columns.

Covers: `dpipe.report.words`, `matrix` and `figures` against results worked out cell by cell.
Does not cover: the page (`test_report`).
"""

from __future__ import annotations

import base64

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from results import LABELS, LEDGER, constant, correlations, decision, dropped

from dpipe.report.figures import pass_spans
from dpipe.report.matrix import MISSING, communities_of, community_order, condense, pack
from dpipe.report.words import headline

# Words


def test_headline_says_how_many_stay_and_why_the_others_were_dropped() -> None:
    title, why, passed = headline(
        [
            *(decision(f"k{i}") for i in range(412)),
            *(dropped(f"r{i}", "k0") for i in range(1200)),
            *(dropped(f"n{i}", "k0", 4, threshold=0.9) for i in range(2)),
            constant("c"),
            dropped("l", "k0", 3, reason="linear combination of a (1), b (2)", threshold=1.0),
            dropped("v", "k0", 3, reason="inflated variance", measure="vif", threshold=10.0),
            dropped("m", "", 1, reason="too many missing values", threshold=0.5),
            decision("id", decision="id"),
            decision("t1", decision="not_numeric"),
            decision("t2", decision="not_numeric"),
        ],
        LABELS,
    )
    why = why.replace("\N{NO-BREAK SPACE}", " ").replace("\N{WORD JOINER}", "")
    assert title == "1,618 columns in, 412 kept"
    assert why == (
        "1,206 dropped: 1,200 redundant (|ρ| ≥ 0.95), 2 redundant (HSIC + RDC ≥ 0.9), "  # noqa: RUF001
        "1 constant, 1 linearly dependent on others, "
        "1 with a variance inflation factor above 10, 1 with more than 50 % missing."
    )
    assert passed == "3 more columns were not compared: 1 identifier, 2 not numeric."


def test_headline_tells_of_columns_with_thresholds_of_their_own_together() -> None:
    limits = [0.9, 0.88, 0.96, 0.91]
    predicted = [
        dropped(f"p{limit}", "a", 3, reason="predicted", measure="r2", threshold=limit)
        for limit in limits
    ]
    _, why, _ = headline([decision("a"), *predicted, dropped("r", "a")])
    assert "4\N{NO-BREAK SPACE}predicted by columns that stay" in why
    assert why.count("predicted") == 1
    assert "0.88 to 0.96" in why


def test_headline_does_not_say_a_number_twice() -> None:
    _, why, _ = headline([decision("a"), dropped("b", "a"), dropped("c", "a")])
    assert why.startswith("2 dropped: redundant (")
    assert headline([decision("a")])[1] == "No column was dropped."


def test_headline_of_a_reason_it_does_not_know() -> None:
    _, why, _ = headline([dropped("a", "", 1, reason="bad omen")])
    assert why == "1 dropped: for another reason (bad omen)."


# Matrices


def brute_force(values: np.ndarray, order: np.ndarray, step: int) -> np.ndarray:
    """Cell by cell: the value that is largest in size, without the diagonal if step > 1."""
    m = values[np.ix_(order, order)].copy()
    if step > 1:
        np.fill_diagonal(m, np.nan)
    side = -(-len(m) // step)
    out = np.full((side, side), np.nan)
    for i in range(side):
        for j in range(side):
            cell = m[i * step : (i + 1) * step, j * step : (j + 1) * step].ravel()
            cell = cell[~np.isnan(cell)]
            if len(cell):
                out[i, j] = cell[np.argmax(np.abs(cell))]
    return out


@given(
    size=st.integers(1, 23), cells=st.integers(1, 30), seed=st.integers(0, 99), gaps=st.booleans()
)
def test_condensed_cells_are_the_largest_of_their_pairs(
    size: int, cells: int, seed: int, gaps: bool
) -> None:
    values = correlations(size, seed)
    rng = np.random.default_rng(seed)
    if gaps:
        holes = np.triu(rng.random((size, size)) < 0.4)
        values[holes | holes.T] = np.nan
    order = rng.permutation(size)
    small, step = condense(values, order, cells)
    assert len(small) <= cells
    np.testing.assert_array_equal(small, brute_force(values, order, step).astype(np.float32))


def test_packed_cells_are_hundredths_of_the_upper_triangle() -> None:
    values = correlations(7)
    values[2, 5] = values[5, 2] = np.nan
    codes = np.frombuffer(base64.b64decode(pack(values)), dtype=np.int8)
    expected = values[np.triu_indices(7)]
    np.testing.assert_array_equal(codes == MISSING, np.isnan(expected))
    np.testing.assert_allclose(
        codes[~np.isnan(expected)] / 100, expected[~np.isnan(expected)], atol=0.005001
    )


def test_columns_stand_by_falling_size_of_their_community() -> None:
    names = [f"c{i}" for i in range(8)]
    groups = {"c7": 3, "c1": 3, "c2": 1, "c3": 1, "c6": 1, "c0": 9}
    order, sizes = community_order(names, groups)
    assert [names[i] for i in order] == ["c2", "c3", "c6", "c1", "c7", "c0", "c4", "c5"]
    assert sizes == [3, 2]


def test_a_representative_belongs_to_the_community_it_stands_for() -> None:
    rows = [
        dropped("b", "a", community=0),
        decision("a", community=4),  # a later pass found it in another community
        dropped("c", "a", 4, community=4),
        decision("alone"),
    ]
    assert communities_of(rows, 2) == {"a": 0, "b": 0}
    assert communities_of(rows, 4) == {"a": 4, "c": 4}


def test_pass_spans_leave_out_restarts() -> None:
    assert pass_spans(LEDGER) == [(1, 0.5, 3.0), (2, 4.0, 9.0)]
