#!/usr/bin/env bash
# Shows paddock at work: starts a server with a data directory of its own, makes
# a sandbox over HTTP, runs Python in it, and removes everything again.
set -euo pipefail
cd "$(dirname "$0")/.."

paddock=$PWD/bin/paddock
"$paddock" doctor --required || exit 1

work=$(mktemp -d /tmp/paddock-demo.XXXXXX)
server=
stop() {
	if [ -n "$server" ]; then
		kill "$server" 2>/dev/null || true
		wait "$server" 2>/dev/null || true
	fi
	rm -rf "$work"
}
trap stop EXIT

ms() { echo $(($(date +%s%N) / 1000000)); }
began=$(ms)
step() { # step NAME: prints how long the step that ends here took
	local now
	now=$(ms)
	printf '%6d ms  %s\n' $((now - began)) "$1"
	began=$(ms)
}

port=$((20000 + RANDOM % 20000))
url=http://127.0.0.1:$port
"$paddock" serve --listen "127.0.0.1:$port" --data-dir "$work/data" >"$work/log" 2>&1 &
server=$!
for _ in $(seq 200); do
	curl -fs "$url/health" >/dev/null 2>&1 && break
	kill -0 "$server" 2>/dev/null || { cat "$work/log"; exit 1; }
	sleep 0.05
done
export PADDOCK_SERVER=$url
PADDOCK_API_KEY=$(cat "$work/data/api-key")
export PADDOCK_API_KEY
step "server started"

image=python:3.11
if ! "$paddock" image pull "$image" >"$work/pull" 2>&1; then
	echo "          no registry answers; making the starter image from Debian packages (once)"
	scripts/starter-image.sh "$work/starter.tar"
	"$paddock" image import "$work/starter.tar" "$image" >/dev/null
fi
step "image $image ready"

create='{"image":{"uri":"python:3.11"},"entrypoint":["tail","-f","/dev/null"],"timeout":600,"resourceLimits":{"cpu":"500m","memory":"512Mi"},"metadata":{"project":"demo"}}'
answer=$(curl -fsS -X POST "$url/v1/sandboxes" -H "OPEN-SANDBOX-API-KEY: $PADDOCK_API_KEY" \
	-H 'Content-Type: application/json' -d "$create")
id=$(sed -nE 's/.*"id":"([^"]+)".*/\1/p' <<<"$answer")
step "POST /v1/sandboxes answered ($id)"

code='import platform, sys; print("Hello from Python", sys.version.split()[0], "on", platform.node())'
"$paddock" exec "$id" -- python3 -c "$code"
step "Python ran in the sandbox"

"$paddock" exec "$id" -- python3 -c 'print(sum(range(10**6)))'
step "and a second command"

curl -fsS -X DELETE "$url/v1/sandboxes/$id" -H "OPEN-SANDBOX-API-KEY: $PADDOCK_API_KEY"
step "sandbox removed"
