#!/usr/bin/env bash
# scikit-learn 1.9.1: f_classif, the default score of SelectKBest, gives other and even negative F values for
# float32 columns that lie far from zero, and these depend on the order of the rows.
#
# Squares are summed in the type of the table before the mean is taken away, so that seven digits cancel; the
# documentation calls the result that of scipy.stats.f_oneway, which takes the mean away first, and f_regression
# sums in float64. Descriptors often come as float32 (scikit-fingerprints), as do spectra with a baseline.
# Output: F of a column with mean 10,000 and standard deviation 50 in 20,000 rows as float64, as float32, as
# float32 with the rows reversed, and by SciPy as float32; the largest F of 200 columns of chance, in both types.
# Exits 0 while chance beats the column in float32 and SciPy is right, 1 once that changes.
set -e
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q scikit-learn==1.9.1 scipy==1.17.1 numpy==2.4.6
"$folder/venv/bin/python" <<'PYTHON'
import sys

import numpy as np
from scipy.stats import f_oneway
from sklearn.feature_selection import f_classif

rng = np.random.default_rng(0)
n = 20_000
y = np.arange(n) % 2
x = (10_000 + 50 * rng.normal(size=(n, 201))).astype(np.float32)
x[:, 0] += 3 * y
exact = f_classif(x.astype(np.float64), y)[0]
single = f_classif(x, y)[0]
turned = f_classif(x[::-1], y[::-1])[0]
scipy = f_oneway(x[y == 0, 0], x[y == 1, 0]).statistic
print(f"float64 {exact[0]:.2f}; float32 {single[0]:.2f}, reversed {turned[0]:.2f}; SciPy {scipy:.2f}")
print(
    f"largest of 200 columns of chance: float64 {exact[1:].max():.1f}, float32 {single[1:].max():.1f}; "
    f"negative {np.sum(single < 0)}"
)
wrong = single[1:].max() > 2 * exact.max() and np.sum(single < 0) > 20
wrong &= not np.allclose(single, turned, rtol=0.1)
sys.exit(not (wrong and abs(scipy / exact[0] - 1) < 1e-4))
PYTHON
