#!/usr/bin/env bash
# Installs the clients that test/clients runs, each into a directory of its own
# below ${XDG_CACHE_HOME:-~/.cache}/paddock/clients, once.
#
#   scripts/clients.sh [NAME…]
#
# The file test/clients/environments names them. Where a registry answers that
# it does not have a package, or this machine lacks the language, that is noted
# and the tests of the client are skipped; any other failure fails this script.
set -euo pipefail
cd "$(dirname "$0")/.."

cache=${XDG_CACHE_HOME:-$HOME/.cache}/paddock/clients
mkdir -p "$cache"
log=$(mktemp)
trap 'rm -f "$log"' EXIT

# What the installers say when the registry has no such package or version.
absent='No matching distribution found|E404|ETARGET|No matching version found|Could not find artifact|was not found in central'

# oldest_node is the first major version that the JavaScript SDK runs on.
oldest_node=20

with_pip() { # DIR PACKAGE…
	local dir=$1
	shift
	python3 -m venv "$dir" && "$dir/bin/pip" install -q --disable-pip-version-check "$@"
}

with_npm() { # DIR PACKAGE…
	local dir=$1
	shift
	mkdir -p "$dir" && npm install --prefix "$dir" --no-audit --no-fund --ignore-scripts --loglevel=error "$@"
}

with_maven() { # DIR GROUP:ARTIFACT:VERSION
	local dir=$1 group artifact version
	IFS=: read -r group artifact version <<<"$2"
	mkdir -p "$dir" && cat >"$dir/pom.xml" <<-POM && mvn -q -B -f "$dir/pom.xml" \
		org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies \
		-DoutputDirectory="$dir/lib" -DincludeScope=runtime
		<project xmlns="http://maven.apache.org/POM/4.0.0">
		  <modelVersion>4.0.0</modelVersion>
		  <groupId>local</groupId><artifactId>client</artifactId><version>1</version><packaging>pom</packaging>
		  <dependencies><dependency>
		    <groupId>$group</groupId><artifactId>$artifact</artifactId><version>$version</version>
		  </dependency></dependencies>
		</project>
	POM
}

# lacking prints what an installer needs that this machine does not have.
lacking() {
	case $1 in
	pip) command -v python3 >/dev/null || echo "python3" ;;
	npm)
		local have
		have=$(node --version 2>/dev/null | sed 's/^v//; s/\..*//')
		[ "${have:-0}" -ge "$oldest_node" ] && command -v npm >/dev/null || echo "node $oldest_node or newer, and npm"
		;;
	maven) command -v java >/dev/null && command -v mvn >/dev/null || echo "java and mvn" ;;
	esac
}

install() { # NAME INSTALLER PACKAGE…
	local name=$1 installer=$2 key dir lack
	shift 2
	# test/clients/environments_test.go computes the same.
	key=$(printf %s "$installer $*" | sha256sum | cut -c1-12)
	dir=$cache/$name-$key
	[ ! -e "$dir/.complete" ] || return 0
	rm -rf "$dir" "$dir.unavailable"
	lack=$(lacking "$installer")
	if [ -n "$lack" ]; then
		echo "$name: skipped, this machine has no $lack"
		echo "this machine has no $lack" >"$dir.unavailable"
		return 0
	fi
	echo "$name: installing $*"
	if "with_$installer" "$dir" "$@" >"$log" 2>&1; then
		touch "$dir/.complete"
		return 0
	fi
	rm -rf "$dir"
	if grep -qE "$absent" "$log"; then
		grep -m1 -E "$absent" "$log" | cut -c1-300 | tee "$dir.unavailable"
		return 0
	fi
	tail -n 20 "$log" >&2
	echo "$name could not be installed" >&2
	return 1
}

failed=0
while read -r name installer packages; do
	[[ -n $name && $name != \#* ]] || continue
	[[ $# = 0 || " $* " = *" $name "* ]] || continue
	# The packages are words.
	# shellcheck disable=SC2086
	install "$name" "$installer" $packages </dev/null || failed=1
done <test/clients/environments
exit "$failed"
