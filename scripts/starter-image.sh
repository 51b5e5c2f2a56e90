#!/usr/bin/env bash
# Makes paddock's starter image from Debian or Ubuntu packages, as an OCI
# archive: python3, node, bash, git, curl. It needs mmdebstrap and the apt
# sources of this machine, but no container tool and no registry.
#
#   scripts/starter-image.sh [OUT.tar]
#
# The archive is kept in ${XDG_CACHE_HOME:-~/.cache}/paddock under a name that
# depends on the recipe, with starter.tar pointing to the newest. A second run
# with the same recipe only prints its path (or copies it to OUT.tar).
#
# Load it with: paddock image import FILE NAME
set -euo pipefail

PACKAGES=(bash ca-certificates curl git nodejs procps python3 python-is-python3)
IMAGE_NAME=docker.io/paddock/starter:latest
IMAGE_PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin

die() {
	printf 'starter-image: %s\n' "$*" >&2
	exit 1
}

# distribution_sources prints one-line apt sources for this machine's own
# release, from the mirrors that apt is set up with here. Other repositories
# on the machine are left out: they have nothing that the image needs.
distribution_sources() {
	local key uri release codename origin component
	key=/usr/share/keyrings/$ID-archive-keyring.gpg
	apt-get indextargets --format '$(REPO_URI) $(RELEASE) $(COMPONENT)' 'Created-By: Packages' |
		sort -u |
		while read -r uri release component; do
			case $release in
			"$VERSION_CODENAME" | "$VERSION_CODENAME-updates" | "$VERSION_CODENAME-security") ;;
			*) continue ;;
			esac
			# Cloud images of Debian keep their mirrors in a file; the first is
			# taken, since the file is not in the image.
			case $uri in
			mirror+file:*)
				uri=${uri#mirror+file:}
				uri=$(grep -m1 -oE '^https?://[^[:space:]]+' "${uri%/}") || continue
				uri=${uri%/}/
				;;
			esac
			case $uri in
			*/debian/* | */debian-security/* | */ubuntu/* | */ubuntu-ports/*) ;;
			*) continue ;;
			esac
			if [[ -e $key ]]; then
				printf 'deb [signed-by=%s] %s %s %s\n' "$key" "$uri" "$release" "$component"
			else
				printf 'deb %s %s %s\n' "$uri" "$release" "$component"
			fi
		done
}

# apt_proxies prints the machine's proxy settings for apt as mmdebstrap
# options, one a line.
apt_proxies() {
	apt-config dump | sed -n -E 's/^(Acquire::https?::(.*::)?Proxy "[^"]+";)$/--aptopt=\1/p'
}

build() {
	local out=$1 log=$2 options=()
	mapfile -t options < <(apt_proxies)
	# The copyright files stay: the licences ask for it. 99mmdebstrap repeats
	# the build's apt options, which may hold a proxy's password.
	mmdebstrap \
		--variant=minbase \
		--include="$(IFS=,; echo "${PACKAGES[*]}")" \
		--dpkgopt='path-exclude=/usr/share/doc/*' \
		--dpkgopt='path-include=/usr/share/doc/*/copyright' \
		--dpkgopt='path-exclude=/usr/share/man/*' \
		--dpkgopt='path-exclude=/usr/share/info/*' \
		--dpkgopt='path-exclude=/usr/share/locale/*' \
		--aptopt='APT::Install-Recommends "false"' \
		--customize-hook='rm -f "$1/etc/apt/apt.conf.d/99mmdebstrap" "$1/etc/hostname" "$1/etc/resolv.conf"' \
		--customize-hook='ln -sf ../usr/share/zoneinfo/Etc/UTC "$1/etc/localtime"' \
		"${options[@]}" \
		"$VERSION_CODENAME" - - <<<"$sources" 2>"$log" |
		"$tool" -o "$out" -name "$IMAGE_NAME" -arch "$(go env GOARCH)" \
			-env "PATH=$IMAGE_PATH" -env LANG=C.UTF-8 -cmd python3
}

[[ $# -le 1 ]] || die 'usage: scripts/starter-image.sh [OUT.tar]'
for command in mmdebstrap apt-get flock; do
	command -v "$command" >/dev/null ||
		die "$command was not found. This needs Debian or Ubuntu with mmdebstrap: apt-get install mmdebstrap"
done
command -v go >/dev/null || die 'go was not found. It builds the tool that writes the archive: see https://go.dev/dl'

. /etc/os-release
sources=$(distribution_sources)
[[ -n $sources ]] ||
	die "apt has no source for $VERSION_CODENAME on this machine. See /etc/apt/sources.list and /etc/apt/sources.list.d"

here=$(cd "$(dirname "$0")" && pwd)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/paddock
mkdir -p "$cache"
recipe=$(cat "$here/starter-image.sh" "$here/ociimage/main.go" "$here/../internal/image/ociwriter/layout.go" - \
	<<<"$sources" | sha256sum | cut -c1-16)
archive=$cache/starter-$VERSION_CODENAME-$(dpkg --print-architecture)-$recipe.tar

# One build at a time; whoever waited finds the archive made.
exec 9>"$cache/starter.lock"
flock 9
if [[ ! -e $archive ]]; then
	work=$(mktemp -d "$cache/.build-XXXXXX")
	trap 'rm -rf "$work"' EXIT
	tool=$work/ociimage
	(cd "$here/.." && go build -o "$tool" ./scripts/ociimage)
	echo "starter-image: making the image from $VERSION_CODENAME packages; this takes a few minutes" >&2
	if ! build "$work/starter.tar" "$work/log"; then
		grep -E '^(E:|W: Failed|Err:)' "$work/log" | tail -n 5 >&2 || tail -n 5 "$work/log" >&2
		die 'the packages could not be fetched or installed. Does "apt-get update" work on this machine?'
	fi
	mv "$work/starter.tar" "$archive"
	find "$cache" -maxdepth 1 -name 'starter-*.tar' ! -path "$archive" -delete
fi
ln -sfn "$(basename "$archive")" "$cache/starter.tar"

if [[ $# -eq 1 ]]; then
	cp --reflink=auto "$archive" "$1.partial"
	mv "$1.partial" "$1"
	archive=$1
fi
echo "$archive"
