"""Data in memory: what reaches the engine, what is refused, what comes back."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dask.array as da
import dask.dataframe as dd
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import scipy.sparse
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from tables import mixed_table, write_parts

import dpipe
from dpipe.errors import InputError, ResourceError
from dpipe.options import Options
from dpipe.selection import Selection
from dpipe.table import Table, frames, open_table, read_block
from dpipe.table.frames import Reading
from dpipe.table.inputs import as_files, take_columns

OPTIONS: dict[str, Any] = {"restart": "never", "min_valid": 50, "nonlinear_threshold": 0.6}


def opened(data: Any, **how: Any) -> tuple[Table, NDArray[np.float64]]:
    """The table that dpipe sees, and the values of its features."""
    with as_files(data, **how) as files:
        table = open_table(files, options=Options())
        return table, read_block(table, table.features).values


FRAME = pd.DataFrame({"x": [1.5, np.nan, -np.inf, 4.0], "n": [1, 2, 3, 4], "s": list("abcd")})
NUMBERS = FRAME[["x", "n"]].to_numpy()
KINDS: dict[str, Callable[[pd.DataFrame], Any]] = {
    "pandas": lambda frame: frame,
    "polars": pl.from_pandas,
    "pyarrow": lambda frame: pa.Table.from_pandas(frame, preserve_index=False),
    "batch": lambda frame: pa.RecordBatch.from_pandas(frame, preserve_index=False),
    "dask": lambda frame: dd.from_pandas(frame, npartitions=2),
}


@pytest.mark.parametrize("kind", KINDS)
def test_frames__keep_names_types_and_values(kind: str) -> None:
    table, values = opened(KINDS[kind](FRAME))
    assert [column.name for column in table.columns] == ["x", "n", "s"]
    assert table.features == ("x", "n")
    assert table.column("n").dtype == "int64"
    np.testing.assert_array_equal(values, [[1.5, np.nan, np.nan, 4], [1, 2, 3, 4]])


@pytest.mark.parametrize("columns", [None, ["a", "b"]])
@pytest.mark.parametrize(
    "given_as",
    [
        np.asarray,
        np.asfortranarray,
        lambda x: x.astype(">f8"),
        lambda x: x.astype(np.float16),
        lambda x: x.astype(np.longdouble),
        lambda x: np.ma.masked_invalid(np.where(np.isnan(x), np.inf, x)),
        lambda x: da.from_array(x, chunks=(3, 1)),
    ],
)
def test_arrays__have_names_by_place_or_as_given(
    given_as: Callable[[Any], Any], columns: list[str] | None
) -> None:
    table, values = opened(given_as(NUMBERS), columns=columns)
    assert table.features == tuple(columns or ["0", "1"])
    np.testing.assert_array_equal(values, [[1.5, np.nan, np.nan, 4], [1, 2, 3, 4]])


@pytest.mark.parametrize("dtype", [bool, np.int8, np.uint64, ">i4", np.float32])
def test_arrays__keep_their_type(dtype: Any) -> None:
    table, values = opened(np.array([[0, 1], [1, 1]], dtype=dtype))
    native = str(np.dtype(dtype).newbyteorder("="))
    assert table.columns[0].dtype == {"float32": "float"}.get(native, native)
    np.testing.assert_array_equal(values, [[0, 1], [1, 1]])


@pytest.mark.parametrize("dtype", [">f8", ">i4", ">u8"])
def test_frames_may_have_bytes_in_the_order_of_another_machine(dtype: str) -> None:
    table, values = opened(pd.DataFrame({"x": np.array([3, 1, 2], dtype=dtype)}))
    assert table.column("x").dtype in {"double", "int32", "uint64"}
    np.testing.assert_array_equal(values, [[3, 1, 2]])


@given(
    arrays(
        np.float64,
        st.tuples(st.integers(1, 12), st.integers(1, 4)),
        elements=st.floats(allow_nan=True, allow_infinity=True, width=64),
    )
)
def test_every_kind_gives_the_engine_the_same_numbers(values: NDArray[np.float64]) -> None:
    expected = np.where(np.isfinite(values), values, np.nan).T
    names = [f"c{i}" for i in range(values.shape[1])]
    frame = pd.DataFrame(values, columns=names)
    for data in (values, frame, pl.from_numpy(values, names), pa.Table.from_pandas(frame)):
        np.testing.assert_array_equal(opened(data)[1], expected)


@pytest.mark.parametrize("kind", [*KINDS, "numpy", "dask array"])
def test_pieces__are_small_and_give_the_same_numbers(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(frames, "_CELLS", 20)
    monkeypatch.setattr(frames, "_ROWS", (3, 5))
    values = np.random.default_rng(0).normal(size=(23, 2))
    frame = pd.DataFrame(values, columns=["a", "b"])
    data = {"numpy": values, "dask array": da.from_array(values, chunks=(23, 1))}
    table, found = opened(data[kind] if kind in data else KINDS[kind](frame))
    np.testing.assert_array_equal(found, values.T)
    assert max(rows for file in table.files for rows in file.row_groups) <= 5


def test_streams__of_many_small_batches_become_few_row_groups() -> None:
    batches = [pa.record_batch({"a": [float(i)]}) for i in range(50)]
    table, values = opened(pa.Table.from_batches(batches))
    assert [file.row_groups for file in table.files] == [(50,)]
    np.testing.assert_array_equal(values, [np.arange(50.0)])


def test_pandas__columns_of_every_make() -> None:
    frame = pd.DataFrame(
        {
            "nullable": pd.array([1, None, 3], dtype="Int64"),
            "arrow": pd.array([1.5, None, 3], dtype="float64[pyarrow]"),
            "flag": pd.array([True, None, False], dtype="boolean"),
            "object": pd.Series([1, None, 2.5], dtype=object),
            "category": pd.Categorical([3, 1, 3]),
            "sparse": pd.arrays.SparseArray([0.0, 1.0, np.nan]),
            "text": ["a", None, "b"],
            "when": pd.to_datetime(["2020-01-01"] * 3),
        }
    ).set_axis(["p", "q", "r"])
    table, values = opened(frame)
    assert table.features == ("nullable", "arrow", "flag", "object", "category", "sparse")
    expected = [
        [1, np.nan, 3],
        [1.5, np.nan, 3],
        [1, np.nan, 0],
        [1, np.nan, 2.5],
        [3, 1, 3],
        [0, 1, np.nan],
    ]
    np.testing.assert_array_equal(values, expected)


def test_polars__text_codes_and_nulls() -> None:
    frame = pl.DataFrame(
        {
            "x": [1, None, 3],
            "s": ["a", None, "b"],
            "c": pl.Series(["u", "v", "u"]).cast(pl.Categorical),
        }
    )
    table, values = opened(frame)
    assert table.features == ("x",)
    np.testing.assert_array_equal(values, [[1, np.nan, 3]])


def test_names__become_text() -> None:
    table, _ = opened(pd.DataFrame(np.eye(2), columns=[7, ("a", 1)]))
    assert table.features == ("7", "('a', 1)")


def test_dask__writes_one_file_a_partition_and_bears_empty_ones() -> None:
    frame = pd.DataFrame({"x": np.arange(12.0)})
    parts = dd.from_pandas(frame, npartitions=4)
    table, values = opened(parts[(parts.x < 3) | (parts.x > 5)])
    assert [file.n_rows for file in table.files] == [3, 0, 3, 3]
    np.testing.assert_array_equal(values, [[0, 1, 2, 6, 7, 8, 9, 10, 11]])


def test_dask__array_of_unknown_length() -> None:
    frame = dd.from_pandas(pd.DataFrame({"x": np.arange(6.0), "y": 1.0}), npartitions=2)
    table, values = opened(frame.to_dask_array(), columns=["x", "y"])
    assert [file.n_rows for file in table.files] == [3, 3]
    np.testing.assert_array_equal(values[0], np.arange(6))


def test_dask__is_computed_on_the_client_that_is_given(cluster: Any) -> None:
    from distributed import Client

    with Client(cluster, set_as_default=False) as client:
        frame = dd.from_pandas(pd.DataFrame({"x": np.arange(6.0)}), npartitions=2)
        held = frame.persist(scheduler=client)
        np.testing.assert_array_equal(opened(held, client=client)[1], [np.arange(6)])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (np.zeros(3), "1 dimension; give one of two"),
        (np.zeros((2, 2, 2)), "3 dimensions"),
        (np.zeros((0, 2)), "no rows"),
        (np.zeros((2, 0)), "no columns"),
        (np.array([["a"], ["b"]]), "type <U1, which is not numeric"),
        (np.array([[1, "b"]], dtype=object), "type object, which is not numeric"),
        (np.zeros((2, 2), complex), "complex128, which is not numeric"),
        (pd.DataFrame(), "no columns"),
        (pd.DataFrame({"a": []}), "no rows"),
        (pd.DataFrame([[1, 2]], columns=[1, "1"]), "called '1' (1 and '1'); rename"),
        (pd.DataFrame([[1, 2]], columns=["a", "a"]), "called 'a'"),
        (pd.DataFrame({"a": [1, "b", 2.5]}, dtype=object), "column 'a' holds values that are no"),
        (pd.DataFrame({"a": [1 + 2j]}), "column 'a' holds values that are no single type"),
        (pd.Series([1.0], name="a"), "Series"),
        (pl.DataFrame(), "no columns"),
        (pl.Series([1.0]), "Series is no table"),
        (pl.LazyFrame({"a": [1]}), "give data.collect(), or"),
        (pa.table([[1], [2]], names=["a", "a"]), "called 'a'"),
        (pa.table({"a": pa.array([], pa.float64())}), "no rows"),
        (scipy.sparse.eye_array(3), "give it dense, as data.toarray()"),
        (da.zeros(3), "1 dimension"),
        (da.zeros((2, 2)).astype(object), "not numeric"),
        (dd.from_pandas(pd.Series([1.0]), npartitions=1), "give paths of files, a pandas, polars"),
        (dd.from_pandas(pd.DataFrame([[1, 2]], columns=[1, "1"]), npartitions=1), "called '1'"),
        ({"a": [1]}, "type builtins.dict cannot be used: give paths"),
        (7, "type builtins.int"),
        (None, "NoneType"),
        ([[1, 2], [3, 4]], "a list of paths holds what is none: data of the type builtins.list"),
        ([pd.DataFrame({"a": [1]})], "give one table, or paths"),
    ],
)
def test_bad_data__is_one_sentence(data: Any, message: str) -> None:
    with pytest.raises(InputError) as caught:
        opened(data)
    assert message in str(caught.value)
    assert str(caught.value).count("\n") == 0


@pytest.mark.parametrize(
    ("data", "columns", "message"),
    [
        (np.eye(2), ["a"], "1 name for an array of 2 columns"),
        (np.eye(2), ["a", "a"], "called 'a'"),
        (np.eye(2), ["a", "b\udcff"], "is not valid Unicode; rename it"),
        (FRAME, ["a", "b", "c"], "names of their own"),
        ("some.parquet", ["a"], "names of their own"),
    ],
)
def test_bad_names__are_one_sentence(data: Any, columns: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        opened(data, columns=columns)


def test_files__go_where_they_shall_and_are_removed(tmp_path: Path) -> None:
    place = tmp_path / "new"
    with as_files(NUMBERS, folder=place) as files:
        assert Path(files[0]).parent == place
        assert Path(files[0]).is_dir()
    assert not place.exists()  # it was made for them alone

    place.mkdir()
    with pytest.raises(KeyError), as_files(NUMBERS, folder=place):
        raise KeyError
    assert list(place.iterdir()) == []

    blocked = tmp_path / "file"
    blocked.touch()
    with pytest.raises(ResourceError, match="--scratch-dir names another"):
        opened(NUMBERS, folder=blocked)


def test_paths__are_handed_on(tmp_path: Path) -> None:
    for data in (tmp_path, str(tmp_path), [tmp_path], iter([tmp_path]), (str(tmp_path),)):
        with as_files(data) as files:
            assert files == [str(tmp_path)]


def test_frame_libraries__are_not_needed() -> None:
    code = """
import sys
class Refuse:
    def find_spec(self, name, *_):
        if name.partition(".")[0] in ("pandas", "polars"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Refuse())
import numpy
from dpipe.table.inputs import as_files
with as_files(numpy.eye(3)):
    print("written")
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["written"]


# Back again


@pytest.mark.parametrize("kind", KINDS)
def test_take__gives_the_kind_it_got(kind: str) -> None:
    data = KINDS[kind](FRAME)
    taken = take_columns(data, ["s", "x"], ["x", "n", "s"])
    assert type(taken) is type(data)
    names = taken.schema.names if isinstance(taken, pa.RecordBatch | pa.Table) else taken.columns
    assert list(names) == ["s", "x"]


def test_take__keeps_names_and_index_of_pandas() -> None:
    frame = pd.DataFrame(np.eye(3), columns=[5, 6, 7], index=[2, 4, 6])
    pd.testing.assert_frame_equal(take_columns(frame, ["7", "5"], ["5", "6", "7"]), frame[[7, 5]])
    lazy = take_columns(dd.from_pandas(frame, npartitions=2), ["7"], ["5", "6", "7"])
    pd.testing.assert_frame_equal(lazy.compute(), frame[[7]])


def test_take__goes_by_place_in_arrays() -> None:
    taken = take_columns(NUMBERS, ["n"], ["x", "n"])
    np.testing.assert_array_equal(taken, NUMBERS[:, 1:])
    lazy = take_columns(da.from_array(NUMBERS), ["n"], ["x", "n"])
    np.testing.assert_array_equal(lazy.compute(), NUMBERS[:, 1:])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (FRAME[["x"]], r"no column 'n'\."),
        (pl.DataFrame({"N": [1]}), r"no column 'n' \(did you mean 'N'\?\)"),
        (NUMBERS[:, :1], "made on 2 columns"),
        (NUMBERS[0], r"shape \(2,\)"),
        ("some.parquet", "dpipe apply"),
        (pa.table({"n": [1]}).to_reader(), "give a pyarrow or polars table"),
    ],
)
def test_take__says_what_is_wrong(data: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        take_columns(data, ["n"], ["x", "n"])


# The same selection through every door


def story(result: Selection) -> list[tuple[Any, ...]]:
    return [
        (d.column, d.decision, d.reason, d.measure, d.value, d.representative, d.community)
        for d in result.decisions
    ]


def test_select__is_the_same_through_every_door(tmp_path: Path, client: Any) -> None:
    from click.testing import CliRunner
    from distributed import Client

    from dpipe.cli import main
    from dpipe.runfolder import RunFolder

    table = mixed_table(240, families=2)
    frame = pd.DataFrame(table)
    folder = write_parts(table, tmp_path / "table", parts=3)
    expected = dpipe.select(folder, client=client, **OPTIONS)
    assert 3 < len(expected.selected) < len(frame.columns) - 3

    values = frame.to_numpy()
    arrow = pa.Table.from_pandas(frame)
    doors: list[tuple[Any, list[str] | None]] = [
        (frame, None),
        (pl.from_pandas(frame), None),
        (arrow, None),
        (values, list(frame.columns)),
        (dd.from_pandas(frame, npartitions=3), None),
        (da.from_array(values, chunks=(100, 7)), list(frame.columns)),
    ]
    for data, columns in doors:
        found = dpipe.select(data, columns=columns, client=client, **OPTIONS)
        assert found.selected == expected.selected
        assert story(found) == story(expected)

    address = client.scheduler.address
    cluster = client.cluster
    gateway = SimpleNamespace(
        get_client=lambda set_as_default: Client(cluster, set_as_default=set_as_default)
    )
    for connection, data in ((address, folder), (cluster, doors[4][0]), (gateway, doors[4][0])):
        assert story(dpipe.select(data, client=connection, **OPTIONS)) == story(expected)

    options = {name: value for name, value in OPTIONS.items() if name != "restart"}
    selector = dpipe.DescriptorSelector(client=client, **options).fit(frame)
    assert selector.selected_ == expected.selected
    assert list(selector.get_feature_names_out()) == list(expected.selected)

    words = ["run", str(folder), "--output-dir", str(tmp_path / "out"), "--scheduler", address]
    words += [f"--{name.replace('_', '-')}={value}" for name, value in OPTIONS.items()]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 0, done.output
    by_cli = RunFolder(tmp_path / "out").path / "selected.txt"
    assert by_cli.read_text().split() == list(expected.selected)

    reduced = expected.apply(frame)
    assert list(reduced.columns) == list(expected.selected)
    assert expected.apply(values).shape == (240, len(expected.selected))

    again = dpipe.select(frame, client=client, output_dir=tmp_path / "run", **OPTIONS)
    assert again.selected == expected.selected
    assert not list((tmp_path / "run").glob(".dpipe-input-*"))
    assert (tmp_path / "run" / "report.html").exists()

    saved = expected.save(tmp_path / "saved")
    assert (saved / "report.html").exists()


def test_select__computes_a_collection_where_the_run_is(cluster: Any) -> None:
    """Data that only the workers hold, and no default client that would know of them."""
    from distributed import Client

    frame = pd.DataFrame(mixed_table(240, families=2))
    expected = dpipe.select(frame, client=cluster, **OPTIONS)
    with Client(cluster, set_as_default=False) as owner:
        held = dd.from_pandas(frame, npartitions=2).persist(scheduler=owner)
        found = dpipe.select(held, scheduler=cluster.scheduler_address, **OPTIONS)
    assert story(found) == story(expected)


def test_similarity__of_data_in_memory(client: Any) -> None:
    values = np.random.default_rng(0).normal(size=(50, 3))
    found = dpipe.spearman(values, columns=list("abc"), client=client)
    assert found.columns == ("a", "b", "c")
    expected = pd.DataFrame(values).corr(method="spearman")
    np.testing.assert_allclose(found.values, expected, atol=1e-6)


class Molecule:
    """What a chemistry library keeps in a column of a frame."""


def odd_frame() -> pd.DataFrame:
    frame = pd.DataFrame({"x": np.arange(40.0), "y": np.arange(40.0)[::-1] ** 3})
    frame["mol"] = [Molecule() for _ in range(40)]
    return frame


@pytest.mark.parametrize("how", [{}, {"exclude": ["mol"]}, {"id_columns": ["mol"]}])
def test_objects_that_no_file_can_hold_are_left_alone(how: dict[str, Any], client: Any) -> None:
    for frame in (odd_frame(), pl.DataFrame(odd_frame().to_dict("list"))):
        result = dpipe.select(frame, client=client, passes=[1], min_valid=2, **how)
        role = {"exclude": "excluded", "id_columns": "id"}.get(next(iter(how), ""), "not_numeric")
        assert [d.decision for d in result.decisions] == ["kept", "dropped", role]


def test_objects_are_refused_where_they_would_be_lost() -> None:
    for frame in (odd_frame(), pl.DataFrame(odd_frame().to_dict("list"))):
        with pytest.raises(InputError, match="column 'mol'"):
            dpipe.select(frame, write_table=True)


def test_a_column_of_numbers_and_objects_is_refused_unless_it_is_excluded(client: Any) -> None:
    frame = odd_frame().astype({"mol": object})
    frame.loc[0, "mol"] = 1.5
    with pytest.raises(InputError, match="column 'mol' holds values that are no single type"):
        dpipe.select(frame)
    assert dpipe.select(frame, exclude=["mol"], client=client, passes=[1], min_valid=2).selected


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (pa.month_day_nano_interval(), [(1, 2, 3)] * 4),
        (pa.dense_union([pa.field("a", pa.int8())]), None),
        (pa.struct([]), [{}] * 4),
    ],
    ids=str,
)
def test_types_that_parquet_lacks_are_left_alone(kind: pa.DataType, values: Any) -> None:
    column = (
        pa.UnionArray.from_dense(
            pa.array([0] * 4, pa.int8()), pa.array(range(4), pa.int32()), [pa.array([1] * 4)]
        )
        if values is None
        else pa.array(values, kind)
    )
    table = pa.table({"x": [1.0, 2, 4, 3], "odd": column})
    with as_files(table, reading=Reading()) as files:
        opened = open_table(files, options=Options())
        assert [column.role for column in opened.columns] == ["feature", "not_numeric"]
    with pytest.raises(InputError, match="column 'odd' has the type"), as_files(table):
        pass


def test_run_end_encoded_numbers_are_numbers() -> None:
    runs = pa.RunEndEncodedArray.from_arrays(pa.array([2, 5], pa.int32()), pa.array([1.5, None]))
    with as_files(pa.table({"x": runs})) as files:
        block = read_block(open_table(files, options=Options()), ["x"])
    np.testing.assert_array_equal(block.values[0], [1.5, 1.5, np.nan, np.nan, np.nan])


def test_integers_of_128_bits_are_named_with_what_to_do(tmp_path: Path, client: Any) -> None:
    frame = pl.DataFrame({"x": [1.0, 2, 4, 3], "wide": [1, 2, 3, 4]}).with_columns(
        pl.col("wide").cast(pl.Int128)
    )
    with pytest.raises(InputError, match=r"'wide' has the type Int128, .* cast it to Int64"):
        dpipe.select(frame)
    kept = dpipe.select(frame, exclude=["wide"], client=client, passes=[1], min_valid=2)
    assert kept.selected == ("x",)
    frame.write_parquet(tmp_path / "wide.parquet")
    frame.write_ipc(tmp_path / "wide.feather")
    for path in (tmp_path / "wide.parquet", tmp_path / "wide.feather"):
        said = rf"{path.name} has a column of a type that Arrow cannot read .* cast"
        with pytest.raises(InputError, match=said) as caught:
            open_table([path], options=Options())
        assert not re.search("damaged|truncated", str(caught.value))
