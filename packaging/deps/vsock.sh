# shellcheck shell=bash
# Debian's own package of vhost-device-vsock, which is in no release that we
# support yet, only in sid: sourced by install.sh and ../packages.sh. It depends
# on little more than libc, so the package from sid fits.

. "${BASH_SOURCE[0]%/*}/apt.sh"

# vsock_deb DIR: puts the package into DIR. What was fetched once is kept in
# ${XDG_CACHE_HOME:-~/.cache}/auberge/deps, so that packages can be made without
# a network; delete that to fetch a newer one.
vsock_deb() {
	local cache=${XDG_CACHE_HOME:-$HOME/.cache}/auberge/deps new
	if ! compgen -G "$cache/vhost-device-vsock_*.deb" >/dev/null; then
		mkdir -p "$cache"
		new=$(mktemp -d "$cache/tmp.XXXXXX")
		if ! vsock_fetch "$new"; then
			rm -rf "$new"
			return 1
		fi
		mv "$new"/vhost-device-vsock_*.deb "$cache/"
		rm -rf "$new"
	fi
	cp "$cache"/vhost-device-vsock_*.deb "$1/"
}

vsock_fetch() {
	local dir=$1
	if ! apt_find "$dir/apt" main sid >/dev/null; then
		echo "vhost-device-vsock: cannot reach Debian's sid through apt's mirrors" >&2
		return 1
	fi
	if ! (cd "$dir" && apt_in "$dir/apt" apt-get -q download vhost-device-vsock >&2); then
		echo "vhost-device-vsock: not in sid" >&2
		return 1
	fi
	rm -rf "$dir/apt"
}
