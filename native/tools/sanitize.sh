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
# An editable install puts an importer of its own before every path; -P and this keep it, and the working folder, out.
run='
import pathlib, sys
root = pathlib.Path(sys.argv[1]).resolve()
sys.meta_path[:] = [finder for finder in sys.meta_path if type(finder).__module__ != "_editable_skbc_foveal"]
sys.path[:0] = [str(root), "tests"]
import foveal._native as native
if root not in pathlib.Path(native.__file__).parents:
    sys.exit(f"the sanitized build was not imported but {native.__file__}")
import pytest
sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", *sys.argv[2:]]))
'
LD_PRELOAD="$preload" ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 \
    "$python" -P -c "$run" "$root" tests/native
