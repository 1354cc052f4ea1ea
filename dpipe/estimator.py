"""The selection as a scikit-learn selector.

Covers: `DescriptorSelector`, its parameters as options of a run, data as scikit-learn gives it.
Does not cover: the selection itself (`dpipe.select`), data larger than memory (give `dpipe.select`
the files).
"""

from __future__ import annotations

import copy
import dataclasses
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from decimal import Decimal
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import NDArray

import dpipe
from dpipe.common.words import counted, quoted
from dpipe.errors import InputError
from dpipe.options import DECLARED, Options
from dpipe.session import FEW_CELLS, current_client, threads_here, within_joblib, within_task
from dpipe.table.frames import stream_names
from dpipe.table.inputs import Kind, as_table, kind_of, with_columns

try:
    from sklearn.base import BaseEstimator
    from sklearn.feature_selection import SelectorMixin
    from sklearn.utils._set_output import _get_output_config
    from sklearn.utils.validation import (
        check_array,
        check_consistent_length,
        check_is_fitted,
        validate_data,
    )
except ImportError as error:
    raise InputError(
        "DescriptorSelector needs scikit-learn 1.6 or newer; "
        'install it by: pip install "dpipe[sklearn]".'
    ) from error


def _described(selector: type[DescriptorSelector]) -> type[DescriptorSelector]:
    """The class, its docstring completed by what `dpipe.options` declares of its parameters."""
    text = selector.__doc__ or ""
    lines = [
        f"{field.name} : {str(field.type).replace(' | ', ' or ')}\n        {declared.description}."
        for field in dataclasses.fields(selector)
        if (declared := DECLARED.get(field.name)) and f"    {field.name} : " not in text
    ]
    selector.__doc__ = text.replace("{options}", "\n    ".join(lines))
    return selector


@_described
@dataclass(kw_only=True, eq=False, repr=False)
class DescriptorSelector(SelectorMixin, BaseEstimator):  # type: ignore[misc]
    """Drop the columns that another column already stands for.

    With `y`, of similar columns the one that tells most of it stays. NaN and infinite cells count
    as missing and are not imputed; an imputer belongs behind this step. Columns of a frame that are
    not numeric are not selected.

    Where it computes: on `client`; else on the current Dask client; else, without `workers`, in
    threads of this process for up to 16 million cells and on worker processes beyond. In a task of
    Dask, as joblib's backend "dask" makes them, threads of the worker do, and in a process of
    joblib's own, as `n_jobs` makes them, its threads for any table. The selection is the same
    everywhere, and the one `dpipe.select` makes.

    Parameters
    ----------
    client : distributed.Client, cluster, str or None
        A running Dask cluster. A clone shares it; a pickle does not take it along, unless it is
        an address.
    min_valid : int or None
        Fewest valid rows of a column or pair. None means 100, or half of the rows where that is
        less, but not less than 10 (of a table of fewer rows: all).
    keep : Sequence[str]
        Columns never dropped. Columns without names are called "x0", "x1", ...
    use_y : bool
        Whether `fit` looks at `y` when it is given.
    target_kind : {"auto", "numbers", "classes"}
        What `y` holds; auto: numbers, if it is numeric, else classes. Of classes at least two must
        have 10 rows each.
    scratch_dir : str or None
        Where ranks and a copy of the data lie during `fit`; the system's temporary folder if None.
    {options}

    Attributes
    ----------
    selected_ : tuple of str
        Names of the kept columns, in input order.
    decisions_ : tuple of dpipe.model.records.Decision
        One record per column: kept or dropped, why, by whom, with which value.
    communities_ : dict
        Kept column -> the columns it stands for.
    relevance_ : ndarray (n_features_in_,)
        How much each column tells of `y`, in [0, 1]; NaN where it is not known, and without `y`.
    n_features_in_ : int
    feature_names_in_ : ndarray of str
        Only where the data has column names and all are text.

    Raises
    ------
    InputError
        From `fit`: for options out of range or data without numeric columns.
    ResourceError
        From `fit`: when the cluster is lost, or memory or disk is not enough.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.random.default_rng(0).normal(size=(60, 2))
    >>> data = np.column_stack([x, 2 * x[:, 0] + 1])
    >>> selector = DescriptorSelector().fit(data)
    >>> selector.get_support()
    array([ True,  True, False])
    >>> selector.decisions_[2].reason, selector.decisions_[2].representative
    ('monotone duplicate', 'x0')
    """

    spearman_threshold: float = Options.spearman_threshold
    r2_threshold: float | None = Options.r2_threshold
    most_predictors: int | None = Options.most_predictors
    vif_threshold: float | None = Options.vif_threshold
    nonlinear_threshold: float = Options.nonlinear_threshold
    variance_threshold: float = Options.variance_threshold
    max_missing_ratio: float = Options.max_missing_ratio
    min_valid: int | None = None
    keep: Sequence[str] = ()
    prefer: Sequence[str] = ()
    max_columns: int | None = None
    passes: Sequence[int] = Options.passes
    nonlinear_rows: int | None = None
    use_y: bool = True
    target_kind: str = Options.target_kind
    seed: int = Options.seed
    client: Any = None
    workers: int | None = None
    device: str = Options.device
    scratch_dir: str | None = None

    def fit(self, X: Any, y: Any = None) -> DescriptorSelector:
        """Select columns of `X`.

        Parameters
        ----------
        X : array-like, pandas or polars frame, pyarrow table (n_samples, n_features)
            Dense. A frame keeps its types; everything else becomes an array of numbers.
        y : array-like (n_samples,) or (n_samples, n_targets), or None
            What is to be predicted, without missing values: numbers, or text for classes. Objects
            are either. What is constant says nothing and is not looked at.

        Returns
        -------
        DescriptorSelector
            Itself.
        """
        data = self._checked(_in_memory(X))
        n_rows, n_columns = data.shape
        names = list(getattr(self, "feature_names_in_", _array_names(n_columns)))
        targets = self._targets(y, n_rows, set(names))
        with self._connection(n_rows * n_columns) as client:
            result = dpipe.select(
                with_columns(data, names, targets) if targets else data,
                columns=names if kind_of(data) is Kind.ARRAY and not targets else None,
                client=client,
                **self._options() | {"target": tuple(targets)},
            )
        self.selected_ = result.selected
        self.decisions_ = tuple(d for d in result.decisions if d.column not in targets)
        self.communities_ = dict(result.communities)
        self.relevance_ = np.array(
            [np.nan if d.relevance is None else d.relevance for d in self.decisions_]
        )
        return self

    def _targets(self, y: Any, n_rows: int, taken: set[str]) -> dict[str, NDArray[Any]]:
        """The columns of `y` that vary, by names that no column of the data has."""
        targets: dict[str, NDArray[Any]] = {}
        if y is None or not self.use_y:
            return targets
        for name, values in _columns_of(y):
            check_consistent_length(values, np.empty(n_rows))
            column = _as_target(name, values, self.target_kind)
            if (column != column[0]).any():
                while name in taken or name in targets:
                    name += "_"
                targets[name] = column
        return targets

    def transform(self, X: Any) -> Any:
        """The selected columns of `X`.

        Parameters
        ----------
        X : array-like, pandas or polars frame, pyarrow table (n_samples, n_features)
            The columns of the data that the selector was fitted on.

        Returns
        -------
        array or frame (n_samples, n_selected)
            Of a frame an array of numbers, NaN where a cell is missing; or what `set_output` asks
            for, in which every column keeps its type.
        """
        check_is_fitted(self)
        X = _in_memory(X)
        if not _is_frame(X):
            return super().transform(X)
        validate_data(self, X, reset=False, skip_check_array=True)
        places = np.flatnonzero(self._get_support_mask())
        if not len(places):
            warnings.warn("No features were selected.", UserWarning, stacklevel=2)
        if kind_of(X) is Kind.FRAME:
            chosen = X.iloc[:, places]
        else:
            names = stream_names(X)
            chosen = X.select([names[place] for place in places])
        container = _get_output_config("transform", estimator=self)["dense"]
        if container == "default":
            return _numbers(chosen)
        # The other library's frame is made here, because scikit-learn would go by way of an array.
        if container == "pandas" and hasattr(chosen, "to_pandas"):
            return chosen.to_pandas()
        return chosen

    def _checked(self, X: Any) -> Any:
        """The data as dpipe takes it, its shape and names noted as scikit-learn wants it."""
        if _is_frame(X):
            validate_data(self, X, skip_check_array=True)
            for found, what, fewest in zip(X.shape, ("sample", "feature"), (2, 1), strict=True):
                if found < fewest:  # in the words of scikit-learn
                    raise ValueError(
                        f"Found array with {found} {what}(s) (shape={X.shape}) while a minimum of "
                        f"{fewest} is required."
                    )
            if not hasattr(self, "feature_names_in_"):  # names that are no text count as none
                return X.set_axis(_array_names(X.shape[1]), axis=1)
            return X
        return validate_data(self, X, ensure_all_finite=False, ensure_min_samples=2)

    @contextmanager
    def _connection(self, n_cells: int) -> Iterator[Any]:
        chosen = self.client is not None or self.workers is not None or self.device == "gpu"
        # A task must not wait for the cluster that it runs on, as one of joblib's Dask backend.
        offered = current_client() is not None and not within_task()
        many = n_cells > FEW_CELLS and not within_joblib()
        if chosen or many or offered:
            yield self.client
            return
        with threads_here() as client:
            yield client

    def _options(self) -> dict[str, Any]:
        """Every parameter but the connection is an option of a run."""
        given = self.get_params(deep=False)
        options = {name: value for name, value in given.items() if name in DECLARED}
        thresholds = [self.spearman_threshold, self.nonlinear_threshold]
        comparable = all(isinstance(threshold, Real) for threshold in thresholds)
        # Nobody sees the run folder, and data that fits in memory leaves the workers slim.
        return options | {
            "restart": "never",
            "checkpoint": False,
            "matrix_budget": 0,
            "pairs_from": min(thresholds) if comparable else None,
        }

    def _get_support_mask(self) -> NDArray[np.bool_]:
        check_is_fitted(self)
        return np.array([decision.decision == "kept" for decision in self.decisions_])

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        return tags

    # A Dask client can be neither copied nor pickled

    def __sklearn_clone__(self) -> DescriptorSelector:
        bare = copy.copy(self)
        bare.client = None
        cloned: DescriptorSelector = BaseEstimator.__sklearn_clone__(bare)
        cloned.client = self.client
        return cloned

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = super().__getstate__()
        if not isinstance(state["client"], str | os.PathLike):
            state = {**state, "client": None}
        return state


def _array_names(width: int) -> list[str]:
    """What scikit-learn calls the columns of data without names."""
    return [f"x{place}" for place in range(width)]


def _columns_of(y: Any) -> list[tuple[str, NDArray[Any]]]:
    """The columns of `y` with names for messages, each of its own type."""
    if _is_frame(y):
        columns = y.items() if kind_of(y) is Kind.FRAME else ((n, y[n]) for n in stream_names(y))
        return [(str(name), np.asarray(column)) for name, column in columns]
    # NumPy would make text of labels and numbers that are mixed in a list.
    values = np.asarray(y, dtype=object if isinstance(y, list | tuple) else None)
    if values.ndim < 2:
        return [("y", values)]
    columns = values.reshape(len(values), -1).T
    return [("y" if len(columns) == 1 else f"y{n}", column) for n, column in enumerate(columns)]


def _as_target(name: str, column: NDArray[Any], kind: str) -> NDArray[Any]:
    """One column of `y` as numbers, or as text for classes.

    Raises
    ------
    InputError
        When it holds neither numbers nor text, both, or text where numbers are asked for.
    ValueError
        When a value is missing.
    """
    if column.dtype == object:
        is_text = _is_text(name, column)
    elif column.dtype.kind in "mM":
        raise _no_target(name, column.dtype)
    else:
        column = check_array(column, ensure_2d=False, dtype=None, input_name=name)
        is_text = column.dtype.kind not in "biuf"
        if not is_text:
            return column
    if is_text and kind == "numbers":
        raise InputError(f"{name} is text; target_kind='classes' takes it as classes.")
    # Classes by any name are classes by their number, and of numbers only the order counts. So
    # numbers that no type of NumPy holds are compared as what they are.
    places: NDArray[Any] = np.unique(column, return_inverse=True)[1]
    return places.astype(str) if is_text else places


def _is_text(name: str, column: NDArray[Any]) -> bool:
    """Whether objects are text; else they are numbers."""
    values = column.tolist()
    n_missing = sum(map(_is_missing, values))
    if n_missing:
        raise ValueError(f"Input {name} contains {counted(n_missing, 'missing value')}.")
    types = set(map(type, values))
    texts = {each for each in types if issubclass(each, str)}
    others = {each for each in types - texts if not issubclass(each, Real | Decimal | np.bool_)}
    if others:
        raise _no_target(name, min(each.__name__ for each in others))
    if texts and texts != types:
        raise InputError(
            f"{name} holds both text and numbers; make all labels text, or all numbers."
        )
    return bool(texts)


def _is_missing(value: Any) -> bool:
    # pandas' NA, which is neither equal to itself nor not, is known by the name of its type.
    return value is None or type(value).__name__ == "NAType" or bool(value != value)


def _no_target(name: str, kind: object) -> InputError:
    return InputError(f"{name} is {kind}: neither numbers nor classes.")


def _numbers(frame: Any) -> NDArray[Any]:
    """A frame of numeric columns as an array: of their common type, or float64 where cells lack.

    Raises
    ------
    InputError
        For a column that holds no numbers, as it did in `fit`.
    """
    if not frame.shape[1]:
        return np.empty(frame.shape)
    if kind_of(frame) is Kind.FRAME:
        kinds = list(frame.dtypes)
        if all(isinstance(kind, np.dtype) and kind.kind in "biuf" for kind in kinds):
            # By name, because pandas makes objects of numbers and flags together.
            return np.asarray(frame.to_numpy(dtype=np.result_type(*kinds)))
        named = [(name, frame.iloc[:, place]) for place, name in enumerate(frame.columns)]
    else:
        named = [(name, frame[name]) for name in stream_names(frame)]
    return np.column_stack([_number_column(str(name), column) for name, column in named])


def _number_column(name: str, column: Any) -> NDArray[Any]:
    """One column as numbers, missing cells as NaN."""
    values: NDArray[Any] = column.to_numpy()
    if values.dtype.kind in "biuf":
        return values
    if values.dtype.kind not in "mMc":
        with suppress(TypeError, ValueError):  # told of below
            if hasattr(column, "iloc"):  # pandas' own marks of missing cells
                return np.asarray(column.to_numpy(dtype=np.float64, na_value=np.nan))
            return values.astype(np.float64)
    kind = getattr(column, "dtype", None) or column.type
    raise InputError(
        f"column {quoted(name)} is {kind}, and held numbers when the selector was fitted; convert "
        "it first."
    )


def _in_memory(data: Any) -> Any:
    """Data whose columns can be looked at, made of a stream of Arrow if need be.

    Raises
    ------
    InputError
        For files and for what is not computed yet, which scikit-learn would call scalars.
    """
    if isinstance(data, str | os.PathLike):
        raise InputError("DescriptorSelector takes data in memory; dpipe.select takes files too.")
    if hasattr(data, "collect"):
        kind_of(data)  # says that a LazyFrame is to be collected
    return as_table(data)


def _is_frame(data: Any) -> bool:
    """Whether data is a frame or table, whose columns have types of their own."""
    try:
        kind = kind_of(data)
    except InputError:
        return False
    return kind is Kind.FRAME or (kind is Kind.ARROW and hasattr(data, "columns"))
