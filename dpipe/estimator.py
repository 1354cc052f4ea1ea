"""The selection as a scikit-learn selector.

Covers: `DescriptorSelector`, its parameters as options of a run, data as scikit-learn gives it.
Does not cover: the selection itself (`dpipe.select`), data larger than memory (give `dpipe.select`
the files).
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import NDArray

import dpipe
from dpipe.errors import InputError
from dpipe.options import DECLARED, Options
from dpipe.session import current_client, threads_here
from dpipe.table.inputs import Kind, kind_of

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

_CELLS_FOR_THREADS = 2**24
"""Cells up to which threads of this process are done sooner than processes are worth."""


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
    threads of this process for up to 16 million cells and on worker processes beyond. The
    selection is the same everywhere, and the one `dpipe.select` makes.

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
        X : array-like, pandas or polars frame (n_samples, n_features)
            Dense. A frame keeps its types; everything else becomes an array of numbers.
        y : array-like (n_samples,) or (n_samples, n_targets), or None
            What is to be predicted, without missing values. One that is constant says nothing
            and is not looked at.

        Returns
        -------
        DescriptorSelector
            Itself.
        """
        data = self._checked(X)
        n_rows, n_columns = data.shape
        names = list(getattr(self, "feature_names_in_", _array_names(n_columns)))
        values, classes = self._targets(y, n_rows)
        free = (name for place in itertools.count() if (name := f"y{place}") not in names)
        targets = dict(zip(free, values, strict=False))
        with self._connection(n_rows * n_columns) as client:
            result = dpipe.select(
                _with_columns(data, targets),
                columns=[*names, *targets] if kind_of(data) is Kind.ARRAY else None,
                client=client,
                **self._options() | {"target": tuple(targets)} | classes,
            )
        self.selected_ = result.selected
        self.decisions_ = tuple(d for d in result.decisions if d.column not in targets)
        self.communities_ = dict(result.communities)
        self.relevance_ = np.array(
            [np.nan if d.relevance is None else d.relevance for d in self.decisions_]
        )
        return self

    def _targets(self, y: Any, n_rows: int) -> tuple[list[NDArray[Any]], dict[str, str]]:
        """The columns of `y` as numbers, those that vary; and the kind of target they are then."""
        if y is None or not self.use_y:
            return [], {}
        y = check_array(y, ensure_2d=False, dtype=None, input_name="y")
        check_consistent_length(y, np.empty(n_rows))
        columns = list(y.reshape(n_rows, -1).T)
        kind = {}
        if y.dtype.kind not in "biuf":  # classes by any name are classes by their number
            columns = [np.unique(column, return_inverse=True)[1] for column in columns]
            kind = {"target_kind": "classes"}
        return [column for column in columns if (column != column[0]).any()], kind

    def transform(self, X: Any) -> Any:
        """The selected columns of `X`.

        Parameters
        ----------
        X : array-like, pandas or polars frame (n_samples, n_features)
            The columns of the data that the selector was fitted on.

        Returns
        -------
        array or frame (n_samples, n_selected)
            Of a frame an array of numbers, NaN where a cell is missing; or what `set_output` asks
            for, in which every column keeps its type.
        """
        check_is_fitted(self)
        if not _is_frame(X):
            return super().transform(X)
        validate_data(self, X, reset=False, skip_check_array=True)
        places = np.flatnonzero(self._get_support_mask())
        if not len(places):
            warnings.warn("No features were selected.", UserWarning, stacklevel=2)
        chosen = X.iloc[:, places] if kind_of(X) is Kind.FRAME else X[:, places.tolist()]
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
            if X.shape[0] < 2:
                raise ValueError(f"Found array with {X.shape[0]} sample(s) while 2 are required.")
            if not hasattr(self, "feature_names_in_"):  # names that are no text count as none
                return X.set_axis(_array_names(X.shape[1]), axis=1)
            return X
        return validate_data(self, X, ensure_all_finite=False, ensure_min_samples=2)

    @contextmanager
    def _connection(self, n_cells: int) -> Iterator[Any]:
        chosen = self.client is not None or self.workers is not None or self.device == "gpu"
        if chosen or n_cells > _CELLS_FOR_THREADS or current_client() is not None:
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


def _with_columns(data: Any, added: Mapping[str, NDArray[Any]]) -> Any:
    """Data with some more columns."""
    if not added:
        return data
    if kind_of(data) is Kind.ARRAY:
        return np.column_stack([data, *added.values()])
    if kind_of(data) is Kind.FRAME:
        # Not by `assign`, which warns of a frame that many columns were added to one by one.
        return data.reset_index(drop=True).join(type(data)(dict(added)))
    return data.with_columns(**added)


def _numbers(frame: Any) -> NDArray[Any]:
    """A frame of numeric columns as an array: of their common type, or float64 where cells lack."""
    if not frame.shape[1]:
        return np.empty(frame.shape)
    if kind_of(frame) is Kind.FRAME:
        kinds = [dtype for dtype in frame.dtypes if isinstance(dtype, np.dtype)]
        if len(kinds) == frame.shape[1] and (common := np.result_type(*kinds)).kind in "biuf":
            # By name, because pandas makes objects of numbers and flags together.
            return np.asarray(frame.to_numpy(dtype=common))
        columns = [
            frame.iloc[:, place].to_numpy(dtype=np.float64, na_value=np.nan)
            for place in range(frame.shape[1])
        ]
    else:
        columns = [frame.to_series(place).to_numpy() for place in range(frame.shape[1])]
        columns = [c.astype(np.float64) if c.dtype.kind not in "biuf" else c for c in columns]
    return np.column_stack(columns)


def _is_frame(data: Any) -> bool:
    """Whether data is a pandas or polars frame, whose columns have types of their own."""
    try:
        kind = kind_of(data)
    except InputError:
        return False
    return kind is Kind.FRAME or (kind is Kind.ARROW and hasattr(data, "columns"))
