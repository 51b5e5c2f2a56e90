#!/usr/bin/env bash
# Installs the Debian packages that running (`run`) or testing (`test`) paddock
# needs: with apt when root, else it prints the command and fails.
set -euo pipefail

want=(crun curl ca-certificates mmdebstrap)
if [ "${1:-run}" = test ]; then
	want+=(runc docker-registry busybox-static python3 python3-venv chromium)
	# For the clients of other languages; wherever these come from.
	command -v node >/dev/null && command -v npm >/dev/null || want+=(nodejs npm)
	command -v javac >/dev/null && command -v mvn >/dev/null || want+=(default-jdk-headless maven)
fi

missing=()
for p in "${want[@]}"; do
	if ! dpkg-query -W -f '${db:Status-Status}' "$p" 2>/dev/null | grep -qx installed; then
		missing+=("$p")
	fi
done
[ ${#missing[@]} -gt 0 ] || exit 0

if ! command -v apt-get >/dev/null; then
	echo "These are missing, and this system has no apt-get: ${missing[*]}" >&2
	exit 1
fi
if [ "$(id -u)" != 0 ]; then
	echo "Some packages are missing. Install them with:" >&2
	echo "  sudo apt-get update && sudo apt-get install -y --no-install-recommends ${missing[*]}" >&2
	exit 1
fi
echo "Installing ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
# docker-registry's package starts a service; the tests start their own.
install() { apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null; }
log=$(mktemp)
trap 'rm -f "$log"' EXIT
if ! { apt-get update -qq && install; } >"$log" 2>&1; then
	cat "$log" >&2
	echo "apt-get could not install ${missing[*]}; see above." >&2
	exit 1
fi
