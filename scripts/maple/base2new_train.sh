#!/usr/bin/env bash
exec bash "$(dirname "$0")/../run.sh" MaPLe base2new_train "$@"
