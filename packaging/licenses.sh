#!/bin/bash
# licenses.sh PACKAGE...: prints the licenses of all that is linked into these
# programs and is not ours, Go's own library included. Their terms want them to
# go wherever the programs go.
set -euo pipefail
export LC_ALL=C

# one WHAT DIR: each license and notice of one work.
one() {
	local what=$1 dir=$2 file found=
	for file in "$dir"/LICENSE* "$dir"/LICENCE* "$dir"/COPYING* "$dir"/NOTICE*; do
		[ -f "$file" ] || continue
		found=yes
		printf '%s\n%s: %s\n\n' "$line" "$what" "$(basename "$file")"
		cat "$file"
		printf '\n'
	done
	[ -n "$found" ] || { echo "licenses: $what has no license in $dir" >&2; exit 1; }
}

line=$(printf '%078d' 0 | tr 0 =)
one "Go $(go env GOVERSION)" "$(go env GOROOT)"
modules=$(CGO_ENABLED=0 go list -deps -f '{{with .Module}}{{if not .Main}}{{.Path}} {{.Version}} {{.Dir}}{{end}}{{end}}' "$@" | sort -u)
while read -r path version dir; do
	[ -z "$path" ] || one "$path $version" "$dir"
done <<<"$modules"
