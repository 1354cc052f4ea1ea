#!/usr/bin/env bash
# numpy 2.4.6 with Python 3.11: numpy.load, called by several threads on the same valid .npy, raises
# SystemError "AST constructor recursion depth mismatch" in some of them.
#
# The header of an array is parsed by ast.literal_eval, whose depth is counted for all threads together in
# Python 3.11. It takes a thread that gives way in the middle, as one does when the collector then runs a
# finalizer that waits. Python 3.10, 3.12 and 3.13 count by thread.
# Output: how many of 4 threads were told so, within 20,000 reads each.
# Exits 0 while Python 3.11 fails and others do not, 1 once that changes.
set -e
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q numpy==2.4.6
"$folder/venv/bin/python" - "$folder/array.npy" <<'PYTHON'
import gc
import sys
import threading
import time

import numpy as np


class Circle:
    """Ended by the collector alone."""

    def __init__(self):
        self.itself = self

    def __del__(self):
        time.sleep(0)


np.save(sys.argv[1], np.zeros((3, 4)))
gc.set_threshold(20, 2, 2)
told = []


def read(depth):
    if depth:
        return read(depth - 1)
    try:
        for _ in range(20_000):
            Circle()
            np.load(sys.argv[1])
    except SystemError as error:
        told.append(str(error))


threads = [threading.Thread(target=read, args=(10 * number,)) for number in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(f"Python {sys.version_info.major}.{sys.version_info.minor}: {len(told)} of {len(threads)}", *told[:1])
sys.exit(bool(told) != (sys.version_info[:2] == (3, 11)))
PYTHON
