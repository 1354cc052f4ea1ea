#!/usr/bin/env bash
# pyarrow 26.0.1: the first array or scalar made from Python or NumPy objects imports pandas where it is
# installed, and so does the first to_numpy, to_pylist or cast of a scalar. Nothing of pandas is asked for.
#
# Reading a Parquet file, nulls, record batches and arrays over buffers do not. A process that reads
# numbers and makes one such array at import pays a second and some 50 MB for it.
# Output: a line for each expression, whether pandas was imported by it.
# Exits 0 while that is so, 1 once it changes.
set -e
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q pyarrow==26.0.1 pandas==3.1.1 numpy==2.4.6
"$folder/venv/bin/python" - "$folder/venv/bin/python" <<'PYTHON'
import subprocess
import sys

EXPECTED = {
    "pa.array([1.0, 2.0])": True,
    "pa.array(np.arange(3))": True,
    "pa.scalar('a')": True,
    "pa.nulls(3, pa.float64()).to_numpy(zero_copy_only=False)": True,
    "pa.nulls(3, pa.float64())": False,
    "pa.record_batch([pa.nulls(2)], names=['a'])": False,
    "pa.Array.from_buffers(pa.float64(), 1, [None, pa.py_buffer(bytes(8))])": False,
}
changed = False
for expression, expected in EXPECTED.items():
    code = f"import sys, numpy as np, pyarrow as pa; {expression}; print('pandas' in sys.modules)"
    found = subprocess.run([sys.argv[1], "-c", code], capture_output=True, text=True, check=True)
    print(f"{expression}: {found.stdout.strip()}")
    changed |= found.stdout.strip() != str(expected)
sys.exit(changed)
PYTHON
