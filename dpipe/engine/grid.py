"""One grid of tiles, as the client sees it: run it, settle its pairs, put its matrices together.

Covers: submitting a grid, reading its tiles, exact values of pairs in doubt, a matrix from tiles.
Does not cover: what a tile is (`dpipe.engine.tiles`), its size (`dpipe.engine.tiling`), what is
done with its pairs (`dpipe.passes`).
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpipe.engine import submit, tiles
from dpipe.engine.context import Context, Prepared
from dpipe.engine.tiling import tile_grid
from dpipe.kernels.fusion import Fusion
from dpipe.kernels.measure import Settling
from dpipe.model.events import Finding
from dpipe.model.records import Edges, Pairs
from dpipe.rankstore import Catalogue, Store, build_catalogue


@dataclass(frozen=True)
class Grid:
    """A finished grid: its job, its catalogue and the names of the catalogue's columns."""

    job: tiles.Job
    catalogue: Catalogue
    names: tuple[str, ...]


def run_grid(
    context: Context,
    prepared: Prepared,
    names: Sequence[str],
    title: str,
    fusion: Fusion,
    *,
    rows: NDArray[np.int64] | None = None,
    **settings: Any,
) -> Grid:
    """Compute measures of all pairs of `names`; tiles that a former run finished are kept.

    Parameters
    ----------
    context, prepared
        The run and its rank store.
    names
        Columns to compare.
    title
        Names its tasks, as in ``moments-spearman``, and its folder (see `remove_grids`).
    fusion
        The measures, and the mean of them that makes edges where `settings` have a threshold.
    rows
        Sorted draw of rows to look at; all when None.
    settings
        Further fields of `dpipe.engine.tiles.Job`.
    """
    grid = _opened(context, prepared, names, title, fusion, rows, settings)
    submit.run_grid(context.session, grid.job, context.store, title, context.emit, grid.names)
    return grid


def measured_pairs(
    context: Context,
    prepared: Prepared,
    pairs: Sequence[tuple[str, str]],
    title: str,
    fusion: Fusion,
    *,
    rows: NDArray[np.int64] | None = None,
    min_valid: int,
) -> NDArray[np.float64]:
    """Exact similarities of single pairs of columns, without any tile; NaN where there is none.

    Parameters
    ----------
    context, prepared, title, fusion, rows, min_valid
        As in `run_grid`.
    pairs
        Names of two columns each.
    """
    if not pairs:
        return np.empty(0)
    names = list(dict.fromkeys(name for pair in pairs for name in pair))
    settings = {"min_valid": min_valid, "matrix": False}
    grid = _opened(context, prepared, names, title, fusion, rows, settings)
    if fusion.settling is not Settling.RERANKED:  # which looks at ranks alone
        submit.run_marginals(
            context.session, grid.job, context.store, title, context.emit, grid.names
        )
    number = {name: index for index, name in enumerate(grid.names)}
    numbers = np.array([(number[a], number[b]) for a, b in pairs], dtype=np.int64)
    return settle(context, grid, numbers.min(axis=1), numbers.max(axis=1))


def _opened(
    context: Context,
    prepared: Prepared,
    names: Sequence[str],
    title: str,
    fusion: Fusion,
    rows: NDArray[np.int64] | None,
    settings: Mapping[str, Any],
) -> Grid:
    """A grid of which nothing is computed yet, its job and catalogue where the tasks find them."""
    parameters = {name: getattr(context.options, name) for name in fusion.parameters}
    functions = fusion.functions_for(parameters)
    catalogue, ordered = build_catalogue(
        {name: prepared[name] for name in names}, context.n_rows, rows, functions
    )
    needed, complete = catalogue.functions.tolist(), catalogue.n_complete
    tiling = tile_grid(
        catalogue.n_rows, needed[:complete], needed[complete:], functions, context.machine
    )
    job = tiles.Job(
        folder="",
        tiling=tiling,
        fusion=fusion,
        parameters=parameters,
        device=context.session.device,
        precision=context.options.precision,
        kept_bytes=context.machine.kept_bytes,
        **settings,
    )
    job = replace(job, folder=f"{_folders_of(title)}{_key(job, ordered, catalogue)}")
    catalogue.save(context.store, f"{job.folder}/catalogue.npz")
    job.save(context.store)
    return Grid(job, catalogue, ordered)


def remove_grids(store: Store, title: str) -> None:
    """Remove the tiles of every grid with this title, of this run and of former ones."""
    store.remove(_folders_of(title))


def _folders_of(title: str) -> str:
    return f"{title}-"


def _key(job: tiles.Job, names: Sequence[str], catalogue: Catalogue) -> str:
    """Names the folder of a grid's tiles by all that their content depends on."""
    depends = asdict(job) | {"kept_bytes": 0}  # what is kept decides speed only
    content = json.dumps([depends, list(names), catalogue.key]).encode()
    return hashlib.sha256(content).hexdigest()[:12]


def finished_tiles(context: Context, grid: Grid) -> Iterator[tuple[int, int, dict[str, Any]]]:
    """Every tile of a finished grid: (I, J, its arrays)."""
    for i, j in grid.job.tiling.tiles:
        name = tiles.tile_name(grid.job.folder, i, j)
        yield i, j, context.store.read_arrays(name)


MOST_PAIRS = 5_000_000
"""Pairs of a measure that are listed for a reader; the client holds some 50 bytes of each."""


def settled_pairs(context: Context, grid: Grid) -> Pairs:
    """All pairs a grid reported, those in doubt replaced by their exact value.

    Pairs that turn out to have no similarity are left out, and where more than `MOST_PAIRS` reach
    the job's floor, the weakest of those that do not decide: the floor is raised.
    """
    found, floor = reported_pairs(context, grid)
    value, exact = found["value"], found["exact"]
    # Apart, so that no last digit of what decides depends on what is listed beside it.
    for some in (found["decides"], ~found["decides"]):
        in_doubt = np.flatnonzero(some & ~exact)
        if len(in_doubt):
            value[in_doubt] = settle(context, grid, found["i"][in_doubt], found["j"][in_doubt])
    # Products in float32 are good enough where nothing is decided, but not exact.
    reranked = grid.job.fusion.settling is Settling.RERANKED
    exact = np.ones_like(exact) if reranked else ~exact
    defined = np.flatnonzero(~np.isnan(value))
    low, high = (part(found["i"], found["j"])[defined] for part in (np.minimum, np.maximum))
    order = np.lexsort((high, low))
    chosen = defined[order]
    edges = Edges(low[order], high[order], value[chosen])
    return Pairs(edges, found["rows"][chosen], exact[chosen], floor)


def _single_pairs(context: Context, grid: Grid, measure: str) -> Pairs:
    """The pairs of a measure that is part of the mean, as precise as the products of the grid."""
    found, floor = reported_pairs(context, grid, measure)
    order = np.lexsort((found["j"], found["i"]))
    edges = Edges(*(found[name][order] for name in ("i", "j", "value")))
    return Pairs(edges, found["rows"][order], found["exact"][order], floor)


def reported_pairs(
    context: Context, grid: Grid, measure: str | None = None
) -> tuple[dict[str, NDArray[Any]], float]:
    """What the tiles say of their pairs, bounded, and the floor from which on it is complete.

    Of a single measure where one is named; else of their mean.
    """
    floor = grid.job.floor
    found: dict[str, NDArray[Any]] = {
        name: np.empty(0, dtype) for name, dtype in tiles.EDGE_ARRAYS.items()
    }
    held: list[dict[str, NDArray[Any]]] = [found]

    def joined() -> dict[str, NDArray[Any]]:
        return {name: np.concatenate([part[name] for part in held]) for name in found}

    for _, _, arrays in finished_tiles(context, grid):
        held.append(_pairs_of(arrays, measure))
        if sum(len(part["i"]) for part in held) > 2 * MOST_PAIRS:
            bounded, floor = _strongest(joined(), floor)
            held = [bounded]
    return _strongest(joined(), floor)


def _pairs_of(arrays: Mapping[str, Any], measure: str | None) -> dict[str, NDArray[Any]]:
    """The pairs of a tile, with the fields of `tiles.EDGE_ARRAYS`."""
    if measure is None:
        return {name: arrays[name] for name in tiles.EDGE_ARRAYS}
    found = {name: arrays[f"{measure}_{name}"] for name in ("i", "j", "value", "rows")}
    no = np.zeros(len(found["i"]), dtype=np.bool_)
    return {**found, "exact": no, "decides": no, "most": np.abs(found["value"])}


def _strongest(
    found: dict[str, NDArray[Any]], floor: float
) -> tuple[dict[str, NDArray[Any]], float]:
    """The pairs that decide and `MOST_PAIRS` others at most; the floor of the others.

    A raised floor is a whole thousandth above which few enough are, in whatever order they came.
    """
    others = found["most"][~found["decides"]]
    if len(others) > MOST_PAIRS:
        last = len(others) - MOST_PAIRS - 1
        floor = float(np.floor(np.partition(others, last)[last] * 1000) + 1) / 1000
    kept = found["decides"] | (found["most"] >= floor - 1e-6)
    return {name: array[kept] for name, array in found.items()}, floor


def leave_pairs(context: Context, grid: Grid, number: int, pairs: Pairs) -> None:
    """Write the similar pairs of a pass into the run folder; say so when they were too many.

    Those of the mean that decides, and of each measure in it.
    """
    if context.folder is None:
        return
    fusion = grid.job.fusion
    listed = {fusion.name: pairs} | {
        measure.name: _single_pairs(context, grid, measure.name) for measure in fusion.singles
    }
    for name, found in listed.items():
        if found.floor > grid.job.floor:
            context.emit(
                Finding(
                    f"pairs.parquet lists the {name} pairs of pass {number} from "
                    f"{found.floor:.3f} on: more than {MOST_PAIRS:,} reach {grid.job.floor:g}.",
                    "notice",
                )
            )
    context.folder.write_pairs(number, grid.names, listed)


def settled_edges(context: Context, grid: Grid) -> Edges:
    """The edges of `settled_pairs`."""
    return settled_pairs(context, grid).edges


def settle(
    context: Context, grid: Grid, i: NDArray[np.int64], j: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Exact similarities of single pairs, (len(i),), computed on the workers.

    Each batch is left in the store when it is done, so that a later run repeats none of them.
    """
    order, cuts = _batches(context, grid, i, j)
    pairs = np.stack([i[order], j[order]])
    folder, key = grid.job.folder, hashlib.sha256(pairs.tobytes()).hexdigest()[:12]
    listed = f"{folder}/pairs-{key}.npz"
    context.store.write_arrays(listed, {"i": pairs[0], "j": pairs[1]})
    batches = list(itertools.pairwise(cuts))
    names = [tiles.settled_name(folder, key, start, stop) for start, stop in batches]
    finished = context.store.names(folder)
    todo = [
        (context.store, folder, listed, name, int(start), int(stop))
        for name, (start, stop) in zip(names, batches, strict=True)
        if name.removeprefix(f"{folder}/") not in finished
    ]
    for _ in submit.run_tasks(
        context.session,
        "settle-pairs",
        tiles.settle,
        todo,
        context.emit,
        need=context.machine.task_budget,
        describe=lambda index: f"{todo[index][-1] - todo[index][-2]} pairs of columns",
    ):
        pass
    values = np.empty(len(i))
    values[order] = np.concatenate([context.store.read_arrays(name)["value"] for name in names])
    return values


_COLUMN_BYTES = 64  # a row of a column that is ranked again: score, order, groups, ranks
_PAIRS_A_BATCH = 512
_RERANKED_A_BATCH = 4096  # they share the ranks of their columns
_SHARED = 128  # more than so many pairs are shared out among the threads


def _batches(
    context: Context, grid: Grid, i: NDArray[np.int64], j: NDArray[np.int64]
) -> tuple[NDArray[np.int64], list[int]]:
    """Order pairs so that neighbours share their valid rows and columns; where batches end.

    A batch ranks every column once per set of valid rows, and its columns fit a task.
    """
    pattern = grid.catalogue.pattern
    columns = context.machine.task_budget // (grid.catalogue.n_rows * _COLUMN_BYTES)
    reranked = grid.job.fusion.settling is Settling.RERANKED
    most = min(_RERANKED_A_BATCH if reranked else _PAIRS_A_BATCH, columns // 2)
    size = max(1, min(most, max(_SHARED, -(-len(i) // context.machine.slots))))
    order = np.lexsort((j, i, pattern[j], pattern[i]))
    return order, [*range(0, len(i), size), len(i)]


def assemble(
    context: Context,
    grid: Grid,
    measure: str,
    columns: Sequence[str],
    edges: Edges | None,
    out: NDArray[Any],
) -> None:
    """Put a measure's tiles together in the order of `columns`, settled values last.

    Parameters
    ----------
    columns
        All columns of the grid, in the order of the matrix's rows.
    edges
        Settled pairs (in the grid's own numbers) to write over the tiles' values.
    out
        (p, p) array to fill.
    """
    position = {name: index for index, name in enumerate(columns)}
    place = np.array([position[name] for name in grid.names], dtype=np.int64)
    for i, j, arrays in finished_tiles(context, grid):
        rows, cols = (place[slice(*grid.job.tiling.blocks[block])] for block in (i, j))
        values = arrays[f"matrix_{measure}"]
        out[np.ix_(rows, cols)] = values
        out[np.ix_(cols, rows)] = values.T
    if edges is not None:
        rows, cols = place[edges.i], place[edges.j]
        out[rows, cols] = edges.value
        out[cols, rows] = edges.value


def write_matrix(
    context: Context, grid: Grid, measure: str, columns: Sequence[str], edges: Edges | None
) -> None:
    """Write ``MEASURE.npy`` and its column names into the run folder, when it is to be written."""
    if context.folder is None or not grid.job.matrix:
        return
    with context.folder.write_matrix(measure, columns) as out:
        assemble(context, grid, measure, columns, edges, out)


def by_name(edges: Edges, names: Sequence[str], columns: Sequence[str]) -> Edges:
    """Edges between numbers of `names` as edges between numbers of `columns`."""
    position = {name: index for index, name in enumerate(columns)}
    place = np.array([position[name] for name in names], dtype=np.int64)
    return Edges.sorted(place[edges.i], place[edges.j], edges.value)
