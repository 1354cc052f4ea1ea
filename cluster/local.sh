#!/usr/bin/env bash
# One machine, separate processes: a scheduler and workers on 127.0.0.1, one run, everything ended.
#
#   cluster/local.sh data/ --output-dir out            all arguments go to `dpipe run`
#   WORKERS=8 THREADS=1 MEMORY=4GiB cluster/local.sh data/ --output-dir out
#
# `dpipe run` starts workers by itself; use this to see the parts one by one, or as the beginning of
# a script of your own. PYTHON names the interpreter, FOLDER the place of temporary files.
set -euo pipefail

PYTHON=${PYTHON:-python}
WORKERS=${WORKERS:-2}
THREADS=${THREADS:-1}
MEMORY=${MEMORY:-auto}
folder=$(mktemp -d "${FOLDER:-${TMPDIR:-/tmp}}/dpipe-local.XXXXXX")

started=()
finish() {
    trap - EXIT
    for pid in "${started[@]}"; do
        kill -TERM -- "-$pid" 2>/dev/null || true
    done
    wait "${started[@]}" 2>/dev/null || true
    rm -rf -- "$folder"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# With job control each process is a group of its own: Ctrl-C reaches dpipe alone, which then ends
# in order, and the workers after it.
set -m
"$PYTHON" -m dask scheduler --host 127.0.0.1 --port 0 --dashboard-address 127.0.0.1:0 \
    --scheduler-file "$folder/scheduler.json" >"$folder/scheduler.log" 2>&1 &
started+=($!)
"$PYTHON" -m dask worker --scheduler-file "$folder/scheduler.json" --host 127.0.0.1 \
    --nworkers "$WORKERS" --nthreads "$THREADS" --memory-limit "$MEMORY" --no-dashboard \
    --local-directory "$folder" --death-timeout 60 >"$folder/workers.log" 2>&1 &
started+=($!)
set +m

until [ -s "$folder/scheduler.json" ]; do
    if ! kill -0 "${started[0]}" 2>/dev/null; then
        cat "$folder/scheduler.log" >&2
        exit 3
    fi
    sleep 0.2
done

status=0
"$PYTHON" -m dpipe run "$@" --scheduler-file "$folder/scheduler.json" || status=$?
if [ "$status" -eq 3 ]; then
    tail -n 20 "$folder/scheduler.log" "$folder/workers.log" >&2
fi
exit "$status"
