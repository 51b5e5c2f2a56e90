#!/usr/bin/env bash
# Builds runsc, gVisor's program, from its Go module at the version that
# packaging/runsc/go.mod names. That takes a minute or two, once: the binary is
# kept in ${XDG_CACHE_HOME:-~/.cache}/paddock under a name with the version, with
# runsc pointing to the newest.
#
#   scripts/runsc.sh [OUT]
#
# It prints the path of the binary; with OUT it copies it there as well.
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
out=${1:+$(realpath -m "$1")}
cache=${XDG_CACHE_HOME:-$HOME/.cache}/paddock
module=gvisor.dev/gvisor

cd "$here/packaging/runsc"
version=$(awk -v m="$module" '$1 == "require" && $2 == m { print $3 } $1 == m { print $2 }' go.mod)
[ -n "$version" ] || { echo "runsc: packaging/runsc/go.mod names no version of $module" >&2; exit 1; }
bin=$cache/runsc-${version#v}-$(go env GOARCH)

mkdir -p "$cache"
exec 9>"$cache/runsc.lock"
flock 9
if [ ! -x "$bin" ]; then
	echo "runsc: building $module/runsc $version" >&2
	# Without cgo: runsc starts itself again where there is no dynamic linker.
	CGO_ENABLED=0 go build -mod=readonly -trimpath \
		-ldflags "-s -w -X $module/runsc/version.version=$version" \
		-o "$bin.new" "$module/runsc"
	mv "$bin.new" "$bin"
fi
ln -sfn "$(basename "$bin")" "$cache/runsc"
if [ -n "$out" ]; then
	mkdir -p "$(dirname "$out")"
	install -m 755 "$bin" "$out.new"
	mv "$out.new" "$out"
	bin=$out
fi
echo "$bin"
