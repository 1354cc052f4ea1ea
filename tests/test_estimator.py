"""The selector as scikit-learn sees it: its checks, its meta-estimators, the same selection."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import scipy.sparse
from conftest import ROOT
from joblib.externals.loky import ProcessPoolExecutor
from sklearn.base import clone
from sklearn.feature_selection import SelectorMixin
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LinearRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import estimator_checks_generator
from tables import mixed_table

import dpipe
from dpipe import estimator
from dpipe.errors import InputError, ResourceError
from dpipe.estimator import DescriptorSelector
from dpipe.session import current_client, threads_here

FRAME = pd.DataFrame(mixed_table(200, families=2))
NARROW = FRAME[["base0", "copy0", "noisy0_2", "constant", "holes1"]]


@pytest.fixture
def here() -> Iterator[Any]:
    """A client of threads, which is there at once."""
    with threads_here() as client:
        yield client


def name_of(value: Any) -> str:
    return getattr(getattr(value, "func", value), "__name__", "")


# Skipped by scikit-learn itself: check_array_api_input, unless SCIPY_ARRAY_API is set.
# As `parametrize_with_checks` does it, whose oldest version hands pytest a generator.
@pytest.mark.parametrize(
    ("estimator", "check"), list(estimator_checks_generator(DescriptorSelector())), ids=name_of
)
def test_scikit_learn_is_content(estimator: Any, check: Any, here: Any) -> None:
    """Every fit takes the client that is there; one of its own takes ten times as long."""
    with here.as_current():
        assert current_client() is here
        check(estimator)


def test_fit__selects_what_select_selects(here: Any) -> None:
    options: dict[str, Any] = {"nonlinear_threshold": 0.6, "min_valid": 50}
    expected = dpipe.select(FRAME, client=here, restart="never", **options)
    for data in (FRAME, pl.from_pandas(FRAME)):
        fitted = DescriptorSelector(client=here, **options).fit(data)
        assert fitted.selected_ == expected.selected
        assert fitted.decisions_ == expected.decisions
        assert fitted.communities_ == expected.communities
        assert list(fitted.get_feature_names_out()) == list(expected.selected)
    # Duplicates are decided by name, and here the names are others.
    names = [f"x{i}" for i in range(FRAME.shape[1])]
    expected = dpipe.select(FRAME.set_axis(names, axis=1), client=here, restart="never", **options)
    by_place = DescriptorSelector(client=here, **options).fit(FRAME.to_numpy())
    assert by_place.selected_ == expected.selected == tuple(by_place.get_feature_names_out())


def test_fit__obeys_keep_prefer_and_passes(here: Any) -> None:
    fitted = DescriptorSelector(client=here, keep=["constant"], prefer=["copy0"], passes=(1,)).fit(
        NARROW
    )
    assert fitted.selected_ == ("copy0", "noisy0_2", "constant", "holes1")
    unnamed = DescriptorSelector(client=here, keep=["x3"], prefer=["x1"], passes=(1,))
    assert unnamed.fit(NARROW.to_numpy()).selected_ == ("x1", "x2", "x3", "x4")


def test_fit__needs_fewer_valid_rows_in_small_tables(here: Any) -> None:
    data = np.random.default_rng(0).normal(size=(12, 2))
    data[:2, 0] = np.nan
    assert DescriptorSelector(client=here).fit(data).get_support().tolist() == [True, True]
    data[2, 0] = np.nan
    assert DescriptorSelector(client=here, max_missing_ratio=1).fit(data).selected_ == ("x1",)
    assert DescriptorSelector(client=here, min_valid=13).fit(data).selected_ == ()


def test_fit__leaves_out_what_is_no_number(here: Any) -> None:
    frame = NARROW.assign(smiles="CCO", whole=pd.array(range(200), dtype="Int64"))
    fitted = DescriptorSelector(client=here).fit(frame)
    assert fitted.n_features_in_ == len(fitted.get_support()) == 7
    assert "whole" in fitted.selected_
    assert "smiles" not in fitted.selected_
    with pytest.raises(InputError, match="no numeric column"):
        DescriptorSelector(client=here).fit(frame[["smiles"]])


def test_fit__says_what_is_wrong(here: Any) -> None:
    with pytest.raises(InputError, match="spearman-threshold must be between"):
        DescriptorSelector(client=here, spearman_threshold=2).fit(NARROW)
    with pytest.raises(InputError, match="'MolWt', but the table has no such column"):
        DescriptorSelector(client=here, keep=["MolWt"]).fit(NARROW)
    with pytest.raises(ValueError, match="1 sample"):
        DescriptorSelector(client=here).fit(NARROW[:1])
    sparse = scipy.sparse.csr_array(np.eye(4))
    with pytest.raises(TypeError, match="parse"):
        DescriptorSelector(client=here).fit(sparse)


def test_fit__says_what_is_no_table_in_memory(here: Any) -> None:
    selector = DescriptorSelector(client=here)
    with pytest.raises(InputError, match="takes data in memory"):
        selector.fit("data.parquet")
    with pytest.raises(InputError, match="LazyFrame cannot be used: give data"):
        selector.fit(pl.from_pandas(NARROW).lazy())
    for empty in (NARROW[[]], pl.from_pandas(NARROW).select([])):
        with pytest.raises(
            ValueError, match=r"0 (feature|sample)\(s\) \(shape=\(\d+, 0\)\) while a"
        ):
            selector.fit(empty, NARROW["base0"])


def test_fit__takes_batches_and_streams_of_arrow(here: Any) -> None:
    table = pa.Table.from_pandas(NARROW, preserve_index=False)
    expected = DescriptorSelector(client=here, passes=(1, 2)).fit(table)
    (batch,) = table.combine_chunks().to_batches()
    for data in (batch, pa.RecordBatchReader.from_stream(table)):
        fitted = DescriptorSelector(client=here, passes=(1, 2)).fit(data, NARROW["base0"])
        assert fitted.selected_ == expected.selected_
    np.testing.assert_array_equal(fitted.transform(batch), expected.transform(table))


@pytest.mark.parametrize("given", ["pandas", "polars", "pyarrow"])
@pytest.mark.parametrize("value", ["high", pd.Timestamp("2020-01-01"), pd.Timedelta(1, "s")])
def test_transform__names_the_column_that_holds_no_numbers_now(
    given: str, value: Any, here: Any
) -> None:
    fitted = DescriptorSelector(client=here, passes=(1,)).fit(given_as(given, NARROW))
    changed = given_as(given, NARROW.assign(noisy0_2=value))
    with pytest.raises(InputError, match=r"column 'noisy0_2' is .*, and held numbers when"):
        fitted.transform(changed)


def test_fit__computes_in_threads_within_a_task(client: Any) -> None:
    """As joblib's backend "dask" calls it: a task may not wait for the cluster it runs on."""

    def fit(frame: pd.DataFrame) -> tuple[str, ...]:
        return DescriptorSelector(passes=(1, 2)).fit(frame).selected_

    expected = DescriptorSelector(passes=(1, 2)).fit(NARROW).selected_
    assert client.submit(fit, NARROW).result(timeout=120) == expected


def test_fit__computes_in_threads_within_a_process_of_joblib() -> None:
    """Which can start no workers: they would end at once, not knowing how it was started."""

    def fit(frame: pd.DataFrame, **given: Any) -> tuple[str, ...] | str:
        estimator.FEW_CELLS = 0  # as of a large table
        try:
            return DescriptorSelector(passes=(1, 2), **given).fit(frame).selected_
        except ResourceError as error:
            return str(error)

    asked = [{}, {"workers": 1}]
    with ProcessPoolExecutor(max_workers=1) as pool:  # what joblib's Parallel has, but it ends
        here, there = [pool.submit(fit, NARROW, **given).result() for given in asked]
    assert here == DescriptorSelector(passes=(1, 2)).fit(NARROW).selected_
    assert "this process is one that joblib started" in there


@pytest.mark.parametrize("kind", ["pandas", "polars"])
def test_transform__gives_the_kind_that_is_asked_for(kind: str, here: Any) -> None:
    frame = NARROW if kind == "pandas" else pl.from_pandas(NARROW)
    fitted = DescriptorSelector(client=here).fit(frame)
    reduced = fitted.transform(frame)
    assert isinstance(reduced, np.ndarray)
    framed = fitted.set_output(transform=kind).transform(frame)
    assert type(framed) is type(frame)
    assert tuple(framed.columns) == fitted.selected_
    np.testing.assert_array_equal(framed.to_numpy(), reduced)


MIXED = pd.DataFrame(
    {
        "smiles": [f"C{i}" for i in range(60)],
        "made": pd.Timestamp("2020-01-01"),
        "a": np.random.default_rng(0).normal(size=60),
        "flag": np.arange(60) % 3 == 0,
        "whole": pd.array([None if i % 5 == 0 else i % 7 for i in range(60)], dtype="Int64"),
    }
)


def given_as(kind: str, frame: pd.DataFrame) -> Any:
    """A pandas frame as data of another library."""
    ways: dict[str, Any] = {"polars": pl.from_pandas, "pyarrow": pa.Table.from_pandas}
    return ways[kind](frame) if kind in ways else frame


@pytest.mark.parametrize("container", ["default", "pandas", "polars"])
@pytest.mark.parametrize("given", ["pandas", "polars", "pyarrow"])
def test_transform__converts_what_was_selected_and_nothing_else(
    given: str, container: str, here: Any
) -> None:
    frame = given_as(given, MIXED)
    fitted = DescriptorSelector(client=here, passes=(1,)).fit(frame, MIXED["a"])
    made = fitted.set_output(transform=container).transform(frame)
    numbers = MIXED[["a", "flag", "whole"]].astype("float64")
    if container == "default":
        assert made.dtype == np.float64
        np.testing.assert_array_equal(made, numbers.to_numpy())
        assert SimpleImputer().fit_transform(made).shape == (60, 3)
    elif container == "polars":
        assert made.schema == pl.from_pandas(MIXED[list(numbers)]).schema
    else:
        assert made.dtypes["flag"] == np.bool_
        pd.testing.assert_frame_equal(made.astype("float64"), numbers)


@pytest.mark.parametrize("given", ["pandas", "polars"])
def test_transform__numbers_and_flags_are_numbers(given: str, here: Any) -> None:
    frame = MIXED[["a", "flag"]].assign(whole=np.arange(60) % 7)
    data = frame if given == "pandas" else pl.from_pandas(frame)
    made = DescriptorSelector(client=here, passes=(1,)).fit_transform(data)
    assert made.dtype == np.float64
    np.testing.assert_array_equal(made, frame.astype("float64").to_numpy())


def test_fit__columns_whose_names_are_numbers_have_the_names_of_an_array(here: Any) -> None:
    numbered = NARROW.set_axis(range(NARROW.shape[1]), axis=1)
    fitted = DescriptorSelector(client=here, passes=(1, 2)).fit(numbered)
    named = DescriptorSelector(client=here, passes=(1, 2)).fit(NARROW.to_numpy())
    assert fitted.selected_ == named.selected_
    assert [d.column for d in fitted.decisions_] == [d.column for d in named.decisions_]
    assert tuple(fitted.get_feature_names_out()) == fitted.selected_
    np.testing.assert_array_equal(fitted.transform(numbered), named.transform(NARROW.to_numpy()))


def test_transform__warns_when_nothing_is_left(here: Any) -> None:
    for ones in (np.ones((10, 3)), pd.DataFrame(np.ones((10, 3)), columns=list("abc"))):
        fitted = DescriptorSelector(client=here).fit(ones)
        with pytest.warns(UserWarning, match="No features were selected"):
            assert fitted.transform(ones).shape == (10, 0)


def test_selector__works_in_a_pipeline_and_a_search(here: Any) -> None:
    target = (NARROW["base0"] + NARROW["noisy0_2"]).to_numpy()
    steps = make_pipeline(
        DescriptorSelector(client=here, passes=(1, 2)), SimpleImputer(), LinearRegression()
    )
    search = GridSearchCV(steps, {"descriptorselector__spearman_threshold": [0.5, 0.99]}, cv=2)
    search.fit(NARROW, target)
    assert search.best_params_ == {"descriptorselector__spearman_threshold": 0.99}
    assert search.best_score_ > 0.9
    assert list(
        steps.set_params(descriptorselector__passes=(1,))
        .fit(NARROW, target)[:-1]
        .get_feature_names_out()
    ) == ["base0", "noisy0_2", "holes1"]


def test_clone__shares_the_client_and_a_pickle_leaves_it(here: Any) -> None:
    selector = DescriptorSelector(client=here, keep=["base0"]).set_output(transform="pandas")
    cloned = clone(selector)
    assert cloned.client is here
    assert selector.client is here
    assert cloned.get_params() == selector.get_params()
    fitted = cloned.fit(NARROW)
    loaded = pickle.loads(pickle.dumps(fitted))  # noqa: S301
    assert loaded.client is None
    assert cloned.client is here
    pd.testing.assert_frame_equal(loaded.transform(NARROW), fitted.transform(NARROW))
    address = DescriptorSelector(client="tcp://127.0.0.1:1")
    loaded = pickle.loads(pickle.dumps(address))  # noqa: S301
    assert loaded.client == clone(address).client == address.client


def test_fit__uses_the_current_client_or_what_is_asked_for(
    client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[Any] = []
    select = dpipe.select

    def spy(*data: Any, **how: Any) -> Any:
        result = select(*data, **how)
        used.append((how["client"], {reading.process for reading in result.ledger}))
        return result

    monkeypatch.setattr(dpipe, "select", spy)
    assert current_client() is client
    expected = DescriptorSelector().fit(NARROW).selected_
    assert used.pop() == (None, {"client", "worker 0", "worker 1"})
    with client.as_current():
        monkeypatch.setattr(estimator, "current_client", lambda: None)
        monkeypatch.setattr("dpipe.session.current_client", lambda: None)
        assert DescriptorSelector().fit(NARROW).selected_ == expected
        own, processes = used.pop()
        assert own is not None
        assert processes == {"client", "worker 0"}
        assert DescriptorSelector(workers=1).fit(NARROW).selected_ == expected
        assert used.pop() == (None, {"client", "worker 0"})
        monkeypatch.setattr(estimator, "FEW_CELLS", 0)
        assert DescriptorSelector(client=client.scheduler.address).fit(NARROW).selected_ == expected


def test_selector__is_a_selector_and_comes_lazily() -> None:
    assert dpipe.DescriptorSelector is DescriptorSelector
    assert issubclass(DescriptorSelector, SelectorMixin)
    with pytest.raises(AttributeError, match="no attribute 'Selector'"):
        dpipe.Selector  # noqa: B018


def test_selector__says_what_to_install() -> None:
    code = (
        "import sys; sys.modules['sklearn'] = None\n"
        "import dpipe\n"
        "try: dpipe.DescriptorSelector\n"
        "except dpipe.InputError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip().endswith('install it by: pip install "dpipe[sklearn]".')
