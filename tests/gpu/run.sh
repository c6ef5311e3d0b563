#!/usr/bin/env bash
# Everything that needs a GPU, in some minutes of it: tests/gpu/run.sh OUT MINUTES [STAGE...]   (README.md beside this)
# Each stage has a time limit and a file of its own in OUT, written as it goes; one that fails or overruns takes
# nothing from the next. What is left of MINUTES goes to the last two.
set -uo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(dirname "$(dirname "$here")")
usage="usage: tests/gpu/run.sh OUT MINUTES [STAGE...], with DEVICE=cpu for a rehearsal without a GPU"
refuse() { echo "run.sh: $1" >&2; exit 2; }

[ $# -ge 2 ] || refuse "OUT and MINUTES must be given; $usage"
out=$1 minutes=$2
shift 2
stages=${*:-1 2 3 4 5}
[[ $minutes =~ ^[1-9][0-9]{0,2}$ ]] ||
    refuse "MINUTES must be a whole number of 1 to 999, got '$minutes': the first stage alone takes half of one"
for stage in $stages; do
    [[ $stage =~ ^[1-5]$ ]] || refuse "a STAGE must be a number of 1 to 5, got '$stage'"
done
export DEVICE=${DEVICE:-cuda}
[[ $DEVICE =~ ^(cuda|cpu)$ ]] || refuse "DEVICE must be cuda or cpu, got '$DEVICE'"
[ -z "$(ls -A "$out" 2>/dev/null)" ] || refuse "OUT must be an empty folder or a new one, got '$out'"
[ -z "${PICTURES:-}" ] || [ -f "$PICTURES" ] || refuse "PICTURES must be a file that pack_pictures.py made, got '$PICTURES'"
[ -z "${PICTURES:-}${EXTRACTOR:-}" ] || { [ -n "${PICTURES:-}" ] && [ -n "${EXTRACTOR:-}" ]; } ||
    refuse "PICTURES and EXTRACTOR must be given together, got PICTURES='${PICTURES:-}' and EXTRACTOR='${EXTRACTOR:-}'"
[ -z "${EXTRACTOR:-}" ] || [ -f "$EXTRACTOR" ] || refuse "EXTRACTOR must be a classifier's weights, got '$EXTRACTOR'"
python=$(command -v "${PYTHON:-python3}") || refuse "PYTHON must be a Python interpreter, got '${PYTHON:-python3}'"
[[ $python = /* ]] || python=$PWD/$python
export PYTHON=$python
[ -z "${PICTURES:-}" ] || PICTURES=$(realpath "$PICTURES")
[ -z "${EXTRACTOR:-}" ] || EXTRACTOR=$(realpath "$EXTRACTOR")
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1 MLFLOW_DISABLE_TELEMETRY=true
# From another folder, as the stages: what only a relative PYTHONPATH finds is missing there.
problem=$(cd / && "$python" -W ignore "$here/check_machine.py" "$DEVICE" 2>&1) || refuse "$problem"
mkdir -p "$out" 2>/dev/null && [ -w "$out" ] || refuse "OUT must be a folder that can be written, got '$out'"
out=$(cd "$out" && pwd)

started=$SECONDS
left() { echo $((60 * minutes - (SECONDS - started))); }
work=$(mktemp -d)
running= # the stage, in a process group of its own, which Ctrl-C does not reach
trap 'rm -rf "$work"' EXIT
trap '[ -z "$running" ] || { kill "$running"; wait "$running"; }; exit 130' INT TERM
cd "$work" || exit 1

# NAME LIMIT COMMAND...: runs it for LIMIT seconds at most.
run_stage() {
    local name=$1 limit=$2 began=$SECONDS status said
    shift 2
    if [ "$limit" -lt 20 ]; then
        echo "$name: not run, $limit seconds are left for it" | tee -a "$out/summary.txt"
        return
    fi
    echo "== $name, $limit seconds at most"
    timeout --kill-after=10 "$limit" "$@" > >(tee "$out/$name.txt") 2>&1 &
    running=$!
    wait "$running"
    status=$?
    running=
    case $status in
        0) said=passed ;;
        124 | 137) said="stopped at its time limit" status_of_all=1 ;;
        *) said="FAILED with status $status" status_of_all=1 ;;
    esac
    echo "$name: $said after $((SECONDS - began)) seconds" | tee -a "$out/summary.txt"
}

# As many seconds, if they are left; all that is left for the last stage that was asked for.
at_most() { [ "$1" -lt "$(left)" ] && [ "$stage" != "${stages##* }" ] && echo "$1" || left; }

# The sizes of a rehearsal: everything runs, nothing is learnt.
tiny_sizes=() processes=6 slower=1 # processes share the card in the second stage
if [ "$DEVICE" = cpu ]; then
    processes=2 slower=5
    export OMP_NUM_THREADS=1
    tiny_sizes=(--seeds 0 --workers 2)
    for field in data.resolution=64 model.width_g=2 model.width_d=2 optim.batch_size=4 optim.steps=4 eval.every=2 eval.num_samples=60 \
        eval.standing_images=4 optim.precision=fp32; do
        tiny_sizes+=(--set "$field")
    done
fi

study() { # NAME SECONDS STUDY.yaml [OPTION...]
    mkdir -p "$1" && cd "$1" || return
    run_stage "$1" "$2" bash "$here/study.sh" "$out/$1" "$2" "${@:3}" ${tiny_sizes[@]+"${tiny_sizes[@]}"}
    cd "$work" || return
}

photographs() {
    if [ -z "${PICTURES:-}" ]; then
        echo "5-photographs: not run, PICTURES and EXTRACTOR are not given" | tee -a "$out/summary.txt"
        return
    fi
    mkdir -p pictures 5-photographs/runs/cache/extractors
    tar -xf "$PICTURES" -C pictures
    cp "$EXTRACTOR" 5-photographs/runs/cache/extractors/
    study 5-photographs "$(left)" "$here/photographs.yaml" --data-root "$work/pictures" --workers 3 \
        --set "eval.extractor=$(basename "$EXTRACTOR" .safetensors)"
}

status_of_all=0
for stage in $stages; do
    case $stage in
        1) run_stage 1-surroundings "$(at_most $((30 * slower)))" "$python" "$here/surroundings.py" ;;
        2) run_stage 2-correctness "$(at_most $((120 * slower)))" "$python" -m pytest "$here" -v -rs --tb=short -p no:cacheprovider \
            --rootdir "$root" --durations 10 -n "$processes" --dist loadgroup ;;
        3) run_stage 3-speed "$(at_most $((100 * slower)))" "$python" "$here/speed.py" "$DEVICE" ;;
        4) seconds=$(left)
            [[ $stages = *5* && -n ${PICTURES:-} ]] && seconds=$((seconds * 3 / 5))
            study 4-study "$seconds" "$root/studies/attention_position.yaml" --preset embedded128 --workers 8 \
                --seeds 0,1,2,3,4,5,6,7 ;;
        5) photographs ;;
    esac
done
exit $status_of_all
