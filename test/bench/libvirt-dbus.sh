#!/bin/bash
# libvirt-dbus.sh: finds or fetches libvirt-dbus, a peer that make bench
# measures against, and prints the root directory below which it lies.
#
# The package is not installed: that would bring the whole of libvirtd, with
# users and services of its own. Its files and those of the libraries it needs
# are unpacked into the cache, from where they run.
set -euo pipefail
export LC_ALL=C DEBIAN_FRONTEND=noninteractive PATH="$PATH:/usr/sbin:/sbin"

if command -v libvirt-dbus >/dev/null; then
	echo /
	exit
fi

cache=${XDG_CACHE_HOME:-$HOME/.cache}/auberge/bench
root=$cache/libvirt-dbus
if [ ! -x "$root/usr/sbin/libvirt-dbus" ]; then
	mkdir -p "$cache"
	work=$(mktemp -d "$cache/fetch.XXXXXX")
	trap 'rm -rf "$work"' EXIT
	mkdir -p "$work/archives/partial" "$work/root"
	echo "bench: fetching libvirt-dbus and its libraries from Debian" >&2
	apt-get -q install --download-only --yes --no-install-recommends -o Debug::NoLocking=1 \
		-o Dir::Cache::archives="$work/archives" -o APT::Sandbox::User= libvirt-dbus >&2 || {
		echo "bench: libvirt-dbus cannot be fetched; after apt-get update it may be" >&2
		exit 1
	}
	for deb in "$work"/archives/lib*.deb; do
		case ${deb##*/} in
		libvirt-daemon* | libvirt-clients*) ;;
		*) dpkg -x "$deb" "$work/root" ;;
		esac
	done
	rm -rf "$root"
	mv "$work/root" "$root"
fi
echo "$root"
