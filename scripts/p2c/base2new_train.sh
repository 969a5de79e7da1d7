#!/usr/bin/env bash
exec bash "$(dirname "$0")/../run.sh" P2C base2new_train "$@"
