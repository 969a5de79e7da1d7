#!/usr/bin/env bash
# Every protocol of every trainer; the scripts in the folders beside this one call it.
#
#   run.sh TRAINER base2new_train DATASET SEED    train on the base classes, test on them
#   run.sh TRAINER base2new_test  DATASET SEED    test that run on the new classes (ZeroshotCLIP: both halves)
#   run.sh TRAINER xd_train       DATASET SEED    train on all classes of a source data set (imagenet)
#   run.sh TRAINER xd_test        DATASET SEED    test the run on $SOURCE (imagenet; shapes for its family) elsewhere
#   run.sh TRAINER few_shot       DATASET SHOTS   train and test on all classes, seeds $SEEDS (1 2 3)
#   run.sh ZeroshotCLIP zeroshot  DATASET CFG     test without training
#
# DATASET is a name in configs/datasets, folder:PATH for one's own images (a folder, or a split file in it), or a YAML file
# of one's own; a CFG may be a YAML file too.
# What follows goes to train.py: options (--...), then KEY VALUE pairs, which win over the script's own. --dry-run prints
# the commands instead of running them.
# Variables: DATA (data/), OUTPUT (output/), CFG (the trainer's default for the protocol), PYTHON (python).
# Exit status: 0 finished now or before, 1 failed, 2 mistaken call, 75 interrupted and resumable.
set -euo pipefail

home=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
shots=16
out=${OUTPUT:-output}

# A data set as it was given -> `label`, its name in folders, and how train.py gets it: `data_file`, `root`, `data_pairs`.
find_dataset() {
    data_file=$home/configs/datasets/$1.yaml root=${DATA:-data} label=$1 data_pairs=()
    case $1 in
        folder:*)
            local path=${1#folder:} file=
            [[ -e $path ]] || fail "No folder of images, or split file, at '$path'"
            [[ -d $path ]] || file=$(basename "$path") path=$(dirname "$path")
            root=$(cd "$path" && pwd -P) data_file=$home/configs/datasets/folder.yaml
            [[ -z $file ]] || data_pairs=(DATASET.FOLDER.SPLIT "$file")
            label=$(basename "$root${file:+/$file}")
            label=${label//[^A-Za-z0-9._-]/_}-$(printf '%08x' "$(printf %s "$root/$file" | cksum | cut -d' ' -f1)")
            ;;
        *.yaml) data_file=$1 label=$(basename "$1" .yaml) ;;
    esac
    [[ -f $data_file ]] || fail "Unknown data set '$1'; choose from" \
        "$(cd "$home/configs/datasets" && echo *.yaml | sed 's/\.yaml//g'), or give folder:PATH or a YAML file"
}

fail() {
    echo "error: $*" >&2
    exit 2
}

trainer=${1:-} protocol=${2:-} dataset=${3:-} number=${4:-}
case $protocol in
    few_shot) what=SHOTS ;;
    zeroshot) what=CFG ;;
    base2new_train | base2new_test | xd_train | xd_test) what=SEED ;;
    *) fail "Unknown protocol '$protocol'; choose from base2new_train, base2new_test, xd_train, xd_test, few_shot, zeroshot" ;;
esac
[[ -n $dataset && -n $number ]] || fail "$protocol of $trainer needs DATASET $what, for example oxford_pets 1"
cfg_folder=$home/configs/trainers/${trainer%2} # the two ZeroshotCLIPs share theirs
[[ -n $trainer && (-d $cfg_folder || ${CFG:-} == *.yaml) ]] || # a plugin's trainer brings its own configuration
    fail "Unknown trainer '$trainer'; choose from $(cd "$home/configs/trainers" && echo *)"
find_dataset "$dataset"
[[ $what == CFG || $number =~ ^[0-9]+$ ]] || fail "$what must be a whole number, but got '$number'"
shift 4

# The user's own: options first, then pairs, which begin with a key such as OPTIM.LR or SEED.
options=() dry_run=
while (($#)) && [[ ! $1 =~ ^([A-Z]+(\.[A-Z0-9_]+)+|OUTPUT_DIR|RESUME|SEED|USE_CUDA|VERBOSE)$ ]]; do
    [[ $1 == --dry-run ]] && dry_run=1 || options+=("$1")
    shift
done
pairs=("$@")

# What the folder's name says is what runs.
for word in ${options[@]+"${options[@]}"} ${pairs[@]+"${pairs[@]}"}; do
    case $word in
        --seed | SEED | --trainer | TRAINER.NAME | --dataset-config-file | DATASET.NAME | --config-file)
            fail "$word belongs to the script's own arguments (trainer, DATASET, SEED, \$CFG)" ;;
    esac
done
for ((i = 0; i + 1 < ${#pairs[@]}; i += 2)); do
    if [[ ${pairs[i]} == DATASET.NUM_SHOTS ]]; then
        shots=${pairs[i + 1]}
        [[ $protocol != few_shot ]] || number=$shots
    fi
done

main_cfg=vit_b16_c2_ep5_batch4_2ctx
if [[ $dataset == shapes* ]]; then
    default_cfg=tiny_shapes
else
    case $trainer:$protocol in
        ZeroshotCLIP*:*) default_cfg=vit_b16 ;;
        *:xd_*) default_cfg=${main_cfg}_cross_datasets ;;
        *:few_shot) default_cfg=${main_cfg}_few_shot ;;
        *) default_cfg=$main_cfg ;;
    esac
fi
[[ $what == CFG ]] && cfg=$number || cfg=${CFG:-$default_cfg}
[[ $cfg == *.yaml ]] && cfg_file=$cfg || cfg_file=$cfg_folder/$cfg.yaml
[[ -f $cfg_file ]] ||
    fail "$trainer has no configuration '$cfg'; choose from $(cd "$cfg_folder" && echo *.yaml | sed 's/\.yaml//g')"
cfg=$(basename "$cfg" .yaml)

# What the authors' preview sets by data set.
preview=()
if [[ $cfg == *_preview ]]; then
    case $dataset in caltech101 | oxford_pets | oxford_flowers | eurosat) preview+=(OPTIM.MAX_EPOCH 10) ;; esac
    case $dataset in fgvc_aircraft | ucf101) preview+=(TRAINER.P2C.N_CTX 2) ;; esac
    case $protocol in xd_*) preview+=(OPTIM.MAX_EPOCH 2) ;; esac
fi

# run SEED FOLDER [option ...] -- [KEY VALUE ...]: one call of train.py, which is told when this script is to stop
run() {
    local seed=$1 folder=$2 own=() status=0 stopped=
    shift 2
    while [[ $1 != -- ]]; do
        own+=("$1")
        shift
    done
    shift
    set -- "${PYTHON:-python}" "$home/train.py" --root "$root" --trainer "$trainer" --seed "$seed" --output-dir "$folder" \
        --dataset-config-file "$data_file" --config-file "$cfg_file" ${own[@]+"${own[@]}"} ${options[@]+"${options[@]}"} -- \
        ${data_pairs[@]+"${data_pairs[@]}"} "$@" ${preview[@]+"${preview[@]}"} ${pairs[@]+"${pairs[@]}"}
    if [[ -n $dry_run ]]; then
        printf '%q ' "$@"
        echo
        return
    fi
    "$@" &
    trap "stopped=1; kill -TERM $! 2>/dev/null || true" TERM INT
    wait $! || status=$?
    [[ -z $stopped ]] || { status=0 && wait $! || status=$?; } # the signal ended the first wait, not the training
    trap - TERM INT
    return $status
}

base2new=$out/base2new
run_name=$label/shots_$shots/$trainer/$cfg/seed$number
case $protocol in
    base2new_train)
        run "$number" "$base2new/train_base/$run_name" -- \
            TRAIN.CHECKPOINT_FREQ 1 DATASET.NUM_SHOTS "$shots" DATASET.SUBSAMPLE_CLASSES base
        ;;
    base2new_test)
        if [[ $trainer == ZeroshotCLIP* ]]; then
            for half in base new; do
                run "$number" "$base2new/test_$half/$run_name" --eval-only -- \
                    DATASET.NUM_SHOTS "$shots" DATASET.SUBSAMPLE_CLASSES $half
            done
        else
            run "$number" "$base2new/test_new/$run_name" --eval-only --model-dir "$base2new/train_base/$run_name" -- \
                DATASET.NUM_SHOTS "$shots" DATASET.SUBSAMPLE_CLASSES new
        fi
        ;;
    xd_train)
        run "$number" "$out/$label/$trainer/${cfg}_${shots}shots/seed$number" -- \
            TRAIN.CHECKPOINT_FREQ 1 DATASET.NUM_SHOTS "$shots"
        ;;
    xd_test)
        [[ $dataset == shapes* ]] && source=${SOURCE:-shapes} || source=${SOURCE:-imagenet}
        trained=$(find_dataset "$source" && echo "$label")
        run "$number" "$out/evaluation/$trainer/${cfg}_${shots}shots/$label/seed$number" \
            --eval-only --model-dir "$out/$trained/$trainer/${cfg}_${shots}shots/seed$number" --
        ;;
    few_shot)
        for seed in ${SEEDS:-1 2 3}; do
            run "$seed" "$out/$label/$trainer/${cfg}_${number}shots/seed$seed" -- \
                TRAIN.CHECKPOINT_FREQ 10 DATASET.NUM_SHOTS "$number"
        done
        ;;
    zeroshot)
        run 1 "$out/$trainer/$cfg/$label" --eval-only --
        ;;
esac
