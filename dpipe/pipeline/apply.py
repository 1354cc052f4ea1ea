"""New data reduced with a finished selection.

Covers: which columns to copy, that the new data has them and that they are what they were.
Does not cover: copying them (`dpipe.table.copying`), data in memory (`dpipe.selection`).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dpipe.common.words import counted
from dpipe.errors import InputError
from dpipe.model.inventory import SELECTED
from dpipe.model.records import Role
from dpipe.options import Options
from dpipe.runfolder import RunFolder, mirror
from dpipe.table import Table, conflicting, copy_columns, open_table
from dpipe.table.files import BadFile
from dpipe.table.inputs import paths_of


@dataclass(frozen=True)
class Applied:
    """What `apply` wrote.

    Attributes
    ----------
    files
        The files written.
    n_rows
        Rows in all of them.
    columns
        Their columns, in order.
    left_out
        Columns that the run did not analyse and that cannot be copied, because their types differ
        between the new files.
    filled
        Columns that some of the new files lack: they have missing cells there, as in a run.
    """

    files: tuple[str, ...]
    n_rows: int
    columns: tuple[str, ...]
    left_out: tuple[str, ...]
    filled: tuple[str, ...] = ()

    def __repr__(self) -> str:
        """One line."""
        size = f"{counted(self.n_rows, 'row')}, {counted(len(self.columns), 'column')}"
        return f"<Applied: {size} in {counted(len(self.files), 'file')}>"


def apply(
    folder: str | os.PathLike[str],
    sources: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    *,
    storage_options: Mapping[str, Any] | None = None,
) -> Applied:
    """Copy the columns that a finished run kept from new files.

    Columns that the run did not analyse (identifiers, text) are carried along where the new data
    has them.

    Parameters
    ----------
    folder
        The run folder, or a URL of one.
    sources
        The new files, folders, globs or fsspec URLs.
    output
        One Parquet file, or a folder that gets a file for each of the input; or a URL.
    storage_options
        Passed to fsspec.

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
    paths = paths_of(sources)
    with mirror.reading(folder, storage_options) as local:
        run = RunFolder(local)
        selected = run.read_selected()
        decisions = {decision.column: decision for decision in run.read_decisions()}
        coerce = bool(run.read_run().get("options", {}).get("coerce_strings", False))
    where = os.fspath(folder)
    try:
        opened = open_table(
            paths,
            options=Options(coerce_strings=coerce),
            storage_options=storage_options,
            analysed=selected,
        )
    except BadFile as error:  # without the advice for a run: no file is skipped here
        raise BadFile(error.path, error.reason) from error
    with opened as table:
        _check_present(table, selected, where)
        for name in selected:
            _check_number(table, name, decisions[name].dtype if name in decisions else "", where)
        present = {column.name for column in table.columns}
        carried = [name for name, d in decisions.items() if d.decision != "dropped"]
        names = [name for name in carried if name in present]
        left_out = conflicting(table, names)
        names = [name for name in names if name not in left_out]
        if not names:
            raise InputError(f"the run in {where} kept no column: there is nothing to copy.")
        files = copy_columns(table, names, output)
        lacking = {name for file in table.files for name in table.lacks(file)}
        filled = tuple(name for name in names if name in lacking)
        return Applied(files, table.n_rows, tuple(names), left_out, filled)


def _check_present(table: Table, selected: Sequence[str], where: str) -> None:
    """Refuse new data of which no file has a kept column."""
    present = {column.name for column in table.columns}
    missing = [name for name in selected if name not in present]
    if missing:
        others = f" and {len(missing) - 1:,} more" if len(missing) > 1 else ""
        several = len(table.files) > 1
        lacks = "none of the new files has" if several else f"{table.files[0].named} lacks"
        raise InputError(
            f"{lacks} column {missing[0]!r}{others} of the {len(selected):,} that "
            f"{os.path.join(where, SELECTED)} lists."
        )


def _check_number(table: Table, name: str, before: str, where: str) -> None:
    """Refuse what is no number now: the run kept a number of that name."""
    column = table.column(name)
    if column.role is Role.NOT_NUMERIC:
        raise InputError(
            f"column {name!r} of the new data is {column.dtype}, and a number ({before}) in the "
            f"run in {where}; convert it first."
        )
