#!/bin/bash
# container.sh DIR
#
# Builds the image of the containers in the empty directory DIR, in the two
# files that Incus calls a split image, and what is said of it:
#
#	rootfs.squashfs  the root
#	metadata.tar.xz  metadata.yaml and templates for its files
#	packages         name, version and architecture of every Debian package
#
# Started by build.sh, which knows when it has to be. Needs what base.sh needs.
set -euo pipefail
umask 022
export LC_ALL=C PATH="$PATH:/usr/sbin:/sbin"

recipe=$(cd "$(dirname "$0")" && pwd)/container
. "$recipe/../debian.sh"

# What container/files holds goes on top of the root: files alone, so that their
# directories stay as the packages made them.
add_files() {
	(cd "$recipe/files" && find . -type f -print0 | sort -z) |
		tar -c -C "$recipe/files" --null --files-from=- --owner=0 --group=0 --numeric-owner \
			--mode='u=rwX,go=rX' --mtime="@$SOURCE_DATE_EPOCH" >"$work/files.tar"
	tar --concatenate --file="$work/root.tar" "$work/files.tar"
}

# Incus unpacks it once for each VM: what is small is what counts.
pack_root() {
	tar2sqfs --quiet --compressor zstd --comp-extra level=15 --block-size 262144 \
		"$out/rootfs.squashfs" <"$work/root.tar"
}

pack_metadata() {
	mkdir "$work/metadata"
	sed -e "s/@CREATED@/$SOURCE_DATE_EPOCH/" -e "s/@SUITE@/$suite/" \
		"$recipe/metadata.yaml.in" >"$work/metadata/metadata.yaml"
	cp -r "$recipe/templates" "$work/metadata/"
	tar -c -C "$work/metadata" --sort=name --owner=0 --group=0 --numeric-owner \
		--mode='u=rwX,go=rX' --mtime="@$SOURCE_DATE_EPOCH" metadata.yaml templates |
		xz -6 >"$out/metadata.tar.xz"
}

[ $# = 1 ] && [ -d "$1" ] || { echo "usage: container.sh DIR" >&2; exit 2; }
out=$(cd "$1" && pwd)
work=$out/work
mkdir "$work"
choose_mode
find_archive
build_root apt
add_files
pack_root
pack_metadata
list_packages >"$out/packages"
rm -rf "$work"
