#!/bin/sh
# Runs the native tests on a sanitized build: sanitize.sh PYTHON BUILD_FOLDER. A copy of the package with that library in it
# stands in for the installed one.
set -eu
python="$1" build="$2"
root="$build/root"
rm -rf "$root"
mkdir -p "$root"
cp -r foveal "$root/foveal"
rm -f "$root"/foveal/_native*.so
cp "$build"/_native*.so "$root/foveal/"
preload="$(g++ -print-file-name=libasan.so):$(g++ -print-file-name=libstdc++.so.6)"
LD_PRELOAD="$preload" ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 PYTHONPATH="$root:tests" \
    "$python" -m pytest -q -p no:cacheprovider -p no:xdist tests/test_native_*.py
