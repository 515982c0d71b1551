#!/bin/bash
# share.sh BIN: what lies beside the programs and is made of them or of their
# source: shell completion, descriptions of the D-Bus interfaces, licenses.
# Leaves it in BIN/share.
set -euo pipefail
umask 022
cd "$(dirname "$0")/.."
bin=$1
out=$bin/share

mkdir -p "$out/completions" "$out/interfaces"
"$bin/vmc" completion bash >"$out/completions/vmc"
"$bin/vmc" completion zsh >"$out/completions/_vmc"
"$bin/vmc" completion fish >"$out/completions/vmc.fish"

# A file for each interface of ours, from what the tests hold the service to.
rm -f "$out"/interfaces/*.xml
for object in dbus/testdata/*.xml; do
	awk -v dir="$out/interfaces" '
		NR == 1 { doctype = $0 }
		/^  <interface name="/ {
			split($0, quoted, "\"")
			file = quoted[2] ~ /^org\.freedesktop\./ ? "" : dir "/" quoted[2] ".xml"
			if (file) print doctype "\n<node>" >file
		}
		file { print >file }
		/^  <\/interface>/ { if (file) print "</node>" >file; file = "" }
	' "$object"
done

packaging/licenses.sh "${@:2}" >"$out/third-party-licenses.new"
mv "$out/third-party-licenses.new" "$out/third-party-licenses"
