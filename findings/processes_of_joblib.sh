#!/usr/bin/env bash
# joblib 1.6.0 with Python 3.11: in a process that joblib started for n_jobs no process can be started by
# multiprocessing's spawn or forkserver, and so no cluster of Dask.
#
# Python tells a child the start method of its parent, and loky, joblib's own one, names one that Python does not
# know: the child ends with "cannot find context for 'loky'" before it does anything. A LocalCluster within
# scikit-learn's GridSearchCV(n_jobs=2) gets "Nanny failed to start", with nothing of the reason in it.
# Output: the exit codes of children started within joblib by spawn and by fork, and what LocalCluster says there.
# Exits 0 while spawn fails and fork does not, 1 once that changes.
set -e
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q joblib==1.6.0 dask==2026.8.0 distributed==2026.8.0
cat > "$folder/children.py" <<'PYTHON'
import multiprocessing
import sys

from joblib import Parallel, delayed


def exit_code(method):
    child = multiprocessing.get_context(method).Process(target=abs, args=(1,))
    child.start()
    child.join()
    return child.exitcode


def open_cluster():
    from distributed import LocalCluster

    try:
        with LocalCluster(n_workers=1, dashboard_address=None, silence_logs=50):
            return "it works"
    except Exception as error:
        return repr(error)


def main():
    with Parallel(n_jobs=2) as jobs:
        spawned, forked = jobs(delayed(exit_code)(method) for method in ("spawn", "fork"))
        (said,) = jobs([delayed(open_cluster)()])
    print(f"in a process of joblib: spawn {spawned}, fork {forked}; LocalCluster: {said}")
    print(f"in this process: spawn {exit_code('spawn')}")
    sys.exit(not (spawned == 1 and forked == 0 and "Nanny failed" in said))


if __name__ == "__main__":
    main()
PYTHON
"$folder/venv/bin/python" "$folder/children.py" 2> "$folder/tracebacks"
