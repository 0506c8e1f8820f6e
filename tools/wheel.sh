#!/bin/sh
# make wheel: a wheel of dist/'s source archive for the Python given as $1, as wheels are published: its libraries checked
# for manylinux_2_28, its symbols for the stable ABI, its text for PyPI; then installed where no compiler is, and tried.
set -eu
python=$1
tools=build/release/bin
plain=build/wheel
case $(uname -m) in x86_64) arch=x86_64 ;; aarch64 | arm64) arch=aarch64 ;; *) echo "no wheel is made for $(uname -m)" >&2 && exit 1 ;; esac

sdist=$(ls -t dist/foveal-*.tar.gz | head -1)
rm -rf "$plain" && mkdir -p "$plain"
"$python" -m pip wheel --disable-pip-version-check --no-deps --wheel-dir "$plain" -C cmake.define.FOVEAL_PORTABLE=ON "$sdist"
PATH="$tools:$PATH" "$tools/auditwheel" repair --plat "manylinux_2_28_$arch" --only-plat --wheel-dir dist "$plain"/*.whl
wheel=$(ls -t dist/foveal-*.whl | head -1)
case $wheel in *abi3*) "$tools/abi3audit" --strict --summary "$wheel" ;; esac
"$tools/twine" check --strict "$sdist" "$wheel"

trial=build/trial
rm -rf "$trial"
"$python" -m venv "$trial"
"$trial/bin/python" -m pip install --disable-pip-version-check --quiet --only-binary :all: "$wheel"
env -i HOME="$PWD/$trial" PATH="$PWD/$trial/bin:/usr/bin:/bin" CC=false CXX=false sh tools/try_wheel.sh foveal
echo "$wheel"
