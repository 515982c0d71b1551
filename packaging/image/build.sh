#!/bin/bash
# build.sh [--agents DIR] [--maitred FILE] [--vshd FILE] [--tremplin FILE]
#	[--garcon FILE] [--out DIR] [--key]
#
# Builds the guest image and prints the directory it is in as its last line;
# all else goes to stderr. What is in it: README.md.
#
# The agents are files of DIR (bin/guest unless given) with their names, or those
# that are named one by one. The image is kept under
# ${XDG_CACHE_HOME:-~/.cache}/auberge/image, in three layers named by a hash of
# all that goes into them: base/ (kernel, modules, root; about a minute),
# container/ (the containers' root; about a minute) and images/ (these two and our
# agents; a few seconds). --out makes a copy in DIR as well, and that is what is
# printed. --key only prints the keys that this run would use, of the base, of
# the containers' root and of the image.
set -euo pipefail
umask 022
export LC_ALL=C

recipe=$(cd "$(dirname "$0")" && pwd)
repo=$(cd "$recipe/../.." && pwd)
layers="base container images"
. "$recipe/cache.sh"

usage() {
	sed -n '2,3s/^#[[:space:]]*//p' "$0" | sed '1s/^/usage: /; 2s/^/\t/' >&2
	exit 2
}

parse_arguments() {
	local agents=$repo/bin/guest agent
	maitred='' vshd='' tremplin='' garcon='' destination='' only_key=
	while [ $# -gt 0 ]; do
		case $1 in
		--key) only_key=yes; shift; continue ;;
		--agents | --maitred | --vshd | --tremplin | --garcon | --out) [ -n "${2:-}" ] || usage ;;
		*) usage ;;
		esac
		case $1 in
		--agents) agents=$2 ;;
		--maitred) maitred=$2 ;;
		--vshd) vshd=$2 ;;
		--tremplin) tremplin=$2 ;;
		--garcon) garcon=$2 ;;
		--out) destination=$2 ;;
		esac
		shift 2
	done
	: "${maitred:=$agents/maitred}" "${vshd:=$agents/vshd}"
	: "${tremplin:=$agents/tremplin}" "${garcon:=$agents/garcon}"
	for agent in "$maitred" "$vshd" "$tremplin" "$garcon"; do
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

# The same for container.sh.
compute_container_key() {
	{
		echo "suite ${AUBERGE_IMAGE_SUITE:-trixie}"
		local file
		for file in container.sh debian.sh ../deps/apt.sh; do
			echo "$file $(hash_of "$recipe/$file")"
		done
		(cd "$recipe/container" && find . -type f | sort | xargs -d '\n' sha256sum)
	} | sha256sum | cut -c1-32
}

compute_image_key() {
	{
		echo "base $base_key"
		echo "container $container_key"
		echo "maitred $(hash_of "$maitred")"
		echo "vshd $(hash_of "$vshd")"
		echo "tremplin $(hash_of "$tremplin")"
		echo "garcon $(hash_of "$garcon")"
		echo "recipe $(declare -f make_tools | sha256sum)"
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

# ensure_layer LAYER KEY SCRIPT: has the layer's entry made unless it is there and
# whole.
ensure_layer() {
	local layer=$1 entry=$cache/$1/$2 script=$3
	if (cd "$entry" && sha256sum --quiet --check sums) 2>/dev/null; then
		touch "$entry"
		return
	fi
	say "building the $layer, which takes a minute"
	local started=$SECONDS
	mkdir "$temporary/$layer"
	"$recipe/$script" "$temporary/$layer" >&2
	(cd "$temporary/$layer" && find . -type f ! -name sums -exec sha256sum {} + >sums)
	install_entry "$temporary/$layer" "$entry"
	say "$layer built in $((SECONDS - started)) s"
}

# make_tools FILE TIME: the disk with what containers are made of and run from.
# Programs only: the image's own bytes are packed already.
make_tools() {
	local tools=$temporary/tools container=$cache/container/$container_key
	mkdir -p "$tools/bin" "$tools/image"
	install -m 755 -T "$tremplin" "$tools/bin/tremplin"
	install -m 755 -T "$garcon" "$tools/bin/garcon"
	install -m 755 -T "$vshd" "$tools/bin/vshd"
	link "$container/metadata.tar.xz" "$tools/image"
	link "$container/rootfs.squashfs" "$tools/image"
	tar -c -C "$tools" --sort=name --owner=0 --group=0 --numeric-owner --mode='u=rwX,go=rX' \
		--mtime="@$2" . |
		tar2sqfs --quiet --compressor zstd --comp-extra level=6 --block-size 131072 "$1"
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
	ensure_layer base "$base_key" base.sh
	ensure_layer container "$container_key" container.sh
	local new=$temporary/image base=$cache/base/$base_key created
	mkdir "$new"
	created=$(sed -n 's/^created=//p' "$base/facts")
	link "$base/vmlinux" "$new"
	link "$base/rootfs.squashfs" "$new"
	"$temporary/bin/mkinitramfs" -output "$new/initramfs.cpio" -time "$created" \
		"init=$maitred" "vshd=$vshd" "modules=$base/modules"
	make_tools "$new/tools.squashfs" "$created"
	"$temporary/bin/mkmanifest" -facts "$base/facts" -packages "$base/packages" \
		-container-packages "$cache/container/$container_key/packages" \
		-features tremplin -key "$image_key" -base-key "$base_key" -container-key "$container_key" "$new"
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
container_key=$(compute_container_key)
image_key=$(compute_image_key)
if [ -n "$only_key" ]; then
	printf '%s\n' "$base_key" "$container_key" "$image_key"
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
