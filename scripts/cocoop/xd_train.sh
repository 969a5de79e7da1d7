#!/usr/bin/env bash
[[ ! ${1:-} =~ ^[0-9]+$ ]] || set -- imagenet "$@" # CoCoOp's own script takes only SEED
exec bash "$(dirname "$0")/../run.sh" CoCoOp xd_train "$@"
