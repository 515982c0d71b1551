#!/bin/sh
# container.sh VM CONTAINER USER
#
# Makes a container in a running VM of yours, with a user in it, and starts it,
# with nothing but busctl and what POSIX asks of a system. It shows how little a
# client of org.chromium.VmCicerone needs: requests are protobufs, which printf
# and od write byte by byte, and instead of waiting for signals it asks again.
#
#	BUS      the bus as busctl takes it (default: --system)
#	PATIENCE seconds that each step may take (default: 900)
#
# "vmc container VM CONTAINER" does the same, and shows the progress.
set -eu

[ $# = 3 ] || { echo "usage: container.sh VM CONTAINER USER" >&2; exit 2; }
vm=$1 container=$2 user=$3
bus=${BUS:---system}
patience=${PATIENCE:-900}

# field NUMBER TEXT prints a field of a message that is a string, as bytes in
# decimal: its tag, its length and the text. An empty one is left out.
field() {
	[ -n "$2" ] || return 0
	n=$(printf %s "$2" | wc -c)
	printf '%d ' $(($1 << 3 | 2))
	# A length is a varint: seven bits a byte, the lowest first.
	while [ "$n" -ge 128 ]; do
		printf '%d ' $((n & 127 | 128))
		n=$((n >> 7))
	done
	printf '%d ' "$n"
	printf %s "$2" | od -An -v -tu1 | tr '\n' ' '
}

# call METHOD BYTE... calls a method and prints the bytes of its answer.
call() {
	method=$1
	shift
	# The words of a byte array are its length and its bytes.
	answer=$(busctl "$bus" --timeout="$patience" call org.chromium.VmCicerone /org/chromium/VmCicerone \
		org.chromium.VmCicerone "$method" ay $# "$@") || return
	set -- $answer
	shift 2
	echo "$@"
}

# number BYTE... prints the value of field 1 when that is a small number, which
# a status and a truth are; what is 0 is not sent.
number() {
	[ "${1:-}" = 8 ] && echo "$2" || echo 0
}

# reason BYTE... prints the text of field 2, which says why not.
reason() {
	[ "${1:-}" != 8 ] || shift 2
	[ "${1:-}" = 18 ] || { echo "no reason was given"; return 0; }
	shift
	while [ "$1" -ge 128 ]; do shift; done
	shift
	for b; do
		# Not what would drive a terminal.
		[ "$b" -ge 32 ] && [ "$b" -ne 127 ] || b=63
		printf "\\$(printf %o "$b")"
	done
	echo
}

fail() {
	echo "container.sh: $*" >&2
	exit 1
}

# until_done WHAT COMMAND asks again until a command says yes.
until_done() {
	what=$1
	shift
	end=$(($(date +%s) + patience))
	until "$@"; do
		[ "$(date +%s)" -lt "$end" ] || fail "$what: not done within $patience seconds: ${why:-no answer}"
		sleep 3 # asking costs an emulated guest what it needs for the work itself
	done
	echo "$what: done"
}

# In all requests about a container the VM is field 1, the container field 2 and
# the owner, who is the caller when empty, field 3.
names="$(field 1 "$vm") $(field 2 "$container")"

# StartLxd: 1 is STARTING, 2 ALREADY_RUNNING, and 3 FAILED, as long as the VM's
# own agent is not up.
manager_runs() {
	answer=$(call StartLxd $(field 1 "$vm")) || fail "StartLxd failed"
	why=$(reason $answer)
	[ "$(number $answer)" = 2 ]
}

# SetUpLxdContainerUser: 1 is SUCCESS, 2 EXISTS. While the container is being
# created there is none to set a user up in.
user_is_there() {
	answer=$(call SetUpLxdContainerUser $names $(field 4 "$user")) || fail "SetUpLxdContainerUser failed"
	why=$(reason $answer)
	status=$(number $answer)
	[ "$status" = 1 ] || [ "$status" = 2 ]
}

# IsContainerRunning: it runs, and its agent has reported.
container_runs() {
	answer=$(call IsContainerRunning $names) || fail "IsContainerRunning failed"
	why="its agent has not reported"
	[ "$(number $answer)" = 1 ]
}

if container_runs; then
	echo "$container runs already"
	exit 0
fi
until_done "the container manager of $vm" manager_runs

# CreateLxdContainer without a server and an alias takes the image that comes
# with Auberge: 1 is CREATING, 2 EXISTS.
answer=$(call CreateLxdContainer $names) || fail "CreateLxdContainer failed"
case $(number $answer) in
1 | 2) ;;
*) fail "create $container: $(reason $answer)" ;;
esac
until_done "$container and its user $user" user_is_there

# StartLxdContainer: 3 is FAILED, 0 UNKNOWN; all others lead to its running.
answer=$(call StartLxdContainer $names) || fail "StartLxdContainer failed"
case $(number $answer) in
0 | 3) fail "start $container: $(reason $answer)" ;;
esac
until_done "the start of $container" container_runs
