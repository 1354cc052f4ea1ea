"""How the types of one column in several files meet: the widening table and the roles.

Covers: the kind of an Arrow type, widening of kinds and types, what is a number.
Does not cover: reading values (see `dpipe.table.read`).

======================  =====================================  ================================
kind                    Arrow types                            together with
======================  =====================================  ================================
NULL                    null                                   any kind: that kind
BOOL                    bool, bool8                            INT: INT; FLOAT: FLOAT
INT                     int8 to int64, uint8 to uint64         FLOAT: FLOAT
FLOAT                   halffloat, float, double               any number: FLOAT
DECIMAL                 decimal32 to decimal256                any number: FLOAT
TEXT                    string, large_string, string_view      anything else: not numeric
OTHER                   binary, dates, times, nested, ...      anything else: not numeric
======================  =====================================  ================================

A dictionary column has the kind of its values. Numbers are read as float64, unless that would round
them and `dpipe.table.exact` can hold them as whole numbers.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from functools import lru_cache, reduce

import pyarrow as pa


class Kind(StrEnum):
    """What the values of an Arrow type are to dpipe."""

    NULL = "null"
    BOOL = "bool"
    INT = "int"
    FLOAT = "float"
    DECIMAL = "decimal"
    TEXT = "text"
    OTHER = "other"

    @property
    def numeric(self) -> bool:
        """Whether cells of this kind are numbers (or all missing)."""
        return self not in (Kind.TEXT, Kind.OTHER)


_WIDER = {
    frozenset({Kind.BOOL, Kind.INT}): Kind.INT,
    frozenset({Kind.BOOL, Kind.FLOAT}): Kind.FLOAT,
    frozenset({Kind.BOOL, Kind.DECIMAL}): Kind.FLOAT,
    frozenset({Kind.INT, Kind.FLOAT}): Kind.FLOAT,
    frozenset({Kind.INT, Kind.DECIMAL}): Kind.FLOAT,
    frozenset({Kind.FLOAT, Kind.DECIMAL}): Kind.FLOAT,
}


@lru_cache(maxsize=1024)
def kind_of(kind: pa.DataType) -> Kind:
    """The kind of one Arrow type.

    Examples
    --------
    >>> kind_of(pa.int8()).value, kind_of(pa.dictionary(pa.int8(), pa.string())).value
    ('int', 'text')
    """
    types = pa.types
    if types.is_dictionary(kind):
        return kind_of(kind.value_type)
    if isinstance(kind, pa.BaseExtensionType):
        return Kind.BOOL if kind.extension_name == "arrow.bool8" else Kind.OTHER
    if types.is_null(kind):
        return Kind.NULL
    if types.is_boolean(kind):
        return Kind.BOOL
    if types.is_integer(kind):
        return Kind.INT
    if types.is_floating(kind):
        return Kind.FLOAT
    if types.is_decimal(kind):
        return Kind.DECIMAL
    return Kind.TEXT if is_text(kind) else Kind.OTHER


def is_text(kind: pa.DataType) -> bool:
    """Whether values of a type are text, not looking into dictionaries."""
    types = pa.types
    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))


def widen(kinds: Iterable[Kind]) -> Kind | None:
    """The kind that holds all of `kinds`; None where they conflict.

    Examples
    --------
    >>> widen([Kind.NULL, Kind.BOOL, Kind.FLOAT]).value
    'float'
    >>> widen([Kind.INT, Kind.TEXT]) is None
    True
    """
    meets: Kind | None = Kind.NULL
    for kind in kinds:
        if meets is None or kind is meets or kind is Kind.NULL:
            continue
        meets = kind if meets is Kind.NULL else _WIDER.get(frozenset({meets, kind}))
    return meets


def widen_types(types: Iterable[pa.DataType]) -> pa.DataType | None:
    """The Arrow type that holds the values of all `types`; None where they conflict.

    Equal types stay as they are, numbers of several types become double (integers the smallest
    integer type that holds them), and numbers and text together become text.
    """
    distinct = [kind for kind in dict.fromkeys(types) if not pa.types.is_null(kind)]
    if not distinct:
        return pa.null()
    return reduce(_widen_pair, distinct[1:], distinct[0])


def _widen_pair(first: pa.DataType | None, second: pa.DataType) -> pa.DataType | None:
    if first is None or first == second:
        return first
    first, second = _plain(first), _plain(second)
    if first == second:
        return first
    a, b = kind_of(first), kind_of(second)
    if a is Kind.OTHER or b is Kind.OTHER:
        return _merge_other(first, second)
    if Kind.TEXT in (a, b):
        return pa.large_string()
    if {a, b} <= {Kind.BOOL, Kind.INT}:
        return _wider_integer(first, second)
    return pa.float64()


def _plain(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _wider_integer(first: pa.DataType, second: pa.DataType) -> pa.DataType:
    """The smallest integer type that holds both; double when only uint64 with a sign would."""
    sized = [pa.int8() if kind_of(kind) is Kind.BOOL else kind for kind in (first, second)]
    signed = any(pa.types.is_signed_integer(kind) for kind in sized)
    if not signed:
        return max(sized, key=lambda kind: int(kind.bit_width))
    bits = max(kind.bit_width * (1 if pa.types.is_signed_integer(kind) else 2) for kind in sized)
    return {8: pa.int8(), 16: pa.int16(), 32: pa.int32(), 64: pa.int64()}.get(bits, pa.float64())


def _merge_other(first: pa.DataType, second: pa.DataType) -> pa.DataType | None:
    try:
        merged = pa.unify_schemas(
            [pa.schema([("", first)]), pa.schema([("", second)])], promote_options="permissive"
        )
    except pa.ArrowException:
        return None
    return merged.field(0).type


def count_leaves(kind: pa.DataType) -> int:
    """Leaf columns that a column of this type takes in a Parquet file.

    Examples
    --------
    >>> count_leaves(pa.float64()), count_leaves(pa.map_(pa.string(), pa.int8()))
    (1, 2)
    """
    if isinstance(kind, pa.BaseExtensionType):
        return count_leaves(kind.storage_type)
    if pa.types.is_nested(kind):
        return sum(count_leaves(kind.field(i).type) for i in range(kind.num_fields))
    return 1
