// Standin takes auberge-vm's place in a benchmark: started once per VM, it
// hands the descriptors that a supervisor inherits to the benchmark, which
// plays supervisor, hypervisor and guest of all VMs at once. What stays is a
// cat that ends when the benchmark lets go of the VM. So the service under
// test has as many children as in earnest, and the machine can hold a
// thousand of them.
package main

import (
	"errors"
	"fmt"
	"os"
	"slices"

	"golang.org/x/sys/unix"
)

// The descriptors of daemon/auberge-vm: control socket, lifeline and the
// lifeline's reading end.
var inherited = []int{3, 4, 5}

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "standin:", err)
		os.Exit(1)
	}
}

// run is called with auberge-vm's arguments. The name of the vsock backend is
// the benchmark's socket here.
func run(args []string) error {
	i := slices.Index(args, "--vsock-backend")
	if i < 0 || i+1 >= len(args) {
		return errors.New("no --vsock-backend, which names the benchmark's socket")
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET, 0)
	if err != nil {
		return err
	}
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: args[i+1]}); err != nil {
		return fmt.Errorf("connect to the benchmark at %s: %w", args[i+1], err)
	}
	dir, err := unix.Getwd()
	if err != nil {
		return err
	}
	if err := unix.Sendmsg(fd, []byte(dir), unix.UnixRights(inherited...), nil, 0); err != nil {
		return err
	}
	for _, n := range inherited {
		unix.CloseOnExec(n)
	}
	if err := unix.Dup3(fd, 0, 0); err != nil {
		return err
	}
	unix.CloseOnExec(fd)
	return unix.Exec("/bin/cat", []string{"cat"}, nil)
}
