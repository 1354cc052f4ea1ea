"""The functions of the Python interface.

Covers: `select`, which runs the whole pipeline; `load`, which opens a finished run; `apply`, which
reduces new files; `transfer`, which asks whether a selection holds on them; `similarity`, the
matrix of one measure, and the function that each measure has; files for data that is already in
memory.
Does not cover: the command line (`dpipe.cli`), the scikit-learn selector (`dpipe.estimator`).

Importing this module is cheap; Dask, Arrow and the rest load with the first call.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from dpipe.model.records import Similarity, TargetRelevance
    from dpipe.model.transfer import Transfer
    from dpipe.options import Options
    from dpipe.pipeline.apply import Applied
    from dpipe.selection import Selection


def select(
    data: Any,
    *,
    columns: Sequence[str] | None = None,
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
        Files (Parquet, CSV, TSV, Feather), folders, globs or fsspec URLs: one or a list. Or data in
        memory: a pandas, polars or pyarrow table (whatever has ``__arrow_c_stream__``), a NumPy
        array (n, p), a Dask DataFrame or Dask Array. Such data is written to temporary Parquet
        files, uncompressed: as many bytes of disk as of memory, and one row group of memory. They
        lie in `scratch_dir`, else in `output_dir`, else in the system's temporary folder; a Dask
        collection is written partition by partition where it is computed, never brought together. A
        later run with the same `output_dir` does not continue a run on data in memory, and ``dpipe
        verify`` does not find its input: give files where that matters.
    columns
        Names of the columns of an array; "0", "1", ... when None.
    client
        Dask client, cluster or scheduler address; None uses the current client, if there is one,
        else opens a local session and closes it again.
    output_dir
        Folder for the results, from which an interrupted run continues, or an fsspec URL for it; a
        temporary one if None.
    storage_options
        Passed to fsspec.
    observers
        Callables that receive every event of the run (see `dpipe.model.records`).
    **options
        Any option of ``dpipe run``, with underscores, as in ``spearman_threshold=0.9``. What is not
        given here is taken from Dask's configuration under ``dpipe:``.

    Returns
    -------
    dpipe.selection.Selection
        ``selected``, ``decisions``, ``communities``, ``ledger``, ``save``, ``report``, ``explain``.

    Raises
    ------
    InputError
        For bad input or options: one sentence saying what to do.
    ResourceError
        When the cluster is lost, or memory or disk is not enough.

    Examples
    --------
    >>> import dpipe
    >>> result = dpipe.select("examples/nci/*.parquet", keep=["rdkit_MolWt"])  # doctest: +SKIP
    >>> len(result.selected), result.explain("rdkit_HeavyAtomMolWt")  # doctest: +SKIP
    >>> reduced = result.apply(frame)  # doctest: +SKIP
    """
    from dpipe.options import options_from
    from dpipe.pipeline import run
    from dpipe.settings import with_configured

    resolved = options_from(with_configured(options))
    folder = resolved.scratch_dir or output_dir
    with _files(data, columns, client, resolved, folder) as (sources, connection):
        return run(
            sources,
            resolved,
            output_dir=output_dir,
            client=connection,
            observers=observers,
            storage_options=storage_options,
        )


def apply(folder: Any, sources: Any, output: Any, *, storage_options: Any = None) -> Applied:
    """Copy the columns that a finished run kept from new files, as ``dpipe apply`` does.

    Parameters
    ----------
    folder
        The run folder, or an fsspec URL of one.
    sources
        The new files, folders, globs or URLs: one or a list. For data in memory see
        `dpipe.selection.Selection.apply`.
    output
        One Parquet file, or a folder that gets a file for each of the input; or a URL.
    storage_options
        Passed to fsspec.

    Returns
    -------
    dpipe.pipeline.apply.Applied
        ``files``, ``n_rows``, ``columns``, ``left_out``, ``filled``.

    Raises
    ------
    InputError
        When there is no such run, no new file has a kept column or it holds no numbers, or the
        output exists.
    ResourceError
        When there is not enough disk or memory.

    Examples
    --------
    >>> import dpipe
    >>> dpipe.apply("out", "new.parquet", "reduced.parquet").n_rows  # doctest: +SKIP
    """
    from dpipe.pipeline import apply

    return apply(folder, sources, output, storage_options=storage_options)


def load(folder: Any) -> Selection:
    """The answer of a finished run, from its folder.

    Parameters
    ----------
    folder
        The run folder, on this machine.

    Returns
    -------
    dpipe.selection.Selection
        As `select` returned it.

    Raises
    ------
    InputError
        When the folder holds no finished run.

    Examples
    --------
    >>> import dpipe
    >>> dpipe.load("out").pairs("pandas")  # doctest: +SKIP
    """
    from dpipe.selection import load

    return load(folder)


def transfer(
    folder: Any,
    data: Any,
    *,
    client: Any = None,
    storage_options: Any = None,
    observers: Any = (),
    report: Any = None,
    **options: Any,
) -> Transfer:
    """Whether the selection of a finished run holds on new data, as ``dpipe transfer`` says it.

    Parameters
    ----------
    folder
        The run folder, or an fsspec URL of one.
    data
        The new table, as in `select`, with column names.
    client, storage_options, observers
        As in `select`; but few cells get threads of this process where no workers are asked for.
    report
        Path of a page to write of the answer.
    **options
        Where to compute, as in `select`; ``on_bad_file``, and ``coerce_strings`` for text that the
        run had as numbers; ``min_valid`` where the new rows are few. What else decides is taken
        from the run.

    Returns
    -------
    dpipe.model.transfer.Transfer
        ``holds``, ``broken``, ``certificates``, ``redundant``, ``unfit``, ``absent``, ``outside``,
        ``lines``.

    Raises
    ------
    InputError
        When there is no such run, or the new data has none of its columns.
    ResourceError
        When the cluster, memory or disk do not suffice.

    Examples
    --------
    >>> import dpipe
    >>> dpipe.transfer("out", "new/*.parquet").holds  # doctest: +SKIP
    """
    from dpipe.options import options_from
    from dpipe.pipeline import transfer
    from dpipe.settings import with_configured

    resolved = options_from(with_configured(options))
    with _files(data, None, client, resolved, resolved.scratch_dir) as (sources, connection):
        return transfer(
            folder,
            sources,
            resolved,
            client=connection,
            observers=observers,
            storage_options=storage_options,
            report=report,
        )


def similarity(
    data: Any,
    measure: str,
    *,
    columns: Sequence[str] | None = None,
    client: Any = None,
    **options: Any,
) -> Similarity:
    """The matrix of one measure between all numeric columns.

    Parameters
    ----------
    data, columns, client
        As in `select`.
    measure
        Name of a measure: "spearman", "hsic", "rdc" or another that ``dpipe similarity --help``
        lists. Each is a function of its own as well: ``dpipe.spearman(data)``.
    **options
        Options of ``dpipe similarity``, with underscores. By default a pair with missing cells is
        measured by the columns' marginal ranks; ``missing="exact"`` ranks every such pair again for
        Spearman's rho, as pandas does.

    Returns
    -------
    dpipe.model.records.Similarity
        ``values`` (p, p) float32, NaN where a pair has no similarity, and ``columns``.

    Raises
    ------
    InputError
        For bad input or options: one sentence saying what to do.
    ResourceError
        When the cluster, memory or disk do not suffice.

    Examples
    --------
    >>> import dpipe
    >>> matrix = dpipe.similarity("examples/nci/*.parquet", "hsic")  # doctest: +SKIP
    """
    from dpipe.options import options_from
    from dpipe.pipeline.allpairs import similarity as of_files
    from dpipe.settings import with_configured

    resolved = options_from({"min_valid": 2, **with_configured(options)})
    with _files(data, columns, client, resolved, resolved.scratch_dir) as (sources, connection):
        return of_files(sources, measure, options=resolved, client=connection)


def measure_function(name: str) -> Callable[..., Similarity]:
    """The function of one measure, which `dpipe` offers under its name.

    Raises
    ------
    AttributeError
        When there is no such measure.
    """
    from dpipe.kernels.measures import MEASURES, public_measures

    if name not in public_measures():
        raise AttributeError(f"module 'dpipe' has no attribute {name!r}")

    def function(
        data: Any, *, columns: Sequence[str] | None = None, client: Any = None, **options: Any
    ) -> Similarity:
        return similarity(data, name, columns=columns, client=client, **options)

    function.__name__ = function.__qualname__ = name
    function.__module__ = "dpipe"
    function.__doc__ = f"""The matrix of {MEASURES[name].title} between all numeric columns.

    {MEASURES[name].summary}.

    Parameters
    ----------
    data, columns, client, **options
        As in `dpipe.similarity`.

    Returns
    -------
    dpipe.model.records.Similarity
        ``values`` (p, p) float32, NaN where a pair has no similarity, and ``columns``.

    Raises
    ------
    InputError, ResourceError
        As `dpipe.similarity`.
    """
    return function


def relevance(
    data: Any,
    target: str | Sequence[str],
    *,
    columns: Sequence[str] | None = None,
    client: Any = None,
    **options: Any,
) -> TargetRelevance:
    """How much every numeric column tells of what is to be predicted: HSIC and RDC with a target.

    Parameters
    ----------
    data, columns, client, options
        As in `select`.
    target
        The columns that are to be predicted. Numbers and flags are taken as they are, text as
        classes; ``target_kind="classes"`` takes numbers for classes too.

    Returns
    -------
    TargetRelevance
        ``hsic`` and ``rdc`` (p, t) in [0, 1], NaN where too few rows have both values;
        ``columns``, ``targets``, and ``values`` (p,), the relevance that `select` goes by.

    Raises
    ------
    InputError
        For bad input or options, or a target that is empty, constant or an identifier.
    ResourceError
        When the cluster, memory or disk do not suffice.

    Examples
    --------
    >>> import dpipe
    >>> found = dpipe.relevance("examples/nci/*.parquet", "expt")  # doctest: +SKIP
    >>> found.columns[found.values.argmax()]  # doctest: +SKIP
    """
    from dpipe.options import options_from
    from dpipe.pipeline.allpairs import relevance as measure
    from dpipe.settings import with_configured

    resolved = options_from({**with_configured(options), "target": target})
    with _files(data, columns, client, resolved, resolved.scratch_dir) as (sources, connection):
        return measure(sources, options=resolved, client=connection)


@contextmanager
def _files(
    data: Any, columns: Sequence[str] | None, client: Any, options: Options, folder: Any
) -> Iterator[tuple[Sequence[str], Any]]:
    """The files that hold the data, and the connection: a Dask collection is computed on it too."""
    from dpipe.table.frames import Reading
    from dpipe.table.inputs import as_files

    reading = Reading({*options.exclude, *options.id_columns}, every_value=options.write_table)
    with ExitStack() as stack:
        if hasattr(data, "__dask_graph__"):
            from dpipe.session import client_for

            target = client or options.scheduler or options.scheduler_file
            client = stack.enter_context(client_for(target))
        files = as_files(data, columns=columns, client=client, folder=folder, reading=reading)
        yield stack.enter_context(files), client
