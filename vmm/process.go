package vmm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// A Process is a process for good: its number can be given to another one
// later, but not together with the time at which it began.
type Process struct {
	PID int `json:"pid"`
	// Began is in the kernel's ticks since it booted.
	Began uint64 `json:"began"`
}

// IdentifyProcess finds out when a process began. The zero Process is one that
// could not be found.
func IdentifyProcess(pid int) Process {
	began, err := began(pid)
	if err != nil {
		return Process{}
	}
	return Process{PID: pid, Began: began}
}

// began reads field 22 of /proc/PID/stat. The second field may contain
// anything, but only it can contain a parenthesis.
func began(pid int) (uint64, error) {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0, err
	}
	f := bytes.Fields(b[bytes.LastIndexByte(b, ')')+1:])
	const field = 22 - 3
	if len(f) <= field {
		return 0, fmt.Errorf("/proc/%d/stat is shorter than expected", pid)
	}
	return strconv.ParseUint(string(f[field]), 10, 64)
}

// Processes are those of a VM of which it must be known, without asking
// anybody, whether they are still there.
type Processes struct {
	Supervisor Process `json:"supervisor"`
	Hypervisor Process `json:"hypervisor"`
}

// Processes identifies the VM's processes.
func (m *Machine) Processes() Processes {
	return Processes{Supervisor: IdentifyProcess(m.process.Pid), Hypervisor: IdentifyProcess(m.pid)}
}

// Known says whether there is anything that Kill could kill.
func (p Processes) Known() bool { return p.Supervisor.PID > 0 }

// Kill kills the processes of a VM whose supervisor does not answer, and
// returns when they have gone: the hypervisor dies with its supervisor.
func (p Processes) Kill(ctx context.Context) error {
	if !p.Known() {
		return errors.New("the VM's processes are not known")
	}
	for _, one := range []Process{p.Supervisor, p.Hypervisor} {
		if err := one.kill(ctx); err != nil {
			return err
		}
	}
	return nil
}

// kill returns at once when the process has gone already.
func (p Process) kill(ctx context.Context) error {
	if p.PID <= 0 {
		return nil
	}
	fd, err := unix.PidfdOpen(p.PID, 0)
	if err == unix.ESRCH {
		return nil
	}
	if err != nil {
		return fmt.Errorf("process %d: %w", p.PID, err)
	}
	defer unix.Close(fd)
	// The handle is on whoever has the number now.
	if b, err := began(p.PID); err != nil || b != p.Began {
		return nil
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && err != unix.ESRCH {
		return fmt.Errorf("kill process %d: %w", p.PID, err)
	}
	return awaitEnd(ctx, fd, p.PID)
}

// awaitEnd waits until the process of a pidfd has ended.
func awaitEnd(ctx context.Context, fd, pid int) error {
	for {
		// Poll knows no context: it is asked again from time to time.
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int((100 * time.Millisecond).Milliseconds()))
		switch {
		case n > 0:
			return nil
		case err != nil && err != unix.EINTR:
			return fmt.Errorf("wait for process %d: %w", pid, err)
		case ctx.Err() != nil:
			return fmt.Errorf("process %d does not end: %w", pid, context.Cause(ctx))
		}
	}
}
