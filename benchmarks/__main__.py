"""Run every benchmark one after the other, at the sizes docs/performance.md reports.

Usage: ``python -m benchmarks [--quick] [--data FOLDER]``. ``--quick`` takes small sizes, to see
that everything works. The big tables need 40 GB of disk and the whole takes about an hour.
"""

from __future__ import annotations

import argparse
import subprocess
import sys

QUICK = {
    "peers": ["--rows=3000", "--columns=20", "--pair-rows=300", "--pair-columns=6", "--repeats=1"],
    "limit": ["--rows=20000", "--columns=20", "--nonlinear-rows=5000", "--repeats=1"],
    "scaling": ["--rows=4000", "--columns=16", "--steps=2", "--repeats=1"],
    "big": ["--rows=20000", "--columns=20,30"],
    "comparison": ["--repeats=1", "--contenders=dpipe,SciPy"],
    "whatif": ["examples/nci/part-00000.parquet", "--thresholds=2", "--pairs=20000"],
    "transfer": ["--rows=2000", "--columns=40", "--repeats=1"],
    "target": ["--rows=2000", "--columns=20", "--repeats=1"],
    "downstream": ["--repeats=1", "--folds=2", "--trees=5"],
    "text": ["--rows=2000,4000", "--columns=12"],
    "leak": ["--rows=2000", "--columns=12", "--runs=2", "--calls=2", "--workers=1"],
    "verification": ["--rows=20000", "--columns=12"],
    "service": ["--rows=600", "--columns=8", "--fits=2", "--attached=2", "--reports=2"],
    "nonlinear": ["--rows=5000", "--columns=20", "--repeats=1"],
    "files": ["--files=20", "--columns=12", "--repeats=1"],
    "reach": ["--shapes=60x30"],
    "cluster": ["--rows=1000000", "--columns=100", "--workers=1,2", "--factor=1", "--burst=50"],
    "guest": ["--rows=10000", "--columns=12", "--calls=2"],
}


def main() -> None:
    """Run each script in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small sizes")
    parser.add_argument("--data", help="folder for the generated tables")
    arguments = parser.parse_args()
    for name, quick in QUICK.items():
        command = [sys.executable, "-m", f"benchmarks.{name}", *(quick if arguments.quick else [])]
        if arguments.data:
            command += ["--data", arguments.data]
        print(f"\n## {name}\n", flush=True)
        subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
