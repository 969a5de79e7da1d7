#!/usr/bin/env bash
exec bash "$(dirname "$0")/../run.sh" PromptSRC base2new_test "$@"
