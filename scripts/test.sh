#!/usr/bin/env bash
# Runs every test: formatting, vet, then the Go tests of all packages, the
# end-to-end ones among them. `make test` has installed what they need.
#
#   scripts/test.sh [go test arguments]
#
# Some tests need root and are skipped without it. The environments of the
# clients, the starter image and runsc are kept in ${XDG_CACHE_HOME:-~/.cache}/paddock.
set -euo pipefail
cd "$(dirname "$0")/.."

cache=${XDG_CACHE_HOME:-$HOME/.cache}/paddock
# Kept in step with test/sdk_test.go.
sdks=(1.1.1 0.1.0)

began=$(date +%s)
failed=()
step() { # step NAME COMMAND...: runs a command and remembers whether it failed
	local name=$1 from
	shift
	from=$(date +%s)
	echo "== $name"
	if "$@"; then
		echo "== $name: ok, $(($(date +%s) - from)) s"
	else
		failed+=("$name")
		echo "== $name: FAILED after $(($(date +%s) - from)) s"
	fi
}

formatted() {
	local wrong
	wrong=$(gofmt -l $(git ls-files '*.go' 2>/dev/null || find . -name '*.go'))
	[ -z "$wrong" ] || { printf 'not formatted: %s\n' $wrong; return 1; }
}

# sdk VERSION makes a virtual environment with a version of the SDK, once.
sdk() {
	local dir=$cache/opensandbox-$1
	[ ! -e "$dir/.complete" ] || return 0
	rm -rf "$dir"
	mkdir -p "$cache"
	python3 -m venv "$dir" && "$dir/bin/pip" install -q --disable-pip-version-check "opensandbox==$1" && touch "$dir/.complete"
}

# gotests runs packages one after another: those that need root share the
# machine's cgroups, interfaces and packet filter.
gotests() { go test -count=1 -p 1 -timeout 15m "$@" ./...; }

export PADDOCK_BIN=${PADDOCK_BIN:-$PWD/bin/paddock}
step "format" formatted
step "vet" go vet ./...
if [ "$(id -u)" = 0 ]; then
	step "starter image" scripts/starter-image.sh
	for v in "${sdks[@]}"; do step "SDK $v" sdk "$v"; done
	step "clients" scripts/clients.sh
	step "runsc" scripts/runsc.sh
	# With root and everything installed nothing may be skipped for a lack.
	export PADDOCK_TEST_REQUIRE=1
else
	echo "== not root: tests that make sandboxes are skipped"
fi
step "tests" gotests "$@"

echo
if [ ${#failed[@]} -gt 0 ]; then
	echo "FAILED: ${failed[*]} ($(($(date +%s) - began)) s)"
	exit 1
fi
echo "All tests passed in $(($(date +%s) - began)) s."
