"""The options of a run, their defaults and their checks.

Covers: one frozen `Options` record shared by the command line, YAML files and the Python interface.
Does not cover: reading files or arguments (see `dpipe.cli`), or what an option does.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

from dpipe.credentials import check_url
from dpipe.errors import InputError

PASS_NAMES = {0: "sample", 1: "prepare", 2: "spearman", 3: "vif", 4: "nonlinear"}
CHOICES = {
    "device": ("auto", "cpu", "gpu"),
    "restart": ("auto", "always", "never"),
    "on_bad_file": ("error", "skip"),
    "missing": ("borderline", "exact"),
    "precision": ("float32", "tf32"),
}
"""The values an option may take, for the options with few."""
RANGES: dict[str, tuple[float, float | None]] = {
    "max_missing_ratio": (0.0, 1.0),
    "spearman_threshold": (0.0, 1.0),
    "nonlinear_threshold": (0.0, 1.0),
    "variance_threshold": (0.0, 1.0),
    "w_hsic": (0.0, None),
    "w_rdc": (0.0, None),
    "vif_threshold": (1.0, None),
    "min_valid": (1, None),
    "workers": (1, 10_000),
    "threads_per_worker": (1, 1024),
    "memory_limit": (1, None),
    "sample_rows": (1, None),
    "sample_per_file": (1, None),
    "nonlinear_rows": (2, None),
    "rdc_seeds": (1, None),
    "rdc_degree": (1, 12),
    "seed": (0, None),
    "matrix_budget": (0, None),
}
"""The smallest and largest value (None: no bound) of the options that are numbers."""
SIZES = ("memory_limit", "matrix_budget")
"""Options in bytes, which may be written like ``2GiB``."""
BESIDE_OPTIONS = (
    "parquet_glob",
    "storage_options",
    "prefer_gpu",
    "output_dir",
    "verbose",
    "quiet",
)
"""What a YAML file may hold beside the fields of `Options`."""

_UNITS = {"": 1, "b": 1} | {
    prefix + suffix: base**power
    for power, prefix in enumerate("kmgt", start=1)
    for suffix, base in (("b", 1000), ("ib", 1024), ("", 1000))
}


def parse_size(text: str | int | float) -> int:
    """Bytes meant by a size such as ``"2GiB"``, ``"500 MB"`` or a plain number.

    Examples
    --------
    >>> parse_size("2GiB"), parse_size("1.5 kB"), parse_size(42)
    (2147483648, 1500, 42)
    """
    if isinstance(text, int | float):
        return int(text)
    match = re.fullmatch(r"\s*([0-9.]+(?:e[0-9]+)?)\s*([kmgt]?i?b?)\s*", text.lower())
    try:
        return int(float(match[1]) * _UNITS[match[2]])  # type: ignore[index]
    except (TypeError, KeyError, ValueError, OverflowError):
        raise InputError(f"{text!r} is not a size; write it like 2GiB or 500MB.") from None


def _option(default: Any, *, affects: int | None, text: str) -> Any:
    """A field of Options: `affects` is the first pass whose answer it changes (None: no answer)."""
    return field(default=default, metadata={"affects": affects, "help": text})


@dataclass(frozen=True)
class Options:
    """Everything a user can choose about a run; see each field's metadata for its meaning.

    Raises
    ------
    InputError
        When a value lies outside its range, naming the option.

    Examples
    --------
    >>> Options(spearman_threshold=0.9, keep=("MolWt",)).spearman_threshold
    0.9
    """

    device: str = _option(
        "auto", affects=None, text="where tasks compute: GPUs where there are some, CPU, GPU"
    )
    scheduler: str | None = _option(None, affects=None, text="address of a running scheduler")
    scheduler_file: str | None = _option(None, affects=None, text="scheduler file to attach to")
    workers: int | None = _option(None, affects=None, text="number of workers to start")
    threads_per_worker: int = _option(1, affects=None, text="threads of each of them")
    memory_limit: int | None = _option(None, affects=None, text="memory of each of them")
    tls: bool = _option(
        False, affects=None, text="encrypt the traffic of workers it starts, and shut others out"
    )
    restart: str = _option("auto", affects=None, text="restart workers between passes")
    checkpoint: bool = _option(True, affects=None, text="keep what a later run can reuse")
    fresh: bool = _option(False, affects=None, text="ignore what a previous run left")
    scratch_dir: str | None = _option(
        None, affects=None, text="where the ranks go, if not in the run folder"
    )
    matrix_budget: int = _option(
        2 * 1024**3, affects=None, text="largest similarity matrix to write"
    )

    id_columns: tuple[str, ...] = _option((), affects=1, text="columns passed through untouched")
    exclude: tuple[str, ...] = _option((), affects=1, text="columns left out of the analysis")
    keep: tuple[str, ...] = _option((), affects=1, text="columns never dropped")
    prefer: tuple[str, ...] = _option(
        (), affects=1, text="columns that win as representative, in this order"
    )
    on_bad_file: str = _option(
        "error", affects=1, text="stop at a file that cannot be read, or leave it out"
    )
    coerce_strings: bool = _option(False, affects=1, text="read text columns that hold numbers")
    sample_rows: int | None = _option(None, affects=1, text="rows drawn from the whole table")
    sample_per_file: int | None = _option(None, affects=1, text="rows drawn from each file")
    seed: int = _option(0, affects=1, text="seed of every draw")

    max_missing_ratio: float = _option(0.5, affects=1, text="largest share of missing cells")
    min_valid: int = _option(100, affects=1, text="fewest valid rows of a column or pair")
    variance_threshold: float = _option(0.002, affects=1, text="smallest normalised variance")
    spearman_threshold: float = _option(0.95, affects=2, text="|rho| that makes a pair redundant")
    missing: str = _option(
        "borderline",
        affects=2,
        text="pairs with missing cells to rank again: near the threshold, or all",
    )
    vif_threshold: float = _option(10.0, affects=3, text="largest variance inflation factor")
    nonlinear_threshold: float = _option(
        0.9, affects=4, text="fused HSIC and RDC that makes a pair redundant"
    )
    w_hsic: float = _option(0.5, affects=4, text="weight of HSIC in the fusion")
    w_rdc: float = _option(0.5, affects=4, text="weight of RDC in the fusion")
    nonlinear_rows: int | None = _option(None, affects=4, text="rows drawn for pass 4")
    rdc_seeds: int = _option(5, affects=4, text="draws whose median is RDC")
    rdc_degree: int | None = _option(
        None, affects=4, text="RDC without draws, over this many functions"
    )
    precision: str = _option(
        "float32", affects=4, text="products of pass 4 on a GPU: float32, or tf32 (faster)"
    )
    passes: tuple[int, ...] = _option(
        (1, 2, 3, 4), affects=None, text="passes to run; 1 is always among them"
    )
    write_table: bool = _option(False, affects=None, text="write the reduced table too")

    def __post_init__(self) -> None:
        for name, allowed in CHOICES.items():
            _check_choice(name, getattr(self, name), allowed)
        for name, (low, high) in RANGES.items():
            _check_range(name, getattr(self, name), low, high)
        if self.w_hsic + self.w_rdc <= 0:
            raise InputError("--w-hsic and --w-rdc are both 0: give at least one a weight.")
        if not self.passes or not set(self.passes) <= {1, 2, 3, 4} or 1 not in self.passes:
            raise InputError(
                "--passes takes a list out of 1,2,3,4 that has 1 in it: every pass needs the ranks."
            )
        check_url(self.scratch_dir or "")
        if self.scheduler and self.scheduler_file:
            raise InputError("give --scheduler or --scheduler-file, not both.")
        if self.tls and (self.scheduler or self.scheduler_file):
            raise InputError(
                "--tls is for workers that dpipe starts; give a running scheduler by its tls:// "
                "address, with certificates in Dask's configuration."
            )
        if self.sample_rows and self.sample_per_file:
            raise InputError("give --sample-rows or --sample-per-file, not both.")
        clash = set(self.keep) & (set(self.exclude) | set(self.id_columns))
        if clash:
            raise InputError(
                f"column {min(clash)!r} is asked to be kept and to be left out of the analysis."
            )

    def replace(self, **changes: Any) -> Options:
        """A copy with some values changed, checked again."""
        return dataclasses.replace(self, **changes)

    def affecting(self, pass_number: int) -> dict[str, Any]:
        """The options that the answer of `pass_number` depends on directly."""
        return {
            f.name: getattr(self, f.name)
            for f in dataclasses.fields(self)
            if f.metadata["affects"] == pass_number
        }


def options_from(values: Mapping[str, Any]) -> Options:
    """Options from plain values as YAML or Python callers write them.

    Lists and comma-separated text become tuples, sizes become bytes, ``_`` and ``-`` are equal.

    Raises
    ------
    InputError
        For an unknown name or a value of the wrong kind.
    """
    known = {f.name: f for f in dataclasses.fields(Options)}
    resolved: dict[str, Any] = {}
    for raw_name, value in values.items():
        name = str(raw_name).replace("-", "_")
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else "`dpipe run --help` lists them."
            raise InputError(f"there is no option {raw_name!r}; {hint}")
        if name in resolved:
            raise InputError(f"--{name.replace('_', '-')} is given twice, as {raw_name!r} too.")
        resolved[name] = _convert(name, value, known[name].default)
    return Options(**resolved)


def _convert(name: str, value: Any, default: Any) -> Any:
    if value is None:
        return default
    try:
        if isinstance(value, bool) != isinstance(default, bool):
            raise ValueError
        if name in SIZES:
            return parse_size(value)
        if isinstance(default, tuple):
            return _as_tuple(value, int if name == "passes" else str)
        if isinstance(default, bool):
            return value
        if isinstance(default, float):
            return float(value)
        if name in _WHOLE:
            if isinstance(value, int):
                return value
            if float(value) != int(float(value)):
                raise ValueError
            return int(float(value))
        if not isinstance(value, str | os.PathLike):
            raise ValueError
    except (TypeError, ValueError, OverflowError):
        raise InputError(f"--{name.replace('_', '-')} cannot be {value!r}.") from None
    return str(value)


_WHOLE = {
    "workers",
    "threads_per_worker",
    "sample_rows",
    "sample_per_file",
    "seed",
    "min_valid",
    "nonlinear_rows",
    "rdc_seeds",
    "rdc_degree",
}


def _as_tuple(value: Any, kind: type) -> tuple[Any, ...]:
    if isinstance(value, str):
        value = [part.strip() for part in value.split(",") if part.strip()]
    if isinstance(value, Mapping):
        raise ValueError
    parts = tuple(value) if isinstance(value, Iterable) else (value,)
    # YAML reads an unquoted NO as false and an empty entry as null: no column is called that.
    if any(isinstance(part, bool) or not isinstance(part, str | Real) for part in parts):
        raise ValueError
    return tuple(kind(part) for part in parts)


def _check_choice(name: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        option = name.replace("_", "-")
        raise InputError(f"--{option} is one of {', '.join(allowed)}, not {value!r}.")


def _check_range(name: str, value: float | None, low: float, high: float | None) -> None:
    if value is None or (low <= value <= (sys.float_info.max if high is None else high)):
        return
    span = f"at least {low}" if high is None else f"between {low} and {high}"
    raise InputError(f"--{name.replace('_', '-')} must be {span}, not {value}.")
