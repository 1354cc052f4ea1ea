"""The options of a run: each is declared once, and everything else follows from that.

Covers: one frozen `Options` record shared by the command line, YAML files and the Python interface;
the declarations from which ``--help``, the JSON schema and the tables of the reference are made.
Does not cover: reading files or arguments (see `dpipe.cli`), or what an option does.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dpipe.common.credentials import check_url
from dpipe.common.words import nearest
from dpipe.errors import InputError
from dpipe.model.registry import PASSES, usual_passes
from dpipe.options.declaration import Option, Section, option
from dpipe.options.kinds import (
    Flag,
    Globs,
    Kind,
    Names,
    Number,
    Passes,
    Place,
    Settings,
    Size,
    Text,
    Weights,
    Whole,
    choice,
    parse_size,
    parse_weights,
)

__all__ = ["DECLARED", "EXTRA_KEYS", "Option", "Options", "Section", "options_from", "parse_size"]

_R2_WITH_TARGET = 0.88
"""With a target the columns that tell most of it stay, and the rest may be predicted less well.

Not where a number of columns is asked for: what pass 5 chooses from costs nothing (docs/models.md).
"""

_R2_OF_FEW_ROWS = 0.9
"""The least without a target, where few rows cannot tell more (docs/models.md)."""

_R2_WITHOUT_TARGET = 0.95
"""Where nothing says which columns matter, what goes must be predicted well (docs/models.md)."""

_R2_ROWS = 15
"""1 - R^2 of an exact sum on normal scores stays below this over the rows (docs/statistics.md)."""


_input = functools.partial(option, Section.INPUT)
_redundancy = functools.partial(option, Section.REDUNDANCY)
_workers = functools.partial(option, Section.WORKERS)
_output = functools.partial(option, Section.OUTPUT)


_SHARE = Number(low=0, high=1)
_ANY = ("plan", "similarity", "transfer", "doctor")


@dataclass(frozen=True)
class Options:
    """Everything a user can choose about a run; `DECLARED` says what each field means.

    Raises
    ------
    InputError
        When a value lies outside its range, naming the option.

    Examples
    --------
    >>> Options(spearman_threshold=0.9, keep=("MolWt",)).spearman_threshold
    0.9
    """

    id_columns: tuple[str, ...] = _input(
        (), Names(), "columns passed through untouched", affects=1, also=("plan", "similarity")
    )
    exclude: tuple[str, ...] = _input(
        (), Names(), "columns left out of the analysis", affects=1, also=("plan", "similarity")
    )
    target: tuple[str, ...] = _input(
        (),
        Names(),
        "columns that a model is to predict",
        more="they are no features; of similar columns the one that tells most of them stays",
        affects=1,
        also=("plan",),
    )
    target_kind: str = _input(
        "auto",
        choice("auto", "numbers", "classes"),
        "take targets for numbers or for classes; auto: text for classes",
        more="of classes at least two must have 10 rows each",
        affects=1,
    )
    on_bad_file: str = _input(
        "error",
        choice("error", "skip"),
        "stop at a file that cannot be read, or leave it out",
        more="what is left out is listed",
        affects=1,
        also=("plan", "similarity", "transfer"),
    )
    coerce_strings: bool = _input(
        False,
        Flag(),
        "read text columns that hold numbers",
        affects=1,
        also=("plan", "similarity", "transfer"),
    )
    sample_rows: int | None = _input(
        None, Whole(low=1), "number of rows to draw from the whole table", affects=1, also=("plan",)
    )
    sample_per_file: int | None = _input(
        None, Whole(low=1), "number of rows to draw from each file", affects=1, also=("plan",)
    )
    seed: int = _input(0, Whole(low=0), "seed of every draw", affects=1, also=("similarity",))

    keep: tuple[str, ...] = _redundancy((), Names(), "columns never dropped", affects=1)
    prefer: tuple[str, ...] = _redundancy(
        (), Names(), "columns that win as representative, in this order", affects=1
    )
    max_missing_ratio: float = _redundancy(
        0.5, _SHARE, "largest share of missing cells of a column", affects=1
    )
    min_valid: int | None = _redundancy(
        None,
        Whole(low=1),
        "fewest valid rows of a column or pair; by default it follows the rows",
        more="100, or half of the rows where that is less, but not less than 10 (of a "
        "table of fewer rows: all)",
        affects=1,
        also=("similarity", "transfer"),
    )
    variance_threshold: float = _redundancy(
        0.002, _SHARE, "smallest normalised variance of a column", affects=1
    )
    spearman_threshold: float = _redundancy(
        0.95, _SHARE, "|rho| that makes a pair redundant", affects=2
    )
    missing: str = _redundancy(
        "borderline",
        choice("borderline", "exact"),
        "pairs with missing cells to rank again: near the threshold, or all",
        more="they are ranked again inside the pair, on the rows that have both values",
        affects=2,
        also=("similarity",),
    )
    r2_threshold: float | None = _redundancy(
        None,
        _SHARE,
        "adjusted R^2 at which kept columns predict a column; by default 0.95, 0.88 with a target "
        "and without --max-columns",
        more="with a target that of a column that tells nothing of it: the more one tells, the "
        "higher, up to two thirds of the way to 1; 1 - 15/rows instead of 0.95 of fewer than 300 "
        "rows, but at least 0.9",
        affects=3,
    )
    most_predictors: int | None = _redundancy(
        None,
        Whole(low=1),
        "most kept columns that may predict one; any number for an exact combination",
        more="3 by default, and any number with a target",
        affects=3,
    )
    vif_threshold: float | None = _redundancy(
        None,
        Number(low=1),
        "variance inflation factor that no kept column may reach",
        more="for those who fit regressions; off by default",
        affects=3,
    )
    nonlinear_threshold: float = _redundancy(
        0.9, _SHARE, "mean of the nonlinear measures that makes a pair redundant", affects=4
    )
    weights: str = _redundancy(
        "hsic=0.5,rdc=0.5",
        Weights(),
        "nonlinear measures to compute, and their weights in the mean",
        more="a measure of weight 0 gets a matrix and has no say",
        affects=4,
    )
    nonlinear_rows: int | None = _redundancy(
        None, Whole(low=2), "number of rows to draw for pass 4", affects=4, also=("plan",)
    )
    rdc_seeds: int = _redundancy(
        5, Whole(low=1), "number of draws whose median is RDC", affects=4, also=("similarity",)
    )
    rdc_degree: int | None = _redundancy(
        None,
        Whole(low=1, high=12),
        "RDC without draws, over this many functions",
        affects=4,
        also=("similarity",),
    )
    precision: str = _redundancy(
        "float32",
        choice("float32", "tf32"),
        "products of pass 4 on a GPU: float32, or tf32 (faster, less exact)",
        more="pairs near the threshold are settled in float64 either way. Without effect on a CPU, "
        "but that more pairs are settled",
        affects=4,
        also=("similarity",),
    )
    max_columns: int | None = _redundancy(
        None,
        Whole(low=1),
        "number of columns to keep: those that serve the target best, or stand best for all",
        more="chosen by pass 5 among what the other passes leave; columns of --keep count too. "
        "All stay by default",
        affects=5,
        also=("plan",),
    )
    leiden: str = _redundancy(
        "igraph",
        choice("igraph", "leidenalg"),
        "library whose Leiden finds communities of similar columns",
        more="leidenalg is the reference implementation, and slower; its package is an extra",
        affects=2,
    )
    passes: tuple[int, ...] = _redundancy(
        usual_passes(),
        Passes(),
        "passes to run; 1 is always among them",
        more="pass 5 runs where --max-columns asks for it",
        also=("plan",),
    )

    device: str = _workers(
        "auto",
        choice("auto", "cpu", "gpu"),
        "where tasks compute; auto: on GPUs, where there are any",
        also=_ANY,
    )
    scheduler: str | None = _workers(
        None,
        Text("ADDRESS"),
        "address of a running Dask scheduler to attach to",
        also=("similarity", "transfer", "doctor"),
    )
    scheduler_file: str | None = _workers(
        None,
        Place("FILE"),
        "scheduler file to attach to",
        also=("similarity", "transfer", "doctor"),
    )
    workers: int | None = _workers(
        None, Whole(low=1, high=10_000), "number of workers to start", also=_ANY
    )
    threads_per_worker: int = _workers(
        1,
        Whole(low=1, high=1024),
        "threads of each worker that dpipe starts",
        also=("plan", "similarity", "transfer"),
    )
    memory_limit: int | None = _workers(
        None, Size(low=1), "memory of each worker that dpipe starts, like 4GiB", also=_ANY
    )
    tls: bool = _workers(
        False,
        Flag(),
        "encrypt the traffic of workers that dpipe starts, and shut other users out",
        more="needs the package `cryptography`",
        also=("similarity", "transfer"),
    )
    restart: str = _workers(
        "auto",
        choice("auto", "always", "never"),
        "restart workers between passes",
        more="`auto`: on a cluster that dpipe did not start, only while nobody else uses it; a "
        "worker without a nanny is never restarted",
        also=("similarity", "transfer"),
    )
    scratch_dir: str | None = _workers(
        None,
        Place("DIR"),
        "folder or URL for the ranks, if not the run folder",
        also=("similarity", "transfer", "doctor"),
    )
    matrix_budget: int = _workers(
        2 * 1024**3, Size(low=0), "size of the largest similarity matrix to write", also=("plan",)
    )

    pairs_from: float | None = _output(
        None,
        _SHARE,
        "weakest similarity of a pair that pairs.parquet lists",
        more="0.7 by default, or the threshold of a pass where that is lower",
        affects=2,
    )
    checkpoint: bool = _output(True, Flag(), "keep what a later run can reuse")
    fresh: bool = _output(False, Flag(), "ignore what a previous run left")
    write_table: bool = _output(
        False,
        Flag(),
        "write the reduced table too",
        more="every row, and every column that was not dropped",
    )

    def __post_init__(self) -> None:
        for name, declared in DECLARED.items():
            value = getattr(self, name)
            if value is not None and (fault := declared.kind.fault(value)):
                raise InputError(f"{flag(name)} {fault}.")
        check_url(self.scratch_dir or "")
        if self.scheduler and self.scheduler_file:
            raise InputError("give --scheduler or --scheduler-file, not both.")
        if self.tls and (self.scheduler or self.scheduler_file):
            raise InputError(
                "--tls is for workers that dpipe starts; give a running scheduler by its tls:// "
                "address, with certificates in Dask's configuration."
            )
        for entry in (PASSES[number] for number in self.passes):
            if entry.threshold is None or not entry.pairwise or self.pairs_from is None:
                continue
            limit = getattr(self, entry.threshold)
            if self.pairs_from > limit:
                raise InputError(
                    f"--pairs-from {self.pairs_from} is above {flag(entry.threshold)} {limit}: "
                    "the pairs that decide would be missing."
                )
        if self.sample_rows and self.sample_per_file:
            raise InputError("give --sample-rows or --sample-per-file, not both.")
        for name in ("keep", "exclude", "id_columns"):
            if both := set(self.target) & set(getattr(self, name)):
                raise InputError(
                    f"column {min(both)!r} is named in both --target and {flag(name)}."
                )
        clash = set(self.keep) & (set(self.exclude) | set(self.id_columns))
        if clash:
            raise InputError(
                f"column {min(clash)!r} is asked to be kept and to be left out of the analysis."
            )

    def resolved(self, n_rows: int) -> Options:
        """The same options for a table of `n_rows`, with those that follow from others filled in.

        Examples
        --------
        >>> [Options().resolved(n).min_valid for n in (6, 15, 72, 10**6)]
        [6, 10, 36, 100]
        >>> Options(min_valid=50).resolved(72).min_valid
        50
        >>> [Options().resolved(n).r2_threshold for n in (72, 200, 10**6)]
        [0.9, 0.925, 0.95]
        >>> Options(target=("y",)).resolved(10**6).r2_threshold
        0.88
        >>> Options(target=("y",), max_columns=50).resolved(10**6).r2_threshold
        0.95
        """
        changes: dict[str, Any] = {}
        if self.min_valid is None:
            changes["min_valid"] = max(min(n_rows, 10), min(n_rows // 2, 100))
        if self.r2_threshold is None:
            reached = max(_R2_OF_FEW_ROWS, round(1 - _R2_ROWS / max(n_rows, 1), 3))
            follows = bool(self.target) and self.max_columns is None
            usual = _R2_WITH_TARGET if follows else min(reached, _R2_WITHOUT_TARGET)
            changes["r2_threshold"] = usual
        return self.replace(**changes)

    @property
    def required_rows(self) -> int:
        """``min_valid`` of options that were filled in by `resolved`."""
        assert self.min_valid is not None, "the options are not resolved"
        return self.min_valid

    @property
    def required_r2(self) -> float:
        """``r2_threshold`` of options that were filled in by `resolved`."""
        assert self.r2_threshold is not None, "the options are not resolved"
        return self.r2_threshold

    @property
    def pass_numbers(self) -> tuple[int, ...]:
        """The passes of a run in order: those of ``passes``, and those that an option asks for.

        Examples
        --------
        >>> Options(passes=(2, 1), max_columns=50).pass_numbers
        (1, 2, 5)
        """
        asked = {
            number
            for number, entry in PASSES.items()
            if entry.asked_by is not None and getattr(self, entry.asked_by) is not None
        }
        return tuple(sorted({*self.passes, *asked}))

    def replace(self, **changes: Any) -> Options:
        """A copy with some values changed, checked again."""
        return dataclasses.replace(self, **changes)

    @property
    def shares(self) -> dict[str, float]:
        """The weights of the nonlinear measures by name."""
        return parse_weights(self.weights)

    def affecting(self, pass_number: int) -> dict[str, Any]:
        """The options that the answer of `pass_number` depends on directly."""
        return {
            name: getattr(self, name)
            for name, declared in DECLARED.items()
            if declared.affects == pass_number
        }


DEFAULTS: Mapping[str, Any] = {f.name: f.default for f in dataclasses.fields(Options)}
"""The default of every option."""
DECLARED: Mapping[str, Option] = {f.name: f.metadata["option"] for f in dataclasses.fields(Options)}
"""What is declared about every option."""
EXTRA_KEYS: Mapping[str, Option] = {
    "parquet_glob": Option(Section.INPUT, Globs(), "another way to give the input"),
    "storage_options": Option(
        Section.INPUT,
        Settings(),
        "for URLs, given to fsspec; also as one JSON object",
        more="never written anywhere",
    ),
    "prefer_gpu": Option(Section.WORKERS, Flag(), "the same as --device auto"),
    "output_dir": Option(
        Section.OUTPUT, Place("DIR"), "the run folder, or a URL; the same one continues a run"
    ),
    "verbose": Option(
        Section.OTHER, Flag(), "print notes, stages and memory; show the traceback of an error"
    ),
    "quiet": Option(Section.OTHER, Flag(), "print errors only"),
}
"""What a YAML file and the command line may hold beside the fields of `Options`."""


SINGLE_WEIGHTS: Mapping[str, Option] = {
    f"w_{name}": Option(
        Section.REDUNDANCY, Number(low=0), f"weight of {name} in --weights, the others as they are"
    )
    for name in ("hsic", "rdc")
}
"""Options of earlier versions, each of which sets one of ``weights``."""


def flag(name: str) -> str:
    """The flag of an option.

    Examples
    --------
    >>> flag("vif_threshold")
    '--vif-threshold'
    """
    return f"--{name.replace('_', '-')}"


def options_from(values: Mapping[str, Any]) -> Options:
    """Options from plain values as YAML or Python callers write them.

    Lists and comma-separated text become tuples, sizes become bytes, ``_`` and ``-`` are equal;
    None stands for the default.

    Raises
    ------
    InputError
        For an unknown name or a value of the wrong kind.
    """
    resolved: dict[str, Any] = {}
    single: dict[str, float] = {}
    for raw_name, value in values.items():
        name = str(raw_name).replace("-", "_")
        if name in SINGLE_WEIGHTS:
            if value is not None:
                weight = _convert(name, value, SINGLE_WEIGHTS[name].kind)
                if fault := SINGLE_WEIGHTS[name].kind.fault(weight):
                    raise InputError(f"{flag(name)} {fault}.")
                single[name.removeprefix("w_")] = weight
            continue
        if name not in DECLARED:
            hint = nearest(name, DECLARED) or "; `dpipe run --help` lists them"
            raise InputError(f"there is no option {raw_name!r}{hint}.")
        if name in resolved:
            raise InputError(f"{flag(name)} is given twice, as {raw_name!r} too.")
        resolved[name] = DEFAULTS[name] if value is None else _convert(name, value)
    if single:
        if "weights" in resolved:
            raise InputError("give --weights or --w-hsic and --w-rdc, not both.")
        resolved["weights"] = _convert("weights", parse_weights(DEFAULTS["weights"]) | single)
    return Options(**resolved)


def check_apart(values: Mapping[str, Any]) -> None:
    """Check options that others will join, whatever those are.

    Raises
    ------
    InputError
        As `options_from`, but for what the defaults of the others would contradict.

    Examples
    --------
    >>> check_apart({"pairs-from": 0.97})  # a threshold above may stand elsewhere
    """
    given = {str(name).replace("-", "_") for name in values}
    thresholds = (entry.threshold for entry in PASSES.values() if entry.pairwise)
    others = {"passes": (1,), **{name: 1.0 for name in thresholds if name is not None}}
    options_from({**{k: v for k, v in others.items() if k not in given}, **values})


def _convert(name: str, value: Any, kind: Kind | None = None) -> Any:
    kind = kind or DECLARED[name].kind
    try:
        return kind.convert(value)
    except (TypeError, ValueError, OverflowError):
        raise InputError(f"{flag(name)} cannot be {value!r}; it is {kind.wanted}.") from None
    except InputError as error:
        raise InputError(f"{flag(name)}: {error}") from None
