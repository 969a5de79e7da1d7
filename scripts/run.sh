#!/usr/bin/env bash
# All protocols of all trainers; the scripts in the folders beside this one call it.
#
#   run.sh TRAINER base2new_train DATASET SEED    train on the base classes, test on them
#   run.sh TRAINER base2new_test  DATASET SEED    test that run on the new classes (ZeroshotCLIP: both halves)
#   run.sh TRAINER xd_train       DATASET SEED    train on all classes of a source dataset (imagenet)
#   run.sh TRAINER xd_test        DATASET SEED    test the run on $SOURCE (imagenet; shapes for its family) on DATASET
#   run.sh TRAINER few_shot       DATASET SHOTS   train and test on all classes, seeds $SEEDS (1 2 3)
#   run.sh ZeroshotCLIP zeroshot  DATASET CFG     test without training
#   run.sh CoOp main DATASET CFG CTP NCTX SHOTS CSC
#                                                 as few_shot, with NCTX context tokens, the class name at CTP (end,
#                                                 middle, front) and class-specific contexts if CSC is True, not False
#   run.sh CoOp eval              DATASET CFG     test main's run on $SOURCE (end 16 16 False) on DATASET, seeds $SEEDS
#
# SHOTS are images per class, -1 for all. TRAINER is a folder in configs/trainers, or IVLP:language_only, which has no image prompts. DATASET is a name in
# configs/datasets, folder:PATH for your own images (a folder, or a split file in it), or a YAML file of your own; a CFG
# may be a YAML file too.
# Further arguments go to train.py: options (--...), then KEY VALUE pairs, which override the script's own. --dry-run
# prints the commands instead of running them.
# Variables: DATA (data/), OUTPUT (output/), CFG (the trainer's default for the protocol), PYTHON (python), SEEDS (1 2 3,
# or 1,2,3) and SOURCE.
# Exit status: 0 finished now or before, 1 failed, 2 usage error, 75 interrupted and resumable.
set -euo pipefail

home=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
out=${OUTPUT:-output}

# find_dataset DATASET: set `label`, its name in folders, and train.py's arguments `data_file`, `root`, `data_pairs`.
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
    [[ -f $data_file ]] || fail "Unknown dataset '$1'; choose from" \
        "$(cd "$home/configs/datasets" && echo *.yaml | sed 's/\.yaml//g'), or give folder:PATH or a YAML file"
}

fail() {
    echo "error: $*" >&2
    exit 2
}

upper() {
    tr a-z A-Z <<<"$*"
}

for word in "${@:1:3}"; do # --help of this script; further on it is train.py's
    if [[ $word == --help || $word == -h ]]; then
        sed -n '2,/^set /s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
        exit
    fi
done

method=${1:-} protocol=${2:-}
trainer=${method%%:*}
reserved="--seed SEED --trainer TRAINER.NAME --dataset-config-file DATASET.NAME --config-file"
case $protocol in
    base2new_train | base2new_test | xd_train | xd_test) takes="dataset seed" example="oxford_pets 1" ;;
    few_shot) takes="dataset shots" example="oxford_pets 16" ;;
    zeroshot) takes="dataset cfg" example="oxford_pets vit_b16" ;;
    main) takes="dataset cfg ctp nctx shots csc" example="oxford_pets vit_b16 end 16 16 False" ;;
    eval) takes="dataset cfg" example="imagenetv2 vit_b16_ep50" ;;
    *) fail "${protocol:+Unknown protocol '$protocol'; }give TRAINER PROTOCOL DATASET ...; protocols are" \
        "base2new_train, base2new_test, xd_train, xd_test, few_shot, zeroshot, main, eval (--help explains them)" ;;
esac
if [[ $protocol == main || $protocol == eval ]]; then
    [[ $trainer == CoOp ]] || fail "$protocol is a protocol of CoOp only, but got the trainer '$trainer'"
    reserved+=" TRAINER.COOP.N_CTX TRAINER.COOP.CSC TRAINER.COOP.CLASS_TOKEN_POSITION"
fi
shift 2

seed=1 shots=16 cfg='' ctp=end nctx=16 csc=False # defaults where the protocol does not take them
for name in $takes; do
    [[ -n ${1:-} ]] || fail "$protocol of $trainer needs $(upper "$takes"), for example $example"
    case $name:$1 in
        ctp:end | ctp:middle | ctp:front | csc:True | csc:False | dataset:* | cfg:* | shots:-1) ;;
        ctp:*) fail "CTP must be end, middle or front, but got '$1'" ;;
        csc:*) fail "CSC must be True or False, but got '$1'" ;;
        *) [[ $1 =~ ^[0-9]+$ ]] || fail "$(upper "$name") must be a whole number, but got '$1'" ;;
    esac
    printf -v "$name" %s "$1"
    shift
done
cfg=${cfg:-${CFG:-}}
cfg_folder=$home/configs/trainers/${trainer%2} # ZeroshotCLIP2 shares ZeroshotCLIP's
[[ -n $trainer && (-d $cfg_folder || $cfg == *.yaml) ]] || # a plugin's trainer has its own configuration
    fail "Unknown trainer '$trainer'; choose from $(cd "$home/configs/trainers" && echo *)"
find_dataset "$dataset"

# The user's options, then the user's pairs, which begin with a key such as OPTIM.LR or SEED.
options=() dry_run=
while (($#)) && [[ ! $1 =~ ^([A-Z]+(\.[A-Z0-9_]+)+|OUTPUT_DIR|RESUME|SEED|USE_CUDA|VERBOSE)$ ]]; do
    [[ $1 == --dry-run ]] && dry_run=1 || options+=("$1")
    shift
done
pairs=("$@")

# Refuse what would contradict the folder's name.
for word in ${options[@]+"${options[@]}"} ${pairs[@]+"${pairs[@]}"}; do
    [[ " $reserved " != *" $word "* ]] ||
        fail "$word belongs to the script's own arguments (trainer, $(upper "${takes// /, }"), \$CFG)"
done
for ((i = 0; i + 1 < ${#pairs[@]}; i += 2)); do
    [[ ${pairs[i]} != DATASET.NUM_SHOTS ]] || shots=${pairs[i + 1]}
done

# The backbone that the user gives, if it is not the CFG's.
backbone=
for ((i = 0; i + 1 < ${#options[@]}; i++)); do
    [[ ${options[i]} != --backbone ]] || backbone=${options[i + 1]}
done
for ((i = 0; i + 1 < ${#pairs[@]}; i += 2)); do
    [[ ${pairs[i]} != MODEL.BACKBONE.NAME ]] || backbone=${pairs[i + 1]}
done

# first_fit KIND NAME: print what configs/defaults.txt has in the first line of a kind whose pattern fits a name
first_fit() {
    local kind pattern rest
    while read -r kind pattern rest; do
        if [[ $kind == "$1" && $2 == $pattern ]]; then
            echo "$rest"
            return
        fi
    done <"$home/configs/defaults.txt"
}

# The default CFG: the published one, or that of tiny-shapes.
default_cfg=$(first_fit cfg "$method/$protocol/$label/$shots")
if [[ $backbone == tiny-shapes || ($dataset == shapes* && -z $backbone) ]]; then
    [[ $method == *:* ]] && default_cfg=tiny_shapes_${method#*:} || default_cfg=tiny_shapes
fi
cfg=${cfg:-$default_cfg}
[[ $cfg == *.yaml ]] && cfg_file=$cfg || cfg_file=$cfg_folder/$cfg.yaml
[[ -f $cfg_file ]] ||
    fail "$trainer has no configuration '$cfg'; choose from $(cd "$cfg_folder" && echo *.yaml | sed 's/\.yaml//g')"
cfg=$(basename "$cfg" .yaml)

# Settings of the protocol or the dataset beside those of the CFG.
variant=
read -r -a settings <<<"$(first_fit set "$method/$cfg/$protocol/$label")"
if [[ $protocol == main || $protocol == eval ]]; then
    settings=(TRAINER.COOP.N_CTX "$nctx" TRAINER.COOP.CSC "$csc" TRAINER.COOP.CLASS_TOKEN_POSITION "$ctp")
    variant=/nctx${nctx}_csc${csc}_ctp$ctp
fi

# The names of the shipped CFGs begin with their backbone's; that of the folder begins with the one that runs.
if [[ -n $backbone && $cfg =~ ^(vit_b16|vit_b32|rn50|rn101|tiny_shapes)(_.*)?$ ]]; then
    backbone=$(tr A-Z a-z <<<"${backbone//\//}")
    cfg=${backbone//[^a-z0-9]/_}${BASH_REMATCH[2]}
fi

# run SEED FOLDER [option ...] -- [KEY VALUE ...]: call train.py, and pass on the signals that stop this script
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
        ${data_pairs[@]+"${data_pairs[@]}"} "$@" ${settings[@]+"${settings[@]}"} ${pairs[@]+"${pairs[@]}"}
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

# needs FOLDER PROTOCOL DATASET NUMBER: refuse to test where no training has begun, naming the command that trains
needs() {
    [[ -n $dry_run || -d $1 ]] && return
    local name variables='' words script=$home/scripts/run.sh
    for name in DATA OUTPUT CFG SEEDS; do
        [[ -z ${!name:-} ]] || variables+="$name=$(printf %q "${!name}") "
    done
    printf -v words ' %q' "${script#"$PWD/"}" "$method" "${@:2}" ${pairs[@]+"${pairs[@]}"}
    fail "There is no training in $1; train first: ${variables}bash$words"
}

base2new=$out/base2new
run_name=$label/shots_$shots/$trainer/$cfg/seed$seed
group=$trainer/${cfg}_${shots}shots$variant
[[ $takes == *seed ]] && seeds=$seed || seeds=${SEEDS:-1 2 3}
seeds=${seeds//,/ }
case $protocol in
    base2new_train)
        run "$seed" "$base2new/train_base/$run_name" -- \
            TRAIN.CHECKPOINT_FREQ 1 DATASET.NUM_SHOTS "$shots" DATASET.SUBSAMPLE_CLASSES base
        ;;
    base2new_test)
        if [[ $trainer == ZeroshotCLIP* ]]; then
            for half in base new; do
                run "$seed" "$base2new/test_$half/$run_name" --eval-only -- \
                    DATASET.NUM_SHOTS "$shots" DATASET.SUBSAMPLE_CLASSES $half
            done
        else
            needs "$base2new/train_base/$run_name" base2new_train "$dataset" "$seed"
            run "$seed" "$base2new/test_new/$run_name" --eval-only --model-dir "$base2new/train_base/$run_name" -- \
                DATASET.NUM_SHOTS "$shots" DATASET.SUBSAMPLE_CLASSES new
        fi
        ;;
    xd_train)
        run "$seed" "$out/$label/$group/seed$seed" -- TRAIN.CHECKPOINT_FREQ 1 DATASET.NUM_SHOTS "$shots"
        ;;
    few_shot | main)
        for seed in $seeds; do
            run "$seed" "$out/$label/$group/seed$seed" -- TRAIN.CHECKPOINT_FREQ 10 DATASET.NUM_SHOTS "$shots"
        done
        ;;
    xd_test | eval)
        [[ $dataset == shapes* ]] && source=${SOURCE:-shapes} || source=${SOURCE:-imagenet}
        trained=$(find_dataset "$source" && echo "$label")
        for seed in $seeds; do
            if [[ $protocol == eval ]]; then
                needs "$out/$trained/$group/seed$seed" main "$source" "$cfg" "$ctp" "$nctx" "$shots" "$csc"
            else
                needs "$out/$trained/$group/seed$seed" xd_train "$source" "$seed"
            fi
            run "$seed" "$out/evaluation/$group/$label/seed$seed" \
                --eval-only --model-dir "$out/$trained/$group/seed$seed" --
        done
        ;;
    zeroshot)
        run "$seed" "$out/$trainer/$cfg/$label" --eval-only --
        ;;
esac
