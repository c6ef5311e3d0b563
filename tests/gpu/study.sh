#!/usr/bin/env bash
# study.sh PREFIX SECONDS STUDY.yaml [OPTION of ablations.run...]: a launch for as long as there is time, then its
# report. PREFIX.tar.gz gets the report and the store's database.
set -uo pipefail

python=${PYTHON:-python3}
prefix=$1 seconds=$2
shift 2
reserve=$((seconds / 3 < 60 ? seconds / 3 : 60)) # for saving, the report and the packing

timeout --kill-after=30 $((seconds - reserve)) "$python" -m ablations.run "$@" --device "$DEVICE"
status=$?
[[ $status = 124 || $status = 137 ]] && status=0 # stopped by the time: what is finished is reported
tar -czf "$prefix.tar.gz" mlflow.db* || status=1 # should the time end before the report does
grep -h "failed$" -A 25 runs/*/logs/*.log 2>/dev/null | head -60
"$python" -m reports.build --out report --format html,md,csv,png || status=1
sed '/^### How sure/,$d' report/*/*.md
# Sample grids of many runs would fill it; those of the report are in the report.
tar -czf "$prefix.tar.gz" report mlflow.db* || status=1
[ "$(stat -c %s "$prefix.tar.gz")" -lt $((16 << 20)) ] ||
    tar -czf "$prefix.tar.gz" --exclude=index.html --exclude='*.png' report mlflow.db* || status=1
exit $status
