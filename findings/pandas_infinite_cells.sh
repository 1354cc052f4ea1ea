#!/usr/bin/env bash
# pandas 3.1.1: DataFrame.corr takes infinite cells for missing ones, Series.corr and DataFrame.corrwith do not,
# so that one pair of columns has two rank correlations, and Pearson's is a number by the one and NaN by the other.
#
# The documentation of all three speaks of NA and null values alone. Whoever computes the matrix of a table and
# the column for a target by corrwith compares two measures. RDKit's Ipc has infinite cells for large molecules.
# With columns of Arrow (dtype_backend="pyarrow") the same goes for NaN: rank() gives it the largest rank and
# isna() says it is none, where corr leaves it out.
# Output: Spearman's rho and Pearson's r of a pair with 2 infinite cells in 12 rows by each of the three, then the
# ranks of an Arrow column with NaN and its rho by corr and by way of rank().
# Exits 0 while that is so, 1 once the three agree.
set -e
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q pandas==3.1.1 pyarrow==26.0.1 scipy==1.17.1 numpy==2.4.6
"$folder/venv/bin/python" <<'PYTHON'
import sys
import warnings

import numpy as np
import pandas as pd
import pyarrow as pa

warnings.simplefilter("ignore")  # Pearson of infinite cells
x = [float(k) for k in range(12)]
table = pd.DataFrame({"x": x, "y": [np.inf, np.inf, *x[2:]]})
changed = False
for method in ("spearman", "pearson"):
    ways = (
        table.corr(method).loc["x", "y"],
        table.x.corr(table.y, method),
        table[["y"]].corrwith(table.x, method=method)["y"],
    )
    print(f"{method}: DataFrame.corr {ways[0]:.3f}, Series.corr {ways[1]:.3f}, corrwith {ways[2]:.3f}")
    changed |= not (ways[0] > 0.999 and not ways[1] > 0.5 and not ways[2] > 0.5)
cells = pa.array([np.nan, np.nan, *x[2:]])
arrow = table.assign(y=pd.Series(pd.arrays.ArrowExtensionArray(cells)))
ranks = arrow.y.rank()
by_corr, by_rank = arrow.corr("spearman").loc["x", "y"], arrow.x.rank().corr(ranks)
print(
    f"NaN in a column of Arrow: rank {ranks[0]}, isna {arrow.y.isna()[0]}; "
    f"rho {by_corr:.3f}, by rank() {by_rank:.3f}"
)
changed |= not (by_corr > 0.999 and by_rank < 0.5 and not arrow.y.isna().any())
sys.exit(changed)
PYTHON
