#!/bin/bash
# install.sh: brings what is needed to build, run and test Auberge on Debian 12
# and 13. `make deps` runs it; nothing else in the repository installs packages.
#
# Says first what it is going to install. Does nothing at all, not even ask the
# network, when everything is there.
set -euo pipefail
export LC_ALL=C DEBIAN_FRONTEND=noninteractive PATH="$PATH:/usr/sbin:/sbin"

here=$(cd "$(dirname "$0")" && pwd)
. "$here/apt.sh"
. "$here/vsock.sh"

# package, a command or file that shows that it is there, what it is for
needs='
qemu-system-x86        qemu-system-x86_64                 the hypervisor
qemu-utils             qemu-img                           disk images
dbus-daemon            dbus-daemon                        a private bus
dbus-bin               dbus-send                          a bus from scripts
systemd                busctl                             the same; only this tool is used
mmdebstrap             mmdebstrap                         guest image: the root
squashfs-tools-ng      tar2sqfs                           guest image: packing it
kmod                   depmod                             guest image: its modules
xz-utils               xz                                 guest image: kernel and modules
zstd                   zstd                               guest image: the same, newer kernels
uidmap                 newuidmap                          guest image: without root
debian-archive-keyring /usr/share/keyrings/debian-archive-keyring.gpg  checking what is fetched
lintian                lintian                            packages: checking those of Debian
rpm                    rpm                                packages: checking the others
nodejs                 node                               the example client in JavaScript
npm                    npm                                the libraries it uses
python3-jeepney        /usr/lib/python3/dist-packages/jeepney  the example client in Python
python3-protobuf       /usr/lib/python3/dist-packages/google/protobuf  the same
util-linux             setpriv                            other users in tests
btrfs-progs            mkfs.btrfs                         stateful disks
e2fsprogs              mkfs.ext4                          disks in tests
diod                   diod                               a 9P server in tests
nftables               nft                                firewalls in tests
iproute2               ip                                 interfaces in tests
openssh-client         ssh                                shells in containers by ssh, sftp in tests
openssh-sftp-server    /usr/lib/openssh/sftp-server       files of containers in tests
ansible-core           ansible-playbook                   playbooks in tests
dpkg                   dpkg-deb                           packages that containers install
polkitd                /usr/lib/polkit-1/polkitd          rights in tests
protobuf-compiler      protoc                             make protos
make                   make                               building
git                    git                                building
gcc                    gcc                                go test -race
libc6-dev              /usr/include/stdlib.h              go test -race
ca-certificates        /etc/ssl/certs/ca-certificates.crt Go modules
'

say() { echo "deps: $*"; }
fail() { echo "deps: $*" >&2; exit 1; }

present() {
	case $1 in
	/*) [ -e "$1" ] ;;
	*) command -v "$1" >/dev/null ;;
	esac
}

missing_packages() {
	local package probe
	while read -r package probe _; do
		[ -z "$package" ] || present "$probe" || echo "$package"
	done <<<"$needs"
}

# Root's rights, from sudo where we have not got them.
as_root() {
	if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi
}

check_rights() {
	[ "$(id -u)" = 0 ] || command -v sudo >/dev/null ||
		fail "installing packages needs root, and there is no sudo: run make deps once as root"
}

apt_install() {
	as_root env DEBIAN_FRONTEND=noninteractive apt-get -q install --yes --no-install-recommends "$@"
}

# A third party's source may be broken for reasons of its own. What counts is
# whether the packages can be installed afterwards.
refresh_lists() {
	as_root apt-get -q update ||
		say "some of apt's sources could not be read; going on with the others"
}

# vhost-device-vsock is in no release that we support yet, only in sid; it
# depends on little more than libc, so its package from there fits.
install_vsock() {
	if apt-cache policy vhost-device-vsock | grep -q '^  Candidate: [^(]'; then
		apt_install vhost-device-vsock
		return
	fi
	say "this release has no vhost-device-vsock: taking Debian's package from sid, and nothing else"
	work=$(mktemp -d) # not local: removed when the script ends
	trap 'rm -rf "$work"' EXIT
	vsock_deb "$work" || fail "no vhost-device-vsock"
	chmod -R a+rX "$work"
	apt_install "$work"/vhost-device-vsock_*.deb
}

# Go comes from wherever the user likes: releases of Debian have older ones.
check_go() {
	local need have
	need=$(sed -n 's/^go //p' "$here/../../go.mod")
	command -v go >/dev/null ||
		fail "Go is missing: install version $need or newer (Debian's own is too old)"
	have=$(cd / && go env GOVERSION)
	have=${have#go}
	[ "$(printf '%s\n' "$need" "${have%% *}" | sort -V | head -n 1)" = "$need" ] && return
	# From 1.21 on, go fetches the version that go.mod asks for, unless told not to.
	case $(cd / && go env GOTOOLCHAIN 2>/dev/null) in
	'' | local) fail "Go $have is too old: install version $need or newer" ;;
	*) say "Go $have will fetch version $need by itself" ;;
	esac
}

main() {
	local packages vsock=()
	mapfile -t packages < <(missing_packages)
	present vhost-device-vsock || vsock=(vhost-device-vsock)
	if [ $((${#packages[@]} + ${#vsock[@]})) -gt 0 ]; then
		local all=("${packages[@]}" "${vsock[@]}")
		say "will install: ${all[*]}"
		command -v apt-get >/dev/null ||
			fail "this is not Debian: install these, or what provides them, yourself"
		check_rights
		refresh_lists
		[ ${#packages[@]} = 0 ] || apt_install "${packages[@]}"
		[ ${#vsock[@]} = 0 ] || install_vsock
		mapfile -t packages < <(missing_packages)
		[ ${#packages[@]} = 0 ] || fail "still missing after installing: ${packages[*]}"
		present vhost-device-vsock || fail "still missing after installing: vhost-device-vsock"
	fi
	check_go
	say "everything is there"
}

main
