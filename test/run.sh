#!/usr/bin/env bash
# Everything that `make test` tests, suite by suite, each within a budget.
# Every suite runs, whatever became of the one before; one that fails or takes
# too long makes the whole red.
set -uo pipefail
cd "$(dirname "$0")/.."

failed=()

# suite NAME BUDGET COMMAND...: run a command within so many seconds.
suite() {
	local name=$1 budget=$2 began=$SECONDS code
	shift 2
	printf '\n=== %s (budget %d s)\n' "$name" "$budget"
	timeout --kill-after=30 "$budget" "$@"
	code=$?
	printf '=== %s: %s after %d s of %d s\n' "$name" \
		"$([ $code = 0 ] && echo ok || { [ $code = 124 ] && echo 'OUT OF TIME' || echo "FAILED ($code)"; })" \
		$((SECONDS - began)) "$budget"
	[ $code = 0 ] || failed+=("$name")
}

formatted() {
	local bad
	bad=$(git ls-files '*.go' | grep -v '\.pb\.go$' | xargs gofmt -l)
	[ -z "$bad" ] || { printf 'gofmt would change:\n%s\n' "$bad"; return 1; }
}

build_image() {
	packaging/image/build.sh --agents bin/guest >"$out/image"
}

build_testhost() { packaging/testhost/build.sh >"$out/testhost"; }

# The module's packages but those that need the image, the packages or a host.
unit() {
	go list ./... | grep -v -e /test/e2e -e /test/containers -e /test/packages -e /test/hosttest -e /packaging/image |
		xargs go test -race -count=1 -timeout=6m30s
}

out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
export out
export -f formatted build_image build_testhost unit

# Each has some room: together they take well below an hour on an idle machine.
suite build 180 make --no-print-directory build
suite format 20 bash -c formatted
suite vet 100 go vet ./...
suite unit 400 bash -c unit
suite image 290 bash -c build_image
AUBERGE_IMAGE_DIR=$(tail -n 1 "$out/image" 2>/dev/null)
AUBERGE_BIN=$PWD/bin
export AUBERGE_IMAGE_DIR AUBERGE_BIN
suite image-check 50 go test -count=1 ./packaging/image/...
suite examples 40 make --no-print-directory examples
suite e2e 1000 go test -count=1 -timeout=990s ./test/e2e
suite containers 1000 go test -count=1 -v -parallel=8 -timeout=990s ./test/containers
suite packages 120 make --no-print-directory packages
suite packages-check 180 go test -count=1 -timeout=170s ./test/packages
suite testhost 160 bash -c build_testhost
suite hosttest 640 go test -count=1 -timeout=630s ./test/hosttest

printf '\n'
if [ ${#failed[@]} -gt 0 ]; then
	printf 'FAILED: %s\n' "${failed[*]}"
	exit 1
fi
printf 'all suites passed in %d s\n' "$SECONDS"
