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
keep=4   # entries of each layer
rest=180 # minutes since its last use, before an entry goes

say() { echo "image: $*" >&2; }
fail() { say "$*"; exit 1; }

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

# hash_of FILE...: one hash of the contents of files, whatever their place.
hash_of() { cat -- "$@" | sha256sum | cut -c1-64; }

# The hash of everything that decides what base.sh makes, the state of Debian's
# archive excepted: a point release gives no new key. Delete the cache for that.
compute_base_key() {
	{
		echo "suite ${AUBERGE_IMAGE_SUITE:-trixie}"
		local file
		for file in base.sh customize.sh extract-vmlinux.sh packages.list \
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

# One builder at a time: the second waits, then finds the work done. What a
# killed builder left behind is removed by the next.
lock_cache() {
	mkdir -p "$cache/base" "$cache/images"
	exec 9>"$cache/lock"
	if ! flock --nonblock 9; then
		say "waiting for another build to finish"
		flock 9
	fi
	rm -rf "$cache"/tmp.*
	temporary=$(mktemp -d "$cache/tmp.XXXXXX")
	trap 'rm -rf "$temporary"' EXIT
	trap 'exit 1' HUP INT TERM
}

build_tools() {
	mkdir "$temporary/bin"
	# Not with our lock in hand: go may leave a helper of its own running.
	(cd "$repo" && go build -buildvcs=false -o "$temporary/bin/" \
		./packaging/image/mkinitramfs ./packaging/image/mkmanifest) 9>&-
}

# install_entry FROM TO: an entry appears in the cache at once and whole, or
# not at all, power cuts included.
install_entry() {
	chmod 755 "$1"
	find "$1" -type f -exec sync {} +
	rm -rf "$2"
	mv -T "$1" "$2"
	sync "$(dirname "$2")"
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

# link FILE DIR: the same file once more, without its bytes where possible.
link() { cp --link "$1" "$2/" 2>/dev/null || cp --reflink=auto "$1" "$2/"; }

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

# What was not used for longest goes, but not what somebody may be testing with
# right now. A VM that runs from such an image keeps its files open and does not
# notice.
prune() {
	local layer
	for layer in base images; do
		ls -1dt "$cache/$layer"/* | tail -n "+$((keep + 1))" |
			xargs -r -d '\n' -I '{}' find '{}' -maxdepth 0 -mmin "+$rest" -print0 | xargs -r -0 rm -rf
	done
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

[ -n "${XDG_CACHE_HOME:-}${HOME:-}" ] || fail "neither XDG_CACHE_HOME nor HOME is set"
cache=${XDG_CACHE_HOME:-$HOME/.cache}/auberge/image
lock_cache
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
