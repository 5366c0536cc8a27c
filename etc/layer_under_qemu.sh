#!/usr/bin/env bash
# Uses every package of the arm64 layer on another processor, under qemu-user.
# Needs qemu-aarch64-static, and arm64's libc6, libgcc-s1, libstdc++6 and zlib1g under QEMU_LD_PREFIX (as Debian's cross packages put them).
set -euo pipefail
cd "$(dirname "$0")/.."
command -v qemu-aarch64-static >/dev/null || { echo "qemu-aarch64-static is not there: install qemu-user-static" >&2; exit 2; }
[ -f build/layer-arm64.zip ] || { echo "build/layer-arm64.zip is not there: make layer.build" >&2; exit 2; }
export QEMU_LD_PREFIX=${QEMU_LD_PREFIX:-/usr/aarch64-linux-gnu}
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
target/debug/build-layer unpack --to "$place" build/layer-arm64.zip
check=$PWD/layer/check.py
cd "$place"
MPLBACKEND=Agg MPLCONFIGDIR=$place/code-interpreter/matplotlib qemu-aarch64-static code-interpreter/python/bin/python3 \
  -I -S -B -c "import sys; sys.path.append(sys.argv[1]); exec(compile(open(sys.argv[2]).read(), sys.argv[2], 'exec'))" \
  "$place/code-interpreter/site" "$check"
