# shellcheck shell=bash
# Making a Debian root and its kernel: sourced by base.sh here, and by
# ../testhost/base.sh, which makes the machine that tests run in. Both set
# recipe (where the lists are), out (where the results go), work (where all else
# goes) and may set who (the word before each message). What is set here is mode,
# release, SOURCE_DATE_EPOCH, suite and arch.

. "$(dirname "${BASH_SOURCE[0]}")/../deps/apt.sh"

suite=${AUBERGE_IMAGE_SUITE:-trixie}
arch=amd64

say() { echo "${who:-image}: $*" >&2; }
fail() { say "$*"; exit 1; }

# A recipe list without comments.
list() { sed -E 's/[[:space:]]*#.*//; /^$/d' "$recipe/$1"; }

# How mmdebstrap gets to be root in the new root.
choose_mode() {
	if [ "$(id -u)" = 0 ]; then
		mode=root
		return
	fi
	mode=unshare
	local me uid
	me=$(id -un) uid=$(id -u)
	command -v newuidmap >/dev/null ||
		fail "newuidmap is missing: install the package uidmap, or build the image as root"
	grep -qE "^($me|$uid):" /etc/subuid 2>/dev/null && grep -qE "^($me|$uid):" /etc/subgid 2>/dev/null ||
		fail "$me has no subordinate ids, which a root file system needs: as root run" \
			"'usermod --add-subuids 100000-165535 --add-subgids 100000-165535 $me', or build the image as root"
	unshare --user --map-root-user true 2>/dev/null ||
		fail "this machine does not let ordinary users make user name spaces" \
			"(sysctl kernel.unprivileged_userns_clone, user.max_user_namespaces," \
			"kernel.apparmor_restrict_unprivileged_userns): build the image as root"
}

# A private apt for the suite and its security updates; its lines are what
# mmdebstrap installs from too.
find_archive() {
	local main security
	main=$(apt_find "$work/apt" main "$suite")
	if security=$(apt_find "$work/security" security "$suite-security"); then
		apt_private "$work/apt" "$suite=$main" "$suite-security=$security"
	else
		say "apt is configured without Debian's security archive: the image is without its updates"
	fi
	# Everything in the image is dated like the archive it came from, so that
	# the same archive gives the same bytes.
	SOURCE_DATE_EPOCH=$(sed -n 's/^Date: //p' "$work"/apt/state/lists/*Release |
		while read -r date; do date -d "$date" +%s; done | sort -n | tail -n 1)
	export SOURCE_DATE_EPOCH
}

# The kernel's package is unpacked, not installed: installing would drag in
# what makes initramfs images.
fetch_kernel() {
	local package
	package=$(apt_in "$work/apt" apt-cache depends --important "linux-image-$arch" |
		sed -n 's/^ *Depends: \(linux-image-[^ ]*\)$/\1/p' | head -n 1)
	[ -n "$package" ] || fail "$suite has no kernel"
	say "kernel: $package"
	mkdir "$work/kernel"
	(cd "$work/kernel" && apt_in "$work/apt" apt-get -q download "$package" >&2)
	dpkg-deb --fsys-tarfile "$work/kernel/"*.deb | tar -x -C "$work/kernel" --no-same-owner
	dpkg-deb -f "$work/kernel/"*.deb Package Version Architecture |
		sed 's/^[^:]*: //' | paste -s >"$work/kernel.package"
	release=$(basename "$work"/kernel/boot/vmlinuz-*)
	release=${release#vmlinuz-}
	"$(dirname "${BASH_SOURCE[0]}")/extract-vmlinux.sh" "$work/kernel/boot/vmlinuz-$release" "$out/vmlinux"
	depmod -b "$work/kernel/usr" "$release"
}

# module_files MODULE...: the files of modules, each after what it depends on,
# without what is built in.
module_files() {
	local module
	for module in "$@"; do
		modprobe -d "$work/kernel/usr" -C /dev/null -S "$release" --show-depends "$module" ||
			fail "the kernel has no module $module"
	done | awk '$1 == "insmod" && !seen[$2]++ { print $2 }'
}

# unpack_module FROM TO
#
# Uncompressed, because the guest would do that much slower, and without the
# signature: to check it costs an emulated guest 30 ms a module and half the
# time to load btrfs, and protects nothing, as the guest's root may load
# unsigned modules anyway. The signature is the file's tail (struct
# module_signature of the kernel: its length are the last 4 bytes before the
# mark, big-endian).
unpack_module() {
	local mark='~Module signature appended~' length
	case $1 in
	*.xz) xz -dc "$1" ;;
	*.zst) zstd -qdc "$1" ;;
	*.gz) gzip -dc "$1" ;;
	*) cat "$1" ;;
	esac >"$2"
	if [ "$(tail -c 28 "$2" | tr -d '\0')" = "$mark" ]; then
		length=$((16#$(tail -c 32 "$2" | head -c 4 | od -An -tx1 | tr -d ' ')))
		truncate -s "-$((28 + 12 + length))" "$2"
	fi
}

initramfs_modules() {
	local file name number=0
	mkdir "$out/modules"
	module_files $(list modules-initramfs.list) >"$work/initramfs.list"
	while read -r file; do
		number=$((number + 1))
		name=$(basename "${file%.ko*}.ko")
		name=$(printf '%03d-%s' "$number" "$name")
		unpack_module "$file" "$out/modules/$name"
		echo "$name" >>"$out/modules/order"
	done <"$work/initramfs.list"
	[ -s "$out/modules/order" ] || fail "no modules for the initramfs"
}

# The root's modules, as a tar archive that goes on top of the root.
root_modules() {
	local from=$work/kernel/usr/lib/modules/$release to=$work/modules/usr/lib/modules/$release file target
	mkdir -p "$to"
	module_files $(list modules-initramfs.list) $(list modules-root.list) >"$work/root.list"
	while read -r file; do
		target=$to/${file#"$from/"}
		target=${target%.ko*}.ko
		mkdir -p "$(dirname "$target")"
		unpack_module "$file" "$target"
	done <"$work/root.list"
	cp "$from"/modules.builtin "$from"/modules.builtin.modinfo "$from"/modules.order "$to/"
	# The order file names all modules; depmod must not complain about those
	# that are left out.
	depmod -b "$work/modules/usr" "$release" 2>&1 | grep -v 'modules.order' >&2 || true
	tar -c -C "$work/modules" --sort=name --owner=0 --group=0 --numeric-owner \
		--mtime="@$SOURCE_DATE_EPOCH" ./usr/lib/modules >"$work/modules.tar"
}

# build_root VARIANT: the root as $work/root.tar, without its modules.
build_root() {
	local include options=() line
	include=$(list packages.list | paste -sd,)
	while IFS= read -r line; do
		options+=("--aptopt=$line")
	done < <(apt_acquire_options)
	say "root: Debian $suite and $(list packages.list | wc -l) packages (half a minute)"
	# Not from here: in a user name space it may not see this directory.
	(cd / && mmdebstrap --mode="$mode" --variant="$1" --format=tar --quiet \
		--architectures="$arch" --include="$include" \
		--aptopt='APT::Install-Recommends "false"' \
		--aptopt='Acquire::Languages "none"' "${options[@]}" \
		--dpkgopt='path-exclude=/usr/share/man/*' \
		--dpkgopt='path-exclude=/usr/share/locale/*' \
		--dpkgopt='path-exclude=/usr/share/doc/*' \
		--customize-hook="$(cat "$recipe/customize.sh")" \
		"$suite" - - <"$work/apt/sources.list") >"$work/root.tar"
	tar -xOf "$work/root.tar" ./var/lib/dpkg/status >"$work/status"
}

# list_packages: name, version and architecture of the root's packages.
list_packages() {
	awk -v RS= -v FS='\n' -v OFS='\t' '{
		delete field
		for (i = 1; i <= NF; i++)
			if (match($i, /^[A-Z][A-Za-z-]*: /))
				field[substr($i, 1, RLENGTH - 2)] = substr($i, RLENGTH + 1)
		print field["Package"], field["Version"], field["Architecture"]
	}' "$work/status" | sort
}

write_facts() {
	{
		list_packages
		cat "$work/kernel.package"
	} | sort >"$out/packages"
	cat >"$out/facts" <<-FACTS
		suite=$suite
		architecture=$arch
		kernel_release=$release
		created=$SOURCE_DATE_EPOCH
	FACTS
}
