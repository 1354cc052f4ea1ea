#!/usr/bin/env bash
# leidenalg 0.12.0: without a seed every run within one second of the clock is the same run.
#
# The documentation of find_partition says of `seed`: "By default uses a random seed if nothing is
# specified". The generator is seeded by time(NULL), whose unit is a second, so that running it
# several times to keep the best partition, or to see how stable one is, compares a run with itself.
# Output: the distinct partitions of 20 runs with the seeds 0 to 19 (20), of 20 runs without a seed
# within a second (1), and of 4 runs without a seed in different seconds (4).
# Exits 0 while unseeded runs within a second agree and seeded ones do not, else 1.
set -e
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q leidenalg==0.12.0 igraph==1.0.0
cat > "$folder/runs.py" <<'PYTHON'
import random
import sys
import time

import igraph
import leidenalg

random.seed(3)
edges = [(i, j) for i in range(60) for j in range(i) if random.random() < 0.4]
weights = [random.uniform(0.5, 1) for _ in edges]
graph = igraph.Graph(60, edges)


def run(**seed):
    partition = leidenalg.find_partition(
        graph,
        leidenalg.CPMVertexPartition,
        weights=weights,
        resolution_parameter=0.7,
        n_iterations=-1,
        **seed,
    )
    return tuple(partition.membership)


def within_a_second(n):
    while True:  # a machine that stalls may need another try
        start = int(time.time())
        while int(time.time()) == start:
            pass
        found = {run() for _ in range(n)}
        if int(time.time()) == start + 1:
            return len(found)


seeded = len({run(seed=seed) for seed in range(20)})
together = within_a_second(20)
apart = set()
for _ in range(4):
    apart.add(run())
    time.sleep(1.1)
print(f"seeds 0 to 19: {seeded}; within a second: {together}; in other seconds: {len(apart)}")
sys.exit(0 if seeded > 1 and together == 1 and len(apart) > 1 else 1)
PYTHON
"$folder/venv/bin/python" "$folder/runs.py"
