"""Drawn columns of every numeric type, read and ranked by dpipe as pandas ranks them exactly.

Covers: whole numbers of every width, decimals, reals, flags and text, with missing cells of every
kind, of small and of enormous magnitude, in one file or in several of different types; counts of
cells, distinct values and average ranks, against pandas on Python's own whole numbers.
Does not cover: what passes make of the ranks. By hand: ``python tests/fuzz.py --columns 20000``.
"""

from __future__ import annotations

import math
import random
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from dpipe.errors import InputError
from dpipe.kernels.ranks import rank_column
from dpipe.options import Options
from dpipe.table import open_table, read_block

OPTIONS = Options(coerce_strings=True, min_valid=2)
WIDTHS = {f"{sign}int{bits}": (sign, bits) for sign in ("", "u") for bits in (8, 16, 32, 64)}
EDGES = (0, 1, 2**24, 2**31, 2**53 - 1, 2**53, 2**53 + 1, 2**60, 2**62, 2**63 - 2)
REALS = (0.0, -0.0, 5e-324, 1e-308, 0.1, 1 / 3, 1.0, 2.0**53, 2.0**60, 1e300, 1.7e308)
MISSING_WORDS = (None, "", "NA", "NaN", "NULL")
ROUNDS_FROM = 15
"""A number of more digits than these may not survive float64; one of fewer always does."""

Cell = tuple[Any, Fraction | None]
"""A cell as Arrow takes it, and the number that it is; None where it is missing."""


def whole(dice: random.Random, low: int, high: int) -> int:
    """A whole number near an edge of float64, or near another."""
    edge = dice.choice(EDGES) * dice.choice((1, -1)) + dice.randrange(-3, 4)
    return min(max(edge, low), high)


def draw_cell(kind: str, scale: int, dice: random.Random) -> Cell:
    """One cell that is not null."""
    if kind in WIDTHS:
        sign, bits = WIDTHS[kind]
        low, high = (0, 2**bits - 1) if sign else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        number = dice.choice((whole(dice, low, high), high, low))
        return number, Fraction(number)
    if kind == "bool":
        flag = dice.random() < 0.5
        return flag, Fraction(flag)
    if kind in ("float", "double"):
        real = dice.choice((*REALS, math.nan, math.inf)) * dice.choice((1, -1, 1))
        real = float(np.float32(min(max(real, -3e38), 3e38))) if kind == "float" else real
        return real, Fraction(real) if math.isfinite(real) else None
    if kind == "decimal":
        cents = Decimal(whole(dice, -(2**63), 2**63 - 1)).scaleb(-scale)
        return cents, Fraction(cents)
    text = draw_text(scale, dice)
    return text, None if text in MISSING_WORDS else Fraction(text.strip())


def draw_text(scale: int, dice: random.Random) -> str:
    """A number as people write it, or a word for none."""
    if dice.random() < 0.1:
        return str(dice.choice(MISSING_WORDS[1:]))
    number = whole(dice, -(2**63), 2**64 - 1)
    if dice.random() < 0.5:
        return dice.choice(("{}", " {} ")).format(number)
    return str(Decimal(number % 10**9).scaleb(-scale))


def arrow_type(kind: str, scale: int) -> pa.DataType:
    """The type of a file's column."""
    types = {"float": pa.float32(), "double": pa.float64(), "bool": pa.bool_()}
    types |= {"text": pa.string(), "decimal": pa.decimal128(38, scale)}
    return types.get(kind) or getattr(pa, kind)()


def draw_column(dice: random.Random) -> list[tuple[pa.Array, list[Fraction | None]]]:
    """Chunks of a column, one for each file, with the numbers that they hold."""
    kinds = (*WIDTHS, "float", "double", "bool", "decimal", "text")
    kind, scale = dice.choice(kinds), dice.choice((0, 2, 9))
    missing = dice.choice((0.0, 0.0, 0.2, 0.8))
    mixed = dice.random() < 0.2 and kind not in ("text", "bool")
    chunks = []
    for _ in range(dice.choice((1, 1, 2, 3))):
        chosen = dice.choice(("int64", "uint64", "double", "decimal")) if mixed else kind
        pool = [draw_cell(chosen, scale, dice) for _ in range(dice.choice((2, 5, 12)))]
        cells = [
            (None, None) if dice.random() < missing else dice.choice(pool)
            for _ in range(dice.choice((1, 7, 20)))
        ]
        values = pa.array([value for value, _ in cells], arrow_type(chosen, scale))
        values = values.dictionary_encode() if chosen == "text" and dice.random() < 0.3 else values
        chunks.append((values, [number for _, number in cells]))
    return chunks


def exact_ranks(numbers: list[Fraction | None]) -> list[float]:
    """Average ranks by pandas on Python's whole numbers; NaN where missing."""
    unit = math.lcm(*(number.denominator for number in numbers if number is not None))
    cells = [None if number is None else int(number * unit) for number in numbers]
    ranks: list[float] = pd.Series(cells, dtype=object).rank().tolist()
    return ranks


def digits(number: Fraction) -> int:
    """Significant digits of a number that has finitely many."""
    text = str(Decimal(number.numerator) / Decimal(number.denominator))
    return len(text.partition("E")[0].replace(".", "").replace("-", "").strip("0"))


def case(seed: int, folder: Path) -> str:
    """One column from draw to ranks; what became of it, or an error that says what differs."""
    chunks = draw_column(random.Random(seed))
    for old in folder.glob("*.parquet"):
        old.unlink()
    for place, (values, _) in enumerate(chunks):
        pq.write_table(pa.table({"x": values}), folder / f"{place}.parquet", row_group_size=8)
    numbers = [number for _, part in chunks for number in part]
    try:
        block = read_block(open_table([folder], options=OPTIONS), ["x"])
    except InputError:
        if any("string" in str(values.type) for values, _ in chunks):
            return "text left out"  # what is text is a matter of shares, tested elsewhere
        raise
    rounded = int(block.n_rounded[0])
    if rounded:
        if max(digits(number) for number in numbers if number is not None) <= ROUNDS_FROM:
            raise AssertionError(f"{rounded} of {numbers} are called rounded")
        numbers = [None if number is None else Fraction(float(number)) for number in numbers]
    ranked = rank_column(*block.column(0))
    found = [None] * len(numbers) if ranked.n_valid == 0 else _ranks(ranked, len(numbers))
    expected = [None if math.isnan(rank) else rank for rank in exact_ranks(numbers)]
    if found != expected:
        raise AssertionError(f"{found} where pandas has {expected}")
    distinct = len({number for number in numbers if number is not None})
    if ranked.n_unique != distinct:
        raise AssertionError(f"{ranked.n_unique} different values where there are {distinct}")
    return "rounded, and said so" if rounded else "exact"


def _ranks(ranked: Any, n: int) -> list[float | None]:
    valid = np.ones(n, dtype=bool) if ranked.valid is None else np.asarray(ranked.valid)
    ranks = (ranked.scores.astype(float) + 0.5) * ranked.n_valid + 0.5
    return [
        round(2 * rank) / 2 if there else None
        for rank, there in zip(ranks.tolist(), valid.tolist(), strict=True)
    ]
