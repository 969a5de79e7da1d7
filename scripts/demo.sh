#!/usr/bin/env bash
# The main job on the built-in data, offline: base-to-novel with zero-shot CLIP, MaPLe and P2C, three seeds each.
set -euo pipefail
scripts=$(dirname "${BASH_SOURCE[0]}")
log=$(mktemp)
trap 'rm -f "$log"' EXIT

# step NAME SCRIPT ARGUMENT...: print NAME and run SCRIPT; show its output only if it fails
step() {
    echo "$1"
    bash "$scripts/$2" "${@:3}" >"$log" 2>&1 || {
        status=$?
        cat "$log"
        exit $status
    }
}

for seed in 1 2 3; do
    step "zero-shot, seed $seed" zsclip/base2new_test.sh shapes $seed
    for trainer in maple p2c; do
        step "$trainer, seed $seed: train on the base classes" $trainer/base2new_train.sh shapes $seed
        step "$trainer, seed $seed: test on the new classes" $trainer/base2new_test.sh shapes $seed
    done
done
"${PYTHON:-python}" "$scripts/../parse_test_res.py" --base2new "${OUTPUT:-output}" --datasets shapes
PYTHONPATH=$scripts/..${PYTHONPATH:+:$PYTHONPATH} "${PYTHON:-python}" -m p2c report "${OUTPUT:-output}/base2new" --html "${OUTPUT:-output}/report.html"
echo "Logs, checkpoints and results.json: ${OUTPUT:-output}/base2new"
