#!/usr/bin/env bash
# lint.sh PYTHON: the contracts of imports and the types, on a copy of the package as a wheel lays it out. In the checkout
# neither tool sees p2c.trainers, p2c.datasets and p2c.configs, which are folders at the root.
set -euo pipefail
python=$1 root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT
cp -r "$root/p2c" "$site"
for folder in trainers datasets configs; do
    rm -rf "$site/p2c/$folder"
    cp -r "$root/$folder" "$site/p2c/$folder"
    touch "$site/p2c/$folder/__init__.py"
done
cd "$site"
PYTHONPATH=$site "$(dirname "$python")/lint-imports" --no-cache "$root/pyproject.toml"
"$python" -m mypy --config-file "$root/pyproject.toml"
