#!/bin/sh
# Whether an installed Foveal works: reads Python's json package in an empty folder, recalls from it, and forks it.
# $1: the command.
set -eu
foveal=$1
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
export FOVEAL_STORE="$folder/store"
source=$(python -c 'import json; print(json.__path__[0])')
cd "$folder"
"$foveal" --version
"$foveal" doctor
"$foveal" read "$source" --name json
"$foveal" recall json 'def raw_decode(self, s, idx=0):' --max-tokens 32 | tee answer
grep -q 'decoder.py:' answer || { echo "the recall cites nothing of decoder.py" >&2; exit 1; }
"$foveal" fork json second
"$foveal" verify
