#!/bin/bash
# install.sh programs|image: puts what is built at its place below DESTDIR.
# `make install` and `make install-image` run it, and so do the packages, which
# are made of the tree that this leaves. It builds nothing, so root need not.
#
# The places come from the environment; their defaults follow PREFIX.
set -euo pipefail
umask 022
shopt -s nullglob
cd "$(dirname "$0")/.."

prefix=${PREFIX:-/usr/local}
bin=${BIN:-bin}
dest=${DESTDIR:-}
bindir=${BINDIR:-$prefix/bin}
libexecdir=${LIBEXECDIR:-$prefix/libexec/auberge}
datadir=${DATADIR:-$prefix/share}
mandir=${MANDIR:-$datadir/man}
docdir=${DOCDIR:-$datadir/doc/auberge}
sysconfdir=${SYSCONFDIR:-/etc}
# systemd looks for all of these below /usr/local too.
unitdir=${UNITDIR:-$prefix/lib/systemd/system}
sysusersdir=${SYSUSERSDIR:-$prefix/lib/sysusers.d}
tmpfilesdir=${TMPFILESDIR:-$prefix/lib/tmpfiles.d}
zshdir=${ZSHDIR:-$datadir/zsh/site-functions}
# The image is where vm_concierge looks for it when nobody says otherwise.
imagedir=${IMAGEDIR:-/usr/share/auberge/image}
# The bus and polkit do not look everywhere below /usr/local: what they would
# not find there goes into /etc, and polkit's actions have one place only.
case $prefix in
/usr) policydir=/usr/share ;;
*) policydir=/etc ;;
esac
buspolicydir=${BUSPOLICYDIR:-$policydir/dbus-1/system.d}
polkitrulesdir=${POLKITRULESDIR:-$policydir/polkit-1/rules.d}
polkitactionsdir=${POLKITACTIONSDIR:-/usr/share/polkit-1/actions}

fail() { echo "install: $*" >&2; exit 1; }

# put MODE DIRECTORY FILE...
put() {
	local mode=$1 dir=$dest$2 file
	shift 2
	install -d "$dir"
	for file in "$@"; do
		[ -f "$file" ] || fail "$file is not there: run make first"
		install -m "$mode" "$file" "$dir/"
	done
}

# put_filled DIRECTORY FILE...: the same for files that say where others are.
put_filled() {
	local dir=$1 file
	shift
	for file in "$@"; do
		put 644 "$dir" "$file"
		sed -i -e "s#@LIBEXECDIR@#$libexecdir#g" -e "s#@BINDIR@#$bindir#g" \
			-e "s#@SYSCONFDIR@#$sysconfdir#g" -e "s#@IMAGEDIR@#$imagedir#g" \
			"$dest$dir/$(basename "$file")"
		! grep -n '@[A-Z]*DIR@' "$dest$dir/$(basename "$file")" ||
			fail "$file: a place that nobody filled in"
	done
}

# put_man PAGE...: packed as distributions do, the same bytes every time.
put_man() {
	local page section
	for page in "$@"; do
		[ -f "$page" ] || fail "$page is not there: run make first"
		section=${page##*.}
		install -d "$dest$mandir/man$section"
		gzip -9n <"$page" >"$dest$mandir/man$section/$(basename "$page").gz"
	done
}

programs() {
	local program
	local mode
	for program in $DAEMONS; do
		# Who opens a file as a user runs this program as that user, who could
		# trace it if it were readable, and so get processes among the helper's.
		[ "$program" = auberge-helper ] && mode=711 || mode=755
		put "$mode" "$libexecdir" "$bin/$program"
	done
	for program in $CLIENTS; do put 755 "$bindir" "$bin/$program"; done

	put_filled "$unitdir" packaging/systemd/*.*
	put_filled "$datadir/dbus-1/system-services" packaging/dbus/*.service
	put 644 "$buspolicydir" policy/bus/org.*.conf
	put 644 "$polkitactionsdir" policy/polkit/*.policy
	put 644 "$polkitrulesdir" policy/polkit/*.rules
	put 644 "$sysusersdir" packaging/sysusers/auberge.conf
	put 644 "$tmpfilesdir" packaging/tmpfiles/auberge.conf
	# An administrator's file stays; a package manager has its own ways.
	if [ -n "$dest" ] || [ ! -e "$sysconfdir/auberge/auberge.conf" ]; then
		put 644 "$sysconfdir/auberge" packaging/auberge.conf
	fi

	put_man "$bin"/man/*.[1-8]
	put 644 "$datadir/bash-completion/completions" "$bin/share/completions/vmc"
	put 644 "$zshdir" "$bin/share/completions/_vmc"
	put 644 "$datadir/fish/vendor_completions.d" "$bin/share/completions/vmc.fish"

	# For clients in other languages.
	put 644 "$datadir/auberge/proto" protos/*.proto
	put 644 "$datadir/dbus-1/interfaces" "$bin"/share/interfaces/*.xml
	local example
	for example in examples/*/; do
		put 644 "$docdir/$example" $(git_or_all "$example")
	done

	put 644 "$docdir" README.md ARCHITECTURE.md docs/*.md LICENSE "$bin/share/third-party-licenses"
}

# The files of a directory that belong to the source: no node_modules, no
# generated code that somebody left there.
git_or_all() {
	git ls-files -- "$1" 2>/dev/null | grep . || find "$1" -maxdepth 1 -type f
}

image() {
	put 644 "$imagedir" "${IMAGE:?}"/{manifest.json,vmlinux,initramfs.cpio,rootfs.squashfs,tools.squashfs}
}

case ${1:-} in
programs | image) "$1" ;;
*) echo "usage: install.sh programs|image" >&2; exit 2 ;;
esac
