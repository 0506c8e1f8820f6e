#!/bin/sh
# Runs every kernel under valgrind's memcheck: memcheck.sh PYTHON LOG. Python, numpy and the loader do things that memcheck
# reports; only reports with our library in them count.
set -eu
python="$1" log="$2"
command -v valgrind >/dev/null || { echo "valgrind is missing; install it (Debian: apt-get install valgrind)" >&2; exit 1; }
PYTHONMALLOC=malloc valgrind --quiet --error-limit=no --num-callers=24 --log-file="$log" "$python" native/tools/memcheck.py
ours=$(awk 'BEGIN { RS = "==[0-9]+== \n" } /_native\.|foveal::/ { gsub(/==[0-9]+== /, ""); print }' "$log")
[ -z "$ours" ] || { echo "$ours"; exit 1; }
echo "memcheck has nothing to say about the native library"
