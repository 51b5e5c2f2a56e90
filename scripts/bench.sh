#!/usr/bin/env bash
# Measures paddock on this machine, and `crun run` beside it. It takes up to
# three minutes. Arguments go to the program: -json prints JSON, -policies 1000
# compares creates with network policies beside none and beside a thousand others.
set -euo pipefail
cd "$(dirname "$0")/.."

if [ "$(id -u)" != 0 ]; then
	echo "bench.sh needs root: paddock makes namespaces, cgroups and interfaces." >&2
	exit 1
fi
archive=$(scripts/starter-image.sh)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
go build -o "$work/bench" ./bench
PADDOCK_BIN=${PADDOCK_BIN:-$PWD/bin/paddock} "$work/bench" -image "$archive" "$@"
