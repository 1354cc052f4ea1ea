"""Broken Parquet bytes and odd option sets by the thousand: nothing may crash, hang or trace back.

Covers: mutations of small sound files through `open_table` and `read_block`, in child processes
that may die without taking the count with them; drawn options through `options_from`, the command
line and YAML; drawn columns, whose ranks are compared with those of pandas (`odd_columns`).
Does not cover: what is read from sound files (see `test_table`).

By hand, as long as one likes, each case repeatable by its seed::

    python tests/fuzz.py --mutations 20000 --options 2000 --columns 20000 --first-seed 0
"""

from __future__ import annotations

import argparse
import contextlib
import decimal
import itertools
import json
import os
import random
import resource
import selectors
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import odd_columns
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from click.testing import CliRunner

from dpipe.cli import main as command_line
from dpipe.errors import DpipeError, InputError
from dpipe.kernels.fusion import Fusion
from dpipe.options import DECLARED, Options, options_from
from dpipe.options.kinds import (
    Choice,
    Flag,
    Names,
    Number,
    Passes,
    Place,
    Size,
    Text,
    Weights,
    Whole,
)
from dpipe.table import open_table, read_block

PATIENCE = 60.0
"""Seconds one case may take before it counts as a hang."""
MEMORY = 4 * 1024**3
"""Bytes of address space of a child: damaged sizes must end in an error, not in swapping."""
BATCH = 500
"""Cases of one child process."""


@dataclass
class Report:
    """What became of the cases; `failures` holds seed and reason of each that must not be."""

    outcomes: Counter[str] = field(default_factory=Counter)
    failures: list[tuple[int, str]] = field(default_factory=list)

    @property
    def cases(self) -> int:
        return sum(self.outcomes.values())


# Parquet


def corpus() -> list[bytes]:
    """Small files that use much of the format."""
    rng = np.random.default_rng(0)
    rows = 60
    plain = pa.table(
        {
            "x": rng.normal(size=rows),
            "float": pa.array(rng.normal(size=rows).astype(np.float32)),
            "holes": pa.array([None if i % 7 == 0 else i / 3 for i in range(rows)]),
            "int": np.arange(rows),
            "text": [f"m{i % 5}" for i in range(rows)],
        }
    )
    odd = pa.table(
        {
            "bool": pa.array([i % 3 == 0 for i in range(rows)]),
            "small": pa.array(np.arange(rows) % 100, pa.int8()),
            "large": pa.array([i + 2**63 for i in range(rows)], pa.uint64()),
            "money": pa.array([decimal.Decimal(i) / 4 for i in range(rows)]),
            "code": pa.array([i % 4 / 2 for i in range(rows)]).dictionary_encode(),
            "nothing": pa.nulls(rows),
            "digits": [f"{i}.5" for i in range(rows)],
            "nested": [{"a": i, "b": [i, i]} for i in range(rows)],
            "half": pa.array(rng.normal(size=rows).astype(np.float16)),
        }
    )
    styles: tuple[dict[str, Any], ...] = (
        {"row_group_size": 16, "write_page_checksum": True},
        {"compression": "none", "use_dictionary": False},
        {"compression": "zstd", "data_page_version": "2.0", "row_group_size": 25},
        {"compression": "gzip", "write_page_index": True, "data_page_size": 64},
        {"compression": "none", "use_dictionary": False, "column_encoding": "BYTE_STREAM_SPLIT"},
    )
    files = []
    for table, style in itertools.product((plain, odd), styles):
        if "column_encoding" in style:
            table = table.select([n for n in ("x", "float", "half") if n in table.column_names])
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, **style)
        files.append(sink.getvalue().to_pybytes())
    return files


def mutated(files: list[bytes], seed: int) -> bytes:
    """One damaged file: flipped bits, changed bytes, cut, spliced, or several of these."""
    dice = random.Random(seed)
    content = bytearray(dice.choice(files))
    for _ in range(dice.choice((1, 1, 1, 2, 4))):
        dice.choice(_MUTATIONS)(content, dice, files)
    return bytes(content)


def _place(content: bytearray, dice: random.Random) -> int:
    """A position; the footer, where small changes mean most, gets half of them."""
    size = max(1, len(content))
    if dice.random() < 0.5:
        length = int.from_bytes(content[-8:-4], "little") + 8
        return size - 1 - dice.randrange(min(size, max(8, length)))
    return dice.randrange(size)


def _flip(content: bytearray, dice: random.Random, files: list[bytes]) -> None:
    for _ in range(dice.choice((1, 1, 2, 8)) if content else 0):
        content[_place(content, dice)] ^= 1 << dice.randrange(8)


def _overwrite(content: bytearray, dice: random.Random, files: list[bytes]) -> None:
    values = (0, 1, 0x7F, 0x80, 0xFF, dice.randrange(256))
    start = _place(content, dice)
    for place in range(start, min(len(content), start + dice.choice((1, 1, 2, 4, 8)))):
        content[place] = dice.choice(values)


def _cut(content: bytearray, dice: random.Random, files: list[bytes]) -> None:
    del content[_place(content, dice) :]


def _remove(content: bytearray, dice: random.Random, files: list[bytes]) -> None:
    start = _place(content, dice)
    del content[start : start + dice.choice((1, 2, 8, 100))]


def _insert(content: bytearray, dice: random.Random, files: list[bytes]) -> None:
    start = _place(content, dice)
    content[start:start] = dice.randbytes(dice.choice((1, 2, 8, 100)))


def _splice(content: bytearray, dice: random.Random, files: list[bytes]) -> None:
    other = dice.choice(files)
    begin, length = dice.randrange(len(other)), dice.choice((4, 16, 64, 512))
    start = _place(content, dice)
    content[start : start + length] = other[begin : begin + length]


def _other_footer(content: bytearray, dice: random.Random, files: list[bytes]) -> None:
    other = dice.choice(files)
    length = int.from_bytes(other[-8:-4], "little") + 8
    own = int.from_bytes(content[-8:-4], "little") + 8
    content[max(0, len(content) - own) :] = other[-length:]


_MUTATIONS: tuple[Callable[[bytearray, random.Random, list[bytes]], None], ...] = (
    _flip,
    _flip,
    _overwrite,
    _overwrite,
    _cut,
    _remove,
    _insert,
    _splice,
    _other_footer,
)


def read_case(files: list[bytes], seed: int, folder: Path) -> str:
    """Open and read one damaged file; what became of it in one word."""
    path = folder / "case.parquet"
    path.write_bytes(mutated(files, seed))
    options = Options(coerce_strings=seed % 2 == 0)
    try:
        table = open_table([path], options=options)
    except DpipeError as error:
        _check_sentence(error)
        return "refused"
    try:
        block = read_block(table, table.features)
    except DpipeError as error:
        _check_sentence(error)
        return "refused when read"
    if block.values.shape != (len(table.features), table.n_rows):
        raise AssertionError(f"{block.values.shape} for {table.n_rows} rows")
    if np.isinf(block.values).any():
        raise AssertionError("an infinite value")
    return "read"


def _check_sentence(error: DpipeError) -> None:
    text = str(error)
    if not text.endswith((".", "?")) or "\n" in text or len(text) > 2000:
        raise AssertionError(f"not one sentence: {text!r}")


_READY = "ready\n"


def child(first: int, last: int, folder: Path) -> None:
    """Run cases, one line of JSON each; the parent notices when the lines end."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    files = corpus()
    sys.stdout.write(_READY)
    sys.stdout.flush()
    for seed in range(first, last):
        try:
            outcome, reason = read_case(files, seed, folder), ""
        except Exception:
            outcome, reason = "traceback", traceback.format_exc()
        sys.stdout.write(json.dumps([seed, outcome, reason]) + "\n")
        sys.stdout.flush()


def fuzz_parquet(first: int, count: int, seconds: float = float("inf")) -> Report:
    """Damaged files `first` to `first + count`, or as many as fit into `seconds`."""
    report = Report()
    deadline = time.monotonic() + seconds
    seed = first
    while seed < first + count and time.monotonic() < deadline:
        last = min(seed + BATCH, first + count)
        for done, outcome, reason in _guarded(seed, last, deadline):
            report.outcomes[outcome] += 1
            if reason:
                report.failures.append((done, f"{outcome}: {reason}"))
            seed = done + 1
    return report


def _guarded(first: int, last: int, deadline: float) -> Iterator[tuple[int, str, str]]:
    """What a child says of its cases; its death or silence is the outcome of the next one."""
    words = [sys.executable, os.fspath(Path(__file__)), "--child", str(first), str(last)]
    paths = [os.fspath(Path(__file__).parent.parent), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    with (
        tempfile.TemporaryDirectory(prefix="dpipe-fuzz-") as folder,  # a killed child leaves it
        subprocess.Popen(
            [*words, folder], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment
        ) as process,
    ):
        assert process.stdout is not None
        if process.stdout.readline() != _READY.encode():
            raise RuntimeError("the child did not start; run it by itself with --child 0 1 FOLDER.")
        seed = first
        try:
            with selectors.DefaultSelector() as ready:
                ready.register(process.stdout, selectors.EVENT_READ)
                while seed < last:
                    heard = ready.select(PATIENCE)
                    line = process.stdout.readline() if heard else b""
                    if not line:
                        died = "crash" if heard else "hang"
                        code = process.wait(PATIENCE) if heard else None
                        yield seed, died, f"the child ended with {code}" if heard else "silence"
                        return
                    seed, outcome, reason = json.loads(line)
                    yield seed, outcome, reason
                    seed += 1
                    if time.monotonic() > deadline:
                        return
        finally:
            process.kill()


# Options


def _values(name: str, dice: random.Random) -> Any:
    """A value for an option: mostly of its kind, sometimes of any."""
    if dice.random() < 0.2:
        return dice.choice(_STRANGE)
    kind = DECLARED[name].kind
    if isinstance(kind, Choice):
        return dice.choice(kind.words)
    return dice.choice(_OF_KIND[type(kind)])


_OF_KIND: dict[type, tuple[Any, ...]] = {
    Size: ("2GiB", "500 MB", "1e9", 10**9, "0.5k", "1e400", "-1", "GiB", 0),
    Flag: (True, False),
    Passes: ("1,2", "1", "1,2,3,4", [1, 4], "2", "1,5", "", "a", "1,1"),
    Names: ("a,b", "MolWt", ["x", "y"], "", ",", "a,,b", "=cmd()", "\x1b[31m"),
    Number: (0, 0.5, 0.95, 1, 1.5, -0.1, 10, "0.9", "nan", "inf", "1e-3"),
    Place: ("~/out", "out", "s3://b/c", "s3://u:p@b", "", "\0"),
    Text: ("tcp://h:1", "file.json", "s3://b/c", "s3://u:p@b", "", "\0"),
    Weights: ("hsic=1", "hsic=0.5,rdc=0.5", {"dcor": 1}, "hsic=0", "hsic", "hsic=nan", ""),
    Whole: (1, 2, 5, 100, 0, -1, "7", "1e3", 2**70, 1.5, "1_000", "5%"),
}
_STRANGE = (
    None,
    "",
    " ",
    "x",
    True,
    [],
    {},
    {"a": 1},
    [None],
    1e308,
    "nan",
    "\u0000",
    "🙂",
    -1,
    b"x",
)


def drawn_options(seed: int) -> dict[str, Any]:
    """Some options with values that may or may not be sound."""
    dice = random.Random(seed)
    names = dice.sample(sorted(Options.__dataclass_fields__), dice.choice((1, 2, 3, 8)))
    values = {name: _values(name, dice) for name in names}
    if dice.random() < 0.1:
        values[dice.choice(("nosuch", "spearman-threshold", "", "Keep", "w hsic"))] = 1
    return values


def option_case(seed: int, folder: Path) -> str:
    """One set through `options_from`, as words of ``dpipe plan`` and in its YAML file."""
    values = drawn_options(seed)
    try:
        made: Options | None = options_from(values)
    except InputError as error:
        _check_sentence(error)
        made = None
    if made is not None:
        again = options_from({f.name: v for f, v in _fields_of(made)})
        if again != made:
            raise AssertionError(f"{made} became {again}")
    shape = ["plan", "--rows", "1000", "--columns", "20"]
    by_words = _invoke([*shape, *_words(values)])
    file = folder / "options.yaml"
    with contextlib.suppress(yaml.YAMLError):
        file.write_text(yaml.safe_dump(values), encoding="utf-8")
    by_file = _invoke([*shape, "--config", str(file)])
    if made is not None and not _are_measures(made):
        made = None  # which measures there are is known where they are computed
    if made is not None and made.device == "gpu":
        made = None if by_file == 2 else made  # sound, and refused where there is no card
    if (made is None) != (by_file == 2) and by_file != 3:
        raise AssertionError(f"options_from says {made}, the file exits with {by_file}")
    return f"{'refused' if made is None else 'accepted'}, words exit {by_words}, file {by_file}"


def _are_measures(options: Options) -> bool:
    try:
        Fusion.of(options.shares)
    except InputError as error:
        _check_sentence(error)
        return False
    return True


def _fields_of(options: Options) -> Iterator[tuple[Any, Any]]:
    for each in Options.__dataclass_fields__.values():
        yield each, getattr(options, each.name)


def _words(values: dict[str, Any]) -> list[str]:
    words: list[str] = []
    for name, value in values.items():
        flag = "--" + name.replace("_", "-")
        if isinstance(value, bool):
            words += [flag] if value else [f"--no-{flag[2:]}"]
        else:
            text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
            words += [flag, text]
    return words


def _invoke(words: list[str]) -> int:
    result = CliRunner().invoke(command_line, words, prog_name="dpipe")
    if result.exit_code not in (0, 2, 3):
        raise AssertionError(f"{words} exits with {result.exit_code}: {result.output}")
    if "Traceback" in result.output:
        raise AssertionError(f"{words}: {result.output}")
    errors = result.stderr.splitlines()
    if result.exit_code and (len(errors) != 1 or not errors[0].startswith("Error: ")):
        raise AssertionError(f"{words}: {result.stderr!r}")
    return result.exit_code


def fuzz_options(first: int, count: int, seconds: float = float("inf")) -> Report:
    """Option sets `first` to `first + count`, or as many as fit into `seconds`."""
    return _fuzz_here(option_case, first, count, seconds)


def fuzz_columns(first: int, count: int, seconds: float = float("inf")) -> Report:
    """Columns `first` to `first + count`, or as many as fit into `seconds`."""
    return _fuzz_here(odd_columns.case, first, count, seconds)


def _fuzz_here(case: Callable[[int, Path], str], first: int, count: int, seconds: float) -> Report:
    report = Report()
    deadline = time.monotonic() + seconds
    folder = Path(tempfile.mkdtemp(prefix="dpipe-fuzz-"))
    try:
        for seed in range(first, first + count):
            if time.monotonic() > deadline:
                break
            try:
                report.outcomes[case(seed, folder)] += 1
            except Exception:
                report.outcomes["traceback"] += 1
                report.failures.append((seed, traceback.format_exc()))
    finally:
        shutil.rmtree(folder)
    return report


def run() -> int:
    """The program; ends with 1 when a case failed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--mutations", type=int, default=20_000)
    parser.add_argument("--options", type=int, default=2_000)
    parser.add_argument("--columns", type=int, default=2_000)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="for each kind")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    words = parser.parse_args()
    if words.child:
        first, last, folder = words.child
        child(int(first), int(last), Path(folder))
        return 0
    failed = False
    for title, fuzz, count in (
        ("Parquet mutations", fuzz_parquet, words.mutations),
        ("option sets", fuzz_options, words.options),
        ("columns", fuzz_columns, words.columns),
    ):
        began = time.monotonic()
        report = fuzz(words.first_seed, count, words.seconds)
        print(f"{title}: {report.cases} in {time.monotonic() - began:.0f} s")
        for outcome, number in report.outcomes.most_common():
            print(f"  {number:7}  {outcome}")
        for seed, reason in report.failures:
            failed = True
            print(f"seed {seed}: {reason}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(run())
