#!/bin/sh
# Builds the portable kernels for 64-bit Arm and holds them, under qemu, against this machine's: arm.sh BUILD_FOLDER.
set -eu
build="$1"
arm=${ARM_CXX:-aarch64-linux-gnu-g++}
qemu=${ARM_QEMU:-qemu-aarch64-static}
for tool in "$arm" "$qemu"; do
    command -v "$tool" >/dev/null || {
        echo "$tool is missing; install it (Debian: apt-get install g++-aarch64-linux-gnu qemu-user-static)" >&2
        exit 1
    }
done
mkdir -p "$build"
sources="native/tools/crosscheck.cpp native/core/core.cpp native/core/runtime.cpp $(echo native/kernels/*.cpp)"
# Optimised as the module is (CMakeLists.txt); only what differs from one object to the next is compiled again.
compile() {
    compiler="$1" name="$2"
    shift 2
    objects=""
    for source in $sources; do
        object="$build/$name-$(basename "$source" .cpp).o"
        objects="$objects $object"
        if [ ! -e "$object" ] || [ -n "$(find native -newer "$object" \( -name '*.h' -o -path "$source" \))" ]; then
            "$compiler" -std=c++20 -O3 -ffp-contract=off -Wall -Wextra -Wno-psabi -Werror -DFOVEAL_ISA=portable \
                -DFOVEAL_WITH_portable=1 -Inative/core -Inative/kernels -c "$source" -o "$object"
        fi
    done
    # shellcheck disable=SC2086
    "$compiler" $objects -pthread "$@" -o "$build/crosscheck-$name"
}
compile "${CXX:-g++}" here
compile "$arm" arm -static
"$build/crosscheck-here" portable >"$build/here.bin"
"$qemu" "$build/crosscheck-arm" portable "$build/here.bin"
