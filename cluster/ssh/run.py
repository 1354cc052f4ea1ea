"""Machines that you reach by SSH: a scheduler on the first, workers on all others, one run.

    python cluster/ssh/run.py --hosts node1,node2,node3 /shared/data --output-dir /shared/out

- All other arguments go to ``dpipe run``.
- Needs ``pip install asyncssh`` here, and a key that logs in without a question on every host.
- Every host has the same environment: dpipe and Dask in the same versions, under the path given
  by --python (default: the path of this interpreter).
- Input, run folder and --scratch-dir lie where every host sees them.
- The scheduler listens on every network of the first host (or on --interface) without a password:
  use a network you trust, or the certificates of cluster/tls.
- A host that is named twice gets twice as many workers.
"""

from __future__ import annotations

import argparse
import contextlib
import sys

from distributed import SSHCluster

from dpipe.cli import main as dpipe


def main() -> None:
    """Start the cluster, run, end the cluster."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--hosts", required=True, help="scheduler,worker,worker,...")
    parser.add_argument("--workers-per-host", type=int, default=1)
    parser.add_argument("--memory-limit", default="auto", help="memory of each worker")
    parser.add_argument("--local-directory", default="/tmp", help="a disk of each host's own")  # noqa: S108
    parser.add_argument("--interface", help="network interface to listen on, such as ib0")
    parser.add_argument("--python", default=sys.executable, help="the interpreter on the hosts")
    parser.add_argument("--user", help="name to log in with")
    parser.add_argument("--port", type=int, help="port of the SSH servers")
    parser.add_argument("--key", help="file of the private key")
    parser.add_argument("--known-hosts", help="file of the hosts' public keys")
    arguments, for_dpipe = parser.parse_known_args()

    login = {
        "username": arguments.user,
        "port": arguments.port,
        "client_keys": [arguments.key] if arguments.key else None,
        "known_hosts": arguments.known_hosts,
    }
    network = {"interface": arguments.interface} if arguments.interface else {}
    cluster = SSHCluster(
        arguments.hosts.split(","),
        # What is not given here is taken from ~/.ssh/config.
        connect_options={name: value for name, value in login.items() if value is not None},
        remote_python=arguments.python,
        scheduler_options={"port": 0, "dashboard_address": ":0", **network},
        worker_options={
            "n_workers": arguments.workers_per_host,
            "nthreads": 1,
            "memory_limit": arguments.memory_limit,
            "local_directory": arguments.local_directory,
            **network,
        },
    )
    try:
        dpipe(["run", *for_dpipe, "--scheduler", cluster.scheduler_address])
    finally:
        # When all is closed Dask may still look up a worker that it has forgotten.
        with contextlib.suppress(KeyError):
            cluster.close()


if __name__ == "__main__":
    main()
