#!/usr/bin/env bash
exec bash "$(dirname "$0")/../run.sh" IVLP xd_test "$@"
