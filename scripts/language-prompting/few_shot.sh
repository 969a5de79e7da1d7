#!/usr/bin/env bash
exec bash "$(dirname "$0")/../run.sh" IVLP:language_only few_shot "$@"
