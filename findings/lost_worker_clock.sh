#!/usr/bin/env bash
# distributed 2026.8.0: planned restarts of a LocalCluster's workers lose all of them for good.
#
# Each worker that leaves, also for `Client.restart_workers`, starts a clock of the cluster object
# (distributed.deploy.lost-worker-timeout, 15 s by default, 1 s here). When it runs out, the cluster
# closes the nanny of that name if no worker of the name is registered at that instant, although
# the nanny is about to start it again; nothing starts it later.
# Output: "workers left: N of 2" with N < 2. Exits 0 while that is so, 1 once the cluster stays whole.
set -e
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q dask==2026.8.0 distributed==2026.8.0
cat > "$folder/restarts.py" <<'PYTHON'
import sys
import time

import dask
from distributed import Client, LocalCluster


def main():
    dask.config.set({"distributed.deploy.lost-worker-timeout": "1s"})
    with LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address=None, silence_logs=50
    ) as cluster, Client(cluster) as client:
        for _ in range(20):
            addresses = list(client.scheduler_info(n_workers=-1)["workers"])
            try:
                client.restart_workers(addresses, timeout=10, raise_for_error=False)
            except Exception:
                pass
            if len(cluster.workers) < 2:
                break
        time.sleep(5)
        left = len(client.scheduler_info(n_workers=-1)["workers"])
        print(f"workers left: {left} of 2")
        sys.exit(0 if left < 2 else 1)


if __name__ == "__main__":
    main()
PYTHON
"$folder/venv/bin/python" "$folder/restarts.py"
