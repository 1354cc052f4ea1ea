"""Drawing rows: seeded, nested, uniform, and the same whatever the order and layout of files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from dirty import write
from reading import PLAIN

from dpipe.table import Table, TableFile, draw_rows, open_table


def record(sizes: dict[str, int]) -> Table:
    """A table of files given by footer hash and rows."""
    files = tuple(
        TableFile(f"/{number}", rows, 0, 0, (rows,), digest)
        for number, (digest, rows) in enumerate(sizes.items())
    )
    return Table(files, ())


def drawn_of(table: Table, rows: Any) -> dict[str, list[int]]:
    """The rows drawn, by footer hash of their file."""
    return {
        file.footer_hash: [r - start for r in rows if start <= r < start + file.n_rows]
        for file, start in zip(table.files, table.starts, strict=True)
    }


def test_draws_do_not_depend_on_the_order_of_files() -> None:
    sizes = {"aa": 50, "bb": 0, "cc": 200, "dd": 3, "ee": 50}
    one, other = record(sizes), record(dict(reversed(sizes.items())))
    for wanted in ({"sample_rows": 40}, {"sample_per_file": 10}):
        first, second = draw_rows(one, **wanted, seed=3), draw_rows(other, **wanted, seed=3)
        assert drawn_of(one, first) == drawn_of(other, second)


def test_draws_do_not_depend_on_the_layout_of_a_file(tmp_path: Path) -> None:
    columns = {"x": np.arange(400.0), "y": np.arange(400) % 7}
    tables = []
    for name, layout in {
        "a": {},
        "b": {"row_group_size": 30},
        "c": {"compression": "zstd"},
    }.items():
        pq.write_table(pa.table(columns), tmp_path / f"{name}.parquet", **layout)
        columns = dict(reversed(columns.items()))
        tables.append(open_table([tmp_path / f"{name}.parquet"], options=PLAIN))
    assert len({table.files[0].footer_hash for table in tables}) == len(tables)
    for wanted in ({"sample_rows": 40}, {"sample_per_file": 10}):
        first, *others = (draw_rows(table, **wanted, seed=3) for table in tables)
        for other in others:
            np.testing.assert_array_equal(first, other)


def test_draws_are_sorted_seeded_and_nested() -> None:
    table = record({"aa": 300, "bb": 100})
    small, large = draw_rows(table, 20, seed=1), draw_rows(table, 60, seed=1)
    assert small is not None
    assert large is not None
    assert small.dtype == np.int64
    assert np.all(np.diff(small) > 0)
    assert set(small) < set(large)
    assert not np.array_equal(small, draw_rows(table, 20, seed=2))
    assert draw_rows(table, 1000).tolist() == list(range(400))  # type: ignore[union-attr]
    assert draw_rows(table) is None


def test_draws_per_file() -> None:
    table = record({"aa": 300, "bb": 5, "cc": 100})
    rows = drawn_of(table, draw_rows(table, sample_per_file=10))
    assert [len(own) for own in rows.values()] == [10, 5, 10]


def test_draws_are_uniform() -> None:
    table = record({"aa": 60, "bb": 40})
    hits = np.zeros(100)
    for seed in range(2000):
        hits[draw_rows(table, 10, seed=seed)] += 1
    # Each row is hit 200 times on average, standard deviation 13.4: all 100 within 4.5 of them.
    assert abs(hits - 200).max() < 60
    assert abs(hits[:60].sum() / hits.sum() - 0.6) < 0.02


def test_copies_of_a_file_are_drawn_apart(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write(tmp_path / f"{name}.parquet", x=np.arange(100.0))
    table = open_table([tmp_path], options=PLAIN)
    rows = draw_rows(table, sample_per_file=10)
    assert rows is not None
    assert rows[:10].tolist() != (rows[10:] - 100).tolist()
