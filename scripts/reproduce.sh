#!/usr/bin/env bash
exec "${PYTHON:-python}" "$(dirname "${BASH_SOURCE[0]}")/reproduce.py" "$@"
