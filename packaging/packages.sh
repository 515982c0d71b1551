#!/bin/bash
# packages.sh: makes the packages in BIN/packages from what is built: auberge
# and auberge-image as .deb and .rpm, and Debian's vhost-device-vsock beside
# them. `make packages` runs it. The environment: BIN, IMAGE (a directory),
# VERSION, SOURCE_DATE_EPOCH, DAEMONS, CLIENTS.
#
# Everything is dated to SOURCE_DATE_EPOCH and nothing of the machine goes in,
# so that the same source gives the same bytes.
set -euo pipefail
umask 022
export LC_ALL=C TZ=UTC
cd "$(dirname "$0")/.."
. packaging/deps/vsock.sh

SOURCE_DATE_EPOCH=$(packaging/version.sh date)
VERSION=$(packaging/version.sh version)
export SOURCE_DATE_EPOCH VERSION
bin=$(cd "${BIN:-bin}" && pwd)
export BIN=$bin
maintainer='The Auberge authors <auberge-vm@users.noreply.github.com>'
work=$bin/package-trees
out=$bin/packages

say() { echo "packages: $*" >&2; }
fail() { say "$*"; exit 1; }

# stage PACKAGE KIND: the tree that becomes a package.
stage() {
	local package=$1 kind=$2 what=programs zsh=/usr/share/zsh/site-functions
	local tree=$work/$package.$kind
	[ "$package" = auberge ] || what=image
	[ "$kind" = rpm ] || zsh=/usr/share/zsh/vendor-completions
	DESTDIR=$tree PREFIX=/usr ZSHDIR=$zsh packaging/install.sh "$what"
	"stage_$kind" "$package" "$tree"
}

# What only Debian's packages have.
stage_deb() {
	local package=$1 doc=$2/usr/share/doc/$1 copyright=packaging/debian/copyright
	install -d "$doc" "$2/usr/share/lintian/overrides"
	[ "$package" = auberge ] || copyright=$copyright.image
	install -m 644 "$copyright" "$doc/copyright"
	# The licence is common to many packages of Debian, which has it elsewhere.
	rm -f "$doc/LICENSE"
	[ "$package" = auberge ] || gzip -9n <"$bin/share/third-party-licenses" >"$doc/third-party-licenses.gz"
	changelog "$package" | gzip -9n >"$doc/changelog.Debian.gz"
	install -m 644 "packaging/debian/$package.lintian-overrides" "$2/usr/share/lintian/overrides/$package"
}

changelog() {
	cat <<-END
		$1 ($VERSION-1) unstable; urgency=medium

		  * Packages of this version of the source; its history is with it.

		 -- $maintainer  $(date -Rud "@$SOURCE_DATE_EPOCH")
	END
}

# What only the others have.
stage_rpm() {
	local licenses=$2/usr/share/licenses/$1
	install -d "$licenses"
	install -m 644 LICENSE "$licenses/"
	install -m 644 "$bin/share/third-party-licenses" "$licenses/"
	rm -f "$2/usr/share/doc/$1"/{LICENSE,third-party-licenses}
	[ "$1" = auberge ] || install -m 644 packaging/debian/copyright.image "$licenses/copyright"
}

# contents TREE: the files of a tree as nfpm's list, in a fixed order.
contents() {
	local tree=$1 file type
	echo contents:
	(cd "$tree" && find . -mindepth 1 \( ! -type d -o -path '*/auberge*' \) | sort) | while IFS= read -r file; do
		file=${file#.}
		type=
		if [ -d "$tree$file" ]; then
			printf -- '- dst: "%s"\n  type: dir\n' "$file"
		else
			case $tree$file in
			*.deb/etc/* | *.rpm/etc/*) type='config|noreplace' ;;
			*.rpm/usr/share/licenses/*) type=license ;;
			*.rpm/usr/share/doc/*) type=doc ;;
			esac
			printf -- '- src: "%s"\n  dst: "%s"\n' "$tree$file" "$file"
			[ -z "$type" ] || printf '  type: "%s"\n' "$type"
		fi
		printf '  file_info: {mode: 0%s, owner: root, group: root}\n' "$(stat -c %a "$tree$file")"
	done
}

# pack PACKAGE KIND
pack() {
	local package=$1 kind=$2 recipe=$work/$1.$2.yaml
	stage "$package" "$kind"
	# Debian's description begins with the summary, which rpm has by itself.
	local describe=
	[ "$kind" = deb ] || describe='/^description:/{n;d}; s/^  \.$//'
	{
		sed -e "$describe" -e "s#@VERSION@#$VERSION#" -e "s#@MAINTAINER@#$maintainer#" \
			-e "s#@SCRIPTS@#$PWD/packaging#" "packaging/nfpm/$package.yaml.in"
		echo 'disable_globbing: true'
		contents "$work/$package.$kind"
	} >"$recipe"
	say "$package, .$kind"
	${GO:-go} tool -modfile=packaging/tools/go.mod nfpm package \
		--config "$recipe" --packager "$kind" --target "$work/out/" >"$work/log" 2>&1 || fail "nfpm: $(<"$work/log")"
}

rm -rf "$work"
mkdir -p "$work/out"
for package in auberge auberge-image; do
	for kind in deb rpm; do
		pack "$package" "$kind"
	done
done
vsock_deb "$work/out"
(cd "$work/out" && sha256sum -- *.deb *.rpm >SHA256SUMS)
rm -rf "$out"
mv "$work/out" "$out"
rm -rf "$work"
ls -sh "$out" >&2
