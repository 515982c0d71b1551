#!/bin/bash
# version.sh version|date: what the packages are called, and the second to
# which everything in them is dated. VERSION and SOURCE_DATE_EPOCH in the
# environment win; then git; without git, the file VERSION alone.
set -euo pipefail
cd "$(dirname "$0")/.."

case ${1:-} in
version)
	if [ -n "${VERSION:-}" ]; then
		echo "$VERSION"
	elif count=$(git rev-list --count HEAD 2>/dev/null); then
		# ~ sorts before: what is built on the way to a release is older than it.
		echo "$(cat VERSION)~git$count"
	else
		cat VERSION
	fi
	;;
date)
	if [ -n "${SOURCE_DATE_EPOCH:-}" ]; then
		echo "$SOURCE_DATE_EPOCH"
	else
		git log -1 --format=%ct 2>/dev/null || stat -c %Y VERSION
	fi
	;;
*)
	echo "usage: version.sh version|date" >&2
	exit 2
	;;
esac
