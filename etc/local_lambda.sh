#!/usr/bin/env bash
# The packaged function and layer under AWS's emulator, behind a stand-in for API Gateway. The makefile builds them first.
#   etc/local_lambda.sh            serve until it is stopped (PORT, STAGE)
#   etc/local_lambda.sh COMMAND …  run a command with BASE_URL set, then stop
# JAIL=strict refuses what was never confirmed in a function, too.
set -euo pipefail
cd "$(dirname "$0")/.."

machine=$(uname -m)
arch=${machine/aarch64/arm64}
opt=/opt
[ -w /opt ] || opt=$PWD/build/opt
zip=build/layer-$arch.zip
if [ ! "$opt/code-interpreter/tree.json" -nt "$zip" ]; then
  echo "unpacking $zip at $opt"
  rm -rf "$opt/code-interpreter"
  mkdir -p "$opt"
  target/debug/build-layer unpack --to "$opt" "$zip"
  touch "$opt/code-interpreter/tree.json"
fi
emulator=$(echo build/aws/lib/python3*/site-packages/samcli/local/rapid/"aws-lambda-rie-$arch")
temporary=$(mktemp -d)
log=$temporary.log
touch "$log"

export PYTHON_TREE=$opt/code-interpreter TMPDIR=$temporary MAX_MEMORY_MB=1024
programs=(build/function-native/bootstrap target/debug/lambda_jail target/debug/examples/local_gateway "$emulator")
become=()
if [ "$(id -u)" = 0 ]; then
  # As in a function: an ordinary user, who may not reach this folder, alone with its System V objects.
  become=(unshare --ipc setpriv --reuid 993 --regid 993 --clear-groups)
  chown 993:993 "$temporary"
fi
programs_at=$(mktemp -d)
chmod 755 "$programs_at"
trap 'kill "$gateway" 2>/dev/null; wait "$gateway" 2>/dev/null; rm -rf "$temporary" "$log" "$programs_at"' EXIT
install -m 755 "${programs[@]}" "$programs_at"
# And on a kernel that refuses what Lambda's does.
"${become[@]}" "$programs_at/local_gateway" --rie "$programs_at/$(basename "$emulator")" \
  --bootstrap "$programs_at/bootstrap" --launcher "$programs_at/lambda_jail ${JAIL:-lambda}" \
  --port "${PORT:-0}" --stage "${STAGE:-dev}" 2>"$log" &
gateway=$!
BASE_URL=
while [ -z "$BASE_URL" ]; do
  kill -0 "$gateway" 2>/dev/null || { cat "$log" >&2; exit 1; }
  BASE_URL=$(sed -n 's/^serving //p' "$log" | head -1)
  [ -n "$BASE_URL" ] || sleep 0.05
done
export BASE_URL
if [ $# -gt 0 ]; then
  "$@" || { status=$?; cat "$log" >&2; exit "$status"; }
else
  echo "the function is at $BASE_URL/lambda/mcp/; Ctrl-C stops it"
  tail -f "$log"
fi
