package core

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// killGrace is how long killed processes are awaited: only those stuck in the
// kernel need it.
const killGrace = 5 * time.Second

var errNotInit = errors.New("only PID 1 may end every process")

// EndAll ends every process but this one, which must be PID 1: SIGTERM, and
// SIGKILL for what is left after grace. What runs in containers is ended by
// their own PID 1, if it is in time. No process starts any more from the moment
// it is called.
func (t *Table) EndAll(grace time.Duration) error {
	// kill(-1) below spares nobody but the caller.
	if os.Getpid() != 1 {
		return errNotInit
	}
	t.refuse()
	terminateOwn()
	if t.awaitAll(grace) {
		return nil
	}
	t.log.Warn("killing what did not end in time", "grace", grace, "processes", strings.Join(userProcesses(), " "))
	unix.Kill(-1, unix.SIGKILL)
	if t.awaitAll(killGrace) {
		return nil
	}
	return fmt.Errorf("some processes cannot be killed: %s", strings.Join(userProcesses(), " "))
}

// terminateOwn sends SIGTERM to the processes of this PID name space. A
// container's systemd would take it for an order to start itself again.
func terminateOwn() {
	mine, err := os.Readlink("/proc/self/ns/pid")
	entries, listErr := os.ReadDir("/proc")
	if err != nil || listErr != nil {
		unix.Kill(-1, unix.SIGTERM)
		return
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		if theirs, err := os.Readlink("/proc/" + e.Name() + "/ns/pid"); err == nil && theirs == mine && !passesOn(e.Name()) {
			unix.Kill(pid, unix.SIGTERM)
		}
	}
}

// monitorTitle begins the command line of LXC's process outside of a container.
const monitorTitle = "[lxc monitor] "

// passesOn tells whether a process sends its signals on to a container's PID 1.
// It ends with its container.
func passesOn(pid string) bool {
	cmdline, err := os.ReadFile("/proc/" + pid + "/cmdline")
	return err == nil && strings.HasPrefix(string(cmdline), monitorTitle)
}

// awaitAll tells whether every process was gone in time. A PID 1 inherits
// whatever loses its parent, so "gone" is to have no children.
func (t *Table) awaitAll(grace time.Duration) bool {
	ctx, cancel := context.WithTimeout(context.Background(), grace)
	defer cancel()
	return t.waitChildless(ctx) == nil
}

// userProcesses names the processes other than this one and the kernel's own,
// as name(pid), at most 16 of them.
func userProcesses() []string {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	var names []string
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		// Kernel threads have no command line, nor have zombies.
		cmdline, err := os.ReadFile("/proc/" + e.Name() + "/cmdline")
		if err != nil || len(cmdline) == 0 {
			continue
		}
		comm, _ := os.ReadFile("/proc/" + e.Name() + "/comm")
		names = append(names, strings.TrimSpace(string(comm))+"("+e.Name()+")")
	}
	slices.Sort(names)
	return names[:min(len(names), 16)]
}

// PowerOff unmounts everything and switches the machine off. It returns only
// when that fails.
func PowerOff(log *slog.Logger) error {
	if os.Getpid() != 1 {
		return errors.New("only PID 1 may power off")
	}
	unmountAll(log)
	log.Info("power off")
	return powerOffNow()
}

// powerOffNow lets the console finish its sentence first.
func powerOffNow() error {
	const drain = 1 // TCSBRK with a non-zero argument is tcdrain(3)
	unix.IoctlSetInt(int(os.Stderr.Fd()), unix.TCSBRK, drain)
	if err := unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF); err != nil {
		return fmt.Errorf("cannot power off: %w", err)
	}
	return nil
}

// Die tells the console why the VM cannot go on, in words that no log level
// hides, and switches it off, so that the host sees an end and not a hang.
func Die(err error) {
	fmt.Fprintf(os.Stderr, "\r\nauberge: this VM cannot go on: %v\r\n", err)
	unix.Sync()
	if err := powerOffNow(); err != nil {
		fmt.Fprintf(os.Stderr, "auberge: %v\r\n", err)
	}
	os.Exit(1)
}
