#!/usr/bin/env bash
exec bash "$(dirname "$0")/../run.sh" PromptSRC few_shot "$@"
