# shellcheck shell=bash
# A cache of what is slow to build, in layers of entries that are named by a
# hash of what went into them: sourced by build.sh here, and by
# ../testhost/build.sh. Both set layers (the cache's subdirectories) and may set
# who (the word before each message). What is set here is cache and temporary.

keep=4   # entries of each layer
rest=180 # minutes since its last use, before an entry goes

say() { echo "${who:-image}: $*" >&2; }
fail() { say "$*"; exit 1; }

# hash_of FILE...: one hash of the contents of files, whatever their place.
hash_of() { cat -- "$@" | sha256sum | cut -c1-64; }

# lock_cache NAME: one builder at a time: the second waits, then finds the work done. What a
# killed builder left behind is removed by the next.
lock_cache() {
	[ -n "${XDG_CACHE_HOME:-}${HOME:-}" ] || fail "neither XDG_CACHE_HOME nor HOME is set"
	cache=${XDG_CACHE_HOME:-$HOME/.cache}/auberge/$1
	local layer
	for layer in $layers; do mkdir -p "$cache/$layer"; done
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

# install_entry FROM TO: an entry appears in the cache at once and whole, or
# not at all, power cuts included.
install_entry() {
	chmod 755 "$1"
	find "$1" -type f -exec sync {} +
	rm -rf "$2"
	mv -T "$1" "$2"
	sync "$(dirname "$2")"
}

# link FILE DIR: the same file once more, without its bytes where possible.
link() { cp --link "$1" "$2/" 2>/dev/null || cp --reflink=auto "$1" "$2/"; }

# What was not used for longest goes, but not what somebody may be testing with
# right now. A VM that runs from such an image keeps its files open and does not
# notice.
prune() {
	local layer
	for layer in $layers; do
		ls -1dt "$cache/$layer"/* | tail -n "+$((keep + 1))" |
			xargs -r -d '\n' -I '{}' find '{}' -maxdepth 0 -mmin "+$rest" -print0 | xargs -r -0 rm -rf
	done
}
