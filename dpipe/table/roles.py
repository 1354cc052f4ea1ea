"""What each column is to dpipe, and the notes that say how the files disagree.

Covers: roles of columns from their types and the options, text that holds numbers, drift notes.
Does not cover: reading footers (see `dpipe.table.scan`), the widening table (`dpipe.table.schema`).

Nothing about a column is decided in silence: a type that changes between files, a column that a
file lacks, a pandas index, text that could be numbers each give one note, and columns with the
same story share it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain

import pyarrow as pa

from dpipe.common.words import columns_phrase, counted, listed, nearest, quoted
from dpipe.errors import InputError
from dpipe.model.records import Column, Role
from dpipe.options import Options
from dpipe.table.convert import TextCells
from dpipe.table.decode import decoder
from dpipe.table.files import BadFile, StorageOptions
from dpipe.table.record import Layout, TableFile
from dpipe.table.schema import Kind, kind_of, widen, widen_types

_NUMBER_CELLS = 19, 20
"""Text is read as numbers when at least this share of its filled cells are numbers."""
_SAMPLE_ROWS = 1000


@dataclass
class Use:
    """Where a column occurs: for each of its types the groups of files that have it.

    A group holds the paths of files with one schema and is shared by all columns of it.
    """

    files_by_type: dict[pa.DataType, list[Sequence[str]]] = field(default_factory=dict)
    is_index: bool = False

    @property
    def kinds(self) -> set[Kind]:
        """The kinds of its types."""
        return {kind_of(each) for each in self.files_by_type}

    @property
    def numeric(self) -> bool:
        """Whether its values are numbers in every file."""
        kind = widen(self.kinds)
        return kind is not None and kind.numeric

    @property
    def dtype(self) -> str:
        """Its unified Arrow type as text, or its types where they conflict."""
        types = list(self.files_by_type)
        if widen(self.kinds) is None:
            return " | ".join(sorted({str(each) for each in types}))
        unified = widen_types(types)
        return " | ".join(map(str, types)) if unified is None else str(unified)

    @property
    def story(self) -> str:
        """Which types it has where, as the end of a sentence."""
        parts = []
        for kind, groups in self.files_by_type.items():
            paths = sorted(chain.from_iterable(groups))
            parts.append(f"{kind} in {counted(len(paths), 'file')} ({listed(paths, 2)})")
        return f"{', '.join(parts[:-1])} and {parts[-1]}"


def check_options(options: Options, known: Mapping[str, object]) -> None:
    """Refuse options that name columns the table does not have (``prefer`` may).

    Raises
    ------
    InputError
        Naming the option, the column and the nearest name.
    """
    for option in ("id_columns", "exclude", "keep", "target"):
        for name in getattr(options, option):
            if name not in known:
                values = _gives_values(name) if option == "target" else ""
                raise InputError(
                    f"--{option.replace('_', '-')} names {name!r}, but the table has no such "
                    f"column{_needs_file(name, known) or values or nearest(name, known)}."
                )
    excluded = frozenset(options.exclude)
    both = [name for name in options.id_columns if name in excluded]
    if both:
        raise InputError(f"column {both[0]!r} is named in both --id-columns and --exclude.")


def check_budget(options: Options, features: Iterable[str]) -> None:
    """Refuse ``--max-columns`` when more features than that are asked to be kept.

    Raises
    ------
    InputError
        Naming both numbers.
    """
    asked = len(set(options.keep).intersection(features))
    if options.max_columns is not None and asked > options.max_columns:
        raise InputError(
            f"--keep names {counted(asked, 'column')}, more than the {options.max_columns:,} of "
            f"--max-columns; give at least {asked:,}, or keep fewer."
        )


def _needs_file(name: str, known: Iterable[str]) -> str:
    """The hint where `name` is what text with commas made of a column's name; else nothing."""
    meant = next((each for each in known if name in map(str.strip, each.split(","))), None)
    if meant is None:
        return ""
    return f"; if you mean {meant!r}, write it into a file, one name a line, and give @FILE"


def _gives_values(name: str) -> str:
    """The hint where `name` is a number, as if the values of a target were given; else nothing."""
    try:
        float(name)
    except ValueError:
        return ""
    return "; it takes the names of columns, and DescriptorSelector.fit(X, y) takes values"


class Roles:
    """Gives each column its role and tells what a user should know about it."""

    def __init__(
        self,
        options: Options,
        uses: Mapping[str, Use],
        files: Sequence[TableFile],
        layouts: Sequence[Layout],
        storage_options: StorageOptions = None,
        hints: Sequence[str] = (),
    ) -> None:
        self._options = options
        self._hints = hints
        self._ids = frozenset(options.id_columns)
        self._excluded = frozenset(options.exclude)
        self._asked = frozenset(options.keep)
        self._uses = uses
        self._files = files
        self._layouts = layouts
        self._storage_options = storage_options
        self._roles = {name: self._plain_role(name, use) for name, use in uses.items()}
        text = [name for name, use in uses.items() if self._may_hold_numbers(name, use)]
        self._text: dict[str, TextCells] = {}
        self._suggested: list[str] = []
        if options.coerce_strings:
            self._text = self._read_text(text)
            found = [name for name in self.coerced if self._roles[name] is Role.NOT_NUMERIC]
            self._roles.update(dict.fromkeys(found, Role.FEATURE))
        else:
            self._suggested = self._find_numbers_in_sample(text)
        for name in options.target:
            self._check_target(name)

    @property
    def columns(self) -> tuple[Column, ...]:
        """Every column with its role, in input order."""
        return tuple(Column(name, use.dtype, self._roles[name]) for name, use in self._uses.items())

    @property
    def coerced(self) -> tuple[str, ...]:
        """Columns with text that is read as numbers."""
        return tuple(name for name, cells in self._text.items() if _mostly_numbers(cells))

    def _plain_role(self, name: str, use: Use) -> Role:
        if name in self._options.target:
            return Role.TARGET
        if name in self._excluded:
            return Role.EXCLUDED
        if name in self._ids or (use.is_index and name not in self._asked):
            return Role.ID
        return Role.FEATURE if use.numeric else Role.NOT_NUMERIC

    # Text that holds numbers

    def _may_hold_numbers(self, name: str, use: Use) -> bool:
        role, options = self._roles[name], self._options
        asked = role is Role.NOT_NUMERIC or (
            role is Role.TARGET and options.coerce_strings and options.target_kind != "classes"
        )
        return asked and Kind.TEXT in use.kinds and Kind.OTHER not in use.kinds

    def _read_text(self, names: Sequence[str]) -> dict[str, TextCells]:
        """What the cells of text columns hold.

        A column is given up as soon as the rest of the table can no longer make it numbers, so
        that a column of names is not read to its end.
        """
        rows_left = sum(file.n_rows for file in self._files)
        cells = {name: TextCells() for name in names}
        hopeful = list(names)
        for file in self._files:
            rows_left -= file.n_rows
            if not file.n_rows or not hopeful:
                continue
            layout = self._layouts[file.layout]
            with decoder(file, layout, self._storage_options) as source:
                for part in source.parts(hopeful):
                    for name, column in zip(
                        part.columns.column_names, part.columns.itercolumns(), strict=True
                    ):
                        cells[name].add(column)
            hopeful = [name for name in hopeful if _may_be_numbers(cells[name], rows_left)]
        return cells

    def _find_numbers_in_sample(self, names: Sequence[str]) -> list[str]:
        """Columns whose text holds numbers in the first rows of the first file that has text."""
        by_file = defaultdict(list)
        for name in names:
            by_type = self._uses[name].files_by_type
            path = next(
                files[0][0] for kind, files in by_type.items() if kind_of(kind) is Kind.TEXT
            )
            by_file[path].append(name)
        numeric: set[str] = set()
        for file in self._files:
            try:
                numeric.update(self._numbers_in_first_rows(file, by_file.get(file.named, [])))
            except BadFile:
                # A page that only a hint would need is bad: say nothing here. Whoever reads
                # the column in earnest meets the error.
                continue
        return [name for name in names if name in numeric]

    def _numbers_in_first_rows(self, file: TableFile, names: Sequence[str]) -> Iterator[str]:
        if not names or not file.n_rows:
            return
        group = next(i for i, rows in enumerate(file.row_groups) if rows)
        layout = self._layouts[file.layout]
        with decoder(file, layout, self._storage_options, streamed=True) as source:
            for batch in source.batches(names, _SAMPLE_ROWS, [group]):
                for name in names:
                    cells = TextCells()
                    cells.add(pa.chunked_array([batch.column(name)]))
                    if _mostly_numbers(cells):
                        yield name
                return

    def _check_target(self, name: str) -> None:
        """Refuse a target that is of no one kind, or that holds no numbers where they are asked."""
        use = self._uses[name]
        if name in self.coerced:
            return
        if widen(use.kinds) is None:
            advice = self._hints[0] if self._hints else "give it one type in all files"
            raise InputError(f"the target {quoted(name)} is {use.story}; {advice}.")
        cells = self._text.get(name)
        if self._options.target_kind == "numbers" and cells and cells.others:
            raise InputError(
                f"of the target {quoted(name)} {_without_number(cells)}, so it is not read as "
                "numbers; --target-kind classes takes it as classes."
            )

    # Notes

    def notes(self) -> Iterator[str]:
        """One sentence for each thing about the columns that a user should know."""
        yield from self._index_notes()
        yield from self._drift_notes()
        yield from self._absence_notes()
        yield from self._text_notes()
        yield from self._option_notes()

    def _index_notes(self) -> Iterator[str]:
        index = [
            name
            for name, use in self._uses.items()
            if use.is_index
            and self._roles[name] is Role.ID
            and name not in self._options.id_columns
        ]
        if index:
            yield f"the index of a pandas frame is passed through as an id: {listed(index)}."

    def _drift_notes(self) -> Iterator[str]:
        """Columns whose type changes from file to file."""
        outcome = {
            Role.FEATURE: "read as numbers",
            Role.NOT_NUMERIC: "not numeric, left out of the analysis",
        }
        stories: dict[tuple[Role, str], list[str]] = defaultdict(list)
        for name, use in self._uses.items():
            role = self._roles[name]
            if role in outcome and len(use.files_by_type) > 1:
                stories[role, use.story].append(name)
        for (role, story), names in stories.items():
            yield f"{columns_phrase(names)}: {story}; {outcome[role]}."

    def _absence_notes(self) -> Iterator[str]:
        """Columns that some files lack; one set of columns is computed for each layout."""
        absent: dict[str, list[int]] = defaultdict(list)
        for number, layout in enumerate(self._layouts):
            for name in self._uses:
                if name not in layout.leaves:
                    absent[name].append(number)
        stories: dict[tuple[int, ...], list[str]] = defaultdict(list)
        for name, numbers in absent.items():
            stories[tuple(numbers)].append(name)
        for where, names in stories.items():
            paths = [file.named for file in self._files if file.layout in where]
            yield (
                f"{columns_phrase(names)}: not in {counted(len(paths), 'file')} "
                f"({listed(paths, 2)}); counted as missing there."
            )

    def _text_notes(self) -> Iterator[str]:
        if self.coerced:
            others = sum(self._text[name].n_others for name in self.coerced)
            yield (
                f"{columns_phrase(self.coerced)}: text read as numbers; "
                f"{counted(others, 'cell')} without a number counted as missing."
            )
        left_out = {
            name: cells
            for name, cells in self._text.items()
            if self._roles[name] is Role.NOT_NUMERIC
        }
        for name, cells in left_out.items():
            if cells.numbers:
                yield _why_not_numbers(name, cells)
        names = [name for name, cells in left_out.items() if cells.others and not cells.numbers]
        if names:
            yield f"{columns_phrase(names)}: text without numbers, left out of the analysis."
        if self._suggested:
            yield (
                f"{columns_phrase(self._suggested)}: text that looks like numbers, left out of "
                "the analysis; --coerce-strings reads such text."
            )

    def _option_notes(self) -> Iterator[str]:
        unknown = [name for name in self._options.prefer if name not in self._uses]
        if unknown:
            yield f"--prefer names columns that the table does not have: {listed(unknown)}."
        idle = [name for name in self._options.keep if self._roles[name] is not Role.FEATURE]
        if idle:
            yield f"--keep has no effect on columns that are not numeric: {listed(idle)}."


def _may_be_numbers(cells: TextCells, more: int) -> bool:
    """Whether enough of the filled cells are numbers, if `more` cells to come are numbers."""
    good, of = _NUMBER_CELLS
    return of * (cells.numbers + more) >= good * (cells.numbers + more + cells.n_others)


def _mostly_numbers(cells: TextCells) -> bool:
    return cells.numbers > 0 and _may_be_numbers(cells, 0)


def _why_not_numbers(name: str, cells: TextCells) -> str:
    """Why text that holds some numbers is not read as numbers."""
    good, of = _NUMBER_CELLS
    return (
        f"{columns_phrase([name])}: {_without_number(cells)}, left out of the analysis; "
        f"--coerce-strings reads a column of which at most {(of - good) / of:.0%} do."
    )


def _without_number(cells: TextCells) -> str:
    """How many cells hold other text than numbers, as part of a sentence."""
    share = cells.n_others / (cells.numbers + cells.n_others)
    text, _ = min(cells.others.items(), key=lambda item: (-item[1], item[0]))
    return f"{share:.0%} of the filled cells read hold no number (most often {quoted(text)})"
