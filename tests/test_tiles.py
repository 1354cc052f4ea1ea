"""What a task decides by itself: pairs to rank again, columns whose marginal moments are known.

Covers: the bound on how far a column's marginal ranks may turn from its ranks inside a pair, for
any values, ties and missing cells, and that it is the best there is; marginal moments of a block;
tiles of columns that need different numbers of functions.
Does not cover: that each such pair is ranked again (`test_pipeline`).
"""

from __future__ import annotations

import itertools
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from reference import dense_nhsic

from dpipe.engine import tiles
from dpipe.engine.machine import Limits, Machine
from dpipe.engine.tiles import Job, least_by_marginal_ranks
from dpipe.engine.tiles.job import open_job
from dpipe.engine.tiling import Tiling, tile_grid
from dpipe.kernels.copula import BASIS, DISTANCE_BASIS, PAIR_BASIS
from dpipe.kernels.fusion import Fusion
from dpipe.kernels.marginals import marginal_sums, whitened
from dpipe.kernels.ranks import RankedColumn, rank_column
from dpipe.model.records import ColumnStatistics
from dpipe.rankstore import Store, StoredColumn, build_catalogue, write_block

Array = NDArray[np.float64]


def ranks_inside(values: Array, rows: NDArray[np.bool_]) -> Array:
    ranks: Array = scipy.stats.rankdata(values[rows])
    return ranks


def rho(left: Array, right: Array) -> float:
    if np.ptp(left) == 0 or np.ptp(right) == 0:
        return 0.0
    return abs(float(np.corrcoef(left, right)[0, 1]))


def check(x: Array, y: Array) -> float:
    """That the pair would not be missed at the threshold it reaches; by how much, as a ratio."""
    valid_x, valid_y = ~np.isnan(x), ~np.isnan(y)
    joint = valid_x & valid_y
    if joint.sum() < 2:
        return 1.0
    own = [np.full(len(x), np.nan) for _ in range(2)]
    for column, values, valid in zip(own, (x, y), (valid_x, valid_y), strict=True):
        column[valid] = ranks_inside(values, valid)
    exact = rho(ranks_inside(x, joint), ranks_inside(y, joint))
    least = float(
        least_by_marginal_ranks(
            min(exact, 1.0),
            np.array([[joint.sum()]], dtype=float),
            np.array([[valid_x.sum()]]),
            np.array([[valid_y.sum()]]),
        )[0, 0]
    )
    found = rho(own[0][joint], own[1][joint])
    assert found >= least - 1e-7
    return found / max(least, 1e-9)


cells = st.one_of(st.none(), st.integers(0, 6))


@given(st.lists(st.tuples(cells, cells), min_size=2, max_size=40))
def test_no_pair_of_few_values_is_missed(rows: list[tuple[int | None, int | None]]) -> None:
    table = np.array(rows, dtype=float)
    check(table[:, 0], table[:, 1])


@given(st.integers(0, 2**32 - 1))
def test_no_pair_is_missed_whose_cells_are_missing_by_value(seed: int) -> None:
    dice = np.random.default_rng(seed)
    base = dice.random(300)
    columns = []
    for _ in range(2):
        column = base + dice.choice([0, 0.01, 0.1]) * dice.standard_normal(300)
        start, width = dice.random(2)
        column[(base > start) & (base < start + width * 0.6)] = np.nan
        columns.append(column * dice.choice([-1, 1]))
    check(columns[0], columns[1])


@pytest.mark.parametrize("lost", [0.1, 0.3, 0.5, 0.8])
def test_the_bound_is_reached(lost: float) -> None:
    n = 4000
    joint = np.linspace(0, 1, n)
    q = (1 - lost) / 6  # where the rows a column loses turn its ranks most: all at one place
    place = (1 - np.sqrt(1 - 4 * q)) / 2
    others = np.full(round(n * lost / (1 - lost)), place)
    x = np.concatenate([joint, others + 1e-9 * np.arange(len(others))])
    y = np.concatenate([joint, np.full(len(others), np.nan)])
    assert check(x, y) == pytest.approx(1, abs=2e-3)


def test_nothing_lost_nothing_below_the_threshold() -> None:
    count, n = np.array([[50.0]]), np.array([[50]])
    assert least_by_marginal_ranks(0.9, count, n, n)[0, 0] == pytest.approx(0.9)


def test_no_threshold_no_pair() -> None:
    least = least_by_marginal_ranks(
        np.inf, np.ones((1, 1)), np.ones((3, 1), int), np.ones((1, 2), int)
    )
    assert least.shape == (3, 2)
    assert np.isinf(least).all()


def statistics(name: str, ranked: RankedColumn) -> ColumnStatistics:
    known = {f.name: getattr(ranked, f.name, 0) for f in fields(ColumnStatistics)}
    return ColumnStatistics(**(known | {"name": name, "n_rows": len(ranked.scores)}))


@pytest.mark.parametrize("drawn", [None, np.arange(0, 600, 2)])
@pytest.mark.parametrize("kinds", ["untied", "tied", "both"])
def test_own_moments_of_a_block(
    kinds: str, drawn: NDArray[np.int64] | None, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    untied = [rng.random(600), rng.random(600)]
    tied = [rng.poisson(2.0, 600) * 1.0, np.where(rng.random(600) < 0.2, np.nan, rng.random(600))]
    columns = {"untied": untied, "tied": tied, "both": [untied[0], tied[0], untied[1]]}[kinds]
    ranked = [rank_column(column) for column in columns]
    store = Store(str(tmp_path / "ranks"))
    masks = [np.packbits(r.valid) for r in ranked if r.valid is not None]
    stored = [
        StoredColumn(statistics(f"c{k}", r), 0, k, -1 if r.valid is None else 0, "")
        for k, r in enumerate(ranked)
    ]
    write_block(store, 0, stored, [r.scores for r in ranked], masks)
    catalogue, names = build_catalogue({s.statistics.name: s for s in stored}, 600, drawn, BASIS)
    catalogue.save(store, "job/catalogue.npz")
    half = catalogue.n_rows // 2
    tiling = Tiling(BASIS, ((0, len(columns)),), ((0, half), (half, catalogue.n_rows)), 100)
    Job("job", tiling, Fusion.single("hsic")).save(store)
    tiles.marginals_finish(
        store, "job", 0, [tiles.marginals_partial(store, "job", 0, s) for s in (0, 1)]
    )
    found = store.read_arrays(tiles.marginals_name("job", 0))

    rows = slice(None) if drawn is None else drawn
    for k, name in enumerate(names):
        r = ranked[int(name[1:])]
        mask = None if r.valid is None else r.valid[None, rows]
        marginals = whitened(marginal_sums(r.scores[None, rows].astype(float), BASIS, mask))
        for field in ("count", "mean", "covariance"):
            np.testing.assert_allclose(found[field][k], getattr(marginals, field)[0], atol=1e-11)


def mixed(n: int) -> dict[str, Array]:
    """Flags, counts, ties and columns of many values, of each kind some with missing cells."""
    rng = np.random.default_rng(5)
    x = rng.random(n)
    columns = {
        "x": x,
        "square": (x - 0.4) ** 2 + 0.01 * rng.random(n),
        "noise": rng.random(n),
        "rounded": np.round(x + 0.2 * rng.random(n), 2),
        "flag": (x > 0.7).astype(float),
        "rare": (x > 0.95).astype(float),
        "three": np.floor(3 * x),
        "count": rng.poisson(2 * x).astype(float),
        "more": rng.poisson(9 * x).astype(float),
    }
    for name in [name for name in columns if name != "rare"]:
        columns[f"{name} with holes"] = np.where(rng.random(n) < 0.1, np.nan, columns[name])
    return columns


def similarities(
    columns: dict[str, Array], fusion: Fusion, functions: int, limits: Limits, folder: Path
) -> dict[str, Array]:
    """Matrices in the order of the columns, computed task by task in this process."""
    store = Store(str(folder))
    ranked = {name: rank_column(values) for name, values in columns.items()}
    masks = {k: np.packbits(r.valid) for k, r in ranked.items() if r.valid is not None}
    slots = {name: slot for slot, name in enumerate(masks)}
    stored = {
        name: StoredColumn(
            statistics(name, r), 0, k, slots.get(name, -1), name if r.valid is not None else ""
        )
        for k, (name, r) in enumerate(ranked.items())
    }
    write_block(
        store, 0, list(stored.values()), [r.scores for r in ranked.values()], list(masks.values())
    )
    n = len(next(iter(columns.values())))
    catalogue, names = build_catalogue(stored, n, None, functions)
    catalogue.save(store, "job/catalogue.npz")
    needed, complete = catalogue.functions.tolist(), catalogue.n_complete
    machine = Machine(2, 1, 2**31, limits=limits)
    tiling = tile_grid(n, needed[:complete], needed[complete:], functions, machine)
    Job("job", tiling, fusion).save(store)
    splits = range(len(tiling.splits))
    for block in range(len(tiling.blocks)):
        parts = [tiles.marginals_partial(store, "job", block, split) for split in splits]
        tiles.marginals_finish(store, "job", block, parts)
    place = [list(columns).index(name) for name in names]
    found = {name: np.empty((len(names), len(names))) for name in fusion.names}
    for i, j in tiling.tiles:
        moments = [tiles.moments_partial(store, "job", i, j, split) for split in splits]
        tiles.tile_finish(store, "job", i, j, tiles.merge(moments))
        rows, cols = (place[slice(*tiling.blocks[block])] for block in (i, j))
        arrays = store.read_arrays(tiles.tile_name("job", i, j))
        for name, matrix in found.items():
            matrix[np.ix_(rows, cols)] = arrays[f"matrix_{name}"]
            matrix[np.ix_(cols, rows)] = arrays[f"matrix_{name}"].T
    return found


SMALL = Limits(columns=4, functions=4 * PAIR_BASIS, fewest_columns=2, rows=300, fewest_rows=100)


def test_a_tile_of_flags_counts_and_ties_is_the_dense_hsic(tmp_path: Path) -> None:
    columns = mixed(600)
    found = similarities(columns, Fusion.single("hsic"), PAIR_BASIS, SMALL, tmp_path)["hsic"]
    holes = {name: np.isnan(values) for name, values in columns.items()}
    for a, x in enumerate(columns):
        for b, y in enumerate(columns):
            if holes[x].any() and holes[y].any() and x != y:
                continue
            joint = ~(holes[x] | holes[y])
            exact = dense_nhsic(columns[x][joint], columns[y][joint])
            # Missing cells: the moments are of the joint rows, the ranks of each column's own.
            assert found[a, b] == pytest.approx(exact, abs=1e-5 if joint.all() else 0.02), (x, y)


class Settled:
    """All pairs of some columns, as settling a stretch of their list measures them."""

    def __init__(
        self, columns: dict[str, Array], fusion: Fusion, limits: Limits, folder: Path
    ) -> None:
        similarities(columns, fusion, fusion.functions, limits, folder)
        self.store = Store(str(folder))
        _, catalogue = open_job(self.store, "job")
        # In the store's order complete columns come first; their slots are those of `columns`.
        held = [list(columns)[slot] for slot in catalogue.slot]
        pairs = np.array(list(itertools.combinations(range(len(held)), 2)))
        pairs = pairs[np.lexsort((*pairs.T[::-1], *catalogue.pattern[pairs].T[::-1]))]
        self.store.write_arrays("job/pairs-all.npz", {"i": pairs[:, 0], "j": pairs[:, 1]})
        self.pairs = [(held[a], held[b]) for a, b in pairs]

    def values(self, start: int, stop: int) -> Array:
        name = f"job/settled-{start}-{stop}.npz"
        tiles.settle(self.store, "job", "job/pairs-all.npz", name, start, stop)
        return self.store.read_arrays(name)["value"]

    def all(self) -> dict[tuple[str, str], float]:
        return dict(zip(self.pairs, self.values(0, len(self.pairs)).tolist(), strict=True))


@pytest.mark.parametrize("names", [["hsic"], ["hsic", "rdc", "dcor"]])
def test_a_settled_pair_is_measured_on_its_rows_whatever_is_settled_beside_it(
    names: list[str], tmp_path: Path
) -> None:
    columns, fusion = mixed(600), Fusion.of(dict.fromkeys(names, 1.0))
    settled = Settled(columns, fusion, SMALL, tmp_path)
    together = settled.all()
    for k, pair in enumerate(settled.pairs):
        assert settled.values(k, k + 1)[0] == together[pair]
    if names != ["hsic"]:
        return
    for (a, b), value in together.items():
        x, y = columns[a], columns[b]
        joint = ~(np.isnan(x) | np.isnan(y))
        assert value == pytest.approx(dense_nhsic(x[joint], y[joint]), abs=2e-6), (a, b)


def test_a_settled_pair_has_the_same_digits_in_any_tiling(tmp_path: Path) -> None:
    columns = mixed(3000) | {
        "same rows": np.where(np.arange(3000) % 7 == 3, np.nan, mixed(3000)["x"])
    }
    columns["and these"] = np.where(np.isnan(columns["same rows"]), np.nan, columns["noise"])
    fusion = Fusion.of({"hsic": 1, "rdc": 1, "dcor": 1})
    few = Settled(columns, fusion, SMALL, tmp_path / "few").all()
    assert few == Settled(columns, fusion, Limits(), tmp_path / "all").all()


def test_functions_that_no_column_of_a_block_needs_make_no_difference(tmp_path: Path) -> None:
    columns = mixed(900)
    fusion = Fusion.of({"hsic": 1, "rdc": 1, "dcor": 1})
    few = similarities(columns, fusion, DISTANCE_BASIS, SMALL, tmp_path / "few")
    wide = Limits(fewest_columns=100)  # no block for itself: every tile has all functions
    all_of_them = similarities(columns, fusion, DISTANCE_BASIS, wide, tmp_path / "all")
    for name in fusion.names:
        np.testing.assert_allclose(few[name], all_of_them[name], rtol=0, atol=2e-5)


def test_the_order_of_columns_makes_no_difference(tmp_path: Path) -> None:
    columns, fusion = mixed(700), Fusion.of({"hsic": 1, "rdc": 1})
    turned = dict(reversed(columns.items()))
    first = similarities(columns, fusion, PAIR_BASIS, SMALL, tmp_path / "first")
    other = similarities(turned, fusion, PAIR_BASIS, SMALL, tmp_path / "other")
    for name in fusion.names:
        np.testing.assert_allclose(other[name][::-1, ::-1], first[name], rtol=0, atol=2e-5)
