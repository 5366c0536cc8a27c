#!/usr/bin/env bash
# Smoke test for any deployment: ./test_deployment.sh BASE_URL   (API_KEY is sent as x-api-key when set)
set -u
base=${1:-}
if [ -z "$base" ]; then
  echo "usage: $0 BASE_URL   (for example http://127.0.0.1:8000)" >&2
  exit 2
fi
url=${base%/}/lambda/mcp/
failed=0

# The tool's own answer is JSON in a string: without its backslashes and blanks it reads as the rest does.
call() { # name arguments -> the answer's text
  curl --silent --show-error --max-time 60 -X POST "$url" \
    -H 'content-type: application/json' -H 'accept: application/json, text/event-stream' \
    ${API_KEY:+-H "x-api-key: $API_KEY"} \
    --data "{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"tools/call\",\"params\":{\"name\":\"$1\",\"arguments\":$2}}" 2>&1 | sed -e 's/\\"/"/g' -e 's/": /":/g'
}

step() { # title answer expected...
  local title=$1 answer=$2 wanted
  shift 2
  for wanted in "$@"; do
    case $answer in
      *"$wanted"*) ;;
      *)
        printf 'FAILED  %s\n        expected to find: %s\n        the answer was:   %s\n' "$title" "$wanted" "${answer:0:500}"
        failed=1
        return
        ;;
    esac
  done
  printf 'ok      %s\n' "$title"
}

echo "testing $url"
step "1/3 get_environment_info" "$(call get_environment_info '{}')" '"python_version":' '"isError":false'
step "2/3 execute_python" "$(call execute_python '{"code":"result = 2 + 3\nprint(\"grüße 🐍\")"}')" \
  '"result":"5"' 'grüße 🐍' '"success":true'
step "3/3 list_preinstalled_packages" "$(call list_preinstalled_packages '{}')" '"numpy"' '"pandas"'
if [ "$failed" = 0 ]; then echo "all steps passed"; else echo "the deployment does not work as it should"; fi
exit "$failed"
