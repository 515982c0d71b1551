#!/bin/bash
# base.sh DIR
#
# Builds the slow part of the guest image, everything but our own agents, in
# the empty directory DIR:
#
#	vmlinux          the kernel, uncompressed
#	rootfs.squashfs  the read-only root
#	modules/         what the initramfs loads: NNN-name.ko, and the file order
#	packages         name, version and architecture of every Debian package
#	facts            suite, architecture, kernel release, date of the archive
#
# Started by build.sh, which knows when it has to be. Needs root, or an
# ordinary user's right to make user name spaces; writes to DIR and $TMPDIR only.
set -euo pipefail
umask 022
export LC_ALL=C PATH="$PATH:/usr/sbin:/sbin"

recipe=$(cd "$(dirname "$0")" && pwd)
. "$recipe/debian.sh"

# Compression: see README.md for what was measured.
pack_root() {
	tar --concatenate --file="$work/root.tar" "$work/modules.tar"
	tar2sqfs --quiet --compressor zstd --comp-extra level=9 --block-size 131072 \
		"$out/rootfs.squashfs" <"$work/root.tar"
}

[ $# = 1 ] && [ -d "$1" ] || { echo "usage: base.sh DIR" >&2; exit 2; }
out=$(cd "$1" && pwd)
work=$out/work
mkdir "$work"
choose_mode
find_archive
fetch_kernel
initramfs_modules
root_modules
build_root essential
pack_root
write_facts
rm -rf "$work"
