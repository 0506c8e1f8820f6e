#!/bin/sh
# Claude Code on a model that Foveal serves: sh examples/claude_code.sh MODEL [words for claude]
# Its context survives a restart of the server, and a prompt that was read is not read again.
set -eu
model=$1
shift
port=${PORT:-8000}
foveal serve "$model" --port "$port" --root "$PWD" --alias "claude-*=$(basename "$model")" &
server=$!
trap 'kill $server' EXIT
until curl --silent --fail --output /dev/null "http://127.0.0.1:$port/ready"; do kill -0 $server && sleep 0.2; done
export ANTHROPIC_BASE_URL="http://127.0.0.1:$port" ANTHROPIC_AUTH_TOKEN="${FOVEAL_API_KEY:-none}"
export CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC=1
claude "$@"
foveal why --server "http://127.0.0.1:$port"
