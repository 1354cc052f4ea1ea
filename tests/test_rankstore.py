"""The rank store: pieces equal rows of the whole, whole files only, local and remote."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from pathlib import Path

import fsspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from dpipe.errors import ResourceError
from dpipe.model.records import ColumnStatistics
from dpipe.rankstore import (
    Catalogue,
    Store,
    StoredColumn,
    build_catalogue,
    finished_blocks,
    is_intact,
    load_catalogue,
    packed_length,
    read_block_columns,
    read_piece,
    tell_apart,
    write_block,
)

ROWS = 203  # no multiple of 8


def statistics(name: str, n_valid: int = ROWS) -> ColumnStatistics:
    return ColumnStatistics(
        **{"name": name, "n_rows": ROWS, "n_valid": n_valid, "n_unique": 9, "rank_hash": name},
        **dict.fromkeys(("n_null", "n_nan", "n_inf"), 0),
        **dict.fromkeys(
            ("minimum", "maximum", "mean", "variance", "normalised_variance"),
            0.0,
        ),
        **dict.fromkeys(("q025", "q975", "top_share"), 0.0),
    )


class Filled:
    """Two blocks of five columns; columns 1 and 3 of each have missing cells."""

    def __init__(self, store: Store) -> None:
        rng = np.random.default_rng(0)
        self.store = store
        self.scores: dict[str, NDArray[np.float32]] = {}
        self.valid: dict[str, NDArray[np.bool_]] = {}
        prepared: dict[str, StoredColumn] = {}
        for block in range(2):
            columns, scores, masks = [], [], []
            for k in (0, 2, 4, 1, 3):  # complete ones first, as pass 1 writes them
                name = f"c{block}{k}"
                valid = rng.random(ROWS) < (0.7 if k % 2 else 2.0)
                values = np.where(valid, rng.random(ROWS) - 0.5, 0).astype(np.float32)
                self.scores[name], self.valid[name] = values, valid
                slot, valid_slot = len(scores), len(masks) if k % 2 else -1
                scores.append(values)
                if k % 2:
                    masks.append(np.packbits(valid))
                column = StoredColumn(
                    statistics(name), block, slot, valid_slot, name if k % 2 else ""
                )
                columns.append(column)
                prepared[name] = column
            write_block(store, block, columns, scores, masks)
        self.prepared = prepared

    def catalogue(self, rows: NDArray[np.int64] | None = None) -> tuple[Catalogue, tuple[str, ...]]:
        return build_catalogue(self.prepared, ROWS, rows)


@pytest.fixture(params=["local", "remote"])
def filled(request: pytest.FixtureRequest, tmp_path: Path) -> Filled:
    if request.param == "local":
        return Filled(Store(str(tmp_path / "ranks")))
    filesystem = fsspec.filesystem("memory")
    filesystem.store.clear()
    return Filled(Store("memory://ranks"))


def test_tell_apart__compares_columns_of_one_fingerprint_in_full(tmp_path: Path) -> None:
    rising = np.linspace(-0.5, 0.5, ROWS, dtype=np.float32)
    other = np.roll(rising, 1)
    holes, more = (np.arange(ROWS) % 5 != k for k in (0, 1))
    content = {  # scores, mask, first sign
        "a": (rising, None, -1),
        "like a": (rising, None, -1),
        "a reversed": (-rising, None, 1),
        "other": (other, None, 1),
        "other reversed": (-other, None, -1),
        "holes": (rising * holes, holes, -1),
        "like holes": (-rising * holes, holes, 1),
        "more": (rising * holes, more, -1),
    }
    store, masks, columns = Store(str(tmp_path)), [], []
    for slot, (name, (_, valid, sign)) in enumerate(content.items()):
        facts = replace(statistics(name), rank_hash="f", first_sign=sign)
        columns.append(StoredColumn(facts, 0, slot, -1 if valid is None else len(masks), ""))
        if valid is not None:
            masks.append(np.packbits(valid))
    write_block(store, 0, columns, [scores for scores, _, _ in content.values()], masks)
    told = tell_apart(store, columns, ROWS)
    assert told == ["f", "f", "f", "f-1", "f-1", "f-2", "f-2", "f-3"]
    renamed = [replace(columns[0], statistics=replace(columns[0].statistics, rank_hash="g"))]
    assert tell_apart(store, [*columns[3:5], *renamed], ROWS) == ["f", "f", "g"]


@pytest.mark.parametrize(
    ("start", "stop"), [(0, ROWS), (0, 1), (7, 9), (8, 16), (13, 202), (202, 203)]
)
@pytest.mark.parametrize("columns", [range(10), range(6), [9, 0, 3], [2], range(6, 10)])
def test_read_piece__equals_rows_of_the_whole(
    filled: Filled, start: int, stop: int, columns: range | list[int]
) -> None:
    catalogue, names = filled.catalogue()
    scores, valid = read_piece(filled.store, catalogue, columns, start, stop)
    chosen = [names[column] for column in columns]
    expected = np.stack([filled.scores[name][start:stop] for name in chosen])
    np.testing.assert_array_equal(scores, expected)
    if all(column < catalogue.n_complete for column in columns):
        assert valid is None
    else:
        assert valid is not None
        np.testing.assert_array_equal(
            valid, np.stack([filled.valid[name][start:stop] for name in chosen])
        )


def test_read_piece__with_threads_into_given_memory(filled: Filled) -> None:
    catalogue, _ = filled.catalogue()
    made = []

    def empty(shape: tuple[int, ...], dtype: type) -> np.ndarray:
        made.append(np.full(shape, np.nan, dtype))
        return made[-1]

    columns = range(len(catalogue))
    expected = read_piece(filled.store, catalogue, columns, 3, ROWS - 2)
    found = read_piece(filled.store, catalogue, columns, 3, ROWS - 2, empty=empty, readers=3)
    assert found[0] is made[0]
    for here, there in zip(expected, found, strict=True):
        np.testing.assert_array_equal(here, there)


@given(st.sets(st.integers(0, ROWS - 1), min_size=1), st.data())
def test_read_piece__of_a_draw_of_rows(drawn: set[int], data: st.DataObject) -> None:
    fsspec.filesystem("memory").store.clear()
    filled = Filled(Store("memory://draws"))
    rows = np.array(sorted(drawn), dtype=np.int64)
    catalogue, names = filled.catalogue(rows)
    start = data.draw(st.integers(0, len(rows) - 1))
    stop = data.draw(st.integers(start + 1, len(rows)))
    scores, valid = read_piece(filled.store, catalogue, range(10), start, stop)
    assert catalogue.n_rows == len(rows)
    assert valid is not None
    for place, name in enumerate(names):
        np.testing.assert_array_equal(scores[place], filled.scores[name][rows[start:stop]])
        np.testing.assert_array_equal(valid[place], filled.valid[name][rows[start:stop]])


def test_read_piece__of_a_few_rows_of_many_takes_little_memory(tmp_path: Path) -> None:
    n, width = 1_000_000, 16
    rng = np.random.default_rng(0)
    columns = [rng.random(n, dtype=np.float32) for _ in range(width)]
    mask = np.packbits(np.ones(n, dtype=np.uint8))
    facts = replace(statistics("c", n), n_rows=n)
    stored = [StoredColumn(facts, 0, k, 0, "holes") for k in range(width)]
    store = Store(str(tmp_path / "ranks"))
    write_block(store, 0, stored, columns, [mask])
    rows = np.linspace(0, n - 1, 500).astype(np.int64)
    named = {f"c{k}": column for k, column in enumerate(stored)}
    catalogue, _ = build_catalogue(named, n, rows)
    tracemalloc.start()
    scores, valid = read_piece(store, catalogue, range(width), 0, len(rows))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    np.testing.assert_array_equal(scores, [column[rows] for column in columns])
    assert valid is not None
    assert valid.all()
    assert peak < 32 * 2**20  # all rows of these columns are 61 MiB of scores and 31 of masks


def test_catalogue__puts_complete_columns_first_and_comes_back(filled: Filled) -> None:
    catalogue, names = filled.catalogue()
    assert catalogue.n_complete == 6
    assert all(name[-1] in "024" for name in names[:6])
    assert len(set(catalogue.pattern[6:])) == 4
    catalogue.save(filled.store, "grid/catalogue.npz")
    load_catalogue.cache_clear()
    back = load_catalogue(filled.store, "grid/catalogue.npz")
    for key, value in vars(catalogue).items():
        np.testing.assert_array_equal(getattr(back, key), value)


def test_blocks__come_back_as_they_were_written(filled: Filled) -> None:
    columns = read_block_columns(filled.store, 1)
    assert {column.statistics.name: replace(column, checksum=0) for column in columns} == {
        name: column for name, column in filled.prepared.items() if column.block == 1
    }
    assert finished_blocks(filled.store, ROWS) == {0, 1}


@pytest.mark.parametrize("suffix", ["f32", "bits"])
def test_finished_blocks__leaves_out_a_truncated_file(tmp_path: Path, suffix: str) -> None:
    filled = Filled(Store(str(tmp_path)))
    path = tmp_path / f"block-00001.{suffix}"
    path.write_bytes(path.read_bytes()[:-1])
    assert finished_blocks(filled.store, ROWS) == {0}


@pytest.mark.parametrize("suffix", ["f32", "bits", "json"])
def test_finished_blocks__leaves_out_a_block_that_lacks_a_file(tmp_path: Path, suffix: str) -> None:
    filled = Filled(Store(str(tmp_path)))
    (tmp_path / f"block-00000.{suffix}").unlink()
    assert finished_blocks(filled.store, ROWS) == {1}


@pytest.mark.parametrize("suffix", ["f32", "bits"])
@pytest.mark.parametrize("damage", [b"\0", b"\xa5"])
def test_is_intact__tells_a_page_that_never_reached_the_disk(
    tmp_path: Path, suffix: str, damage: bytes
) -> None:
    filled = Filled(Store(str(tmp_path)))
    assert all(is_intact(filled.store, number, ROWS) for number in (0, 1))
    path = tmp_path / f"block-00001.{suffix}"
    content = path.read_bytes()
    path.write_bytes(content[:-8] + damage * 8)
    assert finished_blocks(filled.store, ROWS) == {0, 1}
    assert is_intact(filled.store, 0, ROWS)
    assert not is_intact(filled.store, 1, ROWS)


def test_read_piece__of_a_truncated_file_says_so(tmp_path: Path) -> None:
    filled = Filled(Store(str(tmp_path)))
    path = tmp_path / "block-00000.f32"
    path.write_bytes(path.read_bytes()[: 4 * ROWS])
    with pytest.raises(ResourceError, match="ends early; run again with --fresh"):
        read_piece(filled.store, filled.catalogue()[0], range(10), 0, ROWS)


def test_packed_length() -> None:
    assert [packed_length(n) for n in (0, 1, 8, 9)] == [0, 1, 1, 2]
