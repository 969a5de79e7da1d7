#!/usr/bin/env bash
exec bash "$(dirname "$0")/../run.sh" MaPLe xd_train "$@"
