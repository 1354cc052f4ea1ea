"""dpipe: which columns of a wide table can go, because another column already says the same.

Covers: the Python interface. `select` runs the whole pipeline, `spearman`, `hsic` and `rdc` give
all-pairs similarities, `DescriptorSelector` is a scikit-learn selector.
Does not cover: the command line (`dpipe.cli`).

Importing this module is cheap; Dask, Arrow and the rest load with the first call.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dpipe.errors import DpipeError, InputError, ResourceError, VerificationError

if TYPE_CHECKING:
    from dpipe.model import Similarity
    from dpipe.selection import Selection

__all__ = [
    "DpipeError",
    "InputError",
    "ResourceError",
    "VerificationError",
    "hsic",
    "rdc",
    "select",
    "spearman",
]


def select(
    data: Any,
    *,
    client: Any = None,
    output_dir: Any = None,
    storage_options: Any = None,
    observers: Any = (),
    **options: Any,
) -> Selection:
    """Select the columns of a table that no other kept column makes redundant.

    Parameters
    ----------
    data
        Parquet files, folders, globs or fsspec URLs: one or a list.
    client
        Dask client, cluster or scheduler address; None uses the current client, if there is one,
        else opens a local session and closes it again.
    output_dir
        Folder for the results, from which an interrupted run continues; a temporary one if None.
    storage_options
        Passed to fsspec.
    observers
        Callables that receive every event of the run (see `dpipe.model`).
    **options
        Any option of ``dpipe run``, with underscores, as in ``spearman_threshold=0.9``.

    Returns
    -------
    dpipe.selection.Selection
        ``selected``, ``decisions``, ``communities``, ``ledger``, ``save``, ``report``, ``explain``.

    Raises
    ------
    InputError
        For bad input or options: one sentence saying what to do.
    ResourceError
        When the cluster, memory or disk do not suffice.

    Examples
    --------
    >>> import dpipe
    >>> result = dpipe.select("examples/nci/*.parquet", keep=["rdkit_MolWt"])  # doctest: +SKIP
    >>> len(result.selected), result.explain("rdkit_HeavyAtomMolWt")  # doctest: +SKIP
    """
    from dpipe.config import options_from
    from dpipe.pipeline import run

    return run(
        data,
        options_from(options),
        output_dir=output_dir,
        client=client,
        observers=observers,
        storage_options=storage_options,
    )


def spearman(data: Any, *, client: Any = None, **options: Any) -> Similarity:
    """All-pairs Spearman correlation; missing cells pair by pair.

    Parameters
    ----------
    data, client, options
        As in `select`. ``missing="exact"`` ranks every pair with missing cells again, as pandas
        does; by default such pairs use the columns' own ranks.

    Returns
    -------
    Similarity
        ``values`` (p, p) float32 and ``columns``.

    Examples
    --------
    >>> import dpipe
    >>> matrix = dpipe.spearman("examples/nci/*.parquet")  # doctest: +SKIP
    """
    return _similarity(data, "spearman", client, options)


def hsic(data: Any, *, client: Any = None, **options: Any) -> Similarity:
    """All-pairs normalised copula HSIC in [0, 1] (Gretton et al. 2005); arguments as `spearman`.

    Examples
    --------
    >>> import dpipe
    >>> matrix = dpipe.hsic("examples/nci/*.parquet")  # doctest: +SKIP
    """
    return _similarity(data, "hsic", client, options)


def rdc(data: Any, *, client: Any = None, **options: Any) -> Similarity:
    """All-pairs RDC in [0, 1] (Lopez-Paz et al. 2013); arguments as `spearman`.

    Examples
    --------
    >>> import dpipe
    >>> matrix = dpipe.rdc("examples/nci/*.parquet", rdc_seeds=1)  # doctest: +SKIP
    """
    return _similarity(data, "rdc", client, options)


def _similarity(data: Any, measure: str, client: Any, options: dict[str, Any]) -> Similarity:
    from dpipe.allpairs import similarity
    from dpipe.config import options_from

    resolved = options_from({"min_valid": 2, **options})
    return similarity(data, measure, options=resolved, client=client)
