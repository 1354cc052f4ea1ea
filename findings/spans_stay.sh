#!/usr/bin/env bash
# distributed 2026.8.0: each burst of tasks leaves a span in the scheduler for good, and worker metrics
# for it, although nobody asked for spans and every result was released.
#
# A burst begins when tasks arrive while no other is left. The scheduler never drops the span of one
# that has ended, nor the worker the metrics it keeps under the span's name (Worker.digests_total):
# a client that submits one task after the other makes both grow with every task.
# Output: spans after 5 and after 55 tasks (5 and 55), and the metrics beside them.
# Exits 0 while that is so, 1 once either is let go.
set -e
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q dask==2026.8.0 distributed==2026.8.0
cat > "$folder/bursts.py" <<'PYTHON'
import sys
import time

from distributed import Client, LocalCluster


def main():
    with LocalCluster(
        n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None
    ) as cluster, Client(cluster) as client:

        def counts(bursts):
            for number in range(bursts):
                client.submit(abs, -number, pure=False).result()
                while cluster.scheduler.tasks:  # until it is released
                    time.sleep(0.01)
            (worker,) = cluster.workers.values()
            return len(cluster.scheduler.extensions["spans"].spans), len(worker.digests_total)

        first, later = counts(5), counts(50)
    print(f"spans: {first[0]}, then {later[0]}; metrics of the worker: {first[1]}, then {later[1]}")
    sys.exit(0 if later[0] - first[0] == 50 and later[1] - first[1] >= 50 else 1)


if __name__ == "__main__":
    main()
PYTHON
"$folder/venv/bin/python" "$folder/bursts.py"
