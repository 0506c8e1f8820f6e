#!/bin/sh
# Take a memory to another store: sh examples/move_a_memory.sh NAME FROM_STORE TO_STORE SOURCE
# Between machines the file goes through scp, or through a pipe: foveal export NAME - | ssh host foveal import - --source DIR
set -eu
name=$1 from=$2 to=$3 source=$4
file=$(mktemp)
trap 'rm -f "$file"' EXIT
foveal export "$name" "$file" --store "$from"
foveal import "$file" --store "$to" --source "$source" # a stranger's file: it serves itself alone ...
foveal verify --recompute "$name" --store "$to"        # ... until the network has computed the same bytes here
foveal show "$name" --store "$to"
