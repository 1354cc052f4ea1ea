"""The target: what columns tell of it, what it changes, what may not be one."""

from __future__ import annotations

import json
import warnings
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import dpipe
from dpipe.errors import InputError
from dpipe.estimator import DescriptorSelector
from dpipe.model.events import Note
from dpipe.options import Options
from dpipe.table import open_table
from dpipe.table.target import read_target
from dpipe.verify import verify

N = 300
WIDTH = 1 - 1 / np.sqrt(2)
"""Of the Gaussian kernel on ranks, as docs/statistics.md gives it."""


def table(seed: int = 0) -> pd.DataFrame:
    """`close` tells a little more of the target than its twin `other`; `shape` tells the most."""
    rng = np.random.default_rng(seed)
    base, rest = rng.normal(size=(2, N))
    frame = pd.DataFrame(
        {
            "other": base + 0.1 * rng.normal(size=N),
            "close": base,
            "shape": rest**2 + 0.1 * rng.normal(size=N),
            "rest": rest,
            "noise": rng.normal(size=N),
            "counts": rng.integers(0, 4, N).astype(float),
        }
    )
    frame["y"] = base + rest**2
    frame["label"] = np.where(frame["y"] > 1, "high", "low")
    frame.loc[::7, "other"] = np.nan
    return frame


QUICK: dict[str, Any] = {"restart": "never", "passes": [1, 2], "spearman_threshold": 0.9}


def test_of_similar_columns_the_one_that_tells_most_of_the_target_stays(here: Any) -> None:
    frame = table().drop(columns="label")
    for target, kept, dropped in (("y", "close", "other"), (None, "close", "other")):
        result = dpipe.select(frame, target=target, client=here, **QUICK)
        assert kept in result.selected
        assert dropped not in result.selected
    # The twin has no missing cell and its name comes first: only the target speaks against it.
    frame = frame.assign(a_twin=frame["close"] + 0.3 * table(1)["noise"])
    without = dpipe.select(frame.drop(columns=["other", "y"]), client=here, **QUICK)
    assert "close" not in without.selected
    result = dpipe.select(frame.drop(columns="other"), target="y", client=here, **QUICK)
    assert "close" in result.selected
    assert "a_twin" not in result.selected


def test_a_target_is_no_feature_and_stands_in_the_decisions(here: Any, tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pandas(table()), tmp_path / "t.parquet")
    result = dpipe.select(
        tmp_path, target=["y", "label"], client=here, output_dir=tmp_path / "out", **QUICK
    )
    rows = {decision.column: decision for decision in result.decisions}
    assert rows["y"].decision == rows["label"].decision == "target"
    assert rows["y"].relevance is None
    stored = pq.read_table(tmp_path / "out" / "decisions.parquet")
    assert stored["relevance"].to_pylist() == [d.relevance for d in result.decisions]
    written = json.loads((tmp_path / "out" / "communities.json").read_text())
    assert written["close"][0]["relevance"] == rows["other"].relevance
    assert verify(tmp_path / "out").lines


def test_relevance_is_that_of_a_dense_hsic_whatever_the_order(here: Any) -> None:
    frame = table().drop(columns=["other", "label"])
    found = dpipe.relevance(frame, "y", client=here)
    assert found.columns == ("close", "shape", "rest", "noise", "counts")
    ranks = (frame.rank() - 0.5) / N
    for name, value in zip(found.columns, found.hsic[:, 0], strict=True):
        x, y = (ranks[[each]].to_numpy() for each in (name, "y"))
        kernels = [np.exp(-((u - u.T) ** 2) / (2 * WIDTH**2)) for u in (x, y)]
        assert value == pytest.approx(dense(*kernels), abs=2e-5)
    shuffled = frame.sample(frac=1, random_state=1)[frame.columns[::-1]]
    again = dpipe.relevance(shuffled, "y", client=here)
    np.testing.assert_allclose(again.values[::-1], found.values, atol=1e-12)


def dense(left: np.ndarray, right: np.ndarray) -> float:
    """Normalised HSIC of two kernel matrices."""
    k, m = (a - a.mean(0) - a.mean(1)[:, None] + a.mean() for a in (left, right))
    return float((k * m).sum() / np.sqrt((k * k).sum() * (m * m).sum()))


@pytest.mark.parametrize("classes", [2, 5])
def test_relevance_for_classes_is_that_of_the_delta_kernel(classes: int, here: Any) -> None:
    frame = table()[["close", "shape", "counts", "y"]]
    labels = pd.qcut(frame["y"], classes, labels=False)
    frame["y"] = labels
    found = dpipe.relevance(frame, "y", client=here, target_kind="classes")
    named = dpipe.relevance(frame.assign(y=[f"c{each}" for each in labels]), "y", client=here)
    np.testing.assert_array_equal(found.hsic, named.hsic)
    np.testing.assert_array_equal(found.rdc, named.rdc)
    same = (labels.to_numpy()[:, None] == labels.to_numpy()).astype(float)
    ranks = (frame.rank() - 0.5) / N
    for name, value in zip(found.columns, found.hsic[:, 0], strict=True):
        u = ranks[[name]].to_numpy()
        assert value == pytest.approx(
            dense(np.exp(-((u - u.T) ** 2) / (2 * WIDTH**2)), same), abs=2e-5
        )


def test_of_several_targets_the_largest_relevance_counts(here: Any) -> None:
    frame = table().drop(columns="label").assign(z=table()["noise"] ** 3)
    both = dpipe.relevance(frame, ["y", "z"], client=here)
    alone = [
        dpipe.relevance(frame, name, client=here, exclude=["y", "z"][1 - place : 2 - place])
        for place, name in enumerate("yz")
    ]
    for place, single in enumerate(alone):
        np.testing.assert_allclose(both.rdc[:, place], single.rdc[:, 0], atol=1e-12)
    np.testing.assert_allclose(both.values, np.maximum(alone[0].values, alone[1].values))


@pytest.mark.parametrize("kind", ["numbers", "classes"])
@pytest.mark.parametrize("known", ["two in three", "tails", "middle"])
def test_a_target_with_gaps_is_measured_on_its_rows_as_if_there_were_no_others(
    known: str, kind: str, here: Any
) -> None:
    frame = table().drop(columns="label")  # one column has gaps as well
    y = frame["y"]
    rows = {
        "two in three": np.arange(N) % 3 > 0,
        "tails": (y - y.median()).abs() > 0.8,
        "middle": (y - y.median()).abs() < 1,
    }[known]
    if kind == "classes":
        y = pd.qcut(y, 4, labels=False).astype(float)
    frame = frame.assign(y=y)
    settings: dict[str, Any] = {"client": here, "target_kind": kind, "min_valid": 20}
    found = dpipe.relevance(frame.assign(y=y.where(rows)), "y", **settings)
    expected = dpipe.relevance(frame[rows], "y", **settings)
    assert found.columns == expected.columns
    np.testing.assert_allclose(found.hsic, expected.hsic, atol=1e-9)
    np.testing.assert_allclose(found.rdc, expected.rdc, atol=1e-9)


def test_of_a_column_with_gaps_the_rows_that_it_has_count(here: Any) -> None:
    frame = table()[["close", "y"]]
    kept = frame["y"].abs() > 1
    found = dpipe.relevance(frame.assign(close=frame["close"].where(kept)), "y", client=here)
    expected = dpipe.relevance(frame[kept], "y", client=here)
    np.testing.assert_allclose(found.values, expected.values, atol=1e-9)


def leaks_told(frame: pd.DataFrame, client: Any, **settings: Any) -> list[str]:
    """The warnings of a run that name columns made from the target."""
    notes: list[Note] = []
    dpipe.select(
        frame,
        client=client,
        observers=[lambda event: notes.append(event) if isinstance(event, Note) else None],
        **settings,
        **QUICK,
    )
    return [note.text for note in notes if "follows the target" in note.text]


@pytest.mark.parametrize(
    "made", [lambda y: y, lambda y: -y, lambda y: np.exp(y), lambda y: y.where(y.index % 9 > 0)]
)
def test_a_copy_of_a_target_of_numbers_is_named(made: Any, here: Any) -> None:
    frame = table().drop(columns="label")
    (note,) = leaks_told(frame.assign(leak=made(frame["y"])), here, target="y")
    assert "'leak'" in note
    assert "'y' without error (RDC 1); leave out by --exclude what was made" in note
    assert "'shape'" not in note


@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize("named", [False, True])
def test_a_copy_of_classes_is_named(classes: int, named: bool, here: Any) -> None:
    frame = table().drop(columns="label")
    codes = pd.qcut(frame["y"], classes, labels=False)
    frame["y"] = [f"class {code}" for code in codes] if named else codes
    leak = (codes * 3) % 5  # in another order
    (note,) = leaks_told(frame.assign(leak=leak), here, target="y", target_kind="classes")
    assert "'leak'" in note
    assert "'shape'" not in note
    assert leaks_told(frame, here, target="y", target_kind="classes") == []


@pytest.mark.parametrize(
    ("column", "words"),
    [
        (1.0, "is constant"),
        (np.nan, "is empty"),
        ([f"molecule {row}" for row in range(N)], "another class in every row"),
        (["a"] * (N - 5) + ["b"] * 5, "1 class of at least 10 rows"),
        ([1.0] * 20 + [2.0] * 5 + [np.nan] * (N - 25), "a value in 25 rows and 100 are needed"),
        (pd.Timestamp("2020-01-01"), "neither numbers nor classes"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_may_not_be_a_target(column: Any, words: str, here: Any) -> None:
    frame = table()[["close", "rest"]].assign(t=column)
    with pytest.raises(InputError, match=words) as caught:
        dpipe.select(frame, target="t", client=here, **QUICK)
    assert "'t'" in str(caught.value)


def test_names_that_may_not_be_targets(here: Any) -> None:
    frame = table()
    with pytest.raises(InputError, match=r"--target names 'Y', .*did you mean 'y'"):
        dpipe.select(frame, target="Y", client=here)
    for other in ("keep", "exclude", "id_columns"):
        with pytest.raises(InputError, match=f"both --target and --{other.replace('_', '-')}"):
            dpipe.select(frame, target="y", **{other: ["y"]})
    with pytest.raises(InputError, match="no target was given"):
        dpipe.relevance(frame, [], client=here)
    with pytest.raises(InputError, match="--target-kind classes"):
        dpipe.relevance(frame, "label", target_kind="numbers", client=here)


@pytest.mark.parametrize("kind", ["auto", "classes", "numbers"])
def test_a_target_of_another_type_in_another_file_is_refused(kind: str, tmp_path: Path) -> None:
    frame = table().drop(columns="label")
    frame.to_parquet(tmp_path / "a.parquet")
    frame.assign(y=frame["y"].astype(str)).to_parquet(tmp_path / "b.parquet")
    options = Options(target=("y",), target_kind=kind)
    with pytest.raises(InputError, match=r"'y' is double in 1 file \(.*a\.parquet'\) and"):
        open_table([tmp_path], options=options)
    frame.assign(y=pd.Timestamp("2020-01-01")).to_parquet(tmp_path / "b.parquet")
    with pytest.raises(InputError, match=r"timestamp\[us\] in 1 file .*; give it one type"):
        open_table([tmp_path], options=options)


def test_a_target_of_text_that_holds_numbers(here: Any, tmp_path: Path) -> None:
    frame = table().drop(columns="label")
    expected = dpipe.relevance(frame, "y", client=here)
    text = frame.assign(y=frame["y"].map(repr))
    for kind in ("auto", "numbers"):
        found = dpipe.relevance(text, "y", client=here, coerce_strings=True, target_kind=kind)
        np.testing.assert_array_equal(found.values, expected.values)
    with pytest.raises(InputError, match="--coerce-strings reads numbers from it"):
        dpipe.relevance(text, "y", client=here, target_kind="numbers")
    # What is no number: a few cells are missing and told of, many make it text.
    text.loc[:5, "y"] = "high"
    opened = opened_with(text, tmp_path)
    assert np.isnan(read_target(opened, "y", "auto").values[:6]).all()
    assert "column 'y': text read as numbers; 6 cells without a number" in opened.notes[0]
    assert opened.features == tuple(frame.columns[:-1])
    text.loc[:99, "y"] = "high"
    text.loc[100:, "y"] = ["1", "2"] * 100
    opened = opened_with(text, tmp_path)
    assert opened.notes == ()
    assert read_target(opened, "y", "auto").classes == ("1", "2", "high")
    with pytest.raises(InputError, match=r"of the target 'y' .*most often 'high'\), so it is not"):
        opened_with(text, tmp_path, target_kind="numbers")


def opened_with(frame: pd.DataFrame, folder: Path, **options: Any) -> Any:
    """A frame as a table whose text is read as numbers, with the target y."""
    frame.to_parquet(folder / "t.parquet")
    return open_table([folder], options=Options(target=("y",), coerce_strings=True, **options))


def test_text_classes_do_not_depend_on_the_order_of_rows_or_files(tmp_path: Path) -> None:
    texts = ["b", None, "a", "c", "b"]
    for number, part in enumerate((texts[:2], texts[2:])):
        column = pa.array(part).dictionary_encode() if number else pa.array(part)
        pq.write_table(
            pa.table({"x": range(len(part)), "y": column}), tmp_path / f"{number}.parquet"
        )
    opened = open_table([tmp_path], options=Options(target=("y",)))
    found = read_target(opened, "y", "auto")
    assert found.classes == ("a", "b", "c")
    np.testing.assert_array_equal(found.values, [1, np.nan, 0, 2, 1])


LARGE: dict[str, Any] = {
    "int64": [pa.array(2**60 + np.arange(N))],
    "uint64": [pa.array(2**63 + np.arange(N, dtype=np.uint64))],
    "decimals": [pa.array([Decimal(10**30 + each) for each in range(N)], pa.decimal128(38, 0))],
    "mixed": [pa.array([2**60, None]), pa.array([2.0**59, -1]), pa.array([Decimal(1)])],
    "mixed decimals": [
        pa.array([Decimal("1.5")]),
        pa.array([Decimal(10**40 + 1), Decimal(10**40)]),
        pa.array([7]),
    ],
    "fractions": [pa.array([2**60, 2**60 + 1]), pa.array([0.5])],
}


@pytest.mark.parametrize("of", LARGE)
def test_numbers_that_float64_would_round_are_told_apart(of: str, tmp_path: Path) -> None:
    for number, chunk in enumerate(LARGE[of]):
        table = pa.table({"x": pa.array(range(len(chunk))), "y": chunk})
        pq.write_table(table, tmp_path / f"{number}.parquet")
    opened = open_table([tmp_path], options=Options(target=("y",)))
    values = [value for chunk in LARGE[of] for value in chunk.to_pylist()]
    if of == "fractions":  # as a feature of such numbers
        np.testing.assert_array_equal(read_target(opened, "y", "auto").values, values)
        return
    ordered = sorted({value for value in values if value is not None})
    places = [np.nan if value is None else ordered.index(value) for value in values]
    for kind in ("auto", "classes"):
        found = read_target(opened, "y", kind)
        np.testing.assert_array_equal(found.values, places)
    assert found.classes is not None
    assert len(found.classes) == len(ordered)


def test_a_target_of_large_whole_numbers_counts_by_its_order(here: Any) -> None:
    frame = table().drop(columns="label")
    order = frame["y"].rank().to_numpy(dtype=np.int64)
    expected = dpipe.relevance(frame.assign(y=order), "y", client=here)
    found = dpipe.relevance(frame.assign(y=2**60 + order), "y", client=here)
    np.testing.assert_array_equal(found.values, expected.values)


@pytest.mark.parametrize("kind", ["array", "pandas", "polars"])
def test_the_selector_uses_y(kind: str, here: Any) -> None:
    frame = table()[["other", "close", "shape", "noise"]].fillna(0.0)
    y = table()["y"].to_numpy()
    data = {"array": frame.to_numpy(), "pandas": frame, "polars": pl.from_pandas(frame)}[kind]
    fitted = DescriptorSelector(client=here, passes=(1,)).fit(data, y)
    expected = dpipe.relevance(frame.assign(y=y), "y", client=here)
    np.testing.assert_allclose(fitted.relevance_, expected.values, atol=1e-12)
    assert len(fitted.decisions_) == 4
    labels = DescriptorSelector(client=here, passes=(1,)).fit(data, np.where(y > 1, "u", "d"))
    flags = DescriptorSelector(client=here, passes=(1,), target_kind="classes").fit(data, y > 1)
    np.testing.assert_allclose(labels.relevance_, flags.relevance_, atol=1e-12)
    for ignored in (DescriptorSelector(client=here, passes=(1,), use_y=False), None):
        blind = ignored.fit(data, y) if ignored else fitted.fit(data, np.ones(N))
        assert np.isnan(blind.relevance_).all()
    with pytest.raises(ValueError, match="y contains NaN"):
        fitted.fit(data, np.where(y > 1, np.nan, y))


def objects(values: Any) -> np.ndarray:
    return np.array(list(values), dtype=object)


@pytest.mark.parametrize("kind", ["array", "pandas", "polars", "pyarrow"])
def test_the_selector_takes_every_kind_of_numbers(kind: str, here: Any) -> None:
    frame = table()[["close", "shape", "noise"]]
    order = table()["y"].rank().to_numpy(dtype=np.int64)
    data = {
        "array": frame.to_numpy(),
        "pandas": frame,
        "polars": pl.from_pandas(frame),
        "pyarrow": pa.Table.from_pandas(frame),
    }[kind]
    selector = DescriptorSelector(client=here, passes=(1,))
    expected = selector.fit(data, order).relevance_
    for y in (
        2**60 + order,
        2**63 + order.astype(np.uint64),
        objects(10**30 + each for each in order.tolist()),
        objects(Decimal(each) / 7 if each % 2 else each / 7 for each in order.tolist()),
        order.tolist(),
        pd.Series(order, dtype="Int64"),
    ):
        np.testing.assert_array_equal(selector.fit(data, y).relevance_, expected)
    # A frame may hold numbers beside text, and a name that the data has as well.
    labels = np.where(order > 100, "u", "d")
    both = pd.DataFrame({"close": order.astype(float), "label": labels})
    alone = selector.fit(data, labels).relevance_
    for y in (both, pl.from_pandas(both), pa.Table.from_pandas(both)):
        found = selector.fit(data, y).relevance_
        np.testing.assert_allclose(found, np.maximum(expected, alone), atol=1e-12)


def test_large_numbers_of_the_data_stay_exact_beside_a_target(here: Any) -> None:
    data = 2**60 + np.random.default_rng(0).permuted(np.tile(np.arange(N), (2, 1)), axis=1).T
    fitted = DescriptorSelector(client=here, passes=(1,)).fit(data, data[:, 0] * 0.5)
    assert fitted.selected_ == ("x0", "x1")


@pytest.mark.parametrize(
    ("y", "error", "words"),
    [
        (objects(["a", None] * 150), ValueError, "Input y contains 150 missing values"),
        (objects(["a", np.nan] * 150), ValueError, "Input y contains 150 missing values"),
        (pd.Series(["a", pd.NA] * 150, dtype="string"), ValueError, "150 missing values"),
        (objects([1, "b"] * 150), InputError, "y holds both text and numbers"),
        ([1, "b"] * 150, InputError, "y holds both text and numbers"),
        (pd.Series(pd.date_range("2020", periods=N)), InputError, r"y is datetime64\[.*neither"),
        (objects(pd.date_range("2020", periods=N)), InputError, "y is Timestamp: neither"),
        (pd.DataFrame({"b": range(N), "d": [b"a"] * N}), InputError, "d is bytes: neither"),
        (np.arange(N - 1), ValueError, "inconsistent numbers of samples"),
        (np.array(["a"] * 295 + ["b"] * 5), InputError, "the target 'y' has 1 class of at least"),
    ],
    ids=range(10),
)
def test_what_the_selector_refuses_as_y(y: Any, error: Any, words: str, here: Any) -> None:
    frame = table()[["close", "shape"]]
    with pytest.raises(error, match=words):
        DescriptorSelector(client=here, passes=(1,)).fit(frame, y)


def test_the_selector_takes_no_text_for_numbers(here: Any) -> None:
    selector = DescriptorSelector(client=here, passes=(1,), target_kind="numbers")
    with pytest.raises(InputError, match="y is text; target_kind='classes' takes it as classes"):
        selector.fit(table()[["close", "shape"]], table()["label"])


def test_the_selector_takes_a_frame_that_grew_column_by_column(here: Any) -> None:
    """pandas warns of one more column there; its index says nothing about rows."""
    values = np.random.default_rng(0).normal(size=(60, 120))
    frame = pd.DataFrame(index=[7] * 60)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", pd.errors.PerformanceWarning)
        for place, column in enumerate(values.T):
            frame[f"c{place}"] = column
    selector = DescriptorSelector(client=here, passes=(1,))
    grown = selector.fit(frame, values[:, 3]).relevance_
    np.testing.assert_array_equal(grown, selector.fit(values, values[:, 3]).relevance_)


def test_a_run_that_goes_on_knows_the_relevance(tmp_path: Path, here: Any) -> None:
    frame = table().drop(columns="label")
    pq.write_table(pa.Table.from_pandas(frame), tmp_path / "t.parquet")
    where = {"output_dir": tmp_path / "out", "client": here, **QUICK}
    first = dpipe.select(tmp_path / "t.parquet", target="y", **where)
    again = dpipe.select(tmp_path / "t.parquet", target="y", **where | {"spearman_threshold": 0.8})
    assert [d.relevance for d in again.decisions] == [d.relevance for d in first.decisions]
    other = dpipe.select(tmp_path / "t.parquet", target="noise", **where)
    assert [d.relevance for d in other.decisions] != [d.relevance for d in first.decisions]


def test_workers_that_stay_do_not_take_one_run_for_another(tmp_path: Path, here: Any) -> None:
    frame = table().drop(columns=["label", "other"])
    frame["even"] = frame["close"].rank()
    frame.to_parquet(tmp_path / "t.parquet")
    settings: dict[str, Any] = {"target": "y", "passes": [1], "restart": "never", "client": here}

    def relevance(folder: str, threshold: float) -> dict[str, float | None]:
        found = dpipe.select(
            tmp_path / "t.parquet",
            output_dir=tmp_path / folder,
            variance_threshold=threshold,
            **settings,
        )
        return {d.column: d.relevance for d in found.decisions}

    first = relevance("out", 0.0)
    second = relevance("out", 0.08)
    left = {name for name, value in second.items() if value is not None}
    assert "even" in left
    assert "close" not in left
    assert {name: first[name] for name in left} == {name: second[name] for name in left}


def test_values_where_names_are_wanted_are_told_apart(here: Any) -> None:
    table = pd.DataFrame(np.random.default_rng(0).normal(size=(60, 3)), columns=list("abc"))
    for values in (table["a"] + 1, [0.5, 1.5]):
        with pytest.raises(
            InputError, match=r"names of columns, and DescriptorSelector\.fit\(X, y"
        ):
            dpipe.select(table, target=values, client=here)
    with pytest.raises(InputError, match=r"no such column \(did you mean 'a'\?\)\.$"):
        dpipe.select(table, target="A", client=here)
