#!/usr/bin/env bash
# scikit-learn 1.8 and later (1.9.1 here): decision trees, forests and gradient boosting take values that lie within
# 1e-7 of each other for equal, so that a column in small units is constant to them. Up to 1.7.2 they did not.
#
# Concentrations are such columns: a class that is learnt from nanomoles is guessed from the same column in moles, its
# importance is 0, and nothing is said. The guide to trees says that they need no normalization. The threshold is an
# old one, but it was 0 where it was used until 1.8 set it. HistGradientBoostingClassifier bins by quantiles and is
# not concerned.
# Output: by version and unit, the accuracy of four models on new rows and the importance of the column.
# Exits 0 while 1.7.2 learns from 1e-9 times the column and 1.9.1 does not, 1 once that changes.
set -e
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
cat > "$folder/units.py" <<'PYTHON'
import sys

import numpy as np
import sklearn
from sklearn.ensemble import (
    GradientBoostingClassifier,
    HistGradientBoostingClassifier,
    RandomForestClassifier,
)
from sklearn.tree import DecisionTreeClassifier

rng = np.random.default_rng(0)
concentration, chance = rng.lognormal(size=1000), rng.normal(size=(1000, 2))
y = concentration > 1
accuracy = {}
for unit in (1, 1e-6, 1e-9):
    X = np.column_stack([concentration * unit, chance])
    models = (
        DecisionTreeClassifier(random_state=0),
        RandomForestClassifier(20, random_state=0),
        GradientBoostingClassifier(n_estimators=20, random_state=0),
        HistGradientBoostingClassifier(max_iter=20, random_state=0),
    )
    told = []
    for model in models:
        score = model.fit(X[:500], y[:500]).score(X[500:], y[500:])
        accuracy.setdefault(unit, []).append(score)
        importance = getattr(model, "feature_importances_", None)
        told.append(f"{score:.2f}" + ("" if importance is None else f" ({importance[0]:.2f})"))
    print(f"scikit-learn {sklearn.__version__}, column times {unit:g}:", ", ".join(told))
*trees, binned = accuracy[1e-9]
learnt = min(trees) > 0.95 if sklearn.__version__ == "1.7.2" else max(trees) < 0.6
sys.exit(not (learnt and binned > 0.95 and min(accuracy[1]) > 0.95))
PYTHON
for version in 1.7.2 1.9.1; do
    "$folder/venv/bin/pip" install -q "scikit-learn==$version" numpy==2.4.6
    "$folder/venv/bin/python" "$folder/units.py"
done
