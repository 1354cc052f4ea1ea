# /// script
# requires-python = ">=3.11"
# dependencies = [
#     "mordredcommunity==2.0.7",
#     "networkx==3.6.1",
#     "numpy==2.4.6",
#     "pyarrow==26.0.1",
#     "rdkit==2026.9.1",
# ]
# ///
"""Make the `nci` example table: real molecules, two real descriptor calculators.

Molecules: every n-th readable structure of `first_5K.smi`, the sample of the NCI open database
that the rdkit wheel ships, together with the polar surface areas of `first_5k.tpsa.csv` beside it.
Columns: the metadata (`id`, `smiles`, `tpsa_reference`), then every 2D Mordred descriptor under
its own name, then every descriptor of `rdkit.Chem.Descriptors.descList` with the prefix `rdkit_`.

Nothing is cleaned: a Mordred `Missing` or `Error` becomes a Parquet null; NaN and infinities stay
as they were returned; salts, metals, repeated structures, constant and empty columns are kept.
A column holds bool, int64 or double, whichever holds all of its values; an empty one is double.

The values are a function of the versions pinned in the header above, so run it with them, e.g.
`uv run examples/make_nci.py`. It takes a few minutes, uses one process, and prints the counts
and checksums that the README of the table states.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import warnings
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from mordred import Calculator, descriptors
from mordred.error import MissingValueBase
from rdkit import Chem, RDConfig, RDLogger
from rdkit.Chem import Descriptors

SOURCE = Path(RDConfig.RDDataDir) / "NCI"
SOURCE_SHA256 = {
    "first_5K.smi": "91e71c015f14939837f2943dcc904f7c87e5a3a0124d82b05c28ad2f23004def",
    "first_5k.tpsa.csv": "7c3dbaa546a317bcf8239e979d829b230b4d02b02cfe92ecffe5de2c8b222b7f",
}

Value = bool | int | float | None


class Molecule(NamedTuple):
    """One structure as the source gives it, with its parsed form."""

    id: str
    smiles: str
    tpsa_reference: float
    mol: Chem.Mol


def read_source(name: str) -> list[str]:
    """Return the lines of a shipped file, or raise if it is not the file this script is for."""
    content = (SOURCE / name).read_bytes()
    if hashlib.sha256(content).hexdigest() != SOURCE_SHA256[name]:
        raise ValueError(f"{name}: not the file of the pinned rdkit version")
    return content.decode("ascii").splitlines()


def read_molecules(every: int) -> list[Molecule]:
    """Return every n-th molecule that RDKit can read, in the order of the source."""
    structures = read_source("first_5K.smi")
    areas = read_source("first_5k.tpsa.csv")[1:]  # the first line is a comment
    readable = []
    for structure, area in zip(structures, areas, strict=True):
        smiles, number = structure.split("\t")
        area_smiles, tpsa = area.rsplit(",", 1)
        if area_smiles != smiles:
            raise ValueError(f"NSC {number}: the two source files disagree")
        mol = Chem.MolFromSmiles(smiles)
        if mol is not None:
            readable.append(Molecule(f"NSC{number}", smiles, float(tpsa), mol))
    return readable[::every]


def to_plain(value: object) -> Value:
    """Turn what a calculator returned into a plain Python value; no value becomes None."""
    if value is None or isinstance(value, MissingValueBase):
        return None
    if isinstance(value, bool | np.bool_):
        return bool(value)
    if isinstance(value, int | np.integer):
        return int(value)
    if isinstance(value, float | np.floating):
        return float(value)
    raise TypeError(f"unexpected descriptor value: {value!r}")


def to_array(values: Sequence[Value]) -> pa.Array:
    """Build the narrowest of bool, int64 and double that holds all of the values."""
    kinds = {type(value) for value in values if value is not None}
    if kinds == {bool}:
        return pa.array(values, pa.bool_())
    if kinds == {int}:
        return pa.array(values, pa.int64())
    doubles = [None if value is None else float(value) for value in values]
    return pa.array(doubles, pa.float64(), from_pandas=False)


def mordred_columns(mols: Sequence[Chem.Mol]) -> Iterator[tuple[str, pa.Array]]:
    """Yield every 2D Mordred descriptor of the molecules, by name."""
    calculator = Calculator(descriptors, ignore_3D=True)
    rows = [[to_plain(value) for value in calculator(mol)] for mol in mols]
    for descriptor, values in zip(calculator.descriptors, zip(*rows, strict=True), strict=True):
        yield str(descriptor), to_array(values)


def rdkit_columns(mols: Sequence[Chem.Mol]) -> Iterator[tuple[str, pa.Array]]:
    """Yield every RDKit descriptor of the molecules, by prefixed name."""
    for name, function in Descriptors.descList:
        yield f"rdkit_{name}", to_array([to_plain(function(mol)) for mol in mols])


def make_table(molecules: Sequence[Molecule]) -> pa.Table:
    """Compute the whole table: metadata, Mordred, RDKit."""
    mols = [molecule.mol for molecule in molecules]
    columns: dict[str, pa.Array] = {
        "id": pa.array([molecule.id for molecule in molecules]),
        "smiles": pa.array([molecule.smiles for molecule in molecules]),
        "tpsa_reference": pa.array([molecule.tpsa_reference for molecule in molecules]),
    }
    for name, array in (*mordred_columns(mols), *rdkit_columns(mols)):
        if name in columns:
            raise ValueError(f"column name used twice: {name}")
        columns[name] = array
    return pa.table(columns)


def write_parts(table: pa.Table, folder: Path, parts: int) -> list[Path]:
    """Write the rows, in order, as part files of nearly equal length and one schema.

    Each file is one row group: with so many columns and so few rows, most of what a second one
    would add is column metadata. For the same reason the Arrow schema, which says nothing more
    than the Parquet one here, is not stored.
    """
    folder.mkdir(parents=True, exist_ok=True)
    few_values = [
        name
        for name, column in zip(table.column_names, table.columns, strict=True)
        if not pa.types.is_boolean(column.type) and len(column.unique()) < len(column) / 2
    ]
    many_values = [
        name
        for name in table.column_names
        if name not in few_values and pa.types.is_floating(table.schema.field(name).type)
    ]
    bounds = [len(table) * part // parts for part in range(parts + 1)]
    paths = []
    for part, (start, stop) in enumerate(pairwise(bounds)):
        path = folder / f"part-{part:05d}.parquet"
        pq.write_table(
            table.slice(start, stop - start),
            path,
            row_group_size=stop - start,
            compression="zstd",
            compression_level=19,
            use_dictionary=few_values,
            use_byte_stream_split=many_values,
            store_schema=False,
        )
        paths.append(path)
    return paths


def summarise(paths: Sequence[Path], metadata: int = 3) -> Iterator[str]:
    """Yield the counts of the written table and the checksums of its files, read back."""
    table = pa.concat_tables([pq.ParquetFile(path).read() for path in paths])
    data = table.columns[metadata:]
    types: dict[str, int] = {}
    null = nan = positive = negative = constant = empty = 0
    for column in data:
        types[str(column.type)] = types.get(str(column.type), 0) + 1
        null += column.null_count
        present = [value for value in column.to_pylist() if value is not None]
        numbers = [value for value in present if not math.isnan(value)]
        nan += len(present) - len(numbers)
        positive += numbers.count(math.inf)
        negative += numbers.count(-math.inf)
        empty += not numbers
        constant += len(set(numbers)) == 1
    yield f"shape: {table.num_rows} x {table.num_columns} ({metadata} metadata, {len(data)} data)"
    yield f"data column types: {types}"
    yield f"data cells: null {null}, NaN {nan}, +inf {positive}, -inf {negative}"
    yield f"data columns: constant {constant}, empty {empty} (null and NaN left aside)"
    for path in paths:
        file = pq.ParquetFile(path).metadata
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        yield (
            f"| {path.name} | {file.num_rows} | {file.num_row_groups} "
            f"| {path.stat().st_size} | {digest} |"
        )


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Make the nci example table.")
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent / "nci", help="folder of the part files"
    )
    parser.add_argument("--every", type=int, default=8, help="take every n-th molecule")
    parser.add_argument("--parts", type=int, default=3, help="number of part files")
    arguments = parser.parse_args()

    RDLogger.DisableLog("rdApp.*")
    warnings.simplefilter("ignore")
    np.seterr(all="ignore")
    table = make_table(read_molecules(arguments.every))
    paths = write_parts(table, arguments.out, arguments.parts)
    print(*summarise(paths), sep="\n")


if __name__ == "__main__":
    main()
