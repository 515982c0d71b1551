#!/usr/bin/env bash
# The long rounds of what `make test` does in short ones: vm_concierge killed
# at random moments, shells by the thousand, half a gigabyte each way, and
# every fuzz target for some time. It goes on after a failure and ends red.
#
#   AUBERGE_ROUNDS   random kills (100)        AUBERGE_SEED     of the kills
#   AUBERGE_COMMANDS short commands (3000)     AUBERGE_BULK_MIB each way (500)
#   AUBERGE_CRASHES  rounds of crash points (3)
#   AUBERGE_FUZZTIME for each fuzz target (60s)
set -uo pipefail
cd "$(dirname "$0")/.."

failed=()
run() {
	local name=$1 began=$SECONDS
	shift
	printf '\n=== %s\n' "$name"
	if "$@"; then
		printf '=== %s: ok after %d s\n' "$name" $((SECONDS - began))
	else
		printf '=== %s: FAILED after %d s\n' "$name" $((SECONDS - began))
		failed+=("$name")
	fi
}

make --no-print-directory build || exit 1
AUBERGE_IMAGE_DIR=$(make --no-print-directory -s image | tail -n 1) || exit 1
AUBERGE_BIN=$PWD/bin
export AUBERGE_BIN AUBERGE_IMAGE_DIR
export AUBERGE_ROUNDS=${AUBERGE_ROUNDS:-100} AUBERGE_COMMANDS=${AUBERGE_COMMANDS:-3000} AUBERGE_BULK_MIB=${AUBERGE_BULK_MIB:-500}

run survival go test -count=1 -timeout=6h -v ./test/e2e -run '^TestSurvival$'
run crash-points go test -count="${AUBERGE_CRASHES:-3}" -timeout=6h ./test/e2e -run '^TestCrashPoints$'
run shells go test -count=1 -timeout=6h -v ./test/e2e -run '^TestVshStreams$|^TestShellOutlivesConcierge$'
for package in $(go list ./...); do
	for target in $(go test -list '^Fuzz' "$package" 2>/dev/null | grep '^Fuzz'); do
		run "$target of ${package#*/*/*/}" go test "$package" -run='^$' -fuzz="^$target\$" -fuzztime="${AUBERGE_FUZZTIME:-60s}"
	done
done

if [ ${#failed[@]} -gt 0 ]; then
	printf '\nFAILED: %s\n' "${failed[*]}"
	exit 1
fi
printf '\nthe soak passed in %d s\n' "$SECONDS"
