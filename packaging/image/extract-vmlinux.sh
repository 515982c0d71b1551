#!/bin/bash
# extract-vmlinux.sh BZIMAGE VMLINUX
#
# Takes the uncompressed kernel (an ELF file, with its PVH entry) out of a
# bzImage. QEMU starts it several times faster than the bzImage where there is
# no KVM, because nothing is decompressed in the guest.
#
# The boot protocol says where it is (Documentation/arch/x86/boot.rst of the
# kernel, "Details of Header Fields"): no searching for magic numbers. After
# the compressed stream, inside payload_length, come 4 bytes with the size
# before compression (for gzip they are part of the stream).
set -euo pipefail

fail() {
	echo "extract-vmlinux: $image: $*" >&2
	exit 1
}

# number OFFSET BYTES: a little-endian number from the image.
number() {
	od -An -v "-tu$2" --endian=little "-j$1" "-N$2" "$image" | tr -d ' '
}

bytes() { # OFFSET COUNT: raw bytes from the image
	dd if="$image" iflag=skip_bytes,count_bytes skip="$1" count="$2" bs=64K status=none
}

unpack() {
	case $(bytes "$start" 6 | od -An -v -tx1 | tr -d ' \n') in
	fd377a585a00) bytes "$start" "$((length - 4))" | xz -dc ;;
	28b52ffd*) bytes "$start" "$((length - 4))" | zstd -qdc ;;
	1f8b08*) bytes "$start" "$length" | gzip -dc ;;
	02214c18*) bytes "$start" "$((length - 4))" | lz4 -qdc ;;
	*) fail "the kernel inside is compressed in a way this script does not know" ;;
	esac
}

[ $# = 2 ] || { echo "usage: extract-vmlinux.sh BZIMAGE VMLINUX" >&2; exit 2; }
image=$1

[ "$(bytes $((0x202)) 4 | tr -d '\0')" = HdrS ] || fail "not a bzImage"
[ "$(number $((0x206)) 2)" -ge $((0x208)) ] || fail "boot protocol before 2.08"
sectors=$(number $((0x1f1)) 1)
[ "$sectors" != 0 ] || sectors=4
start=$(((sectors + 1) * 512 + $(number $((0x248)) 4)))
length=$(number $((0x24c)) 4)
end=$((start + length))
[ "$length" -gt 4 ] && [ "$end" -le "$(stat -Lc %s "$image")" ] ||
	fail "its header points outside of the file"

unpack >"$2" || fail "the kernel inside does not unpack"
size=$(stat -c %s "$2")
[ "$size" = "$(number $((end - 4)) 4)" ] || fail "unpacked to $size bytes, not what it promises"
[ "$(head -c 4 "$2" | od -An -tx1 | tr -d ' ')" = 7f454c46 ] || fail "no ELF file inside"
