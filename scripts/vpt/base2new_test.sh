#!/usr/bin/env bash
exec bash "$(dirname "$0")/../run.sh" VPT base2new_test "$@"
