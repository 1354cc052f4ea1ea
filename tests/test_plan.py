"""The planner: what is enumerated covers the work, what is planned fits, what cannot is refused."""

from __future__ import annotations

import heapq
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpipe.engine import memory
from dpipe.engine.machine import Machine
from dpipe.engine.plan import check_client, check_disk
from dpipe.engine.tiling import FAN_IN, Tiling, even_blocks, ranking_blocks, tile_grid
from dpipe.errors import InputError, ResourceError
from dpipe.kernels.copula import BASIS
from dpipe.model.registry import PASSES
from dpipe.options import Options, options_from, parse_size
from dpipe.passes import make_plan

GIB = 2**30
machines = st.builds(
    Machine, st.integers(1, 64), st.integers(1, 4), st.sampled_from([4 * GIB, 32 * GIB])
)


def covers(pieces: tuple[tuple[int, int], ...] | list[tuple[int, int]], stop: int) -> bool:
    """Whether pieces follow each other from 0 to `stop` without gap, overlap or empty one."""
    edges = [0, *(end for _, end in pieces)]
    return edges[-1] == stop and all(
        piece == (start, end) and start < end
        for piece, start, end in zip(pieces, edges, edges[1:], strict=False)
    )


@given(st.integers(1, 10_000), st.integers(1, 500))
def test_even_blocks__cover_and_differ_by_at_most_one(size: int, widest: int) -> None:
    blocks = even_blocks(0, size, widest)
    widths = {stop - start for start, stop in blocks}
    assert covers(blocks, size)
    assert max(widths) <= widest
    assert max(widths) - min(widths) <= 1
    assert len(blocks) == -(-size // widest)


@given(
    st.integers(1, 3_000_000),
    st.integers(0, 3000),
    st.integers(0, 3000),
    st.sampled_from([1, BASIS]),
    machines,
)
def test_tile_grid__covers_all_pairs_and_rows_within_the_budget(
    rows: int, complete: int, incomplete: int, functions: int, machine: Machine
) -> None:
    if complete + incomplete == 0:
        incomplete = 1
    needed = [sorted(1 + k % functions for k in range(p)) for p in (complete, incomplete)]
    grid = tile_grid(rows, needed[0], needed[1], functions, machine)
    n = len(grid.blocks)
    assert covers(grid.blocks, complete + incomplete)
    assert covers(grid.splits, rows)
    assert all(not start < complete < stop for start, stop in grid.blocks)
    assert grid.widest <= machine.limits.widest(functions, on_card=False)
    assert len(grid.tiles) == len(set(grid.tiles)) == n * (n + 1) // 2
    assert all(i <= j < n for i, j in grid.tiles)
    assert grid.task_bytes <= machine.task_budget
    assert grid.n_tasks >= len(grid.tiles) * len(grid.splits)


@pytest.mark.parametrize(("blocks", "tiles"), [(1, 1), (2, 3), (20, 210)])
def test_tiling__pins_the_number_of_tiles(blocks: int, tiles: int) -> None:
    columns = tuple((k, k + 1) for k in range(blocks))
    grid = Tiling(1, columns, ((0, 10),), 10)
    assert len(grid.tiles) == grid.n_tasks == tiles


def test_tiling__counts_the_tasks_of_the_tree_sum() -> None:
    splits = tuple((k, k + 1) for k in range(FAN_IN**2))
    grid = Tiling(1, ((0, 5),), splits, 1)
    assert grid.n_tasks == FAN_IN**2 + FAN_IN + 1 + 1  # partials, two levels of sums, the finish


@given(st.integers(1, 5_000_000), st.integers(1, 5000), machines, st.integers(1, 5000))
def test_ranking_blocks__cover_the_columns_within_the_budget(
    rows: int, columns: int, machine: Machine, files: int
) -> None:
    blocks = ranking_blocks(rows, columns, 65536, machine, files)
    widest = max(stop - start for start, stop in blocks)
    assert covers(blocks, columns)
    assert memory.ranking_bytes(rows, widest, 65536) <= machine.task_budget


def test_ranking_blocks__are_one_for_each_thread_where_files_are_many() -> None:
    machine = Machine(2, 1, 4 * GIB)
    assert len(ranking_blocks(200_000, 400, 200, machine, files=1000)) == 2
    assert len(ranking_blocks(200_000, 400, 65536, machine, files=4)) == 8
    assert len(ranking_blocks(200_000, 400, 200, Machine(2, 1, 2**29), files=1000)) > 4


@pytest.mark.parametrize(
    ("text", "size"),
    [("2gb", 2e9), ("2GIB", 2**31), ("1.5k", 1500), ("7", 7)],
)
def test_sizes_are_read_in_any_case(text: str, size: float) -> None:
    assert parse_size(text) == size


def test_whole_numbers_stay_exact_and_weights_finite() -> None:
    assert options_from({"seed": 2**53 + 1}).seed == 2**53 + 1
    with pytest.raises(InputError, match=r"--w-hsic must be at least 0, not inf"):
        options_from({"w_hsic": "inf"})


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (1, 5), (2, 1), (2, 7), (5_000_000, 3)])
def test_make_plan__takes_odd_shapes(rows: int, columns: int) -> None:
    plan = make_plan(rows, columns, Options(), Machine(8, 1, 2 * GIB))
    assert [planned.number for planned in plan.passes] == [1, 2, 3, 4]
    assert all(planned.tasks >= 1 for planned in plan.passes)


def test_make_plan__pubchem_on_64_workers() -> None:
    machine = Machine(64, 1, 32 * GIB)
    plan = make_plan(120_000_000, 1826, Options(), machine)
    assert all(planned.worker_bytes <= machine.memory for planned in plan.passes)
    assert all(64 <= planned.tasks < 100_000 for planned in plan.passes)
    assert plan.scratch_bytes > 120_000_000 * 1826 * 4
    assert plan.client_bytes < GIB


def test_make_plan__wide_table_on_small_workers() -> None:
    machine = Machine(2, 1, 2 * GIB)
    plan = make_plan(2000, 40_000, Options(passes=(1, 2)), machine)
    assert all(planned.worker_bytes <= machine.memory for planned in plan.passes)
    assert plan.client_bytes == Options().matrix_budget


@given(st.integers(10, 10**7), st.integers(2, 3000), st.integers(1, 4), machines)
def test_make_plan__counts_a_grid_for_every_target(
    rows: int, columns: int, targets: int, machine: Machine
) -> None:
    names = tuple(f"y{number}" for number in range(targets))
    none, some = (
        make_plan(rows, columns, Options(max_columns=2, target=target), machine).passes[-1]
        for target in ((), names)
    )
    assert some.tasks >= (1 + targets) * none.tasks + targets
    assert some.operations > (1 + targets) * none.operations
    assert none.worker_bytes <= some.worker_bytes <= machine.memory
    assert some.client_bytes == none.client_bytes + targets * 8 * columns**2
    check_client(PASSES[5], columns, some.client_bytes, also=targets)
    with pytest.raises(ResourceError, match="pass 5"):
        check_client(PASSES[5], columns, some.client_bytes - 1, also=targets)


def test_make_plan__more_workers_than_columns_leaves_some_idle() -> None:
    plan = make_plan(1000, 3, Options(passes=(1,)), Machine(64, 1, 2 * GIB))
    assert plan.passes[0].tasks <= 3


@given(
    st.integers(1, 10**10),
    st.integers(1, 2000),
    st.integers(100 * 2**20, 8 * GIB),
    st.integers(1, 8),
    st.sampled_from([(1,), (1, 2), (1, 2, 3, 4)]),
)
def test_make_plan__refuses_what_cannot_fit_and_the_size_it_names_is_enough_when_typed(
    rows: int, columns: int, given_bytes: int, threads: int, passes: tuple[int, ...]
) -> None:
    options = Options(passes=passes)
    try:
        make_plan(rows, columns, options, Machine(2, threads, given_bytes))
    except ResourceError as refused:
        named = re.search(r"set --memory-limit to at least ([0-9.]+[MG]iB), or ", str(refused))
        assert named is not None
        enough = parse_size(named[1])
        assert enough > given_bytes
        assert make_plan(rows, columns, options, Machine(2, threads, enough))
        less = parse_size(f"{parse_size(named[1]) * 0.88:.0f}")  # and it is not much too large
        with pytest.raises(ResourceError):
            make_plan(rows, columns, options, Machine(2, threads, less))


def test_make_plan__names_no_limit_that_the_machine_cannot_give() -> None:
    sentence = r"it takes workers of [0-9.]+GiB, or a draw with --sample-rows\.$"
    for most in (8 * GIB, 0):
        with pytest.raises(ResourceError, match=sentence):
            make_plan(10**9, 10, Options(), Machine(2, 1, 8 * GIB, most_memory=most))


def test_make_plan__refuses_a_worker_too_small_for_any_tile() -> None:
    with pytest.raises(ResourceError, match="--memory-limit"):
        make_plan(1000, 10, Options(), Machine(1, 8, parse_size("300MiB")))


def test_check_disk__names_both_sizes() -> None:
    plan = make_plan(1_000_000, 500, Options(), Machine(2, 1, 2 * GIB))
    check_disk(plan, plan.scratch_bytes, "/scratch")
    sentence = r"needs 1\.9 GiB but /scratch has 1\.0 GiB free; .*--scratch-dir"
    with pytest.raises(ResourceError, match=sentence):
        check_disk(plan, GIB, "/scratch")


def test_check_client__names_the_options_that_help() -> None:
    check_client(PASSES[3], 2000, GIB)
    with pytest.raises(ResourceError, match=r"40,000 columns need 71\.5 GiB .*--passes 1,2,4"):
        check_client(PASSES[3], 40_000, 8 * GIB)


# Cards


def test_a_card_gets_wide_tiles_and_a_lone_worker_no_splits() -> None:
    grid = tile_grid(1_000_000, [BASIS] * 1000, [], BASIS, Machine(1, 1, 120 * GIB, 80 * GIB))
    assert (grid.blocks, len(grid.splits)) == (((0, 1000),), 1)
    several = tile_grid(1_000_000, [BASIS] * 1000, [], BASIS, Machine(4, 1, 120 * GIB, 80 * GIB))
    assert len(several.tiles) * len(several.splits) >= 12
    on_cpu = tile_grid(1_000_000, [BASIS] * 1000, [], BASIS, Machine(1, 1, 120 * GIB))
    assert on_cpu.widest < grid.widest


@given(
    st.integers(1, 3_000_000),
    st.integers(1, 3000),
    st.sampled_from([1, BASIS]),
    st.integers(4, 140),
    st.integers(1, 4),
)
def test_tiles_fit_the_card(
    rows: int, columns: int, functions: int, card: int, threads: int
) -> None:
    machine = Machine(1, threads, 64 * GIB, card * GIB)
    grid = tile_grid(rows, [functions] * columns, [], functions, machine)
    need = memory.device_tile_bytes(grid.widest, functions, grid.chunk_rows)
    assert threads * need + machine.kept_bytes <= 0.8 * card * GIB


def test_a_card_that_is_too_small_is_refused_in_one_sentence() -> None:
    machine = Machine(1, 2, 64 * GIB, GIB // 2)
    for refused in (
        lambda: tile_grid(1000, [BASIS] * 100, [], BASIS, machine),
        lambda: ranking_blocks(100_000_000, 10, 1000, machine),
    ):
        with pytest.raises(ResourceError, match=r"needs .* on the card but a task there has") as e:
            refused()
        assert "fewer --threads-per-worker" in str(e.value)
        assert "nvidia-smi" in str(e.value)


@pytest.mark.parametrize("workers", [3, 4, 16, 64, 100])
def test_tasks_of_a_tall_table_end_together(workers: int) -> None:
    machine = Machine(workers, 1, 16 * GIB)
    n_rows, n_columns = 120_000_000, 1826
    widths = [stop - start for start, stop in ranking_blocks(n_rows, n_columns, 2**17, machine)]
    tiling = tile_grid(n_rows, [12] * n_columns, [], 12, machine)
    halves = [1 if i == j else 2 for i, j in tiling.tiles for _ in tiling.splits]
    for work in (widths, halves):
        assert busy(work, workers) > 0.9


def busy(work: list[int], slots: int) -> float:
    """The share of their time that threads work, each taking the next task when it is free."""
    ends = [0] * slots
    for size in work:
        heapq.heapreplace(ends, ends[0] + size)
    return sum(work) / (slots * max(ends))
