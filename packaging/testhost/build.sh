#!/bin/bash
# build.sh [--agent FILE] [--key]
#
# Builds the machine that tests of the whole system run in, a Debian with
# systemd, and prints the directory it is in as its last line; all else goes to
# stderr. What is in it: README.md.
#
# It is kept under ${XDG_CACHE_HOME:-~/.cache}/auberge/testhost, in two layers
# named by a hash of all that goes into them: base/ (kernel, modules, disk; a
# minute) and hosts/ (base and our agent in an initramfs; a second). The agent is
# test/testhost/agent, built here unless there is a FILE. --key only prints the
# base's key.
set -euo pipefail
umask 022
export LC_ALL=C

who=testhost
recipe=$(cd "$(dirname "$0")" && pwd)
repo=$(cd "$recipe/../.." && pwd)
layers="base hosts"
. "$recipe/../image/cache.sh"

usage() {
	echo "usage: build.sh [--agent FILE] [--key]" >&2
	exit 2
}

parse_arguments() {
	agent='' only_key=
	while [ $# -gt 0 ]; do
		case $1 in
		--key) only_key=yes; shift ;;
		--agent) [ -n "${2:-}" ] || usage; agent=$2; shift 2 ;;
		*) usage ;;
		esac
	done
	[ -z "$agent" ] || [ -f "$agent" ] || fail "$agent is not there"
}

# The hash of everything that decides what base.sh makes, the state of Debian's
# archive excepted.
compute_base_key() {
	{
		echo "suite ${AUBERGE_IMAGE_SUITE:-trixie}"
		local file
		for file in base.sh customize.sh packages.list modules-initramfs.list modules-root.list \
			../image/debian.sh ../image/extract-vmlinux.sh ../deps/apt.sh; do
			echo "$file $(hash_of "$recipe/$file")"
		done
	} | sha256sum | cut -c1-32
}

build_tools() {
	mkdir "$temporary/bin"
	# Not with our lock in hand: go may leave a helper of its own running.
	(cd "$repo" && CGO_ENABLED=0 go build -buildvcs=false -trimpath -ldflags '-s -w' -o "$temporary/bin/" \
		./packaging/image/mkinitramfs ./test/testhost/agent) 9>&-
	: "${agent:=$temporary/bin/agent}"
}

# A hash of gigabytes at every use would take longer than the boot: what is
# there is whole, because it appeared at once.
ensure_base() {
	base=$cache/base/$base_key
	if [ -d "$base" ]; then
		touch "$base"
		return
	fi
	say "building the base, which takes a minute"
	local started=$SECONDS
	mkdir "$temporary/base"
	"$recipe/base.sh" "$temporary/base" >&2
	# Nobody is to write to what others run from.
	chmod 444 "$temporary/base/disk" "$temporary/base/vmlinux"
	install_entry "$temporary/base" "$base"
	say "base built in $((SECONDS - started)) s"
}

ensure_host() {
	local key
	key=$({ echo "base $base_key"; hash_of "$agent" "$repo"/packaging/image/mkinitramfs/main.go; } |
		sha256sum | cut -c1-32)
	host=$cache/hosts/$key
	if [ -d "$host" ] && [ -f "$host/disk" ]; then
		touch "$host"
		return
	fi
	local new=$temporary/host
	mkdir "$new"
	link "$base/vmlinux" "$new"
	link "$base/disk" "$new"
	link "$base/packages" "$new"
	"$temporary/bin/mkinitramfs" -output "$new/initramfs" "init=$agent" "modules=$base/modules"
	install_entry "$new" "$host"
}

parse_arguments "$@"
base_key=$(compute_base_key)
if [ -n "$only_key" ]; then
	echo "$base_key"
	exit
fi
lock_cache testhost
build_tools
ensure_base
ensure_host
prune
echo "$host"
