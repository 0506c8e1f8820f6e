#!/bin/sh
# Says what this machine lacks to install Foveal with the Python given as $1, and how to get it; silent when all is there.
python=$1
fail() {
    echo "foveal: $1" >&2
    exit 1
}
command -v "$python" >/dev/null ||
    fail "there is no '$python' here. Install Python 3.11 or later, or name one: make PYTHON=/path/to/python3.11"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    fail "$("$python" --version) is too old; Foveal needs 3.11 or later. Name one: make PYTHON=/path/to/python3.11"
"$python" -c 'import venv, ensurepip' 2>/dev/null ||
    fail "this Python cannot make virtual environments. On Debian: apt install python3-venv"
"$python" -c 'import os, sys, sysconfig
sys.exit(not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")))' ||
    fail "this Python lacks its C headers, which the native library needs. On Debian: apt install python3-dev"
command -v "${CXX:-c++}" >/dev/null || command -v g++ >/dev/null ||
    fail "there is no C++ compiler here. On Debian: apt install g++"
