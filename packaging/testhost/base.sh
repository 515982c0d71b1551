#!/bin/bash
# base.sh DIR
#
# Builds the test host's disk, in the empty directory DIR:
#
#	vmlinux   the kernel, uncompressed
#	disk      the root, an ext4 file system without partitions; mostly holes
#	modules/  what the initramfs loads: NNN-name.ko, and the file order
#	packages  name, version and architecture of every Debian package
#	facts     suite, architecture, kernel release, date of the archive
#
# Started by build.sh, which knows when it has to be. Needs root, or an
# ordinary user's right to make user name spaces; writes to DIR and $TMPDIR only.
set -euo pipefail
umask 022
export LC_ALL=C PATH="$PATH:/usr/sbin:/sbin"

who=testhost
recipe=$(cd "$(dirname "$0")" && pwd)
. "$recipe/../image/debian.sh"

size=8G

# in_root COMMAND...: as somebody who may give files to any user.
in_root() {
	if [ "$mode" = root ]; then "$@"; else unshare --user --map-root-user --map-auto "$@"; fi
}

# The file system is filled as it is made: no loop device, no mount. Device
# nodes stay out, the kernel makes them.
pack_disk() {
	mkdir "$work/root"
	in_root tar -x -C "$work/root" --numeric-owner --exclude='./dev/*' <"$work/root.tar"
	in_root tar -x -C "$work/root" --numeric-owner <"$work/modules.tar"
	truncate -s "$size" "$out/disk"
	in_root mkfs.ext4 -q -F -L testhost -U clear -N 200000 \
		-E "lazy_itable_init=0,lazy_journal_init=0,root_owner=0:0,hash_seed=a1b2c3d4-0000-4000-8000-000000000000" \
		-d "$work/root" "$out/disk"
	in_root rm -rf "$work/root"
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
build_root apt
pack_disk
write_facts
rm -rf "$work"
