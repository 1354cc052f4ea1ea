#!/usr/bin/env bash
# distributed 2026.8.0: every closed Scheduler stays reachable for the life of the process.
#
# The cache of distributed.core._expects_comm (functools.cache) holds the bound handlers of every
# scheduler that was ever asked something. With a dashboard, the memoized function
# distributed.dashboard.scheduler.template_variables holds it too, with the pages of its server.
# Output: the schedulers alive after 3 clusters were closed (3), and after the cache was emptied (0).
# Exits 0 while that is so, 1 once a closed scheduler is let go.
set -e
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q dask==2026.8.0 distributed==2026.8.0
cat > "$folder/clusters.py" <<'PYTHON'
import gc
import sys

from distributed import Client, LocalCluster, Scheduler, core


def alive():
    gc.collect()
    return sum(isinstance(thing, Scheduler) for thing in gc.get_objects())


def main():
    for _ in range(3):
        with LocalCluster(
            n_workers=1, processes=False, dashboard_address=None, protocol="tcp"
        ) as cluster, Client(cluster) as client:
            client.submit(sum, [1, 2]).result()
        del cluster, client
    kept = alive()
    core._expects_comm.cache_clear()
    print(f"alive after 3 closed clusters: {kept}; after the cache was emptied: {alive()}")
    sys.exit(0 if kept == 3 else 1)


if __name__ == "__main__":
    main()
PYTHON
"$folder/venv/bin/python" "$folder/clusters.py"
