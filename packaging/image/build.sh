#!/bin/bash
# build.sh [--maitred FILE] [--vshd FILE] [--out DIR] [--key]
#
# Builds the guest image and prints the directory it is in as its last line;
# all else goes to stderr. What is in it: README.md.
#
# The image is kept under ${XDG_CACHE_HOME:-~/.cache}/auberge/image, in two
# layers named by a hash of all that goes into them: base/ (kernel, modules,
# root; about a minute) and images/ (base and our agents; a second). --out makes
# a copy in DIR as well, and that is what is printed. --key only prints the keys
# that this run would use, of the base and of the image.
set -euo pipefail
umask 022
export LC_ALL=C

recipe=$(cd "$(dirname "$0")" && pwd)
repo=$(cd "$recipe/../.." && pwd)
layers="base images"
. "$recipe/cache.sh"

usage() {
	echo "usage: build.sh [--maitred FILE] [--vshd FILE] [--out DIR] [--key]" >&2
	exit 2
}

parse_arguments() {
	maitred=$repo/bin/guest/maitred vshd=$repo/bin/guest/vshd destination='' only_key=
	while [ $# -gt 0 ]; do
		case $1 in
		--key) only_key=yes; shift; continue ;;
		--maitred | --vshd | --out) [ -n "${2:-}" ] || usage ;;
		*) usage ;;
		esac
		case $1 in
		--maitred) maitred=$2 ;;
		--vshd) vshd=$2 ;;
		--out) destination=$2 ;;
		esac
		shift 2
	done
	local agent
	for agent in "$maitred" "$vshd"; do
		[ -f "$agent" ] || fail "$agent is not there: make build makes it"
	done
}

# The hash of everything that decides what base.sh makes, the state of Debian's
# archive excepted: a point release gives no new key. Delete the cache for that.
compute_base_key() {
	{
		echo "suite ${AUBERGE_IMAGE_SUITE:-trixie}"
		local file
		for file in base.sh debian.sh customize.sh extract-vmlinux.sh packages.list \
			modules-initramfs.list modules-root.list ../deps/apt.sh; do
			echo "$file $(hash_of "$recipe/$file")"
		done
	} | sha256sum | cut -c1-32
}

compute_image_key() {
	{
		echo "base $base_key"
		echo "maitred $(hash_of "$maitred")"
		echo "vshd $(hash_of "$vshd")"
		echo "tools $(hash_of "$recipe"/mkinitramfs/main.go "$recipe"/mkmanifest/main.go \
			"$recipe"/manifest.go)"
	} | sha256sum | cut -c1-32
}

build_tools() {
	mkdir "$temporary/bin"
	# Not with our lock in hand: go may leave a helper of its own running.
	(cd "$repo" && go build -buildvcs=false -o "$temporary/bin/" \
		./packaging/image/mkinitramfs ./packaging/image/mkmanifest) 9>&-
}

ensure_base() {
	base=$cache/base/$base_key
	if (cd "$base" && sha256sum --quiet --check sums) 2>/dev/null; then
		touch "$base"
		return
	fi
	say "building the base, which takes a minute"
	local started=$SECONDS
	mkdir "$temporary/base"
	"$recipe/base.sh" "$temporary/base" >&2
	(cd "$temporary/base" && find . -type f ! -name sums -exec sha256sum {} + >sums)
	install_entry "$temporary/base" "$base"
	say "base built in $((SECONDS - started)) s"
}

ensure_image() {
	image=$cache/images/$image_key
	if [ -d "$image" ]; then
		if "$temporary/bin/mkmanifest" -check "$image"; then
			touch "$image"
			return
		fi
		say "what the cache has of it is damaged: building it anew"
	fi
	ensure_base
	local new=$temporary/image created
	mkdir "$new"
	created=$(sed -n 's/^created=//p' "$base/facts")
	link "$base/vmlinux" "$new"
	link "$base/rootfs.squashfs" "$new"
	"$temporary/bin/mkinitramfs" -output "$new/initramfs.cpio" -time "$created" \
		"init=$maitred" "vshd=$vshd" "modules=$base/modules"
	"$temporary/bin/mkmanifest" -facts "$base/facts" -packages "$base/packages" \
		-key "$image_key" -base-key "$base_key" "$new"
	install_entry "$new" "$image"
}

# export_image DIR: makes DIR the image, in the place of an older one only.
export_image() {
	local to=$1 new=$1.new.$$ old=$1.old.$$
	if [ -e "$to" ] && cmp -s "$image/manifest.json" "$to/manifest.json" &&
		"$temporary/bin/mkmanifest" -check "$to"; then
		return
	fi
	if [ -e "$to" ] && [ ! -f "$to/manifest.json" ] && ! rmdir "$to" 2>/dev/null; then
		fail "$to is something else than a guest image: not replaced"
	fi
	mkdir -p "$(dirname "$to")"
	mkdir "$new"
	local file
	for file in "$image"/*; do
		cp --reflink=auto "$file" "$new/"
	done
	[ ! -e "$to" ] || mv -T "$to" "$old"
	mv -T "$new" "$to"
	rm -rf "$old"
}

parse_arguments "$@"
base_key=$(compute_base_key)
image_key=$(compute_image_key)
if [ -n "$only_key" ]; then
	printf '%s\n%s\n' "$base_key" "$image_key"
	exit
fi

lock_cache image
build_tools
ensure_image
prune
if [ -n "$destination" ]; then
	export_image "$destination"
	image=$(cd "$destination" && pwd)
fi
say "kernel $(sed -n 's/^ *"kernel_release": "\(.*\)",*$/\1/p' "$image/manifest.json")," \
	"$(du -shL "$image" | cut -f1) in $image"
echo "$image"
