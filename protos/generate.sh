#!/bin/sh
# Generates the Go code of every .proto file here.
# Usage: generate.sh [OUTDIR]. OUTDIR defaults to this directory.
# The output does not depend on the protoc version. Hand-written files in the
# package directories stay; generated ones whose .proto is gone are removed.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
out=${1:-$here}
mkdir -p "$out"
out=$(cd "$out" && pwd)
cd "$here"
module=github.com/auberge-vm/auberge/protos

command -v protoc >/dev/null || {
	echo "generate.sh: protoc is missing: run make deps" >&2
	exit 1
}
gen_go=$(go tool -n protoc-gen-go)
gen_grpc=$(go tool -n protoc-gen-go-grpc)

# Generate aside, so that a mistake in a .proto file leaves the old code alone.
tmp=$(mktemp -d "$out/.generate.XXXXXX")
trap 'rm -rf "$tmp"' EXIT

# -I include first: whether the host has protobuf's own .proto files must not
# matter.
protoc -I include -I . \
	--plugin=protoc-gen-go="$gen_go" \
	--plugin=protoc-gen-go-grpc="$gen_grpc" \
	--go_out="$tmp" --go_opt=module="$module" \
	--go-grpc_out="$tmp" --go-grpc_opt=module="$module" \
	./*.proto

# The header names the protoc version, which differs between distributions.
find "$tmp" -name '*.pb.go' \
	-exec sed -i -E '1,/^package /{/^\/\/ [-\t ]*protoc +(v[0-9]|\(unknown)/d; }' {} +

for dir in "$tmp"/*pb; do
	to=$out/${dir##*/}
	mkdir -p "$to"
	for old in "$to"/*.pb.go; do
		[ -e "$dir/${old##*/}" ] || rm -f "$old"
	done
	mv "$dir"/*.pb.go "$to"
done
